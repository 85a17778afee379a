"""Places: a chunk's key in the layout as one integer, in the same order: a range of ranks is a range of places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrag_retriever.layout import Key

# 53 bits in all: engines and stores that compute in doubles keep such integers exactly.
_MINOR_BITS = 26
_MAJOR_BITS = 27
_MOST_MAJORS = 2**_MAJOR_BITS - 1
END = _MOST_MAJORS << _MINOR_BITS
"""All places of chunks are below this, and some integers above it are still exact in doubles."""


def places_of(keys: Sequence[Key]) -> np.ndarray:
    """Pack keys (M,) into places (M,), int64.

    Raises:
        ValueError: If there were more additions than fit.
    """
    parts = np.array(keys, np.int64).reshape(-1, 2)
    if len(parts) and (parts.max(axis=0) >= [_MOST_MAJORS, 2**_MINOR_BITS]).any():
        raise ValueError(
            f"an index on an engine takes {_MOST_MAJORS:,} documents or loose chunks and {2**_MINOR_BITS:,} additions "
            "to a document; start a new one"
        )
    return parts[:, 0] << _MINOR_BITS | parts[:, 1]


def keys_of(places: np.ndarray) -> np.ndarray:
    """Unpack places (N,) into keys (N, 2)."""
    return np.stack([places >> _MINOR_BITS, places & (2**_MINOR_BITS - 1)], axis=1)

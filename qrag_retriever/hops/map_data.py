"""What the map of a page is drawn from: every hop's Q-values, packed, and the marks on them; numbers only."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from qrag_retriever.hops.columns import value_range, wide_columns
from qrag_retriever.steps import Step
from qrag_retriever.trace import Hop, SearchTrace

# Of packed Q-values in a page, before base64 makes four bytes of three.
_MOST_BYTES = 2 * 2**20


class Packing:
    """How finely the Q-values of one search are packed, so that a page stays small.

    Two bytes for a chunk where there is room for that, else one; and where there is not even room for that, the lowest
    and the highest value of a few neighbouring chunks. Code 0 is a chunk that cannot be picked; the others divide the
    range of the hop evenly.
    """

    def __init__(self, num_chunks: int, num_hops: int, most_bytes: int = _MOST_BYTES) -> None:
        """Choose for so many chunks in so many hops."""
        total = num_chunks * num_hops
        self.dtype = np.dtype("<u2" if 2 * total <= most_bytes else "u1")
        self.width = 1 if total <= most_bytes else -(-2 * total // most_bytes)

    def pack(self, hop: Hop, low: float, high: float) -> str:
        """Return base64 of a code for each chunk, or of all the lows and then all the highs of wider columns."""
        columns = wide_columns(hop, self.width)
        values = columns.highs if self.width == 1 else np.concatenate([columns.lows, columns.highs])
        steps = int(np.iinfo(self.dtype).max) - 1
        scaled = (np.nan_to_num(values, nan=low).astype(np.float64) - low) / ((high - low) or 1.0)
        codes = np.where(np.isnan(values), 0, 1 + np.rint(np.clip(scaled, 0, 1) * steps)).astype(self.dtype)
        return base64.b64encode(codes.tobytes()).decode("ascii")


def map_of(trace: SearchTrace, hops: list[dict[str, Any]], packing: Packing) -> dict[str, Any]:
    """Put the hops of a map together."""
    return {
        "numChunks": trace.num_chunks,
        "firstChunk": trace.first_chunk_id,
        "width": packing.width,
        "bytes": packing.dtype.itemsize,
        "minQ": trace.min_q if trace.min_q is not None and np.isfinite(trace.min_q) else None,
        "hops": hops,
    }


def hop_of_map(
    hop: Hop, step: Step | None, chunk_ids: list[int], min_q: float | None, packing: Packing
) -> dict[str, Any]:
    """Describe one hop of a map.

    Args:
        hop: Its values.
        step: What was picked; None in the state in which the search stopped.
        chunk_ids: Chunk ids of the earlier picks.
        min_q: The threshold, to be in the range that is drawn.
        packing: How to pack the values.
    """
    low, high = value_range(hop, min_q, None if step is None else step.q_value)
    runner_up = hop.runner_up
    return {
        "low": low,
        "high": high,
        "codes": packing.pack(hop, low, high),
        "pick": None if step is None else {"place": hop.pick, "chunk": step.chunk_id, "q": step.q_value},
        "runnerUp": None if runner_up is None else {"place": runner_up, "q": float(hop.q_values[runner_up])},
        "earlier": [{"place": place, "chunk": chunk} for place, chunk in zip(hop.earlier, chunk_ids, strict=True)],
        "segments": [list(segment) for segment in hop.segments],
    }

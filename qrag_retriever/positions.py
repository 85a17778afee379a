"""Positions of chunks relative to the chunks picked so far, as runs of equal position.

A document of a million chunks has few distinct positions (at most ``19 * (picks + 1)`` at a stride of 20), so positions
are kept as *runs*: contiguous stretches of chunks that share one position. Everything downstream works on runs; the
per-chunk array exists for tests, plots and small documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

DEFAULT_STRIDE = 20


class Runs(NamedTuple):
    """Contiguous stretches of chunks that share one position.

    Attributes:
        edges: Shape (num_runs + 1,), int64, strictly increasing from 0 to the number of chunks; run r covers the
            chunk ids in ``[edges[r], edges[r + 1])``.
        positions: Shape (num_runs,), int64: the position of every chunk of a run.
    """

    edges: np.ndarray
    positions: np.ndarray

    def position_of(self, chunk_id: int) -> int:
        """Return the position of one chunk."""
        return int(self.positions[np.searchsorted(self.edges, chunk_id, side="right") - 1])

    def between(self, first: int, stop: int) -> Runs:
        """Return the runs of the chunks in ``[first, stop)`` alone, counted from ``first``; at least one chunk."""
        low = int(np.searchsorted(self.edges, first, side="right")) - 1
        high = int(np.searchsorted(self.edges, stop, side="left"))
        return Runs(np.clip(self.edges[low : high + 1], first, stop) - first, self.positions[low:high])

    def expand(self) -> np.ndarray:
        """Return the position of every chunk, shape (num_chunks,), int64."""
        return np.repeat(self.positions, np.diff(self.edges))


def position_span(stride: int) -> int:
    """Return the offset of the last chunk of a segment: nine tenths of the stride, cut to an integer."""
    return int(0.9 * stride)


def uniform_run(num_chunks: int) -> Runs:
    """Give all chunks position 0 (models without positions, and corpus mode)."""
    return Runs(np.array([0, num_chunks], dtype=np.int64), np.zeros(1, dtype=np.int64))


def absolute_runs(num_chunks: int) -> Runs:
    """Give every chunk its own index as position, whatever was picked."""
    return Runs(np.arange(num_chunks + 1, dtype=np.int64), np.arange(num_chunks, dtype=np.int64))


def relative_runs(num_chunks: int, picked: Sequence[int], stride: int = DEFAULT_STRIDE) -> Runs:
    """Place every chunk relative to the chunks picked so far, as runs of equal position.

    The sorted picks cut the document into segments; a picked chunk is the first of the segment to its right. Chunk
    ``r`` of ``n`` in segment ``j`` has position ``stride * j + (span * r) // (n - 1)``, and ``stride * j`` if n is 1.
    The segment counter also advances over an empty segment (a pick of chunk 0).

    Args:
        num_chunks: Chunks in the document, at least 1.
        picked: Distinct chunk ids in [0, num_chunks), in any order.
        stride: Position units between the starts of two neighbouring segments; must match the model's.

    Returns:
        At most ``(span + 1) * (len(picked) + 1)`` runs with non-decreasing positions.

    Raises:
        ValueError: If there is no chunk, or a picked id is repeated or out of range.

    Source: Q-RAG (arXiv 2511.07328), Section 3, relative positions.
    """
    cuts = _checked_cuts(num_chunks, picked)
    span = position_span(stride)
    lengths = cuts[1:] - cuts[:-1]
    offsets = _offsets(span)
    # First chunk of a segment at each offset: ceil(offset * (n - 1) / span), in integers.
    firsts = (np.maximum(lengths - 1, 0)[:, None] * offsets + (span - 1)) // span
    # The one chunk of a segment of one stands at offset 0; the other offsets are empty.
    firsts[lengths == 1, 1:] = 1
    edges = np.empty(firsts.size + 1, np.int64)
    np.add(firsts, cuts[:-1, None], out=edges[:-1].reshape(firsts.shape))
    edges[-1] = num_chunks
    positions = (stride * np.arange(len(lengths))[:, None] + offsets).ravel()
    kept = edges[1:] > edges[:-1]
    return Runs(np.append(edges[:-1][kept], num_chunks), positions[kept])


def relative_positions(num_chunks: int, picked: Sequence[int], stride: int = DEFAULT_STRIDE) -> np.ndarray:
    """Place every chunk relative to the chunks picked so far.

    Args:
        num_chunks: Chunks in the document, at least 1.
        picked: Distinct chunk ids in [0, num_chunks), in any order.
        stride: Position units between the starts of two neighbouring segments; must match the model's.

    Returns:
        Shape (num_chunks,), int64: position units, non-decreasing; a segment spans at most 0.9 * stride.

    Raises:
        ValueError: If there is no chunk, or a picked id is repeated or out of range.

    Source: Q-RAG (arXiv 2511.07328), Section 3, relative positions.
    """
    return relative_runs(num_chunks, picked, stride).expand()


def _checked_cuts(num_chunks: int, picked: Sequence[int]) -> np.ndarray:
    if num_chunks < 1:
        raise ValueError(f"expected at least 1 chunk, got {num_chunks}")
    ordered = sorted(int(chunk_id) for chunk_id in picked)
    if ordered and not 0 <= ordered[0] <= ordered[-1] < num_chunks:
        raise ValueError(f"picked chunk ids must lie in [0, {num_chunks}), got {ordered[0]} to {ordered[-1]}")
    if len(set(ordered)) != len(ordered):
        raise ValueError(f"picked chunk ids must be distinct, got {ordered}")
    return np.array([0, *ordered, num_chunks], dtype=np.int64)


@lru_cache(maxsize=16)
def _offsets(span: int) -> np.ndarray:
    return np.arange(span + 1, dtype=np.int64)

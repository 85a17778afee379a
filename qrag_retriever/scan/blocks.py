"""Vectors that are read a block of rows at a time from where they are kept, and the scan that holds none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from qrag_retriever.rotary import rotate_backward
from qrag_retriever.scan.base import ExactRows, StateQuery, top_of, top_of_candidates
from qrag_retriever.scan.products import write_products
from qrag_retriever.scan.threads import for_row_slices

# 6 MiB of float32 at 384 components: few enough to stay in a cache while all states are scored.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """A matrix (N, D), float32, whose rows are read when they are asked for.

    Attributes:
        exact_rows: Reads rows.
        shape: N and D.
    """

    exact_rows: ExactRows
    shape: tuple[int, int]

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        """Read consecutive rows."""
        first, stop, _ = part.indices(len(self))
        return self.exact_rows(np.arange(first, stop))

    def matrix(self) -> np.ndarray:
        """Read everything: (N, D), float32."""
        found = np.empty(self.shape, np.float32)
        for first in range(0, len(self), ROWS_AT_ONCE):
            found[first : first + ROWS_AT_ONCE] = self[first : first + ROWS_AT_ONCE]
        return found


class MappedScan:
    """Exact top-k over vectors that are read anew at every hop; needs memory for one block of them."""

    hot_bytes = 0

    def __init__(self, num_chunks: int, exact_rows: ExactRows) -> None:
        """Wrap what reads the vectors.

        Args:
            num_chunks: N.
            exact_rows: Reads them, from a file map, say.
        """
        self.num_chunks = num_chunks
        self._exact_rows = exact_rows

    def appended(self, vectors: np.ndarray, exact_rows: ExactRows) -> MappedScan:
        """Return a scan with (M, D) more rows; see `Scan.appended`."""
        return MappedScan(self.num_chunks + len(vectors), exact_rows)

    def taken(self, chunk_ids: np.ndarray, exact_rows: ExactRows) -> MappedScan:
        """Return a scan of some of the rows; see `Scan.taken`."""
        return MappedScan(len(chunk_ids), exact_rows)

    def top_k(
        self, queries: Sequence[StateQuery], k: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best chunks of each state; see `Scan.top_k`."""
        rotated = [rotate_backward(query.state, query.runs.positions) for query in queries]
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]

        def search(rows: tuple[int, int]) -> None:
            for first in range(*rows, ROWS_AT_ONCE):
                stop = min(first + ROWS_AT_ONCE, rows[1])
                vectors = np.ascontiguousarray(self._exact_rows(np.arange(first, stop)), np.float32)
                for own, query, states in zip(found, queries, rotated, strict=True):
                    scores = _scores(vectors, query, states, first)
                    if mask is not None:
                        scores[~mask[first:stop]] = -np.inf
                    ids, values = top_of(scores, k)
                    own.append((np.where(ids >= 0, ids + first, -1), values))

        for_row_slices(self.num_chunks, search)
        best = [
            top_of_candidates(np.concatenate([ids for ids, _ in own]), np.concatenate([scores for _, scores in own]), k)
            for own in found
        ]
        return np.stack([ids for ids, _ in best]), np.stack([values for _, values in best])


def _scores(vectors: np.ndarray, query: StateQuery, rotated: np.ndarray, first: int) -> np.ndarray:
    """Score a block of rows, which begins at chunk ``first``, for one state; ``rotated`` (runs, D) has all its runs."""
    stop = first + len(vectors)
    part = query.runs.between(first, stop)
    run = int(np.searchsorted(query.runs.edges, first, side="right")) - 1
    scores = np.empty(len(vectors), np.float32)
    for offset, (start, end) in enumerate(pairwise(part.edges)):
        write_products(vectors[start:end], rotated[run + offset], scores[start:end])
    excluded = [chunk - first for chunk in query.excluded if first <= chunk < stop]
    scores[excluded] = -np.inf
    return scores

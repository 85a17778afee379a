"""The scan over a plain float32 matrix: needs no compiled extra, runs at memory speed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from qrag_retriever.rotary import rotate_backward
from qrag_retriever.scan.base import ExactRows, StateQuery, top_of
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.scan.products import write_products
from qrag_retriever.scan.threads import for_row_slices, single_threaded_blas

# From this many states on, blocked matrix products beat one pass per state.
_BATCH_STATES = 6
# Few enough rows that most blocks lie within one run of each state, enough for a matrix product to pay.
_BATCH_ROWS = 1024


class FloatScan:
    """Exact top-k over a float32 matrix."""

    def __init__(self, matrix: np.ndarray | GrowingArray) -> None:
        """Wrap a matrix.

        Args:
            matrix: Shape (N, D), float32, C-contiguous; not copied.
        """
        self._rows = matrix if isinstance(matrix, GrowingArray) else GrowingArray(matrix)
        self.matrix = self._rows.array

    @property
    def num_chunks(self) -> int:
        """Rows of the matrix."""
        return len(self.matrix)

    @property
    def hot_bytes(self) -> int:
        """Memory that one pass reads."""
        return self.matrix.nbytes

    def appended(self, vectors: np.ndarray, exact_rows: ExactRows) -> FloatScan:
        """Return a scan with (M, D) more rows; see `Scan.appended`."""
        return FloatScan(self._rows.appended(vectors))

    def taken(self, chunk_ids: np.ndarray, exact_rows: ExactRows) -> FloatScan:
        """Return a scan of some of the rows; see `Scan.taken`."""
        return FloatScan(self.matrix[chunk_ids])

    def top_k(
        self, queries: Sequence[StateQuery], k: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best chunks of each state; see `Scan.top_k`."""
        all_scores: Iterable[np.ndarray]
        most_runs = max(len(query.runs.positions) for query in queries)
        # A product takes every row times every state's run in its block: runs must be long for that to pay.
        if len(queries) >= _BATCH_STATES and self.num_chunks >= _BATCH_ROWS // 2 * (most_runs - 1):
            all_scores = self._batch_scores(queries)
        else:
            all_scores = (self._scores(query) for query in queries)
        found = []
        for query, scores in zip(queries, all_scores, strict=True):
            scores[list(query.excluded)] = -np.inf
            if mask is not None:
                scores[~mask] = -np.inf
            found.append(top_of(scores, k))
        return np.stack([ids for ids, _ in found]), np.stack([values for _, values in found])

    def _scores(self, query: StateQuery) -> np.ndarray:
        """Score all chunks for one state, each run of equal position against its own rotated state."""
        rotated = rotate_backward(query.state, query.runs.positions)
        scores = np.empty(self.num_chunks, np.float32)
        for_row_slices(self.num_chunks, lambda rows: self._score_rows(query, rotated, scores, *rows))
        return scores

    def _score_rows(self, query: StateQuery, rotated: np.ndarray, scores: np.ndarray, first: int, stop: int) -> None:
        edges = query.runs.edges
        runs = range(int(np.searchsorted(edges, first, "right")) - 1, int(np.searchsorted(edges, stop, "left")))
        bounds = edges.tolist()
        for run in runs:
            low, high = max(first, bounds[run]), min(stop, bounds[run + 1])
            write_products(self.matrix[low:high], rotated[run], scores[low:high])

    def _batch_scores(self, queries: Sequence[StateQuery]) -> np.ndarray:
        """Score all chunks for several states, (B, N): each block of rows is read once for all of them."""
        scores = np.empty((len(queries), self.num_chunks), np.float32)
        rotated = np.concatenate([rotate_backward(query.state, query.runs.positions) for query in queries])
        pieces = self._pieces(queries)
        with single_threaded_blas:
            for_row_slices(self.num_chunks, lambda rows: self._score_blocks(pieces, rotated, scores, *rows))
        return scores

    def _pieces(self, queries: Sequence[StateQuery]) -> np.ndarray:
        """Cut every state's runs at the block borders: (P, 4) of state, run (counted over all states), begin, end."""
        borders = np.arange(0, self.num_chunks, _BATCH_ROWS)
        pieces, first_run = [], 0
        for row, query in enumerate(queries):
            edges = query.runs.edges
            cuts = np.union1d(edges, borders)
            run = np.searchsorted(edges, cuts[:-1], "right") - 1 + first_run
            pieces.append(np.stack([np.full(len(run), row), run, cuts[:-1], cuts[1:]], axis=1))
            first_run += len(edges) - 1
        joined = np.concatenate(pieces)
        return joined[np.argsort(joined[:, 2] // _BATCH_ROWS, kind="stable")]

    def _score_blocks(self, pieces: np.ndarray, rotated: np.ndarray, scores: np.ndarray, first: int, stop: int) -> None:
        blocks = pieces[:, 2] // _BATCH_ROWS
        for low in range(first, stop, _BATCH_ROWS):
            part = pieces[slice(*np.searchsorted(blocks, [low // _BATCH_ROWS, low // _BATCH_ROWS + 1]))]
            products = self.matrix[low : low + _BATCH_ROWS] @ rotated[part[:, 1]].T
            for column, (row, _, begin, end) in enumerate(part.tolist()):
                scores[row, begin:end] = products[begin - low : end - low, column]

"""One hop on an engine: states and runs of positions become one batch of range queries, and its answers the top k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrag_retriever.engines.base import Engine, check_version
from qrag_retriever.rotary import rotate_backward
from qrag_retriever.scan.base import StateQuery, top_of_candidates

# A mask of more stretches than this is applied to what comes back; of fewer, it is cut out of the ranges.
_MOST_STRETCHES = 256
_MORE = 4


class EngineScan:
    """Exact top-k of some chunks of an index on an engine, as far as the engine's own search is exact."""

    hot_bytes = 0

    def __init__(self, engine: Engine, version: int, places: np.ndarray) -> None:
        """Scan the chunks at ascending places (N,) of a version."""
        self._engine = engine
        self._version = version
        self._places = places

    @property
    def num_chunks(self) -> int:
        """Chunks that are scanned."""
        return len(self._places)

    def top_k(
        self, queries: Sequence[StateQuery], k: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best chunks of each state; see `StepScan.top_k`.

        Raises:
            StaleVersionError: If chunks of this version were deleted or replaced since.
        """
        stretches = np.empty(0, np.int64) if mask is None else np.flatnonzero(np.diff(mask)) + 1
        cut = len(stretches) <= _MOST_STRETCHES
        ranks, rotated, owners = [], [], []
        for number, query in enumerate(queries):
            pieces = self._pieces(query, stretches if cut else stretches[:0])
            if mask is not None and cut:
                pieces = pieces[mask[pieces[:, 0]]]
            runs = np.searchsorted(query.runs.edges, pieces[:, 0], "right") - 1
            rotated.append(rotate_backward(query.state, query.runs.positions)[runs])
            ranks.append(pieces)
            owners.append(np.full(len(pieces), number))
        found, values = self._search(np.concatenate(rotated), np.concatenate(ranks), k, None if cut else mask)
        check_version(self._engine, self._version)
        owner = np.concatenate(owners)
        best = [
            top_of_candidates(found[owner == number].ravel(), values[owner == number].ravel(), k)
            for number in range(len(queries))
        ]
        return np.stack([ids for ids, _ in best]), np.stack([scores for _, scores in best])

    def _pieces(self, query: StateQuery, stretches: np.ndarray) -> np.ndarray:
        """Cut the runs of a state at the borders of a mask and around the picks: (P, 2) of half-open rank ranges."""
        picks = np.array(query.excluded, np.int64)
        cuts = np.unique(np.concatenate([query.runs.edges, picks, picks + 1, stretches]))
        pieces = np.stack([cuts[:-1], cuts[1:]], axis=1)
        return pieces[~np.isin(pieces[:, 0], picks)]

    def _search(
        self, rotated: np.ndarray, ranks: np.ndarray, k: int, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best allowed chunks of each range, (Q, k), asking for more until that many are allowed."""
        found = np.full((len(ranks), k), -1, np.int64)
        values = np.full((len(ranks), k), -np.inf, np.float32)
        ranges = np.stack([self._places[ranks[:, 0]], self._places[ranks[:, 1] - 1] + 1], axis=1)
        # As many as hold k allowed ones if those are spread evenly, and some more.
        limit = k if mask is None else 2 * k * len(mask) // max(1, int(mask.sum()))
        open_rows = np.arange(len(ranks))
        while len(open_rows):
            places, scores = self._engine.search(rotated[open_rows], ranges[open_rows], limit)
            chunk_ids, allowed = self._chunks_at(places)
            if mask is not None:
                allowed &= mask[chunk_ids]
            nth = np.cumsum(allowed, axis=1) - 1
            row, column = np.nonzero(allowed & (nth < k))
            found[open_rows[row], nth[row, column]] = chunk_ids[row, column]
            values[open_rows[row], nth[row, column]] = scores[row, column]
            exhausted = (places < 0).any(axis=1)
            open_rows = open_rows[(allowed.sum(axis=1) < k) & ~exhausted]
            limit *= _MORE
        return found, values

    def _chunks_at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Translate places to chunk ids; also tell which of them are of this version, and not added later."""
        chunk_ids = np.minimum(np.searchsorted(self._places, places), len(self._places) - 1)
        return chunk_ids, self._places[chunk_ids] == places

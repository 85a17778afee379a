"""The scan over int8 codes: a quarter of the bytes, the identical top-k.

A row is kept as ``a = codes * scale + r``. A rotation keeps norms, so at any position
``|<R(-p) s, a> - <R(-p) s, codes * scale>| <= |s| |r|``: one stored norm per row bounds the error everywhere. The
state is rounded too, to 16 bits; with ``e`` its rounding error, ``|<e, codes * scale>| <= |e| |codes * scale|``, and
|e| is at most half a step per component. Every row whose upper bound reaches the k-th best lower bound is scored again
from the exact embeddings; those are the true top-k, always, and few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from qrag_retriever._extras import require_extra
from qrag_retriever.rotary import neighbours, phase_rows, rotate_backward
from qrag_retriever.scan.base import ExactRows, StateQuery, top_of_candidates
from qrag_retriever.scan.blocks import RowBlocks
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.scan.threads import for_row_slices

# Rounding of the float32 factors of a score and of its exact sum, relative to |s| |a|, with room.
_FLOAT_MARGIN = 1e-5
_RESCORED_AT_ONCE = 8192
_NO_MASK = np.empty(0, np.bool_)


class Codes(NamedTuple):
    """Int8 codes of chunk embeddings: ``vectors ~ codes * scales[:, None]``, residuals of norm ``residual_norms``."""

    codes: GrowingArray
    scales: GrowingArray
    residual_norms: GrowingArray

    def appended(self, vectors: np.ndarray) -> Codes:
        """Return codes with more rows; these stay valid."""
        return Codes(*(old.appended(new) for old, new in zip(self, quantise(vectors), strict=True)))


def quantise(vectors: np.ndarray | RowBlocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantise embeddings (N, D) row by row; returns codes int8 (N, D), scales (N,) and residual norms (N,)."""
    kernels = require_extra("numba", "fast") and _kernels()
    codes = np.empty(vectors.shape, np.int8)
    scales, residual_norms = (np.empty(len(vectors), np.float32) for _ in range(2))
    for first in range(0, len(vectors), _RESCORED_AT_ONCE):
        part = slice(first, first + _RESCORED_AT_ONCE)
        exact = np.ascontiguousarray(vectors[part], dtype=np.float32)
        kernels.quantise(exact, codes[part], scales[part], residual_norms[part])
    return codes, scales, residual_norms


class Int8Scan:
    """Exact top-k over int8 codes, rescored from the exact embeddings."""

    def __init__(self, codes: Codes, exact_rows: ExactRows) -> None:
        """Wrap codes.

        Args:
            codes: Of N chunks.
            exact_rows: Reads exact embeddings back, a few dozen rows a hop (from memory or from a file map).
        """
        self._codes = codes
        self._exact_rows = exact_rows
        self._dim = codes.codes.array.shape[1]
        # |codes * scale| <= |a| + |r|; the largest row bounds the error of the rounded state for all rows.
        peak = codes.scales.array.max(initial=0.0) * 127 * math.sqrt(self._dim)
        self._largest_row = float(peak)

    @property
    def num_chunks(self) -> int:
        """Rows of the matrix."""
        return len(self._codes.codes.array)

    @property
    def hot_bytes(self) -> int:
        """Memory that one pass reads."""
        return sum(part.array.nbytes for part in self._codes)

    def appended(self, vectors: np.ndarray, exact_rows: ExactRows) -> Int8Scan:
        """Return a scan with (M, D) more rows; see `Scan.appended`."""
        return Int8Scan(self._codes.appended(vectors), exact_rows)

    def taken(self, chunk_ids: np.ndarray, exact_rows: ExactRows) -> Int8Scan:
        """Return a scan of some of the rows; see `Scan.taken`."""
        return Int8Scan(Codes(*(GrowingArray(part.array[chunk_ids]) for part in self._codes)), exact_rows)

    def top_k(
        self, queries: Sequence[StateQuery], k: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best chunks of each state; see `Scan.top_k`."""
        kernels = _kernels()
        num_blocks = -(-self.num_chunks // kernels.BLOCK)
        scores = np.empty((len(queries), self.num_chunks), np.float32)
        lower, upper = (np.empty((len(queries), num_blocks), np.float32) for _ in range(2))
        prepared = self._prepared(queries, mask)
        arrays = [part.array for part in self._codes]
        for_row_slices(
            self.num_chunks, lambda rows: kernels.score_rows(*arrays, *prepared, *rows, scores, lower, upper)
        )
        slack, factors = arrays[2], prepared[-1]
        ids, values = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for b, query in enumerate(queries):
            kept = kernels.survivors(scores[b], slack, lower[b], upper[b], factors[b, 1], factors[b, 2], k)
            ids[b], values[b] = top_of_candidates(kept, self._exact_scores(query, kept), k)
        return ids, values

    def _prepared(self, queries: Sequence[StateQuery], mask: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Lay out the states' runs, rotated codes, picks and bounds for the kernel."""
        run_counts = [len(query.runs.positions) for query in queries]
        codes = np.empty((sum(run_counts), self._dim), np.int16)
        factors = np.empty((len(queries), 3), np.float32)
        first = 0
        for b, query in enumerate(queries):
            stop = first + run_counts[b]
            factors[b] = self._round_state(query, codes[first:stop])
            first = stop
        excluded = [np.array(query.excluded, np.int64) for query in queries]
        return (
            _joined([query.runs.edges for query in queries]),
            np.array([0, *itertools.accumulate(run_counts)]),
            codes,
            _joined(excluded),
            np.array([0, *itertools.accumulate(map(len, excluded))]),
            _NO_MASK if mask is None else mask,
            factors,
        )

    def _round_state(self, query: StateQuery, codes: np.ndarray) -> tuple[float, float, float]:
        """Write the rotated state as int16 codes; return its code scale and the two factors of the error bound."""
        # In double precision: squares of extreme components must not overflow.
        state = query.state.astype(np.float64)
        turned = bool(query.runs.positions.any())
        squares = state * state
        # No int32 sum of D products may overflow, and no rotation makes a component larger than its pair's norm.
        largest_code = min(32767, (2**31 - 1) // (127 * self._dim)) - 1
        partners = state[neighbours(self._dim)] if turned else np.zeros_like(state)
        amplitude = math.sqrt(float((squares + partners * partners).max()))
        scale = amplitude / largest_code if amplitude > 0 else 1.0
        if turned:
            cos, sin, rows = phase_rows(query.runs.positions, self._dim)
            unit, exchanged = (state / scale).astype(np.float32), (partners / scale).astype(np.float32)
            _kernels().rotate_to_codes(unit, exchanged, cos, sin, rows, codes)
        else:
            codes[:] = np.rint(state / scale)
        norm = math.sqrt(float(squares.sum()))
        rounding = 0.51 * scale * math.sqrt(self._dim) + _FLOAT_MARGIN * norm
        return scale, norm * (1 + 1e-4), rounding * self._largest_row

    def _exact_scores(self, query: StateQuery, ids: np.ndarray) -> np.ndarray:
        scores = np.empty(len(ids), np.float32)
        for first in range(0, len(ids), _RESCORED_AT_ONCE):
            part = ids[first : first + _RESCORED_AT_ONCE]
            positions = query.runs.positions[query.runs.edges.searchsorted(part, "right") - 1]
            rotated = rotate_backward(query.state, positions)
            scores[first : first + len(part)] = (self._exact_rows(part) * rotated).sum(1)
        return scores


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


@lru_cache(maxsize=1)
def _kernels() -> ModuleType:
    from qrag_retriever.scan import kernels

    return kernels

"""What every scan takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from qrag_retriever.positions import Runs

ExactRows = Callable[[np.ndarray], np.ndarray]
"""Maps ascending chunk ids (M,) to their exact embeddings (M, D), float32."""
ScanKind = Literal["auto", "float32", "int8", "mapped"]


@dataclass(frozen=True, slots=True)
class StateQuery:
    """One state's question to a scan.

    Attributes:
        state: Shape (D,), float32: the state embedding, not rotated.
        runs: Positions of all chunks given the state's picks.
        excluded: Sorted chunk ids that must not come back (the picks).
    """

    state: np.ndarray
    runs: Runs
    excluded: tuple[int, ...]


class StepScan(Protocol):
    """Exact top-k of ``<R(-p) s, a>`` over chunk embeddings, wherever they are."""

    @property
    def num_chunks(self) -> int:
        """Chunks that are scanned."""

    @property
    def hot_bytes(self) -> int:
        """Memory of this process that one pass reads."""

    def top_k(
        self, queries: Sequence[StateQuery], k: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best chunks of each state.

        Args:
            queries: B states.
            k: Chunks to return for each, at least 1.
            mask: Shape (N,), bool: False rules a chunk out; None allows all.

        Returns:
            Chunk ids (B, k), int64, and Q-values (B, k), float32, best first, ties by the lower id; rows padded with
            -1 and -inf where fewer than k chunks remain.
        """


class Scan(StepScan, Protocol):
    """The same over a matrix in memory, which can be continued when chunks come and go."""

    def appended(self, vectors: np.ndarray, exact_rows: ExactRows) -> Scan:
        """Return a scan with (M, D) more rows, float32; this one stays valid.

        ``exact_rows`` reads the exact embeddings of old and new rows; scans that hold them do not need it.
        """

    def taken(self, chunk_ids: np.ndarray, exact_rows: ExactRows) -> Scan:
        """Return a scan of some of the rows, in the given order, copied; ``exact_rows`` as in `appended`."""


def top_of(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of (N,) scores as (ids, scores), best first, ties by the lower id, padded with -1 and -inf."""
    if k == 1:
        best = np.array([scores.argmax()]) if len(scores) else np.empty(0, np.int64)
    else:
        best = _best_candidates(scores, k)
        best = best[np.lexsort((best, -scores[best]))][:k]
    return _padded(best, scores[best], k)


def top_of_candidates(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of a few candidates, as `top_of`."""
    best = np.lexsort((ids, -scores))[:k]
    return _padded(ids[best], scores[best], k)


def _best_candidates(scores: np.ndarray, k: int, block: int = 512) -> np.ndarray:
    """Return ascending ids that include the k best and every tie with them."""
    num_blocks = len(scores) // block
    if num_blocks <= 2 * k:
        if k >= len(scores):
            return np.arange(len(scores))
        return np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    # The k-th best block maximum is not above the k-th best score, so only blocks that reach it can matter.
    maxima = scores[: num_blocks * block].reshape(num_blocks, block).max(axis=1)
    threshold = np.partition(maxima, num_blocks - k)[num_blocks - k]
    blocks = np.flatnonzero(maxima >= threshold)
    ids = (blocks[:, None] * block + np.arange(block)).ravel()
    ids = np.concatenate([ids, np.arange(num_blocks * block, len(scores))])
    kept: np.ndarray = ids[scores[ids] >= threshold]
    return kept


def _padded(ids: np.ndarray, values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad to k with -1 and -inf; chunks of value -inf, which come last, count as missing."""
    count = int(np.count_nonzero(values > -np.inf))
    if count == k:
        return ids, values
    out_ids, out_values = np.full(k, -1, np.int64), np.full(k, -np.inf, np.float32)
    out_ids[:count], out_values[:count] = ids[:count], values[:count]
    return out_ids, out_values

"""Compiled loops of the int8 scan (numba, the ``fast`` extra). Plain functions of arrays; see `int8` for the maths.

Numba's own threads are not used: its default threading layers abort when two Python threads meet in a parallel loop,
or after a fork. The loops release the GIL, and `int8` shares the rows among threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

BLOCK = 1024


@njit(cache=True, fastmath=True, nogil=True)
def rotate_to_codes(
    state: Any, partners: Any, cos: Any, sin: Any, table_rows: Any, codes: Any
) -> None:  # pragma: no cover - compiled
    """Write ``rint(R(-p) state)`` as int16, one row per position.

    ``partners`` is the state with the two components of every rotary pair exchanged.
    """
    for run in range(len(table_rows)):
        c, s = cos[table_rows[run]], sin[table_rows[run]]
        for d in range(len(state)):
            codes[run, d] = np.int16(np.rint(state[d] * c[d] - partners[d] * s[d]))


@njit(cache=True, nogil=True)
def quantise(vectors: Any, codes: Any, scales: Any, residual_norms: Any) -> None:  # pragma: no cover - compiled
    """Write int8 codes, the scale of each row, and the norm of what the codes leave out."""
    for i in range(len(vectors)):
        peak = np.float32(0)
        for d in range(vectors.shape[1]):
            peak = max(peak, abs(vectors[i, d]))
        scale = peak / np.float32(127)
        scales[i] = scale
        # In double precision: the norm enters a proved bound.
        squares = 0.0
        for d in range(vectors.shape[1]):
            code = np.int8(np.rint(vectors[i, d] / scale)) if scale > 0 else np.int8(0)
            codes[i, d] = code
            left_out = np.float64(vectors[i, d]) - np.float64(code) * np.float64(scale)
            squares += left_out * left_out
        residual_norms[i] = np.sqrt(squares)


@njit(cache=True, nogil=True)
def _score_block(
    codes: Any,
    scales: Any,
    slack: Any,
    edges: Any,
    query_codes: Any,
    excluded: Any,
    mask: Any,
    state_scale: Any,
    slack_scale: Any,
    slack_offset: Any,
    first: int,
    stop: int,
    scores: Any,
) -> Any:  # pragma: no cover - compiled
    """Score rows [first, stop) for one state; return the best lower and the best upper bound among them."""
    best_lower, best_upper = np.float32(-np.inf), np.float32(-np.inf)
    run = np.searchsorted(edges, first, side="right") - 1
    skip = np.searchsorted(excluded, first)
    row = first
    while row < stop:
        run_stop = min(stop, edges[run + 1])
        query = query_codes[run]
        for i in range(row, run_stop):
            if skip < len(excluded) and excluded[skip] == i:
                skip += 1
                scores[i] = -np.inf
            elif len(mask) > 0 and not mask[i]:
                scores[i] = -np.inf
            else:
                # int8 x int16 into int32: half the conversions of a float product, so memory is the limit.
                total = np.int32(0)
                chunk = codes[i]
                for d in range(query.shape[0]):
                    total = np.int32(total + np.int32(chunk[d]) * np.int32(query[d]))
                score = np.float32(total) * scales[i] * state_scale
                error = slack[i] * slack_scale + slack_offset
                scores[i] = score
                best_lower = max(best_lower, score - error)
                best_upper = max(best_upper, score + error)
        row = run_stop
        run += 1
    return best_lower, best_upper


@njit(cache=True, nogil=True)
def score_rows(
    codes: Any,
    scales: Any,
    slack: Any,
    edges: Any,
    run_offsets: Any,
    query_codes: Any,
    excluded: Any,
    excluded_offsets: Any,
    mask: Any,
    factors: Any,
    first: int,
    stop: int,
    scores: Any,
    lower: Any,
    upper: Any,
) -> None:  # pragma: no cover - compiled
    """Score rows [first, stop) for B states, block by block, so that a block is read once from memory for all states.

    The states' runs, codes and picks lie one after the other: state b has runs ``run_offsets[b]`` to
    ``run_offsets[b + 1]`` (and one more edge than runs, hence the ``+ b``). ``factors`` (B, 3) holds the state's code
    scale and the two factors of its error bound. ``first`` must be a multiple of BLOCK.
    """
    for block in range(first // BLOCK, (stop + BLOCK - 1) // BLOCK):
        for b in range(len(factors)):
            runs, runs_stop = run_offsets[b], run_offsets[b + 1]
            lower[b, block], upper[b, block] = _score_block(
                codes,
                scales,
                slack,
                edges[runs + b : runs_stop + b + 1],
                query_codes[runs:runs_stop],
                excluded[excluded_offsets[b] : excluded_offsets[b + 1]],
                mask,
                factors[b, 0],
                factors[b, 1],
                factors[b, 2],
                block * BLOCK,
                min((block + 1) * BLOCK, stop),
                scores[b],
            )


@njit(cache=True, nogil=True)
def survivors(
    scores: Any, slack: Any, lower: Any, upper: Any, slack_scale: Any, slack_offset: Any, k: int
) -> Any:  # pragma: no cover - compiled
    """Return the ascending rows whose upper bound reaches the k-th best lower bound: all that can be among the best."""
    best = np.full(k, -np.inf, np.float32)  # the k best lower bounds so far, ascending
    for block in range(len(lower)):
        if lower[block] > best[0]:
            for i in range(block * BLOCK, min((block + 1) * BLOCK, len(scores))):
                bound = scores[i] - (slack[i] * slack_scale + slack_offset)
                if bound > best[0]:
                    place = 0
                    while place + 1 < k and best[place + 1] < bound:
                        best[place] = best[place + 1]
                        place += 1
                    best[place] = bound
    count = 0
    kept = np.empty(256, np.int64)
    for block in range(len(upper)):
        if upper[block] >= best[0]:
            for i in range(block * BLOCK, min((block + 1) * BLOCK, len(scores))):
                if scores[i] > -np.inf and scores[i] + (slack[i] * slack_scale + slack_offset) >= best[0]:
                    if count == len(kept):
                        longer = np.empty(2 * count, np.int64)
                        longer[:count] = kept
                        kept = longer
                    kept[count] = i
                    count += 1
    return kept[:count]

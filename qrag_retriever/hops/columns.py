"""Q-values of many chunks, narrowed down to columns that keep the extremes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qrag_retriever.trace import Hop


class Columns(NamedTuple):
    """Neighbouring chunks, seen as columns.

    Attributes:
        edges: Shape (C + 1,), int64: column c covers the places in ``[edges[c], edges[c + 1])``.
        lows: Shape (C,), float32: the lowest Q-value of its available chunks; NaN if none is available.
        highs: Shape (C,), float32: the highest.
    """

    edges: np.ndarray
    lows: np.ndarray
    highs: np.ndarray


def even_columns(hop: Hop, most_columns: int) -> Columns:
    """Narrow a hop down to at most so many columns of nearly equal width; one for each chunk if there are fewer."""
    num_chunks = len(hop.q_values)
    count = min(num_chunks, most_columns)
    return _columns(hop, np.arange(count + 1, dtype=np.int64) * num_chunks // max(count, 1))


def wide_columns(hop: Hop, width: int) -> Columns:
    """Narrow a hop down to columns of so many chunks each, the last one of what is left."""
    num_chunks = len(hop.q_values)
    return _columns(hop, np.append(np.arange(0, num_chunks, width, dtype=np.int64), num_chunks))


def value_range(hop: Hop, *others: float | None) -> tuple[float, float]:
    """Return the lowest and the highest Q-value of the available chunks, widened to take in others; (0, 0) of none."""
    values = hop.q_values[hop.available]
    ends = [float(end(values)) for end in (np.min, np.max) if len(values)]
    ends += [other for other in others if other is not None and np.isfinite(other)]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _columns(hop: Hop, edges: np.ndarray) -> Columns:
    if not len(hop.q_values):
        return Columns(edges[:1], np.empty(0, np.float32), np.empty(0, np.float32))
    values = np.where(hop.available, hop.q_values, np.float32(np.nan))
    return Columns(edges, np.fmin.reduceat(values, edges[:-1]), np.fmax.reduceat(values, edges[:-1]))

"""One hop as a still picture in SVG: for notebooks, for print, and where scripts do not run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrag_retriever.hops.columns import even_columns, value_range
from qrag_retriever.steps import Step
from qrag_retriever.trace import Hop

WIDTH, HEIGHT = 1000, 84
_COLUMNS = 500
_TOP = 10  # room for the mark of the pick


@dataclass(frozen=True)
class Strip:
    """Coordinates of a strip of `WIDTH` by `HEIGHT`.

    Attributes:
        area: Path under the highest Q-values of the columns.
        ruled_out: Path over the columns in which no chunk is available.
        bands: Left end and width of every second segment.
        earlier: Where the earlier picks are.
        pick: Where the pick is, and its height.
        threshold: Height of ``min_q``.
    """

    area: str
    ruled_out: str
    bands: list[tuple[float, float]]
    earlier: list[float]
    pick: tuple[float, float] | None
    threshold: float | None


def strip_of(hop: Hop, step: Step | None, min_q: float | None) -> Strip:
    """Draw a hop."""
    num_chunks = max(len(hop.q_values), 1)
    low, high = value_range(hop, min_q, None if step is None else step.q_value)

    def x_of(place: float) -> float:
        return round(place * WIDTH / num_chunks, 1)

    def y_of(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(HEIGHT - 4 - share * (HEIGHT - 4 - _TOP), 1)

    columns = even_columns(hop, _COLUMNS)
    heights = [None if np.isnan(value) else y_of(float(value)) for value in columns.highs]
    rights = [x_of(int(edge)) for edge in columns.edges[1:]]
    lefts = [0.0, *rights[:-1]]
    area = "".join(f"V{HEIGHT if y is None else y:g}H{x:g}" for y, x in zip(heights, rights, strict=True))
    gone = [(left, x) for y, left, x in zip(heights, lefts, rights, strict=True) if y is None]
    return Strip(
        area=f"M0 {HEIGHT}{area}V{HEIGHT}Z",
        ruled_out="".join(f"M{left:g} 0H{right:g}V{HEIGHT}H{left:g}Z" for left, right in gone),
        bands=[(x_of(part.first), x_of(part.stop - part.first)) for part in hop.segments[1::2]],
        earlier=[x_of(place + 0.5) for place in hop.earlier],
        pick=None if step is None or hop.pick is None else (x_of(hop.pick + 0.5), y_of(step.q_value)),
        threshold=None if min_q is None or not np.isfinite(min_q) else y_of(min_q),
    )

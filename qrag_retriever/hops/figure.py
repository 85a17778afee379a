"""The hops as a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qrag_retriever._extras import require_extra
from qrag_retriever.hops.columns import Columns, even_columns, value_range
from qrag_retriever.hops.wording import clipped
from qrag_retriever.steps import Step
from qrag_retriever.trace import Hop, SearchTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_VALUES, _PICK, _QUIET = "#3d6a99", "#b8431f", "#6f6a63"
# Up to so many chunks every one is a dot.
_DOTS = 80
# Segments narrower than this share of the document have no room for their positions.
_LABELLED_SHARE = 0.07
_PLAIN: dict[str, Any] = {"parse_math": False}  # a "$" in a question is a dollar


def draw(query: str, steps: Sequence[Step], trace: SearchTrace, place: Axes | Figure | SubFigure | None) -> Figure:
    """Draw one strip for each hop; see `Selection.plot`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_extra("matplotlib", "plot")
    from matplotlib.figure import Figure

    if place is None:
        place = Figure(figsize=(10, 1.2 + 1.35 * max(len(trace), 1)), layout="constrained")
    strips = _strips(place, max(len(trace), 1))
    strips[0].set_title(clipped(query, 110), loc="left", fontsize=11, fontweight="bold", pad=16, **_PLAIN)
    root = place if isinstance(place, Figure) else place.figure
    root = root if isinstance(root, Figure) else root.figure
    for number, (axes, hop) in enumerate(zip(strips, trace.hops(), strict=False)):
        columns = even_columns(hop, max(100, int(root.get_figwidth() * root.dpi)))
        _draw_strip(axes, hop, columns, trace, steps[number] if number < len(steps) else None)
        axes.set_ylabel(f"hop {number + 1}" if hop.pick is not None else "stopped")
    if not len(trace):
        strips[0].text(0.5, 0.5, "nothing to pick from", ha="center", va="center", transform=strips[0].transAxes)
        strips[0].set(xticks=[], yticks=[])
    strips[-1].set_xlabel(_x_label(trace))
    return root


def _strips(place: Axes | Figure | SubFigure, count: int) -> list[Axes]:
    """Make axes one above the other, in a figure or over the place of other axes."""
    from matplotlib.figure import FigureBase

    if isinstance(place, FigureBase):
        strips = list(place.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    else:
        place.set_axis_off()
        height = 1 / (count + 0.25 * (count - 1))
        bottoms = [1 - height - 1.25 * height * number for number in range(count)]
        strips = [place.inset_axes((0, max(bottom, 0), 1, height)) for bottom in bottoms]
    for axes in strips[:-1]:
        axes.tick_params(labelbottom=False)
    return strips


def _draw_strip(axes: Axes, hop: Hop, columns: Columns, trace: SearchTrace, step: Step | None) -> None:
    first = trace.first_chunk_id or 0
    low, high = value_range(hop, trace.min_q, None if step is None else step.q_value)
    margin = 0.08 * (high - low) or 0.5
    axes.set_xlim(first - 0.5, first + max(trace.num_chunks, 1) - 0.5)
    axes.set_ylim(low - margin, high + 3 * margin)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    _draw_segments(axes, hop, first)
    _draw_values(axes, columns, first)
    if trace.min_q is not None and np.isfinite(trace.min_q):
        axes.axhline(trace.min_q, color=_QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate("min_q", (1, trace.min_q), xycoords=axes.get_yaxis_transform(), fontsize=7, color=_QUIET)
    _draw_earlier(axes, hop, first)
    if step is not None and hop.pick is not None:
        _draw_pick(axes, first + hop.pick, trace.num_chunks, step)


def _draw_segments(axes: Axes, hop: Hop, first: int) -> None:
    for number, segment in enumerate(hop.segments):
        left, right = first + segment.first - 0.5, first + segment.stop - 0.5
        if number % 2:
            axes.axvspan(left, right, color=_QUIET, alpha=0.1, linewidth=0)
        if segment.stop - segment.first >= _LABELLED_SHARE * len(hop.q_values):
            axes.annotate(
                f"positions {segment.first_position}\N{EN DASH}{segment.last_position}",
                ((left + right) / 2, 1),
                xycoords=axes.get_xaxis_transform(), xytext=(0, 2), textcoords="offset points",
                ha="center", fontsize=7, color=_QUIET,
            )  # fmt: skip


def _draw_values(axes: Axes, columns: Columns, first: int) -> None:
    if not len(columns.lows):
        return
    edges = first + columns.edges - 0.5
    lows, highs = (np.append(values, values[-1]) for values in (columns.lows, columns.highs))
    floor = axes.get_ylim()[0]
    ruled_out = np.isnan(highs)
    axes.fill_between(edges, floor, np.where(ruled_out, floor, highs), step="post", color=_VALUES, alpha=0.18, lw=0)
    axes.fill_between(edges, lows, highs, step="post", color=_VALUES, alpha=0.45, linewidth=0)
    if len(columns.highs) <= _DOTS:
        axes.plot((edges[:-1] + edges[1:]) / 2, columns.highs, ".", color=_VALUES, markersize=5)
    axes.step(edges, highs, where="post", color=_VALUES, linewidth=0.7)
    if ruled_out.any():
        axes.fill_between(
            edges, 0, 1, where=ruled_out, step="post", transform=axes.get_xaxis_transform(),
            facecolor="none", edgecolor=_QUIET, alpha=0.5, hatch="////", linewidth=0, label="ruled out",
        )  # fmt: skip


def _draw_earlier(axes: Axes, hop: Hop, first: int) -> None:
    """Mark the earlier picks by a line and their hop; numbers that would cover each other stand one above the other."""
    close = 0.02 * max(len(hop.q_values), 1)
    floor, last = 0, -np.inf
    for place, number in sorted((place, number) for number, place in enumerate(hop.earlier, start=1)):
        axes.axvline(first + place, color=_PICK, linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.8)
        floor = (floor + 1) % 5 if place - last < close else 0
        last = place
        axes.annotate(
            str(number), (first + place, 0.04 + 0.17 * floor), xycoords=axes.get_xaxis_transform(),
            ha="center", va="bottom", fontsize=7, color=_PICK,
            bbox={"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": _PICK, "linewidth": 0.8},
        )  # fmt: skip


def _draw_pick(axes: Axes, x: float, num_chunks: int, step: Step) -> None:
    axes.plot([x, x], [axes.get_ylim()[0], step.q_value], color=_PICK, linewidth=1.2)
    axes.plot([x], [step.q_value], "o", color=_PICK, markersize=6, markeredgecolor="white", gid="pick", zorder=5)
    left, right = axes.get_xlim()
    to_the_left = x - left > 0.7 * (right - left)
    axes.annotate(
        f"chunk {step.chunk_id}   Q = {step.q_value:+.3f}", (x, step.q_value),
        xytext=(-8 if to_the_left else 8, 2), textcoords="offset points", ha="right" if to_the_left else "left",
        va="bottom", fontsize=8, color=_PICK, fontweight="bold", zorder=6,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )  # fmt: skip


def _x_label(trace: SearchTrace) -> str:
    ruled_out = (
        f", {trace.num_ruled_out:,} ruled out by a filter (hatched where all are)" if trace.num_ruled_out else ""
    )
    what = "chunk" if trace.first_chunk_id is not None else "place among the chunks of the searched document"
    return f"{what} (of {trace.num_chunks:,}{ruled_out})"

"""Draw the pictures of the concept pages: python docs/drawings.py writes docs/pages/drawings/*.svg.

Positions and runs are computed by the package. Lines and words take the colour of the page's text, so that they can be
read on a light and on a dark ground; the other colours are of middle brightness, and none is told by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from qrag_retriever.positions import relative_positions, relative_runs

FOLDER = Path(__file__).parent / "pages/drawings"
BLUE, ORANGE, GREEN = "#3f8fe0", "#e0782f", "#2f9e63"


def text(x: float, y: float, words: str, anchor: str = "middle", size: float = 14, bold: bool = False) -> str:
    """Write words; ``y`` is their base line."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size:g}"{weight} fill="currentColor">'
        f"{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, colour: str = "currentColor", opacity: float = 0.0) -> str:
    """Draw a rectangle with round corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{colour}"'
        f' fill-opacity="{opacity:g}" stroke="{colour}" stroke-width="1.4"/>'
    )


def line(points: Sequence[tuple[float, float]], colour: str = "currentColor", arrow: bool = True) -> str:
    """Draw a line through points, with an arrow's head at its end if wanted."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
    return drawn + _head(points[-2], points[-1], colour) if arrow else drawn


def _head(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    corners = [end] + [(end[0] - 9 * math.cos(angle + d), end[1] - 9 * math.sin(angle + d)) for d in (-0.4, 0.4)]
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}" fill="{colour}"/>'


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Put a drawing together; ``title`` says in words what it shows."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="inherit" style="max-width:{width}px;width:100%"><title>{escape(title)}</title>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def process() -> str:
    """One hop: the state and the chunks are embedded, the best inner product is picked and joins the state."""
    parts = [
        box(10, 30, 235, 150),
        text(22, 22, "State", "start", bold=True),
        text(22, 56, "question", "start", 12),
        text(22, 75, "Where was the football", "start"),
        text(22, 93, "before the kitchen?", "start"),
        text(22, 120, "picked so far", "start", 12),
        box(20, 128, 214, 20, ORANGE, 0.2),
        text(28, 143, "John took the football.", "start", 13),
        box(20, 152, 214, 20, ORANGE, 0.2),
        text(28, 167, "John went to the kitchen.", "start", 13),
        line([(245, 105), (300, 105)]),
        box(300, 80, 120, 50, BLUE, 0.15),
        text(360, 101, "state", size=13),
        text(360, 118, "encoder", size=13),
        line([(420, 105), (480, 105)]),
        box(10, 230, 235, 112),
        text(22, 222, "Chunks, in document order", "start", bold=True),
        *(box(20, 240 + 24 * i, 214, 20, "currentColor", 0.06) for i in range(4)),
        *(text(28, 255 + 24 * i, words, "start", 13) for i, words in enumerate(_CHUNKS)),
        line([(245, 286), (300, 286)]),
        box(300, 261, 120, 50, BLUE, 0.15),
        text(360, 282, "action encoder,", size=13),
        text(360, 299, "once", size=13),
        line([(420, 286), (480, 286)]),
        text(490, 109, "s", "start", 16, bold=True),
        text(490, 292, "a₁ … aₙ", "start", 16, bold=True),
        line([(500, 118), (500, 170)]),
        line([(500, 272), (500, 225)]),
        text(505, 203, "Q = ⟨s, R(p) a⟩", size=15, bold=True),
        line([(570, 198), (606, 198)]),
    ]
    for i, (length, words) in enumerate(((40, ""), (95, "best"), (58, ""), (25, ""))):
        y = 150 + 26 * i
        parts.append(box(610, y, length, 18, GREEN if words else "currentColor", 0.35 if words else 0.12))
        if words:
            parts.append(text(610 + length + 6, y + 14, words, "start", 13, bold=True))
    parts += [
        text(610, 140, "Q-values", "start", 13, bold=True),
        line([(690, 174), (690, 12), (128, 12), (128, 27)], GREEN),
        text(420, 32, "the best chunk joins the state: the next hop", size=13),
    ]
    title = "One hop: state and chunks are embedded, Q-values are their products, the best chunk joins the state."
    return picture(760, 350, title, parts)


_CHUNKS = ("Mary moved to the garden.", "John was in the hallway.", "Daniel slept.", "John dropped the football.")


def positions() -> str:
    """Twelve chunks and their positions, before any pick, after one and after two."""
    num_chunks, left, size = 12, 130, 50
    parts = []
    for row, picked in enumerate(([], [7], [2, 7])):
        top = 34 + 112 * row
        parts.append(text(10, top + 22, ("no pick", "one pick", "two picks")[row], "start", bold=True))
        parts.append(text(10, top + 66, "position", "start", 13))
        places = relative_positions(num_chunks, picked)
        for chunk in range(num_chunks):
            x = left + size * chunk
            is_pick = chunk in picked
            parts.append(
                box(x + 3, top, size - 6, 34, ORANGE if is_pick else "currentColor", 0.35 if is_pick else 0.06)
            )
            parts.append(text(x + size / 2, top + 22, str(chunk), bold=is_pick))
            parts.append(text(x + size / 2, top + 66, str(places[chunk]), size=13))
        cuts = [0, *picked, num_chunks]
        for first, stop in pairwise(cuts):
            ends = left + size * first + 5, left + size * stop - 5
            parts.append(line([(ends[0], top + 44), (ends[1], top + 44)], BLUE, arrow=False))
    parts.append(text(left + 3, 18, "chunk, in document order (picks are filled; lines are segments)", "start", 13))
    title = "Positions of twelve chunks with no pick, with chunk 7 picked, and with chunks 2 and 7 picked."
    return picture(740, 340, title, parts)


def turned() -> str:
    """The same angle, whether the chunk is turned forward or the state backward."""
    parts: list[str] = []
    for x, heading, state, chunk, labels in (
        (170, "every chunk turned forward", 20.0, 100.0, ("s", "R(p) a")),
        (550, "the state turned back, once per position", -35.0, 45.0, ("R(\N{MINUS SIGN}p) s", "a")),
    ):
        parts += [
            text(x, 22, heading, bold=True),
            f'<circle cx="{x}" cy="160" r="100" fill="none" stroke="currentColor" stroke-opacity="0.35"/>',
            _arc(x, 160, 42, state, chunk),
        ]
        for angle, label, colour in ((state, labels[0], BLUE), (chunk, labels[1], ORANGE)):
            parts.append(line([(x, 160), _on_circle(x, 160, 100, angle)], colour))
            end = _on_circle(x, 160, 124, angle)
            parts.append(text(end[0], end[1] + 5, label, size=15, bold=True))
    parts += [_ghost(170, 45, "a"), _ghost(550, 20, "s"), text(360, 165, "=", size=30)]
    return picture(
        720, 290, "Turning the chunk forward or the state backward leaves the angle between them the same.", parts
    )


def _ghost(x: float, angle: float, label: str) -> str:
    end, place = _on_circle(x, 160, 100, angle), _on_circle(x, 160, 116, angle)
    dashes = (
        f'<line x1="{x:g}" y1="160" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="currentColor" stroke-dasharray="4 4"/>'
    )
    return dashes + text(place[0], place[1] + 5, label)


def _on_circle(x: float, y: float, radius: float, degrees: float) -> tuple[float, float]:
    return x + radius * math.cos(math.radians(degrees)), y - radius * math.sin(math.radians(degrees))


def _arc(x: float, y: float, radius: float, start: float, end: float) -> str:
    (x1, y1), (x2, y2) = _on_circle(x, y, radius, start), _on_circle(x, y, radius, end)
    path = f"M {x1:.1f} {y1:.1f} A {radius:g} {radius:g} 0 0 0 {x2:.1f} {y2:.1f}"
    return f'<path d="{path}" fill="none" stroke="{GREEN}" stroke-width="3"/>'


def runs() -> str:
    """A million chunks and two picks: as many turned states as there are runs."""
    num_chunks, left, width = 1_000_000, 20, 700
    found = relative_runs(num_chunks, [300_000, 700_000])
    edges = [left + width * int(edge) / num_chunks for edge in found.edges]
    parts = [
        text(
            left + width / 2, 24, f"one state, turned back once for each of {len(found.positions)} positions", bold=True
        )
    ]
    for number, (first, stop) in enumerate(pairwise(edges)):
        parts.append(
            f'<rect x="{first:.1f}" y="110" width="{stop - first:.1f}" height="54" fill="{BLUE}"'
            f' fill-opacity="{(0.15, 0.45)[number % 2]:g}"/>'
        )
        middle = (first + stop) / 2
        parts.append(
            f'<line x1="{left + width / 2:g}" y1="38" x2="{middle:.1f}" y2="108" stroke="currentColor"'
            ' stroke-opacity="0.35"/>'
        )
    for pick in (300_000, 700_000):
        x = left + width * pick / num_chunks
        parts += [line([(x, 104), (x, 172)], ORANGE, arrow=False), text(x, 190, "pick", bold=True)]
    parts.append(text(left + width / 2, 214, "1,000,000 chunks, stored as they are; a stripe is a run of one position"))
    title = (
        f"A million chunks, cut by two picks into {len(found.positions)} runs, each scored with its own turned state."
    )
    return picture(740, 226, title, parts)


DRAWINGS: dict[str, Callable[[], str]] = {"process": process, "positions": positions, "turned": turned, "runs": runs}


def main() -> None:
    """Write all drawings."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()

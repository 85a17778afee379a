"""The result of a search: what was picked, in which order, how sure, and why it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrag_retriever.steps import Step, StopReason

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from qrag_retriever.trace import SearchTrace

__all__ = ["Selection", "Step", "StopReason"]


class _Traced:
    """Holds the trace of a search outside the fields: not compared, shown, copied, pickled or turned into a dict."""

    __slots__ = ("_trace",)
    _trace: SearchTrace | None


@dataclass(frozen=True, slots=True, repr=False)
class Selection(_Traced):
    """The hops of one query, in the order of picking.

    A selection that a search has returned also refers to the version of the index that was searched, for `plot` and
    `to_html`. That version is not copied, but it is kept alive (its matrix in memory, or its files mapped) as long as
    the selection; keep ``to_dict()`` or a pickled copy where that is too much.

    Attributes:
        query: The question.
        steps: The hops.
        stop_reason: "k": as many as asked for; "min_q": no chunk was worth more; "exhausted": no chunk was left.
    """

    query: str
    steps: tuple[Step, ...]
    stop_reason: StopReason

    def __len__(self) -> int:
        """Count the hops."""
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        """Go through the hops."""
        return iter(self.steps)

    @property
    def ids(self) -> list[str]:
        """The picked chunks' ids."""
        return [step.id for step in self.steps]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self)

    def plot(self, ax: Axes | Figure | SubFigure | None = None) -> Figure:
        """Draw the Q-values of all chunks over the document, one strip for each hop, with what was picked.

        Shows the version of the index that was searched, whatever was added or deleted since: the picks before a hop,
        the segments that they cut the document into, chunks that a filter ruled out, and ``min_q``. A search that
        ``min_q`` stopped has a last strip without a pick. Every strip has a scale of its own, since Q-values are not
        comparable between hops. Needs the ``plot`` extra (matplotlib); never calls ``plt.show``.

        Args:
            ax: Where to draw: axes, whose place the strips take, a figure or a part of one; None makes a new figure.

        Returns:
            The figure; ``figure.savefig("hops.png")`` writes it.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the selection was unpickled, copied or built by hand, and so knows no index.
        """
        from qrag_retriever.hops.figure import draw

        if (trace := self._known_trace) is None:
            raise ValueError(
                "this selection knows no index: it was unpickled, copied or built by hand; search again and plot that"
            )
        return draw(self.query, self.steps, trace, ax)

    def to_html(self, path: str | Path) -> Path:
        """Write a page that shows the hops: one file that needs no network.

        It has the question, a map of the Q-values of all chunks to zoom into, every picked chunk among its neighbours,
        why it was picked, and why the search stopped. Without a trace (see the class) map, neighbours and runners-up
        are left out.

        Args:
            path: The file; an existing one is replaced, whole or not at all.

        Returns:
            The path.

        Raises:
            FileNotFoundError: If the folder of the file does not exist.
            IsADirectoryError: If the path is a folder.
        """
        from qrag_retriever.hops.page import write_page

        return write_page(Path(path), self.query, self.steps, self.stop_reason, self._known_trace)

    def _repr_html_(self) -> str:
        """Show the hops in a notebook: a fragment without scripts and style sheets; reads every vector once."""
        from qrag_retriever.hops.page import render_fragment

        return render_fragment(self.query, self.steps, self.stop_reason, self._known_trace)

    def __repr__(self) -> str:
        """Show a line for each hop."""
        lines = [f"Selection({self.query!r}, stopped by {self.stop_reason!r})"]
        for hop, step in enumerate(self.steps, start=1):
            text = " ".join(step.text.split())
            text = text if len(text) <= 80 else text[:77] + "..."
            lines.append(
                f"  {hop}. Q={step.q_value:+.3f} (position {step.position}, {step.position_gain:+.3f})"
                f" chunk {step.chunk_id} [{step.id}]: {text}"
            )
        return "\n".join(lines)

    @property
    def _known_trace(self) -> SearchTrace | None:
        return getattr(self, "_trace", None)


def traced(selection: Selection, trace: SearchTrace) -> Selection:
    """Let a new selection remember its search; returns it."""
    object.__setattr__(selection, "_trace", trace)
    return selection

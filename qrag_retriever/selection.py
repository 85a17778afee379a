"""The result of a search: what was picked, in which order, how sure, and why it stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

StopReason = Literal["k", "min_q", "exhausted"]


@dataclass(frozen=True, slots=True)
class Step:
    """One hop.

    Attributes:
        chunk_id: The chunk's rank in document order, in the version of the index that was searched.
        id: The user's id of the chunk.
        text: The chunk.
        metadata: The user's metadata.
        q_value: Q-value of picking it in that state; not comparable between hops.
        position: Its position relative to the picks before it, in position units.
        position_gain: Q-value minus the Q-value it would have at position 0.
    """

    chunk_id: int
    id: str
    text: str
    metadata: dict[str, Any]
    q_value: float
    position: int
    position_gain: float


@dataclass(frozen=True, slots=True, repr=False)
class Selection:
    """The hops of one query, in the order of picking.

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

    @property
    def ids(self) -> list[str]:
        """The picked chunks' ids."""
        return [step.id for step in self.steps]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self)

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

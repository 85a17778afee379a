"""One hop of a search: what was picked, and how sure; and who hears of it while the search goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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


class HopListener(Protocol):
    """Hears of the hops of one search as they happen, perhaps from the thread of another search of the same batch.

    A search that has to start anew, since its index was changed meanwhile, counts its hops from 1 again.
    """

    def started(self, hop: int) -> None:
        """Hear that a hop begins; the first is 1."""

    def ended(self, hop: int, kept: Sequence[tuple[Step, ...]], stop_reason: StopReason | None) -> None:
        """Hear what a hop picked.

        Args:
            hop: From 1.
            kept: The sequences of picks that go on, this hop's last, the best first: one, or as many as
                ``beam_width`` allows; none if the search stopped in this hop.
            stop_reason: Why it stopped; None while it goes on.
        """

    def failed(self, hop: int, error: BaseException) -> None:
        """Hear that a hop ended with an error."""

"""One hop of a search: what was picked, and how sure."""

from __future__ import annotations

from dataclasses import dataclass
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

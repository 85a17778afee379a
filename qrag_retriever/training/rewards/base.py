"""What rewards have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qrag_retriever.training.data import Sample


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reward judges: one environment right after a pick.

    Attributes:
        sample: The question and its chunks.
        picked: Chunk ids in the order of picking; the last one was picked just now.
        last: Whether the episode ends with this pick whatever the reward says: step limit, or no chunk left.
    """

    sample: Sample
    picked: tuple[int, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a pick earned.

    Attributes:
        reward: Paid for this pick.
        ends: Whether the reward ends the episode here.
        settled: Whether no later pick of this episode can earn anything more.
    """

    reward: float
    ends: bool = False
    settled: bool = False


class Reward(Protocol):
    """Judges picks.

    Feedback follows from the outcomes alone, so that a training run that was interrupted goes on as if it had not been.
    """

    def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
        """Judge the picks of one step, one of each environment; the feedback comes in the same order."""
        ...

    def unusable(self, sample: Sample) -> str | None:
        """Return why this reward cannot judge a sample; None if it can."""
        ...

    def most(self, sample: Sample) -> float:
        """Return the highest sum of rewards that an episode can have; the lowest is 0."""
        ...


def check_amounts(**amounts: float) -> None:
    """Raise ValueError unless each named reward is finite and at least 0: values are clipped to [0, most]."""
    for name, amount in amounts.items():
        if not (math.isfinite(amount) and amount >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {amount}")

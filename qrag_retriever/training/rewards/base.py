"""What rewards have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qrag_retriever.errors import RewardError
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
    Whatever `judge` raises, or a feedback that is not what is expected of it, ends a run with a `RewardError`, after a
    checkpoint was written.
    """

    def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
        """Judge the picks of one step, one of each environment; the feedback comes in the same order.

        No reward is below 0.
        """
        ...

    def unusable(self, sample: Sample) -> str | None:
        """Return why this reward cannot judge a sample; None if it can."""
        ...

    def most(self, sample: Sample) -> float:
        """Return the highest sum of rewards that an episode can have; the lowest is 0."""
        ...


def judged(reward: Reward, outcomes: Sequence[Outcome]) -> list[Feedback]:
    """Ask a reward, and check what it answers.

    Raises:
        RewardError: If it fails, does not answer each outcome, or pays what is no number from 0 to its ``most``.
    """
    name = f"{type(reward).__name__}.judge"
    try:
        feedback = list(reward.judge(outcomes))
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"{name} failed: {type(error).__name__}: {error}") from error
    if len(feedback) != len(outcomes):
        raise RewardError(f"{name} returned {len(feedback)} feedbacks for {len(outcomes)} outcomes")
    for outcome, found in zip(outcomes, feedback, strict=True):
        if not isinstance(found, Feedback):
            raise RewardError(f"{name} returned {found!r} for sample {outcome.sample.id!r}; expected a Feedback")
        if not (math.isfinite(found.reward) and found.reward >= 0):
            raise RewardError(
                f"{name} paid {found.reward} for sample {outcome.sample.id!r}, picks {list(outcome.picked)}; expected "
                "a finite number of at least 0"
            )
        if found.reward > (most := reward.most(outcome.sample)) * (1 + 1e-6):
            raise RewardError(
                f"{name} paid {found.reward} for sample {outcome.sample.id!r}, and most() says that an episode can "
                f"have {most}; values are clipped to that, so it must be true"
            )
    return feedback


def why_unusable(reward: Reward, sample: Sample) -> str | None:
    """Ask a reward whether it can judge a sample.

    Raises:
        RewardError: If it fails.
    """
    try:
        return reward.unusable(sample)
    except Exception as error:
        raise RewardError(f"{type(reward).__name__}.unusable failed: {type(error).__name__}: {error}") from error


def check_amounts(**amounts: float) -> None:
    """Raise ValueError unless each named reward is finite and at least 0: values are clipped to [0, most]."""
    for name, amount in amounts.items():
        if not (math.isfinite(amount) and amount >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {amount}")

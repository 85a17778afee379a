"""The reward for finding the annotated supporting facts, and the returns that perfect picking has under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards.base import Feedback, Outcome, check_amounts


@dataclass(frozen=True)
class SupportingFactsReward:
    """Pays once, at the pick that completes the supporting facts.

    A sample with no supporting facts at all (a question that its document does not answer) is complete before the
    first pick: nothing is paid, and its states are trained to be worth 0. (The paper's code pays 0.5 or more for any
    first pick there.)

    Attributes:
        completion_reward: Paid for completing the facts.
        per_fact_reward: Paid besides for every fact, when it is found.
        penalize_extra_steps: Whether the completion reward is multiplied by ``0.5 + 0.5 |F| / |picked|``.
        terminate: Whether the episode ends at completion. By default it goes on to the step limit, which teaches that
            a state with nothing missing is worth 0: the retriever's signal to stop.

    Raises:
        ValueError: If a reward is negative or not finite.

    Source: Q-RAG (arXiv 2511.07328), Section 3, the reward; the defaults are those of its experiments.
    """

    completion_reward: float = 1.0
    per_fact_reward: float = 0.0
    penalize_extra_steps: bool = True
    terminate: bool = False

    def __post_init__(self) -> None:
        check_amounts(completion_reward=self.completion_reward, per_fact_reward=self.per_fact_reward)

    def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
        """Judge the picks of one step.

        Raises:
            ValueError: If the supporting facts of a sample are not known.
        """
        return [self._judge_one(outcome) for outcome in outcomes]

    def unusable(self, sample: Sample) -> str | None:
        """Return why this reward cannot judge a sample; None if it can."""
        return "its supporting chunks are not annotated" if sample.supporting is None else None

    def most(self, sample: Sample) -> float:
        """Return the highest sum of rewards that an episode can have: every fact, with no pick wasted."""
        num_facts = len(_facts(sample))
        return self.completion_reward + self.per_fact_reward * num_facts if num_facts else 0.0

    def optimal_return(self, num_facts: int, num_picked: int, num_missing: int, step_limit: int, gamma: float) -> float:
        """Return what a state is worth before its next pick, when all further picks are right.

        With p chunks picked, m of F facts missing and at most T picks, the missing facts come first and the last of
        them is the (p + m)th pick: ``gamma^(m-1) (0.5 + 0.5 F / (p + m))`` times the completion reward (no bracket
        without the penalty; nothing if p + m > T), and ``1 + gamma + ... `` times the reward per fact over the
        min(m, T - p) facts that can still be found.

        So a missing fact's Q-value under perfect play is ``optimal_return(F, p, m, ...)``, and that of any other chunk
        is ``gamma * optimal_return(F, p + 1, m, ...)``.

        Args:
            num_facts: Supporting facts of the question.
            num_picked: Chunks picked so far, right or wrong.
            num_missing: Facts not picked yet.
            step_limit: Picks of an episode.
            gamma: Discount per pick, from 0 to 1.

        Raises:
            ValueError: If no state has such counts, or gamma is out of range.
        """
        if not 0 <= num_missing <= num_facts <= num_picked + num_missing:
            raise ValueError(
                f"no state has {num_missing} of {num_facts} facts missing after {num_picked} picks; "
                "expected 0 <= num_missing <= num_facts <= num_picked + num_missing"
            )
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be from 0 to 1, got {gamma}")
        num_found = max(0, min(num_missing, step_limit - num_picked))
        facts = self.per_fact_reward * sum(gamma**pick for pick in range(num_found))
        if num_found < num_missing or not num_missing:
            return facts
        return facts + gamma ** (num_missing - 1) * self._completion(num_facts, num_picked + num_missing)

    def _judge_one(self, outcome: Outcome) -> Feedback:
        facts, picked = _facts(outcome.sample), outcome.picked
        complete = facts <= set(picked)
        reward = 0.0
        if picked[-1] in facts:
            reward += self.per_fact_reward
            if complete:
                reward += self._completion(len(facts), len(picked))
        return Feedback(reward, ends=complete and self.terminate, settled=complete)

    def _completion(self, num_facts: int, num_picked: int) -> float:
        share = 0.5 + 0.5 * num_facts / num_picked if self.penalize_extra_steps else 1.0
        return self.completion_reward * share


def _facts(sample: Sample) -> set[int]:
    if sample.supporting is None:
        raise ValueError(
            f"the supporting chunks of sample {sample.id!r} are not annotated; leave it out, see unusable()"
        )
    return set(sample.supporting)

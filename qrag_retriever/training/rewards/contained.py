"""The reward for picking text that contains the answer, where no evidence is annotated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards.answer_text import contains, normalise
from qrag_retriever.training.rewards.base import Feedback, Outcome, check_amounts

NOT_IN_TEXTS = frozenset({"yes", "no", "noanswer"})
"""Answers that are a verdict on the text: where they occur in it, they are not the answer."""


@dataclass(frozen=True)
class AnswerContainedReward:
    """Pays once, at the first pick after which every answer is contained in one of the picked chunks.

    Whole words count, see `answer_text.normalise` and `answer_text.contains` for what is taken to be the same. A chunk
    may hold the answer's words by chance; how often that is, `false_positive_rate` tells where evidence is annotated.

    Attributes:
        reward: What is paid.
        penalize_extra_steps: Whether it is multiplied by ``0.5 + 0.5 / |picked|``. Off by default: how many picks a
            question needs is not known here, and the discount prefers early answers already. A recipe turns it on,
            as for any reward, unless it says ``reward.penalize_extra_steps = false``.
        terminate: Whether the episode ends there. By default it goes on to the step limit, which teaches that a state
            with nothing missing is worth 0.

    Raises:
        ValueError: If the reward is negative or not finite.
    """

    reward: float = 1.0
    penalize_extra_steps: bool = False
    terminate: bool = False

    def __post_init__(self) -> None:
        check_amounts(reward=self.reward)

    def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
        """Judge the picks of one step.

        Raises:
            ValueError: If a sample's answers are not known.
        """
        return [self._judge_one(outcome) for outcome in outcomes]

    def unusable(self, sample: Sample) -> str | None:
        """Return why this reward cannot judge a sample; None if it can.

        Answers that are missing, that are a verdict (yes, no, noanswer), or that no chunk contains: an episode that
        cannot earn anything would teach that there is nothing to look for.
        """
        if not sample.answers:
            return "its answers are not known"
        for aliases, usable in zip(sample.answers, _aliases(sample), strict=True):
            if not usable:
                return f"its answer {list(aliases)} is not something that is written in a text"
        absent = set(range(len(sample.answers))) - _met(sample, range(len(sample.chunks)))
        return f"no chunk contains its answer {list(sample.answers[min(absent)])}" if absent else None

    def most(self, sample: Sample) -> float:
        """Return the highest sum of rewards that an episode can have."""
        return self.reward

    def _judge_one(self, outcome: Outcome) -> Feedback:
        if not outcome.sample.answers:
            raise ValueError(f"the answers of sample {outcome.sample.id!r} are not known; leave it out, see unusable()")
        needed, picked = len(outcome.sample.answers), outcome.picked
        before = _met(outcome.sample, picked[:-1])
        if len(before) == needed:
            return Feedback(0.0, ends=self.terminate, settled=True)
        if len(before | _met(outcome.sample, picked[-1:])) < needed:
            return Feedback(0.0)
        share = 0.5 + 0.5 / len(picked) if self.penalize_extra_steps else 1.0
        return Feedback(self.reward * share, ends=self.terminate, settled=True)


@dataclass(frozen=True, slots=True)
class FalsePositives:
    """How far containing the answer stands for being the evidence.

    Attributes:
        num_questions: Questions that were looked at.
        num_fooled: Of these, the questions whose chunks that are not supporting contain all answers between them, so
            that picks without a single supporting chunk are rewarded.
        num_chunks: Chunks of these questions that contain all answers by themselves.
        num_chunks_not_supporting: Of these, the chunks that are not supporting.
        num_skipped: Questions left out: the reward cannot judge them, or no supporting chunk is annotated.
    """

    num_questions: int
    num_fooled: int
    num_chunks: int
    num_chunks_not_supporting: int
    num_skipped: int

    @property
    def rate(self) -> float:
        """Share of the questions where a set of chunks that are not supporting is rewarded; 0.0 without questions."""
        return self.num_fooled / self.num_questions if self.num_questions else 0.0

    @property
    def chunk_rate(self) -> float:
        """Share of the chunks with all answers that are not supporting; 0.0 if there are none."""
        return self.num_chunks_not_supporting / self.num_chunks if self.num_chunks else 0.0


def false_positive_rate(samples: Iterable[Sample]) -> FalsePositives:
    """Measure how often `AnswerContainedReward` would pay for chunks that are not supporting.

    The set of chunks may have any size, so with several answers and a step limit the rate is an upper bound.
    """
    reward = AnswerContainedReward()
    num_questions = num_fooled = num_chunks = num_chunks_not_supporting = num_skipped = 0
    for sample in samples:
        if not sample.supporting or reward.unusable(sample) is not None:
            num_skipped += 1
            continue
        num_questions += 1
        needed = len(sample.answers or ())
        others = sorted(set(range(len(sample.chunks))) - set(sample.supporting))
        num_fooled += len(_met(sample, others)) == needed
        holders = {i for i in range(len(sample.chunks)) if len(_met(sample, [i])) == needed}
        num_chunks += len(holders)
        num_chunks_not_supporting += len(holders & set(others))
    return FalsePositives(num_questions, num_fooled, num_chunks, num_chunks_not_supporting, num_skipped)


def _aliases(sample: Sample) -> list[list[str]]:
    """Return the normalised aliases of each answer; a verdict beside another alias ("Norway", "NO") is left out."""
    everything = [[normalise(alias) for alias in aliases] for aliases in sample.answers or ()]
    return [[alias for alias in aliases if alias and alias not in NOT_IN_TEXTS] for aliases in everything]


def _met(sample: Sample, chunk_ids: Iterable[int]) -> set[int]:
    """Return which of the sample's answers some of the chunks contain."""
    missing = dict(enumerate(_aliases(sample)))
    found: set[int] = set()
    for chunk_id in chunk_ids:
        if not missing:
            break
        text = normalise(sample.chunks[chunk_id])
        now = {part for part, aliases in missing.items() if any(contains(text, alias) for alias in aliases)}
        found |= now
        missing = {part: aliases for part, aliases in missing.items() if part not in now}
    return found

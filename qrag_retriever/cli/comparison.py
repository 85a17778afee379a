"""The same questions for several methods, and what follows: who is better, how many picks, when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from qrag_retriever.benchmarks.suite.figures import Outcomes, num_picks, scores_of
from qrag_retriever.benchmarks.suite.methods import Found, Method
from qrag_retriever.training.data import Sample
from qrag_retriever.training.evaluation import Picks, best_min_q

# What methods are compared by, as the trainer compares models: the mean of fact recall and exact.
SCORE = "score"
# Fact recall that fewer picks may cost, as a share of the questions.
_MOST_LOST = 0.01
# With fewer questions in a half, a stop value is an accident.
_FEWEST_IN_HALF = 5


@dataclass(frozen=True)
class Answers:
    """What a method found.

    Attributes:
        name: Of the method.
        model: What it embeds with; "" if it does not.
        samples: The questions.
        found: The picks for each.
        outcomes: Their scores.
        step_limit: Picks that count for recall.
    """

    name: str
    model: str
    samples: Sequence[Sample]
    found: Sequence[Found]
    outcomes: Outcomes
    step_limit: int

    def mean(self, score: str) -> float:
        """Return the mean of a score."""
        return float(np.mean(self.outcomes.scores[score]))

    def missed(self, number: int) -> list[str]:
        """Return the evidence of a question that is not among its picks."""
        sample, picks = self.samples[number], self.found[number].chunk_ids[: self.step_limit]
        return [sample.chunks[fact] for fact in sample.supporting or () if fact not in picks]


@dataclass(frozen=True)
class StopValue:
    """A stop value calibrated on one half of the questions, and what it does on the other.

    Attributes:
        min_q: The value.
        calibrated_on: Questions of the one half.
        checked_on: Questions of the other half; the figures are theirs.
        picks: Mean number of picks with it.
        fact_recall: With it.
        fact_recall_without: Without it, at the step limit.
    """

    min_q: float
    calibrated_on: int
    checked_on: int
    picks: float
    fact_recall: float
    fact_recall_without: float


def ask_all(method: Method, samples: Sequence[Sample], step_limit: int) -> Answers:
    """Put questions with known evidence to a method."""
    outcomes, found = Outcomes(), []
    for sample in tqdm(samples, desc=method.name, unit="question", leave=False, disable=None):
        picked = method.find(sample, num_picks(sample, step_limit))
        found.append(picked)
        scores = scores_of(sample, picked, step_limit)
        outcomes.add(sample, picked, {**scores, SCORE: (scores["fact_recall"] + scores["exact"]) / 2})
    return Answers(method.name, method.model, samples, found, outcomes, step_limit)


def best_of(answers: Sequence[Answers]) -> Answers:
    """Return the method with the best score; of equals, that with the best F1."""
    return max(answers, key=lambda one: (one.mean(SCORE), one.mean("fact_f1")))


def won_by(ours: Answers, other: Answers) -> list[int]:
    """Return the numbers of the questions whose evidence ``ours`` found and ``other`` did not."""
    pairs = zip(ours.outcomes.scores["fact_recall"], other.outcomes.scores["fact_recall"], strict=True)
    return [number for number, (own, others) in enumerate(pairs) if own > others]


def recall_by_k(answers: Answers) -> list[float]:
    """Return fact recall with 1, 2, ... picks, up to the step limit; the picks of fewer hops are the first ones."""
    return [
        float(np.mean([
            set(sample.supporting or ()) <= set(found.chunk_ids[:k])
            for sample, found in zip(answers.samples, answers.found, strict=True)
        ]))
        for k in range(1, answers.step_limit + 1)
    ]  # fmt: skip


def enough_picks(recalls: Sequence[float]) -> int:
    """Return the smallest k that loses at most 0.01 of the recall of the largest."""
    return next(k for k, recall in enumerate(recalls, 1) if recall >= recalls[-1] - _MOST_LOST - 1e-9)


def stop_value(answers: Answers) -> StopValue | None:
    """Calibrate a stop value on one half of the questions, drawn by chance, and check it on the other.

    Returns:
        None if there are too few questions, or the method has no Q-values.
    """
    order = np.random.default_rng(0).permutation(len(answers.samples)).tolist()
    first, second = order[::2], order[1::2]
    if len(second) < _FEWEST_IN_HALF or answers.found[0].q_values is None:
        return None
    limit = answers.step_limit
    min_q = best_min_q([
        Picks(answers.samples[i], answers.found[i].chunk_ids[:limit], (answers.found[i].q_values or ())[:limit])
        for i in first
    ])  # fmt: skip
    scores = [scores_of(answers.samples[i], answers.found[i], limit, min_q) for i in second]
    picks, recall, without = (
        float(np.mean([one[name] for one in scores])) for name in ("auto_picks", "auto_fact_recall", "fact_recall")
    )
    return StopValue(min_q, len(first), len(second), picks, recall, without)

"""Figures of a method on a set of questions, with bootstrap intervals, and paired differences between methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qrag_retriever.benchmarks.suite.methods import Found
from qrag_retriever.training.data import Sample

NUM_RESAMPLES = 2_000
_Z = 1.959964  # of a normal distribution, 95% lies within so many standard deviations
_MOST_SIGNS, _NUM_DRAWS, _ROUNDING = 12, 20_000, 1e-9
SCORES = ("fact_recall", "recall_at_k", "fact_f1", "exact", "hit_at_1")
AUTO_SCORES = ("auto_fact_recall", "auto_fact_f1", "auto_picks")
READER_SCORES = ("answer_em", "answer_f1")


@dataclass
class Outcomes:
    """What came out for each question.

    Attributes:
        ids: Of the questions.
        scores: Name of a score -> its value for each question.
        seconds: Of each search.
        llm_calls: Of all searches.
    """

    ids: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    llm_calls: int = 0

    def add(self, sample: Sample, found: Found, scores: Mapping[str, float]) -> None:
        """Note one question."""
        self.ids.append(sample.id)
        self.seconds.append(found.seconds)
        self.llm_calls += found.llm_calls
        for name, value in scores.items():
            self.scores.setdefault(name, []).append(value)

    def first(self, count: int) -> Outcomes:
        """Return what came out for the first questions."""
        scores = {name: values[:count] for name, values in self.scores.items()}
        return Outcomes(self.ids[:count], scores, self.seconds[:count], self.llm_calls)


def num_picks(sample: Sample, step_limit: int) -> int:
    """Return how many picks tell all figures: T, or as many as there are facts if these are more."""
    return max(step_limit, len(sample.supporting or ()))


def scores_of(sample: Sample, found: Found, step_limit: int, min_q: float | None = None) -> dict[str, float]:
    """Score the picks for one question.

    Args:
        sample: The question, with its evidence.
        found: The picks, as many as `num_picks` says.
        step_limit: T, the picks that count for recall.
        min_q: Stop value; the picks of a greedy search with it are the first ones of a search without.

    Returns:
        ``fact_recall`` (all facts in T picks), ``recall_at_k`` (share of the facts), ``fact_f1`` and ``exact`` (in as
        many picks as facts), ``hit_at_1``; with ``min_q`` also recall, F1 and number of picks at the stop.
    """
    facts = set(sample.supporting or ())
    own, first = set(found.chunk_ids[:step_limit]), set(found.chunk_ids[: len(facts)])
    scores = {
        "fact_recall": float(facts <= own),
        "recall_at_k": len(facts & own) / len(facts),
        "fact_f1": len(facts & first) / len(facts),
        "exact": float(facts <= first),
        "hit_at_1": float(found.chunk_ids[0] in facts),
    }
    if min_q is not None and found.q_values is not None:
        stops = [step for step, value in enumerate(found.q_values[:step_limit]) if value <= min_q]
        count = stops[0] if stops else min(step_limit, len(found.chunk_ids))
        kept = set(found.chunk_ids[:count])
        scores["auto_fact_recall"] = float(facts <= kept)
        scores["auto_fact_f1"] = 2 * len(facts & kept) / (len(facts) + count)
        scores["auto_picks"] = float(count)
    return scores


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a mean over questions, taken as independent of each other.

    Of shares by Wilson's formula, since a bootstrap would be certain of what is always right in a few questions; of
    other means by a bootstrap.
    """
    sample = np.asarray(values, float)
    if np.isin(sample, (0.0, 1.0)).all():
        return _wilson(float(sample.mean()), len(sample))
    drawn = np.random.default_rng(0).integers(len(sample), size=(NUM_RESAMPLES, len(sample)))
    low, high = np.percentile(sample[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _wilson(share: float, count: int) -> tuple[float, float]:
    weight = _Z**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / count / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a mean of paired differences between -1 and 1.

    One question more is taken as won and one as lost, by half (Agresti and Min 2005): else few questions that all have
    the same difference would leave no doubt.
    """
    differences = np.asarray(values, float)
    count = len(differences) + 2
    mean = float(differences.sum()) / count
    half = _Z * math.sqrt(max(0.0, (float(differences @ differences) + 1) / count - mean**2) / count)
    return max(-1.0, mean - half), min(1.0, mean + half)


def p_value(differences: Sequence[float]) -> float:
    """Return how likely paired differences are whose mean is as far from 0, if their signs were chance.

    By all signs of up to 12 differences that are not 0, else by 20,000 draws of them.
    """
    given = np.asarray(differences, float)
    given = np.abs(given[given != 0])
    if not len(given):
        return 1.0
    if len(given) <= _MOST_SIGNS:
        signs = 1 - 2 * (np.arange(2 ** len(given))[:, None] >> np.arange(len(given)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (_NUM_DRAWS, len(given)))
    found = abs(float(np.sum(differences)))
    return float(np.mean(np.abs(signs @ given) >= found - _ROUNDING))


def row_of(outcomes: Outcomes) -> dict[str, float | int]:
    """Return the figures of a method: means, intervals of the shares, times (of all questions but the first)."""
    row: dict[str, float | int] = {}
    for name, values in outcomes.scores.items():
        row[name] = float(np.mean(values))
        row[f"{name}_low"], row[f"{name}_high"] = interval(values)
    # The first one also loads what is loaded when it is needed.
    seconds = outcomes.seconds[1:] or outcomes.seconds
    row["seconds_per_query"] = float(np.median(seconds))
    row["seconds_p95"] = float(np.percentile(seconds, 95))
    row["llm_calls"] = outcomes.llm_calls / len(outcomes.ids)
    return row


def difference(ours: Outcomes, other: Outcomes, score: str) -> dict[str, float | int]:
    """Return the mean difference of a score over the questions that both have, its 95% interval and p-value."""
    places = {sample_id: i for i, sample_id in enumerate(other.ids)}
    pairs = [(i, places[sample_id]) for i, sample_id in enumerate(ours.ids) if sample_id in places]
    values = [ours.scores[score][i] - other.scores[score][j] for i, j in pairs]
    low, high = paired_interval(values)
    return {
        "samples": len(values), "difference": float(np.mean(values)), "low": low, "high": high, "p": p_value(values),
    }  # fmt: skip

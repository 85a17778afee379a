"""Figures of a method on a set of questions, with their intervals, and paired differences between methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qrag_retriever.benchmarks.suite.methods import Found
from qrag_retriever.training.data import Sample

NUM_RESAMPLES = 2_000
_Z = 1.959964  # of a normal distribution, 95% lies within so many standard deviations
_MOST_SIGNS, _NUM_DRAWS, _DRAWN_TOGETHER, _ROUNDING = 12, 20_000, 200, 1e-9
SCORES = ("fact_recall", "recall_at_k", "fact_f1", "exact", "hit_at_1")
AUTO_SCORES = ("auto_fact_recall", "auto_fact_f1", "auto_picks")
READER_SCORES = ("answer_em", "answer_f1")
_COUNTS = ("auto_picks",)


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
    """Return the 95% bootstrap interval of a mean over questions, taken as independent of each other."""
    sample = np.asarray(values, float)
    drawn = np.random.default_rng(0).integers(len(sample), size=(NUM_RESAMPLES, len(sample)))
    low, high = np.percentile(sample[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def share_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Wilson's 95% interval of a mean of values from 0 to 1 (a little too wide, if some lie in between).

    A bootstrap would be certain of what is always right in a few questions.
    """
    return _wilson(float(np.mean(values)), len(values))


def _wilson(share: float, count: int) -> tuple[float, float]:
    weight = _Z**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / count / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a mean of paired differences between -1 and 1.

    After Agresti and Min (2005): a half is added to each cell of the table of who was right, as if two questions more
    had been asked. Else few questions that all have the same difference would leave no doubt.
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
    found = abs(float(given.sum()))
    given = np.abs(given[given != 0])
    if len(given) <= _MOST_SIGNS:
        signs = 1 - 2 * (np.arange(2 ** len(given))[:, None] >> np.arange(len(given)) & 1)
        return float(np.mean(np.abs(signs @ given) >= found - _ROUNDING))
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(_NUM_DRAWS // _DRAWN_TOGETHER):
        drawn = 1.0 - 2.0 * random.integers(2, size=(_DRAWN_TOGETHER, len(given)), dtype=np.int8)
        hits += int(np.sum(np.abs(drawn @ given) >= found - _ROUNDING))
    return (hits + 1) / (_NUM_DRAWS + 1)  # what was found is one of the draws


def row_of(outcomes: Outcomes) -> dict[str, float | int]:
    """Return the figures of a method: means, intervals of the shares, times (of all questions but the first)."""
    row: dict[str, float | int] = {}
    for name, values in outcomes.scores.items():
        row[name] = float(np.mean(values))
        bounds = interval(values) if name in _COUNTS else share_interval(values)
        row[f"{name}_low"], row[f"{name}_high"] = bounds
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

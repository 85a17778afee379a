"""Figures of a method on a set of questions, with bootstrap intervals, and paired differences between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qrag_retriever.benchmarks.suite.methods import Found
from qrag_retriever.training.data import Sample

NUM_RESAMPLES = 2_000
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


def row_of(outcomes: Outcomes) -> dict[str, float | int]:
    """Return the figures of a method: means, intervals of the shares, times."""
    row: dict[str, float | int] = {}
    for name, values in outcomes.scores.items():
        row[name] = float(np.mean(values))
        row[f"{name}_low"], row[f"{name}_high"] = interval(values)
    row["seconds_per_query"] = float(np.median(outcomes.seconds))
    row["seconds_p95"] = float(np.percentile(outcomes.seconds, 95))
    row["llm_calls"] = outcomes.llm_calls / len(outcomes.ids)
    return row


def difference(ours: Outcomes, other: Outcomes, score: str) -> dict[str, float | int]:
    """Return the mean difference of a score over the questions that both have, with its paired 95% interval."""
    places = {sample_id: i for i, sample_id in enumerate(other.ids)}
    pairs = [(i, places[sample_id]) for i, sample_id in enumerate(ours.ids) if sample_id in places]
    values = [ours.scores[score][i] - other.scores[score][j] for i, j in pairs]
    low, high = interval(values)
    return {"samples": len(values), "difference": float(np.mean(values)), "low": low, "high": high}

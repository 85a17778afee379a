"""Evaluation: greedy picks are the selector's, and the figures are what a hand computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever import ChunkIndex, MultiStepSelector
from qrag_retriever.training import evaluation
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import Sample
from qrag_retriever.training.evaluation import Picks, best_min_q, calibration, figures_of, greedy_picks, returns_of
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.rewards import Feedback, Outcome, SupportingFactsReward
from tests.conftest import STORY
from tests.tiny_pair import public_model, story, tiny_pair

LONG = tuple(f"{STORY[i % 12]} {'rain ' * (i // 12)}" for i in range(40))
EPISODES = [
    (story(0), 4),
    (story(1, question="Where is the apple?", mode="corpus"), 6),
    (story(2, question="Where is John?", chunks=tuple(STORY[:3])), 5),
    (story(3, question="What did nobody hear?", chunks=LONG), 3),
    (story(4, question="Who wrote?", chunks=tuple(STORY[4:5]), mode="corpus"), 2),
    (story(5, question="Where is the apple?", chunks=LONG[5:25], mode="corpus"), 1),
    (story(6, question="Rain?", supporting=None), 14),
]


def check_against_selectors(pair: TrainedPair, found: Sequence[Picks], episodes: Sequence[tuple[Sample, int]]) -> None:
    model = public_model(pair)
    assert len(found) == len(episodes)
    for picks, (sample, limit) in zip(found, episodes, strict=True):
        index = ChunkIndex.from_texts(sample.chunks, model=model, mode=sample.mode)
        steps = MultiStepSelector(index, k=limit).select(sample.question).steps
        assert picks.sample is sample
        assert list(picks.chunk_ids) == [step.chunk_id for step in steps]
        assert len(picks.chunk_ids) == min(limit, len(sample.chunks))
        np.testing.assert_allclose(picks.q_values, [step.q_value for step in steps], rtol=0, atol=1e-5)


class TestGreedyPicks:
    @pytest.mark.parametrize("order", ["document", "retrieved"])
    @pytest.mark.parametrize("positions", ["relative", "absolute", "none"])
    def test_are_those_of_a_selector(self, tiny_encoder: Path, positions: Any, order: Any) -> None:
        pair = tiny_pair(tiny_encoder, {"positions": positions, "state_order": order})
        check_against_selectors(pair, greedy_picks(pair, EPISODES), EPISODES)

    @pytest.mark.parametrize("at_once", [1, 3, 7])
    def test_do_not_depend_on_how_many_are_asked_at_once(
        self, tiny_encoder: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation, "_QUESTIONS_AT_ONCE", at_once)
        pair = tiny_pair(tiny_encoder, dropout=0.2)
        assert torch.is_grad_enabled()
        pair.embed_chunks(STORY)
        check_against_selectors(pair, greedy_picks(pair, EPISODES, progress=True), EPISODES)

    def test_of_nothing(self, tiny_encoder: Path) -> None:
        assert greedy_picks(tiny_pair(tiny_encoder), []) == []

    def test_embeddings_of_a_given_cache_are_taken_and_added_to(self, tiny_encoder: Path) -> None:
        pair = tiny_pair(tiny_encoder)
        cache = ChunkCache(pair.embed_chunks, pair.config.dim, pair.device)
        first = greedy_picks(pair, EPISODES[:1], cache)
        assert cache.num_embedded == 12
        assert greedy_picks(pair, EPISODES[:1], cache) == first
        assert cache.num_embedded == 12
        last = first[0].chunk_ids[-1]
        (rows,) = cache.rows_of([STORY])
        with torch.no_grad():
            cache.store(rows[[last]], 100 * pair.embed_states([(EPISODES[0][0].question, ())]))
        changed = greedy_picks(pair, EPISODES[:1], cache)[0]
        assert changed.chunk_ids[0] == last
        assert greedy_picks(pair, EPISODES[:1]) == first


def picks_of(chunk_ids: Sequence[int], facts: Sequence[int] | None = (0, 3), q_values: Sequence[float] = ()) -> Picks:
    sample = story(supporting=None if facts is None else tuple(facts))
    return Picks(sample, tuple(chunk_ids), tuple(q_values or np.linspace(1, 0, len(chunk_ids))))


class TestFigures:
    @pytest.mark.parametrize(
        ("chunk_ids", "facts", "expected"),
        [
            ((3, 0, 5, 7), (0, 3), (1, 1, 1, 1)),
            ((3, 5, 0, 7), (0, 3), (1, 1, 0, 0.5)),
            ((3, 5, 6, 7), (0, 3), (0, 0.5, 0, 0.5)),
            ((5, 6), (0, 3), (0, 0, 0, 0)),
            ((3,), (0, 3), (0, 0.5, 0, 0.5)),
            ((1, 2, 9, 4), (1, 2, 4), (1, 1, 0, 2 / 3)),
            ((), (1,), (0, 0, 0, 0)),
        ],
    )
    def test_of_one_question(self, chunk_ids: tuple, facts: tuple, expected: tuple) -> None:
        figures = figures_of([picks_of(chunk_ids, facts)])
        assert list(figures.to_dict()) == ["fact_recall", "recall_at_k", "exact", "fact_f1"]
        assert tuple(figures.to_dict().values()) == pytest.approx(expected)
        assert figures.num_samples == 1

    def test_are_means_over_questions_with_annotated_facts(self) -> None:
        figures = figures_of([picks_of((3, 0)), picks_of((3, 1)), picks_of((5, 6), None), picks_of((0, 1, 3))])
        assert figures.num_samples == 3
        expected = {"fact_recall": 2 / 3, "recall_at_k": 2.5 / 3, "exact": 1 / 3, "fact_f1": 2 / 3}
        assert figures.to_dict() == pytest.approx(expected)

    @pytest.mark.parametrize("picks", [[], [picks_of((1,), None)]], ids=["none", "unknown"])
    def test_of_unknown_facts(self, picks: list[Picks]) -> None:
        with pytest.raises(ValueError, match="no question has annotated facts"):
            figures_of(picks)

    def test_questions_without_any_fact_have_nothing_to_find(self) -> None:
        known = [picks_of((3, 5, 0)), picks_of((3, 0))]
        assert figures_of([picks_of((1, 2), ()), *known]) == figures_of(known)
        with pytest.raises(ValueError, match="no question has annotated facts"):
            figures_of([picks_of((1, 2), ())])


class Paying:
    """Pays 1 for every pick, ends the episode at chunk 9, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Outcome] = []

    def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
        self.shown.extend(outcomes)
        return [Feedback(1.0, ends=outcome.picked[-1] == 9) for outcome in outcomes]

    def unusable(self, sample: Sample) -> str | None:
        return None

    def most(self, sample: Sample) -> float:
        return float(len(sample.chunks))


class TestReturns:
    def test_by_hand(self) -> None:
        picks = [picks_of((5, 0, 3, 1)), picks_of((3, 0)), picks_of((4, 5, 6))]
        found = returns_of(SupportingFactsReward(per_fact_reward=0.1), picks, 0.9)
        completed = 0.1 + 0.5 + 0.5 * 2 / 3
        assert found[0] == pytest.approx([0.09 + 0.81 * completed, 0.1 + 0.9 * completed, completed, 0])
        assert found[1] == pytest.approx([0.1 + 0.9 * 1.1, 1.1])
        assert found[2] == [0, 0, 0]

    def test_nothing_follows_an_end(self) -> None:
        reward = Paying()
        found = returns_of(reward, [picks_of((1, 9, 2, 3)), picks_of(()), picks_of((4, 5))], 0.5)
        assert found == [[1.5, 1, 1.5, 1], [], [1.5, 1]]
        assert [outcome.picked for outcome in reward.shown] == [(1,), (1, 9), (1, 9, 2), (1, 9, 2, 3), (4,), (4, 5)]
        assert [outcome.last for outcome in reward.shown] == [False, False, False, True, False, True]

    def test_calibration(self) -> None:
        picks = [picks_of((3, 0), q_values=(0.5, 1.0)), picks_of((4,), q_values=(0.25,))]
        found = calibration(picks, [[1.0, 0.8], [0.0]])
        expected = {"predicted_q": 1.75 / 3, "realised_return": 0.6, "calibration_error": (0.5 + 0.2 + 0.25) / 3}
        assert found == pytest.approx(expected)


def mean_f1(picks: Sequence[Picks], min_q: float) -> float:
    """F1 of the facts when picking stops at the first Q that is not above min_q."""
    found = []
    for one in picks:
        count = 0
        while count < len(one.q_values) and one.q_values[count] > min_q:
            count += 1
        facts = set(one.sample.supporting or ())
        found.append(2 * len(facts & set(one.chunk_ids[:count])) / (count + len(facts)))
    return float(np.mean(found))


def mean_recall(picks: list[Picks], min_q: float) -> float:
    """Share of questions whose facts are all picked before the first Q that is not above a stop value."""
    found = []
    for one in picks:
        stop = next((i for i, q in enumerate(one.q_values) if q <= min_q), len(one.q_values))
        found.append(set(one.sample.supporting or ()) <= set(one.chunk_ids[:stop]))
    return float(np.mean(found))


@st.composite
def some_picks(draw: st.DrawFn) -> list[Picks]:
    found = []
    for _ in range(draw(st.integers(1, 6))):
        chunk_ids = draw(st.lists(st.integers(0, 5), unique=True, min_size=1, max_size=5))
        q_values = [draw(st.integers(-8, 12)) / 8 for _ in chunk_ids]
        facts = draw(st.lists(st.integers(0, 5), unique=True, min_size=1, max_size=3))
        found.append(picks_of(chunk_ids, sorted(facts), q_values))
    return found


class TestBestMinQ:
    @given(some_picks())
    @settings(max_examples=300, deadline=None)
    def test_no_other_value_is_better(self, picks: list[Picks]) -> None:
        found = best_min_q(picks, most_lost=1.0)
        everything = sorted({q for one in picks for q in one.q_values})
        tried = [everything[0] - 0.5, *[q + 1 / 16 for q in everything]]
        best = max(mean_f1(picks, value) for value in tried)
        assert mean_f1(picks, found) == pytest.approx(best)

    @given(some_picks(), st.sampled_from([0.0, 0.2, 0.5]))
    @settings(max_examples=300, deadline=None)
    def test_no_other_value_that_loses_as_little_is_better(self, picks: list[Picks], most_lost: float) -> None:
        found = best_min_q(picks, most_lost)
        everything = sorted({q for one in picks for q in one.q_values})
        tried = [everything[0] - 0.5, *[q + 1 / 16 for q in everything]]
        allowed = max(most_lost, 1 / len(picks)) if most_lost else 0.0
        floor = mean_recall(picks, tried[0]) - allowed - 1e-9
        assert mean_recall(picks, found) >= floor
        best = max(mean_f1(picks, value) for value in tried if mean_recall(picks, value) >= floor)
        assert mean_f1(picks, found) == pytest.approx(best)

    def test_evidence_is_not_given_up_for_shorter_lists(self) -> None:
        """Stopping at 0.6 has the better F1, and loses a fact of two questions in six."""
        short = [picks_of((0, 5, 6, 7), (0,), (0.9, 0.5, 0.5, 0.5)) for _ in range(4)]
        picks = [*short, *(picks_of((1, 3), (1, 3), (0.9, 0.4)) for _ in range(2))]
        assert best_min_q(picks) < 0.4
        assert best_min_q(picks, most_lost=0.34) > 0.5

    def test_one_question_does_not_decide(self) -> None:
        short = [picks_of((0, 5, 6, 7), (0,), (0.9, 0.5, 0.5, 0.5)) for _ in range(5)]
        picks = [*short, picks_of((1, 3), (1, 3), (0.9, 0.4))]
        assert best_min_q(picks) > 0.5, "one of six is more than 0.01, and still a single question"
        assert best_min_q(picks, most_lost=0.0) < 0.4

    def test_the_highest_of_equally_good_values(self) -> None:
        """Fewer picks for the same F1: the second question finds nothing, however long it goes on."""
        picks = [picks_of((0, 5), (0,), (0.9, 0.1)), picks_of((5, 6), (7,), (0.5, 0.4))]
        assert 0.5 < best_min_q(picks) < 0.9

    def test_keeps_all_where_every_pick_is_right(self) -> None:
        picks = [picks_of((0, 3), q_values=(0.9, 0.4)), picks_of((3, 0), q_values=(0.8, -0.2))]
        assert best_min_q(picks) < -0.2

    def test_separates_right_picks_from_the_rest(self) -> None:
        picks = [picks_of((0, 3, 5, 6), q_values=(1.0, 0.8, 0.2, 0.3)), picks_of((3, 0, 1), q_values=(0.7, 0.9, 0.1))]
        assert 0.2 < best_min_q(picks) < 0.7

    def test_a_selector_stops_where_it_says(self, tiny_encoder: Path) -> None:
        pair = tiny_pair(tiny_encoder)
        picks = greedy_picks(pair, EPISODES)
        known = [one for one in picks if one.sample.supporting is not None]
        min_q = best_min_q(known)
        assert min_q == best_min_q(picks), "questions without annotated facts have no say"
        model, found = public_model(pair), []
        for one in known:
            index = ChunkIndex.from_texts(one.sample.chunks, model=model, mode=one.sample.mode)
            steps = MultiStepSelector(index, k=len(one.chunk_ids), min_q=min_q).select(one.sample.question).steps
            facts = set(one.sample.supporting)
            hits = len(facts & {step.chunk_id for step in steps})
            found.append(2 * hits / (len(steps) + len(facts)))
        assert mean_f1(known, min_q) == pytest.approx(np.mean(found))

    def test_of_very_many_values(self) -> None:
        random = np.random.default_rng(0)
        picks = []
        for _ in range(3000):
            right = random.random(2)
            q_values = [0.6 + 0.4 * float(right.max()), 0.4 + 0.4 * float(right.min()), float(random.normal(0.2, 0.15))]
            picks.append(picks_of((0, 3, 5), q_values=q_values))
        found = best_min_q(picks, most_lost=1.0)
        best = max(mean_f1(picks, value) for value in np.linspace(-0.5, 1, 60))
        assert mean_f1(picks, found) > best - 1e-3

    @pytest.mark.parametrize("picks", [[], [picks_of((1,), None)], [picks_of(())]], ids=["none", "unknown", "empty"])
    def test_nothing_to_calibrate_with(self, picks: list[Picks]) -> None:
        with pytest.raises(ValueError, match="no question has annotated facts to calibrate"):
            best_min_q(picks)

"""The warm start: states drawn from annotated facts, their closed-form returns, the two losses, and that it learns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever.positions import relative_runs, uniform_run
from qrag_retriever.q_values import head_q_values
from qrag_retriever.training import warm_start
from qrag_retriever.training.batches import Candidates
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import Sample
from qrag_retriever.training.environment import RetrievalEnv
from qrag_retriever.training.evaluation import figures_of, greedy_picks
from qrag_retriever.training.imitation import listwise_losses, value_loss
from qrag_retriever.training.labelled_states import LabelledState, sample_picks
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.recipe import WarmStartSettings
from qrag_retriever.training.rewards import SupportingFactsReward
from qrag_retriever.training.warm_start import WarmStart
from tests.conftest import STORY
from tests.tiny_pair import public_model, story, tiny_pair

CLOSE = {"rtol": 0, "atol": 1e-5}
GAMMA = 0.9


def listwise_loss(*arguments: torch.Tensor) -> torch.Tensor:
    """What the stage makes of the losses of states: their sum, by the number of all states."""
    return listwise_losses(*arguments).sum() / len(arguments[0])


class Draws:
    """A random generator that gives up after so many draws, for loops that might not end."""

    def __init__(self, seed: int, most: int = 20_000) -> None:
        self._random, self._left = np.random.default_rng(seed), most

    def __getattr__(self, name: str) -> Any:
        self._left -= 1
        assert self._left > 0, "this goes on for ever"
        return getattr(self._random, name)


def sample(num_chunks: int, facts: Sequence[int]) -> Sample:
    return story(supporting=tuple(facts), chunks=tuple(f"chunk {i}" for i in range(num_chunks)))


@st.composite
def documents(draw: st.DrawFn) -> tuple[Sample, list[int]]:
    """A sample, often of a few chunks or of nothing but facts, and the likely mistakes."""
    num_chunks = draw(st.integers(1, 9))
    chunks = draw(st.permutations(range(num_chunks)))
    num_facts = draw(st.integers(1, num_chunks))
    others = chunks[num_facts:]
    return sample(num_chunks, sorted(chunks[:num_facts])), others[: draw(st.integers(0, len(others)))]


shares = st.sampled_from([0.0, 0.5, 1.0])


class TestSamplePicks:
    @given(documents(), st.integers(1, 7), shares, shares, shares, st.integers(0, 2**31))
    @settings(max_examples=400, deadline=None)
    def test_are_a_state_that_an_episode_can_be_in(
        self, document: tuple[Sample, list[int]], limit: int, complete: float, wrong: float, hard: float, seed: int
    ) -> None:
        of, hardest = document
        recipe = WarmStartSettings(complete_share=complete, wrong_share=wrong, hard_share=hard)
        picks = sample_picks(of, limit, hardest, recipe, Draws(seed))
        assert all(type(pick) is int and 0 <= pick < len(of.chunks) for pick in picks)
        assert len(set(picks)) == len(picks) <= limit - 1
        assert picks == sample_picks(of, limit, hardest, recipe, np.random.default_rng(seed))
        facts = set(of.supporting or ())
        found, mistakes = facts & set(picks), set(picks) - facts
        if complete == 0:
            assert found < facts
        if complete == 1 and len(facts) < limit:
            assert found == facts
        if wrong == 0:
            assert not mistakes
        if wrong == 1:
            assert mistakes or not min(limit - 1 - len(found), len(of.chunks) - len(facts))
        if hard == 1:
            assert mistakes <= set(hardest) or mistakes >= set(hardest), "the hardest first"

    def test_come_in_the_shares_of_the_recipe(self) -> None:
        of, recipe = sample(30, [2, 5, 8]), WarmStartSettings(complete_share=0.2, wrong_share=0.6, hard_share=0.75)
        random = np.random.default_rng(0)
        drawn = [sample_picks(of, 6, [20, 21, 22, 23, 24], recipe, random) for _ in range(4000)]
        assert np.mean([{2, 5, 8} <= set(picks) for picks in drawn]) == pytest.approx(0.2, abs=0.03)
        wrong = [[pick for pick in picks if pick not in (2, 5, 8)] for picks in drawn]
        assert np.mean([bool(own) for own in wrong]) == pytest.approx(0.6, abs=0.03)
        # A wrong pick that is not from the hardest may be one of them all the same.
        firsts = [own[0] in (20, 21, 22, 23, 24) for own in wrong if len(own) == 1]
        assert np.mean(firsts) == pytest.approx(0.75 + 0.25 * 5 / 27, abs=0.04)
        incomplete = [{2, 5, 8} & set(picks) for picks in drawn if not {2, 5, 8} <= set(picks)]
        assert {len(found) for found in incomplete} == {0, 1, 2}
        assert {pick for found in incomplete for pick in found} == {2, 5, 8}
        assert {len(own) for own in wrong} == {0, 1, 2, 3, 4, 5}
        assert {(2, 5), (5, 2)} <= set(drawn), "in either order"

    def test_likely_facts_are_found_first(self) -> None:
        of, recipe = sample(30, [2, 5, 8]), WarmStartSettings(complete_share=0.0, wrong_share=0.0, hard_share=0.75)
        random = np.random.default_rng(0)
        drawn = [sample_picks(of, 6, [20, 21], recipe, random, [5, 2, 8]) for _ in range(3000)]
        ones, twos = ([set(picks) for picks in drawn if len(picks) == count] for count in (1, 2))
        assert np.mean([picks == {5} for picks in ones]) == pytest.approx(0.75 + 0.25 / 3, abs=0.05)
        assert np.mean([picks == {5, 2} for picks in twos]) == pytest.approx(0.75 + 0.25 / 3, abs=0.05)
        always = WarmStartSettings(complete_share=0.0, wrong_share=0.0, hard_share=1.0)
        assert {len(sample_picks(of, 6, [], always, random, [8, 5, 2])) for _ in range(50)} == {0, 1, 2}

    @pytest.mark.parametrize("facts", [[0], [0, 1], [0, 1, 2]])
    @pytest.mark.parametrize("limit", [1, 2, 5])
    def test_of_tiny_documents(self, facts: list[int], limit: int) -> None:
        recipe = WarmStartSettings(complete_share=0.5, wrong_share=1.0, hard_share=1.0)
        for num_chunks in range(len(facts), 4):
            hardest = [chunk for chunk in range(num_chunks) if chunk not in facts]
            for seed in range(30):
                assert len(sample_picks(sample(num_chunks, facts), limit, hardest, recipe, Draws(seed))) < limit

    def test_of_a_question_that_its_document_does_not_answer(self) -> None:
        """Which `SupportingFactsReward` takes, to be worth 0."""
        for seed in range(20):
            assert len(sample_picks(sample(5, []), 4, [1, 2], WarmStartSettings(), Draws(seed))) < 4


def mask(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


class TestListwiseLoss:
    def test_by_hand(self) -> None:
        q_values = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, 9.0]], requires_grad=True)
        temperature = torch.tensor(0.5, requires_grad=True)
        available, right = mask([[1, 1, 1], [1, 1, 0]]), mask([[1, 0, 1], [0, 1, 0]])
        loss = listwise_loss(q_values, available, right, temperature)
        # log(e^2 + e^4 + e^6) - log(e^2 + e^6), and log(e^1 + e^0) - 0
        expected = (0.1247815 + 1.3132617) / 2
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
        loss.backward()
        first = np.exp([2.0, 4, 6]) / np.exp([2.0, 4, 6]).sum() - np.exp([2, -np.inf, 6]) / np.exp([2.0, 6]).sum()
        second = np.array([math.e / (1 + math.e), 1 / (1 + math.e) - 1, 0])
        expected_gradient = np.stack([first, second]) / temperature.item() / 2
        np.testing.assert_allclose(q_values.grad.numpy(), expected_gradient, atol=1e-6)
        by_temperature = -(np.stack([first, second]) * [[1, 2, 3], [0.5, 0, 0]]).sum() / 0.25 / 2
        assert float(temperature.grad) == pytest.approx(by_temperature, abs=1e-5)

    def test_what_is_not_available_has_no_effect(self) -> None:
        available, right = mask([[1, 1, 0, 0]]), mask([[0, 1, 0, 0]])
        losses = [
            listwise_loss(torch.tensor([[0.3, 0.1, junk, -junk]]), available, right, torch.tensor(0.01))
            for junk in (0.0, 1e4)
        ]
        assert torch.equal(*losses)
        assert float(losses[0]) == pytest.approx(20, abs=1e-4)

    def test_states_without_a_right_chunk_count_as_zero(self) -> None:
        q_values = torch.tensor([[1.0, 0.0], [5.0, 1.0], [2.0, 2.0]], requires_grad=True)
        available, right = mask([[1, 1], [1, 1], [0, 0]]), mask([[1, 0], [0, 0], [0, 0]])
        loss = listwise_loss(q_values, available, right, torch.tensor(1.0))
        assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-1)) / 3, abs=1e-6)
        loss.backward()
        assert float(q_values.grad[0].abs().sum()) > 0
        assert q_values.grad[1:].tolist() == [[0, 0], [0, 0]]
        none = listwise_loss(q_values, available, mask([[0, 0]] * 3), torch.tensor(1.0))
        assert float(none.detach()) == 0
        none.backward()

    @given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=8), st.integers(1, 3))
    @settings(deadline=None)
    def test_is_minus_the_log_probability_of_a_right_pick(self, values: list[float], num_right: int) -> None:
        q_values = torch.tensor([values])
        right = torch.zeros(1, len(values), dtype=torch.bool)
        right[0, :num_right] = True
        loss = listwise_loss(q_values, torch.ones_like(right), right, torch.tensor(0.3))
        expected = -float((q_values / 0.3).softmax(1)[0, :num_right].sum().log())
        assert float(loss) == pytest.approx(expected, abs=1e-5)


class TestValueLoss:
    HEADS = torch.tensor([[[0.4, 0.5], [0.1, 0.3], [9.0, 9.0]], [[0.2, 0.0], [0.0, 0.1], [0.3, 0.3]]])
    AVAILABLE = mask([[1, 1, 0], [1, 1, 1]])
    RIGHT = mask([[1, 0, 0], [0, 0, 0]])
    LABELS = torch.tensor([[0.9, 0.5], [0.7, 0.2]])

    def test_by_hand(self) -> None:
        loss = value_loss(self.HEADS, self.AVAILABLE, self.RIGHT, self.LABELS, twin_heads=True)
        # Right: 2 * (0.4, 0.5) against 0.9. Others, where they are too high: 2 * (0.1, 0.3) against 0.5; three
        # against 0.2.
        first = (0.1**2 + 0.1**2) / 2 + (0.0**2 + 0.1**2) / 2
        second = ((0.2**2 + 0.0**2) / 2 + (0.0**2 + 0.0**2) / 2 + (0.4**2 + 0.4**2) / 2) / 3
        assert float(loss) == pytest.approx((first + second) / 2 / 2, abs=1e-6)

    def test_by_hand_with_one_head(self) -> None:
        loss = value_loss(self.HEADS, self.AVAILABLE, self.RIGHT, self.LABELS, twin_heads=False)
        first = 0.0**2 + 0.0**2
        second = (0.0**2 + 0.0**2 + 0.4**2) / 3
        assert float(loss) == pytest.approx((first + second) / 2 / 2, abs=1e-6)

    def test_right_chunks_and_the_others_weigh_the_same(self) -> None:
        many = [torch.cat([part, *[part[:, 1:2]] * 50], dim=1) for part in (self.HEADS, self.AVAILABLE, self.RIGHT)]
        few = value_loss(self.HEADS[:1], self.AVAILABLE[:1], self.RIGHT[:1], self.LABELS[:1], True)
        torch.testing.assert_close(value_loss(*(part[:1] for part in many), self.LABELS[:1], True), few, **CLOSE)

    def test_of_the_others_the_highest_count(self) -> None:
        low = torch.zeros(1, 50, 2)
        heads = torch.cat([self.HEADS[:1], low], dim=1)
        masks = [torch.cat([part[:1], torch.full((1, 50), fill)], dim=1) for part, fill in
                 ((self.AVAILABLE, True), (self.RIGHT, False))]  # fmt: skip
        found = [float(value_loss(heads, *masks, self.LABELS[:1], True, top_k)) for top_k in (1, 5, 100)]
        first, others = (0.1**2 + 0.1**2) / 2, (0.0**2 + 0.1**2) / 2
        num_others = int((masks[0] & ~masks[1]).sum())
        expected = [(first + others / min(top_k, num_others)) / 2 for top_k in (1, 5, 100)]
        assert found == pytest.approx(expected, abs=1e-6)

    def test_nothing_that_can_be_picked(self) -> None:
        nothing = torch.zeros_like(self.AVAILABLE)
        assert float(value_loss(self.HEADS, nothing, nothing, self.LABELS, True)) == 0

    def test_values_of_other_chunks_that_are_too_low_cost_nothing_and_have_no_gradient(self) -> None:
        heads = self.HEADS.clone().requires_grad_()
        value_loss(heads, self.AVAILABLE, self.RIGHT, self.LABELS, True).backward()
        pulled = heads.grad.abs() > 0
        too_high = self.AVAILABLE[..., None] & (self.LABELS[:, None, 1:] < 2 * self.HEADS)
        assert torch.equal(pulled, torch.where(self.RIGHT[..., None], torch.tensor(True), too_high))

    def test_perfect_values_cost_nothing(self) -> None:
        targets = torch.where(self.RIGHT, self.LABELS[:, :1], self.LABELS[:, 1:])
        heads = (targets / 2).unsqueeze(-1).expand(-1, -1, 2)
        assert float(value_loss(heads, self.AVAILABLE, self.RIGHT, self.LABELS, True)) == pytest.approx(0, abs=1e-10)


def warm_start_of(
    pair: TrainedPair,
    samples: Sequence[tuple[Sample, int]] = (),
    reward: SupportingFactsReward | None = None,
    twin_heads: bool = True,
    **fields: Any,
) -> WarmStart:
    """A warm start that takes the samples in turn, with the stream's own count of them."""
    places = itertools.cycle(samples)
    return WarmStart(
        pair,
        ChunkCache(pair.embed_chunks, pair.config.dim, pair.device),
        reward or SupportingFactsReward(),
        lambda stream: next(places),
        WarmStartSettings(**fields),
        GAMMA,
        torch.nn.Parameter(torch.tensor(math.log(WarmStartSettings().start_temperature))),
        twin_heads,
    )


@pytest.fixture(scope="module")
def untrained(tiny_encoder: Path) -> TrainedPair:
    """For what does not change it."""
    return tiny_pair(tiny_encoder)


def best_return(reward: SupportingFactsReward, env: RetrievalEnv, picks: Sequence[int]) -> float:
    """The most that the episode can earn after these picks, discounted, by trying everything."""
    if len(picks) >= min(env.step_limit, env.num_chunks):
        return 0.0
    return max(earned(reward, env, picks, chunk) for chunk in range(env.num_chunks) if chunk not in picks)


def earned(reward: SupportingFactsReward, env: RetrievalEnv, picks: Sequence[int], chunk: int) -> float:
    env.reset(env.sample)
    for pick in picks:
        env.step(pick)
    feedback = reward.judge([env.step(chunk)])[0]
    return feedback.reward + GAMMA * best_return(reward, env, [*picks, chunk])


class TestLabels:
    @pytest.mark.parametrize(
        ("facts", "picks", "limit", "right", "other"),
        [
            ((1, 3), (), 4, GAMMA, GAMMA**2 * (0.5 + 1 / 3)),
            ((1, 3), (3,), 4, 1.0, GAMMA * (0.5 + 1 / 3)),
            ((1, 3), (0, 3), 4, 0.5 + 1 / 3, GAMMA * 0.75),
            ((1, 3), (0, 3, 2), 4, 0.75, 0.0),
            ((1, 3), (0, 2), 3, 0.0, 0.0),
            ((1, 3), (3, 1), 4, 0.0, 0.0),
            ((1, 3), (3, 0, 1), 4, 0.0, 0.0),
            ((0, 1, 2), (2, 4), 5, GAMMA * (0.5 + 1.5 / 4), GAMMA**2 * 0.8),
        ],
    )
    def test_are_the_closed_form(
        self, untrained: TrainedPair, facts: tuple, picks: tuple, limit: int, right: float, other: float
    ) -> None:
        state = warm_start_of(untrained)._labelled(sample(6, facts), limit, picks)
        assert (state.right_return, state.other_return) == pytest.approx((right, other))
        assert state.missing == [fact for fact in facts if fact not in picks]
        assert state.state.picked == picks
        assert state.state.texts == tuple(f"chunk {pick}" for pick in picks)

    @pytest.mark.parametrize(
        "reward", [SupportingFactsReward(), SupportingFactsReward(2.0, 0.25, penalize_extra_steps=False)], ids=str
    )
    @pytest.mark.parametrize("limit", [2, 4])
    def test_are_what_the_best_continuation_earns(
        self, untrained: TrainedPair, reward: SupportingFactsReward, limit: int
    ) -> None:
        of = sample(5, [1, 3])
        warm = warm_start_of(untrained, reward=reward)
        env = RetrievalEnv(limit)
        env.reset(of)
        checked = 0
        for count in range(limit):
            for picks in itertools.permutations(range(5), count):
                state = warm._labelled(of, limit, picks)
                for chunk in set(range(5)) - set(picks):
                    label = state.right_return if chunk in state.missing else state.other_return
                    assert label == pytest.approx(earned(reward, env, picks, chunk)), (picks, chunk)
                    checked += 1
        assert checked > 20


LONG = tuple(f"{STORY[i % 12]} {'rain ' * (i // 12)}" for i in range(40))


class TestLikelyMistakes:
    def test_are_the_best_scored_chunks_that_are_no_facts(
        self, untrained: TrainedPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(warm_start, "_HARDEST", 3)
        samples = [story(1, (4, 30), chunks=LONG), story(2, (0, 1, 2), mode="corpus"), story(3, (0,), chunks=LONG[:2])]
        warm = warm_start_of(untrained)
        mistakes, scores = warm._likely_mistakes(samples, warm._cache.rows_of([one.chunks for one in samples]))
        model = public_model(untrained)
        for one, own, own_scores in zip(samples, mistakes, scores, strict=True):
            num_chunks = len(one.chunks)
            runs = relative_runs(num_chunks, []) if one.mode == "document" else uniform_run(num_chunks)
            state = model.encode_states([one.question])[0]
            expected = head_q_values(state, model.encode_chunks(one.chunks), runs).sum(0)
            np.testing.assert_allclose(own_scores[:num_chunks], expected, atol=1e-5)
            assert (own_scores[num_chunks:] == -np.inf).all()
            others = [chunk for chunk in np.argsort(-expected) if chunk not in one.supporting]
            assert set(others[:3]) <= set(own) <= set(others[: 3 + len(one.supporting)])
            assert len(set(own)) == len(own)


def tokens_of(texts: Sequence[str]) -> float:
    return sum(len(text) / warm_start._CHARACTERS_PER_TOKEN + 2 for text in texts)


class TestFreshRows:
    """The cache's rows are texts of equal length, but for the last."""

    TEXTS = tuple(f"row {i}" for i in range(10))

    def fresh(
        self, pair: TrainedPair, candidates: Candidates, right: np.ndarray, scores: np.ndarray, room: float,
        texts: Sequence[str] = TEXTS,
    ) -> list[int]:  # fmt: skip
        warm = warm_start_of(pair, fresh_tokens=max(1, math.ceil(room)))
        warm._cache.rows_of([texts])
        found: list[int] = warm._fresh_rows(candidates, right, scores).tolist()
        assert len(set(found)) == len(found)
        return found

    @pytest.mark.parametrize("num_fresh", [0, 1, 2, 3, 4, 5, 50])
    def test_right_chunks_come_first_and_then_what_the_states_confuse_with_them(
        self, untrained: TrainedPair, num_fresh: int
    ) -> None:
        rows = np.array([[7, 3, 9, 4, 0], [7, 5, 6, 3, 8]])
        available = np.array([[True, True, True, True, False], [True, True, True, False, True]])
        right = np.array([[True, False, False, False, False], [False, True, False, False, False]])
        scores = np.array([[0.0, 0.5, 0.4, -5.0, 9.0], [0.6, 0.0, 0.45, 9.0, -5.0]])
        candidates = Candidates(rows, np.zeros_like(rows), available)
        found = self.fresh(untrained, candidates, right, scores, num_fresh * tokens_of(self.TEXTS[:1]))
        in_order = [3, 9, 6]  # 4 and 8 are as good as each other
        assert set(found[:2]) == {7, 5}, "whatever they cost"
        assert found[2:5] == in_order[: max(0, num_fresh - 2)]
        assert num_fresh < 50 or set(found) == {3, 4, 5, 6, 7, 8, 9}

    def test_what_more_states_share_comes_first(self, untrained: TrainedPair) -> None:
        rows = np.array([[1, 2, 3], [1, 4, 3]])
        candidates = Candidates(rows, np.zeros_like(rows), np.ones_like(rows, bool))
        right = np.array([[True, False, False], [True, False, False]])
        scores = np.array([[0.0, -0.1, -0.1], [0.0, -0.1, -0.1]])
        assert self.fresh(untrained, candidates, right, scores, 2 * tokens_of(self.TEXTS[:1])) == [1, 3]

    def test_what_is_long_must_be_worth_it(self, untrained: TrainedPair) -> None:
        texts = ["right", "a short one", "b short one", "long " * 20, "c short one"]
        rows = np.arange(5)[None]
        candidates = Candidates(rows, np.zeros_like(rows), np.ones_like(rows, bool))
        right = np.array([[True, False, False, False, False]])
        budget = tokens_of(texts[:1]) + tokens_of(texts[1:4])
        slightly, by_far = np.array([[0.0, 0.044, 0.04, 0.06, -0.12]]), np.array([[0.0, 0.044, 0.04, 0.2, -0.12]])
        for scores, room, expected in (
            (slightly, budget - 5, [0, 1, 2]),
            (slightly, budget + 50, [0, 1, 2, 3, 4]),
            (by_far, budget, [0, 3, 1, 2]),
        ):
            assert self.fresh(untrained, candidates, right, scores, room, texts) == expected


def plain_loss(pair: TrainedPair, warm: WarmStart, states: Sequence[LabelledState], twin_heads: bool) -> float:
    """The loss of labelled states from the definition, one by one, with what a user would load."""
    model = public_model(pair)
    loose = dict.fromkeys(
        text for labelled in states if labelled.sample.mode == "corpus" for text in labelled.sample.chunks
    )
    imitation, values = [], []
    for labelled in states:
        of, picks = labelled.sample, labelled.picked
        chunks = list(of.chunks)
        shown = sorted(picks) if of.mode == "document" else picks
        state = model.encode_states([(of.question, [chunks[pick] for pick in shown])])[0]
        if of.mode == "corpus":
            chunks += [text for text in loose if text not in of.chunks]
        num_chunks = len(chunks)
        runs = relative_runs(num_chunks, picks) if of.mode == "document" else uniform_run(num_chunks)
        heads = head_q_values(state, model.encode_chunks(chunks), runs).T  # (N, 2)
        left = [chunk for chunk in range(num_chunks) if chunk not in picks]
        missing = labelled.missing
        weights = np.exp(heads.sum(1).astype(np.float64) / WarmStartSettings().start_temperature)
        imitation.append(-math.log(weights[missing].sum() / weights[left].sum()) if missing else 0.0)
        errors = np.zeros(num_chunks)
        for chunk in left:
            label = labelled.right_return if chunk in missing else labelled.other_return
            predicted = 2 * heads[chunk] if twin_heads else heads[chunk].sum()
            surplus = predicted - label
            errors[chunk] = np.mean((surplus if chunk in missing else np.maximum(surplus, 0.0)) ** 2)
        others = [chunk for chunk in left if chunk not in missing and chunk < len(of.chunks)]
        others = sorted(others, key=lambda chunk: -heads[chunk].sum())[:5]
        values.append(sum(errors[part].mean() if part else 0.0 for part in (missing, others)) / 2)
    return float(np.mean(imitation) + warm._settings.value_weight * np.mean(values))


SAMPLES = [
    (story(0, (0, 3)), 4),
    (story(1, (1, 6), question="Where is the apple?"), 4),
    (story(2, (9,), question="Where is Sandra?"), 4),
    (story(3, (7, 11), question="What did nobody hear?"), 4),
]
PASSAGES = ("Sandra ate the apple.", "Nobody was there.", STORY[0])
MIXED = [
    (story(0, (0, 3)), 4),
    (story(1, (1, 6), question="Where is the apple?", mode="corpus"), 5),
    (story(4, (0,), question="Who ate?", chunks=PASSAGES, mode="corpus"), 3),
    (story(2, (1,), question="Where is John?", chunks=tuple(STORY[:3])), 3),
    (story(3, (7, 20, 21), question="What did nobody hear?", chunks=LONG), 6),
]


class TestLoss:
    @pytest.mark.parametrize("twin_heads", [True, False])
    def test_is_that_of_the_definition(
        self, tiny_encoder: Path, twin_heads: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pair = tiny_pair(tiny_encoder)
        warm = warm_start_of(pair, MIXED, twin_heads=twin_heads, states_per_sample=3, complete_share=0.3)
        shown: list[Any] = []
        loss_of = warm._loss_of
        monkeypatch.setattr(warm, "_loss_of", lambda states, *rest: shown.extend(states) or loss_of(states, *rest))
        loss, figures = warm.loss([np.random.default_rng(i) for i in range(len(MIXED))])
        assert [labelled.sample for labelled in shown] == [of for of, _ in MIXED for _ in range(3)]
        assert any(not labelled.missing for labelled in shown)
        assert any(len(labelled.picked) > 1 for labelled in shown)
        assert float(loss.detach()) == pytest.approx(plain_loss(pair, warm, shown, twin_heads), rel=1e-4)
        weighted = figures["imitation"] + WarmStartSettings().value_weight * figures["value_error"]
        assert float(loss.detach()) == pytest.approx(weighted, rel=1e-5)

    def test_facts_are_found_in_the_order_of_the_first_states_q_values(
        self, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pair = tiny_pair(tiny_encoder)
        shares = {"complete_share": 0.0, "wrong_share": 0.0, "hard_share": 1.0}
        warm = warm_start_of(pair, SAMPLES[:2], states_per_sample=10, **shares)
        shown: list[Any] = []
        loss_of = warm._loss_of
        monkeypatch.setattr(warm, "_loss_of", lambda states, *rest: shown.extend(states) or loss_of(states, *rest))
        warm.loss([np.random.default_rng(i) for i in range(2)])
        model = public_model(pair)
        for of, _ in SAMPLES[:2]:
            state = model.encode_states([of.question])[0]
            q_values = head_q_values(state, model.encode_chunks(of.chunks), relative_runs(len(of.chunks), ())).sum(0)
            likely = max(of.supporting or (), key=lambda fact: float(q_values[fact]))
            found = {labelled.picked for labelled in shown if labelled.sample == of}
            assert found == {(), (likely,)}

    def test_draws_repeat_with_the_streams(self, tiny_encoder: Path) -> None:
        found = []
        for _ in range(2):
            pair = tiny_pair(tiny_encoder)
            warm = warm_start_of(pair, MIXED, max_candidates=10, fresh_tokens=100)
            streams = [np.random.default_rng([3, i]) for i in range(4)]
            losses = [warm.loss(streams)[0] for _ in range(3)]
            losses[-1].backward()
            found.append((torch.stack(losses).detach(), [weight.grad for weight in pair.trainable().values()]))
        assert torch.equal(found[0][0], found[1][0])
        assert len(set(found[0][0].tolist())) == 3
        assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))

    def test_gradients_reach_both_encoders_and_the_temperature(self, tiny_encoder: Path) -> None:
        pair = tiny_pair(tiny_encoder)
        warm = warm_start_of(pair, MIXED)
        loss, _ = warm.loss([np.random.default_rng(i) for i in range(4)])
        loss.backward()
        assert all(float(w.grad.norm()) > 0 for n, w in pair.trainable().items() if "key.bias" not in n)
        assert float(warm._log_temperature.grad.abs()) > 0

    def test_fresh_embeddings_are_kept_in_the_cache(self, tiny_encoder: Path) -> None:
        pair = tiny_pair(tiny_encoder)
        warm = warm_start_of(pair, SAMPLES, fresh_tokens=50, states_per_sample=1)
        cache = warm._cache
        (rows,) = cache.rows_of([STORY])
        stale = torch.full((12, pair.config.dim), 0.01)
        cache.store(rows, stale)
        _, figures = warm.loss([np.random.default_rng(0)])
        fresh = (cache.table[rows] != stale).any(1)
        assert 3 <= int(fresh.sum()) == figures["fresh_chunks"] <= 9
        torch.testing.assert_close(cache.table[rows][fresh], pair.embed_chunks(STORY).detach()[fresh], **CLOSE)
        assert cache.num_embedded == 12

    def test_where_there_is_room_nothing_in_the_loss_is_old(self, tiny_encoder: Path) -> None:
        """Old embeddings in the cache have no part in it, and all chunks get gradients."""
        losses, rooms = [], (10_000, 10_000, 30)
        for old, room in zip((False, True, True), rooms, strict=True):
            pair = tiny_pair(tiny_encoder)
            warm = warm_start_of(pair, MIXED, fresh_tokens=room, hard_share=0.0)
            if old:
                (rows,) = warm._cache.rows_of([[text for of, _ in MIXED for text in of.chunks]])
                warm._cache.store(rows, torch.full((len(rows), pair.config.dim), 0.03))
            loss, figures = warm.loss([np.random.default_rng(i) for i in range(len(MIXED))])
            losses.append(float(loss.detach()))
            if room > 30:
                texts = list(dict.fromkeys(text for of, _ in MIXED for text in of.chunks))
                assert figures["fresh_chunks"] == len(texts)
                torch.testing.assert_close(
                    warm._cache.table[warm._cache.rows_of([texts])[0]], pair.embed_chunks(texts).detach(), **CLOSE
                )
        assert losses[0] == losses[1] != losses[2]

    def test_without_in_batch_negatives_loose_passages_stay_with_their_question(self, tiny_encoder: Path) -> None:
        loose = [one for one in MIXED if one[0].mode == "corpus"]
        found = []
        for together in (True, False):
            warm = warm_start_of(tiny_pair(tiny_encoder), loose, in_batch_negatives=together, states_per_sample=1)
            found.append(warm.loss([np.random.default_rng(i) for i in range(2)])[1])
        assert found[0]["imitation"] > found[1]["imitation"], "more to confuse the right ones with"
        assert found[0]["value_error"] == pytest.approx(found[1]["value_error"]), "values are of own chunks only"

    def test_where_everything_is_picked(self, tiny_encoder: Path) -> None:
        of = story(0, (0, 1), chunks=tuple(STORY[:2]))
        warm = warm_start_of(tiny_pair(tiny_encoder), [(of, 4)], complete_share=1.0, states_per_sample=1)
        loss, _ = warm.loss([np.random.default_rng(0)])
        assert float(loss.detach()) == 0
        loss.backward()

    def test_overfits_four_questions(self, tiny_encoder: Path) -> None:
        pair = tiny_pair(tiny_encoder)
        warm = warm_start_of(pair, SAMPLES)
        assert figures_of(greedy_picks(pair, SAMPLES)).exact < 1
        optimizer = torch.optim.AdamW([*pair.trainable().values(), warm._log_temperature], lr=1e-2)
        streams = [np.random.default_rng([1, i]) for i in range(8)]
        losses = []
        for update in range(60):
            if update % 10 == 0:
                warm._cache.clear()
            optimizer.zero_grad()
            loss, _ = warm.loss(streams)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert np.mean(losses[-5:]) < 0.25 * losses[0]
        picks = greedy_picks(pair, SAMPLES)
        assert figures_of(picks).exact == 1
        # Calibrated from the beginning: a right pick is worth about 1, what comes after the last fact much less.
        for one in picks:
            facts = len(one.sample.supporting or ())
            assert min(one.q_values[:facts]) > 0.6
            assert one.q_values[-1] < 0.6

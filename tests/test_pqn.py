"""PQN: the paper's numbers for policy, loss, gradients and an optimiser step; rollouts, targets; and that it learns."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qrag_retriever import ChunkIndex, QRAGModel
from qrag_retriever.positions import relative_runs, uniform_run
from qrag_retriever.q_values import batched_head_q_values, head_q_values
from qrag_retriever.state import RetrievalState
from qrag_retriever.training.batches import Candidates, chunk_positions
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import Sample
from qrag_retriever.training.environment import VectorEnv
from qrag_retriever.training.evaluation import greedy_picks
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.pqn import PQNLearner, temporal_difference_loss
from qrag_retriever.training.recipe import PQNSettings
from qrag_retriever.training.rewards import Outcome, SupportingFactsReward
from qrag_retriever.training.rollout import Rollout, collect, policy_pick
from qrag_retriever.training.timing import Stopwatch
from tests.conftest import STORY
from tests.tiny_pair import public_model, story, tiny_pair

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5
LOSS = json.loads((GOLDEN / "loss.json").read_text())
POLICY = json.loads((GOLDEN / "policy.json").read_text())
SOFT = json.loads((GOLDEN / "soft_values.json").read_text())
# The paper's code and ours name a weight differently before this part.
INNER = re.compile(r"(?:^|\.)((?:embeddings|encoder)\..+)$")


class Row:
    """What the golden rows are: states, picks, positions and targets."""

    def __init__(self, case: dict) -> None:
        self.case = case
        self.states = [
            (LOSS["question"], [LOSS["chunks"][pick] for pick in sorted(picks[:hop])])
            for picks in case["picks"]
            for hop in range(len(picks))
        ]
        self.chunks = [LOSS["chunks"][pick] for pick in case["action_index"]]
        self.before = [picks[:hop] for picks in case["picks"] for hop in range(len(picks))]
        self.targets = torch.tensor(case["targets"])

    def positions(self, pair: TrainedPair) -> np.ndarray:
        everywhere = [chunk_positions(pair.config, "document", len(LOSS["chunks"]), before) for before in self.before]
        return np.array([own[pick] for own, pick in zip(everywhere, self.case["action_index"], strict=True)])

    def heads(self, pair: TrainedPair) -> torch.Tensor:
        states, chunks = pair.embed_states(self.states), pair.embed_chunks(self.chunks)
        return batched_head_q_values(states, chunks[:, None], self.positions(pair)[:, None])[:, 0]


def norm_of(weights: Sequence[torch.nn.Parameter]) -> float:
    return float(torch.cat([weight.grad.flatten() for weight in weights]).norm())


@pytest.mark.parametrize("plain_batches", [True, False], ids=["plain", "sorted"])
@pytest.mark.parametrize("case", LOSS["cases"], ids=lambda case: case["positions"])
def test_loss_gradients_and_one_step_of_the_paper(case: dict, plain_batches: bool) -> None:
    """So plain batches, which speed is compared with, are the paper's arithmetic, and our own batches are too."""
    model = QRAGModel.from_pretrained(GOLDEN / "checkpoint", device="cpu", positions=case["positions"])
    pair = TrainedPair(
        model.config, model.state_encoder, model.action_encoder, frozen="none", plain_batches=plain_batches
    )
    row = Row(case)
    assert pair.state_encoder.tokenize(row.states) == case["state_input_ids"]
    assert pair.action_encoder.tokenize(row.chunks)[0] == case["action_input_ids"]
    assert row.positions(pair).tolist() == case.get("action_position_int", [0] * 5)

    def check(expected: dict) -> torch.Tensor:
        heads = row.heads(pair)
        np.testing.assert_allclose(heads.detach().T, [expected["q1"], expected["q2"]], rtol=0, atol=TOLERANCE)
        loss = temporal_difference_loss(heads, row.targets)
        assert float(loss.detach()) == pytest.approx(expected["loss"], abs=TOLERANCE)
        return loss

    check(case).backward()
    trainable = pair.trainable()
    assert norm_of(list(trainable.values())) == pytest.approx(case["grad_norm_total"], abs=TOLERANCE)
    for role in ("state", "action"):
        own = {INNER.search(name)[1]: weight for name, weight in trainable.items() if name.startswith(role)}
        expected = {
            INNER.search(name)[1]: norm
            for name, norm in case["grad_norm_per_parameter"].items()
            if name.startswith(role)
        }
        assert own.keys() == expected.keys(), "the same weights have gradients"
        for name, weight in own.items():
            assert norm_of([weight]) == pytest.approx(expected[name], abs=TOLERANCE), name
        assert norm_of(list(own.values())) == pytest.approx(case[f"grad_norm_{role}_encoder"], abs=TOLERANCE)
    after = case["after_one_adamw_step"]
    optimizer = torch.optim.AdamW(
        trainable.values(), after["lr"], after["betas"], after["eps"], after["weight_decay"], fused=True
    )
    torch.nn.utils.clip_grad_norm_(trainable.values(), after["clip"])
    optimizer.step()
    check(after)


class TestLossByHand:
    HEADS = torch.tensor([[0.4, 0.5], [0.1, 0.3]])
    TARGETS = torch.tensor([0.9, 0.5])

    def test_each_head_estimates_half(self) -> None:
        loss = temporal_difference_loss(self.HEADS, self.TARGETS)
        expected = ((0.8 - 0.9) ** 2 / 2 + (1.0 - 0.9) ** 2 / 2 + (0.2 - 0.5) ** 2 / 2 + (0.6 - 0.5) ** 2 / 2) / 2
        assert float(loss) == pytest.approx(expected, abs=1e-7)
        assert float(temporal_difference_loss(self.TARGETS[:, None].expand(-1, 2) / 2, self.TARGETS)) == 0

    def test_one_head_is_the_sum(self) -> None:
        loss = temporal_difference_loss(self.HEADS, self.TARGETS, twin_heads=False)
        assert float(loss) == pytest.approx((0.0**2 + 0.1**2) / 2, abs=1e-7)


class Recorded:
    """Stands in for a random generator: keeps the distribution that it was to draw from."""

    def choice(self, chunks: np.ndarray, p: np.ndarray) -> int:
        self.chunks, self.p = chunks, p
        return int(chunks[0])

    def over(self, num_chunks: int) -> np.ndarray:
        found = np.zeros(num_chunks)
        found[self.chunks] = self.p
        return found


class TestPolicy:
    @pytest.mark.parametrize("number", range(len(POLICY["cases"])))
    def test_is_the_paper_s(self, number: int) -> None:
        case, inputs = POLICY["cases"][number], SOFT["cases"][number]
        assert (case["name"], case["alpha"]) == (inputs["name"], inputs["alpha"])
        q_values = np.float32(inputs["logits_1"]) + np.float32(inputs["logits_2"])
        for own, available, expected in zip(q_values, inputs["available"], case["policy_probs"], strict=True):
            recorded: Any = Recorded()
            policy_pick(own, np.array(available), case["alpha"], POLICY["top_k"], recorded)
            np.testing.assert_allclose(recorded.over(len(own)), expected, rtol=0, atol=TOLERANCE)
            assert recorded.chunks.tolist() == sorted(recorded.chunks), "so that a stream means the same everywhere"

    def test_draws_as_often_as_it_says(self) -> None:
        q_values = np.array([0.3, 0.9, 0.1, 0.25, 0.2, 0.15], np.float32)
        available = np.array([True, False, True, True, True, True])
        random = np.random.default_rng(0)
        drawn = np.bincount([policy_pick(q_values, available, 0.1, 3, random) for _ in range(5000)], minlength=6)
        weights = np.exp(np.array([3.0, -np.inf, -np.inf, 2.5, 2.0, -np.inf]))
        np.testing.assert_allclose(drawn / 5000, weights / weights.sum(), atol=0.03)
        assert drawn[[1, 2, 5]].tolist() == [0, 0, 0]

    def test_small_temperatures_and_few_chunks(self) -> None:
        q_values, random = np.array([-5.0, 5.0, 4.9, -1e4], np.float32), np.random.default_rng(0)
        everything = np.ones(4, bool)
        assert {policy_pick(q_values, everything, 1e-6, 5, random) for _ in range(20)} == {1}
        one = np.array([False, False, False, True])
        assert policy_pick(q_values, one, 0.01, 5, random) == 3
        assert {policy_pick(q_values, everything, 100.0, 1, random) for _ in range(20)} == {1}


def plain_soft_value(q_values: Sequence[float], alpha: float, top_k: int) -> float:
    best = sorted(q_values, reverse=True)[:top_k]
    return best[0] + alpha * math.log(sum(math.exp((q - best[0]) / alpha) for q in best)) if best else 0.0


def plain_value(heads: np.ndarray, left: Sequence[int], alpha: float, settings: PQNSettings) -> float:
    """V of one state from its chunks' Q-values (N, 2), by the definition."""
    own = np.asarray(heads, np.float64)[list(left)]
    if not len(own):
        return 0.0
    if settings.value == "hard":
        return float(own.sum(1).max())
    if not settings.twin_heads:
        return plain_soft_value(own.sum(1).tolist(), alpha, settings.top_k)
    return sum(plain_soft_value(own[:, h].tolist(), alpha / 2, settings.top_k) for h in (0, 1))


@pytest.fixture(scope="module")
def untrained(tiny_encoder: Path) -> TrainedPair:
    """For what does not change it. Its Q-values go beyond what a reward can pay, and below 0."""
    return tiny_pair(tiny_encoder, {"output_scale": 0.35})


def cache_of(pair: TrainedPair) -> ChunkCache:
    return ChunkCache(pair.embed_chunks, pair.config.dim, pair.device)


REWARD = SupportingFactsReward(per_fact_reward=0.25)


def learner_of(
    pair: TrainedPair, log_temperature: torch.Tensor | None = None, target_cache: bool = False, **fields: Any
) -> PQNLearner:
    of_targets = ChunkCache(lambda texts: pair.embed_chunks(texts, target=True), pair.config.dim, pair.device)
    return PQNLearner(
        pair, cache_of(pair), of_targets if target_cache else None, REWARD, PQNSettings(**fields), log_temperature
    )


class TestStateValues:
    HEADS = torch.tensor(
        [[[0.3, 0.2], [0.1, 0.6], [9.0, 9.0], [0.25, 0.1]], [[0.5, 0.0], [0.0, 0.6], [0.2, 0.2], [0, 0]]]
    )
    AVAILABLE = np.array([[True, True, False, True], [False, False, False, False]])

    def value(self, pair: TrainedPair, heads: torch.Tensor | None = None, **fields: Any) -> list[float]:
        candidates = Candidates(np.zeros((2, 4), int), np.zeros((2, 4), int), self.AVAILABLE)
        heads = self.HEADS if heads is None else heads
        return learner_of(pair, **fields).state_values(heads, candidates, 0.1).tolist()

    @pytest.mark.parametrize("twin_heads", [True, False])
    @pytest.mark.parametrize("value", ["soft", "hard"])
    @pytest.mark.parametrize("top_k", [1, 2, 5])
    def test_are_the_definition(self, untrained: TrainedPair, value: Any, twin_heads: bool, top_k: int) -> None:
        fields = {"value": value, "twin_heads": twin_heads, "top_k": top_k}
        expected = plain_value(self.HEADS[0].numpy(), [0, 1, 3], 0.1, PQNSettings(**fields))
        assert self.value(untrained, **fields) == pytest.approx([expected, 0.0], abs=1e-6)

    def test_by_hand(self, untrained: TrainedPair) -> None:
        assert self.value(untrained, value="hard")[0] == pytest.approx(0.7), "of the sum, not 0.3 + 0.6"
        soft = [0.05 * math.log(sum(math.exp(q / 0.05) for q in own)) for own in ((0.3, 0.1, 0.25), (0.2, 0.6, 0.1))]
        assert self.value(untrained, value="soft")[0] == pytest.approx(sum(soft), abs=1e-6)
        one = 0.1 * math.log(sum(math.exp(q / 0.1) for q in (0.5, 0.7, 0.35)))
        assert self.value(untrained, value="soft", twin_heads=False)[0] == pytest.approx(one, abs=1e-6)

    def test_of_heads_that_agree_is_the_soft_value_of_q(self, untrained: TrainedPair) -> None:
        agreeing = self.HEADS[..., :1].expand(-1, -1, 2)
        twin, one = (self.value(untrained, agreeing, value="soft", twin_heads=twin) for twin in (True, False))
        assert twin == pytest.approx(one, abs=1e-6)


LONG = tuple(f"{STORY[i % 12]} {'rain ' * (i // 12)}" for i in range(30))
EPISODES = [
    (story(0, (0, 3)), 4),
    (story(1, (1, 6), question="Where is the apple?", mode="corpus"), 3),
    (story(2, (0,), question="Where is John?", chunks=tuple(STORY[:3])), 5),
    (story(3, (7, 20), question="What did nobody hear?", chunks=LONG), 2),
]


def in_turn(first: int = 0) -> Callable[[int], tuple[Sample, int]]:
    """Draw the episodes in turn, whichever environment asks."""
    numbers = iter(range(first, 10_000))
    return lambda env: EPISODES[next(numbers) % len(EPISODES)]


def streams_of(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(count)]


def rollout_of(
    pair: TrainedPair, envs: VectorEnv, streams: Sequence[np.random.Generator], num_steps: int,
    alpha: float = 0.3, with_gradients: bool = False, cache: ChunkCache | None = None,
) -> Rollout:  # fmt: skip
    cache = cache_of(pair) if cache is None else cache
    return collect(envs, pair, cache, streams, num_steps, alpha, 5, with_gradients, Stopwatch())


def picks_of(rollout: Rollout) -> list[tuple[str, tuple[int, ...], int]]:
    return [(visit.sample.id, visit.state.picked, visit.chunk_id) for visit in rollout.visits]


class TestRollouts:
    def test_repeat_with_the_streams(self, untrained: TrainedPair) -> None:
        first, second, other = (
            rollout_of(untrained, VectorEnv(REWARD, 3, in_turn()), streams_of(3, seed), 8) for seed in (0, 0, 1)
        )
        assert picks_of(first) == picks_of(second)
        assert torch.equal(first.embeddings, second.embeddings)
        assert np.array_equal(first.scores, second.scores)
        assert picks_of(first) != picks_of(other)

    def test_visits_are_what_the_environments_went_through(self, untrained: TrainedPair) -> None:
        """Step-major; each next state is where the environment was at its next step, or the episode had ended."""
        rollout = rollout_of(untrained, VectorEnv(REWARD, 3, in_turn()), streams_of(3), 9)
        assert len(rollout.visits) == len(rollout.scores) == len(rollout.embeddings) == len(rollout.candidates) == 27
        assert rollout.num_envs == 3
        assert [visit.sample.id for visit in rollout.visits[:3]] == ["story-0", "story-1", "story-2"]
        limits = {sample.id: min(limit, len(sample.chunks)) for sample, limit in EPISODES}
        for i, visit in enumerate(rollout.visits):
            state = visit.state
            assert visit.next_state.picked == (*state.picked, visit.chunk_id)
            assert visit.next_state.texts[-1] == visit.sample.chunks[visit.chunk_id]
            assert visit.ended == (len(visit.next_state.picked) == limits[visit.sample.id])
            complete = set(visit.sample.supporting or ()) <= set(visit.next_state.picked)
            assert visit.settled == complete
            new = visit.chunk_id in (visit.sample.supporting or ())
            share = 0.5 + 0.5 * len(visit.sample.supporting or ()) / len(visit.next_state.picked)
            assert visit.reward == pytest.approx(0.25 * new + share * (new and complete))
            if i + 3 < len(rollout.visits):
                after = rollout.visits[i + 3]
                assert after.state == (RetrievalState(after.sample.question) if visit.ended else visit.next_state)
                assert visit.ended or after.sample is visit.sample
        assert sum(visit.ended for visit in rollout.visits) > 5

    def test_episodes_go_on_in_the_next_rollout(self, untrained: TrainedPair) -> None:
        envs, streams = VectorEnv(REWARD, 2, in_turn()), streams_of(2)
        parts = [rollout_of(untrained, envs, streams, steps) for steps in (1, 2, 3)]
        whole = rollout_of(untrained, VectorEnv(REWARD, 2, in_turn()), streams_of(2), 6)
        assert [pick for part in parts for pick in picks_of(part)] == picks_of(whole)
        assert [len(visit.state.picked) for visit in parts[1].visits[:2]] == [1, 1]

    def test_an_environment_does_not_depend_on_its_neighbours(self, untrained: TrainedPair) -> None:
        def draw(env: int) -> tuple[Sample, int]:
            return EPISODES[env]

        alone = rollout_of(untrained, VectorEnv(REWARD, 1, draw), streams_of(1), 6)
        among = rollout_of(untrained, VectorEnv(REWARD, 4, draw), streams_of(4), 6)
        assert picks_of(alone) == picks_of(among)[::4]

    def test_q_values_are_those_of_an_index(self, untrained: TrainedPair) -> None:
        rollout = rollout_of(untrained, VectorEnv(REWARD, 4, in_turn()), streams_of(4), 6)
        model = public_model(untrained)
        indices = {of.id: ChunkIndex.from_texts(of.chunks, model=model, mode=of.mode) for of, _ in EPISODES}
        for i, visit in enumerate(rollout.visits):
            order = model.config.order_in(visit.sample.mode)
            state = model.encode_states([visit.state.render(order)])[0]
            np.testing.assert_allclose(rollout.embeddings[i], state, rtol=0, atol=TOLERANCE)
            num_left = len(visit.sample.chunks) - len(visit.state.picked)
            chunk_ids, q_values = indices[visit.sample.id].top_k(state, visit.state.picked, num_left)
            assert chunk_ids.tolist().index(visit.chunk_id) < 5, "the policy looks at the best five"
            np.testing.assert_allclose(rollout.scores[i, chunk_ids], q_values, rtol=0, atol=TOLERANCE)
            available = rollout.candidates.available[i]
            assert sorted(chunk_ids.tolist()) == np.flatnonzero(available).tolist()

    def test_candidates_are_the_chunks_of_each_state(self, untrained: TrainedPair) -> None:
        cache = cache_of(untrained)
        rollout = rollout_of(untrained, VectorEnv(REWARD, 1, in_turn()), streams_of(1), 14, cache=cache)
        assert rollout.candidates.rows.shape == (14, len(LONG)), "steps are padded to the longest document"
        for i, visit in enumerate(rollout.visits):
            count = len(visit.sample.chunks)
            rows = rollout.candidates.rows[i, :count]
            assert [cache.texts[row] for row in rows] == list(visit.sample.chunks)
            assert visit.rows.tolist() == rows.tolist()
            expected = chunk_positions(untrained.config, visit.sample.mode, count, visit.state.picked)
            assert rollout.candidates.positions[i, :count].tolist() == expected.tolist()
            assert not rollout.candidates.available[i, count:].any()

    def test_gradients_are_kept_if_asked_for(self, untrained: TrainedPair) -> None:
        for asked in (False, True):
            envs = VectorEnv(REWARD, 2, in_turn())
            rollout = rollout_of(untrained, envs, streams_of(2), 2, with_gradients=asked)
            assert rollout.embeddings.requires_grad == asked

    def test_numbers_by_environment(self, untrained: TrainedPair) -> None:
        rollout = rollout_of(untrained, VectorEnv(REWARD, 3, in_turn()), streams_of(3), 2)
        assert rollout.by_env([0, 1, 2, 10, 11, 12]).tolist() == [[0, 10], [1, 11], [2, 12]]


def plain_heads(model: QRAGModel, state: RetrievalState, of: Sample, chunk_model: QRAGModel) -> np.ndarray:
    """Q-values of all chunks (N, 2) by a pair, from the definition."""
    embedding = model.encode_states([state.render(model.config.order_in(of.mode))])[0]
    runs = relative_runs(len(of.chunks), state.picked) if of.mode == "document" else uniform_run(len(of.chunks))
    return np.asarray(head_q_values(embedding, chunk_model.encode_chunks(of.chunks), runs)).T


def target_model(pair: TrainedPair) -> QRAGModel:
    return QRAGModel(pair.config, lambda: (pair.target_state.model, pair.target_action.model), device="cpu")


def plain_targets(pair: TrainedPair, rollout: Rollout, alpha: float, settings: PQNSettings) -> list[float]:
    """The lambda-returns of a rollout, from the definition, environment by environment from the last step back."""
    targets = target_model(pair)
    chunks = targets if settings.target_chunks == "encoder" else public_model(pair)
    found = [0.0] * len(rollout.visits)
    for env in range(rollout.num_envs):
        rows = range(env, len(rollout.visits), rollout.num_envs)
        later: float | None = None
        for row in reversed(rows):
            visit = rollout.visits[row]
            most = REWARD.most(visit.sample)
            left = [chunk for chunk in range(len(visit.sample.chunks)) if chunk not in visit.next_state.picked]
            value = 0.0
            if not visit.ended and not (visit.settled and settings.zero_when_settled):
                heads = plain_heads(targets, visit.next_state, visit.sample, chunks)
                value = plain_value(heads, left, alpha, settings)
                if settings.clip_values:
                    value = min(max(value, 0.0), most)
            follows = value if later is None else (1 - settings.lam) * value + settings.lam * later
            later = visit.reward + settings.gamma * (0.0 if visit.ended else follows)
            found[row] = later
    if settings.clip_values:
        return [min(max(g, 0.0), REWARD.most(v.sample)) for g, v in zip(found, rollout.visits, strict=True)]
    return found


class TestTargets:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"lam": 0.0},
            {"lam": 1.0, "gamma": 0.8},
            {"value": "soft"},
            {"value": "soft", "twin_heads": False, "top_k": 2},
            {"clip_values": False},
            {"clip_values": False, "zero_when_settled": False, "value": "soft"},
            {"zero_when_settled": False},
            {"target_chunks": "encoder"},
        ],
        ids=str,
    )
    def test_are_the_lambda_returns_of_the_definition(self, untrained: TrainedPair, fields: dict) -> None:
        learner = learner_of(untrained, target_cache=fields.get("target_chunks") == "encoder", **fields)
        envs, streams = VectorEnv(REWARD, 4, in_turn()), streams_of(4)
        seen = set()
        for _ in range(3):
            rollout = rollout_of(untrained, envs, streams, 3, cache=learner._cache)
            seen |= {(visit.ended, visit.settled) for visit in rollout.visits}
            targets = learner.targets(rollout, alpha=0.1)[0]
            assert not targets.requires_grad
            expected = plain_targets(untrained, rollout, 0.1, PQNSettings(**fields))
            np.testing.assert_allclose(targets, expected, rtol=0, atol=TOLERANCE)
        assert seen >= {(False, False), (True, False), (False, True)}

    def test_come_from_the_target_encoder(self, untrained: TrainedPair, tiny_encoder: Path) -> None:
        rollout = rollout_of(untrained, VectorEnv(REWARD, 4, in_turn()), streams_of(4), 1)
        cached, own = (
            learner_of(untrained, target_cache=target_cache, clip_values=False) for target_cache in (False, True)
        )
        for learner in (cached, own):
            learner._cache.rows_of([visit.sample.chunks for visit in rollout.visits])
        found = [learner.targets(rollout, 0.1)[0] for learner in (cached, own)]
        assert float((found[0] - found[1]).abs().max()) > 1e-3
        assert len(own._target_cache) > 0
        with torch.no_grad():
            for weight in untrained.target_weights().values():
                weight.mul_(1.5)
            moved = cached.targets(rollout, 0.1)[0]
            for weight in untrained.target_weights().values():
                weight.div_(1.5)
        assert float((found[0] - moved).abs().max()) > 1e-3

    def test_the_cut_of_a_rollout_bootstraps_and_an_end_does_not(self, untrained: TrainedPair) -> None:
        learner = learner_of(untrained, clip_values=False, zero_when_settled=False)
        envs, streams = VectorEnv(REWARD, 1, lambda env: EPISODES[3]), streams_of(1)
        first, last = (rollout_of(untrained, envs, streams, 1, cache=learner._cache) for _ in range(2))
        model = public_model(untrained)
        heads = plain_heads(target_model(untrained), first.visits[0].next_state, EPISODES[3][0], model)
        heads[first.visits[0].chunk_id] = -np.inf
        value = float(heads.sum(1).max())
        assert learner.targets(first, 0.1)[0].item() == pytest.approx(
            first.visits[0].reward + 0.99 * value, abs=TOLERANCE
        )
        assert last.visits[0].ended
        assert learner.targets(last, 0.1)[0].item() == pytest.approx(last.visits[0].reward)

    def test_values_and_targets_stay_within_what_an_episode_can_earn(self, untrained: TrainedPair) -> None:
        envs, streams = VectorEnv(REWARD, 4, in_turn()), streams_of(4)
        rollout = rollout_of(untrained, envs, streams, 8)
        most = [REWARD.most(visit.sample) for visit in rollout.visits]
        free, clipped = (learner_of(untrained, clip_values=clip, zero_when_settled=False) for clip in (False, True))
        for learner in (free, clipped):
            learner._cache.rows_of([visit.sample.chunks for visit in rollout.visits])
        outside = free.targets(rollout, 0.1)[0].numpy()
        assert (outside > most).any()
        inside = clipped.targets(rollout, 0.1)[0].numpy()
        assert (inside >= 0).all()
        assert (inside <= np.array(most) + 1e-6).all()


def picked_scores(rollout: Rollout) -> np.ndarray:
    return np.array([scores[visit.chunk_id] for scores, visit in zip(rollout.scores, rollout.visits, strict=True)])


def gradients_of(pair: TrainedPair) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in pair.trainable().values()])


def plain_imitation(pair: TrainedPair, rollout: Rollout, temperature: float, most: int = 1000) -> float:
    """Cross-entropy of picking a missing fact, over all states of a rollout; 0 where none is missing.

    Of the chunks of a state so many stay: the missing facts and the best-scored.
    """
    model, found = public_model(pair), []
    for visit in rollout.visits:
        q_values = plain_heads(model, visit.state, visit.sample, model).sum(1).astype(np.float64)
        left = [chunk for chunk in range(len(q_values)) if chunk not in visit.state.picked]
        missing = [chunk for chunk in left if chunk in (visit.sample.supporting or ())]
        others = sorted(set(left) - set(missing), key=lambda chunk: -q_values[chunk])
        left = [*missing, *others[: most - len(missing)]]
        weights = np.exp(q_values / temperature)
        found.append(-math.log(weights[missing].sum() / weights[left].sum()) if missing else 0.0)
    return float(np.mean(found))


class TestLoss:
    def run(
        self, pair: TrainedPair, imitation_weight: float = 0.0, temperature: float | None = None, num_updates: int = 1,
        **fields: Any,
    ) -> tuple[torch.Tensor, dict[str, float], PQNLearner, torch.nn.Parameter | None]:  # fmt: skip
        log_temperature = None if temperature is None else torch.nn.Parameter(torch.tensor(math.log(temperature)))
        learner = learner_of(pair, log_temperature, num_steps=5, **fields)
        envs, streams = VectorEnv(REWARD, 4, in_turn()), streams_of(4)
        for _ in range(num_updates):
            loss, figures = learner.loss(envs, streams, 0.3, imitation_weight, Stopwatch())
        return loss, figures, learner, log_temperature

    def same_rollout(self, pair: TrainedPair) -> Rollout:
        return rollout_of(pair, VectorEnv(REWARD, 4, in_turn()), streams_of(4), 5)

    @pytest.mark.parametrize("twin_heads", [True, False])
    @pytest.mark.parametrize("reuse_states", [True, False])
    def test_is_that_of_the_picks_with_targets_held_still(
        self, tiny_encoder: Path, reuse_states: bool, twin_heads: bool
    ) -> None:
        """Value and gradients; so none flows through targets or through chunks that were not picked."""
        pair, other = tiny_pair(tiny_encoder), tiny_pair(tiny_encoder)
        fields = {"reuse_states": reuse_states, "twin_heads": twin_heads, "value": "soft" if reuse_states else "hard"}
        loss, figures, _, _ = self.run(pair, **fields)
        loss.backward()
        rollout = self.same_rollout(other)
        targets = torch.tensor(plain_targets(other, rollout, 0.3, PQNSettings(**fields)))
        order = other.config.order_in
        states = other.embed_states([visit.state.render(order(visit.sample.mode)) for visit in rollout.visits])
        chunks = other.embed_chunks([visit.sample.chunks[visit.chunk_id] for visit in rollout.visits])
        positions = [
            chunk_positions(other.config, v.sample.mode, len(v.sample.chunks), v.state.picked)[v.chunk_id]
            for v in rollout.visits
        ]
        heads = batched_head_q_values(states, chunks[:, None], np.array(positions)[:, None])[:, 0]
        expected = temporal_difference_loss(heads, targets, twin_heads)
        expected.backward()
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=TOLERANCE)
        mine, theirs = gradients_of(pair), gradients_of(other)
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-4
        assert all(weight.grad is None for weight in pair.target_state.model.parameters())
        assert "imitation" not in figures
        assert figures["td_loss"] == pytest.approx(float(loss.detach()))
        assert figures["return"] == pytest.approx(float(targets.mean()), abs=TOLERANCE)
        assert figures["q"] == pytest.approx(float(picked_scores(rollout).mean()), abs=TOLERANCE)
        assert figures["td_error"] == pytest.approx(
            float((heads.detach().sum(1) - targets).abs().mean()), abs=TOLERANCE
        )
        assert figures["reward"] == pytest.approx(np.mean([visit.reward for visit in rollout.visits]))
        assert figures["most"] == pytest.approx(np.mean([REWARD.most(visit.sample) for visit in rollout.visits]))

    @pytest.mark.parametrize("reuse_states", [True, False])
    def test_alternatives_are_valued_by_what_they_would_lead_to(self, tiny_encoder: Path, reuse_states: bool) -> None:
        """Of each state's best other chunks: reward and discounted value of the state after, from the definition."""
        pair, other = tiny_pair(tiny_encoder), tiny_pair(tiny_encoder)
        fields = {"reuse_states": reuse_states, "clip_values": False}
        loss, figures, _, _ = self.run(pair, num_alternatives=2, **fields)
        loss.backward()
        without, expected_figures, _, _ = self.run(other, **fields)
        rollout, settings, model = self.same_rollout(other), PQNSettings(**fields), public_model(other)
        states, chunks, places, targets = [], [], [], []
        for visit, scores in zip(rollout.visits, rollout.scores, strict=True):
            limit = next(limit for sample, limit in EPISODES if sample.id == visit.sample.id)
            left = set(range(len(visit.sample.chunks))) - {*visit.state.picked, visit.chunk_id}
            for chunk in sorted(left, key=lambda chunk: (-scores[chunk], chunk))[:2]:
                picked = (*visit.state.picked, chunk)
                last = len(picked) == min(limit, len(visit.sample.chunks))
                [feedback] = REWARD.judge([Outcome(visit.sample, picked, last)])
                value = 0.0
                if not last and not feedback.settled:
                    after = visit.state.append(chunk, visit.sample.chunks[chunk])
                    heads = plain_heads(target_model(other), after, visit.sample, model)
                    value = plain_value(heads, [c for c in range(len(heads)) if c not in picked], 0.3, settings)
                targets.append(feedback.reward + settings.gamma * value)
                states.append(visit.state.render(other.config.order_in(visit.sample.mode)))
                chunks.append(visit.sample.chunks[chunk])
                positions = chunk_positions(
                    other.config, visit.sample.mode, len(visit.sample.chunks), visit.state.picked
                )
                places.append([positions[chunk]])
        heads = batched_head_q_values(
            other.embed_states(states), other.embed_chunks(chunks)[:, None], np.array(places)
        )[:, 0]  # fmt: skip
        goals = torch.tensor(targets, dtype=torch.float32)
        expected = without + temporal_difference_loss(heads, goals)
        expected.backward()
        assert len(targets) > 30
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=TOLERANCE)
        mine, theirs = gradients_of(pair), gradients_of(other)
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-4
        error = float((heads.detach().sum(1) - goals).abs().mean())
        assert figures == pytest.approx({**expected_figures, "other_error": error}, abs=TOLERANCE)

    def test_states_may_be_embedded_once_or_twice(self, tiny_encoder: Path) -> None:
        found = []
        for reuse_states in (True, False):
            pair = tiny_pair(tiny_encoder)
            loss, _, _, log_temperature = self.run(pair, 0.5, 0.1, num_updates=2, reuse_states=reuse_states)
            loss.backward()
            found.append((float(loss.detach()), gradients_of(pair), log_temperature.grad))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
        assert float((found[0][1] - found[1][1]).norm() / found[1][1].norm()) < 1e-6
        assert float(found[0][2]) == pytest.approx(float(found[1][2]), rel=1e-5)

    @pytest.mark.parametrize("most", [4, 512])
    def test_with_imitation(self, tiny_encoder: Path, most: int) -> None:
        pair = tiny_pair(tiny_encoder)
        alone = self.run(pair)[0]
        loss, figures, _, log_temperature = self.run(pair, 0.7, 0.2, max_candidates=most)
        assert log_temperature is not None
        expected = plain_imitation(pair, self.same_rollout(pair), 0.2, most)
        assert expected > 0.1
        assert figures["imitation"] == pytest.approx(expected, rel=1e-4)
        assert float(loss.detach()) == pytest.approx(float(alone.detach()) + 0.7 * expected, rel=1e-4)
        loss.backward()
        assert float(log_temperature.grad.abs()) > 0

    @pytest.mark.parametrize(("weight", "temperature"), [(0.0, 0.2), (0.7, None)])
    def test_without_imitation(self, tiny_encoder: Path, weight: float, temperature: float | None) -> None:
        pair = tiny_pair(tiny_encoder)
        loss, figures, _, log_temperature = self.run(pair, weight, temperature)
        assert "imitation" not in figures
        assert float(loss.detach()) == figures["td_loss"] == self.run(pair)[1]["td_loss"]
        loss.backward()
        assert log_temperature is None or log_temperature.grad is None

    def test_imitation_has_nothing_to_say_of_withheld_facts(self, tiny_encoder: Path) -> None:
        class Blind(SupportingFactsReward):
            def judge(self, outcomes: Any) -> Any:
                assert all(outcome.sample.supporting is None for outcome in outcomes)
                return super().judge([Outcome(story(supporting=(0,)), o.picked, o.last) for o in outcomes])

            def most(self, sample: Sample) -> float:
                return 1.0

        pair, reward = tiny_pair(tiny_encoder), Blind()
        log_temperature = torch.nn.Parameter(torch.tensor(0.0))
        learner = PQNLearner(pair, cache_of(pair), None, reward, PQNSettings(), log_temperature)
        envs = VectorEnv(reward, 2, lambda env: (story(supporting=None), 3))
        loss, figures = learner.loss(envs, streams_of(2), 0.3, 0.5, Stopwatch())
        assert figures["imitation"] == 0
        assert float(loss.detach()) == figures["td_loss"]
        loss.backward()

    @pytest.mark.parametrize("fresh_chunks", [0, 2, 5, 50])
    def test_picks_then_right_chunks_then_likely_mistakes_are_embedded_again(
        self, tiny_encoder: Path, fresh_chunks: int
    ) -> None:
        pair = tiny_pair(tiny_encoder)
        learner = learner_of(pair, torch.nn.Parameter(torch.tensor(-1.0)), num_steps=2, fresh_chunks=fresh_chunks)
        (rows,) = learner._cache.rows_of([STORY])
        stale = learner._cache.table[rows] + 0.01
        learner._cache.store(rows, stale)
        streams = streams_of(2)
        envs = VectorEnv(REWARD, 2, lambda env: (story(supporting=(8, 9, 10, 11)), 4))
        scores: list[np.ndarray] = []
        targets = learner.targets
        learner.targets = lambda rollout, alpha: (scores.append(rollout.scores), targets(rollout, alpha))[1]
        learner.loss(envs, streams, 0.01, 0.5, Stopwatch())
        picked = {pick for state in envs.states for pick in state.picked}
        right = sorted({8, 9, 10, 11} - picked)
        # The temperature is low enough for the best of all states' mistakes to have the most of the probability.
        mass = np.exp((scores[0] - scores[0].max(1, keepdims=True)) / np.exp(-1.0))
        mistakes = sorted(set(range(len(STORY))) - picked - {8, 9, 10, 11}, key=lambda chunk: -mass[:, chunk].sum())
        fresh = (learner._cache.table[rows] != stale).any(1).numpy()
        again = set(np.flatnonzero(fresh))
        assert again == picked | set([*right, *mistakes][:fresh_chunks])
        expected = pair.embed_chunks(STORY).detach()
        torch.testing.assert_close(learner._cache.table[rows][fresh], expected[fresh], rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize("reuse_states", [True, False])
    def test_dropout_is_in_the_gradient_pass_alone(self, tiny_encoder: Path, reuse_states: bool) -> None:
        pair, clean = tiny_pair(tiny_encoder, dropout=0.1), tiny_pair(tiny_encoder)
        seen: list[np.ndarray] = []
        learner = learner_of(pair, num_steps=4, reuse_states=reuse_states)
        targets = learner.targets

        def noted(rollout: Rollout, alpha: float) -> tuple[torch.Tensor, np.ndarray]:
            seen.extend([rollout.scores, targets(rollout, alpha)[0].numpy()])
            return targets(rollout, alpha)

        learner.targets = noted
        loss, _ = learner.loss(VectorEnv(REWARD, 4, in_turn()), streams_of(4), 0.3, 0.0, Stopwatch())
        rollout = rollout_of(clean, VectorEnv(REWARD, 4, in_turn()), streams_of(4), 4)
        np.testing.assert_allclose(seen[0], rollout.scores, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(seen[1], plain_targets(clean, rollout, 0.3, PQNSettings()), rtol=0, atol=TOLERANCE)
        loss.backward()
        envs = VectorEnv(REWARD, 4, in_turn())
        without = learner_of(clean, num_steps=4).loss(envs, streams_of(4), 0.3, 0.0, Stopwatch())[0]
        assert abs(float(loss.detach()) - float(without.detach())) > 1e-3


@pytest.mark.parametrize("value", ["hard", "soft"])
def test_learns_from_rewards_alone(tiny_encoder: Path, value: Any) -> None:
    pair = tiny_pair(tiny_encoder)
    pair.move_targets(1.0)
    reward = SupportingFactsReward(per_fact_reward=0.5)
    question = story(0, (0, 3))
    learner = PQNLearner(pair, cache_of(pair), None, reward, PQNSettings(num_steps=3, value=value))
    envs, streams = VectorEnv(reward, 8, lambda env: (question, 3)), streams_of(8, seed=1)
    optimizer = torch.optim.AdamW(pair.trainable().values(), lr=1e-2)
    assert set(greedy_picks(pair, [(question, 2)])[0].chunk_ids) != {0, 3}
    rewards = []
    for update in range(45):
        if update % 5 == 0:
            learner._cache.clear()
        optimizer.zero_grad()
        loss, figures = learner.loss(envs, streams, 0.05, 0.0, Stopwatch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pair.trainable().values(), 2.0)
        optimizer.step()
        pair.move_targets(0.05)
        rewards.append(figures["reward"])
    # Both facts in the first two of three picks earn 2 in all: 2 / 3 per pick.
    assert np.mean(rewards[:3]) < 0.45
    assert np.mean(rewards[-10:]) > 0.6
    (picks,) = greedy_picks(pair, [(question, 3)])
    assert set(picks.chunk_ids[:2]) == {0, 3}
    assert picks.q_values[:2] == pytest.approx([0.5 + 0.99 * 1.5, 1.5], abs=0.3)
    assert picks.q_values[2] < 0.5

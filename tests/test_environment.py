"""The decision process: episodes, environments side by side, checkpoints; and a rollout of the paper's code."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever.errors import RewardError
from qrag_retriever.state import RetrievalState
from qrag_retriever.training.data import Sample
from qrag_retriever.training.environment import RetrievalEnv, Transition, VectorEnv
from qrag_retriever.training.evaluation import Picks, returns_of
from qrag_retriever.training.rewards import Feedback, Outcome, SupportingFactsReward

ROLLOUT = json.loads((Path(__file__).parent / "golden" / "lambda_returns.json").read_text())["rollout"]


def sample(number: int = 0, num_chunks: int = 5) -> Sample:
    chunks = tuple(f"chunk {i} of {number}" for i in range(num_chunks))
    return Sample(f"s{number}", f"question {number}?", chunks, (0, 2), (("a", "b"), ("c",)), "corpus")


class CountingReward:
    """Pays the number of picks, ends or settles the episode as told, and keeps what it was shown."""

    def __init__(self, ends_with: int | None = None) -> None:
        self.ends_with = ends_with
        self.calls: list[list[Outcome]] = []

    def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
        self.calls.append(list(outcomes))
        ends = [outcome.picked[-1] == self.ends_with for outcome in outcomes]
        return [Feedback(float(len(o.picked)), end, settled=end) for o, end in zip(outcomes, ends, strict=True)]

    def unusable(self, sample: Sample) -> str | None:
        return None

    def most(self, sample: Sample) -> float:
        return float(len(sample.chunks))


class Draws:
    """Numbers the samples it draws and keeps for which environment."""

    def __init__(self, step_limit: int = 3, num_chunks: int = 5) -> None:
        self.step_limit, self.num_chunks = step_limit, num_chunks
        self.drawn_for: list[int] = []

    def __call__(self, env_number: int) -> tuple[Sample, int]:
        self.drawn_for.append(env_number)
        return sample(len(self.drawn_for), self.num_chunks), self.step_limit


class TestOneEpisode:
    def test_picks_move_the_state_until_the_step_limit(self) -> None:
        env = RetrievalEnv(3)
        assert env.reset(sample(), 2) == env.state == RetrievalState("question 0?")
        assert env.num_chunks == 5
        assert env.step(3) == Outcome(sample(), (3,), last=False)
        assert env.state == RetrievalState("question 0?", (3,), ("chunk 3 of 0",))
        assert env.available().tolist() == [True, True, True, False, True]
        assert not env.over
        assert env.step(0) == Outcome(sample(), (3, 0), last=True)
        assert env.over
        with pytest.raises(
            ValueError, match=r"over after 2 picks \(step limit 2, 5 chunks\); reset\(\) starts another"
        ):
            env.step(1)
        env.reset(sample(1))
        assert (env.state.picked, env.step_limit) == ((), 2)

    def test_ends_when_no_chunk_is_left(self) -> None:
        env = RetrievalEnv(10)
        env.reset(sample(num_chunks=2))
        assert [env.step(1).last, env.step(0).last] == [False, True]
        assert not env.available().any()

    def test_an_outcome_can_be_looked_at_before(self) -> None:
        env = RetrievalEnv(2)
        env.reset(sample())
        assert env.outcome(4).picked == (4,)
        assert env.state.picked == ()

    def test_bad_picks(self) -> None:
        env = RetrievalEnv(3)
        env.reset(sample())
        env.step(1)
        for chunk_id, message in (
            (1, "chunk 1 has been picked already"),
            (5, "no chunk 5; ids go from 0 to 4"),
            (-1, "-1"),
        ):
            with pytest.raises(ValueError, match=message):
                env.step(chunk_id)
        with pytest.raises(TypeError):
            env.step(1.0)
        assert env.state.picked == (1,)

    def test_bad_episodes(self) -> None:
        with pytest.raises(ValueError, match="step_limit must be at least 1"):
            RetrievalEnv(0)
        env = RetrievalEnv(3)
        with pytest.raises(ValueError, match="step_limit must be at least 1"):
            env.reset(sample(), 0)
        with pytest.raises(ValueError, match="sample 's0' has no chunks"):
            env.reset(sample(num_chunks=0))


class TestSideBySide:
    def test_transitions_hold_the_state_of_the_pick(self) -> None:
        vector = VectorEnv(CountingReward(), 2, Draws())
        before = vector.states
        assert [state.query for state in before] == ["question 1?", "question 2?"]
        first = vector.step([4, np.int64(0)])
        assert first == [Transition(before[0], 4, 1.0, False, False), Transition(before[1], 0, 1.0, False, False)]
        assert [state.picked for state in vector.states] == [(4,), (0,)]
        assert vector.step([1, 1])[0].state == RetrievalState("question 1?", (4,), ("chunk 4 of 1",))

    def test_a_step_is_judged_at_once(self) -> None:
        reward = CountingReward()
        vector = VectorEnv(reward, 3, Draws(step_limit=1))
        samples = vector.samples
        vector.step([0, 1, 2])
        assert reward.calls == [[Outcome(samples[i], (i,), last=True) for i in range(3)]]

    def test_episodes_end_at_the_step_limit_at_the_last_chunk_and_by_the_reward(self) -> None:
        limits = {0: (5, 2), 1: (2, 9), 2: (5, 9)}
        drawn: list[int] = []

        def draw(number: int) -> tuple[Sample, int]:
            drawn.append(number)
            return sample(len(drawn), limits[number][0]), limits[number][1]

        vector = VectorEnv(CountingReward(ends_with=3), 3, draw)
        assert not any(transition.ended for transition in vector.step([0, 0, 0]))
        last = vector.step([1, 1, 3])
        assert [transition.ended for transition in last] == [True, True, True]
        assert [transition.settled for transition in last] == [False, False, True]
        assert [transition.state.query for transition in last] == [f"question {i}?" for i in (1, 2, 3)]
        assert vector.states == [RetrievalState(f"question {i}?") for i in (4, 5, 6)]
        assert drawn == [0, 1, 2, 0, 1, 2]

    def test_only_what_ended_is_drawn_anew(self) -> None:
        draw = Draws()
        vector = VectorEnv(CountingReward(ends_with=3), 3, draw)
        vector.step([0, 3, 1])
        assert draw.drawn_for == [0, 1, 2, 1]
        assert [state.picked for state in vector.states] == [(0,), (), (1,)]

    @pytest.mark.parametrize("culprit", ["pick", "number", "reward", "draw"])
    def test_if_anything_raises_no_environment_has_moved(self, culprit: str) -> None:
        class Failing(CountingReward):
            def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
                if culprit == "reward":
                    raise RuntimeError("the reward")
                return super().judge(outcomes)

        draws = Draws(step_limit=1)

        def draw(number: int) -> tuple[Sample, int]:
            if culprit == "draw" and len(draws.drawn_for) == 3:
                raise RuntimeError("no sample left")
            return draws(number)

        vector = VectorEnv(Failing(), 2, draw)
        before = vector.states
        picks = {"pick": [0, 9], "number": [0]}.get(culprit, [0, 1])
        with pytest.raises((ValueError, RuntimeError)):
            vector.step(picks)
        assert vector.states == before

    def test_a_reward_that_does_not_judge_all(self) -> None:
        class Forgetful(CountingReward):
            def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
                return super().judge(outcomes)[:-1]

        with pytest.raises(RewardError, match=r"Forgetful\.judge returned 1 feedbacks for 2 outcomes"):
            VectorEnv(Forgetful(), 2, Draws()).step([0, 1])
        with pytest.raises(RewardError, match=r"Forgetful\.judge returned 0 feedbacks for 1 outcomes"):
            returns_of(Forgetful(), [Picks(Draws()(0)[0], (0,), (0.5,))], 0.9)

    @pytest.mark.parametrize("amount", [math.nan, math.inf, -0.5])
    def test_a_reward_that_pays_what_is_no_amount(self, amount: float) -> None:
        class Confused(CountingReward):
            def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
                return [Feedback(amount) for _ in outcomes]

        vector = VectorEnv(Confused(), 1, Draws())
        with pytest.raises(
            RewardError, match=r"Confused\.judge paid .* picks \[1\]; expected a finite number of at least"
        ):
            vector.step([1])
        assert vector.states[0].picked == ()

    def test_whatever_a_reward_raises_is_told_with_its_name(self) -> None:
        class Offline(CountingReward):
            def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
                raise ConnectionError("no route")

        with pytest.raises(RewardError, match=r"Offline\.judge failed: ConnectionError: no route"):
            VectorEnv(Offline(), 1, Draws()).step([1])

    def test_bad_numbers(self) -> None:
        with pytest.raises(ValueError, match="num_envs must be at least 1"):
            VectorEnv(CountingReward(), 0, Draws())
        with pytest.raises(ValueError, match="expected 2 chunk ids, one for each environment, got 3"):
            VectorEnv(CountingReward(), 2, Draws()).step([0, 1, 2])


class TestCheckpoints:
    @given(st.data())
    @settings(max_examples=50, deadline=None)
    def test_restored_environments_go_on_alike(self, data: st.DataObject) -> None:
        num_envs = data.draw(st.integers(1, 3))
        draw = Draws(step_limit=data.draw(st.integers(1, 4)))
        vector = VectorEnv(SupportingFactsReward(), num_envs, draw)

        def picks() -> list[int]:
            return [data.draw(st.sampled_from(np.flatnonzero(env.available()).tolist())) for env in vector.envs]

        for _ in range(data.draw(st.integers(0, 4))):
            vector.step(picks())
        written = json.loads(json.dumps(vector.to_dict()))
        other = Draws(draw.step_limit)
        other.drawn_for = list(draw.drawn_for)
        restored = VectorEnv(SupportingFactsReward(), num_envs, other, running=written)
        assert other.drawn_for == draw.drawn_for, "restoring draws nothing"
        for _ in range(4):
            assert restored.states == vector.states
            assert restored.samples == vector.samples
            chosen = picks()
            assert restored.step(chosen) == vector.step(chosen)
        assert restored.to_dict() == vector.to_dict()

    def test_only_what_json_has(self) -> None:
        vector = VectorEnv(CountingReward(), 1, Draws())
        vector.step([np.int64(3)])
        assert vector.to_dict() == json.loads(json.dumps(vector.to_dict()))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda d: d["episodes"].pop(), "expected 2 episodes, one for each environment, got 1"),
            (lambda d: d.pop("episodes"), r"not the episodes that to_dict\(\) returned: KeyError"),
            (lambda d: d["episodes"][0].update(picked=[0, 0]), "chunk 0 has been picked already"),
            (lambda d: d["episodes"][1].update(picked=[0, 1, 2]), "the episode with sample 's2' is over"),
            (lambda d: d["episodes"][1]["sample"].update(colour="red"), "colour"),
            (lambda d: d["episodes"][1].update(sample=["a"]), "AttributeError"),
        ],
    )
    def test_damaged_episodes_change_nothing(self, damage: Any, message: str) -> None:
        vector = VectorEnv(CountingReward(), 2, Draws())
        vector.step([0, 1])
        before, running = vector.to_dict(), vector.to_dict()
        damage(running)
        with pytest.raises(ValueError, match=message):
            vector.restore(running)
        assert vector.to_dict() == before
        vector.restore(before)


def test_a_rollout_of_the_paper_s_code() -> None:
    """Its picks, replayed: the same states, rewards (1e-5) and ends, and a fresh episode after an end."""
    num_envs, num_steps = len(ROLLOUT["actions"]), len(ROLLOUT["actions"][0])
    started = [[step for step in range(num_steps) if not picked[step]] for picked in ROLLOUT["picked_before"]]

    def draw(number: int) -> tuple[Sample, int]:
        step = started[number].pop(0)
        chunks = tuple(ROLLOUT["chunks"][i] for i in ROLLOUT["documents"][number][step])
        facts = tuple(sorted(ROLLOUT["support"][number][step]))
        return Sample(f"{number} {step}", ROLLOUT["question"], chunks, facts), ROLLOUT["max_steps"]

    reward = SupportingFactsReward(
        penalize_extra_steps=ROLLOUT["penalize_extra_steps"], terminate=not ROLLOUT["never_terminate"]
    )
    vector = VectorEnv(reward, num_envs, draw)
    for step in range(num_steps):
        transitions = vector.step([ROLLOUT["actions"][number][step] for number in range(num_envs)])
        for number, transition in enumerate(transitions):
            assert list(transition.state.picked) == ROLLOUT["picked_before"][number][step]
            assert transition.reward == pytest.approx(ROLLOUT["rewards"][number][step], abs=1e-5)
            assert transition.ended == (not ROLLOUT["not_done"][number][step])
    assert started == [[]] * num_envs

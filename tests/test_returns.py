"""Soft values and lambda-returns: the paper's code where it is right, the formulas where it is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever.training.returns import hard_value, lambda_returns, soft_value

GOLDEN = Path(__file__).parent / "golden"
SOFT = json.loads((GOLDEN / "soft_values.json").read_text())
LAMBDA = json.loads((GOLDEN / "lambda_returns.json").read_text())
TOLERANCE = 1e-5
CLOSE = {"rtol": 0, "atol": TOLERANCE}


def crowded_out(q_values: list[float], available: list[bool]) -> bool:
    """Whether a chunk that cannot be picked is among the best five of all."""
    order = sorted(range(len(q_values)), key=lambda i: -q_values[i])
    return not all(available[i] for i in order[: SOFT["top_k"]])


class TestSoftValueOfThePaper:
    @pytest.mark.parametrize("case", SOFT["cases"], ids=lambda case: f"{case['name']}-{case['alpha']}")
    def test_the_formula_over_available_chunks(self, case: dict) -> None:
        available = torch.tensor(case["available"])
        heads = [soft_value(torch.tensor(case[f"logits_{h}"]), available, case["alpha"]) for h in (1, 2)]
        expected = torch.tensor(case["not_reference_available_only_v_sum"])
        torch.testing.assert_close(sum(heads), expected, **CLOSE)
        # Head by head their code is right wherever no picked chunk or padding takes up a place among its best five.
        for head, theirs, logits in zip(
            heads, (case["v1"], case["v2"]), (case["logits_1"], case["logits_2"]), strict=True
        ):
            for row, q_values in enumerate(logits):
                if not crowded_out(q_values, case["available"][row]):
                    assert float(head[row]) == pytest.approx(theirs[row], abs=TOLERANCE)

    def test_where_their_code_parts_from_the_formula(self) -> None:
        """Picked chunks and padding use up places in its top 5, and stand for a value when they are far above."""
        names = {case["name"] for case in SOFT["cases"]}
        apart = {
            case["name"]
            for case in SOFT["cases"]
            for theirs, ours in zip(case["v_sum"], case["not_reference_available_only_v_sum"], strict=True)
            if abs(theirs - ours) > TOLERANCE
        }
        assert names - apart == {"12 chunks, all available", "1 chunk left of 6"}


finite = st.floats(-2, 2, width=32)


@st.composite
def chunk_values(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    num_chunks = draw(st.integers(1, 12))
    q_values = draw(st.lists(finite, min_size=num_chunks, max_size=num_chunks))
    available = draw(st.lists(st.booleans(), min_size=num_chunks, max_size=num_chunks))
    return torch.tensor([q_values]), torch.tensor([available])


class TestSoftValue:
    @given(chunk_values(), st.sampled_from([1e-4, 0.01, 0.5, 3.0]), st.integers(1, 7))
    @settings(max_examples=200, deadline=None)
    def test_is_the_log_sum_exp_of_the_best_available(self, values: tuple, alpha: float, top_k: int) -> None:
        q_values, available = values
        best = sorted(
            (q for q, ok in zip(q_values[0].tolist(), available[0].tolist(), strict=True) if ok), reverse=True
        )
        best = best[:top_k]
        expected = best[0] + alpha * math.log(sum(math.exp((q - best[0]) / alpha) for q in best)) if best else 0.0
        assert float(soft_value(q_values, available, alpha, top_k)) == pytest.approx(expected, abs=1e-6)

    @given(chunk_values(), st.floats(1e-4, 2), st.floats(1, 10))
    @settings(max_examples=200, deadline=None)
    def test_lies_between_the_maximum_and_alpha_log_k_above_it(
        self, values: tuple, alpha: float, factor: float
    ) -> None:
        q_values, available = values
        soft, hard = float(soft_value(q_values, available, alpha)), float(hard_value(q_values, available))
        assert hard - 1e-6 <= soft <= hard + alpha * math.log(5) + 1e-6
        warmer = float(soft_value(q_values, available, alpha * factor))
        assert warmer >= soft - 1e-6, "a higher temperature never lowers it"

    @given(chunk_values())
    @settings(max_examples=100, deadline=None)
    def test_goes_to_the_hard_value_as_alpha_goes_to_zero(self, values: tuple) -> None:
        q_values, available = values
        best = [q for q, ok in zip(q_values[0].tolist(), available[0].tolist(), strict=True) if ok]
        assert float(hard_value(q_values, available)) == (max(best) if best else 0.0)
        for alpha in (1e-2, 1e-4, 1e-6):
            torch.testing.assert_close(
                soft_value(q_values, available, alpha), hard_value(q_values, available), rtol=0, atol=1.7 * alpha + 1e-6
            )

    def test_small_temperatures_keep_float32_digits(self) -> None:
        """Q / alpha is about 10,000 here, whose exponential no float holds."""
        q_values = torch.tensor([[0.87654321, 0.87654321, 0.1]])
        soft = soft_value(q_values, torch.ones(1, 3, dtype=torch.bool), alpha=1e-4)
        assert float(soft) == pytest.approx(0.87654321 + 1e-4 * math.log(2), abs=1e-7)

    @pytest.mark.parametrize("value_of", [hard_value, lambda q, ok: soft_value(q, ok, 0.01)], ids=["hard", "soft"])
    def test_what_cannot_be_picked_has_no_effect(self, value_of) -> None:
        q_values = torch.tensor([[0.5, torch.nan, 0.2], [torch.inf, 0.5, 0.2], [torch.nan, 9.0, -torch.inf]])
        available = torch.tensor([[True, False, True], [False, True, True], [False, False, False]])
        values = value_of(q_values, available)
        assert values[:2].tolist() == pytest.approx([0.5, 0.5], abs=TOLERANCE)
        assert float(values[2]) == 0.0, "nothing is available"

    def test_no_gradient_and_no_lower_precision(self) -> None:
        q_values = torch.rand(2, 6, requires_grad=True)
        available = torch.ones(2, 6, dtype=torch.bool)
        assert not soft_value(q_values, available, 0.1).requires_grad
        assert not hard_value(q_values, available).requires_grad
        assert soft_value(q_values.bfloat16(), available, 0.1).dtype == torch.float32
        assert soft_value(q_values.double(), available, 0.1).dtype == torch.float64

    def test_no_chunks_and_no_states(self) -> None:
        assert soft_value(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool), 0.1).tolist() == [0, 0, 0]
        assert soft_value(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool), 0.1).shape == (0,)

    def test_bad_arguments(self) -> None:
        q_values, available = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"shape \(B, N\), got \(2, 3\) and \(2, 2\)"):
            soft_value(q_values, available[:, :2], 0.1)
        with pytest.raises(ValueError, match=r"shape \(B, N\)"):
            hard_value(q_values[0], available[0])
        with pytest.raises(TypeError, match=r"must be bool, got torch\.float32"):
            soft_value(q_values, available.float(), 0.1)
        for alpha in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=r"alpha must be .* above 0"):
                soft_value(q_values, available, alpha)
        with pytest.raises(ValueError, match="top_k must be at least 1"):
            soft_value(q_values, available, 0.1, top_k=0)


class TestLambdaReturnsOfThePaper:
    @pytest.mark.parametrize("case", LAMBDA["cases"], ids=lambda case: f"{case['name']}-{case['Lambda']}")
    def test_the_formula(self, case: dict) -> None:
        """Theirs bootstraps the last step but one from one state too far, and lambda carries the error back.

        In column T-3 it takes ``not_done[T-2] * V[T-1]`` where the formula has ``V[T-2]``. Nothing else is in the way:
        the columns that differ are those that the reference's notes name, and the others agree.
        """
        values, rewards, not_done = (torch.tensor(case[name]) for name in ("soft_values", "rewards", "not_done"))
        ours = lambda_returns(rewards[:, :-1], values[:, 1:], not_done[:, :-1], case["gamma"], case["Lambda"])
        torch.testing.assert_close(ours, torch.tensor(case["not_reference_textbook_targets"]), **CLOSE)
        apart = (ours - torch.tensor(case["targets_reference"])).abs().amax(0) > TOLERANCE
        assert apart.nonzero().flatten().tolist() == case["columns_that_differ"]

    def test_the_slip_is_there(self) -> None:
        differing = {case["name"] for case in LAMBDA["cases"] if case["columns_that_differ"]}
        assert differing == {"no episode ends", "episodes of 4 steps, reward at the end"}
        assert not any(case["columns_that_differ"] for case in LAMBDA["cases"] if case["Lambda"] == 1.0)

    @pytest.mark.parametrize("lam", ["0.0", "0.5", "0.65", "1.0"])
    def test_a_whole_rollout(self, lam: str) -> None:
        rollout = LAMBDA["rollout"]
        values, rewards, not_done = (torch.tensor(rollout[name]) for name in ("soft_values", "rewards", "not_done"))
        ours = lambda_returns(rewards[:, :-1], values[:, 1:], not_done[:, :-1], rollout["gamma"], float(lam))
        theirs = torch.tensor(rollout["targets_by_lambda"][lam])
        if lam == "1.0":
            torch.testing.assert_close(ours, theirs, **CLOSE)
        else:  # the same slip: they take V = 0 for a state from which nothing was found, where the formula has V[3]
            torch.testing.assert_close(ours[:, 3], theirs[:, 3], **CLOSE)
            weight = rollout["gamma"] * (1 - float(lam))
            torch.testing.assert_close(ours[:, 2] - theirs[:, 2], weight * values[:, 3], **CLOSE)


def plain_returns(rewards: list, next_values: list, not_done: list, gamma: float, lam: float) -> list[float]:
    """One environment, by the definition: a weighted mean of n-step returns."""
    num_steps = len(rewards)
    returns = []
    for start in range(num_steps):
        n_step, discount, collected = [], 1.0, 0.0
        for step in range(start, num_steps):
            collected += discount * rewards[step]
            discount *= gamma * not_done[step]
            n_step.append(collected + discount * next_values[step])
        weights = [(1 - lam) * lam**n for n in range(len(n_step) - 1)] + [lam ** (len(n_step) - 1)]
        returns.append(sum(weight * value for weight, value in zip(weights, n_step, strict=True)))
    return returns


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[list, list, list]:
    num_steps = draw(st.integers(1, 8))

    def row(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=num_steps, max_size=num_steps))

    return row(finite), row(finite), row(st.sampled_from([0, 1]))


shares = st.floats(0, 1)


class TestLambdaReturns:
    @given(rollouts(), shares, shares)
    @settings(max_examples=200, deadline=None)
    def test_is_the_weighted_mean_of_n_step_returns(self, rollout: tuple, gamma: float, lam: float) -> None:
        ours = lambda_returns(*(torch.tensor([row], dtype=torch.float64) for row in rollout), gamma, lam)
        assert ours[0].tolist() == pytest.approx(plain_returns(*rollout, gamma, lam), abs=1e-9)

    @given(rollouts(), shares)
    @settings(max_examples=100, deadline=None)
    def test_lambda_one_is_monte_carlo_and_zero_one_step(self, rollout: tuple, gamma: float) -> None:
        rewards, next_values, not_done = (torch.tensor([row], dtype=torch.float64) for row in rollout)
        one_step = lambda_returns(rewards, next_values, not_done, gamma, 0.0)
        torch.testing.assert_close(one_step, rewards + gamma * not_done * next_values)
        later, expected = float(next_values[0, -1]), []
        for reward, going_on in zip(reversed(rollout[0]), reversed(rollout[2]), strict=True):
            later = reward + gamma * going_on * later
            expected.append(later)
        monte_carlo = lambda_returns(rewards, next_values, not_done, gamma, 1.0)
        assert monte_carlo[0].tolist() == pytest.approx(expected[::-1], abs=1e-9)

    def test_by_hand(self) -> None:
        returns = lambda_returns(
            torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.5, 9.0, 0.4]]), torch.tensor([[1, 0, 1]]), 0.9, 0.5
        )
        assert returns[0].tolist() == pytest.approx([0.9 * (0.5 * 0.5 + 0.5 * 1.0), 1.0, 0.9 * 0.4])

    def test_environments_do_not_mix(self) -> None:
        rows = [torch.rand(3, 5), torch.rand(3, 5), torch.ones(3, 5)]
        together = lambda_returns(*rows, 0.9, 0.7)
        for env in range(3):
            torch.testing.assert_close(
                together[env : env + 1], lambda_returns(*(r[env : env + 1] for r in rows), 0.9, 0.7)
            )

    @pytest.mark.parametrize("nothing", [torch.nan, torch.inf])
    def test_the_value_after_an_end_may_be_anything(self, nothing: float) -> None:
        rewards, not_done = torch.tensor([[0.0, 1.0]]), torch.tensor([[True, False]])
        returns = lambda_returns(rewards, torch.tensor([[0.5, nothing]]), not_done, 1.0, 0.5)
        assert returns.tolist() == [[0.75, 1.0]]

    def test_no_gradient_and_the_inputs_stay(self) -> None:
        rewards, next_values = torch.rand(2, 3, requires_grad=True), torch.rand(2, 3, requires_grad=True)
        before = next_values.detach().clone()
        returns = lambda_returns(rewards, next_values, torch.zeros(2, 3), 0.9, 0.5)
        assert not returns.requires_grad
        assert torch.equal(next_values, before)
        assert lambda_returns(rewards.bfloat16(), next_values.bfloat16(), torch.ones(2, 3), 1, 1).dtype == torch.float32

    def test_no_steps(self) -> None:
        assert lambda_returns(*[torch.zeros(2, 0)] * 3, 0.9, 0.5).shape == (2, 0)

    def test_bad_arguments(self) -> None:
        rows = [torch.zeros(2, 3)] * 3
        with pytest.raises(ValueError, match=r"\(num_envs, num_steps\), got \(2, 3\), \(2, 2\) and \(2, 3\)"):
            lambda_returns(rows[0], rows[1][:, :2], rows[2], 0.9, 0.5)
        with pytest.raises(ValueError, match=r"\(num_envs, num_steps\)"):
            lambda_returns(*[torch.zeros(3)] * 3, 0.9, 0.5)
        for gamma, lam, name in ((1.1, 0.5, "gamma"), (-0.1, 0.5, "gamma"), (0.9, 1.5, "lam"), (0.9, math.nan, "lam")):
            with pytest.raises(ValueError, match=f"{name} must be from 0 to 1"):
                lambda_returns(*rows, gamma, lam)

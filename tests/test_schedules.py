"""Schedules: the paper's learning rates where they are continuous, and where we part from them."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrag_retriever.training.schedules import imitation_weight, learning_rate_factor, temperature

CASES = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())["cases"]


def case_id(case: dict) -> str:
    return f"{case['scheduler']}-{case['total']}-{case['warmup']}-{case['ratio']}"


class TestOfThePaper:
    @pytest.mark.parametrize("case", CASES, ids=case_id)
    def test_learning_rates(self, case: dict) -> None:
        warmup, ratio = case["warmup"], case["ratio"]
        for row in case["rows"]:
            update = row["optimizer_steps_done"]
            ours = learning_rate_factor(update, warmup, case["total"], case["scheduler"], ratio)
            if case["scheduler"] == "linear" and update < warmup:
                # Their linear warm-up is scaled by 1 - ratio, and jumps from there to 1 when it is over.
                assert (1 - ratio) * ours == pytest.approx(row["factor"], abs=1e-9)
            else:
                assert ours == pytest.approx(row["factor"], abs=1e-9)
                assert ours * case["base_lr"] == pytest.approx(row["lr"], abs=1e-13)

    def test_their_linear_warm_up_jumps(self) -> None:
        case = next(case for case in CASES if (case["scheduler"], case["total"], case["ratio"]) == ("linear", 100, 0.1))
        theirs = {row["optimizer_steps_done"]: row["factor"] for row in case["rows"]}
        assert theirs[10] - theirs[9] > 0.18
        ours = {update: learning_rate_factor(update, 10, 100, "linear", 0.1) for update in (9, 10)}
        assert ours[10] - ours[9] == pytest.approx(0.1)

    @pytest.mark.parametrize("case", CASES, ids=case_id)
    def test_their_temperature_follows_the_learning_rate(self, case: dict) -> None:
        """Which we do not: it falls to start / warmup with the first update, climbs back, and ends at ratio or 0."""
        warmup, total, start = case["warmup"], case["total"], case["alpha_start"]
        theirs = {row["optimizer_steps_done"]: row["alpha_after"] for row in case["rows"]}
        assert theirs[total] == pytest.approx(start * case["ratio"])
        assert temperature(total, warmup, total, start) == pytest.approx(start / 10)
        if warmup:
            assert theirs[1] == pytest.approx(start * learning_rate_factor(1, warmup, total), rel=0.11)
            assert temperature(1, warmup, total, start) == start


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int]:
    total = draw(st.integers(1, 300))
    return draw(st.integers(0, total)), total


@given(runs(), st.sampled_from(["linear", "cosine"]), st.floats(0, 1))
def test_learning_rate_rises_to_one_and_falls_to_the_ratio_without_a_jump(run: tuple, kind: str, ratio: float) -> None:
    warmup, total = run
    factors = [learning_rate_factor(update, warmup, total, kind, ratio) for update in range(total + 3)]
    assert factors[:warmup] == [update / warmup for update in range(warmup)]
    if warmup < total:
        assert factors[warmup] == 1.0
        steepest = math.pi / 2 / (total - warmup)
        assert all(-1e-12 <= a - b <= steepest for a, b in pairwise(factors[warmup:]))
    assert factors[total:] == [ratio] * 3


@given(runs(), st.floats(1e-3, 1), st.floats(0.01, 1))
def test_temperature_is_constant_then_linear(run: tuple, start: float, end_share: float) -> None:
    warmup, total = run
    alphas = [temperature(update, warmup, total, start, end_share) for update in range(total + 3)]
    assert alphas[:warmup] == [start] * warmup
    assert alphas[total:] == pytest.approx([start * end_share] * 3)
    for (a, b), (c, d) in pairwise(pairwise(alphas[warmup : total + 1])):
        assert a - b == pytest.approx(c - d, abs=1e-12), "equal steps"


def test_temperature_by_hand() -> None:
    assert [temperature(update, 10, 110, 0.05) for update in (0, 10, 60, 110, 500)] == pytest.approx(
        [0.05, 0.05, 0.0275, 0.005, 0.005]
    )


def test_imitation_fades() -> None:
    assert [imitation_weight(update, 0.4, 100) for update in (0, 25, 99, 100, 1000)] == pytest.approx(
        [0.4, 0.3, 0.004, 0.0, 0.0]
    )
    assert imitation_weight(1000, 0.4, None) == 0.4
    assert imitation_weight(0, 0.4, 0) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learning_rate_factor(-1, 0, 10), "update and warmup must be at least 0"),
        (lambda: learning_rate_factor(0, 11, 10), "a warm-up of 11 updates does not fit into a run of 10"),
        (lambda: learning_rate_factor(0, 0, 10, ratio=1.5), "ratio must be from 0 to 1"),
        (lambda: learning_rate_factor(0, 0, 10, "step"), "kind must be 'linear' or 'cosine', got 'step'"),
        (lambda: temperature(0, 0, 10, 0.0), "start must be a finite number above 0"),
        (lambda: temperature(0, 0, 10, 0.1, 0.0), "end_share must be above 0"),
        (lambda: temperature(0, 11, 10, 0.1), "does not fit"),
        (lambda: imitation_weight(-1, 1.0, 10), "must be at least 0"),
        (lambda: imitation_weight(0, -1.0, 10), "must be at least 0"),
        (lambda: imitation_weight(0, 1.0, -1), "must be at least 0"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

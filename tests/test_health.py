"""Warnings before PQN collapses: each sign is told once, and a healthy run is told nothing."""

from __future__ import annotations

import numpy as np

from qrag_retriever.training.health import Health, fallen


def run(health: Health, losses: np.ndarray, q: float = 0.5, most: float = 1.0) -> list[str]:
    return [
        text for loss in losses for text in health.update({"td_loss": float(loss), "q": q, "most": most})
    ]  # fmt: skip


def test_a_steady_run_is_told_nothing() -> None:
    losses = 0.1 + 0.01 * np.random.default_rng(0).standard_normal(200)
    health = Health()
    assert run(health, losses) == []
    assert [fallen((0.5, 0.6, 0.55)[:count]) for count in (1, 2, 3)] == [[], [], []]


def test_values_above_what_the_reward_can_pay_are_told_once_with_what_to_do() -> None:
    (warning,) = run(Health(), np.full(100, 0.1), q=1.3)
    assert "clip_values" in warning
    assert "above the largest return" in warning


def test_values_are_compared_with_the_reward_and_not_with_one() -> None:
    assert run(Health(), np.full(100, 0.1), q=1.3, most=1.5) == []


def test_a_loss_that_becomes_noise_is_told_once() -> None:
    random = np.random.default_rng(0)
    quiet, wild = 0.1 + 0.01 * random.standard_normal(40), 0.5 + 0.3 * random.standard_normal(60)
    (warning,) = run(Health(), np.concatenate([quiet, wild]))
    assert "noisy" in warning
    assert "pqn.tau" in warning


def test_a_fall_in_validation_is_told_once() -> None:
    scores = (0.9, 0.95, 0.84, 0.5)
    told = [text for count in range(1, 5) for text in fallen(scores[:count])]
    assert len(told) == 1
    assert "0.950 to 0.840" in told[0]

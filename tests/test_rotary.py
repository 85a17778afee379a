from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever.positions import relative_runs
from qrag_retriever.q_values import head_q_values, q_values
from qrag_retriever.rotary import rotate_backward, rotate_forward


def by_complex_numbers(vector: np.ndarray, position: int) -> np.ndarray:
    """The definition: each half by itself, neighbouring pairs, theta 10000, in float64."""
    halves = vector.reshape(2, -1, 2).astype(np.float64)
    pairs = halves[..., 0] + 1j * halves[..., 1]
    turned = pairs * np.exp(1j * position * 10000.0 ** (-2 * np.arange(pairs.shape[1]) / (2 * pairs.shape[1])))
    return np.stack([turned.real, turned.imag], axis=-1).reshape(-1)


@pytest.mark.parametrize("dim", [4, 32, 384])
@pytest.mark.parametrize("position", [0, 1, 18, 999, 4095, 4096, 200_018])
def test_rotation_follows_the_definition_at_any_position(dim: int, position: int) -> None:
    vector = np.random.default_rng(dim).standard_normal(dim).astype(np.float32)
    rotated = rotate_forward(vector, np.array([position]))[0]
    np.testing.assert_allclose(rotated, by_complex_numbers(vector, position), atol=1e-6 * np.abs(vector).max() * 10)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 5000), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_turning_the_state_back_equals_turning_the_chunk(seed: int, positions: list[int]) -> None:
    random = np.random.default_rng(seed)
    state, chunk = random.standard_normal((2, 64)).astype(np.float32)
    places = np.array(positions)
    forward = rotate_forward(chunk, places) @ state
    backward = rotate_backward(state, places) @ chunk
    np.testing.assert_allclose(forward, backward, atol=1e-4)


def test_a_dimension_without_pairs_in_both_heads_is_an_error() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        rotate_forward(np.zeros(6, np.float32), np.array([1]))


class TestNumpyAndTorchAgree:
    """One implementation serves both; this is its parity test."""

    @pytest.fixture
    def case(self) -> tuple[np.ndarray, np.ndarray, object]:
        random = np.random.default_rng(3)
        return (
            random.standard_normal(32).astype(np.float32),
            random.standard_normal((50, 32)).astype(np.float32),
            relative_runs(50, [7, 30]),
        )

    def test_rotation(self, case: tuple) -> None:
        state, _, runs = case
        ours = rotate_backward(torch.from_numpy(state), runs.positions)
        np.testing.assert_allclose(ours.numpy(), rotate_backward(state, runs.positions), atol=1e-6)

    def test_q_values(self, case: tuple) -> None:
        state, chunks, runs = case
        heads = head_q_values(torch.from_numpy(state), torch.from_numpy(chunks), runs)
        np.testing.assert_allclose(heads.numpy(), head_q_values(state, chunks, runs), atol=1e-5)
        np.testing.assert_allclose(q_values(state, chunks, runs), heads.sum(0).numpy(), atol=1e-5)

    def test_q_values_equal_rotating_every_chunk(self, case: tuple) -> None:
        state, chunks, runs = case
        turned = np.stack([by_complex_numbers(c, p) for c, p in zip(chunks, runs.expand(), strict=True)])
        np.testing.assert_allclose(q_values(state, chunks, runs), turned @ state, atol=1e-5)

    def test_gradients_reach_state_and_chunks(self, case: tuple) -> None:
        state, chunks = (torch.from_numpy(part).requires_grad_() for part in case[:2])
        q_values(state, chunks, case[2]).square().sum().backward()
        assert state.grad.abs().min() > 0
        assert chunks.grad.abs().sum(1).min() > 0

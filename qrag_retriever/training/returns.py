"""Values and targets: soft values of states, lambda-returns of rollouts. Pure tensors, no model, no gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qrag_retriever.checks import check_at_least_one


def soft_value(q_values: Tensor, available: Tensor, alpha: float, top_k: int = 5) -> Tensor:
    """Soft value of each state from the Q-values of one head: ``V[b] = alpha log sum_i exp(Q[b, i] / alpha)``.

    The sum runs over the ``top_k`` best available chunks, or over all available ones where there are fewer. What stands
    at chunks that are not available (picked ones, padding) has no effect, whatever it is.

    Args:
        q_values: Shape (B, N), one head's Q-values, in reward units.
        available: Shape (B, N), bool: what can still be picked.
        alpha: This head's temperature, above 0, in reward units; see `hard_value` for the limit at 0.
        top_k: Chunks that the policy chooses among, at least 1.

    Returns:
        Shape (B,), reward units, float32 or the input's wider type, no gradient; 0 where nothing is available.

    Raises:
        ValueError: If the shapes differ or are not (B, N), alpha is not above 0, or top_k is below 1.
        TypeError: If ``available`` is not bool.

    Source: Q-RAG (arXiv 2511.07328), Section 3, soft value. The paper's code takes the best of all chunks, and leaves
    out the picked ones and the padding afterwards, so that they use up places.
    """
    _check_state_values(q_values, available)
    check_at_least_one(top_k=top_k)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be a finite number above 0, got {alpha}; hard_value() is the limit at 0")
    best, anything = _best(q_values, available, top_k)
    highest = best[:, :1]
    # The highest is taken out first: exp(Q / alpha) overflows float32 already at Q = 1, alpha = 0.01.
    spread = ((best - highest) / alpha).exp().sum(-1).log()
    return torch.where(anything, highest[:, 0] + alpha * spread, 0.0)


def hard_value(q_values: Tensor, available: Tensor) -> Tensor:
    """Highest Q-value of the available chunks, 0 where there is none: the limit of `soft_value` as alpha goes to 0.

    Arguments, shapes and errors as in `soft_value`.
    """
    _check_state_values(q_values, available)
    best, anything = _best(q_values, available, 1)
    return torch.where(anything, best[:, 0], 0.0)


def lambda_returns(rewards: Tensor, next_values: Tensor, not_done: Tensor, gamma: float, lam: float) -> Tensor:
    """Mix n-step returns backwards: ``G[t] = r[t] + gamma * not_done[t] * ((1 - lam) * V[t+1] + lam * G[t+1])``.

    ``V[t+1]`` is ``next_values[:, t]``, and G past the last step is the last ``next_values``.

    Args:
        rewards: Shape (num_envs, num_steps), what the pick of each step earned.
        next_values: Shape (num_envs, num_steps); ``next_values[:, t]`` is the soft value of the state AFTER step t, in
            reward units. Where an episode ended it has no effect, whatever it is.
        not_done: Shape (num_envs, num_steps), bool or 0 and 1: 0 where the episode ended with step t. The step limit
            is such an end; the cut of a rollout is not.
        gamma: Discount per step, from 0 to 1.
        lam: Weight of longer returns, from 0 (one step) to 1 (as many as the rollout has).

    Returns:
        Shape (num_envs, num_steps), reward units, float32 or the inputs' wider type, no gradient.

    Raises:
        ValueError: If the three shapes differ or are not (num_envs, num_steps), or gamma or lam lies outside [0, 1].

    Source: PQN (arXiv 2407.04811), lambda-return targets; Q-RAG (arXiv 2511.07328), Section 3 and Appendix F. The
    authors' code of both bootstraps the last step but one from the value of one state too far.
    """
    shapes = [tuple(tensor.shape) for tensor in (rewards, next_values, not_done)]
    if len(shapes[0]) != 2 or len(set(shapes)) != 1:
        raise ValueError(
            "rewards, next_values and not_done must all have the shape (num_envs, num_steps), "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    for name, share in (("gamma", gamma), ("lam", lam)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {share}")
    dtype = _at_least_float32(torch.promote_types(rewards.dtype, next_values.dtype))
    rewards, next_values, going_on = rewards.detach().to(dtype), next_values.detach().to(dtype), not_done.bool()
    returns = torch.empty_like(rewards)
    for step in reversed(range(rewards.shape[1])):
        later = returns[:, step + 1] if step + 1 < rewards.shape[1] else next_values[:, step]
        mixed = (1 - lam) * next_values[:, step] + lam * later
        # Not a product with not_done: the value after an end may be anything, and 0 * nan is nan.
        returns[:, step] = rewards[:, step] + gamma * torch.where(going_on[:, step], mixed, 0.0)
    return returns


def _best(q_values: Tensor, available: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the best available Q-values (B, top_k or fewer), -inf where there are fewer, and which rows have any."""
    q_values = q_values.detach().to(_at_least_float32(q_values.dtype))
    if not q_values.shape[1]:
        q_values, available = q_values.new_zeros(len(q_values), 1), available.new_zeros(len(q_values), 1)
    masked = torch.where(available, q_values, -torch.inf)
    return masked.topk(min(top_k, masked.shape[1])).values, available.any(-1)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_state_values(q_values: Tensor, available: Tensor) -> None:
    if q_values.ndim != 2 or q_values.shape != available.shape:
        raise ValueError(
            "q_values and available must both have the shape (B, N), "
            f"got {tuple(q_values.shape)} and {tuple(available.shape)}"
        )
    if available.dtype != torch.bool:
        raise TypeError(f"available must be bool, got {available.dtype}; True is what can still be picked")

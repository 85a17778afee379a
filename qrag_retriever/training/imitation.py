"""Losses of imitation: the cross-entropy of picking a right chunk, and the squared error to closed-form returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def listwise_losses(
    q_values: torch.Tensor, available: torch.Tensor, right: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of picking any right chunk: logsumexp of all available minus logsumexp of the right ones.

    Args:
        q_values: Shape (B, N).
        available: Shape (B, N), bool.
        right: Shape (B, N), bool: available chunks that are right.
        temperature: Scalar; divides the Q-values.

    Returns:
        One loss for each state that has a right chunk, in their order.
    """
    counted = right.any(1)
    logits = q_values[counted] / temperature
    every = logits.masked_fill(~available[counted], -torch.inf).logsumexp(1)
    rights = logits.masked_fill(~right[counted], -torch.inf).logsumexp(1)
    return every - rights


def loss_of_samples(sample_ids: Sequence[str], losses: torch.Tensor) -> list[tuple[str, float]]:
    """Return the mean loss of each sample's states.

    Args:
        sample_ids: Of each state.
        losses: Of each state.
    """
    found: dict[str, list[float]] = {}
    for sample_id, loss in zip(sample_ids, losses.detach().tolist(), strict=True):
        found.setdefault(sample_id, []).append(loss)
    return [(sample_id, sum(own) / len(own)) for sample_id, own in found.items()]


def value_loss(
    head_values: torch.Tensor, available: torch.Tensor, right: torch.Tensor, labels: torch.Tensor, twin_heads: bool
) -> torch.Tensor:
    """Squared error of twice each head to the closed-form return; right chunks and the others weigh the same.

    Without the balance, hundreds of chunks that are noise would drown the few that matter. Of the others only values
    that are too high count: a detour of one pick costs but a part of the return (a quarter with one fact, an eighth
    with three), so fitting them from below would hold the Q-values of all noise just under those of the facts, against
    the cross-entropy, for chunks that are never picked.

    Args:
        head_values: Shape (B, N, 2).
        available: Shape (B, N), bool.
        right: Shape (B, N), bool.
        labels: Shape (B, 2): returns of a right pick and of any other.
        twin_heads: Whether each head is fitted, or only their sum.
    """
    targets = torch.where(right, labels[:, :1], labels[:, 1:])
    predicted = 2 * head_values if twin_heads else head_values.sum(-1, keepdim=True)
    surplus = predicted - targets.unsqueeze(-1)
    surplus = torch.where(right.unsqueeze(-1), surplus, surplus.clamp(min=0.0))
    errors = surplus.square().mean(-1)  # (B, N)
    others = available & ~right
    per_state = [(errors * chosen).sum(1) / chosen.sum(1).clamp(min=1) for chosen in (right.float(), others.float())]
    return (per_state[0] + per_state[1]).mean() / 2

"""Losses of imitation: the cross-entropy of picking a right chunk, and the squared error to closed-form returns."""

from __future__ import annotations

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


def value_loss(
    head_values: torch.Tensor, available: torch.Tensor, right: torch.Tensor, labels: torch.Tensor, twin_heads: bool,
    top_k: int = 5,
) -> torch.Tensor:  # fmt: skip
    """Squared error of twice each head to the closed-form return: of right chunks, and of the best of the others.

    What a state is worth, and when to stop, hangs on the highest Q-values alone. In a mean over all other chunks,
    hundreds that nobody would pick would hide the one that is too high where everything has been found.

    Of the others only values that are too high count: a detour of one pick costs but a part of the return (a quarter
    with one fact, an eighth with three), so fitting them from below would hold the Q-values of all noise just under
    those of the facts, against the cross-entropy, for chunks that are never picked.

    Args:
        head_values: Shape (B, N, 2).
        available: Shape (B, N), bool.
        right: Shape (B, N), bool.
        labels: Shape (B, 2): returns of a right pick and of any other.
        twin_heads: Whether each head is fitted, or only their sum.
        top_k: How many of the other chunks count, those with the highest Q-values: as many as the policy looks at.
    """
    targets = torch.where(right, labels[:, :1], labels[:, 1:])
    predicted = 2 * head_values if twin_heads else head_values.sum(-1, keepdim=True)
    surplus = predicted - targets.unsqueeze(-1)
    surplus = torch.where(right.unsqueeze(-1), surplus, surplus.clamp(min=0.0))
    errors = surplus.square().mean(-1)  # (B, N)
    others = _best(head_values.detach().sum(-1), available & ~right, top_k)
    per_state = [(errors * chosen).sum(1) / chosen.sum(1).clamp(min=1) for chosen in (right.float(), others.float())]
    return (per_state[0] + per_state[1]).mean() / 2


def _best(q_values: torch.Tensor, among: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the highest Q-values of each row, fewer where there are fewer: bool, shape (B, N)."""
    best = q_values.masked_fill(~among, -torch.inf).topk(min(count, q_values.shape[1]), dim=1).indices
    return torch.zeros_like(among).scatter(1, best, True) & among

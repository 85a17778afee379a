"""Q-values of all chunks in one state, from embeddings; numpy arrays and torch tensors alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qrag_retriever.positions import Runs
from qrag_retriever.rotary import check_dim, is_torch, neighbours, phase_rows, rotate_backward

if TYPE_CHECKING:
    import torch


def head_q_values(state_embedding: Any, chunk_embeddings: Any, runs: Runs) -> Any:
    """Score every chunk with each of the twin Q-heads.

    ``Q_h(s, i) = <s_h, R(p_i) a_i,h>``, computed as ``<R(-p) s_h, a_i,h>``, one rotated state per run of chunks.

    Args:
        state_embedding: Shape (D,), numpy array or torch tensor.
        chunk_embeddings: Shape (N, D), the same kind; not rotated.
        runs: Positions of the N chunks given the state's picks.

    Returns:
        Shape (2, N): the first and the second head; gradients flow through torch tensors.

    Source: Q-RAG (arXiv 2511.07328), Section 3.
    """
    num_chunks, dim = chunk_embeddings.shape
    rotated = rotate_backward(state_embedding, runs.positions).reshape(-1, 2, dim // 2)  # (R, 2, D/2)
    by_head = chunk_embeddings.reshape(num_chunks, 2, dim // 2)
    parts = [
        (by_head[start:stop] * rotated[run]).sum(-1)  # (n, 2)
        for run, (start, stop) in enumerate(zip(runs.edges[:-1], runs.edges[1:], strict=True))
    ]
    if is_torch(chunk_embeddings):
        import torch

        return torch.cat(parts).T
    return np.concatenate(parts).T


def q_values(state_embedding: Any, chunk_embeddings: Any, runs: Runs) -> Any:
    """Score every chunk: the sum of both heads, shape (N,). Arguments as in `head_q_values`."""
    return head_q_values(state_embedding, chunk_embeddings, runs).sum(0)


def batched_head_q_values(states: torch.Tensor, chunks: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
    """Score the chunks of many documents at once, each against its own state, with each of the twin Q-heads.

    ``Q[b, i, h] = <s_b,h, R(p_bi) a_bi,h>``: the same values as `head_q_values`, for many short documents, where a
    loop over runs would cost more than the arithmetic.

    Args:
        states: Shape (B, D), state embeddings.
        chunks: Shape (B, N, D), chunk embeddings, not rotated; or (N, D) where all states share one document.
        positions: Shape (B, N), integers: every chunk's position given its state's picks.

    Returns:
        Shape (B, N, 2); gradients flow to states and chunks.

    Source: Q-RAG (arXiv 2511.07328), Section 3.
    """
    import torch

    batch, num_chunks = positions.shape
    dim = states.shape[-1]
    if not positions.any():
        by_head = chunks.expand(batch, num_chunks, dim).reshape(batch, num_chunks, 2, dim // 2)
        return torch.einsum("bnhd,bhd->bnh", by_head, states.reshape(batch, 2, dim // 2))
    check_dim(dim)
    # Every state turned to each position that occurs, then looked up: chunks are many, positions few. An embedding
    # look-up and not indexing, because its gradient is summed in a fixed order.
    distinct, place = np.unique(positions, return_inverse=True)
    cos_table, sin_table, rows = phase_rows(distinct, dim)
    cos, sin = (torch.from_numpy(table[rows]).to(states.device, states.dtype) for table in (cos_table, sin_table))
    partners = states[:, torch.from_numpy(neighbours(dim))]
    rotated = (states.unsqueeze(1) * cos - partners.unsqueeze(1) * sin).reshape(-1, dim)  # (B * P, D)
    flat = torch.from_numpy(place.reshape(batch, num_chunks) + len(distinct) * np.arange(batch)[:, None])
    turned = torch.nn.functional.embedding(flat.to(states.device), rotated)  # (B, N, D)
    return (turned * chunks).reshape(batch, num_chunks, 2, dim // 2).sum(-1)

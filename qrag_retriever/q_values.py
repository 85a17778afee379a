"""Q-values of all chunks in one state, from embeddings; numpy arrays and torch tensors alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from qrag_retriever.positions import Runs
from qrag_retriever.rotary import is_torch, rotate_backward


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

"""What the scan is compared with: the paper's way of a step, at its best, and the floor that memory sets."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import torch

from qrag_retriever.positions import relative_positions
from qrag_retriever.rotary import THETA


class RotateEveryChunk:
    """The paper's way: rotate every chunk to its position, then one matrix-vector product.

    A phase table, one vectorised complex product over the whole float32 matrix (both heads share their phases), one
    ``torch.mv``. ``reuse_buffers`` writes into memory that was allocated once, which a step in a real search can do
    only if it keeps a second matrix; without it the step pays for fresh pages.
    """

    def __init__(self, matrix: np.ndarray, state: np.ndarray, reuse_buffers: bool, max_positions: int = 1000) -> None:
        """Prepare the phase table and views of the matrix (N, D)."""
        num_chunks, dim = matrix.shape
        half = dim // 2
        frequencies = THETA ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float64), frequencies)
        self._phases = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        self._chunks = torch.view_as_complex(torch.from_numpy(matrix).view(num_chunks, 2, dim // 4, 2))
        self._state = torch.from_numpy(state)
        self._shape = (num_chunks, dim)
        self._rotated = torch.empty_like(self._chunks) if reuse_buffers else None
        self._gathered = torch.empty(num_chunks, dim // 4, dtype=torch.complex64) if reuse_buffers else None

    def q_values(self, picked: list[int]) -> torch.Tensor:
        """Score every chunk; (N,)."""
        positions = torch.from_numpy(relative_positions(self._shape[0], picked))
        if self._rotated is None or self._gathered is None:
            rotated = self._chunks * self._phases[positions][:, None, :]
        else:
            torch.index_select(self._phases, 0, positions, out=self._gathered)
            rotated = torch.mul(self._chunks, self._gathered[:, None, :], out=self._rotated)
        return torch.mv(torch.view_as_real(rotated).reshape(self._shape), self._state)

    def step(self, picked: list[int], k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k best Q-values and chunk ids, picks left out."""
        scores = self.q_values(picked)
        scores[picked] = -torch.inf
        best = torch.topk(scores, k)
        return best.values, best.indices


def floors(matrix: np.ndarray, state: np.ndarray) -> dict[str, tuple[Callable[[], object], float]]:
    """Return ways to touch every float once, each with the share of its time that counts."""
    copy = np.empty_like(matrix)
    query = state[None]
    return {
        "floor: A @ q": (lambda: matrix @ state, 1.0),
        "floor: faiss.knn, k = 1": (lambda: faiss.knn(query, matrix, 1, metric=faiss.METRIC_INNER_PRODUCT), 1.0),
        "floor: half a memcpy": (lambda: np.copyto(copy, matrix), 0.5),
    }

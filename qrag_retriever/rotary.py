"""Rotary positions of twin-head embeddings, for numpy arrays and torch tensors alike.

The first half of an embedding is one Q-head, the second half the other. Each half is rotated by itself: neighbouring
components form D/4 pairs, pair j turns by ``position * 10000 ** (-2 j / (D / 2))``.

Because a rotation keeps inner products, ``<s, R(p) a> = <R(-p) s, a>``: turning the state backward once per distinct
position replaces turning every chunk forward.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

THETA = 10000.0
# Positions below this come from a table; with the default stride that covers 200 picks. Above, phases are computed.
_TABLE_POSITIONS = 4096


def check_dim(dim: int) -> None:
    """Raise ValueError unless an embedding of ``dim`` components splits into two heads of rotary pairs."""
    if dim < 4 or dim % 4:
        raise ValueError(f"twin-head rotary embeddings need a dimension divisible by 4, got {dim}")


def rotate_forward(embeddings: Any, positions: np.ndarray) -> Any:
    """Rotate embeddings to their positions: ``R(p) a``.

    Args:
        embeddings: One embedding (D,) to be rotated to every position, or (P, D), one per position; a numpy array or
            a torch tensor.
        positions: Shape (P,), integers, in position units.

    Returns:
        Shape (P, D), the same kind of array as given; gradients flow through torch tensors.

    Raises:
        ValueError: If D is not divisible by 4 and a position is not 0.

    Source: Q-RAG (arXiv 2511.07328), Section 3; RoFormer (arXiv 2104.09864), equation 34.
    """
    return _rotate(embeddings, positions, direction=1.0)


def rotate_backward(embeddings: Any, positions: np.ndarray) -> Any:
    """Rotate embeddings away from their positions: ``R(-p) s``. Arguments and result as in `rotate_forward`."""
    return _rotate(embeddings, positions, direction=-1.0)


def _rotate(embeddings: Any, positions: np.ndarray, direction: float) -> Any:
    dim = embeddings.shape[-1]
    positions = np.asarray(positions)
    if not positions.any():
        # Nothing turns; without positions any dimension will do.
        return embeddings if len(embeddings.shape) > 1 else embeddings[None][np.zeros(len(positions), np.int64)]
    check_dim(dim)
    cos_rows, sin_rows, rows = phase_rows(positions, dim)
    cos, sin = cos_rows[rows], sin_rows[rows] if direction > 0 else -sin_rows[rows]
    if is_torch(embeddings):
        import torch

        cos, sin = (torch.from_numpy(part).to(embeddings.device, embeddings.dtype) for part in (cos, sin))
    return embeddings * cos + embeddings[..., neighbours(dim)] * sin


def is_torch(value: Any) -> bool:
    """Tell a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def phase_rows(positions: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Look up the phases of integer positions.

    Returns:
        ``(cos, sin, rows)``: two float32 tables of width D, and for each position the row of the tables that holds its
        phases. The sines carry the sign of their place in the pair, so that
        ``R(p) a = a * cos + a[neighbours] * sin``.
    """
    if positions.size and positions.min() >= 0 and positions.max() < _TABLE_POSITIONS:
        return *_phase_table(dim), positions
    return *_compute_phases(positions, dim), np.arange(len(positions))


@lru_cache(maxsize=4)
def _phase_table(dim: int) -> tuple[np.ndarray, np.ndarray]:
    return _compute_phases(np.arange(_TABLE_POSITIONS), dim)


def _compute_phases(positions: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    half = dim // 2
    frequencies = THETA ** (-np.arange(0, half, 2, dtype=np.float64) / half)
    angles = np.tile(np.repeat(np.outer(positions.astype(np.float64), frequencies), 2, axis=1), (1, 2))
    # The first of a pair (a, b) becomes a cos - b sin, the second b cos + a sin.
    signs = np.where(np.arange(dim) % 2 == 0, -1.0, 1.0)
    return np.cos(angles).astype(np.float32), (np.sin(angles) * signs).astype(np.float32)


@lru_cache(maxsize=16)
def neighbours(dim: int) -> np.ndarray:
    """Return the index of each component's partner in its rotary pair, shape (D,)."""
    return np.arange(dim) ^ 1

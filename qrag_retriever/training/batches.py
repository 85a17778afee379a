"""Many states over many documents, as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qrag_retriever.config import Mode, QRAGConfig
from qrag_retriever.positions import relative_positions
from qrag_retriever.q_values import batched_head_q_values
from qrag_retriever.state import RetrievalState, StateInput

# Embeddings that may stand side by side while scoring without gradients, in numbers.
_SCORED_AT_ONCE = 8_000_000


def chunk_positions(config: QRAGConfig, mode: Mode, num_chunks: int, picked: Sequence[int]) -> np.ndarray:
    """Return the position of every chunk of a document, shape (num_chunks,): what an index of this mode would use."""
    if mode == "corpus" or config.positions == "none":
        return np.zeros(num_chunks, np.int64)
    if config.positions == "absolute":
        return np.arange(num_chunks)
    return relative_positions(num_chunks, picked, config.stride)


def rendered(config: QRAGConfig, state: RetrievalState, mode: Mode) -> StateInput:
    """Return what the state encoder embeds for a state over a document of this mode."""
    return state.render(config.order_in(mode))


@dataclass(frozen=True)
class Candidates:
    """The chunks that each of B states can pick from, padded to the longest document.

    Attributes:
        rows: Shape (B, N), int64: rows of a `ChunkCache`; 0 where padded.
        positions: Shape (B, N), int64.
        available: Shape (B, N), bool: not picked yet, and not padding.
    """

    rows: np.ndarray
    positions: np.ndarray
    available: np.ndarray

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self.rows)

    def columns(self, chosen: np.ndarray) -> Candidates:
        """Keep some chunks of each state: ``chosen`` has shape (B, M), columns."""
        taken = (np.take_along_axis(array, chosen, axis=1) for array in (self.rows, self.positions, self.available))
        return Candidates(*taken)

    def states(self, chosen: slice) -> Candidates:
        """Keep some states."""
        return Candidates(self.rows[chosen], self.positions[chosen], self.available[chosen])


def candidates_of(
    config: QRAGConfig, documents: Sequence[tuple[np.ndarray, Mode]], picked: Sequence[Sequence[int]]
) -> Candidates:
    """Lay out the chunks of B states.

    Args:
        config: Of the model: its positions and stride.
        documents: For each state the cache rows of its document's chunks and the document's mode.
        picked: For each state its picked chunk ids.
    """
    longest = max(len(rows) for rows, _ in documents)
    shape = (len(documents), longest)
    rows, positions, available = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for i, ((own_rows, mode), picks) in enumerate(zip(documents, picked, strict=True)):
        count = len(own_rows)
        rows[i, :count] = own_rows
        positions[i, :count] = chunk_positions(config, mode, count, picks)
        available[i, :count] = True
        available[i, list(picks)] = False
    return Candidates(rows, positions, available)


def with_in_batch_negatives(candidates: Candidates, documents: Sequence[tuple[np.ndarray, Mode]]) -> Candidates:
    """Let loose passages of one state be wrong candidates of the others: many more of them, embedded already.

    Only where chunks have no positions and no neighbours, in corpus mode. What a state has among its own is not added.

    Args:
        candidates: Of B states.
        documents: For each state the cache rows of its chunks and their mode, as in `candidates_of`.

    Returns:
        The candidates with more columns: one for each loose passage that not all of them have.

    Source: in-batch negatives of dense passage retrieval (arXiv 2004.04906).
    """
    loose = [rows for rows, mode in documents if mode == "corpus"]
    if not loose:
        return candidates
    every = np.unique(np.concatenate(loose))
    added = np.zeros((len(documents), len(every)), bool)
    for i, (rows, mode) in enumerate(documents):
        if mode == "corpus":
            added[i] = np.isin(every, rows, invert=True)
    used = added.any(0)  # of passages that all have themselves, there is nothing to add
    every, added = every[used], added[:, used]
    return Candidates(
        np.concatenate([candidates.rows, np.broadcast_to(every, added.shape)], axis=1),
        np.concatenate([candidates.positions, np.zeros(added.shape, np.int64)], axis=1),
        np.concatenate([candidates.available, added], axis=1),
    )


def rows_among(rows: np.ndarray, wanted: Sequence[np.ndarray]) -> np.ndarray:
    """Tell which rows of each state, shape (B, N), are among the ones wanted of that state: bool, the same shape."""
    return np.stack([np.isin(own, few) for own, few in zip(rows, wanted, strict=True)])


def hardest(
    candidates: Candidates,
    right: np.ndarray,
    scores: np.ndarray,
    most: int,
    streams: Sequence[np.random.Generator] | None = None,
) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """Keep some chunks of long documents: all right ones, the best-scored and, if drawn, as many at random.

    Positions stay what they were in the whole document.

    Args:
        candidates: Of B states.
        right: Shape (B, N), bool: chunks that must stay.
        scores: Shape (B, N): how likely a chunk is to be taken for a right one.
        most: Chunks to keep per state.
        streams: One for each state, to draw half of them at random; None keeps the best-scored only.

    Returns:
        The kept candidates with their ``right`` and ``scores``.
    """
    most = max(most, int(right.sum(1).max(initial=0)))
    if candidates.rows.shape[1] <= most:
        return candidates, right, scores
    keys = np.where(candidates.available, scores, -np.inf)
    if streams is not None:
        best = np.argpartition(-keys, most // 2, axis=1)[:, : most // 2]
        drawn = np.stack([stream.random(keys.shape[1]) for stream in streams])
        keys = np.where(candidates.available, drawn, -np.inf)
        np.put_along_axis(keys, best, np.take_along_axis(keys, best, 1) + 1.0, axis=1)
    keys = np.where(right, np.inf, keys)
    chosen = np.argpartition(-keys, most - 1, axis=1)[:, :most]
    kept = [np.take_along_axis(array, chosen, axis=1) for array in (right, scores)]
    return candidates.columns(chosen), kept[0], kept[1]


def confused(
    candidates: Candidates, right: np.ndarray, scores: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tell how likely wrong chunks are taken for right ones, by softmax(scores / temperature) in all states together.

    That is the size of a chunk's gradient in the cross-entropy.

    Args:
        candidates: Of B states.
        right: Shape (B, N), bool.
        scores: Shape (B, N): Q-values, of these states or of earlier ones.
        temperature: Of the cross-entropy.

    Returns:
        The distinct rows of wrong chunks, (M,), ascending, and the sum of their probabilities, (M,).
    """
    logits = np.where(candidates.available, scores / temperature, -np.inf)
    highest = logits.max(1, keepdims=True)
    # A state in which everything has been picked confuses nothing.
    weights = np.exp(logits - np.where(np.isfinite(highest), highest, 0.0))
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-30)
    wrong = candidates.available & ~right
    others, place = np.unique(candidates.rows[wrong], return_inverse=True)
    return others, np.bincount(place, weights[wrong], len(others))


@torch.no_grad()
def score(states: torch.Tensor, table: torch.Tensor, candidates: Candidates) -> torch.Tensor:
    """Score candidates by embeddings of a table, without gradients: shape (B, N, 2), one value per Q-head."""
    size = max(1, _SCORED_AT_ONCE // (candidates.rows.shape[1] * table.shape[1]))
    parts = []
    for start in range(0, len(candidates), size):
        part = candidates.states(slice(start, start + size))
        chunks = torch.nn.functional.embedding(torch.from_numpy(part.rows).to(table.device), table)
        parts.append(batched_head_q_values(states[start : start + size], chunks, part.positions))
    return torch.cat(parts)


def with_fresh(table: torch.Tensor, rows: np.ndarray, fresh_rows: np.ndarray, fresh: torch.Tensor) -> torch.Tensor:
    """Look up embeddings, taking those that were just computed with gradients in place of the table's.

    Args:
        table: Shape (R, D), without gradients.
        rows: Shape (B, N), rows of the table.
        fresh_rows: Shape (M,), distinct rows.
        fresh: Shape (M, D), their embeddings with gradients.

    Returns:
        Shape (B, N, D).
    """
    place = np.full(len(table), -1, np.int64)
    place[fresh_rows] = np.arange(len(fresh_rows))
    places = torch.from_numpy(place[rows]).to(table.device)
    held = torch.nn.functional.embedding(torch.from_numpy(rows).to(table.device), table)
    if not len(fresh_rows):
        return held
    # An embedding look-up and not indexing: its gradient is summed in a fixed order, so runs repeat bit for bit.
    new = torch.nn.functional.embedding(places.clamp(min=0), fresh)
    return torch.where((places >= 0).unsqueeze(-1), new, held)

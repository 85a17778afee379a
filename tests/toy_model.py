"""A model without a network: embeddings are small dyadic numbers drawn from a text's hash, exact in float16.

No test of the index or its folder needs more, and worker processes start without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from qrag_retriever.config import Positions, QRAGConfig
from qrag_retriever.model import QRAGModel

DIM = 8


def embedding_of(text: str, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Return the (D,) float32 embedding of a text."""
    digest = hashlib.sha256(f"{seed} {text}".encode()).digest()
    return (np.random.default_rng(list(digest)).integers(-64, 65, dim) / 32).astype(np.float32)


class ToyModel(QRAGModel):
    """Embeds chunks and states by hash."""

    def __init__(self, positions: Positions = "relative", dim: int = DIM, seed: int = 0) -> None:
        super().__init__(QRAGConfig(dim=dim, positions=positions), self._no_pair)
        self.seed = seed

    @staticmethod
    def _no_pair() -> Any:
        raise AssertionError("a toy model has no encoders")

    def encode_chunks(self, texts: Sequence[str], show_progress: bool | None = None) -> np.ndarray:
        rows = [embedding_of(text, self.config.dim, self.seed) for text in texts]
        return np.array(rows, np.float32).reshape(-1, self.config.dim)

    def encode_states(self, states: Sequence[Any], show_progress: bool | None = None) -> np.ndarray:
        pairs = [(state, ()) if isinstance(state, str) else state for state in states]
        return self.encode_chunks([f"state {query} {tuple(texts)}" for query, texts in pairs])

    def fingerprint(self) -> str:
        return f"toy {self.seed} {self.config.dim} {self.config.positions}"

    def __reduce__(self) -> Any:
        return ToyModel, (self.config.positions, self.config.dim, self.seed)

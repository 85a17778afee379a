"""Embeddings of texts, each text embedded once for all questions of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from qrag_retriever.scan.growing import GrowingArray

Encode = Callable[[list[str]], np.ndarray]


class TextEmbeddings:
    """A table of embeddings by text.

    Attributes:
        seconds: Spent on embedding so far.
    """

    def __init__(self, encode: Encode, dim: int) -> None:
        """Embed by ``encode``, which takes n texts and returns shape (n, dim)."""
        self._encode = encode
        self._rows: dict[str, int] = {}
        self._table = GrowingArray(np.empty((0, dim), np.float32))
        self.seconds = 0.0

    def __len__(self) -> int:
        """Count the texts."""
        return len(self._rows)

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, (n, dim), as a new array."""
        new = list(dict.fromkeys(text for text in texts if text not in self._rows))
        if new:
            start = time.perf_counter()
            embedded = np.asarray(self._encode(new), np.float32)
            self.seconds += time.perf_counter() - start
            self._table = self._table.appended(embedded)
            self._rows.update(zip(new, range(len(self._rows), len(self._rows) + len(new)), strict=True))
        return self._table.array[[self._rows[text] for text in texts]]

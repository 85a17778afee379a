"""Embeddings of chunks under the network in training, kept for a counted number of updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

_FIRST_CAPACITY = 1024


class ChunkCache:
    """Embeds every text once in an era; an era is a number of updates after which all embeddings are thrown away.

    Embeddings in here lag behind the network by at most one era. Where that is many updates, picking from them is a
    little off-policy, and values over them move slowly, as a target network's would; what a loss gives gradients to is
    embedded afresh.
    """

    def __init__(
        self, embed: Callable[[Sequence[str]], torch.Tensor], dim: int, device: torch.device, repeats: bool = False
    ) -> None:
        """Set up an empty cache.

        Args:
            embed: Embeds texts without gradients: (M, D).
            dim: D.
            device: Where to keep the embeddings.
            repeats: Whether a text that comes several times in one call is embedded as often (for comparisons).
        """
        self._embed, self._repeats = embed, repeats
        self._row_of: dict[str, int] = {}
        self._texts: list[str] = []
        self._table = torch.zeros(_FIRST_CAPACITY, dim, device=device)
        self.num_embedded = 0

    def __len__(self) -> int:
        """Return how many texts are held."""
        return len(self._row_of)

    @property
    def table(self) -> torch.Tensor:
        """All embeddings, shape (rows, D); rows beyond the length of the cache are unused."""
        return self._table

    @property
    def texts(self) -> Sequence[str]:
        """The text of each row."""
        return self._texts

    def rows_of(self, documents: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return the rows of every document's chunks, embedding what is not held in one go.

        Args:
            documents: The chunks of each document.

        Returns:
            For each document the table rows of its chunks, int64.
        """
        missing = [text for chunks in documents for text in chunks if text not in self._row_of]
        if not self._repeats:
            missing = list(dict.fromkeys(missing))
        if missing:
            with torch.no_grad():
                self._add(missing, self._embed(missing))
        row_of = self._row_of
        return [np.fromiter((row_of[text] for text in chunks), np.int64, len(chunks)) for chunks in documents]

    def put(self, texts: Sequence[str], embeddings: torch.Tensor) -> np.ndarray:
        """Hold embeddings that were made elsewhere, in place of older ones of the same texts.

        Args:
            texts: M different texts.
            embeddings: Shape (M, D).

        Returns:
            Their table rows, int64.
        """
        new = [i for i, text in enumerate(texts) if text not in self._row_of]
        if new:
            self._add([texts[i] for i in new], embeddings.detach()[new], count=False)
        (rows,) = self.rows_of([texts])
        self.store(rows, embeddings)
        return rows

    def store(self, rows: np.ndarray, embeddings: torch.Tensor) -> None:
        """Replace embeddings by fresher ones, (M, D)."""
        self._table[torch.from_numpy(rows).to(self._table.device)] = embeddings.detach()

    def clear(self) -> None:
        """Begin a new era."""
        self._row_of.clear()
        self._texts.clear()

    def state(self) -> tuple[list[str], torch.Tensor]:
        """Return the texts and their embeddings, for a checkpoint."""
        return list(self._texts), self._table[: len(self._texts)].clone()

    def restore(self, texts: Sequence[str], embeddings: torch.Tensor) -> None:
        """Take the content of a checkpoint."""
        self.clear()
        if texts:
            self._add(list(texts), embeddings.to(self._table.device), count=False)

    def _add(self, texts: Sequence[str], embeddings: torch.Tensor, count: bool = True) -> None:
        start, stop = len(self._texts), len(self._texts) + len(texts)
        if stop > len(self._table):
            grown = torch.zeros(max(stop, 2 * len(self._table)), self._table.shape[1], device=self._table.device)
            grown[:start] = self._table[:start]
            self._table = grown
        self._table[start:stop] = embeddings
        self._row_of.update(zip(texts, range(start, stop), strict=True))
        self._texts.extend(texts)
        self.num_embedded += len(texts) if count else 0

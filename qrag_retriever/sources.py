"""Where a version of an index reads its records and exact vectors: memory or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrag_retriever.mapped_vectors import MappedVectors
from qrag_retriever.records import Record
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.storage import IndexFolder


@dataclass(frozen=True)
class MemorySource:
    """Records and float32 vectors in memory, in chunk order."""

    kept: Sequence[Record]
    rows: GrowingArray
    in_memory = True

    def scan(self, chunk_ids: np.ndarray | None) -> None:
        """Leave the scan to the view."""

    def records(self, chunk_ids: Sequence[int]) -> list[Record]:
        """Read records in the given order."""
        return [self.kept[i] for i in chunk_ids]

    def vectors(self, chunk_ids: np.ndarray) -> np.ndarray:
        """Read exact embeddings: (M, D), float32."""
        rows: np.ndarray = self.rows.array[chunk_ids]
        return rows

    def inner_product(self, chunk_id: int, state: np.ndarray) -> float:
        """Multiply a chunk's unrotated embedding with a state (D,)."""
        return float(self.rows.array[chunk_id] @ state)

    def matrix(self) -> np.ndarray:
        """Return all embeddings, not copied."""
        return self.rows.array


@dataclass(frozen=True)
class FolderSource:
    """Records and float16 vectors of an index folder, as one version names them."""

    folder: IndexFolder
    generation: int
    mapped: MappedVectors
    rows: np.ndarray
    in_memory = False

    def scan(self, chunk_ids: np.ndarray | None) -> None:
        """Leave the scan to the view."""

    def records(self, chunk_ids: Sequence[int]) -> list[Record]:
        """Read records in the given order."""
        return self.folder.records([int(self.rows[i]) for i in chunk_ids], self.generation)

    def vectors(self, chunk_ids: np.ndarray) -> np.ndarray:
        """Read exact embeddings: (M, D), float32."""
        return np.asarray(self.mapped.whole()[self.rows[chunk_ids]], np.float32)

    def inner_product(self, chunk_id: int, state: np.ndarray) -> float:
        """Multiply a chunk's unrotated embedding with a state (D,)."""
        return float(self.vectors(np.array([chunk_id]))[0] @ state)

    def matrix(self) -> np.ndarray:
        """Return all embeddings: the map itself while no row was replaced or moved, else a copy."""
        count, mapped = len(self.rows), self.mapped.whole()
        in_place = count <= len(mapped) and np.array_equal(self.rows, np.arange(count))
        return mapped[:count] if in_place else mapped[self.rows]

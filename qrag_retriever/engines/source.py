"""Where a version of an index on an engine reads its records and vectors, and how it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrag_retriever.engines.base import Engine, check_version
from qrag_retriever.engines.scan import EngineScan
from qrag_retriever.errors import StaleVersionError
from qrag_retriever.records import Record


@dataclass(frozen=True)
class EngineSource:
    """Records and vectors of one version; ``rows`` (N,) are its places, in chunk order."""

    engine: Engine
    version: int
    rows: np.ndarray
    in_memory = False

    def records(self, chunk_ids: Sequence[int]) -> list[Record]:
        """Read records in the given order.

        Raises:
            StaleVersionError: If chunks of this version were deleted or replaced since.
        """
        found = self.engine.records(self.rows[np.asarray(chunk_ids, np.int64)])
        check_version(self.engine, self.version)
        present = [record for record in found if record is not None]
        if len(present) < len(found):
            # Of an engine without transactions: another process is in the middle of a change.
            raise StaleVersionError(f"chunks of the index {self.engine.location} are being changed; search again")
        return present

    def vectors(self, chunk_ids: np.ndarray) -> np.ndarray:
        """Read exact embeddings: (M, D), float32; errors as for `records`."""
        found = self.engine.vectors(self.rows[chunk_ids])
        check_version(self.engine, self.version)
        return found

    def inner_product(self, chunk_id: int, state: np.ndarray) -> float:
        """Multiply a chunk's unrotated embedding with a state (D,); errors as for `records`."""
        place = int(self.rows[chunk_id])
        _, products = self.engine.search(state[None], np.array([[place, place + 1]]), 1)
        check_version(self.engine, self.version)
        return float(products[0, 0])

    def matrix(self) -> np.ndarray:
        """Read all embeddings into memory."""
        return self.vectors(np.arange(len(self.rows)))

    def scan(self, chunk_ids: np.ndarray | None) -> EngineScan:
        """Let the engine search these chunks, or all."""
        return EngineScan(self.engine, self.version, self.rows if chunk_ids is None else self.rows[chunk_ids])

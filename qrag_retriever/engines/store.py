"""Any vector store of LangChain or LlamaIndex, as far as its search ranks right and honours range filters.

Such stores rank by cosine, inner product or distance, as each likes. So a chunk is stored as
``[a, sqrt(M^2 - |a|^2)]``, of length M whatever ``a`` is, and asked for by ``[q, 0]``: then all three rank by the inner
product ``<q, a>``. What the store's scores mean is found out by a probe.

The store keeps vectors and texts; ids, texts and metadata are also kept in this process, because the interfaces of
stores have no way to list what is there.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from qrag_retriever.engines.base import Change, EngineSettings, padded
from qrag_retriever.engines.probe import ScoreMeaning, asked, lengthened, probe, product_of
from qrag_retriever.engines.store_side import RangeFilter, StoreSide
from qrag_retriever.errors import EngineError
from qrag_retriever.records import Record

_HEADROOM = 2.0


class StoreEngine:
    """One index on a vector store."""

    def __init__(self, side: StoreSide, name: str, max_norm: float | None = None) -> None:
        """Take a store; see `ChunkIndex.on_store`."""
        if max_norm is not None and not 0 < max_norm < np.inf:
            raise ValueError(f"max_norm must be positive and finite, got {max_norm}")
        self.location = f"on the store {name}"
        self._side = side
        self._max_norm = max_norm
        self._lock = threading.RLock()
        self._records: dict[int, Record] = {}
        self._ids: dict[int, str] = {}
        self._deleted: set[str] = set()
        self._settings: EngineSettings | None = None
        self._meaning: ScoreMeaning | None = None

    @classmethod
    def over(cls, store: Any, max_norm: float | None, range_filter: RangeFilter | None) -> StoreEngine:
        """Take a store of either framework.

        Raises:
            TypeError: If it is of neither.
        """
        bases = {f"{base.__module__}.{base.__qualname__}" for base in type(store).__mro__}
        side: StoreSide
        if any(name.startswith("langchain_core.vectorstores.") and name.endswith(".VectorStore") for name in bases):
            from qrag_retriever.engines.langchain_store import LangChainStore

            side = LangChainStore(store, range_filter)
        elif "llama_index.core.vector_stores.types.BasePydanticVectorStore" in bases:
            from qrag_retriever.engines.llama_index_store import LlamaIndexStore

            side = LlamaIndexStore(store)
        else:
            raise TypeError(
                f"expected a vector store of LangChain or LlamaIndex, got {type(store).__module__}."
                f"{type(store).__qualname__}"
            )
        return cls(side, type(store).__name__, max_norm)

    def read(self) -> None:
        """Find nothing: a store cannot be asked to list what it holds."""
        return

    def create(self, settings: EngineSettings) -> bool:
        """Probe the store; see `Engine.create`.

        Raises:
            EngineError: If it fails the probe.
        """
        self._meaning = probe(self._side, settings.dim, self.location)
        self._settings = settings
        return True

    @contextmanager
    def writing(self) -> Iterator[Change]:
        """Open a change; see `Engine.writing`. Searches of other threads wait for its end."""
        with self._lock:
            change = Change(self._known_settings())
            yield change
            change.finish()
            self._apply(change)
            self._settings = change.settings

    def search(self, queries: np.ndarray, ranges: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search range after range; see `StepSearch.search`. Vectors that the store gives back are scored again."""
        with self._lock:
            found = [self._search_one(query, low, high, k) for query, (low, high) in zip(queries, ranges, strict=True)]
        return padded(found, k)

    def oldest(self) -> int:
        """Return the oldest version that is still whole."""
        return self._known_settings().oldest

    def deleted_ids(self) -> set[str]:
        """Return the ids that were ever deleted."""
        return set(self._deleted)

    def records(self, places: np.ndarray) -> list[Record | None]:
        """Read records; see `Engine.records`."""
        return [self._records.get(place) for place in places.tolist()]

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """Refuse: not every store gives its vectors back.

        Raises:
            EngineError: Always.
        """
        raise EngineError(f"the vectors of an index {self.location} cannot be read back; build it again from its texts")

    def _known_settings(self) -> EngineSettings:
        if self._settings is None:
            raise EngineError(f"there is no index {self.location} yet")
        return self._settings

    def _search_one(self, query: np.ndarray, low: int, high: int, k: int) -> list[tuple[int, float]]:
        if self._meaning is None or self._max_norm is None:
            return []
        length = float(np.linalg.norm(query))
        if length == 0.0:
            # No direction to ask in: all chunks are equal.
            return [(place, 0.0) for place in sorted(self._records) if low <= place < high][:k]
        hits = self._side.query(asked(query), int(low), int(high), k)
        scored = [(hit[0], product_of(hit, self._meaning, query, length, self._max_norm)) for hit in hits]
        return sorted(scored, key=lambda hit: (-hit[1], hit[0]))

    def _apply(self, change: Change) -> None:
        places = change.places.tolist()
        max_norm = self._checked_norm(change.vectors)
        # Names of their own, so that what is replaced is still there if this fails.
        new = [str(uuid.uuid4()) for _ in places]
        old = [self._ids[place] for place in change.removed]
        try:
            self._side.add(
                new, [record.text for record in change.records], places, lengthened(change.vectors, max_norm)
            )
            self._side.remove(old)
        except BaseException:
            self._side.remove(new)
            raise
        self._max_norm = max_norm
        self._deleted.update(change.deleted([self._records[place].id for place in change.removed]))
        for place in change.removed:
            del self._records[place], self._ids[place]
        self._records.update(zip(places, change.records, strict=True))
        self._ids.update(zip(places, new, strict=True))

    def _checked_norm(self, vectors: np.ndarray) -> float:
        """Return the length that stored vectors get, which no embedding may exceed."""
        longest = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max(initial=0.0))
        max_norm = self._max_norm or _HEADROOM * longest or 1.0
        if longest > max_norm:
            raise ValueError(
                f"an embedding has length {longest:.4g}, but the index {self.location} was laid out for at most "
                f"{max_norm:.4g}; make a new one with max_norm={_HEADROOM * longest:.4g}"
            )
        return max_norm

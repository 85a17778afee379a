"""LangChain's vector stores as engines."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from qrag_retriever.engines.store_side import PLACE_KEY, Hit, RangeFilter
from qrag_retriever.errors import EngineError


class GivenVectors(Embeddings):
    """Hands over vectors that exist already: LangChain's stores take texts only, and have them embedded."""

    def __init__(self) -> None:
        """Know no vectors yet."""
        self._waiting: dict[str, list[list[float]]] = {}

    def expect(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Tell which vectors to give for these texts, in this order for equal texts."""
        self._waiting = {}
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            self._waiting.setdefault(text, []).append(vector)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Give the vectors that were announced."""
        return [self._next(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Give the vector that was announced."""
        return self._next(text)

    def _next(self, text: str) -> list[float]:
        vectors = self._waiting.get(text)
        if not vectors:
            raise EngineError("this store embeds for an index, which alone may add to it and search it")
        # The last one stays: a store may embed a text more than once.
        return vectors.pop(0) if len(vectors) > 1 else vectors[0]


def _call(key: str, low: int, high: int) -> Any:
    """Filters of stores that take a callable, on documents or on metadata."""

    def admits(document: Any) -> bool:
        place = getattr(document, "metadata", document).get(key)
        return place is not None and bool(low <= place < high)

    return admits


def _two_conditions(key: str, low: int, high: int) -> Any:
    return {"$and": [{key: {"$gte": low}}, {key: {"$lt": high}}]}


def _one_condition(key: str, low: int, high: int) -> Any:
    return {key: {"$gte": low, "$lt": high}}


class LangChainStore:
    """A LangChain ``VectorStore``, through the methods that all of them have."""

    def __init__(self, store: Any, range_filter: RangeFilter | None = None) -> None:
        """Take a store over; it itself goes on embedding as it did.

        Raises:
            EngineError: If vectors cannot be handed to it.
        """
        # A second handle on the same data, that embeds otherwise.
        self._store = copy.copy(store)
        self._given = GivenVectors()
        own = store.embeddings
        names = [name for name, value in getattr(store, "__dict__", {}).items() if own is not None and value is own]
        if isinstance(own, GivenVectors):
            self._given = own
        elif names:
            for name in names:
                setattr(self._store, name, self._given)
        else:
            raise EngineError(
                f"a {type(store).__name__} hides what it embeds with; make it with "
                "qrag_retriever.engines.langchain_store.GivenVectors() as its embeddings"
            )
        self._filters = [_call, _two_conditions, _one_condition] if range_filter is None else [range_filter]
        self._filter = self._filters[0]

    def range_filters(self) -> Sequence[RangeFilter]:
        """Return what is usual in stores, or what was given."""
        return self._filters

    def use_range_filter(self, range_filter: RangeFilter | None) -> None:
        """Choose one."""
        if range_filter is not None:
            self._filter = range_filter

    def add(self, ids: Sequence[str], texts: Sequence[str], places: Sequence[int], vectors: np.ndarray) -> None:
        """Store vectors with their places as metadata."""
        if not ids:
            return
        self._given.expect(texts, vectors)
        documents = [Document(text, metadata={PLACE_KEY: place}) for text, place in zip(texts, places, strict=True)]
        self._store.add_documents(documents, ids=list(ids))

    def remove(self, ids: Sequence[str]) -> None:
        """Delete by id."""
        if ids:
            self._store.delete(list(ids))

    def query(self, vector: np.ndarray, low: int, high: int, k: int) -> list[Hit]:
        """Return place and score of the k nearest with low <= place < high."""
        self._given.expect(["query"], vector[None])
        found = self._store.similarity_search_with_score("query", k=k, filter=self._filter(PLACE_KEY, low, high))
        return [(int(document.metadata.get(PLACE_KEY, -1)), float(score), None) for document, score in found]

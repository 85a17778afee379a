"""LlamaIndex's vector stores as engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from qrag_retriever.engines.store_side import PLACE_KEY, Hit, RangeFilter


class LlamaIndexStore:
    """A LlamaIndex ``BasePydanticVectorStore``."""

    def __init__(self, store: Any) -> None:
        """Take a store."""
        self._store = store
        # Not every store gives nodes or metadata back.
        self._place_of: dict[str, int] = {}

    def range_filters(self) -> Sequence[None]:
        """Return the one way there is: ``MetadataFilters``."""
        return [None]

    def use_range_filter(self, range_filter: RangeFilter | None) -> None:
        """Do nothing: there is but one."""

    def add(self, ids: Sequence[str], texts: Sequence[str], places: Sequence[int], vectors: np.ndarray) -> None:
        """Store vectors with their places as metadata."""
        nodes = [
            TextNode(id_=id_, text=text, metadata={PLACE_KEY: place}, embedding=vector)
            for id_, text, place, vector in zip(ids, texts, places, vectors.tolist(), strict=True)
        ]
        if nodes:
            self._store.add(nodes)
            self._place_of.update(zip(ids, places, strict=True))

    def remove(self, ids: Sequence[str]) -> None:
        """Delete by id."""
        if ids:
            self._store.delete_nodes(list(ids))
            for id_ in ids:
                self._place_of.pop(id_, None)

    def query(self, vector: np.ndarray, low: int, high: int, k: int) -> list[Hit]:
        """Return place, score and, if the store gives it back, vector of the k nearest with low <= place < high."""
        filters = MetadataFilters(
            filters=[
                MetadataFilter(key=PLACE_KEY, value=low, operator=FilterOperator.GTE),
                MetadataFilter(key=PLACE_KEY, value=high, operator=FilterOperator.LT),
            ]
        )
        found = self._store.query(
            VectorStoreQuery(query_embedding=vector.tolist(), similarity_top_k=k, filters=filters)
        )
        nodes = found.nodes or [None] * len(found.ids or [])
        ids = found.ids or [node.node_id for node in nodes if node is not None]
        return [
            (self._place_of.get(id_, -1), float(score), None if node is None else node.embedding)
            for id_, score, node in zip(ids, found.similarities or [], nodes, strict=True)
        ]

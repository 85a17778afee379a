"""Qdrant's engine inside this process (``qdrant-edge-py``), asked as a server would be, without the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import qdrant_edge as edge

from qrag_retriever.engines.base import padded

_POINTS_AT_ONCE = 1_000


class EdgeShardSearch:
    """One shard that holds vectors by place; a `StepSearch`, and as much of an `Engine` as a scan needs."""

    location = "in a Qdrant shard"

    def __init__(self, folder: Path, vectors: np.ndarray, places: Sequence[int]) -> None:
        """Store vectors (N, D) with their places, as `QdrantEngine` does: dot product, range index, no HNSW graph."""
        no_graph = edge.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=0)
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=vectors.shape[1], distance=edge.Distance.Dot, hnsw_config=no_graph)
        )
        self._shard = edge.EdgeShard.create(str(folder), config)
        by_place = edge.IntegerIndexParams(lookup=False, range=True)
        self._shard.update(edge.UpdateOperation.create_field_index("place", by_place))
        for first in range(0, len(vectors), _POINTS_AT_ONCE):
            part = slice(first, first + _POINTS_AT_ONCE)
            points = [
                edge.Point(place, vector, {"place": place})
                for place, vector in zip(places[part], vectors[part].tolist(), strict=True)
            ]
            self._shard.update(edge.UpdateOperation.upsert_points(points))
        self._shard.optimize()

    def search(self, queries: np.ndarray, ranges: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search all ranges in one batch; see `StepSearch.search`."""
        requests = [
            edge.QueryRequest(
                limit=k,
                query=edge.Query.Nearest(query),
                filter=edge.Filter(must=[edge.FieldCondition("place", range=edge.RangeFloat(gte=low, lt=high))]),
                params=edge.SearchParams(exact=True),
            )
            for query, (low, high) in zip(queries.tolist(), ranges.tolist(), strict=True)
        ]
        answers = self._shard.query_batch(edge.QueryBatchRequest(requests))
        return padded([[(int(hit.id), hit.score) for hit in hits] for hits in answers], k)

    def oldest(self) -> int:
        """Return the only version there is."""
        return 0

    def close(self) -> None:
        """Release the shard."""
        self._shard.close()

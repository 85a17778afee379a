"""Qdrant.

A hop is one batch request: every range of places is a filter on the payload index of ``place``, with exact inner
products; HNSW graphs are not built. A point's number is its chunk's place.

Qdrant has no transactions. What `add` and `delete` did is stored when they return, and a change that fails before its
first request leaves everything as it was. But a change that is cut off later (a crash, a lost connection) may have been
made in part: then call it again. A search that runs during a change in another process may see a part of it; once the
change is complete, a search that began before starts anew if chunks were replaced or deleted. One process writes at a
time.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from qrag_retriever._extras import require_extra
from qrag_retriever.engines.base import Change, EngineSettings, layout_of, padded
from qrag_retriever.errors import EngineError
from qrag_retriever.layout import Layout
from qrag_retriever.record_json import metadata_json, node_json, parsed_record
from qrag_retriever.records import Record

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

# Requests stay well below the 32 MiB that servers accept: a vector of 1,000 components is about 20 kB of JSON.
_POINTS_AT_ONCE = 256
_QUERIES_AT_ONCE = 512
_NUMBERS_AT_ONCE = 10_000
_SETTINGS_POINT = 0


class QdrantEngine:
    """Collections of one index in Qdrant. The client is used by one thread at a time."""

    def __init__(self, client: QdrantClient, collection: str) -> None:
        """Take a client; see `ChunkIndex.on_qdrant`."""
        if not collection:
            raise ValueError("the collection's name is empty")
        self.location = f"in the Qdrant collection {collection!r}"
        self._client = client
        self._collection = collection
        self._settings_collection = f"{collection}_settings"
        self._lock = threading.RLock()

    @classmethod
    def connect(cls, client: Any, collection: str) -> QdrantEngine:
        """Make a client if a location is given.

        Raises:
            ImportError: If the ``qdrant`` extra is not installed.
            EngineError: If nothing answers at the location.
        """
        qdrant = require_extra("qdrant_client", "qdrant")
        if isinstance(client, str):
            location, client = client, qdrant.QdrantClient(client)
            try:
                client.get_collections()
            except qdrant.http.exceptions.ResponseHandlingException as error:
                raise EngineError(
                    f"no Qdrant answers at {location!r}: {error}; start it, or name another URL"
                ) from error
        elif not isinstance(client, qdrant.QdrantClient):
            raise TypeError(f"expected a QdrantClient or a location, got {type(client).__name__}")
        return cls(client, collection)

    def create(self, settings: EngineSettings) -> bool:
        """Make the collections; see `Engine.create`."""
        from qdrant_client.models import Distance, HnswConfigDiff, IntegerIndexParams, IntegerIndexType, VectorParams

        with self._lock:
            self._client.create_collection(
                self._collection,
                vectors_config=VectorParams(size=settings.dim, distance=Distance.DOT),
                hnsw_config=HnswConfigDiff(m=0),
            )
            self._client.create_payload_index(
                self._collection, "place", IntegerIndexParams(type=IntegerIndexType.INTEGER, lookup=False, range=True)
            )
            # Last: settings are what tells an index from a collection of somebody else's.
            self._client.create_collection(
                self._settings_collection, vectors_config=VectorParams(size=1, distance=Distance.DOT)
            )
            self._keep_settings(settings)
        return True

    def read(self) -> tuple[EngineSettings, Layout] | None:
        """Read settings and layout; see `Engine.read`."""
        with self._lock:
            if not self._client.collection_exists(self._collection):
                return None
            if not self._client.collection_exists(self._settings_collection):
                raise EngineError(
                    f"there is something else {self.location}: it has no settings; name another collection"
                )
            settings = self._settings()
            chunks = [(point.id, point.payload) for point in self._scroll(self._collection, ["id", "document_id"])]
        # A move to another document that was cut off leaves a chunk in both places, of which either will do.
        newest = {payload["id"]: (place, payload) for place, payload in sorted(chunks, key=lambda chunk: chunk[0])}
        places = [place for place, _ in newest.values()]
        documents = [payload.get("document_id") for _, payload in newest.values()]
        return settings, layout_of(places, list(newest), documents)

    @contextmanager
    def writing(self) -> Iterator[Change]:
        """Open a change; see `Engine.writing`, and the module for what Qdrant does not give."""
        with self._lock:
            change = Change(self._settings())
            yield change
            change.finish()
            self._apply(change)

    def search(self, queries: np.ndarray, ranges: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search all ranges in one batch; see `StepSearch.search`."""
        from qdrant_client.models import FieldCondition, Filter, QueryRequest, Range, SearchParams

        requests = [
            QueryRequest(
                query=query,
                filter=Filter(must=[FieldCondition(key="place", range=Range(gte=low, lt=high))]),
                params=SearchParams(exact=True),
                limit=k,
                with_payload=False,
            )
            for query, (low, high) in zip(queries.tolist(), ranges.tolist(), strict=True)
        ]
        with self._lock:
            answers = [
                answer
                for first in range(0, len(requests), _QUERIES_AT_ONCE)
                for answer in self._client.query_batch_points(
                    self._collection, requests=requests[first : first + _QUERIES_AT_ONCE]
                )
            ]
        return padded([[(int(hit.id), hit.score) for hit in answer.points] for answer in answers], k)

    def oldest(self) -> int:
        """Return the oldest version that is still whole; see `Engine.oldest`."""
        with self._lock:
            return self._settings().oldest

    def deleted_ids(self) -> set[str]:
        """Return the ids that were ever deleted."""
        with self._lock:
            points = self._scroll(self._settings_collection, ["deleted"])
            return {point.payload["deleted"] for point in points if "deleted" in point.payload}

    def records(self, places: np.ndarray) -> list[Record | None]:
        """Read records; see `Engine.records`."""
        found = {point.id: point.payload for point in self._retrieve(places, with_payload=True)}
        return [
            parsed_record(*(found[place].get(key) for key in ("id", "document_id", "text", "metadata", "node")))
            if place in found
            else None
            for place in places.tolist()
        ]

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """Read vectors; see `Engine.vectors`."""
        found = {point.id: point.vector for point in self._retrieve(places, with_vectors=True)}
        dim = self._settings().dim
        missing = np.full(dim, np.nan, np.float32)
        return np.array([found.get(place, missing) for place in places.tolist()], np.float32).reshape(-1, dim)

    def _apply(self, change: Change) -> None:
        from qdrant_client.models import PointStruct

        points = [
            PointStruct(id=place, vector=vector.tolist(), payload=_payload(place, record))
            for place, record, vector in zip(change.places.tolist(), change.records, change.vectors, strict=True)
        ]
        removed = [record.id for record in self.records(np.array(change.removed, np.int64)) if record is not None]
        # New chunks before old ones go: cut off in between, nothing is lost.
        self._upsert(self._collection, points)
        self._delete(sorted(set(change.removed) - set(change.places.tolist())))
        self._upsert(
            self._settings_collection,
            [
                PointStruct(id=str(uuid.uuid5(uuid.NAMESPACE_OID, id_)), vector=[0.0], payload={"deleted": id_})
                for id_ in change.deleted(removed)
            ],
        )
        self._keep_settings(change.settings)

    def _upsert(self, collection: str, points: list[Any]) -> None:
        for first in range(0, len(points), _POINTS_AT_ONCE):
            self._client.upsert(collection, points[first : first + _POINTS_AT_ONCE], wait=True)

    def _delete(self, places: list[int]) -> None:
        from qdrant_client.models import PointIdsList

        for first in range(0, len(places), _NUMBERS_AT_ONCE):
            part: list[Any] = places[first : first + _NUMBERS_AT_ONCE]
            self._client.delete(self._collection, PointIdsList(points=part), wait=True)

    def _keep_settings(self, settings: EngineSettings) -> None:
        from qdrant_client.models import PointStruct

        payload = {"settings": json.dumps(asdict(settings))}
        self._upsert(self._settings_collection, [PointStruct(id=_SETTINGS_POINT, vector=[0.0], payload=payload)])

    def _settings(self) -> EngineSettings:
        with self._lock:
            found = self._client.retrieve(self._settings_collection, [_SETTINGS_POINT])
        payload = found[0].payload or {} if found else {}
        if "settings" not in payload:
            raise EngineError(f"the index {self.location} has lost its settings; restore it or build it again")
        return EngineSettings.parsed(json.loads(payload["settings"]), self.location)

    def _retrieve(self, places: np.ndarray, **what: bool) -> Iterator[Any]:
        options = {"with_payload": False, "with_vectors": False, **what}
        wanted = places.tolist()
        with self._lock:
            for first in range(0, len(wanted), _POINTS_AT_ONCE):
                yield from self._client.retrieve(self._collection, wanted[first : first + _POINTS_AT_ONCE], **options)

    def _scroll(self, collection: str, keys: Sequence[str]) -> Iterator[Any]:
        offset: Any = None
        while True:
            points, offset = self._client.scroll(
                collection, limit=_NUMBERS_AT_ONCE, offset=offset, with_payload=list(keys), with_vectors=False
            )
            yield from points
            if offset is None:
                return


def _payload(place: int, record: Record) -> dict[str, Any]:
    return {
        "place": place,
        "id": record.id,
        "document_id": record.document_id,
        "text": record.text,
        # As text: an engine's own numbers and nesting would not bring everything back as it was.
        "metadata": metadata_json(record),
        "node": node_json(record),
    }

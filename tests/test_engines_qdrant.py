"""Qdrant: the requests of a hop, changes that are cut off, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams

from qrag_retriever import ChunkIndex, MultiStepSelector
from qrag_retriever.errors import EngineError, StaleVersionError, UnknownIdError
from tests.engine_indexes import DIM, MODEL, assert_same_hop, in_memory, states, story


@pytest.fixture
def client() -> QdrantClient:
    return QdrantClient(":memory:")


def test_a_hop_is_one_batch_of_exact_range_queries(client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ChunkIndex.on_qdrant(client, "chunks", model=MODEL)
    index.add(**story())
    batches: list[Any] = []
    query = client.query_batch_points

    def recorded(collection: str, requests: Any) -> Any:
        batches.append(requests)
        return query(collection, requests=requests)

    monkeypatch.setattr(client, "query_batch_points", recorded)
    index.top_k(states(1)[0], [5, 30], 3)
    assert len(batches) == 1
    assert all(request.params.exact and len(request.filter.must) == 1 for request in batches[0])
    assert 3 <= len(batches[0]) <= 3 * 19


def test_no_graph_is_built_and_vectors_are_kept_as_they_are(client: QdrantClient, monkeypatch: Any) -> None:
    made: dict[str, Any] = {}
    create = client.create_collection
    monkeypatch.setattr(
        client, "create_collection", lambda name, **settings: (made.update({name: settings}), create(name, **settings))
    )
    ChunkIndex.on_qdrant(client, "chunks", dim=DIM)
    assert made["chunks"]["hnsw_config"].m == 0
    assert made["chunks"]["vectors_config"].distance == Distance.DOT


def test_a_foreign_collection_is_refused_and_left_alone(client: QdrantClient) -> None:
    client.create_collection("mine", vectors_config=VectorParams(size=3, distance=Distance.COSINE))
    with pytest.raises(EngineError, match="something else"):
        ChunkIndex.on_qdrant(client, "mine", model=MODEL)
    assert [collection.name for collection in client.get_collections().collections] == ["mine"]
    with pytest.raises(ValueError, match="empty"):
        ChunkIndex.on_qdrant(client, "", model=MODEL)
    with pytest.raises(TypeError, match="QdrantClient"):
        ChunkIndex.on_qdrant(5, model=MODEL)


def test_lost_settings_are_told(client: QdrantClient) -> None:
    index = ChunkIndex.on_qdrant(client, model=MODEL)
    client.delete("qrag_chunks_settings", [0])
    with pytest.raises(EngineError, match="lost its settings"):
        index.add(["a"])


def test_a_location_makes_a_client() -> None:
    index = ChunkIndex.on_qdrant(":memory:", dim=DIM)
    index.add(["a"], embeddings=states(1))
    assert len(index) == 1


def test_large_changes_go_in_batches(client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POINTS_AT_ONCE", "_QUERIES_AT_ONCE", "_NUMBERS_AT_ONCE"):
        monkeypatch.setattr(f"qrag_retriever.engines.qdrant.{name}", 7)
    index, memory = ChunkIndex.on_qdrant(client, model=MODEL), in_memory()
    for one in (index, memory):
        one.add(**story())
        one.delete(one.ids[:20])
        one.delete(one.ids[:1])
    assert index.ids == memory.ids == ChunkIndex.on_qdrant(client).ids
    assert index.get(index.ids) == memory.get(memory.ids)
    assert_same_hop(index.top_k(states(1)[0], [3], 9), memory.top_k(states(1)[0], [3], 9))
    assert index.delete(["id0"]) == []


def test_a_change_that_was_cut_off_is_made_by_calling_again(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, memory = ChunkIndex.on_qdrant(client, model=MODEL), in_memory()
    for one in (index, memory):
        one.add(**story(20))

    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionError("lost")

    # id1 moves to another document: stored at its new place, not yet deleted at its old one.
    change = (["moved", "new"], [{"document_id": "doc3"}, None], ["id1", "new"])
    monkeypatch.setattr(client, "delete", lost)
    with pytest.raises(ConnectionError):
        index.add(*change)
    monkeypatch.undo()
    again = ChunkIndex.on_qdrant(client, model=MODEL)
    assert len(set(again.ids)) == len(again)
    for one in (again, memory):
        one.add(*change)
    assert sorted(again.ids) == sorted(memory.ids)
    assert again.get(["id1", "new"]) == memory.get(["id1", "new"])
    found, _ = again.top_k(states(1)[0], [2], 30)
    assert sorted(found[found >= 0].tolist()) == [chunk for chunk in range(len(again)) if chunk != 2]


def test_chunks_that_vanish_during_anothers_change_are_noticed(client: QdrantClient) -> None:
    index = ChunkIndex.on_qdrant(client, model=MODEL)
    index.add(["a", "b"], ids=["a", "b"])
    client.delete("qrag_chunks", [0])
    with pytest.raises(StaleVersionError, match="being changed"):
        index.get(["a"])
    index.refresh()
    assert index.ids == ["b"]


def test_an_index_that_took_the_place_of_another_is_not_taken_for_it(client: QdrantClient) -> None:
    def made(texts: list[str]) -> ChunkIndex:
        index = ChunkIndex.on_qdrant(client, "chunks", model=MODEL)
        index.add(texts, ids=texts)
        return index

    opened = [made(["A", "B", "C"]), ChunkIndex.on_qdrant(client, "chunks", model=MODEL)]
    for name in ("chunks", "chunks_settings"):
        client.delete_collection(name)
    made(["Z", "Y", "X"])
    with pytest.raises(UnknownIdError, match="'B'"):
        opened[0].delete(["B"])
    found = MultiStepSelector(opened[1], k=3).select("Where?")
    assert sorted(found.ids) == ["X", "Y", "Z"]


def test_a_url_at_which_nothing_answers_is_named() -> None:
    with pytest.raises(EngineError, match=r"no Qdrant answers at 'http://127\.0\.0\.1:9'.*start it"):
        ChunkIndex.on_qdrant("http://127.0.0.1:9", "chunks", model=MODEL)

"""What holds on every engine: the same hops, searches and changes as in memory."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGRetriever
from qrag_retriever.errors import DuplicateIdError, ModelMismatchError, StaleVersionError, UnknownIdError
from tests.engine_indexes import (
    DIM,
    ENGINES,
    MODEL,
    NATIVE,
    Opener,
    assert_same_hop,
    assert_same_search,
    in_memory,
    states,
    story,
)
from tests.toy_model import ToyModel

HOSTILE = ["'; DROP TABLE chunks; --", '"}]', "$1", "%s %(k)s", "{table}", "\\", "ключ 🔑", "a\nb\tc", "null", "NaN"]


@pytest.fixture(params=ENGINES)
def opener(request: pytest.FixtureRequest) -> Opener:
    return make_opener(request.param, request)


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest) -> Opener:
    return make_opener(request.param, request)


def make_opener(engine: str, request: pytest.FixtureRequest) -> Opener:
    return Opener(engine, request.getfixturevalue("postgres") if engine == "pgvector" else None)


def both(opener: Opener, mode: str = "document", count: int = 60) -> tuple[ChunkIndex, ChunkIndex]:
    """The same chunks on an engine and in memory."""
    indexes = opener(mode=mode), in_memory(mode)
    for index in indexes:
        index.add(**story(count))
    return indexes


@pytest.mark.parametrize("mode", ["document", "corpus"])
def test_a_hop_finds_what_the_scan_in_memory_finds(opener: Opener, mode: str) -> None:
    index, memory = both(opener, mode)
    for number, picks in enumerate([[], [0], [59], [3, 4, 40], [0, 1, 2, 57, 58, 59]]):
        (state,) = states(1, seed=number)
        for k in (1, 5, 100):
            assert_same_hop(index.top_k(state, picks, k), memory.top_k(state, picks, k))
    batch = states(3), [[1, 2], [], [30]]
    assert_same_hop(index.top_k(*batch, 4), memory.top_k(*batch, 4))


def test_masks_of_every_kind_are_exact(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    index, memory = both(opener)
    random = np.random.default_rng(5)
    masks = [
        np.zeros(60, bool),
        np.ones(60, bool),
        np.arange(60) > 40,
        random.random(60) < 0.1,
        random.random(60) < 0.5,
    ]
    for most_stretches in (256, 0):  # cut out of the ranges; applied to what comes back
        monkeypatch.setattr("qrag_retriever.engines.scan._MOST_STRETCHES", most_stretches)
        for mask in masks:
            for picks in ([], [7, 45]):
                (state,) = states(1, seed=int(mask.sum()))
                assert_same_hop(index.top_k(state, picks, 6, mask), memory.top_k(state, picks, 6, mask))


FILTERS: list[Any] = [
    None,
    {"odd": 1},
    {"document_id": "doc2"},
    {"document_id": "nowhere"},
    lambda metadata: metadata["number"] % 7 == 0,
    MetadataFilters(filters=[MetadataFilter(key="number", value=20, operator=FilterOperator.GT)]),
]


@pytest.mark.parametrize("mode", ["document", "corpus"])
def test_searches_find_what_they_find_in_memory(opener: Opener, mode: str) -> None:
    index, memory = both(opener, mode)
    for filters in FILTERS:
        for settings in ({}, {"beam_width": 3}, {"min_q": 1.0}):
            found, expected = (MultiStepSelector(i, k=3, filters=filters, **settings) for i in (index, memory))
            assert_same_search(found.select("where?"), expected.select("where?"))
    found, expected = (MultiStepSelector(i, k=4).select_many(["a", "b", "c"]) for i in (index, memory))
    for one, other in zip(found, expected, strict=True):
        assert_same_search(one, other)


@pytest.mark.parametrize("mode", ["document", "corpus"])
def test_additions_updates_and_deletions(opener: Opener, mode: str) -> None:
    index, memory = both(opener, mode)
    changes = [
        lambda i: i.delete(["id3", "id59", "id0"]),
        lambda i: i.add(**story(5, first=100)),
        lambda i: i.add(["new text"], [{"document_id": "doc1", "number": 5, "odd": 1}], ["id5"]),
        lambda i: i.add(["moved"], [{"document_id": "doc3", "number": 6, "odd": 0}], ["id6"]),
        lambda i: i.add(["again"], [{"number": 3, "odd": 1}], ["id3"]),
        lambda i: i.delete(["id104", "id103"]),  # the last ones, so that their places are taken anew
        lambda i: i.add(["last"], [{"number": 1, "odd": 0}], ["id104"]),
        lambda i: i.delete_document("doc2"),
        lambda i: i.delete(["id59"]),
        lambda i: i.delete(i.ids),
        lambda i: i.add(**story(9)),
    ]
    for change in changes:
        assert change(index) == change(memory)
        assert index.ids == memory.ids
        assert len(index) == len(memory)
        assert index.get(["id5", "id6", "no"]) == memory.get(["id5", "id6", "no"])
        if len(memory):
            assert_same_hop(index.top_k(states(1)[0], [0], 8), memory.top_k(states(1)[0], [0], 8))
        for filters in (None, {"odd": 1}, {"document_id": "doc1"}):
            found, expected = (MultiStepSelector(i, k=3, filters=filters).select("where?") for i in (index, memory))
            assert_same_search(found, expected)


def test_wrong_calls_change_nothing(opener: Opener) -> None:
    index, memory = both(opener)
    with pytest.raises(UnknownIdError, match="stranger"):
        index.delete(["id1", "stranger"])
    with pytest.raises(DuplicateIdError):
        index.add(["a", "b"], ids=["x", "x"])
    with pytest.raises(TypeError, match="'when'"):
        index.add(["a"], [{"when": object()}], ["id1"])
    with pytest.raises(ValueError, match="dimension"):
        index.add(["a"], embeddings=np.ones((1, 3), np.float32))
    assert index.ids == memory.ids
    assert index.get(["id1"]) == memory.get(["id1"])


def test_hostile_text_comes_back_as_it_went_in(opener: Opener) -> None:
    index = opener()
    metadatas = [
        {"document_id": text, text: text, "nested": {"list": [1, 1.5, None, True, text, 2**60]}} for text in HOSTILE
    ]
    index.add(HOSTILE, metadatas, HOSTILE)
    assert [record.text for record in index.get(HOSTILE)] == HOSTILE
    assert [record.metadata for record in index.get(HOSTILE)] == metadatas
    for text in HOSTILE:
        found = MultiStepSelector(index, k=2, filters={"document_id": text}).select("?")
        assert [step.id for step in found.steps] == [text]
        found = MultiStepSelector(index, k=2, filters={text: text}).select("?")
        assert [step.id for step in found.steps] == [text]
    assert index.delete(HOSTILE[:4]) == HOSTILE[:4]
    assert index.delete(HOSTILE[:5]) == HOSTILE[4:5]
    assert index.ids == HOSTILE[5:]


def test_an_empty_index_finds_nothing(opener: Opener) -> None:
    index = opener()
    assert len(index) == 0
    assert index.mode == "document"
    assert MultiStepSelector(index).select("?").stop_reason == "exhausted"
    assert index.top_k(states(1)[0], [], 2)[0].tolist() == [-1, -1]
    assert index.add([]) == []


def test_retrievers_of_both_frameworks_work(opener: Opener) -> None:
    retriever = QRAGRetriever(index=opener(mode="corpus"), k=3)
    retriever.add_texts(["one", "two"], [{"a": 1}, None], ["1", "2"])
    retriever.add_documents([Document("three", metadata={"source": "s"}, id="3"), TextNode(text="four", id_="4")])
    assert retriever.index.ids == ["1", "2", "3", "4"]
    documents = retriever.invoke("?")
    nodes = retriever.retrieve("?")
    assert [document.id for document in documents] == [node.node.node_id for node in nodes]
    assert len(documents) == 3
    assert isinstance(retriever.invoke("?", k=1, filters={"document_id": "s"})[0], Document)
    retriever.delete(["1"])
    assert retriever.index.ids == ["2", "3", "4"]


def test_embeddings_alone_need_no_model(opener: Opener) -> None:
    index = opener(dim=6, mode="corpus")
    index.add(["a", "b"], ids=["a", "b"], embeddings=np.eye(2, 6, dtype=np.float32))
    ids, scores = index.top_k(np.array([1, 2, 0, 0, 0, 0], np.float32), [], 2)
    assert ids.tolist() == [1, 0]
    np.testing.assert_allclose(scores, [2, 1], atol=1e-5)
    assert index.config is None
    with pytest.raises(ValueError, match="model"):
        _ = index.model


def test_what_engines_cannot_do_is_refused_before_anything_is_made(opener: Opener) -> None:
    with pytest.raises(ValueError, match="absolute positions"):
        opener(model=ToyModel("absolute", dim=DIM))
    with pytest.raises(ValueError, match="dimension"):
        opener(model=ToyModel(dim=DIM), dim=DIM + 4)
    with pytest.raises(ValueError, match="mode"):
        opener(mode="both")
    index = opener(model=ToyModel("absolute", dim=DIM), mode="corpus")
    index.add(["a"])
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(index)


def test_a_search_begun_before_an_addition_goes_on_with_its_version(opener: Opener) -> None:
    index, memory = both(opener)
    view = index.view
    index.add(**story(30, first=200))  # most of them into the middle
    state = states(1)
    expected = memory.view.top_k(state, [[5]], 7)
    assert_same_hop(view.top_k(state, [[5]], 7), expected)
    assert [record.id for record in view.records(range(60))] == memory.ids


def test_a_search_begun_before_a_deletion_begins_anew(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    index, memory = both(opener)
    first = MultiStepSelector(memory, k=1).select("where?").steps[0].id
    before = index.view
    selector = MultiStepSelector(index, k=3)
    hop = selector._hop

    def deleting_hop(*arguments: Any) -> None:
        hop(*arguments)
        monkeypatch.undo()
        index.delete([first])

    monkeypatch.setattr(selector, "_hop", deleting_hop)
    found = selector.select("where?")
    memory.delete([first])
    assert_same_search(found, MultiStepSelector(memory, k=3).select("where?"))
    with pytest.raises(StaleVersionError, match="refresh"):
        before.top_k(states(1), [[]], 2)


# Engines that can be opened again.


def test_an_index_is_opened_again(native: Opener) -> None:
    native(name="kept", model=MODEL, mode="corpus").add(**story())
    memory = in_memory("corpus")
    memory.add(**story())
    index = native(name="kept", model=MODEL)
    assert index.mode == "corpus"
    assert index.ids == memory.ids
    assert index.get(memory.ids) == memory.get(memory.ids)
    assert_same_hop(index.top_k(states(1)[0], [2], 9), memory.top_k(states(1)[0], [2], 9))
    assert_same_search(MultiStepSelector(index).select("?"), MultiStepSelector(memory).select("?"))
    without = native(name="kept")  # searches by embeddings need no model
    assert without.config == MODEL.config
    assert_same_hop(without.top_k(states(1)[0], [2], 9), memory.top_k(states(1)[0], [2], 9))


def test_another_model_mode_or_dimension_is_refused(native: Opener) -> None:
    native(name="refusing", model=MODEL).add(["a"], ids=["a"])
    with pytest.raises(ModelMismatchError, match="another model"):
        native(name="refusing", model=ToyModel(dim=DIM, seed=1))
    with pytest.raises(ModelMismatchError):
        native(name="refusing", model=ToyModel(dim=DIM + 4))
    with pytest.raises(ValueError, match="mode 'document', not 'corpus'"):
        native(name="refusing", mode="corpus")
    with pytest.raises(ValueError, match=f"dim {DIM}, not 8"):
        native(name="refusing", dim=8)
    assert native(name="refusing", model=MODEL, mode="document", dim=DIM).ids == ["a"]


def test_two_that_write_see_each_others_changes(native: Opener) -> None:
    one = native(name="shared", model=MODEL)
    two = native(name="shared", model=MODEL)
    one.add(["a", "b", "c"], ids=["a", "b", "c"])
    assert len(two) == 0
    two.add(["d"], ids=["d"])
    assert two.ids == ["a", "b", "c", "d"]
    one.delete(["d"])
    assert one.ids == ["a", "b", "c"]
    assert two.delete(["d", "a"]) == ["a"]
    one.refresh()
    assert one.ids == two.ids == ["b", "c"]


def test_a_search_takes_over_what_others_deleted(native: Opener) -> None:
    one, two = native(name="followed", model=MODEL), native(name="followed", model=MODEL)
    one.add(**story())
    two.refresh()
    one.delete(one.ids[:30])
    memory = in_memory()
    memory.add(**story())
    memory.delete(memory.ids[:30])
    assert_same_search(MultiStepSelector(two).select("?"), MultiStepSelector(memory).select("?"))
    assert two.ids == memory.ids


def test_an_index_on_an_engine_can_be_saved_to_a_folder(native: Opener, tmp_path: Any) -> None:
    index, memory = both(native)
    index.delete(["id1"])
    memory.delete(["id1"])
    np.testing.assert_allclose(index.q_values(states(1)[0], [3]), memory.q_values(states(1)[0], [3]), atol=1e-4)
    index.save(tmp_path / "copy")
    loaded = ChunkIndex.load(tmp_path / "copy", model=MODEL)
    assert index.path == tmp_path / "copy"
    assert loaded.get(loaded.ids) == memory.get(memory.ids)
    assert loaded.delete(["id1"]) == []


def test_nodes_come_back_whole(native: Opener) -> None:
    node = TextNode(text="text", id_="n", metadata={"a": [1]}, excluded_embed_metadata_keys=["a"])
    retriever = QRAGRetriever(index=native(name="nodes", model=MODEL))
    retriever.add_documents([node])
    (found,) = QRAGRetriever(index=native(name="nodes", model=MODEL)).retrieve("?")
    assert "a" in found.node.excluded_embed_metadata_keys
    assert found.node.text == "text"

"""QRAGRetriever apart from the frameworks: its class, settings, search, changes, storage, and what it imports."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.indexing.base import DocumentIndex
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import IndexNode, TextNode
from pydantic import BaseModel, ValidationError

from qrag_retriever import ChunkIndex, QRAGModel, QRAGRetriever
from qrag_retriever.errors import DuplicateIdError, IndexFolderError, ModelMismatchError, UnknownIdError
from tests.conftest import QUESTION, STORY

OTHER_QUESTION = "Who wrote a letter?"
IDS = [f"s{number}" for number in range(len(STORY))]
METADATAS = [{"line": number} for number in range(len(STORY))]


@pytest.fixture(scope="module")
def story_index(model: QRAGModel) -> ChunkIndex:
    """Shared: tests that change an index make their own."""
    return ChunkIndex.from_texts(STORY, METADATAS, IDS, model)


@pytest.fixture
def retriever(story_index: ChunkIndex) -> QRAGRetriever:
    return QRAGRetriever(index=story_index)


@pytest.fixture
def own(model: QRAGModel) -> QRAGRetriever:
    """A retriever with an index of its own, to be changed."""
    return QRAGRetriever.from_texts(STORY, METADATAS, IDS, model=model)


@pytest.fixture
def other_model(tiny_encoder: Path) -> QRAGModel:
    """A model with other embeddings than `model`."""
    return QRAGModel.from_encoder(tiny_encoder, positions="relative", output_scale=0.2, device="cpu")


def all_found(retriever: QRAGRetriever) -> set[str]:
    return {step.text for step in retriever.search(QUESTION, k=100).steps}


# The class


def test_it_is_a_subclass_of_both_frameworks_retrievers() -> None:
    """Of the classes themselves: both are named BaseRetriever, so a look at names proves nothing."""
    assert LangChainRetriever is not LlamaIndexRetriever
    for base in (LangChainRetriever, LlamaIndexRetriever, DocumentIndex):
        assert issubclass(QRAGRetriever, base)


def test_one_object_is_an_instance_of_both(retriever: QRAGRetriever) -> None:
    assert isinstance(retriever, LangChainRetriever)
    assert isinstance(retriever, LlamaIndexRetriever)


def test_pydantic_s_constructor_comes_before_llama_index_s() -> None:
    mro = QRAGRetriever.__mro__
    models = [base for base in mro if issubclass(base, BaseModel)]
    assert mro.index(models[-1]) < mro.index(LlamaIndexRetriever)
    assert mro.index(BaseModel) < mro.index(LlamaIndexRetriever)


def test_what_copies_and_configuration_need_are_fields() -> None:
    """A private attribute would be lost where LangChain rebuilds a retriever from its fields."""
    assert {"index", "callback_manager", "object_map", "verbose"} <= QRAGRetriever.model_fields.keys()
    assert QRAGRetriever.__private_attributes__.keys() == LangChainRetriever.__private_attributes__.keys()
    assert QRAGRetriever.model_config["extra"] == "forbid"


def test_it_pickles_under_a_fixed_name() -> None:
    assert f"{QRAGRetriever.__module__}.{QRAGRetriever.__qualname__}" == "qrag_retriever.retriever.QRAGRetriever"


def test_a_subclass_works_in_both_frameworks(story_index: ChunkIndex) -> None:
    class Twice(QRAGRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
            return 2 * super()._get_relevant_documents(query, run_manager=run_manager, **kwargs)

    made = Twice(index=story_index)
    assert (len(made.invoke(QUESTION)), len(made.invoke(QUESTION, k=1)), len(made.retrieve(QUESTION))) == (8, 2, 4)


async def test_a_subclass_may_have_langchain_s_own_signature(story_index: ChunkIndex) -> None:
    class Last(QRAGRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return super()._get_relevant_documents(query, run_manager=run_manager)[-1:]

    made = Last(index=story_index)
    expected = made.invoke(QUESTION)
    assert len(expected) == 1
    assert await made.ainvoke(QUESTION) == expected
    assert await made.abatch([QUESTION] * 2) == made.batch([QUESTION] * 2) == [expected] * 2
    with pytest.raises(TypeError, match="'k' per call, which _get_relevant_documents of Last does not take"):
        made.invoke(QUESTION, k=1)


# Settings


def test_defaults(retriever: QRAGRetriever) -> None:
    names = ("k", "min_q", "beam_width", "order", "filters", "score_key", "verbose")
    assert [getattr(retriever, name) for name in names] == [4, None, 1, "retrieved", None, "score", False]
    assert retriever.mode == "document"


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 0}, {"k": -1}, {"k": 2.5}, {"k": "many"}, {"k": None}, {"similarity_top_k": 0}, {"beam_width": 0},
        {"order": "random"}, {"min_q": "often"}, {"min_q": float("nan")}, {"min_q": "auto"}, {"score_key": 3},
        {"object_map": 3}, {"verbose": "perhaps"}, {"top_k": 3}, {"k": 2, "similarity_top_k": 2},
    ],
    ids=repr,
)  # fmt: skip
def test_a_wrong_setting_raises_and_is_named(story_index: ChunkIndex, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(settings)[-1]):
        QRAGRetriever(index=story_index, **settings)


def test_a_copy_with_other_settings(story_index: ChunkIndex) -> None:
    retriever = QRAGRetriever(index=story_index)
    assert len(retriever.model_copy(update={"similarity_top_k": 1}).retrieve(QUESTION)) == 1
    assert len(retriever.model_copy(update={"k": 2}, deep=True).invoke(QUESTION)) == 2
    node = IndexNode(text="Link.", index_id="inner", obj=retriever)
    assert retriever.model_copy(update={"objects": [node]}).object_map == {"inner": retriever}
    with pytest.raises(ValueError, match="k and similarity_top_k are two names of one setting"):
        retriever.model_copy(update={"k": 1, "similarity_top_k": 3})
    with pytest.raises(ValueError, match="there is no setting 'filter'; here it is filters"):
        retriever.model_copy(update={"filter": {"line": 1}})


@pytest.mark.parametrize("index", [None, "story", STORY])
def test_a_wrong_index_raises(index: Any) -> None:
    with pytest.raises(ValueError, match="ChunkIndex"):
        QRAGRetriever(index=index)


@pytest.mark.parametrize(
    "wrong",
    [
        {"beam_widht": 2}, {"k": 0}, {"order": "doc"}, {"min_q": "atuo"}, {"mode": "corpora"}, {"scan": "int4"},
        {"min_q": "auto"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("make", ["from_texts", "from_documents"])
def test_a_wrong_setting_is_told_before_anything_is_embedded(
    model: QRAGModel, monkeypatch: pytest.MonkeyPatch, make: str, wrong: dict[str, Any]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("embedded")

    monkeypatch.setattr(QRAGModel, "encode_chunks", refuse)
    given = STORY if make == "from_texts" else [Document(page_content=text) for text in STORY]
    with pytest.raises(ValueError, match=next(iter(wrong))):
        getattr(QRAGRetriever, make)(given, model=model, **wrong)


def test_a_retriever_without_an_index_is_told_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs an index; from_texts, from_documents and load"):
        QRAGRetriever()
    with pytest.raises(ValueError, match=r"expected a ChunkIndex, got the path .*; open it with QRAGRetriever\.load"):
        QRAGRetriever(index=tmp_path)


def test_an_unknown_attribute_cannot_be_set(retriever: QRAGRetriever) -> None:
    with pytest.raises(ValueError, match="top_n"):
        retriever.top_n = 3


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (-1, ValueError), ("many", TypeError), (2.5, TypeError)])
def test_a_wrong_k_raises_in_the_search_at_the_latest(retriever: QRAGRetriever, k: Any, error: type[Exception]) -> None:
    """Pydantic does not check what is assigned, nor what a call is given."""
    with pytest.raises(error, match="k must be"):
        retriever.search(QUESTION, k=k)
    retriever.k = k
    with pytest.raises(error, match="k must be"):
        retriever.search(QUESTION)


def test_a_retriever_takes_over_what_another_has_added(own: QRAGRetriever, model: QRAGModel, tmp_path: Path) -> None:
    own.save(tmp_path / "index")
    other = QRAGRetriever.load(tmp_path / "index", model=model)
    own.add_texts(["Sandra slept."], ids=["late"])
    assert "late" not in other.index.ids
    other.refresh()
    assert "late" in other.index.ids


def test_numpy_s_integers_count(story_index: ChunkIndex) -> None:
    made = QRAGRetriever(index=story_index, k=np.int64(3), beam_width=np.int32(2))
    assert (made.k, type(made.k), made.beam_width) == (3, int, 2)
    with pytest.raises(ValidationError):
        QRAGRetriever(index=story_index, k=True)


def test_an_order_that_is_none_raises_in_the_search_at_the_latest(story_index: ChunkIndex) -> None:
    made = QRAGRetriever(index=story_index)
    made.order = "upside down"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="expected order as 'retrieved' or 'document', got 'upside down'"):
        made.invoke(QUESTION)


def test_retrievers_share_an_index_with_settings_of_their_own(story_index: ChunkIndex) -> None:
    few, many = QRAGRetriever(index=story_index, k=1), QRAGRetriever(index=story_index, k=6)
    assert few.search(QUESTION).ids == many.search(QUESTION).ids[:1]
    assert len(many.search(QUESTION)) == 6


# Stopping


def test_min_q_stops_where_the_best_value_is_not_above_it(retriever: QRAGRetriever) -> None:
    values = [step.q_value for step in retriever.search(QUESTION, k=12).steps]
    place = next(i for i in range(1, 12) if values[i] < min(values[:i]))
    stopped = retriever.search(QUESTION, k=12, min_q=values[place])
    assert (len(stopped), stopped.stop_reason) == (place, "min_q")


@pytest.mark.parametrize("how", ["setting", "argument"])
def test_min_q_can_stop_before_the_first_pick(story_index: ChunkIndex, how: str) -> None:
    made = QRAGRetriever(index=story_index, min_q=1e9 if how == "setting" else None)
    selection = made.search(QUESTION, min_q=1e9 if how == "argument" else None)
    assert (len(selection), selection.stop_reason) == (0, "min_q")
    if how == "setting":
        assert (made.invoke(QUESTION), made.retrieve(QUESTION)) == ([], [])


def test_auto_is_the_model_s_calibrated_value_of_the_mode(retriever: QRAGRetriever, tiny_encoder: Path) -> None:
    values = [step.q_value for step in retriever.search(QUESTION, k=6).steps]
    middle = float(np.median(values))
    options = {"positions": "relative", "output_scale": 0.1, "device": "cpu", "min_q": {"document": middle}}
    calibrated = QRAGModel.from_encoder(tiny_encoder, **options)
    made = QRAGRetriever.from_texts(STORY, model=calibrated, min_q="auto", k=12)
    assert made.search(QUESTION).stop_reason == "min_q"
    assert len(made.search(QUESTION)) == len(retriever.search(QUESTION, k=12, min_q=middle)) < 12
    with pytest.raises(ValueError, match="corpus"):
        QRAGRetriever.from_texts(STORY, model=calibrated, min_q="auto", mode="corpus")


def test_auto_without_a_calibrated_value_raises_per_call_too(retriever: QRAGRetriever) -> None:
    with pytest.raises(ValueError, match="calibrated"):
        retriever.search(QUESTION, min_q="auto")


@pytest.mark.parametrize("word", ["Auto", "none", "0,3"])
def test_a_word_that_is_no_min_q_is_told_in_one_line(story_index: ChunkIndex, word: str) -> None:
    with pytest.raises(ValidationError, match=rf"expected min_q as a number, 'auto' or None, got '{word}'"):
        QRAGRetriever(index=story_index, min_q=word)  # type: ignore[arg-type]


# Searching


def test_search_says_what_was_picked_and_why_it_stopped(retriever: QRAGRetriever) -> None:
    selection = retriever.search(QUESTION, k=3)
    assert (selection.query, selection.stop_reason, len(selection)) == (QUESTION, "k", 3)
    for step in selection.steps:
        assert (step.id, step.text, step.metadata) == (
            IDS[step.chunk_id],
            STORY[step.chunk_id],
            METADATAS[step.chunk_id],
        )
    assert len(set(selection.ids)) == 3


def test_search_ends_with_the_corpus(retriever: QRAGRetriever) -> None:
    selection = retriever.search(QUESTION, k=100)
    assert (sorted(selection.ids), selection.stop_reason) == (sorted(IDS), "exhausted")


def test_search_many_finds_what_search_finds(retriever: QRAGRetriever) -> None:
    queries = [QUESTION, OTHER_QUESTION, "Sandra?"]
    found = retriever.search_many(queries, k=3, filters={"line": list(range(8))})
    assert [one.query for one in found] == queries
    for query, one in zip(queries, found, strict=True):
        assert one.ids == retriever.search(query, k=3, filters={"line": list(range(8))}).ids
    assert retriever.search_many([]) == []


def test_search_many_embeds_once_per_hop(retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, batches = retriever.index.model.encode_states, []

    def noted(states: Any, **options: Any) -> Any:
        batches.append(len(states))
        return encode(states, **options)

    monkeypatch.setattr(retriever.index.model, "encode_states", noted)
    retriever.search_many([QUESTION, OTHER_QUESTION, "Sandra?"], k=2)
    assert batches == [3, 3]


def test_search_many_refuses_one_string(retriever: QRAGRetriever) -> None:
    with pytest.raises(TypeError, match="list"):
        retriever.search_many(QUESTION)


async def test_asearch_finds_what_search_finds(retriever: QRAGRetriever) -> None:
    arguments = {"k": 3, "filters": {"line": [1, 3, 5, 7]}, "min_q": -1e9}
    assert await retriever.asearch(QUESTION, **arguments) == retriever.search(QUESTION, **arguments)


@pytest.mark.parametrize(
    ("filters", "lines"),
    [
        ({"line": 3}, [3]),
        ({"line": [3, 4]}, [3, 4]),
        (lambda metadata: metadata["line"] > 9, [10, 11]),
        ({}, range(12)),
    ],
    ids=["dict", "dict of list", "callable", "empty"],
)
@pytest.mark.parametrize("how", ["setting", "argument"])
def test_filters_restrict_a_search(story_index: ChunkIndex, filters: Any, lines: Any, how: str) -> None:
    made = QRAGRetriever(index=story_index, k=100, filters=filters if how == "setting" else {"line": 0})
    selection = made.search(QUESTION, filters=filters if how == "argument" else None)
    assert sorted(step.metadata["line"] for step in selection.steps) == list(lines)


@pytest.mark.parametrize(("query", "error"), [("", ValueError), (" \n", ValueError), (3, TypeError), (None, TypeError)])
def test_a_query_must_be_text(retriever: QRAGRetriever, query: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="query"):
        retriever.search(query)


def test_order_document_shows_results_in_document_order_but_keeps_the_steps(story_index: ChunkIndex) -> None:
    picked = QRAGRetriever(index=story_index, k=6).search(QUESTION).ids
    made = QRAGRetriever(index=story_index, k=6, order="document")
    in_order = sorted(picked, key=IDS.index)
    assert picked != in_order
    assert made.search(QUESTION).ids == picked
    assert [document.id for document in made.invoke(QUESTION)] == in_order
    assert [hit.node_id for hit in made.retrieve(QUESTION)] == in_order


@pytest.mark.parametrize("order", ["retrieved", "document"])
def test_qrag_hop_is_the_place_in_the_order_of_picking(story_index: ChunkIndex, order: Any) -> None:
    made = QRAGRetriever(index=story_index, k=6, order=order)
    hops = {step.id: hop for hop, step in enumerate(made.search(QUESTION).steps, start=1)}
    assert {document.id: document.metadata["qrag_hop"] for document in made.invoke(QUESTION)} == hops
    assert {hit.node_id: hit.metadata["qrag_hop"] for hit in made.retrieve(QUESTION)} == hops
    assert sorted(hops.values()) == [1, 2, 3, 4, 5, 6]


def test_both_frameworks_give_the_same_results(retriever: QRAGRetriever) -> None:
    documents, nodes = retriever.invoke(QUESTION), retriever.retrieve(QUESTION)
    for document, hit in zip(documents, nodes, strict=True):
        assert (document.id, document.page_content, document.metadata["score"]) == (hit.node_id, hit.text, hit.score)


def test_editing_a_step_or_what_was_given_does_not_change_the_corpus(model: QRAGModel) -> None:
    given = [{"tags": ["a"]} for _ in STORY]
    made = QRAGRetriever.from_texts(STORY, given, IDS, model=model)
    given[made.search(QUESTION).steps[0].chunk_id]["tags"].append("changed")
    assert made.search(QUESTION).steps[0].metadata == {"tags": ["a"]}
    made.search(QUESTION).steps[0].metadata["tags"].append("changed")
    assert made.search(QUESTION).steps[0].metadata == {"tags": ["a"]}


# Making


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"texts": []}, ValueError, "at least one"),
        ({"texts": "one string"}, TypeError, "list"),
        ({"texts": ["a", 3]}, TypeError, "text 1"),
        ({"texts": ["a", "b"], "ids": ["x"]}, ValueError, "2 texts but 1 ids"),
        ({"texts": ["a", "b"], "metadatas": [{}]}, ValueError, "2 texts but 1 metadatas"),
        ({"texts": ["a", "b"], "ids": ["x", "x"]}, DuplicateIdError, "twice"),
        ({"texts": ["a"], "mode": "both"}, ValueError, "mode"),
        ({"texts": ["a"], "metadata": [{}]}, ValueError, "metadata"),
    ],
)
def test_from_texts_refuses(model: QRAGModel, arguments: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        QRAGRetriever.from_texts(**arguments, model=model)


def test_from_texts_makes_ids(model: QRAGModel) -> None:
    made = QRAGRetriever.from_texts(STORY, model=model)
    assert len(set(made.index.ids)) == len(STORY)
    assert made.invoke(QUESTION)[0].id in made.index.ids


def test_texts_can_be_empty_repeated_or_foreign(model: QRAGModel) -> None:
    texts = ["", "same", "same", "\u65e5\u672c\u8a9e \U0001f600", "[SEP] [MASK]", "x " * 500]
    made = QRAGRetriever.from_texts(texts, model=model, k=6)
    assert sorted(document.page_content for document in made.invoke(QUESTION)) == sorted(texts)
    assert sorted(hit.text for hit in made.retrieve(QUESTION)) == sorted(texts)


# Changing


async def _add_texts(retriever: QRAGRetriever, text: str, id_: str) -> list[str]:
    return retriever.add_texts([text], [{"line": 99}], [id_])


async def _aadd_texts(retriever: QRAGRetriever, text: str, id_: str) -> list[str]:
    return await retriever.aadd_texts([text], [{"line": 99}], [id_])


async def _add_documents(retriever: QRAGRetriever, text: str, id_: str) -> list[str]:
    return retriever.add_documents([Document(page_content=text, id=id_, metadata={"line": 99})])


async def _aadd_documents(retriever: QRAGRetriever, text: str, id_: str) -> list[str]:
    return await retriever.aadd_documents([Document(page_content=text, id=id_, metadata={"line": 99})])


async def _add_nodes(retriever: QRAGRetriever, text: str, id_: str) -> list[str]:
    return retriever.add_documents([TextNode(text=text, id_=id_, metadata={"line": 99})])


ADDERS = [_add_texts, _aadd_texts, _add_documents, _aadd_documents, _add_nodes]


@pytest.mark.parametrize("add", ADDERS)
async def test_an_added_chunk_is_found(own: QRAGRetriever, add: Callable[..., Any]) -> None:
    own.search(QUESTION)
    assert await add(own, "Something new.", "new") == ["new"]
    assert own.index.ids == [*IDS, "new"]
    (step,) = own.search(QUESTION, filters={"line": 99}).steps
    assert (step.id, step.text) == ("new", "Something new.")


@pytest.mark.parametrize("add", ADDERS)
async def test_adding_a_known_id_is_an_update(own: QRAGRetriever, add: Callable[..., Any]) -> None:
    own.search(QUESTION)
    assert await add(own, "Something new.", "s0") == ["s0"]
    assert len(own.index) == len(STORY)
    assert all_found(own) == {*STORY[1:], "Something new."}


def test_a_chunk_goes_to_the_end_of_its_document(model: QRAGModel) -> None:
    sources = [{"document_id": "a"}, {"document_id": "a"}, {"document_id": "b"}]
    made = QRAGRetriever.from_texts(STORY[:3], sources, ["a0", "a1", "b0"], model=model, order="document", k=10)
    made.add_texts(STORY[3:5], [{"document_id": "a"}, {"document_id": "c"}], ["a2", "c0"])
    assert made.index.ids == ["a0", "a1", "a2", "b0", "c0"]
    assert [document.id for document in made.invoke(QUESTION)] == made.index.ids


def test_an_index_grows_as_if_made_at_once(model: QRAGModel) -> None:
    grown = QRAGRetriever.from_texts(STORY[:5], ids=IDS[:5], model=model, k=12)
    for number in range(5, len(STORY)):
        grown.search(QUESTION)
        grown.add_texts([STORY[number]], ids=[IDS[number]])
    whole = QRAGRetriever.from_texts(STORY, ids=IDS, model=model, k=12)
    assert grown.search(QUESTION).ids == whole.search(QUESTION).ids


@pytest.mark.parametrize(
    "add",
    [lambda r: r.add_texts([]), lambda r: r.add_documents([]), lambda r: r.upsert([])["succeeded"]],
    ids=["add_texts", "add_documents", "upsert"],
)
def test_adding_nothing_changes_nothing(own: QRAGRetriever, add: Callable[[QRAGRetriever], Any]) -> None:
    assert add(own) == []
    assert own.index.ids == IDS


def test_a_refused_addition_changes_nothing(own: QRAGRetriever) -> None:
    with pytest.raises(DuplicateIdError, match="twice"):
        own.add_texts(["a", "b"], ids=["x", "x"])
    with pytest.raises(TypeError, match="document 1 is a str"):
        own.add_documents([Document(page_content="a"), "b"])
    assert own.index.ids == IDS


@pytest.mark.parametrize("in_folder", [False, True], ids=["memory", "folder"])
@pytest.mark.parametrize("gone", [["s0"], ["s5", "s6"], ["s11"], ["s9", "s10", "s11"], ["s0", "s11"], IDS], ids=str)
def test_deleted_chunks_are_gone_and_ranks_close_up(
    own: QRAGRetriever, model: QRAGModel, tmp_path: Path, gone: list[str], in_folder: bool
) -> None:
    if in_folder:
        own.save(tmp_path / "index")
    own.search(QUESTION)
    assert own.delete(gone)["succeeded"] == gone
    left = [number for number, id_ in enumerate(IDS) if id_ not in gone]
    assert own.index.ids == [IDS[number] for number in left]
    found = own.search(QUESTION, k=100)
    if not left:
        assert found.ids == []
        return
    anew = QRAGRetriever.from_texts([STORY[number] for number in left], ids=own.index.ids, model=model)
    assert found.ids == anew.search(QUESTION, k=100).ids
    assert sorted(step.chunk_id for step in found.steps) == list(range(len(left)))


@pytest.mark.parametrize("in_folder", [False, True], ids=["memory", "folder"])
def test_an_emptied_index_can_be_filled_again(own: QRAGRetriever, tmp_path: Path, in_folder: bool) -> None:
    if in_folder:
        own.save(tmp_path / "index")
    own.delete(IDS)
    assert (own.invoke(QUESTION), own.retrieve(QUESTION)) == ([], [])
    own.add_texts(STORY[:3])
    assert all_found(own) == set(STORY[:3])


def test_an_emptied_index_can_be_saved_and_loaded(own: QRAGRetriever, model: QRAGModel, tmp_path: Path) -> None:
    own.delete(IDS)
    own.save(tmp_path / "index")
    loaded = QRAGRetriever.load(tmp_path / "index", model)
    assert loaded.invoke(QUESTION) == []
    loaded.add_texts(STORY[:3])
    assert all_found(loaded) == set(STORY[:3])


def test_deleting_an_unknown_id_is_an_error_of_the_index_and_none_of_a_document_index(own: QRAGRetriever) -> None:
    with pytest.raises(UnknownIdError, match="nobody"):
        own.index.delete(["s1", "nobody"])
    assert own.index.ids == IDS
    # As LangChain defines it: a record manager may know ids that a new index does not.
    assert own.delete(["s1", "nobody"])["succeeded"] == ["s1"]
    assert own.delete(["nobody"])["num_deleted"] == 0


def test_deleting_twice_is_passed_over(own: QRAGRetriever) -> None:
    own.delete(["s1"])
    assert own.delete(["s1", "s2"])["succeeded"] == ["s2"]


@pytest.mark.parametrize("arguments", [{}, {"ids": None}, {"ids": ["s1"], "drop": True}])
def test_delete_wants_ids_and_nothing_else(own: QRAGRetriever, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="list of ids"):
        own.delete(**arguments)
    assert own.index.ids == IDS


def test_delete_refuses_one_string(own: QRAGRetriever) -> None:
    with pytest.raises(TypeError, match="list"):
        own.delete("s1")


# Saving and loading


def test_load_restores_index_and_settings(own: QRAGRetriever, model: QRAGModel, tmp_path: Path) -> None:
    own.k, own.order, own.score_key, own.beam_width, own.min_q = 7, "document", "relevance", 2, -5.0
    own.filters = {"line": 3}
    own.save(tmp_path / "index")
    loaded = QRAGRetriever.load(tmp_path / "index", model)
    names = ("k", "order", "score_key", "beam_width", "min_q")
    assert [getattr(loaded, name) for name in names] == [getattr(own, name) for name in names]
    assert loaded.filters is None
    assert loaded.search(QUESTION).ids == own.search(QUESTION, filters={}).ids
    assert loaded.invoke(QUESTION)[0].metadata.keys() == {"line", "qrag_hop", "relevance"}


@pytest.mark.parametrize("name", ["k", "similarity_top_k"])
def test_load_takes_other_settings(own: QRAGRetriever, model: QRAGModel, tmp_path: Path, name: str) -> None:
    own.save(tmp_path / "index")
    loaded = QRAGRetriever.load(tmp_path / "index", model, **{name: 2}, filters={"line": [1, 2, 3]})
    assert len(loaded.search(QUESTION)) == 2
    assert len(loaded.search(QUESTION, k=9)) == 3


def test_load_refuses_both_names_of_k(own: QRAGRetriever, model: QRAGModel, tmp_path: Path) -> None:
    own.save(tmp_path / "index")
    with pytest.raises((TypeError, ValueError), match="similarity_top_k"):
        QRAGRetriever.load(tmp_path / "index", model, k=2, similarity_top_k=3)


def test_load_finds_the_model_itself(own: QRAGRetriever, tmp_path: Path) -> None:
    own.save(tmp_path / "index")
    loaded = QRAGRetriever.load(tmp_path / "index", device="cpu")
    assert loaded.index.model is not own.index.model
    assert loaded.search(QUESTION).ids == own.search(QUESTION).ids


def test_changes_after_saving_are_in_the_folder(own: QRAGRetriever, model: QRAGModel, tmp_path: Path) -> None:
    own.save(tmp_path / "index")
    own.add_texts(["Something new."], ids=["new"])
    own.delete(["s0"])
    assert QRAGRetriever.load(tmp_path / "index", model).index.ids == [*IDS[1:], "new"]


def test_load_refuses_another_model_unless_it_may_reindex(
    own: QRAGRetriever, other_model: QRAGModel, tmp_path: Path
) -> None:
    own.k = 3
    own.save(tmp_path / "index")
    with pytest.raises(ModelMismatchError, match="reindex=True"):
        QRAGRetriever.load(tmp_path / "index", other_model)
    loaded = QRAGRetriever.load(tmp_path / "index", other_model, reindex=True)
    anew = QRAGRetriever.from_texts(STORY, METADATAS, IDS, model=other_model, k=3)
    assert loaded.search(QUESTION).ids == anew.search(QUESTION).ids
    assert loaded.search(QUESTION).steps[0].q_value == pytest.approx(anew.search(QUESTION).steps[0].q_value, rel=1e-2)
    assert QRAGRetriever.load(tmp_path / "index", other_model).k == 3


@pytest.mark.parametrize("content", [None, "a file"])
def test_load_refuses_what_is_not_an_index(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "something"
    if content is not None:
        folder.mkdir()
        (folder / "notes.txt").write_text(content)
    with pytest.raises(IndexFolderError, match="something"):
        QRAGRetriever.load(folder)


def test_save_does_not_overwrite_something_else(own: QRAGRetriever, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        own.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# The default model


def test_the_model_in_the_package_is_the_default(tmp_path: Path) -> None:
    """Offline; an index made with it opens without naming it."""
    retriever = QRAGRetriever.from_texts(STORY, ids=IDS, k=2)
    found = retriever.search(OTHER_QUESTION).ids
    assert "s4" in found
    retriever.save(tmp_path / "story.qrag")
    opened = QRAGRetriever.load(tmp_path / "story.qrag")
    assert opened.search(OTHER_QUESTION).ids[:2] == found
    assert opened.index.model.config.positions == "relative"


# What is imported

PRELUDE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocked())

def loaded(*names):
    return [name for name in names if name in sys.modules]

def message(function, *arguments):
    try:
        function(*arguments)
    except ImportError as error:
        return str(error)

def toy_retriever():
    import numpy as np
    from qrag_retriever import QRAGModel, QRAGConfig, QRAGRetriever

    class Toy(QRAGModel):
        def encode_chunks(self, texts, show_progress=None):
            return np.array([[len(text), 1, 0, 0] for text in texts], np.float32)

        def encode_states(self, states, show_progress=None):
            return np.ones((len(states), 4), np.float32)

    return QRAGRetriever.from_texts(["a", "bbb", "cc"], model=Toy(QRAGConfig(dim=4), None), k=2)
"""
HEAVY = ["torch", "sentence_transformers", "transformers", "langchain_core", "llama_index", "faiss"]


def run_python(code: str, blocked: str = "nothing", *arguments: str) -> Any:
    """Run code in a fresh interpreter without some packages; return the JSON that it prints last."""
    script = PRELUDE + textwrap.dedent(code)
    command = [sys.executable, "-c", script, blocked, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_loads_neither_torch_nor_a_framework() -> None:
    code = f"import qrag_retriever; dir(qrag_retriever); print(json.dumps(loaded(*{HEAVY})))"
    assert run_python(code) == []


def test_importing_the_retriever_loads_no_torch() -> None:
    code = """
    from qrag_retriever import QRAGRetriever
    print(json.dumps(loaded("torch", "sentence_transformers", "faiss")))
    """
    assert run_python(code) == []


def test_both_frameworks_are_found() -> None:
    code = """
    r = toy_retriever()
    print(json.dumps([[d.page_content for d in r.invoke("q")], [n.text for n in r.retrieve("q")]]))
    """
    assert run_python(code) == [["bbb", "cc"], ["bbb", "cc"]]


def test_langchain_alone_works() -> None:
    code = """
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    import asyncio, copy, pickle
    r = toy_retriever()
    r.add_documents([Document(page_content="dddd", id="new", metadata={"a": 1})])
    print(json.dumps({
        "is": isinstance(r, BaseRetriever),
        "invoke": [d.page_content for d in r.invoke("q")],
        "ainvoke": [d.page_content for d in asyncio.run(r.ainvoke("q", k=1))],
        "copy": [d.page_content for d in copy.deepcopy(r).invoke("q", filters={"a": 1})],
        "deleted": r.delete(["new"])["succeeded"],
        "dump": json.loads(r.model_dump_json())["k"],
        "retrieve": message(r.retrieve, "q"),
        "aretrieve": message(r.aretrieve, "q"),
        "loaded": loaded("llama_index.core"),
    }))
    """
    found = run_python(code, "llama_index")
    for name in ("retrieve", "aretrieve"):
        assert "pip install llama-index-core" in found.pop(name)
    assert found == {
        "is": True, "invoke": ["dddd", "bbb"], "ainvoke": ["dddd"], "copy": ["dddd"], "deleted": ["new"], "dump": 2,
        "loaded": [],
    }  # fmt: skip


def test_llama_index_alone_works() -> None:
    code = """
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import Document, TextNode
    import asyncio, copy
    r = toy_retriever()
    r.add_documents([TextNode(text="dddd", id_="new", metadata={"a": 1})])
    print(json.dumps({
        "is": isinstance(r, BaseRetriever),
        "retrieve": [n.text for n in r.retrieve("q")],
        "aretrieve": [n.text for n in asyncio.run(r.aretrieve("q"))],
        "copy": [n.text for n in copy.deepcopy(r).retrieve("q")],
        "deleted": r.delete(["new"])["succeeded"],
        "dump": json.loads(r.model_dump_json())["k"],
        "prompts": r.get_prompts(),
        "invoke": message(r.invoke, "q"),
        "ainvoke": message(r.ainvoke, "q"),
        "batch": message(r.batch, ["q"]),
        "loaded": loaded("langchain_core"),
    }))
    """
    found = run_python(code, "langchain_core,langchain,langchain_classic")
    for name in ("invoke", "ainvoke", "batch"):
        assert "pip install langchain-core" in found.pop(name)
    two = ["dddd", "bbb"]
    assert found == {
        "is": True, "retrieve": two, "aretrieve": two, "copy": two, "deleted": ["new"], "dump": 2, "prompts": {},
        "loaded": [],
    }  # fmt: skip


def test_without_a_framework_the_import_says_what_to_install_and_the_index_still_works() -> None:
    code = """
    def fails():
        from qrag_retriever import QRAGRetriever
    import numpy as np
    from qrag_retriever import ChunkIndex
    index = ChunkIndex.from_embeddings(np.eye(4, dtype=np.float32), mode="corpus")
    print(json.dumps([message(fails), index.top_k(np.array([0, 0, 1, 0], np.float32), [], 1)[0].tolist()]))
    """
    text, chunk_ids = run_python(code, "langchain_core,llama_index")
    assert "pip install langchain-core" in text
    assert "llama-index-core" in text
    assert chunk_ids == [2]


@pytest.mark.parametrize("broken", ["llama_index_instrumentation", "langsmith"])
def test_a_broken_framework_is_not_taken_for_a_missing_one(broken: str) -> None:
    code = """
    def fails():
        from qrag_retriever import QRAGRetriever
    print(json.dumps(message(fails)))
    """
    assert broken in run_python(code, broken)


@pytest.mark.parametrize("blocked", ["llama_index", "langchain_core,langchain,langchain_classic", "nothing"])
def test_a_pickle_loads_whatever_is_installed(tmp_path: Path, blocked: str) -> None:
    index = ChunkIndex.from_embeddings(np.eye(4, dtype=np.float32), ids=["a", "b", "c", "d"], mode="corpus")
    (tmp_path / "pickle").write_bytes(pickle.dumps(QRAGRetriever(index=index, k=3, score_key=None)))
    code = """
    import pickle
    r = pickle.load(open(sys.argv[2], "rb"))
    print(json.dumps([r.k, r.score_key, r.index.ids, repr(r)]))
    """
    k, score_key, ids, text = run_python(code, blocked, str(tmp_path / "pickle"))
    assert (k, score_key, ids) == (3, None, ["a", "b", "c", "d"])
    assert text.startswith("QRAGRetriever(ChunkIndex(4 chunks")


def test_a_copy_shares_what_is_alive(story_index: ChunkIndex) -> None:
    alive = {"lock": threading.Lock()}
    retriever = QRAGRetriever(index=story_index, object_map={"ix": alive})
    copied = copy.deepcopy(retriever)
    assert copied.object_map["ix"] is alive
    assert copied.object_map is not retriever.object_map
    assert copied.index is retriever.index


def test_settings_of_numpy_are_saved_as_numbers(story_index: ChunkIndex, tmp_path: Path) -> None:
    retriever = QRAGRetriever(index=story_index)
    retriever.k, retriever.min_q = np.int64(3), np.float32(0.25)  # type: ignore[assignment]
    retriever.save(tmp_path / "index")
    found = QRAGRetriever.load(tmp_path / "index", model=story_index.model)
    assert (found.k, found.min_q) == (3, 0.25)

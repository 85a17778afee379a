"""QRAGRetriever as LangChain sees it: the official suites, runnables, callbacks, tools, chains, indexing, copies."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import multiprocessing
import pickle
import threading
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_classic.chains import RetrievalQA, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MergerRetriever,
    MultiQueryRetriever,
)
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.indexing.base import DocumentIndex
from langchain_core.language_models.fake_chat_models import FakeListChatModel, ParrotFakeChatModel
from langchain_core.load import dumps
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite

from qrag_retriever import ChunkIndex, QRAGModel, QRAGRetriever
from tests.conftest import QUESTION, STORY

OTHER_QUESTION = "Who wrote a letter?"
IDS = [f"s{number}" for number in range(len(STORY))]
METADATAS = [{"line": number, "tags": [text.split()[0]]} for number, text in enumerate(STORY)]
LINE_UNDER_6 = {"line": [0, 1, 2, 3, 4, 5]}


@pytest.fixture(scope="module")
def story_index(model: QRAGModel) -> ChunkIndex:
    """Shared: tests that change an index make their own."""
    return ChunkIndex.from_texts(STORY, METADATAS, IDS, model)


@pytest.fixture
def retriever(story_index: ChunkIndex) -> QRAGRetriever:
    return QRAGRetriever(index=story_index, k=3)


@pytest.fixture
def expected(retriever: QRAGRetriever) -> list[str]:
    """The ids that a plain search for the question picks."""
    return retriever.search(QUESTION).ids


@pytest.fixture
def own(model: QRAGModel) -> QRAGRetriever:
    """A retriever with an index of its own, to be changed."""
    return QRAGRetriever.from_texts(STORY, METADATAS, IDS, model=model, k=3)


@pytest.fixture
def empty(model: QRAGModel) -> QRAGRetriever:
    """A retriever whose only chunk was deleted."""
    made = QRAGRetriever.from_texts(["x"], ids=["to go"], model=model, k=20)
    made.delete(["to go"])
    return made


def ids_of(documents: Sequence[Document]) -> list[str | None]:
    return [document.id for document in documents]


def join(documents: Sequence[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


class Recorder(BaseCallbackHandler):
    """Writes down the retriever events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, dict[str, Any]]] = []

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.events.append(("start", query, kwargs))

    def on_retriever_end(self, documents: Sequence[Document], **kwargs: Any) -> None:
        self.events.append(("end", list(documents), kwargs))

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(("error", error, kwargs))

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.events]


class Gate:
    """Holds an encode until the event loop opens it; `opened` stays False if the loop was blocked."""

    def __init__(self, encode: Callable[..., Any]) -> None:
        self.encode = encode
        self.started, self.release = threading.Event(), threading.Event()
        self.opened = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.started.set()
        self.opened = self.release.wait(5)
        return self.encode(*args, **kwargs)

    async def open_from_the_loop(self) -> None:
        while not self.started.is_set():
            await asyncio.sleep(0.001)
        self.release.set()


# The official suites


class StandardTests(RetrieversIntegrationTests):
    __test__ = False

    @pytest.fixture(autouse=True)
    def _set_up(self, story_index: ChunkIndex, model: QRAGModel) -> None:
        self.story_index, self.model = story_index, model

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


class TestStandardWithIndex(StandardTests):
    __test__ = True

    @property
    def retriever_constructor(self) -> Any:
        return QRAGRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.story_index, "k": 2}


class TestStandardFromTexts(StandardTests):
    __test__ = True

    @property
    def retriever_constructor(self) -> Any:
        return QRAGRetriever.from_texts

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"texts": STORY, "model": self.model}


class TestStandardFromDocuments(StandardTests):
    __test__ = True

    @property
    def retriever_constructor(self) -> Any:
        return QRAGRetriever.from_documents

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"documents": [Document(page_content=text) for text in STORY], "model": self.model}


class TestStandardSimilarityTopK(TestStandardWithIndex):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.story_index, "similarity_top_k": 2}

    @property
    def num_results_arg_name(self) -> str:
        return "similarity_top_k"


class TestStandardDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, empty: QRAGRetriever) -> DocumentIndex:  # type: ignore[override]
        return empty


class TestStandardAsyncDocumentIndex(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    async def index(self, empty: QRAGRetriever) -> DocumentIndex:  # type: ignore[override]
        return empty


# What comes back


def test_documents_carry_text_id_metadata_hop_and_score(retriever: QRAGRetriever) -> None:
    documents = retriever.invoke(QUESTION)
    for hop, (document, step) in enumerate(zip(documents, retriever.search(QUESTION).steps, strict=True), start=1):
        number = IDS.index(document.id)
        assert document.page_content == STORY[number]
        assert document.metadata == {**METADATAS[number], "qrag_hop": hop, "score": step.q_value}


def test_documents_without_ids_get_lasting_ones(model: QRAGModel) -> None:
    made = QRAGRetriever.from_documents([Document(page_content=text) for text in STORY], model=model)
    first, again = made.invoke(QUESTION), made.invoke(QUESTION)
    assert None not in ids_of(first)
    assert ids_of(first) == ids_of(again)


@pytest.mark.parametrize("score_key", ["score", "relevance_score", None])
def test_score_key_names_the_score_or_leaves_it_out(story_index: ChunkIndex, score_key: str | None) -> None:
    made = QRAGRetriever(index=story_index, score_key=score_key)
    added = set(made.invoke(QUESTION)[0].metadata) - {"line", "tags", "qrag_hop"}
    assert added == (set() if score_key is None else {score_key})


def test_editing_a_result_changes_neither_corpus_nor_next_result(retriever: QRAGRetriever) -> None:
    document = retriever.invoke(QUESTION)[0]
    before = copy.deepcopy(document)
    document.page_content = "changed"
    document.metadata["line"] = "changed"
    assert retriever.invoke(QUESTION)[0] == before
    assert retriever.get([str(before.id)])[0].metadata["line"] == before.metadata["line"]


@pytest.mark.parametrize("read", [lambda r: r.invoke(QUESTION)[0], lambda r: r.get([r.search(QUESTION).ids[0]])[0]])
def test_editing_nested_metadata_of_a_result_does_not_change_the_corpus(
    own: QRAGRetriever, read: Callable[[QRAGRetriever], Document]
) -> None:
    before = copy.deepcopy(read(own))
    read(own).metadata["tags"].append("changed")
    assert read(own) == before


def test_editing_a_given_document_afterwards_does_not_change_the_corpus(model: QRAGModel) -> None:
    given = [
        Document(page_content=text, id=id_, metadata={"tags": ["a"]}) for text, id_ in zip(STORY, IDS, strict=True)
    ]
    made = QRAGRetriever.from_documents(given, model=model)
    for document in given:
        document.page_content = "changed"
        document.metadata["tags"].append("changed")
        document.metadata["new"] = "changed"
    found = made.invoke(QUESTION)[0]
    assert (found.page_content in STORY, found.metadata["tags"], "new" in found.metadata) == (True, ["a"], False)


# Entry points


async def _collect(stream: AsyncIterator[list[Document]]) -> list[Document]:
    return [document async for chunk in stream for document in chunk]


ENTRIES = {
    "invoke": lambda r, **kw: r.invoke(QUESTION, **kw),
    "ainvoke": lambda r, **kw: r.ainvoke(QUESTION, **kw),
    "batch": lambda r, **kw: r.batch([QUESTION], **kw)[0],
    "abatch": lambda r, **kw: r.abatch([QUESTION], **kw),
    "stream": lambda r, **kw: [document for chunk in r.stream(QUESTION, **kw) for document in chunk],
    "astream": lambda r, **kw: _collect(r.astream(QUESTION, **kw)),
}


async def awaited(function: Callable[[], Any]) -> Any:
    """The result of a function, sync or async."""
    result = function()
    return await result if inspect.isawaitable(result) else result


async def call(name: str, runnable: Any, **arguments: Any) -> list[Document]:
    result = await awaited(lambda: ENTRIES[name](runnable, **arguments))
    return result[0] if name == "abatch" else result


@pytest.mark.parametrize("name", ENTRIES)
async def test_every_entry_point_gives_the_search_result(
    retriever: QRAGRetriever, expected: list[str], name: str
) -> None:
    assert ids_of(await call(name, retriever)) == expected


@pytest.mark.parametrize("name", ENTRIES)
async def test_per_call_k_holds_for_that_call_only(retriever: QRAGRetriever, name: str) -> None:
    assert len(await call(name, retriever, k=1)) == 1
    assert len(await call(name, retriever)) == 3


@pytest.mark.parametrize("name", ENTRIES)
async def test_per_call_filters_hold_for_that_call_only(
    retriever: QRAGRetriever, expected: list[str], name: str
) -> None:
    found = await call(name, retriever, filters=LINE_UNDER_6, k=12)
    assert sorted(document.metadata["line"] for document in found) == LINE_UNDER_6["line"]
    assert ids_of(await call(name, retriever)) == expected


@pytest.mark.parametrize("name", ENTRIES)
async def test_per_call_min_q_stops_early(retriever: QRAGRetriever, name: str) -> None:
    assert await call(name, retriever, min_q=1e9) == []
    assert len(await call(name, retriever, min_q=-1e9)) == 3


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("unknown", [{"top_k": 1}, {"kk": 1}, {"verbose": True}, {"k": 1, "similarity_top_k": 1}])
async def test_an_unknown_per_call_argument_raises(
    retriever: QRAGRetriever, name: str, unknown: dict[str, Any]
) -> None:
    told = rf"^\w+ takes k, filters, min_q per call, got '{[*unknown][-1]}'"
    with pytest.raises(TypeError, match=told):
        await call(name, retriever, **unknown)


async def test_a_per_call_argument_of_another_retriever_is_told_by_its_name_here(retriever: QRAGRetriever) -> None:
    with pytest.raises(TypeError, match=r"got 'filter'; here it is filters$"):
        retriever.invoke(QUESTION, filter={"line": 3})
    with pytest.raises(ValueError, match=r"no setting 'search_kwargs'; here it is k and filters; there are k, "):
        QRAGRetriever(index=retriever.index, search_kwargs={"k": 3})


@pytest.mark.parametrize("name", ["invoke", "ainvoke"])
@pytest.mark.parametrize("k", [0, -1])
async def test_a_per_call_k_below_one_raises(retriever: QRAGRetriever, name: str, k: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        await call(name, retriever, k=k)


def test_unknown_constructor_argument_raises(story_index: ChunkIndex, model: QRAGModel) -> None:
    with pytest.raises(ValueError, match="top_n"):
        QRAGRetriever(index=story_index, top_n=3)
    with pytest.raises(ValueError, match="top_n"):
        QRAGRetriever.from_texts(STORY, model=model, top_n=3)


def test_run_id_is_the_run_s_and_not_a_search_argument(retriever: QRAGRetriever) -> None:
    recorder, run_id = Recorder(), uuid.uuid4()
    retriever.invoke(QUESTION, {"callbacks": [recorder]}, run_id=run_id)
    assert {kwargs["run_id"] for _, _, kwargs in recorder.events} == {run_id}


def test_batch_keeps_the_order_of_the_queries(retriever: QRAGRetriever) -> None:
    queries = [QUESTION, OTHER_QUESTION, "Sandra?", QUESTION]
    found = retriever.batch(queries, {"max_concurrency": 2})
    assert [ids_of(documents) for documents in found] == [retriever.search(query).ids for query in queries]


@pytest.mark.parametrize("name", ["batch", "abatch"])
async def test_batch_returns_exceptions_in_their_places(retriever: QRAGRetriever, name: str) -> None:
    queries = [QUESTION, " ", OTHER_QUESTION]
    found = await awaited(lambda: getattr(retriever, name)(queries, return_exceptions=True))
    assert [type(one) for one in found] == [list, ValueError, list]


@pytest.mark.parametrize("name", ["batch", "abatch"])
async def test_batch_raises_without_return_exceptions(retriever: QRAGRetriever, name: str) -> None:
    with pytest.raises(ValueError, match="query is empty"):
        await awaited(lambda: getattr(retriever, name)([QUESTION, " "]))


# Callbacks, tags, events


@pytest.mark.parametrize("name", ["invoke", "ainvoke"])
async def test_callbacks_see_start_and_end_with_tags_and_metadata(story_index: ChunkIndex, name: str) -> None:
    made = QRAGRetriever(index=story_index, tags=["own"], metadata={"team": "a"}, name="my retriever")
    recorder = Recorder()
    config = {"callbacks": [recorder], "tags": ["run"], "metadata": {"user": "b"}}
    documents = await call(name, made, config=config)
    assert recorder.names == ["start", "end"]
    (_, query, start), (_, ended_with, _) = recorder.events
    assert (query, ended_with, start["name"]) == (QUESTION, documents, "my retriever")
    assert set(start["tags"]) == {"own", "run"}
    assert start["metadata"].items() >= {"team": "a", "user": "b"}.items()


def test_langsmith_gets_the_retriever_s_name(retriever: QRAGRetriever) -> None:
    recorder = Recorder()
    retriever.invoke(QUESTION, {"callbacks": [recorder]})
    assert recorder.events[0][2]["metadata"]["ls_retriever_name"] == "qrag"
    assert recorder.events[0][2]["name"] == "QRAGRetriever"


@pytest.mark.parametrize("name", ["invoke", "ainvoke"])
async def test_callbacks_see_errors(retriever: QRAGRetriever, name: str) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="at least 1"):
        await call(name, retriever, config={"callbacks": [recorder]}, k=0)
    assert recorder.names == ["start", "error"]
    assert isinstance(recorder.events[1][1], ValueError)


def test_trace_metadata_does_not_reach_the_documents(story_index: ChunkIndex) -> None:
    made = QRAGRetriever(index=story_index, metadata={"team": "a"})
    assert "team" not in made.invoke(QUESTION)[0].metadata


async def test_astream_events_v2_reports_the_retriever(retriever: QRAGRetriever, expected: list[str]) -> None:
    chain = retriever | RunnableLambda(join)
    events = [event async for event in chain.astream_events(QUESTION, version="v2")]
    mine = {event["event"]: event for event in events if event["name"] == "QRAGRetriever"}
    assert mine["on_retriever_start"]["data"]["input"] == {"query": QUESTION}
    assert ids_of(mine["on_retriever_end"]["data"]["output"]) == expected


# Composition


def rag_chain(retriever: Runnable[str, list[Document]]) -> Runnable[str, str]:
    """Answers with its whole prompt, so that the context can be looked at."""
    prompt = ChatPromptTemplate.from_template("{context}\n\nQ: {question}")
    context = {"context": retriever | join, "question": RunnablePassthrough()}
    return context | prompt | ParrotFakeChatModel() | StrOutputParser()


async def test_a_chain_puts_the_chunks_into_the_prompt(retriever: QRAGRetriever) -> None:
    answer = f"{join(retriever.invoke(QUESTION))}\n\nQ: {QUESTION}"
    chain = rag_chain(retriever)
    assert chain.invoke(QUESTION) == answer
    assert await chain.ainvoke(QUESTION) == answer
    assert "".join(chain.stream(QUESTION)) == answer


def test_a_chain_draws_the_retriever_and_lists_only_its_own_prompts(retriever: QRAGRetriever) -> None:
    chain = rag_chain(retriever)
    assert "QRAGRetriever" in {node.name for node in chain.get_graph().nodes.values()}
    assert len(chain.get_prompts()) == 1


def _ran(listeners: list[str]) -> dict[str, Callable[..., None]]:
    return {"on_start": lambda run: listeners.append("start"), "on_end": lambda run: listeners.append("end")}


WRAPPERS: dict[str, Callable[[QRAGRetriever], Any]] = {
    "with_config": lambda r: r.with_config(tags=["x"], run_name="y"),
    "with_retry": lambda r: r.with_retry(stop_after_attempt=2),
    "with_fallbacks": lambda r: r.with_fallbacks([r]),
    "with_types": lambda r: r.with_types(input_type=str),
    "with_listeners": lambda r: r.with_listeners(on_start=lambda run: None),
    "bind": lambda r: r.bind(k=3),
    "pipe": lambda r: r | RunnablePassthrough(),
    "configurable_fields": lambda r: r.configurable_fields(k=ConfigurableField(id="k")),
    "configurable_alternatives": lambda r: r.configurable_alternatives(ConfigurableField(id="which"), other=r),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
async def test_a_wrapped_retriever_finds_the_same(
    retriever: QRAGRetriever, expected: list[str], wrap: Callable[[QRAGRetriever], Any]
) -> None:
    wrapped = wrap(retriever)
    assert ids_of(wrapped.invoke(QUESTION)) == expected
    assert ids_of(await wrapped.ainvoke(QUESTION)) == expected


def test_bind_sets_search_arguments(retriever: QRAGRetriever) -> None:
    bound = retriever.bind(k=12, filters=LINE_UNDER_6)
    assert len(bound.invoke(QUESTION)) == 6


@pytest.mark.parametrize("name", ["retrieve", "search"])
def test_with_config_forwards_the_other_methods(retriever: QRAGRetriever, name: str) -> None:
    bound = retriever.with_config(tags=["x"])
    assert len(getattr(bound, name)(QUESTION)) == 3
    assert not isinstance(bound, QRAGRetriever)


def test_with_retry_searches_again(retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = retriever.index.model.encode_states, []

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return encode(*args, **kwargs)

    monkeypatch.setattr(retriever.index.model, "encode_states", fails_once)
    assert len(retriever.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke(QUESTION)) == 3


def test_with_fallbacks_takes_over_after_an_error(retriever: QRAGRetriever, expected: list[str]) -> None:
    assert ids_of(retriever.bind(k=0).with_fallbacks([retriever]).invoke(QUESTION)) == expected


def test_listeners_are_called(retriever: QRAGRetriever) -> None:
    calls: list[str] = []
    retriever.with_listeners(**_ran(calls)).invoke(QUESTION)
    assert calls == ["start", "end"]


def test_map_and_parallel_run_the_retriever_for_each(retriever: QRAGRetriever, expected: list[str]) -> None:
    assert [ids_of(found) for found in retriever.map().invoke([QUESTION, QUESTION])] == [expected, expected]
    both = RunnableParallel(all=retriever, one=retriever.bind(k=1)).invoke(QUESTION)
    assert (ids_of(both["all"]), ids_of(both["one"])) == (expected, expected[:1])


def test_input_and_output_schemas_are_a_string_and_documents(retriever: QRAGRetriever) -> None:
    assert retriever.get_input_schema().model_json_schema()["type"] == "string"
    assert "Document" in json.dumps(retriever.get_output_schema().model_json_schema())


@pytest.mark.parametrize(
    ("field", "value", "count"), [("k", 2, 2), ("filters", {"line": 4}, 1), ("min_q", 1e9, 0), ("beam_width", 2, 3)]
)
def test_configurable_fields_change_a_setting_for_a_call(
    retriever: QRAGRetriever, field: str, value: Any, count: int
) -> None:
    configurable = retriever.configurable_fields(**{field: ConfigurableField(id="chosen")})
    assert len(configurable.invoke(QUESTION, {"configurable": {"chosen": value}})) == count
    assert len(configurable.invoke(QUESTION)) == 3


def test_a_configured_retriever_shares_the_index(retriever: QRAGRetriever) -> None:
    configurable = retriever.configurable_fields(k=ConfigurableField(id="k"))
    prepared, _ = configurable.prepare({"configurable": {"k": 2}})
    assert prepared.index is retriever.index
    assert prepared.callback_manager is retriever.callback_manager


def test_configurable_alternatives_choose_the_retriever(retriever: QRAGRetriever, story_index: ChunkIndex) -> None:
    one = QRAGRetriever(index=story_index, k=1)
    either = retriever.configurable_alternatives(ConfigurableField(id="which"), default_key="three", one=one)
    assert [len(either.invoke(QUESTION, {"configurable": {"which": name}})) for name in ("three", "one")] == [3, 1]


# Tools


async def test_retriever_tool_returns_the_texts(retriever: QRAGRetriever, expected: list[str]) -> None:
    tool = create_retriever_tool(retriever, "story", "Looks into the story.", response_format="content_and_artifact")
    wanted = "\n\n".join(STORY[IDS.index(id_)] for id_ in expected)
    assert tool.invoke({"query": QUESTION}) == wanted
    assert await tool.ainvoke({"query": QUESTION}) == wanted
    call_ = {"type": "tool_call", "id": "1", "name": "story", "args": {"query": QUESTION}}
    assert ids_of(tool.invoke(call_).artifact) == expected


def test_as_tool_is_a_tool(retriever: QRAGRetriever, expected: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as_tool is beta in LangChain
        tool = retriever.as_tool(name="story", description="Looks into the story.")
    assert tool.name == "story"
    assert ids_of(tool.invoke(QUESTION)) == expected


# Chains and retrievers of langchain-classic


def test_retrieval_chain_answers_from_the_documents(retriever: QRAGRetriever, expected: list[str]) -> None:
    prompt = ChatPromptTemplate.from_template("{context} {input}")
    chain = create_retrieval_chain(retriever, create_stuff_documents_chain(ParrotFakeChatModel(), prompt))
    result = chain.invoke({"input": QUESTION})
    assert ids_of(result["context"]) == expected
    assert all(STORY[IDS.index(id_)] in result["answer"] for id_ in expected)


def test_retrieval_qa_returns_its_sources(retriever: QRAGRetriever, expected: list[str]) -> None:
    llm = FakeListChatModel(responses=["the garden"])
    chain = RetrievalQA.from_chain_type(llm=llm, retriever=retriever, return_source_documents=True)
    result = chain.invoke({"query": QUESTION})
    assert (result["result"], ids_of(result["source_documents"])) == ("the garden", expected)


async def test_ensemble_fuses_two_retrievers(retriever: QRAGRetriever, story_index: ChunkIndex) -> None:
    other = QRAGRetriever(index=story_index, filters=LINE_UNDER_6)
    ensemble = EnsembleRetriever(retrievers=[retriever, other], weights=[0.5, 0.5], id_key="line")
    lines = [document.metadata["line"] for document in ensemble.invoke(QUESTION)]
    union = {d.metadata["line"] for part in (retriever, other) for d in part.invoke(QUESTION)}
    assert (len(lines), set(lines)) == (len(union), union)
    assert [document.metadata["line"] for document in await ensemble.ainvoke(QUESTION)] == lines


def test_ensemble_recognises_a_text_found_twice_whatever_its_score(retriever: QRAGRetriever) -> None:
    twice = EnsembleRetriever(retrievers=[retriever, retriever.bind(filters=LINE_UNDER_6)], weights=[0.5, 0.5])
    texts = [document.page_content for document in twice.invoke(QUESTION)]
    assert len(texts) == len(set(texts))


async def test_merger_puts_retrievers_together(retriever: QRAGRetriever, expected: list[str]) -> None:
    merger = MergerRetriever(retrievers=[retriever, retriever])
    doubled = [id_ for id_ in expected for _ in range(2)]
    assert ids_of(merger.invoke(QUESTION)) == doubled
    assert ids_of(await merger.ainvoke(QUESTION)) == doubled


class OnlyMary(BaseDocumentCompressor):
    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        return [document for document in documents if "Mary" in document.page_content]


def test_contextual_compression_filters_the_results(retriever: QRAGRetriever) -> None:
    compressed = ContextualCompressionRetriever(
        base_compressor=OnlyMary(), base_retriever=retriever.model_copy(update={"k": 12})
    )
    found = compressed.invoke(QUESTION)
    assert {document.page_content for document in found} == {text for text in STORY if "Mary" in text}


def multi_query(retriever: QRAGRetriever, queries: list[str]) -> MultiQueryRetriever:
    return MultiQueryRetriever(retriever=retriever, llm_chain=RunnableLambda(lambda _: queries))


async def test_multi_query_finds_duplicates_without_a_score_key(story_index: ChunkIndex) -> None:
    """All chunks come back for either query, in another order and with other scores."""
    multi = multi_query(
        QRAGRetriever(index=story_index, k=12, score_key=None, hop_key=None), [QUESTION, OTHER_QUESTION]
    )
    assert sorted(ids_of(multi.invoke("x"))) == sorted(IDS)
    assert sorted(ids_of(await multi.ainvoke("x"))) == sorted(IDS)


def test_multi_query_cannot_see_duplicates_with_a_score_key(story_index: ChunkIndex) -> None:
    """What the field's documentation warns of."""
    multi = multi_query(QRAGRetriever(index=story_index, k=12), [QUESTION, OTHER_QUESTION])
    assert len(multi.invoke("x")) > len(IDS)


# Indexing


def sourced(*texts: str, source: str = "story") -> list[Document]:
    return [Document(page_content=text, metadata={"source": source}) for text in texts]


@pytest.fixture
def records() -> InMemoryRecordManager:
    manager = InMemoryRecordManager("test")
    manager.create_schema()
    return manager


async def run_index(is_async: bool, *arguments: Any, **options: Any) -> tuple[int, int, int, int]:
    """Return how many were added, updated, skipped, deleted."""
    options = {"key_encoder": "sha256", "source_id_key": "source", **options}
    result = await aindex(*arguments, **options) if is_async else index(*arguments, **options)
    return tuple(result[f"num_{what}"] for what in ("added", "updated", "skipped", "deleted"))


def texts_in(retriever: QRAGRetriever) -> set[str]:
    return {document.page_content for document in retriever.get(retriever.index.ids)}


@pytest.mark.parametrize("is_async", [False, True])
class TestIndexing:
    async def test_adds_then_skips_what_is_known(
        self, empty: QRAGRetriever, records: InMemoryRecordManager, is_async: bool
    ) -> None:
        documents = sourced(*STORY[:4])
        assert await run_index(is_async, documents, records, empty, cleanup=None) == (4, 0, 0, 0)
        assert await run_index(is_async, documents, records, empty, cleanup=None) == (0, 0, 4, 0)
        assert {document.page_content for document in empty.invoke(QUESTION)} == set(STORY[:4])

    async def test_incremental_cleanup_replaces_a_source_s_old_chunks(
        self, empty: QRAGRetriever, records: InMemoryRecordManager, is_async: bool
    ) -> None:
        other = sourced(STORY[3], source="other")
        await run_index(is_async, [*sourced(*STORY[:3]), *other], records, empty, cleanup="incremental")
        edited = sourced(STORY[0], "John went to the office.")
        assert await run_index(is_async, edited, records, empty, cleanup="incremental") == (1, 0, 1, 2)
        assert texts_in(empty) == {STORY[0], "John went to the office.", STORY[3]}

    @pytest.mark.parametrize("cleanup", ["full", "scoped_full"])
    async def test_full_cleanup_leaves_what_was_given(
        self, empty: QRAGRetriever, records: InMemoryRecordManager, is_async: bool, cleanup: str
    ) -> None:
        await run_index(is_async, sourced(*STORY[:5]), records, empty, cleanup=cleanup)
        assert await run_index(is_async, sourced(STORY[1]), records, empty, cleanup=cleanup) == (0, 0, 1, 4)
        assert texts_in(empty) == {STORY[1]}

    async def test_full_cleanup_with_nothing_empties_the_index(
        self, empty: QRAGRetriever, records: InMemoryRecordManager, is_async: bool
    ) -> None:
        await run_index(is_async, sourced(*STORY[:5]), records, empty, cleanup="full")
        assert await run_index(is_async, [], records, empty, cleanup="full") == (0, 0, 0, 5)
        assert len(empty.index) == 0
        assert empty.invoke(QUESTION) == []

    async def test_force_update_embeds_again_under_the_same_ids(
        self, empty: QRAGRetriever, records: InMemoryRecordManager, is_async: bool
    ) -> None:
        await run_index(is_async, sourced(*STORY[:2]), records, empty, cleanup=None)
        ids = empty.index.ids
        again = sourced(*STORY[:2])
        assert await run_index(is_async, again, records, empty, cleanup=None, force_update=True) == (0, 2, 0, 0)
        assert empty.index.ids == ids

    async def test_small_batches_end_the_same(
        self, empty: QRAGRetriever, records: InMemoryRecordManager, is_async: bool
    ) -> None:
        await run_index(is_async, sourced(*STORY), records, empty, cleanup="full", batch_size=5, cleanup_batch_size=2)
        await run_index(
            is_async, sourced(*STORY[6:]), records, empty, cleanup="full", batch_size=2, cleanup_batch_size=2
        )
        assert texts_in(empty) == set(STORY[6:])


def test_indexing_into_a_folder_survives_a_reload(
    empty: QRAGRetriever, records: InMemoryRecordManager, model: QRAGModel, tmp_path: Any
) -> None:
    empty.save(tmp_path / "index")
    index(sourced(*STORY[:5]), records, empty, cleanup="full", key_encoder="sha256")
    index(sourced(*STORY[2:5]), records, empty, cleanup="full", key_encoder="sha256")
    assert texts_in(QRAGRetriever.load(tmp_path / "index", model)) == set(STORY[2:5])


def test_it_is_a_document_index_without_a_beta_warning(story_index: ChunkIndex) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = QRAGRetriever(index=story_index)
        assert isinstance(made, DocumentIndex)
        assert made.invoke(QUESTION)


def test_upsert_updates_a_known_id_and_adds_an_unknown_one(own: QRAGRetriever) -> None:
    response = own.upsert([Document(page_content="New text.", id="s3"), Document(page_content="Other.", id="new")])
    assert response == {"succeeded": ["s3", "new"], "failed": []}
    assert [document.page_content for document in own.get(["s3", "new"])] == ["New text.", "Other."]
    assert len(own.index) == len(STORY) + 1


def test_upsert_refuses_options_that_it_does_not_know(own: QRAGRetriever) -> None:
    with pytest.raises(TypeError, match="overwrite"):
        own.upsert([Document(page_content="x")], overwrite=False)


def test_delete_reports_what_went(own: QRAGRetriever) -> None:
    assert own.delete(["s1", "s2"]) == {"num_deleted": 2, "succeeded": ["s1", "s2"], "num_failed": 0, "failed": []}
    assert ids_of(own.get(["s1", "s2", "s3"])) == ["s3"]


# Serialisation and copies


def test_dumps_is_short_and_holds_no_text(retriever: QRAGRetriever) -> None:
    dumped = json.loads(dumps(retriever))
    assert dumped["type"] == "not_implemented"
    assert dumped["repr"] == repr(retriever)
    assert len(dumps(retriever)) < 500
    assert STORY[0] not in dumps(retriever)


@pytest.mark.parametrize("filters", [None, {"line": [1, 2]}, lambda metadata: True], ids=["none", "dict", "callable"])
def test_model_dump_json_holds_settings_only(story_index: ChunkIndex, filters: Any) -> None:
    made = QRAGRetriever(index=story_index, k=7, filters=filters)
    dumped = json.loads(made.model_dump_json())
    assert dumped["k"] == 7
    assert not {"index", "callback_manager", "object_map"} & dumped.keys()


def test_repr_is_short_and_says_what_matters(retriever: QRAGRetriever) -> None:
    assert repr(retriever).startswith("QRAGRetriever(ChunkIndex(12 chunks")
    assert "k=3" in repr(retriever)
    assert len(repr(retriever)) < 200
    assert str(retriever) == repr(retriever)


def test_repr_of_a_half_built_retriever_works() -> None:
    """Pydantic's error messages may show one."""
    assert repr(QRAGRetriever.__new__(QRAGRetriever)).startswith("QRAGRetriever(")


COPIES: dict[str, Callable[[QRAGRetriever], QRAGRetriever]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda r: r.model_copy(),
    "deep model_copy": lambda r: r.model_copy(deep=True),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_share_the_index_and_nothing_else(
    retriever: QRAGRetriever, expected: list[str], make: Callable[[QRAGRetriever], QRAGRetriever]
) -> None:
    twin = make(retriever)
    assert twin.index is retriever.index
    twin.k = 1
    assert (retriever.k, ids_of(twin.invoke(QUESTION))) == (3, expected[:1])
    assert len(twin.retrieve(QUESTION)) == 1


def test_equality_and_hash_are_identity(retriever: QRAGRetriever) -> None:
    twin = retriever.model_copy()
    assert retriever == retriever
    assert retriever != twin
    assert len({retriever, twin, retriever}) == 2
    assert retriever != "something else"


def test_pickle_keeps_index_settings_and_results(retriever: QRAGRetriever, expected: list[str]) -> None:
    twin = pickle.loads(pickle.dumps(retriever))
    assert (len(twin.index), twin.k, ids_of(twin.invoke(QUESTION))) == (12, 3, expected)
    assert len(twin.retrieve(QUESTION)) == 3


def test_a_chain_with_the_retriever_pickles(retriever: QRAGRetriever, expected: list[str]) -> None:
    chain = pickle.loads(pickle.dumps(retriever.with_config(tags=["x"])))
    assert ids_of(chain.invoke(QUESTION)) == expected


def test_a_spawned_process_finds_the_same(own: QRAGRetriever, tmp_path: Any) -> None:
    """One retriever with its index in memory, one whose index is a folder."""
    in_memory = pickle.loads(pickle.dumps(own))
    own.save(tmp_path / "index")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for each in (in_memory, own):
            assert ids_of(pool.apply(each.invoke, (QUESTION,))) == each.search(QUESTION).ids


# Concurrency


def test_eight_threads_find_what_one_finds(retriever: QRAGRetriever) -> None:
    queries = [QUESTION, OTHER_QUESTION, "Sandra?", "Who dropped the apple?"]
    wanted = {query: retriever.search(query, k=2).ids for query in queries}

    def many(thread: int) -> int:
        return sum(
            ids_of(retriever.invoke(query, k=2)) == wanted[query]
            for query in (queries[(thread + number) % len(queries)] for number in range(50))
        )

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(many, range(8))) == [50] * 8


async def test_a_hundred_gathered_calls_of_both_frameworks_agree(retriever: QRAGRetriever, expected: list[str]) -> None:
    calls = [retriever.ainvoke(QUESTION) if i % 2 else retriever.aretrieve(QUESTION) for i in range(100)]
    found = await asyncio.gather(*calls)
    for one in found:
        assert [item.id if isinstance(item, Document) else item.node_id for item in one] == expected


async def test_cancelled_calls_leave_the_others_alone(retriever: QRAGRetriever, expected: list[str]) -> None:
    tasks = [asyncio.create_task(retriever.ainvoke(QUESTION)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
    assert all(ids_of(one) == expected for one in found[1::2])
    assert ids_of(await retriever.ainvoke(QUESTION)) == expected


async def test_the_event_loop_stays_free_during_ainvoke(
    retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(retriever.index.model.encode_states)
    monkeypatch.setattr(retriever.index.model, "encode_states", gate)
    await asyncio.gather(retriever.ainvoke(QUESTION, k=1), gate.open_from_the_loop())
    assert gate.opened


@pytest.mark.parametrize(
    "add",
    [
        lambda r: r.aadd_texts(["New."]),
        lambda r: r.aadd_documents([Document(page_content="New.")]),
        lambda r: r.aupsert([Document(page_content="New.")]),
    ],
    ids=["aadd_texts", "aadd_documents", "aupsert"],
)
async def test_the_event_loop_stays_free_during_additions(
    own: QRAGRetriever, monkeypatch: pytest.MonkeyPatch, add: Callable[[QRAGRetriever], Any]
) -> None:
    gate = Gate(own.index.model.encode_chunks)
    monkeypatch.setattr(own.index.model, "encode_chunks", gate)
    await asyncio.gather(add(own), gate.open_from_the_loop())
    assert gate.opened
    assert len(own.index) == len(STORY) + 1


@pytest.mark.parametrize("name", ["batch", "abatch"])
async def test_a_concurrency_below_one_is_an_error(retriever: QRAGRetriever, name: str) -> None:
    with pytest.raises(ValueError, match="max_concurrency must be at least 1"):
        await awaited(lambda: getattr(retriever, name)([QUESTION, QUESTION], {"max_concurrency": -1}))

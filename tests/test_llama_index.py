"""QRAGRetriever as LlamaIndex sees it: engines, wrappers, recursion, nodes, filters, storage, instrumentation."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import HierarchicalNodeParser, SentenceSplitter, get_leaf_nodes
from llama_index.core.postprocessor import (
    LongContextReorder,
    MetadataReplacementPostProcessor,
    PrevNextNodePostprocessor,
    SimilarityPostprocessor,
)
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import (
    AutoMergingRetriever,
    QueryFusionRetriever,
    RecursiveRetriever,
    RouterRetriever,
    TransformRetriever,
)
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from qrag_retriever import ChunkIndex, QRAGModel, QRAGRetriever
from qrag_retriever.integrations.llama_index_hops import QRAGHopEvent
from tests.conftest import QUESTION, STORY

OTHER_QUESTION = "Who wrote a letter?"
IDS = [f"s{number}" for number in range(len(STORY))]
HOP_KEY = "qrag_hop"


def make_nodes() -> list[TextNode]:
    """The story as nodes with all that a node can carry."""
    nodes = []
    start = 0
    for number, text in enumerate(STORY):
        node = TextNode(
            id_=IDS[number],
            text=text,
            metadata={
                "line": number,
                "who": text.split()[0],
                "words": text.lower().strip(".").split(),
                "note": [None, "", "seen"][number % 3],
            },
            excluded_embed_metadata_keys=["line", "words", "note"],
            excluded_llm_metadata_keys=["words"],
            start_char_idx=start,
            end_char_idx=start + len(text),
            metadata_template="{key} is {value}",
            text_template="[{metadata_str}] {content}",
        )
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="story", hash="h", metadata={"a": 1})
        start += len(text) + 1
        nodes.append(node)
    for before, after in pairwise(nodes):
        before.relationships[NodeRelationship.NEXT] = after.as_related_node_info()
        after.relationships[NodeRelationship.PREVIOUS] = before.as_related_node_info()
    return nodes


@pytest.fixture(scope="module")
def node_index(model: QRAGModel) -> ChunkIndex:
    """Shared: tests that change an index make their own."""
    return QRAGRetriever.from_defaults(nodes=make_nodes(), model=model).index


@pytest.fixture
def retriever(node_index: ChunkIndex) -> QRAGRetriever:
    return QRAGRetriever(index=node_index, k=3)


@pytest.fixture
def expected(retriever: QRAGRetriever) -> list[str]:
    """The ids that a plain search for the question picks."""
    return retriever.search(QUESTION).ids


@pytest.fixture
def own(model: QRAGModel) -> QRAGRetriever:
    """A retriever with an index of its own, to be changed."""
    return QRAGRetriever.from_defaults(nodes=make_nodes(), model=model, k=3)


def of_texts(model: QRAGModel, *texts: str, **settings: Any) -> QRAGRetriever:
    return QRAGRetriever.from_texts(texts, ids=[f"text {text}" for text in texts], model=model, **settings)


def ids_of(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def without_hop(node: BaseNode) -> dict[str, Any]:
    """The node as a dict, less what a search adds to it."""
    found = node.to_dict()
    found["metadata"].pop(HOP_KEY)
    for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
        found[name].remove(HOP_KEY)
    return found


async def retrieve(retriever: Any, query: Any, is_async: bool) -> list[NodeWithScore]:
    return await retriever.aretrieve(query) if is_async else retriever.retrieve(query)


async def awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


both_ways = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


# What comes back


@both_ways
@pytest.mark.parametrize("query", [QUESTION, QueryBundle(QUESTION)], ids=["str", "bundle"])
async def test_retrieve_gives_the_search_result(
    retriever: QRAGRetriever, expected: list[str], query: Any, is_async: bool
) -> None:
    found = await retrieve(retriever, query, is_async)
    assert all(isinstance(node, NodeWithScore) for node in found)
    assert ids_of(found) == expected
    assert [node.score for node in found] == [step.q_value for step in retriever.search(QUESTION).steps]
    assert [node.metadata[HOP_KEY] for node in found] == [1, 2, 3]


def test_nodes_come_back_as_they_went_in(node_index: ChunkIndex) -> None:
    """Relationships, character offsets, templates, excluded keys and metadata survive."""
    given = {node.node_id: node for node in make_nodes()}
    found = QRAGRetriever(index=node_index, k=12).retrieve(QUESTION)
    assert len(found) == 12
    for hit in found:
        assert type(hit.node) is TextNode
        assert without_hop(hit.node) == given[hit.node_id].to_dict()


def test_nodes_survive_saving_and_loading(own: QRAGRetriever, model: QRAGModel, tmp_path: Path) -> None:
    own.persist(tmp_path / "index")
    given = {node.node_id: node for node in make_nodes()}
    for hit in QRAGRetriever.from_persist_dir(tmp_path / "index", model=model).retrieve(QUESTION):
        assert without_hop(hit.node) == given[hit.node_id].to_dict()


@pytest.mark.parametrize(
    "node",
    [
        TextNode(text="Mary.", id_="a"),
        ImageNode(text="Mary.", id_="a", image_path="mary.png"),
        IndexNode(text="Mary.", id_="a", index_id="elsewhere"),
        Node(id_="a", text_resource={"text": "Mary."}),
    ],
    ids=lambda node: type(node).__name__,
)
def test_every_kind_of_node_comes_back_as_itself(model: QRAGModel, node: BaseNode) -> None:
    found = QRAGRetriever.from_defaults(nodes=[node], model=model).retrieve(QUESTION)[0].node
    assert type(found) is type(node)
    assert without_hop(found) == node.to_dict()


class OwnNode(TextNode):
    """A node class of a user's own."""

    @classmethod
    def class_name(cls) -> str:
        return "OwnNode"


def test_a_foreign_node_class_is_refused_when_it_is_added(model: QRAGModel) -> None:
    """It cannot be rebuilt, and a search that fails later would be the wrong time to say so."""
    with pytest.raises((TypeError, ValueError), match="OwnNode"):
        QRAGRetriever.from_defaults(nodes=[OwnNode(text="Mary.")], model=model)


def test_each_search_makes_new_nodes(retriever: QRAGRetriever) -> None:
    before = retriever.retrieve(QUESTION)[0].node.to_dict()
    node = retriever.retrieve(QUESTION)[0].node
    node.set_content("changed")
    node.metadata["words"].append("changed")
    node.metadata["new"] = "changed"
    node.relationships.clear()
    assert retriever.retrieve(QUESTION)[0].node.to_dict() == before


def test_editing_a_given_node_afterwards_does_not_change_the_corpus(model: QRAGModel) -> None:
    nodes = make_nodes()
    made = QRAGRetriever.from_defaults(nodes=nodes, model=model)
    for node in nodes:
        node.set_content("changed")
        node.metadata["words"].append("changed")
    found = made.retrieve(QUESTION)[0].node
    assert "changed" not in json.dumps(found.to_dict())
    assert "changed" not in json.dumps(made.invoke(QUESTION)[0].metadata)


def test_texts_become_nodes_with_id_metadata_and_source(model: QRAGModel) -> None:
    made = QRAGRetriever.from_texts(["Mary."], [{"document_id": "story", "a": 1}], ["x"], model=model)
    node = made.retrieve(QUESTION)[0].node
    assert (node.node_id, node.text, node.ref_doc_id) == ("x", "Mary.", "story")
    assert node.metadata == {"document_id": "story", "a": 1, HOP_KEY: 1}


def test_the_hop_is_kept_from_language_models_and_embeddings(retriever: QRAGRetriever) -> None:
    node = retriever.retrieve(QUESTION)[0].node
    assert HOP_KEY in node.metadata
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert HOP_KEY not in node.get_content(metadata_mode=mode)


def test_a_change_during_a_search_does_not_reach_its_nodes(own: QRAGRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search works on the version that it started with, also when it makes the nodes at its end."""
    given = {node.node_id: node.to_dict() for node in make_nodes()}
    encode, calls = own.index.model.encode_states, []
    first, second, _ = own.search(QUESTION).ids

    def encode_and_change(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            own.index.delete([first])
            own.add_texts(["changed"], ids=[second])
        return encode(*args, **kwargs)

    monkeypatch.setattr(own.index.model, "encode_states", encode_and_change)
    found = own.retrieve(QUESTION)
    assert ids_of(found)[:2] == [first, second]
    assert [without_hop(hit.node) for hit in found] == [given[hit.node_id] for hit in found]


def test_chunks_are_embedded_with_the_metadata_that_is_for_embedding(corpus_model: QRAGModel) -> None:
    nodes = make_nodes()
    made = QRAGRetriever.from_defaults(nodes=nodes, model=corpus_model, mode="corpus", k=1)
    state = corpus_model.encode_states([QUESTION])[0]
    vectors = corpus_model.encode_chunks([node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes])
    hit = made.retrieve(QUESTION)[0]
    assert hit.node_id == IDS[int(np.argmax(vectors @ state))]
    assert hit.score == pytest.approx(float((vectors @ state).max()), rel=1e-4)
    assert hit.text == STORY[IDS.index(hit.node_id)]


def test_order_document_sorts_nodes_and_keeps_their_hops(node_index: ChunkIndex) -> None:
    found = QRAGRetriever(index=node_index, k=6, order="document").retrieve(QUESTION)
    picked = QRAGRetriever(index=node_index, k=6).search(QUESTION).ids
    assert ids_of(found) == sorted(picked, key=IDS.index)
    assert ids_of(found) != picked
    assert [picked[node.metadata[HOP_KEY] - 1] for node in found] == ids_of(found)


def test_k_above_the_corpus_returns_the_corpus(node_index: ChunkIndex) -> None:
    made = QRAGRetriever(index=node_index, similarity_top_k=100)
    assert sorted(ids_of(made.retrieve(QUESTION))) == sorted(IDS)
    assert made.similarity_top_k == 100


# Settings under LlamaIndex's names


def test_similarity_top_k_is_another_name_of_k(node_index: ChunkIndex) -> None:
    made = QRAGRetriever(index=node_index, similarity_top_k=2)
    assert (made.k, made.similarity_top_k, len(made.retrieve(QUESTION))) == (2, 2, 2)
    made.similarity_top_k = 5
    assert (made.k, len(made.retrieve(QUESTION)), len(made.invoke(QUESTION))) == (5, 5, 5)


def test_giving_both_names_of_k_raises(node_index: ChunkIndex) -> None:
    with pytest.raises(ValueError, match="similarity_top_k"):
        QRAGRetriever(index=node_index, k=2, similarity_top_k=3)


@pytest.mark.parametrize("k", [0, -1])
def test_a_similarity_top_k_below_one_raises(node_index: ChunkIndex, k: int) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        QRAGRetriever(index=node_index, similarity_top_k=k)


def test_callback_manager_is_made_when_none_is_given(node_index: ChunkIndex) -> None:
    given = CallbackManager()
    assert QRAGRetriever(index=node_index, callback_manager=given).callback_manager is given
    assert isinstance(QRAGRetriever(index=node_index, callback_manager=None).callback_manager, CallbackManager)


def test_a_retriever_made_without_validation_retrieves(node_index: ChunkIndex) -> None:
    made = QRAGRetriever.model_construct(index=node_index)
    assert made._verbose is False
    assert len(made.retrieve(QUESTION)) == 4


def test_verbose_is_llama_index_s_private_name_too(retriever: QRAGRetriever) -> None:
    retriever._verbose = True
    assert retriever.verbose is True


# Queries that carry more than text


@both_ways
async def test_a_bundle_s_embedding_is_the_first_state(retriever: QRAGRetriever, is_async: bool) -> None:
    embedding = -retriever.index.model.encode_states([QUESTION])[0]
    found = await retrieve(retriever, QueryBundle(QUESTION, embedding=embedding.tolist()), is_async)
    chunk_ids, q_values = retriever.index.top_k(embedding, [], 1)
    assert found[0].node_id == IDS[chunk_ids[0]] != retriever.search(QUESTION).ids[0]
    assert found[0].score == pytest.approx(float(q_values[0]), rel=1e-5)


def test_a_bundle_s_embedding_holds_for_the_first_hop_only(
    retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, queries = retriever.index.model.encode_states, []

    def noted(states: Any, **options: Any) -> Any:
        queries.extend(query for query, _ in states)
        return encode(states, **options)

    embedding = encode([OTHER_QUESTION])[0].tolist()
    monkeypatch.setattr(retriever.index.model, "encode_states", noted)
    retriever.retrieve(QueryBundle(QUESTION, embedding=embedding))
    assert queries == [QUESTION, QUESTION]


@both_ways
async def test_custom_embedding_strings_are_averaged(retriever: QRAGRetriever, is_async: bool) -> None:
    strings = ["Mary went to the garden.", "Nobody heard the clock."]
    mean = retriever.index.model.encode_states(strings).mean(axis=0)
    found = await retrieve(retriever, QueryBundle(QUESTION, custom_embedding_strs=strings), is_async)
    wanted = retriever.retrieve(QueryBundle(QUESTION, embedding=mean.tolist()))
    assert ids_of(found) == ids_of(wanted)
    assert found[0].score == pytest.approx(wanted[0].score, rel=1e-4)


@both_ways
async def test_an_empty_embedding_of_a_bundle_is_none(retriever: QRAGRetriever, is_async: bool) -> None:
    bundle = QueryBundle(QUESTION, embedding=[])
    found = await retriever.aretrieve(bundle) if is_async else retriever.retrieve(bundle)
    assert [one.node_id for one in found] == retriever.search(QUESTION).ids


@both_ways
@pytest.mark.parametrize("embedding", [[0.5] * 31, [float("nan")] * 32], ids=["short", "nan"])
async def test_a_bundle_s_bad_embedding_raises(
    retriever: QRAGRetriever, embedding: list[float], is_async: bool
) -> None:
    with pytest.raises(ValueError, match="embedding"):
        await retrieve(retriever, QueryBundle(QUESTION, embedding=embedding), is_async)


@both_ways
@pytest.mark.parametrize("query", ["", "  "])
async def test_an_empty_query_raises(retriever: QRAGRetriever, query: str, is_async: bool) -> None:
    with pytest.raises(ValueError, match="query is empty"):
        await retrieve(retriever, query, is_async)


# Engines and wrappers


@both_ways
async def test_a_query_engine_answers_from_the_nodes(
    retriever: QRAGRetriever, expected: list[str], is_async: bool
) -> None:
    """MockLLM answers with its prompt."""
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    response = await engine.aquery(QUESTION) if is_async else engine.query(QUESTION)
    assert ids_of(response.source_nodes) == expected
    assert all(STORY[IDS.index(id_)] in str(response) for id_ in expected)
    assert HOP_KEY not in str(response)


@both_ways
async def test_a_query_engine_applies_postprocessors(retriever: QRAGRetriever, is_async: bool) -> None:
    scores = sorted(step.q_value for step in retriever.search(QUESTION).steps)
    processors = [
        SimilarityPostprocessor(similarity_cutoff=(scores[0] + scores[1]) / 2),
        MetadataReplacementPostProcessor(target_metadata_key="who"),
        LongContextReorder(),
    ]
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), node_postprocessors=processors)
    response = await engine.aquery(QUESTION) if is_async else engine.query(QUESTION)
    assert len(response.source_nodes) == 2
    assert all(hit.text == hit.metadata["who"] for hit in response.source_nodes)
    assert all(hit.text in STORY for hit in retriever.retrieve(QUESTION))


FUSION_MODES = ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"]


def fusion(retrievers: list[QRAGRetriever], mode: str, **options: Any) -> QueryFusionRetriever:
    return QueryFusionRetriever(retrievers, llm=MockLLM(max_tokens=3), mode=mode, **options)


@pytest.mark.parametrize("mode", FUSION_MODES)
@pytest.mark.parametrize("way", ["sync", "threads", "async"])
async def test_fusion_joins_retrievers(node_index: ChunkIndex, mode: str, way: str) -> None:
    parts = [
        QRAGRetriever(index=node_index, k=3, filters=lambda metadata: metadata["line"] < 6),
        QRAGRetriever(index=node_index, k=3, filters=lambda metadata: metadata["line"] >= 6),
    ]
    fused = fusion(parts, mode, num_queries=1, similarity_top_k=10, use_async=way == "threads")
    if way == "threads":
        found = await asyncio.to_thread(fused.retrieve, QUESTION)
    else:
        found = await retrieve(fused, QUESTION, way == "async")
    wanted = {id_ for part in parts for id_ in part.search(QUESTION).ids}
    assert (len(found), set(ids_of(found))) == (6, wanted)
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


@both_ways
@pytest.mark.parametrize("mode", FUSION_MODES)
async def test_fusion_merges_a_chunk_that_two_retrievers_find(
    node_index: ChunkIndex, mode: str, is_async: bool
) -> None:
    """At another hop in each. Fusion takes what differs in metadata for two chunks, and one of them costs a place."""
    parts = [
        QRAGRetriever(index=node_index, k=12, hop_key=None),
        QRAGRetriever(index=node_index, k=6, hop_key=None, filters={"line": [6, 7, 8]}),
    ]
    hops = [{id_: hop for hop, id_ in enumerate(part.search(QUESTION).ids)} for part in parts]
    assert any(hops[0][id_] != hop for id_, hop in hops[1].items())
    fused = fusion(parts, mode, num_queries=1, similarity_top_k=12, use_async=False)
    assert sorted(ids_of(await retrieve(fused, QUESTION, is_async))) == sorted(IDS)


class Choose(BaseSelector):
    """Selects the options that it was told to."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass

    def _select(self, choices: Any, query: QueryBundle) -> SelectorResult:
        return SelectorResult(selections=[SingleSelection(index=number, reason="told") for number in self.numbers])

    async def _aselect(self, choices: Any, query: QueryBundle) -> SelectorResult:
        return self._select(choices, query)


@both_ways
@pytest.mark.parametrize("chosen", [(0,), (1,), (0, 1)])
async def test_router_retriever_asks_the_chosen_ones(
    retriever: QRAGRetriever, model: QRAGModel, chosen: tuple[int, ...], is_async: bool
) -> None:
    parts = [retriever, of_texts(model, "Something else.")]
    tools = [RetrieverTool.from_defaults(part, description="d") for part in parts]
    router = RouterRetriever(Choose(*chosen), tools, llm=MockLLM())
    wanted = [id_ for number in chosen for id_ in parts[number].search(QUESTION).ids]
    assert ids_of(await retrieve(router, QUESTION, is_async)) == wanted


@both_ways
async def test_retriever_tool_returns_texts_and_nodes(
    retriever: QRAGRetriever, model: QRAGModel, is_async: bool
) -> None:
    tool = RetrieverTool.from_defaults(retriever, name="story", description="d")
    output = await tool.acall(QUESTION) if is_async else tool.call(QUESTION)
    assert ids_of(output.raw_output) == retriever.search(QUESTION + "\n").ids
    assert all(hit.text in output.content for hit in output.raw_output)
    assert HOP_KEY not in output.content


@both_ways
async def test_transform_retriever_searches_with_hyde(retriever: QRAGRetriever, is_async: bool) -> None:
    transform = HyDEQueryTransform(llm=MockLLM(max_tokens=3), include_original=True)
    found = await retrieve(TransformRetriever(retriever, transform), QUESTION, is_async)
    wanted = retriever.retrieve(QueryBundle(QUESTION, custom_embedding_strs=["text text text", QUESTION]))
    assert ids_of(found) == ids_of(wanted)
    assert found[0].score == pytest.approx(wanted[0].score, rel=1e-5)
    assert found[0].score != retriever.retrieve(QUESTION)[0].score


def test_auto_merging_replaces_children_by_their_parents(model: QRAGModel) -> None:
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[60, 20], chunk_overlap=0)
    nodes = parser.get_nodes_from_documents([Document(text=" ".join(STORY))])
    leaves = get_leaf_nodes(nodes)
    storage = StorageContext.from_defaults(docstore=SimpleDocumentStore())
    storage.docstore.add_documents(nodes)
    base = QRAGRetriever.from_defaults(nodes=leaves, model=model, k=len(leaves))
    found = ids_of(AutoMergingRetriever(base, storage).retrieve(QUESTION))
    assert len(leaves) > 2
    assert set(found) == {node.node_id for node in nodes} - {leaf.node_id for leaf in leaves}


@pytest.mark.parametrize(("mode", "steps"), [("next", [1]), ("previous", [-1]), ("both", [-1, 1])])
def test_prev_next_postprocessor_follows_relationships(node_index: ChunkIndex, mode: str, steps: list[int]) -> None:
    store = SimpleDocumentStore()
    store.add_documents(make_nodes())
    hits = QRAGRetriever(index=node_index, k=1, filters={"line": 5}).retrieve(QUESTION)
    processed = PrevNextNodePostprocessor(docstore=store, num_nodes=1, mode=mode).postprocess_nodes(hits)
    assert ids_of(processed) == [IDS[5 + step] for step in sorted([0, *steps])]


CHATS: dict[str, Callable[[Any, str], Any]] = {
    "chat": lambda engine, text: engine.chat(text),
    "achat": lambda engine, text: engine.achat(text),
}


@pytest.mark.parametrize("engine_class", [CondensePlusContextChatEngine, ContextChatEngine])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
async def test_chat_engines_answer_from_the_nodes(
    retriever: QRAGRetriever, expected: list[str], engine_class: Any, chat: Callable[[Any, str], Any]
) -> None:
    engine = engine_class.from_defaults(retriever=retriever, llm=MockLLM())
    first = await awaited(chat(engine, QUESTION))
    assert ids_of(first.source_nodes) == expected
    assert all(STORY[IDS.index(id_)] in str(first) for id_ in expected)
    second = await awaited(chat(engine, OTHER_QUESTION))
    assert len(second.source_nodes) == 3


# Prompts


def test_prompts_are_an_empty_dict(retriever: QRAGRetriever) -> None:
    assert retriever.get_prompts() == {}
    retriever.update_prompts({"x": PromptTemplate("y")})
    assert retriever.get_prompts() == {}


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda r: RetrieverQueryEngine.from_args(r, llm=MockLLM()), "response_synthesizer:text_qa_template"),
        (lambda r: TransformRetriever(r, HyDEQueryTransform(llm=MockLLM())), "query_transform:hyde_prompt"),
        (lambda r: fusion([r], "simple"), "query_gen_prompt"),
    ],
    ids=["query engine", "transform", "fusion"],
)
def test_wrappers_list_and_update_their_prompts(
    retriever: QRAGRetriever, wrap: Callable[[QRAGRetriever], Any], name: str
) -> None:
    wrapped = wrap(retriever)
    wrapped.update_prompts({name: PromptTemplate("new {query_str} {context_str} {query} {num_queries}")})
    assert wrapped.get_prompts()[name].get_template().startswith("new")


# Recursion


INNER_TEXT = "The inner text."


def _query_engine(inner: QRAGRetriever) -> Any:
    return RetrieverQueryEngine.from_args(inner, llm=MockLLM())


TARGETS: dict[str, Callable[[QRAGRetriever], Any]] = {
    "retriever": lambda inner: inner,
    "query engine": _query_engine,
    "node": lambda inner: TextNode(text=INNER_TEXT),
}
LINKS: dict[str, Callable[[QRAGModel, Any], QRAGRetriever]] = {
    "node's obj": lambda model, target: QRAGRetriever.from_defaults(
        nodes=[IndexNode(text="Link.", index_id="inner", obj=target)], model=model
    ),
    "objects": lambda model, target: QRAGRetriever.from_defaults(
        nodes=[IndexNode(text="Link.", index_id="inner")],
        model=model,
        objects=[IndexNode(text="Link.", index_id="inner", obj=target)],
    ),
    "object_map": lambda model, target: QRAGRetriever.from_defaults(
        nodes=[IndexNode(text="Link.", index_id="inner")], model=model, object_map={"inner": target}
    ),
}


@both_ways
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
async def test_index_nodes_are_followed(
    model: QRAGModel,
    link: Callable[[QRAGModel, Any], QRAGRetriever],
    target: Callable[[QRAGRetriever], Any],
    is_async: bool,
) -> None:
    outer = link(model, target(of_texts(model, INNER_TEXT)))
    found = await retrieve(outer, QUESTION, is_async)
    assert len(found) == 1
    assert INNER_TEXT in found[0].text


def test_added_index_nodes_are_followed(model: QRAGModel) -> None:
    outer = of_texts(model, "Plain.")
    outer.add_documents([IndexNode(text="Link.", index_id="inner", obj=of_texts(model, INNER_TEXT))])
    assert {hit.text for hit in outer.retrieve(QUESTION)} == {"Plain.", INNER_TEXT}


def test_an_index_node_without_an_object_comes_back_itself(model: QRAGModel) -> None:
    outer = QRAGRetriever.from_defaults(nodes=[IndexNode(text="Link.", index_id="nowhere")], model=model)
    assert outer.retrieve(QUESTION)[0].node.index_id == "nowhere"


def test_recursive_retriever_follows_index_nodes(model: QRAGModel) -> None:
    inner = of_texts(model, INNER_TEXT)
    outer = QRAGRetriever.from_defaults(nodes=[IndexNode(text="Link.", id_="link", index_id="inner")], model=model)
    recursive = RecursiveRetriever("outer", retriever_dict={"outer": outer, "inner": inner})
    assert [hit.text for hit in recursive.retrieve(QUESTION)] == [INNER_TEXT]


def test_verbose_says_where_recursion_goes(model: QRAGModel, capsys: pytest.CaptureFixture[str]) -> None:
    outer = LINKS["objects"](model, of_texts(model, INNER_TEXT))
    outer.retrieve(QUESTION)
    assert capsys.readouterr().out == ""
    outer.verbose = True
    outer.retrieve(QUESTION)
    assert "Retrieval entering inner" in capsys.readouterr().out


def test_an_index_node_of_a_retriever_dumps_small(retriever: QRAGRetriever) -> None:
    dumped = json.dumps(IndexNode(text="Link.", index_id="inner", obj=retriever).to_dict())
    assert len(dumped) < 2000
    assert STORY[0] not in dumped


# Instrumentation and callbacks


class Events(BaseEventHandler):
    seen: list[Any] = []  # noqa: RUF012

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)


@pytest.fixture
def traced() -> Iterator[SimpleNamespace]:
    """The events and spans of everything that runs in the test."""
    root, events, spans = get_dispatcher(), Events(), SimpleSpanHandler()
    root.add_event_handler(events)
    root.add_span_handler(spans)
    yield SimpleNamespace(events=events.seen, spans=spans)
    root.event_handlers.remove(events)
    root.span_handlers.remove(spans)


@both_ways
async def test_retrieval_events_carry_query_and_nodes(
    retriever: QRAGRetriever, traced: SimpleNamespace, is_async: bool
) -> None:
    found = await retrieve(retriever, QUESTION, is_async)
    start, *hops, end = traced.events
    assert [type(hop) for hop in hops] == [QRAGHopEvent] * 3
    assert (type(start), type(end)) == (RetrievalStartEvent, RetrievalEndEvent)
    assert (start.str_or_query_bundle, end.nodes) == (QUESTION, found)
    dumped = json.loads(end.model_dump_json())
    assert [node["node"]["id_"] for node in dumped["nodes"]] == ids_of(found)
    assert json.loads(start.model_dump_json())["str_or_query_bundle"] == QUESTION


@both_ways
async def test_retrieving_makes_a_span(retriever: QRAGRetriever, traced: SimpleNamespace, is_async: bool) -> None:
    await retrieve(retriever, QUESTION, is_async)
    names = [span.id_.split("-")[0] for span in traced.spans.completed_spans]
    assert ("QRAGRetriever.aretrieve" if is_async else "QRAGRetriever.retrieve") in names
    assert not traced.spans.open_spans


@both_ways
async def test_a_failed_retrieval_drops_its_span(
    retriever: QRAGRetriever, traced: SimpleNamespace, is_async: bool
) -> None:
    with pytest.raises(ValueError, match="query is empty"):
        await retrieve(retriever, " ", is_async)
    assert traced.spans.dropped_spans
    assert not traced.spans.open_spans


async def test_langchain_s_entry_points_make_no_span(retriever: QRAGRetriever, traced: SimpleNamespace) -> None:
    retriever.invoke(QUESTION)
    await retriever.ainvoke(QUESTION)
    retriever.batch([QUESTION])
    retriever.get(IDS)
    spans = traced.spans
    assert (traced.events, spans.completed_spans, spans.dropped_spans, spans.open_spans) == ([], [], [], {})


@both_ways
async def test_debug_handler_sees_the_retrieval(node_index: ChunkIndex, is_async: bool) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    made = QRAGRetriever(index=node_index, callback_manager=CallbackManager([handler]))
    found = await retrieve(made, QUESTION, is_async)
    ((start, end),) = handler.get_event_pairs(CBEventType.RETRIEVE)
    assert start.payload == {"query_str": QUESTION}
    assert end.payload == {"nodes": found}


@pytest.fixture
def with_lock(node_index: ChunkIndex) -> QRAGRetriever:
    """A retriever with a callback handler that holds a lock, as handlers that write somewhere do."""
    handler = LlamaDebugHandler(print_trace_on_end=False)
    handler.lock = threading.Lock()
    return QRAGRetriever(index=node_index, callback_manager=CallbackManager([handler]))


def test_pickle_leaves_callback_handlers_behind(with_lock: QRAGRetriever) -> None:
    twin = pickle.loads(pickle.dumps(with_lock))
    assert twin.callback_manager.handlers == []
    assert ids_of(twin.retrieve(QUESTION)) == ids_of(with_lock.retrieve(QUESTION))
    assert len(with_lock.callback_manager.handlers) == 1


def test_deepcopy_works_with_callback_handlers(with_lock: QRAGRetriever) -> None:
    twin = copy.deepcopy(with_lock)
    assert twin.index is with_lock.index
    assert ids_of(twin.retrieve(QUESTION)) == ids_of(with_lock.retrieve(QUESTION))


def test_model_dump_holds_nothing_of_llama_index(retriever: QRAGRetriever) -> None:
    assert not {"callback_manager", "object_map", "index"} & retriever.model_dump().keys()


# Filters

LINES = range(len(STORY))
EVERY_OPERATOR: list[tuple[FilterOperator, str, Any]] = [
    (FilterOperator.EQ, "who", "Mary"),
    (FilterOperator.EQ, "absent", "Mary"),
    (FilterOperator.NE, "who", "Mary"),
    (FilterOperator.NE, "note", "seen"),
    (FilterOperator.GT, "line", 6),
    (FilterOperator.GTE, "line", 6),
    (FilterOperator.LT, "line", 6),
    (FilterOperator.LTE, "line", 6),
    (FilterOperator.IN, "who", ["Mary", "John"]),
    (FilterOperator.NIN, "who", ["Mary", "John"]),
    (FilterOperator.NIN, "absent", ["Mary"]),
    (FilterOperator.ANY, "words", ["apple", "football"]),
    (FilterOperator.ALL, "words", ["john", "apple"]),
    (FilterOperator.TEXT_MATCH, "who", "ar"),
    (FilterOperator.TEXT_MATCH_INSENSITIVE, "who", "MARY"),
    (FilterOperator.CONTAINS, "words", "mary"),
    (FilterOperator.IS_EMPTY, "note", None),
    (FilterOperator.IS_EMPTY, "absent", None),
]


def lines_found(index: ChunkIndex, filters: Any) -> list[int]:
    return sorted(hit.metadata["line"] for hit in QRAGRetriever(index=index, k=50, filters=filters).retrieve(QUESTION))


def lines_by_llama_index(filters: MetadataFilters) -> list[int]:
    """The verdict of LlamaIndex's own filter function on the same nodes."""
    metadata = {node.node_id: node.metadata for node in make_nodes()}
    passes = build_metadata_filter_fn(lambda id_: metadata[id_], filters)
    return [number for number, id_ in enumerate(IDS) if passes(id_)]


def test_every_operator_is_tried() -> None:
    assert {operator for operator, _, _ in EVERY_OPERATOR} == set(FilterOperator)


@pytest.mark.parametrize(("operator", "key", "value"), EVERY_OPERATOR)
def test_metadata_filters_mean_what_they_mean_in_llama_index(
    node_index: ChunkIndex, operator: FilterOperator, key: str, value: Any
) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])
    assert lines_found(node_index, filters) == lines_by_llama_index(filters)


@pytest.mark.parametrize("condition", [*FilterCondition, None])
def test_conditions_join_filters_as_in_llama_index(node_index: ChunkIndex, condition: FilterCondition | None) -> None:
    parts = [
        MetadataFilter(key="who", value="Mary"),
        MetadataFilter(key="line", operator=FilterOperator.GT, value=4),
    ]
    filters = MetadataFilters(filters=parts, condition=condition)
    found = lines_found(node_index, filters)
    assert found == lines_by_llama_index(filters)
    assert 0 < len(found) < len(STORY)


def test_filters_nest(node_index: ChunkIndex) -> None:
    mary_or_john = MetadataFilters(
        filters=[MetadataFilter(key="who", value="Mary"), MetadataFilter(key="who", value="John")],
        condition=FilterCondition.OR,
    )
    not_early = MetadataFilters(
        filters=[MetadataFilter(key="line", operator=FilterOperator.LT, value=4)], condition=FilterCondition.NOT
    )
    both = MetadataFilters(filters=[mary_or_john, not_early], condition=FilterCondition.AND)
    people = [number for number in LINES if STORY[number].split()[0] in ("Mary", "John")]
    assert lines_found(node_index, both) == [number for number in people if number >= 4]
    either = MetadataFilters(filters=[both, MetadataFilter(key="line", value=2)], condition=FilterCondition.OR)
    assert lines_found(node_index, either) == sorted([2, *(number for number in people if number >= 4)])
    neither = MetadataFilters(filters=[either], condition=FilterCondition.NOT)
    assert lines_found(node_index, neither) == sorted(set(LINES) - set(lines_found(node_index, either)))


@pytest.mark.parametrize("condition", FilterCondition)
def test_no_filters_let_everything_through(node_index: ChunkIndex, condition: FilterCondition) -> None:
    assert lines_found(node_index, MetadataFilters(filters=[], condition=condition)) == list(LINES)


@both_ways
async def test_filters_that_leave_nothing_give_no_nodes(node_index: ChunkIndex, is_async: bool) -> None:
    made = QRAGRetriever(index=node_index, filters=MetadataFilters(filters=[MetadataFilter(key="who", value="x")]))
    assert await retrieve(made, QUESTION, is_async) == []


def test_filters_can_name_the_source_document(model: QRAGModel) -> None:
    documents = [Document(text=" ".join(STORY[:6]), id_="one"), Document(text=" ".join(STORY[6:]), id_="two")]
    made = QRAGRetriever.from_documents(documents, model=model, filters={"document_id": "two"})
    assert {hit.node.ref_doc_id for hit in made.retrieve(QUESTION)} == {"two"}


@pytest.mark.parametrize("key", ["document_id", "source"])
def test_a_node_without_a_source_is_of_the_document_that_its_metadata_name(model: QRAGModel, key: str) -> None:
    nodes = [TextNode(text=text, metadata={key: str(i % 2)}) for i, text in enumerate(STORY)]
    made = QRAGRetriever.from_documents(nodes, model=model, filters={"document_id": "1"})
    assert made.mode == "corpus", "two source documents"
    assert {hit.node.metadata[key] for hit in made.retrieve(QUESTION)} == {"1"}


# Constructors


def test_from_defaults_takes_nodes_a_docstore_or_an_index(model: QRAGModel, expected: list[str]) -> None:
    store = SimpleDocumentStore()
    store.add_documents(make_nodes())
    vectors = VectorStoreIndex(make_nodes(), embed_model=MockEmbedding(embed_dim=4))
    for given in ({"nodes": make_nodes()}, {"docstore": store}, {"index": vectors}):
        made = QRAGRetriever.from_defaults(**given, model=model, similarity_top_k=3)
        assert ids_of(made.retrieve(QUESTION)) == expected


def test_from_defaults_shares_a_chunk_index(node_index: ChunkIndex) -> None:
    made = QRAGRetriever.from_defaults(index=node_index, similarity_top_k=2)
    assert made.index is node_index
    assert made.k == 2


@pytest.mark.parametrize(
    "given", [[], ["nodes", "docstore"], ["nodes", "index"], ["index", "docstore"], ["nodes", "index", "docstore"]]
)
def test_from_defaults_wants_exactly_one_source(node_index: ChunkIndex, model: QRAGModel, given: list[str]) -> None:
    store = SimpleDocumentStore()
    store.add_documents(make_nodes())
    sources = {"nodes": make_nodes(), "docstore": store, "index": node_index}
    with pytest.raises(ValueError, match="exactly one"):
        QRAGRetriever.from_defaults(**{name: sources[name] for name in given}, model=model)


@pytest.mark.parametrize("given", [{"nodes": []}, {"docstore": SimpleDocumentStore()}])
def test_no_nodes_raise(model: QRAGModel, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got none"):
        QRAGRetriever.from_defaults(**given, model=model)


LONG_TEXT = " ".join(STORY * 5)


def test_a_long_document_is_split_by_sentences_within_the_model_s_limit(
    model: QRAGModel, caplog: pytest.LogCaptureFixture
) -> None:
    document = Document(text=LONG_TEXT, id_="long", metadata={"title": "A story about John and Mary"})
    made = QRAGRetriever.from_documents([document], model=model, k=100)
    nodes = [hit.node for hit in made.retrieve(QUESTION)]
    assert len(nodes) > 3
    assert {node.ref_doc_id for node in nodes} == {"long"}
    assert all(node.text.endswith(".") for node in nodes)
    embedded = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    assert all("John and Mary" in text for text in embedded)
    encoder = model.action_encoder
    assert max(len(encoder.token_ids(text)) for text in embedded) <= encoder.content_limit
    assert "only their beginning is embedded" not in caplog.text


def test_the_pieces_of_a_document_stand_in_its_order(model: QRAGModel) -> None:
    made = QRAGRetriever.from_documents([Document(text=LONG_TEXT)], model=model, order="document", k=100)
    nodes = [hit.node for hit in made.retrieve(QUESTION)]
    assert " ".join(node.text for node in nodes) == LONG_TEXT
    assert [node.next_node.node_id for node in nodes[:-1]] == [node.node_id for node in nodes[1:]]
    assert all(LONG_TEXT[node.start_char_idx : node.end_char_idx] == node.text for node in nodes)


def test_a_splitter_of_one_s_own_is_used(model: QRAGModel) -> None:
    splitter = SentenceSplitter(chunk_size=8, chunk_overlap=0, tokenizer=str.split)
    document = Document(text=" ".join(STORY))
    made = QRAGRetriever.from_documents([document], splitter, model=model, k=100)
    wanted = [node.text for node in splitter.get_nodes_from_documents([document])]
    assert len(wanted) > 6
    assert sorted(hit.text for hit in made.retrieve(QUESTION)) == sorted(wanted)


@pytest.mark.parametrize(
    ("documents", "mode"),
    [
        ([Document(text=LONG_TEXT)], "document"),
        ([Document(text=STORY[0]), Document(text=STORY[1])], "corpus"),
        ([LangChainDocument(page_content=text) for text in STORY], "document"),
        ([LangChainDocument(page_content=text, metadata={"source": "a"}) for text in STORY], "document"),
        ([LangChainDocument(page_content=text, metadata={"source": text}) for text in STORY], "corpus"),
        (make_nodes(), "document"),
    ],
    ids=["one", "two", "no source", "one source", "many sources", "nodes of one"],
)
def test_mode_auto_asks_whether_there_are_several_documents(model: QRAGModel, documents: list[Any], mode: str) -> None:
    assert QRAGRetriever.from_documents(documents, model=model).mode == mode


@pytest.mark.parametrize("mode", ["document", "corpus"])
def test_positions_follow_the_mode(model: QRAGModel, mode: Any) -> None:
    made = QRAGRetriever.from_documents(make_nodes(), model=model, mode=mode, k=12)
    positions = {step.position for step in made.search(QUESTION).steps}
    assert made.mode == mode
    assert (positions == {0}) == (mode == "corpus")


def test_langchain_documents_are_taken_as_they_are(model: QRAGModel) -> None:
    long = LangChainDocument(page_content=LONG_TEXT, id="long", metadata={"page": 3})
    made = QRAGRetriever.from_documents([long, LangChainDocument(page_content="Short.")], model=model)
    found = {hit.text: hit for hit in made.retrieve(QUESTION)}
    assert found.keys() == {LONG_TEXT, "Short."}
    assert (found[LONG_TEXT].node_id, found[LONG_TEXT].metadata["page"]) == ("long", 3)


def test_both_frameworks_documents_mix(model: QRAGModel) -> None:
    given = [Document(text="One."), LangChainDocument(page_content="Two."), TextNode(text="Three.")]
    made = QRAGRetriever.from_documents(given, model=model)
    assert {hit.text for hit in made.retrieve(QUESTION)} == {"One.", "Two.", "Three."}
    assert {document.page_content for document in made.invoke(QUESTION)} == {"One.", "Two.", "Three."}


@pytest.mark.parametrize("given", [["plain text"], [3], "plain text", [{"page_content": "x"}]])
def test_anything_else_is_refused(model: QRAGModel, given: Any) -> None:
    with pytest.raises(TypeError, match="documents"):
        QRAGRetriever.from_documents(given, model=model)


# Storage


def test_from_persist_dir_restores_the_settings(own: QRAGRetriever, model: QRAGModel, tmp_path: Path) -> None:
    own.similarity_top_k, own.order, own.score_key, own.beam_width, own.min_q = 5, "document", None, 2, -9.5
    own.persist(tmp_path / "index")
    loaded = QRAGRetriever.from_persist_dir(tmp_path / "index", model=model)
    kept = (loaded.similarity_top_k, loaded.order, loaded.score_key, loaded.beam_width, loaded.min_q)
    assert kept == (5, "document", None, 2, -9.5)
    assert ids_of(loaded.retrieve(QUESTION)) == ids_of(own.retrieve(QUESTION))


def test_from_persist_dir_takes_other_settings(own: QRAGRetriever, model: QRAGModel, tmp_path: Path) -> None:
    own.persist(tmp_path / "index")
    loaded = QRAGRetriever.from_persist_dir(tmp_path / "index", model=model, similarity_top_k=1)
    assert len(loaded.retrieve(QUESTION)) == 1


def test_delete_ref_doc_deletes_a_document_s_chunks(model: QRAGModel) -> None:
    documents = [Document(text=LONG_TEXT, id_="one"), Document(text=STORY[0], id_="two")]
    made = QRAGRetriever.from_documents(documents, model=model, k=100)
    ones = [hit.node_id for hit in made.retrieve(QUESTION) if hit.node.ref_doc_id == "one"]
    assert sorted(made.delete_ref_doc("one")) == sorted(ones)
    assert [hit.node.ref_doc_id for hit in made.retrieve(QUESTION)] == ["two"]
    with pytest.raises(KeyError, match="three"):
        made.delete_ref_doc("three")


def test_added_documents_are_found(own: QRAGRetriever) -> None:
    ids = own.add_documents([Document(text="Where was the football before the kitchen?", id_="new")])
    own.k = 20
    found = {hit.node_id: hit.node for hit in own.retrieve(QUESTION)}
    assert found[ids[0]].ref_doc_id == "new"


# Async


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


@pytest.mark.parametrize(
    "query", [QUESTION, QueryBundle(QUESTION, custom_embedding_strs=["Mary."])], ids=["text", "embedding strings"]
)
async def test_the_event_loop_stays_free_during_aretrieve(
    node_index: ChunkIndex, monkeypatch: pytest.MonkeyPatch, query: Any
) -> None:
    gate = Gate(node_index.model.encode_states)
    monkeypatch.setattr(node_index.model, "encode_states", gate)
    made = QRAGRetriever(index=node_index, k=1)
    await asyncio.gather(made.aretrieve(query), gate.open_from_the_loop())
    assert gate.opened


def test_an_embedding_that_another_retriever_has_left_is_warned_of() -> None:
    bundled_story = QRAGRetriever.from_texts(STORY)
    left = np.ones(bundled_story.index.dim) / np.sqrt(bundled_story.index.dim)
    with pytest.warns(UserWarning, match="another retriever has left its own"):
        bundled_story.retrieve(QueryBundle(QUESTION, embedding=left.tolist()))
    own = bundled_story.index.model.encode_states(["Something else?"])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundled_story.retrieve(QueryBundle(QUESTION, embedding=own.tolist()))

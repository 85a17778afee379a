"""What traces show: the hops of a search, nested below the retriever's run or span, with the model and the settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.query_engine import RetrieverQueryEngine

from qrag_retriever import ChunkIndex, QRAGRetriever, Selection
from qrag_retriever.integrations.llama_index_hops import QRAGHopEvent
from tests.conftest import QUESTION, STORY
from tests.toy_model import ToyModel

OTHER_QUESTION = "Who wrote a letter?"


@pytest.fixture
def index() -> ChunkIndex:
    return ChunkIndex.from_texts(STORY, ids=[f"s{number}" for number in range(len(STORY))], model=ToyModel())


@pytest.fixture
def retriever(index: ChunkIndex) -> QRAGRetriever:
    return QRAGRetriever(index=index, k=3)


def picks_of(selection: Selection) -> list[dict[str, Any]]:
    """What a trace has to say of each hop."""
    return [
        {
            "chunk_id": step.chunk_id,
            "id": step.id,
            "q_value": step.q_value,
            "position": step.position,
            "position_gain": step.position_gain,
            "earlier": [earlier.chunk_id for earlier in selection.steps[:hop]],
        }
        for hop, step in enumerate(selection.steps)
    ]


class Tracer(BaseTracer):
    """Keeps the trees of runs, as LangSmith's tracer does."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)


async def runs_of(retriever: Any, name: str, query: Any = QUESTION, **arguments: Any) -> list[Run]:
    """The retriever runs of a call, through the tracer."""
    tracer = Tracer()
    made = getattr(retriever, name)(query, {"callbacks": [tracer]}, **arguments)
    if name.startswith("a"):
        await made
    return tracer.roots


# LangChain


@pytest.mark.parametrize("name", ["invoke", "ainvoke"])
@pytest.mark.parametrize("settings", [{}, {"batch_wait_ms": 1}])
async def test_hops_are_child_runs(index: ChunkIndex, name: str, settings: Any) -> None:
    retriever = QRAGRetriever(index=index, k=3, **settings)
    [root] = await runs_of(retriever, name)
    assert (root.run_type, root.error) == ("retriever", None)
    hops = root.child_runs
    assert [(run.name, run.run_type) for run in hops] == [("qrag_hop", "chain")] * 3
    assert [run.inputs for run in hops] == [{"query": QUESTION, "hop": hop} for hop in (1, 2, 3)]
    assert [run.outputs for run in hops] == [{"picks": [pick]} for pick in picks_of(retriever.search(QUESTION))]
    assert all(run.parent_run_id == root.id and run.trace_id == root.id for run in hops)
    assert all(before.end_time <= after.start_time for before, after in pairwise(hops))
    assert f"hop:{len(hops)}" in (hops[-1].tags or [])


@pytest.mark.parametrize("name", ["invoke", "ainvoke"])
async def test_hops_can_be_left_out_of_traces(index: ChunkIndex, name: str) -> None:
    retriever = QRAGRetriever(index=index, k=3, trace_hops=False)
    [root] = await runs_of(retriever, name)
    assert (root.run_type, root.child_runs) == ("retriever", [])
    roots = await runs_of(retriever, {"invoke": "batch", "ainvoke": "abatch"}[name], [QUESTION, OTHER_QUESTION])
    assert [root.child_runs for root in roots] == [[], []]


@pytest.mark.parametrize("name", ["batch", "abatch"])
async def test_every_run_of_a_batch_has_its_own_hops(retriever: QRAGRetriever, name: str) -> None:
    questions = [QUESTION, OTHER_QUESTION, QUESTION]
    roots = await runs_of(retriever, name, questions)
    assert [root.inputs["query"] for root in roots] == questions
    for root, question in zip(roots, questions, strict=True):
        assert [run.outputs for run in root.child_runs] == [
            {"picks": [pick]} for pick in picks_of(retriever.search(question))
        ]


async def test_joined_searches_of_many_tasks_keep_their_hops_apart(index: ChunkIndex) -> None:
    retriever = QRAGRetriever(index=index, k=2, batch_wait_ms=200)
    questions = [f"{QUESTION} {number}" for number in range(4)]
    for roots in await asyncio.gather(*(runs_of(retriever, "ainvoke", question) for question in questions)):
        [root] = roots
        outputs = [run.outputs["picks"][0] for run in root.child_runs]
        assert outputs == picks_of(retriever.search(root.inputs["query"]))
        assert {run.trace_id for run in root.child_runs} == {root.id}


async def test_a_run_tells_the_model_and_the_settings(index: ChunkIndex) -> None:
    retriever = QRAGRetriever(index=index, k=3, beam_width=2)
    for name in ("invoke", "ainvoke"):
        [root] = await runs_of(retriever, name, k=2, min_q=0.5)
        assert (
            root.metadata.items()
            >= {
                "ls_retriever_name": "qrag",
                "qrag_model": ToyModel().fingerprint()[:12],
                "qrag_k": 2,
                "qrag_min_q": 0.5,
                "qrag_beam_width": 2,
                "qrag_mode": "document",
            }.items()
        )


@pytest.mark.parametrize("name", ["batch", "abatch"])
async def test_the_runs_of_a_batch_tell_them_too(retriever: QRAGRetriever, name: str) -> None:
    for root in await runs_of(retriever, name, [QUESTION, OTHER_QUESTION], k=2):
        assert root.metadata["qrag_k"] == 2
        assert root.metadata["qrag_model"] == ToyModel().fingerprint()[:12]


async def test_a_hop_without_a_pick_says_why(retriever: QRAGRetriever) -> None:
    [root] = await runs_of(retriever, "invoke", min_q=1e9)
    assert [run.outputs for run in root.child_runs] == [{"picks": [], "stop_reason": "min_q"}]


async def test_beams_show_every_sequence_that_is_kept(index: ChunkIndex) -> None:
    retriever = QRAGRetriever(index=index, k=2, beam_width=3)
    [root] = await runs_of(retriever, "invoke")
    first, second = (run.outputs["picks"] for run in root.child_runs)
    assert len(first) == len(second) == 3
    assert all(not pick["earlier"] for pick in first)
    found = retriever.search(QUESTION)
    sequences = [[*pick["earlier"], pick["chunk_id"]] for pick in second]
    assert [step.chunk_id for step in found.steps] in sequences


async def test_a_hop_that_fails_is_a_failed_run(retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(retriever.index.model, "encode_states", broken)
    tracer = Tracer()
    with pytest.raises(RuntimeError, match="out of memory"):
        retriever.invoke(QUESTION, {"callbacks": [tracer]})
    [root] = tracer.roots
    assert "out of memory" in (root.error or "")
    assert ["out of memory" in (run.error or "") for run in root.child_runs] == [True]


async def test_astream_events_show_the_hops_below_the_retriever(retriever: QRAGRetriever) -> None:
    def count(documents: list[Document]) -> int:
        return len(documents)

    events = [event async for event in (retriever | RunnableLambda(count)).astream_events(QUESTION, version="v2")]
    parent = next(event["run_id"] for event in events if event["event"] == "on_retriever_start")
    ends = [event for event in events if (event["name"], event["event"]) == ("qrag_hop", "on_chain_end")]
    assert [event["data"]["output"]["picks"] for event in ends] == [
        [pick] for pick in picks_of(retriever.search(QUESTION))
    ]
    assert all(event["parent_ids"][-1] == parent for event in ends)
    kinds = [event["event"] for event in events if event["name"] in ("qrag_hop", "QRAGRetriever")]
    assert kinds[0] == "on_retriever_start"
    assert kinds.index("on_retriever_end") > max(i for i, kind in enumerate(kinds) if kind == "on_chain_end")


class Deaf(BaseCallbackHandler):
    """Wants no chains."""

    ignore_chain = True


class SlowHandler(AsyncCallbackHandler):
    """Hears the hops in coroutines."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        self.names.append(str(outputs["picks"][0]["id"]))


async def test_asynchronous_handlers_hear_the_hops(retriever: QRAGRetriever) -> None:
    handler = SlowHandler()
    await retriever.ainvoke(QUESTION, {"callbacks": [handler]})
    assert handler.names == retriever.search(QUESTION).ids


class CountingModel(ToyModel):
    """Counts how often all its weights would be read."""

    reads = 0

    def fingerprint(self) -> str:
        self.reads += 1
        return super().fingerprint()


async def test_nothing_is_done_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("a record of a hop was made")

    for module in ("langchain_hops", "llama_index_hops"):
        monkeypatch.setattr(f"qrag_retriever.integrations.{module}.hop_record", never)
    model = CountingModel()
    retriever = QRAGRetriever.from_texts(STORY, model=model)
    retriever.invoke(QUESTION)
    retriever.invoke(QUESTION, {"callbacks": [Deaf()]})
    await retriever.ainvoke(QUESTION)
    retriever.batch([QUESTION, OTHER_QUESTION])
    await retriever.abatch([QUESTION, OTHER_QUESTION])
    retriever.retrieve(QUESTION)
    await retriever.aretrieve(QUESTION)
    assert model.reads <= 1  # the deaf handler has a retriever run all the same


async def test_the_fingerprint_is_computed_once() -> None:
    model = CountingModel()
    retriever = QRAGRetriever.from_texts(STORY, model=model)
    for name in ("invoke", "ainvoke", "invoke"):
        await runs_of(retriever, name)
    assert model.reads == 1


# LlamaIndex


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
    root, events, spans = get_dispatcher(), Events(seen=[]), SimpleSpanHandler()
    root.add_event_handler(events)
    root.add_span_handler(spans)
    yield SimpleNamespace(events=events.seen, spans=spans)
    root.event_handlers.remove(events)
    root.span_handlers.remove(spans)


def hop_events(traced: SimpleNamespace) -> list[QRAGHopEvent]:
    return [event for event in traced.events if isinstance(event, QRAGHopEvent)]


def ancestors(traced: SimpleNamespace, span_id: str) -> list[str]:
    """The names of the spans around a span, the nearest first."""
    by_id = {span.id_: span for span in (*traced.spans.completed_spans, *traced.spans.dropped_spans)}
    found = []
    parent = by_id[span_id].parent_id
    while parent is not None:
        found.append(parent.partition("-")[0])
        parent = by_id[parent].parent_id
    return found


def test_hops_can_be_left_out_of_events_and_spans(index: ChunkIndex, traced: SimpleNamespace) -> None:
    QRAGRetriever(index=index, k=3, trace_hops=False).retrieve(QUESTION)
    assert hop_events(traced) == []
    assert [type(event).__name__ for event in traced.events] == ["RetrievalStartEvent", "RetrievalEndEvent"]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("settings", [{}, {"batch_wait_ms": 1}])
async def test_hops_are_events_in_spans_below_the_retrieval(
    index: ChunkIndex, traced: SimpleNamespace, is_async: bool, settings: Any
) -> None:
    retriever = QRAGRetriever(index=index, k=3, **settings)
    await retriever.aretrieve(QUESTION) if is_async else retriever.retrieve(QUESTION)
    events = hop_events(traced)
    assert [event.hop for event in events] == [1, 2, 3]
    assert [event.picks for event in events] == [[pick] for pick in picks_of(retriever.search(QUESTION))]
    assert {event.query_str for event in events} == {QUESTION}
    assert {event.class_name() for event in events} == {"QRAGHopEvent"}
    assert events[0].settings == {
        "qrag_model": ToyModel().fingerprint()[:12],
        "qrag_k": 3,
        "qrag_min_q": None,
        "qrag_beam_width": 1,
        "qrag_mode": "document",
    }
    names = [type(event).__name__ for event in traced.events]
    assert names == ["RetrievalStartEvent", *["QRAGHopEvent"] * 3, "RetrievalEndEvent"]
    spans = [span for span in traced.spans.completed_spans if span.id_.startswith("qrag_hop")]
    assert [span.id_ for span in spans] == [event.span_id for event in events]
    outer = "QRAGRetriever.aretrieve" if is_async else "QRAGRetriever.retrieve"
    assert all(ancestors(traced, span.id_)[-1] == outer for span in spans)
    assert not traced.spans.open_spans


async def test_joined_retrievals_keep_their_hops_apart(index: ChunkIndex, traced: SimpleNamespace) -> None:
    retriever = QRAGRetriever(index=index, k=2, batch_wait_ms=200)
    questions = [f"{QUESTION} {number}" for number in range(4)]
    await asyncio.gather(*(retriever.aretrieve(question) for question in questions))
    parent_of = {span.id_: span.parent_id for span in traced.spans.completed_spans}
    for question in questions:
        events = [event for event in hop_events(traced) if event.query_str == question]
        assert [event.picks[0] for event in events] == picks_of(retriever.search(question))
        assert len({parent_of[event.span_id] for event in events}) == 1
    assert len({parent_of[event.span_id] for event in hop_events(traced)}) == len(questions)


async def test_a_query_engine_nests_the_hops_below_its_query(retriever: QRAGRetriever, traced: SimpleNamespace) -> None:
    from llama_index.core.llms import MockLLM

    RetrieverQueryEngine.from_args(retriever, llm=MockLLM()).query(QUESTION)
    found = ancestors(traced, hop_events(traced)[0].span_id or "")
    assert found.index("QRAGRetriever.retrieve") < found.index("RetrieverQueryEngine.query")


def test_a_hop_that_stops_the_search_says_why(retriever: QRAGRetriever, traced: SimpleNamespace) -> None:
    retriever.min_q = 1e9
    retriever.retrieve(QUESTION)
    [event] = hop_events(traced)
    assert (event.picks, event.stop_reason) == ([], "min_q")


def test_a_hop_that_fails_drops_its_span(
    retriever: QRAGRetriever, traced: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(retriever.index.model, "encode_states", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        retriever.retrieve(QUESTION)
    assert next(iter(traced.spans.dropped_spans)).id_.startswith("qrag_hop-")
    assert not hop_events(traced)
    assert not traced.spans.open_spans


def test_hops_of_one_framework_are_not_shown_to_the_other(retriever: QRAGRetriever, traced: SimpleNamespace) -> None:
    retriever.invoke(QUESTION)
    assert not hop_events(traced)
    assert not traced.spans.completed_spans

"""The retriever in what is built on the two frameworks: LangGraph, LlamaIndex workflows and tools, notebooks."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField, RunnableConfig
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from llama_index.core.tools import RetrieverTool
from llama_index.core.tools.calling import acall_tool, call_tool
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step

from qrag_retriever import QRAGRetriever
from tests.conftest import QUESTION, STORY
from tests.toy_model import ToyModel

OTHER_QUESTION = "Who wrote a letter?"


@pytest.fixture
def retriever() -> QRAGRetriever:
    return QRAGRetriever.from_texts(STORY, ids=[f"s{number}" for number in range(len(STORY))], model=ToyModel(), k=3)


# LangGraph


class State(TypedDict):
    """Of a graph that looks up several questions."""

    questions: list[str]
    found: Annotated[list[str], operator.add]


class Tracer(BaseTracer):
    """Keeps the trees of runs."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)

    def named(self, name: str) -> list[Run]:
        """All runs of a name."""
        open_runs, found = list(self.roots), []
        while open_runs:
            run = open_runs.pop(0)
            open_runs += run.child_runs
            found += [run] * (run.name == name)
        return found


def graph_of(node: Any) -> Any:
    graph = pytest.importorskip("langgraph.graph")
    builder = graph.StateGraph(State)
    builder.add_node("look_up", node)
    builder.add_edge(graph.START, "look_up")
    builder.add_edge("look_up", graph.END)
    return builder.compile()


def ids_of(documents: list[Document]) -> list[str]:
    return [str(document.id) for document in documents]


async def test_a_langgraph_node_passes_its_configuration_on(retriever: QRAGRetriever) -> None:
    configurable = retriever.configurable_fields(k=ConfigurableField(id="k"))

    def look_up(state: State, config: RunnableConfig) -> dict[str, Any]:
        return {"found": ids_of(configurable.invoke(state["questions"][0], config))}

    async def alook_up(state: State, config: RunnableConfig) -> dict[str, Any]:
        return {"found": ids_of(await configurable.ainvoke(state["questions"][0], config))}

    expected = retriever.search(QUESTION, k=2).ids
    for graph, is_async in ((graph_of(look_up), False), (graph_of(alook_up), True)):
        tracer = Tracer()
        config = {"callbacks": [tracer], "configurable": {"k": 2}}
        given = {"questions": [QUESTION], "found": []}
        end = await graph.ainvoke(given, config) if is_async else graph.invoke(given, config)
        assert end["found"] == expected
        [run] = tracer.named("QRAGRetriever")
        assert run.metadata["langgraph_node"] == "look_up"
        assert [hop.outputs["picks"][0]["id"] for hop in run.child_runs] == expected


async def test_a_langgraph_node_looks_many_questions_up_at_once(retriever: QRAGRetriever) -> None:
    def look_up(state: State, config: RunnableConfig) -> dict[str, Any]:
        return {"found": [id_ for found in retriever.batch(state["questions"], config) for id_ in ids_of(found)]}

    tracer = Tracer()
    given = {"questions": [QUESTION, OTHER_QUESTION], "found": []}
    end = graph_of(look_up).invoke(given, {"callbacks": [tracer]})
    assert end["found"] == [*retriever.search(QUESTION).ids, *retriever.search(OTHER_QUESTION).ids]
    assert [len(run.child_runs) for run in tracer.named("QRAGRetriever")] == [3, 3]


async def test_a_langgraph_node_streams_its_hops(retriever: QRAGRetriever) -> None:
    config_module = pytest.importorskip("langgraph.config")

    def look_up(state: State) -> dict[str, Any]:
        write, found = config_module.get_stream_writer(), []
        for pick in retriever.search_iter(state["questions"][0]):
            write(pick.id)
            found.append(pick.id)
        return {"found": found}

    expected = retriever.search(QUESTION).ids
    given = {"questions": [QUESTION], "found": []}
    assert list(graph_of(look_up).stream(given, stream_mode="custom")) == expected


async def test_the_retriever_itself_is_a_langgraph_node(retriever: QRAGRetriever) -> None:
    node = (lambda state: state["questions"][0]) | retriever | (lambda documents: {"found": ids_of(documents)})
    end = await graph_of(node).ainvoke({"questions": [QUESTION], "found": []})
    assert end["found"] == retriever.search(QUESTION).ids


# LlamaIndex


class Hop(Event):
    """A pick."""

    id: str


class LookUp(Workflow):
    """Looks one question up, and shows the hops as they come."""

    def __init__(self, retriever: QRAGRetriever) -> None:
        super().__init__(timeout=60)
        self.retriever = retriever

    @step
    async def look_up(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async for pick in self.retriever.asearch_iter(ev.question):
            ctx.write_event_to_stream(Hop(id=pick.id))
        nodes = await self.retriever.aretrieve(ev.question)
        return StopEvent(result=[node.node_id for node in nodes])


async def test_a_workflow_retrieves_and_streams_hops(retriever: QRAGRetriever) -> None:
    handler = LookUp(retriever).run(question=QUESTION)
    hops = [event.id async for event in handler.stream_events() if isinstance(event, Hop)]
    expected = retriever.search(QUESTION).ids
    assert await handler == expected
    assert hops == expected


async def test_retriever_tool_takes_an_agent_s_call(retriever: QRAGRetriever) -> None:
    tool = RetrieverTool.from_defaults(retriever, name="story", description="Looks into the story.")
    assert tool.metadata.to_openai_tool()["function"]["name"] == "story"
    for output in (call_tool(tool, {"input": QUESTION}), await acall_tool(tool, {"input": QUESTION})):
        assert not output.is_error
        assert [node.node_id for node in output.raw_output] == retriever.search(output.raw_input["input"]).ids
        assert QUESTION in output.raw_input["input"]


# Notebooks


def test_a_notebook_shows_a_selection(retriever: QRAGRetriever) -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    selection = retriever.search(QUESTION)
    shown, _ = formatters.DisplayFormatter().format(selection)
    assert shown["text/plain"] == repr(selection)
    assert shown["text/html"].count("<svg") == 3
    assert all(pick.text in shown["text/html"] for pick in selection.steps)

"""Many questions through LangChain's `batch` and `abatch`: one batch of states at each hop, callbacks for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField, RunnableLambda

from qrag_retriever import ChunkIndex, QRAGRetriever
from tests.conftest import QUESTION, STORY
from tests.toy_model import ToyModel

QUESTIONS = [QUESTION, "Who wrote a letter?", "Sandra?", "What did John drop?", QUESTION]
METADATAS = [{"line": number} for number in range(len(STORY))]


class CountingModel(ToyModel):
    """Keeps how many states came in each batch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.batches: list[int] = []

    def encode_states(self, states: Any, show_progress: bool | None = None) -> Any:
        self.batches.append(len(states))
        return super().encode_states(states, show_progress)


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
def retriever(model: CountingModel) -> QRAGRetriever:
    return QRAGRetriever(index=ChunkIndex.from_texts(STORY, METADATAS, model=model), k=3)


both = pytest.mark.parametrize("name", ["batch", "abatch"])


async def run(retriever: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    found = getattr(retriever, name)(*args, **kwargs)
    return await found if inspect.isawaitable(found) else found


class Recorder(BaseCallbackHandler):
    """Writes down the retriever events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, dict[str, Any]]] = []

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.events.append(("start", query, kwargs))

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.events.append(("end", list(documents), kwargs))

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(("error", error, kwargs))

    def of(self, kind: str) -> list[Any]:
        return [what for name, what, _ in self.events if name == kind]


@both
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: r.with_config(tags=["x"]), lambda r: r | RunnableLambda(list)])
async def test_a_batch_embeds_once_per_hop_and_finds_what_invoke_finds(
    retriever: QRAGRetriever, model: CountingModel, name: str, wrap: Callable[[Any], Any]
) -> None:
    expected = [retriever.invoke(question) for question in QUESTIONS]
    model.batches.clear()
    assert await run(wrap(retriever), name, QUESTIONS) == expected
    assert model.batches == [5, 5, 5]


@both
@pytest.mark.parametrize("settings", [{"order": "document"}, {"score_key": None, "hop_key": None}, {"beam_width": 2}])
async def test_settings_hold_in_a_batch(retriever: QRAGRetriever, name: str, settings: Any) -> None:
    made = QRAGRetriever(index=retriever.index, k=3, **settings)
    assert await run(made, name, QUESTIONS) == [made.invoke(question) for question in QUESTIONS]


@both
async def test_arguments_hold_for_the_whole_batch(retriever: QRAGRetriever, name: str) -> None:
    arguments: dict[str, Any] = {"k": 2, "filters": {"line": [1, 2, 3]}, "min_q": -1e9}
    expected = [retriever.invoke(question, **arguments) for question in QUESTIONS]
    assert await run(retriever, name, QUESTIONS, **arguments) == expected


@both
@pytest.mark.parametrize("arguments", [{"top_k": 1}, {"verbose": True}])
async def test_an_unknown_argument_is_an_error(retriever: QRAGRetriever, name: str, arguments: Any) -> None:
    with pytest.raises(TypeError, match=next(iter(arguments))):
        await run(retriever, name, QUESTIONS, **arguments)


@both
async def test_max_concurrency_is_the_most_of_a_batch(
    retriever: QRAGRetriever, model: CountingModel, name: str
) -> None:
    found = await run(retriever, name, QUESTIONS, {"max_concurrency": 2}, k=1)
    assert len(found) == 5
    assert model.batches == [2, 2, 1]


@both
async def test_every_question_has_a_run_with_its_own_configuration(retriever: QRAGRetriever, name: str) -> None:
    recorders = [Recorder() for _ in QUESTIONS]
    configs = [
        {
            "callbacks": [recorder],
            "tags": [f"tag {number}"],
            "metadata": {"number": number},
            "run_name": f"run {number}",
        }
        for number, recorder in enumerate(recorders)
    ]
    made = QRAGRetriever(index=retriever.index, k=3, tags=["own"], metadata={"team": "a"})
    found = await run(made, name, QUESTIONS, configs)
    for number, recorder in enumerate(recorders):
        (_, query, start), (_, documents, end) = recorder.events
        assert (query, documents) == (QUESTIONS[number], found[number])
        assert (start["name"], set(start["tags"])) == (f"run {number}", {"own", f"tag {number}"})
        assert start["metadata"].items() >= {"team": "a", "number": number, "ls_retriever_name": "qrag"}.items()
        assert start["run_id"] == end["run_id"]


@both
async def test_a_wrong_question_fails_alone(retriever: QRAGRetriever, model: CountingModel, name: str) -> None:
    recorder = Recorder()
    questions: list[Any] = [QUESTION, " ", 3, "Sandra?"]
    found = await run(retriever, name, questions, {"callbacks": [recorder]}, return_exceptions=True)
    assert [type(one) for one in found] == [list, ValueError, TypeError, list]
    assert model.batches == [2, 2, 2]
    assert recorder.of("error") == found[1:3]
    assert recorder.of("end") == [found[0], found[3]]


@both
async def test_the_first_error_is_raised_when_all_is_done(retriever: QRAGRetriever, name: str) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="query is empty"):
        await run(retriever, name, [QUESTION, " ", "Sandra?"], {"callbacks": [recorder]})
    assert len(recorder.of("end")) == 2


@both
async def test_an_error_of_the_search_is_everybody_s(
    retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(retriever.index.model, "encode_states", broken)
    recorder = Recorder()
    found = await run(retriever, name, [QUESTION, "Sandra?"], {"callbacks": [recorder]}, return_exceptions=True)
    assert [str(error) for error in found] == ["out of memory"] * 2
    assert recorder.of("error") == found


class Stumbling(Recorder):
    """Fails at the end of its first run."""

    raise_error = True

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        super().on_retriever_end(documents, **kwargs)
        if len(self.of("end")) == 1:
            raise RuntimeError("no disk")


@both
async def test_what_a_handler_raises_is_of_its_query_alone(retriever: QRAGRetriever, name: str) -> None:
    recorder = Stumbling()
    questions = [QUESTION, "Sandra?", "Mary?"]
    found: list[Any] = await run(retriever, name, questions, {"callbacks": [recorder]}, return_exceptions=True)
    assert [type(one) for one in found] == [RuntimeError, list, list]
    assert len(recorder.of("end")) == 3
    with pytest.raises(RuntimeError, match="no disk"):
        await run(retriever, name, questions, {"callbacks": [Stumbling()]})


@both
@pytest.mark.parametrize("questions", [[], [QUESTION]])
async def test_small_batches_work(retriever: QRAGRetriever, name: str, questions: list[str]) -> None:
    assert await run(retriever, name, questions) == [retriever.invoke(question) for question in questions]


class Loud(QRAGRetriever):
    """Makes something else of a call."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        return [Document(page_content=query.upper())]


class LoudInvoke(QRAGRetriever):
    """Makes something else of a call, from further outside."""

    def invoke(self, input: str, config: Any = None, **kwargs: Any) -> list[Document]:
        return [Document(page_content=input.upper())]

    async def ainvoke(self, input: str, config: Any = None, **kwargs: Any) -> list[Document]:
        return self.invoke(input)


@both
@pytest.mark.parametrize("kind", [Loud, LoudInvoke])
async def test_a_subclass_s_own_call_is_used(retriever: QRAGRetriever, name: str, kind: type[QRAGRetriever]) -> None:
    found = await run(kind(index=retriever.index), name, ["a", "b"])
    assert [[document.page_content for document in one] for one in found] == [["A"], ["B"]]


# Fields that can be set per call

FIELDS = {name: ConfigurableField(id=name) for name in ("k", "min_q", "beam_width")}


@pytest.mark.parametrize(
    ("chosen", "settings"),
    [({"k": 2}, {"k": 2}), ({"min_q": 3.0}, {"min_q": 3.0}), ({"beam_width": 3}, {"beam_width": 3}), ({}, {})],
)
def test_configurable_fields_hold_alone_and_in_chains(
    retriever: QRAGRetriever, chosen: dict[str, Any], settings: dict[str, Any]
) -> None:
    expected = QRAGRetriever(index=retriever.index, **{"k": 3, **settings}).invoke(QUESTION)
    configurable = retriever.configurable_fields(**FIELDS)
    assert configurable.with_config(configurable=chosen).invoke(QUESTION) == expected
    chain = {"found": configurable, "question": RunnableLambda(str)} | RunnableLambda(lambda given: given["found"])
    assert chain.invoke(QUESTION, {"configurable": chosen}) == expected
    assert chain.with_config(configurable=chosen).batch([QUESTION]) == [expected]
    assert retriever.k == 3


def test_configurable_fields_are_listed_with_their_types(retriever: QRAGRetriever) -> None:
    specs = {spec.id: spec for spec in retriever.configurable_fields(**FIELDS).config_specs}
    assert specs.keys() == FIELDS.keys()
    assert (specs["k"].annotation, specs["k"].default) == (int, 3)


def test_a_wrong_configurable_value_is_an_error(retriever: QRAGRetriever) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        retriever.configurable_fields(**FIELDS).invoke(QUESTION, {"configurable": {"k": 0}})


@both
async def test_a_start_that_is_refused_leaves_no_other_run_open(retriever: QRAGRetriever, name: str) -> None:
    class Guard(Recorder):
        raise_error = True

        def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
            raise PermissionError("not for you")

    recorder = Recorder()
    configs = [{"callbacks": [recorder]}, {"callbacks": [Guard()]}, {"callbacks": [recorder]}]
    with pytest.raises(PermissionError, match="not for you"):
        await run(retriever, name, QUESTIONS[:3], configs)
    assert len(recorder.of("start")) == len(recorder.of("end")) == 2

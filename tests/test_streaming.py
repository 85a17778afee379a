"""Hops one by one, as they are picked: `search_iter`, `asearch_iter` and the selector's stream."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGRetriever, Selection, Step
from qrag_retriever.errors import StaleVersionError
from tests.conftest import QUESTION, STORY
from tests.toy_model import ToyModel

METADATAS = [{"line": number} for number in range(len(STORY))]


class CountingModel(ToyModel):
    """Counts the batches of states that it embeds."""

    batches = 0

    def encode_states(self, states: Any, show_progress: bool | None = None) -> Any:
        self.batches += 1
        return super().encode_states(states, show_progress)


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
def index(model: CountingModel) -> ChunkIndex:
    return ChunkIndex.from_texts(STORY, METADATAS, [f"s{number}" for number in range(len(STORY))], model)


@pytest.fixture
def retriever(index: ChunkIndex) -> QRAGRetriever:
    return QRAGRetriever(index=index, k=4)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"k": 2},
    {"k": 50},
    {"filters": {"line": [1, 3, 5]}},
    {"min_q": 1e9},
    {"min_q": 3.0},
]


@pytest.mark.parametrize("settings", [{}, {"beam_width": 3}, {"order": "document"}, {"batch_wait_ms": 1}])
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_a_stream_gives_what_search_gives(index: ChunkIndex, arguments: Any, settings: Any) -> None:
    retriever = QRAGRetriever(index=index, **settings)
    expected = retriever.search(QUESTION, **arguments)
    stream = retriever.search_iter(QUESTION, **arguments)
    assert stream.selection is None
    assert tuple(stream) == expected.steps
    assert stream.selection == expected
    assert stream.selection._known_trace is not None


async def test_an_asynchronous_stream_gives_what_search_gives(retriever: QRAGRetriever) -> None:
    expected = retriever.search(QUESTION, k=3)
    stream = retriever.asearch_iter(QUESTION, k=3)
    assert stream.selection is None
    assert [step async for step in stream] == list(expected.steps)
    assert stream.selection == expected
    assert [step async for step in stream] == []


async def test_a_reader_without_patience_loses_no_hop(
    retriever: QRAGRetriever, model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    encode = model.encode_states

    def when_opened(*arguments: Any, **named: Any) -> Any:
        opened.wait(20)
        return encode(*arguments, **named)

    expected = retriever.search(QUESTION)
    monkeypatch.setattr(model, "encode_states", when_opened)
    stream = retriever.asearch_iter(QUESTION)
    for _ in range(2):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="the hops of a search come one after the other"):
        await anext(stream)
    opened.set()
    assert [await waiting, *[step async for step in stream]] == list(expected.steps)
    assert stream.selection == expected


async def test_a_closed_stream_gives_no_hop_that_was_under_way(
    retriever: QRAGRetriever, model: CountingModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened, failed = threading.Event(), threading.Event()

    def fail_when_opened(*arguments: Any, **named: Any) -> Any:
        opened.wait(20)
        failed.set()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "encode_states", fail_when_opened)
    stream = retriever.asearch_iter(QUESTION)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(stream), 0.05)
    await stream.aclose()
    assert [step async for step in stream] == []
    assert stream.selection is None
    opened.set()
    await asyncio.to_thread(failed.wait, 20)
    await asyncio.sleep(0.05)
    gc.collect()
    assert caplog.records == [], "nobody asked for what was under way"


def test_streams_and_searches_take_the_same_arguments() -> None:
    wanted = inspect.signature(QRAGRetriever.search).parameters
    for name in ("search_iter", "asearch_iter"):
        assert inspect.signature(getattr(QRAGRetriever, name)).parameters == wanted


def test_a_step_comes_before_the_next_hop_is_done(retriever: QRAGRetriever, model: CountingModel) -> None:
    for hop, _ in enumerate(retriever.search_iter(QUESTION), start=1):
        assert model.batches == hop
    assert hop == 4


def test_beams_come_at_the_end(index: ChunkIndex, model: CountingModel) -> None:
    next(QRAGRetriever(index=index, beam_width=2).search_iter(QUESTION))
    assert model.batches == 4


def test_the_stop_before_the_first_pick_is_told(retriever: QRAGRetriever) -> None:
    stream = retriever.search_iter(QUESTION, min_q=1e9)
    assert list(stream) == []
    assert stream.selection is not None
    assert stream.selection.stop_reason == "min_q"


def test_a_generator_can_take_the_selection_over(retriever: QRAGRetriever) -> None:
    taken: list[Selection] = []

    def consumer() -> Generator[Step, None, None]:
        taken.append((yield from retriever.search_iter(QUESTION)))

    assert tuple(consumer()) == taken[0].steps


def test_closing_early_ends_the_stream_and_harms_nothing(retriever: QRAGRetriever, model: CountingModel) -> None:
    stream = retriever.search_iter(QUESTION)
    first = next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    assert stream.selection is None
    assert model.batches == 1
    assert retriever.search(QUESTION).steps[0] == first


async def test_closing_while_a_hop_is_under_way_harms_nothing(
    retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, started, release = retriever.index.model.encode_states, threading.Event(), threading.Event()

    def waiting(*args: Any, **kwargs: Any) -> Any:
        started.set()
        assert release.wait(5)
        return encode(*args, **kwargs)

    monkeypatch.setattr(retriever.index.model, "encode_states", waiting)
    stream = retriever.asearch_iter(QUESTION)
    hop = asyncio.ensure_future(anext(stream))
    await asyncio.to_thread(started.wait, 5)
    hop.cancel()
    await stream.aclose()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await hop
    assert [step async for step in stream] == []


@pytest.mark.parametrize(
    ("query", "arguments", "error"),
    [
        (" ", {}, ValueError),
        (3, {}, TypeError),
        (QUESTION, {"k": 0}, ValueError),
        (QUESTION, {"min_q": "x"}, ValueError),
    ],
)
@pytest.mark.parametrize("name", ["search_iter", "asearch_iter"])
def test_wrong_arguments_are_errors_at_once(
    retriever: QRAGRetriever, name: str, query: Any, arguments: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        getattr(retriever, name)(query, **arguments)


def test_a_stream_keeps_to_the_version_that_it_began_with(retriever: QRAGRetriever) -> None:
    expected = retriever.search(QUESTION)
    stream = retriever.search_iter(QUESTION)
    first = next(stream)
    retriever.delete(expected.ids[1:3])
    retriever.add_texts(["Something new."])
    assert (first, *stream) == expected.steps


def test_a_save_in_the_middle_does_not_show(retriever: QRAGRetriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "index")
    retriever.delete(["s11"])
    expected = retriever.search(QUESTION)
    stream = retriever.search_iter(QUESTION)
    first = next(stream)
    retriever.save(tmp_path / "index")
    assert (first, *stream) == expected.steps
    assert stream.selection == expected


def _stale_once(monkeypatch: pytest.MonkeyPatch, index: ChunkIndex) -> None:
    """Let the second hop find that the version is gone, as on an engine where others delete."""
    plain, calls = MultiStepSelector._hop, []

    def hop(self: MultiStepSelector, *args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise StaleVersionError("gone")
        plain(self, *args)

    monkeypatch.setattr(MultiStepSelector, "_hop", hop)
    monkeypatch.setattr(type(index), "refresh", lambda self: None)


def test_a_search_that_starts_anew_goes_on_where_it_was(
    retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = retriever.search(QUESTION)
    _stale_once(monkeypatch, retriever.index)
    assert tuple(retriever.search_iter(QUESTION)) == expected.steps


def test_hops_that_no_longer_hold_are_an_error(retriever: QRAGRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    _stale_once(monkeypatch, retriever.index)
    stream = retriever.search_iter(QUESTION)
    retriever.delete([next(stream).id])
    with pytest.raises(StaleVersionError, match="search again"):
        next(stream)
    assert list(stream) == []


def test_a_sampled_search_streams_too(index: ChunkIndex) -> None:
    expected = MultiStepSelector(index, temperature=0.5, seed=3).select(QUESTION)
    assert tuple(MultiStepSelector(index, temperature=0.5, seed=3).select_iter(QUESTION)) == expected.steps


def test_a_stream_takes_a_first_state(index: ChunkIndex, model: CountingModel) -> None:
    state = model.encode_states(["other"])[0]
    selector = MultiStepSelector(index)
    assert tuple(selector.select_iter(QUESTION, state)) == selector.select(QUESTION, state).steps

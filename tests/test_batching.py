"""Searches of many threads and tasks, joined into batches."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, QRAGRetriever
from qrag_retriever.batching import Batcher, waiting_threads
from tests.conftest import QUESTION, STORY

QUESTIONS = [f"{QUESTION} {text}" for text in STORY]


@pytest.fixture
def index(model: QRAGModel) -> ChunkIndex:
    return ChunkIndex.from_texts(STORY, [{"part": i % 2} for i in range(len(STORY))], model=model)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many searches were done together, each time."""
    sizes: list[int] = []
    original = MultiStepSelector.select_many_outcomes

    def listen(self: MultiStepSelector, queries: list[str], *arguments: Any) -> Any:
        sizes.append(len(queries))
        return original(self, queries, *arguments)

    monkeypatch.setattr(MultiStepSelector, "select_many_outcomes", listen)
    return sizes


def test_threads_get_what_they_would_get_alone(index: ChunkIndex, batches: list[int]) -> None:
    alone = [QRAGRetriever(index=index).search(question) for question in QUESTIONS]
    del batches[:]
    retriever = QRAGRetriever(index=index, batch_wait_ms=200)
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = list(pool.map(retriever.search, QUESTIONS))
    assert [s.ids for s in together] == [s.ids for s in alone]
    assert sum(batches) == len(QUESTIONS)
    assert len(batches) < len(QUESTIONS) / 2


def test_tasks_of_an_event_loop_come_together(index: ChunkIndex, batches: list[int]) -> None:
    retriever = QRAGRetriever(index=index, batch_wait_ms=200)

    async def ask() -> list[Any]:
        first = [retriever.ainvoke(question) for question in QUESTIONS]
        second = [retriever.aretrieve(question) for question in QUESTIONS]
        third = [retriever.asearch(question) for question in QUESTIONS]
        return await asyncio.gather(*first, *second, *third)

    answers = asyncio.run(ask())
    # More than an event loop's own threads.
    assert sum(batches) == 36
    assert max(batches) > 12
    for i, question in enumerate(QUESTIONS):
        expected = QRAGRetriever(index=index).search(question).ids
        assert [document.id for document in answers[i]] == expected
        assert [node.node.node_id for node in answers[12 + i]] == expected
        assert answers[24 + i].ids == expected


def test_only_searches_with_the_same_settings_come_together(index: ChunkIndex, batches: list[int]) -> None:
    retriever = QRAGRetriever(index=index, batch_wait_ms=200)
    with ThreadPoolExecutor(12) as pool:
        calls = [
            pool.submit(retriever.search, QUESTIONS[i], **settings)
            for i in range(2)
            for settings in ({"k": 1}, {"k": 2}, {"filters": {"part": 0}}, {"filters": lambda m: m["part"] == 1})
        ]
        found = [call.result() for call in calls]
    assert [len(selection) for selection in found] == [1, 2, 4, 4] * 2
    for selection, part in zip([*found[2::4], *found[3::4]], [0, 0, 1, 1], strict=True):
        assert {step.metadata["part"] for step in selection.steps} == {part}
    assert sum(batches) == 8


def test_a_wrong_query_fails_alone(index: ChunkIndex) -> None:
    retriever = QRAGRetriever(index=index, batch_wait_ms=100)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(retriever.search, question) for question in (QUESTION, " ", QUESTION)]
        with pytest.raises(ValueError, match="the query is empty"):
            calls[1].result()
        assert calls[0].result() == calls[2].result()


def test_a_batch_closes_when_it_is_full_or_its_time_is_up() -> None:
    sizes: list[int] = []

    def work(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [2 * item for item in items]

    batcher: Batcher[int, int] = Batcher(max_batch=4)
    with ThreadPoolExecutor(8) as pool:
        start = time.monotonic()
        assert list(pool.map(lambda i: batcher.run("a", work, i, 30.0), range(8))) == [2 * i for i in range(8)]
        assert time.monotonic() - start < 20
    assert sizes == [4, 4]
    assert batcher.run("a", work, 5, 0.01) == 10
    assert sizes == [4, 4, 1]


def test_while_a_batch_runs_the_next_one_gathers() -> None:
    sizes: list[int] = []
    go_on = threading.Event()

    def work(items: list[int]) -> list[int]:
        sizes.append(len(items))
        go_on.wait(30)
        return items

    batcher: Batcher[int, int] = Batcher()
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(batcher.run, "a", work, 0, 0.0)]
        while not sizes:
            time.sleep(0.001)
        calls += [pool.submit(batcher.run, "a", work, i, 0.0) for i in range(1, 6)]
        while len(next(iter(batcher._open.values())).items if batcher._open else []) < 5:
            time.sleep(0.001)
        go_on.set()
        assert [call.result() for call in calls] == list(range(6))
    assert sizes == [1, 5]


def test_an_error_reaches_everybody_and_the_next_batch_works() -> None:
    def fail(items: list[int]) -> list[int]:
        raise RuntimeError(f"{len(items)} at once")

    batcher: Batcher[int, int] = Batcher(max_batch=3)
    with ThreadPoolExecutor(3) as pool:
        for call in [pool.submit(batcher.run, "a", fail, i, 30.0) for i in range(3)]:
            with pytest.raises(RuntimeError, match="3 at once"):
                call.result()
    assert batcher.run("a", lambda items: items, 1, 0.0) == 1


@pytest.mark.parametrize("where", ["at work", "while another batch is under way"])
def test_who_is_interrupted_leaves_nobody_waiting(where: str) -> None:
    def interrupted(items: list[int]) -> list[int]:
        raise KeyboardInterrupt

    class Interrupted:
        def __enter__(self) -> None:
            while len(batcher._open["a"].items) < 2:
                time.sleep(0.001)
            raise KeyboardInterrupt

        def __exit__(self, *_: object) -> None: ...

    batcher: Batcher[int, int] = Batcher(max_batch=2 if where == "at work" else 3)
    running = batcher._running
    if where != "at work":
        batcher._running = Interrupted()  # type: ignore[assignment]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(batcher.run, "a", interrupted, i, 30.0) for i in range(2)]
        errors = [call.exception(timeout=60) for call in calls]
    assert sorted(type(error).__name__ for error in errors) == ["KeyboardInterrupt", "RuntimeError"]
    assert any("interrupted; search again" in str(error) for error in errors)
    batcher._running = running
    assert batcher.run("a", lambda items: items, 1, 0.0) == 1


def test_searches_while_others_add_and_delete_see_one_version(index: ChunkIndex) -> None:
    retriever = QRAGRetriever(index=index, k=3, batch_wait_ms=2)
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            index.add([f"{STORY[number % 12]} Again."], ids=["extra"])
            index.delete(["extra"])
            number += 1

    with ThreadPoolExecutor(9) as pool:
        changing = pool.submit(change)
        found = list(pool.map(retriever.search, QUESTIONS * 4))
        stop.set()
        changing.result()
    for selection in found:
        assert len(set(selection.ids)) == 3
        for step in selection.steps:
            # It stands at the end, so all others keep their places.
            assert step.text.endswith("Again.") if step.id == "extra" else step.text == STORY[step.chunk_id]


TENANT: ContextVar[int] = ContextVar("tenant")


def test_a_filter_sees_what_belongs_to_its_own_caller(index: ChunkIndex) -> None:
    retriever = QRAGRetriever(index=index, batch_wait_ms=50, filters=lambda metadata: metadata["part"] == TENANT.get())

    async def ask(tenant: int, name: str) -> set[int]:
        TENANT.set(tenant)
        found = await getattr(retriever, name)(QUESTION)
        return {one.metadata["part"] for one in (found if name == "ainvoke" else found.steps)}

    async def ask_all() -> list[set[int]]:
        return await asyncio.gather(*(ask(tenant, name) for name in ("asearch", "ainvoke") for tenant in (0, 1)))

    assert asyncio.run(ask_all()) == [{0}, {1}, {0}, {1}]


async def test_many_questions_of_a_task_are_asked_in_its_context(index: ChunkIndex) -> None:
    TENANT.set(1)
    retriever = QRAGRetriever(index=index, batch_wait_ms=50, filters=lambda metadata: metadata["part"] == TENANT.get())
    for documents in await retriever.abatch([QUESTION, QUESTION]):
        assert {document.metadata["part"] for document in documents} == {1}


def test_a_search_within_a_search_does_not_wait_for_itself(index: ChunkIndex) -> None:
    inner = QRAGRetriever(index=index, batch_wait_ms=5)

    class Asks(BaseCallbackHandler):
        def on_chain_start(self, *_: Any, **__: Any) -> None:
            asked.append(inner.search("Where is the apple?").ids)

    asked: list[list[str]] = []
    outer = ThreadPoolExecutor(1).submit(inner.invoke, QUESTION, {"callbacks": [Asks()]})
    assert outer.result(timeout=60)
    assert asked[0] == inner.search("Where is the apple?").ids


def _four_of_a_thread(answers: Any) -> None:
    answers.put(waiting_threads().submit(lambda: 4).result(timeout=20))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_has_threads_and_locks_of_its_own(index: ChunkIndex) -> None:
    assert waiting_threads().submit(lambda: 4).result() == 4
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    batcher: Batcher[int, int] = Batcher()
    batcher._running.acquire()  # as if a batch of another thread were at work at the fork

    def child() -> None:
        _four_of_a_thread(answers)
        answers.put(batcher.run("kind", lambda items: [2 * item for item in items], 3, 0.0))

    process = context.Process(target=child)
    process.start()
    assert [answers.get(timeout=30), answers.get(timeout=30)] == [4, 6]
    process.join()


class Guard(BaseCallbackHandler):
    """Refuses a run, as guardrails do."""

    raise_error = True

    def on_chain_start(self, *_: Any, **__: Any) -> None:
        raise PermissionError("not for you")


async def test_what_a_callback_raises_is_for_its_own_caller(index: ChunkIndex) -> None:
    retriever = QRAGRetriever(index=index, batch_wait_ms=100)
    expected = [document.id for document in retriever.invoke(QUESTION)]
    calls = [retriever.ainvoke(QUESTION, {"callbacks": [Guard()] if i == 1 else []}) for i in range(3)]
    first, refused, third = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, PermissionError)
    for found in (first, third):
        assert [document.id for document in found] == expected  # type: ignore[union-attr]
    configs: Any = [{}, {"callbacks": [Guard()]}]
    one, other = retriever.batch([QUESTION] * 2, configs, return_exceptions=True)
    assert [document.id for document in one] == expected
    assert isinstance(other, PermissionError)
    with pytest.raises(PermissionError, match="not for you"):
        retriever.batch([QUESTION] * 2, configs)

"""Searches that come from many threads at about the same time, joined into batches."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 64


class Batcher(Generic[Item, Result]):
    """Runs calls of one kind together: the first of a batch waits a moment for others, then works for all of them.

    There is no thread in the background. While a batch runs, those who come meanwhile make the next one, so batches
    grow with the load, and a caller waits longer than the moment only for the batch before its own.
    """

    def __init__(self, max_batch: int = MAX_BATCH) -> None:
        """Set the most calls of a batch."""
        self._max_batch = max_batch
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._worker: int | None = None
        self._lock = threading.Lock()
        self._running = threading.Lock()
        self._open: dict[Hashable, _Batch[Item, Result]] = {}

    def run(self, kind: Hashable, work: Callable[[list[Item]], Sequence[Result]], item: Item, wait: float) -> Result:
        """Do one call as part of a batch.

        Args:
            kind: Only calls of one kind come together.
            work: Does a batch: one result for each item, in their order.
            item: What this call asks for.
            wait: Most seconds that the first of a batch waits for others.

        Raises:
            Exception: What ``work`` raises, in every call of the batch; an exception among its results, in that call.
        """
        if self._process != os.getpid():
            # After a fork: the threads that held the locks, and would do the open batches, are the parent's.
            self._begin()
        if self._worker == threading.get_ident():
            # A search within a search of this thread would wait for itself.
            return _raised(work([item])[0])
        deadline = time.monotonic() + wait
        with self._lock:
            batch = self._open.get(kind)
            is_first = batch is None
            if batch is None:
                batch = self._open[kind] = _Batch()
            place = len(batch.items)
            batch.items.append(item)
            if len(batch.items) >= self._max_batch:
                del self._open[kind]
                batch.full.set()
        if is_first:
            self._run(batch, kind, work, deadline)
        return batch.result(place)

    def _run(
        self, batch: _Batch[Item, Result], kind: Hashable, work: Callable[[list[Item]], Sequence[Result]],
        deadline: float,
    ) -> None:  # fmt: skip
        try:
            with self._running:
                batch.full.wait(max(0.0, deadline - time.monotonic()))
                self._close(batch, kind)
                self._worker = threading.get_ident()
                try:
                    batch.do(work)
                finally:
                    self._worker = None
        except BaseException:
            # The caller was interrupted (Ctrl-C): nobody may join, or wait for, a batch that is never done.
            self._close(batch, kind)
            batch.fail(RuntimeError("the search that did the work for this one was interrupted; search again"))
            raise

    def _close(self, batch: _Batch[Item, Result], kind: Hashable) -> None:
        with self._lock:
            if self._open.get(kind) is batch:
                del self._open[kind]


class _Batch(Generic[Item, Result]):
    def __init__(self) -> None:
        self.items: list[Item] = []
        self.full = threading.Event()
        self._done = threading.Event()
        self._results: Sequence[Result] = ()
        self._error: Exception | None = None

    def do(self, work: Callable[[list[Item]], Sequence[Result]]) -> None:
        try:
            self._results = work(self.items)
        except Exception as error:  # of all who wait
            self._error = error
        self._done.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    def result(self, place: int) -> Result:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return _raised(self._results[place])


def _raised(result: Result) -> Result:
    if isinstance(result, Exception):
        raise result
    return result


def waiting_threads() -> ThreadPoolExecutor:
    """Return threads for calls that mostly wait: as many as a batch has, where an event loop's own are few."""
    return _threads_of(os.getpid())


@cache
def _threads_of(process: int) -> ThreadPoolExecutor:
    # A forked process has none of its parent's threads.
    return ThreadPoolExecutor(MAX_BATCH, thread_name_prefix=f"qrag-batch-{process}")


async def off_the_loop(
    executor: ThreadPoolExecutor | None, work: Callable[..., Result], *arguments: Any, **named: Any
) -> Result:
    """Do as `asyncio.to_thread`, in threads of one's choice; None: the event loop's own."""
    call = partial(contextvars.copy_context().run, work, *arguments, **named)
    return await asyncio.get_running_loop().run_in_executor(executor, call)

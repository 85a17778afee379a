"""The hops of a search, one by one as they are picked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from qrag_retriever.batching import off_the_loop
from qrag_retriever.errors import StaleVersionError
from qrag_retriever.selection import Selection
from qrag_retriever.steps import Step


class HopStream(Iterator[Step]):
    """Iterates over the hops of one search, each as soon as it is picked; `selection` has the whole at the end.

    A hop is done when it is asked for, in the caller's thread. A stream that is not read to its end needs no closing.
    ``selection = yield from stream`` works too.

    Example:
        >>> hops = retriever.search_iter(question)  # doctest: +SKIP
        >>> for step in hops:  # doctest: +SKIP
        ...     print(step.q_value, step.text)
        >>> hops.selection.stop_reason  # doctest: +SKIP
    """

    def __init__(self, hops: Generator[Step, None, Selection]) -> None:
        """Read a generator that returns the selection."""
        self._hops: Generator[Step, None, Selection] | None = hops
        self._selection: Selection | None = None

    def __iter__(self) -> HopStream:
        """Return itself."""
        return self

    def __next__(self) -> Step:
        """Do the next hop.

        Raises:
            StaleVersionError: If chunks were changed meanwhile such that the hops so far no longer hold; search again.
        """
        hops = self._hops
        if hops is None:
            raise StopIteration(self._selection)
        try:
            return next(hops)
        except StopIteration as end:
            self._hops, self._selection = None, end.value
            raise StopIteration(self._selection) from None

    @property
    def selection(self) -> Selection | None:
        """What `search` would have returned, with the reason for stopping; None before the end of the stream."""
        return self._selection

    def close(self) -> None:
        """Stop: no more hops come, and `selection` stays as it is. A hop that is under way in a thread is let be."""
        self._hops = None


class AsyncHopStream(AsyncIterator[Step]):
    """Does as `HopStream`, with every hop off the event loop.

    Example:
        >>> async for step in retriever.asearch_iter(question):  # doctest: +SKIP
        ...     print(step.q_value, step.text)
    """

    def __init__(self, hops: HopStream, executor: ThreadPoolExecutor | None = None) -> None:
        """Read a stream in threads of an executor; None: the event loop's own."""
        self._hops = hops
        self._executor = executor
        self._under_way: asyncio.Future[Step | None] | None = None
        self._is_read = False

    def __aiter__(self) -> AsyncHopStream:
        """Return itself."""
        return self

    async def __anext__(self) -> Step:
        """Do the next hop; see `HopStream`.

        A reader that is cancelled, or has no more time, leaves the hop to the next one, who waits for the rest of it.

        Raises:
            StaleVersionError: As `HopStream`.
            RuntimeError: If the hop before is still being waited for.
        """
        if self._is_read:
            raise RuntimeError("the hops of a search come one after the other; wait for one before asking for the next")
        if self._under_way is None:
            self._under_way = asyncio.ensure_future(off_the_loop(self._executor, self._next))
            # Nobody may come back for it: then its error is nobody's either.
            self._under_way.add_done_callback(lambda hop: hop.cancelled() or hop.exception())
        self._is_read = True
        try:
            await asyncio.wait([self._under_way])
            hop, self._under_way = self._under_way, None
        finally:
            self._is_read = False
        step = None if hop is None else hop.result()
        if step is None:
            raise StopAsyncIteration
        return step

    def _next(self) -> Step | None:
        return next(self._hops, None)

    @property
    def selection(self) -> Selection | None:
        """What `search` would have returned, with the reason for stopping; None before the end of the stream."""
        return self._hops.selection

    async def aclose(self) -> None:
        """Stop: no more hops come, and `selection` stays as it is."""
        self._hops.close()
        self._under_way = None


def not_shown(steps: Sequence[Step], shown: list[Step], is_end: bool = False) -> Iterator[Step]:
    """Yield what was not shown yet, provided that a search that started anew has found what was shown before."""
    if any(a.id != b.id for a, b in zip(steps, shown, strict=False)) or (is_end and len(steps) < len(shown)):
        raise StaleVersionError(
            "chunks were changed while the hops of a search were read, and it would now pick others; search again"
        )
    for step in steps[len(shown) :]:
        shown.append(step)
        yield step

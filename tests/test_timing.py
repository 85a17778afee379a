"""Where the time of an update goes."""

from __future__ import annotations

import pytest

from qrag_retriever.training import timing
from qrag_retriever.training.timing import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_seconds_add_up_by_name(clock: list[float]) -> None:
    watch = Stopwatch()
    for name, seconds in (("a", 1.0), ("b", 3.0), ("a", 4.0)):
        with watch(name):
            clock[0] += seconds
        clock[0] += 50.0  # outside of all blocks
    assert watch.seconds == {"a": 5.0, "b": 3.0}
    assert watch.shares() == {"a": 0.625, "b": 0.375}
    assert watch.shares() == {}, "begun anew"


def test_of_nested_blocks_only_the_innermost_counts(clock: list[float]) -> None:
    watch = Stopwatch()
    with watch("outer"):
        clock[0] += 1.0
        with watch("inner"):
            clock[0] += 2.0
            with watch("outer"):
                clock[0] += 4.0
        clock[0] += 8.0
    assert watch.seconds == {"outer": 13.0, "inner": 2.0}


def test_a_block_that_raises_counts_and_ends(clock: list[float]) -> None:
    watch = Stopwatch()

    def fails() -> None:
        with watch("a"):
            clock[0] += 1.0
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    clock[0] += 2.0
    with watch("b"):
        clock[0] += 1.0
    assert watch.seconds == {"a": 1.0, "b": 1.0}

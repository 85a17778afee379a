"""How much is tried: little in every run, much where ``QRAG_FULL=1``; and how long one case may take."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

FULL = os.environ.get("QRAG_FULL") == "1"
# Ten thousand generated cases of each kind, or a hundred.
CASES = 10_000 if FULL else 100


def count(few: int, many: int) -> int:
    return many if FULL else few


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail a case that hangs."""

    def stop(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

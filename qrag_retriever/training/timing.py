"""Where the time of an update goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Stopwatch:
    """Adds up seconds by name, for the log and TensorBoard; of nested blocks, only the innermost counts."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        """Credit the time since the last turn to the block that ran."""
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def shares(self) -> dict[str, float]:
        """Return each name's share of the time since the last call, and begin anew."""
        total = sum(self.seconds.values())
        shares = {name: seconds / total for name, seconds in self.seconds.items()} if total > 0 else {}
        self.seconds.clear()
        return shares

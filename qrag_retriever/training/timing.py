"""Where the time of an update goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Stopwatch:
    """Adds up seconds by name, for the log and TensorBoard."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """Return each name's share of the time since the last call, and begin anew."""
        total = sum(self.seconds.values())
        shares = {name: seconds / total for name, seconds in self.seconds.items()} if total > 0 else {}
        self.seconds.clear()
        return shares

"""SIGINT and SIGTERM, noted during an update and obeyed after it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

# One Ctrl-C may arrive twice, from the terminal and from a launcher.
_SAME_SIGNAL_SECONDS = 1.0


class StopSignals:
    """Notes the first SIGINT or SIGTERM; a second SIGINT stops at once.

    Attributes:
        noted: The number of the block's first signal, None before.
    """

    def __init__(self, tell: bool) -> None:
        """Prepare; ``tell`` says on the standard error stream that the signal was noted."""
        self.noted: int | None = None
        self._noted_at = 0.0
        self._tell = tell

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals in a block, none of them noted yet, and leave them as they were after it."""
        self.noted = None
        previous = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            # Only the main thread may handle signals; in others they stay as they are.
            with contextlib.suppress(ValueError):
                previous[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is None:
            self.noted, self._noted_at = number, time.monotonic()
            if self._tell:
                # Whatever holds a lock on the standard streams may be what is interrupted here.
                with contextlib.suppress(OSError):
                    os.write(2, b"\nstopping after this update, with a checkpoint; Ctrl-C again stops at once\n")
        elif number == signal.SIGINT and time.monotonic() - self._noted_at > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

"""What the command lines share: output that survives any terminal and a closed pipe, and exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable

from qrag_retriever.errors import DivergedError, RecipeError, RewardError, UnknownIdError

# What a shell expects of a process that a signal has ended.
SIGNAL_EXIT = 128
# What a user can put right. The package's other errors are ValueErrors.
_EXPECTED = (OSError, ImportError, ValueError, MemoryError, DivergedError, RewardError, UnknownIdError)


def exit_code_of(program: str, work: Callable[[], int]) -> int:
    """Run a command; returns its own exit code, 1 if something expected goes wrong, 130 after Ctrl-C.

    Args:
        program: Goes before what is said of an error: one line on the standard error stream, no traceback. Only a
            recipe has a line for each of its wrong settings.
        work: The command.
    """
    try:
        return work()
    except _EXPECTED as error:
        text = str(error) or type(error).__name__
        lines = text.splitlines()
        sys.stderr.write(f"{program}: {text if isinstance(error, RecipeError) else ' '.join(lines)}\n")
        return 1
    except KeyboardInterrupt:
        return SIGNAL_EXIT + signal.SIGINT


def accept_any_encoding() -> None:
    """Let a terminal of another encoding be no reason to fail: it gets escapes for what it cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tell(text: str) -> None:
    """Write to the standard output, unless whoever read it has gone."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would be tried again, and complained about, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

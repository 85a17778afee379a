"""How results are shown: for people on a terminal, or as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from qrag_retriever.errors import ModelMismatchError
from qrag_retriever.hops.wording import visible

BOLD, DIM, CYAN = "1", "2", "36"


def paint(text: str, style: str) -> str:
    """Colour a text if the standard output is a terminal and nobody minds (https://no-color.org)."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{style}m{text}\x1b[0m" if wanted else text


def one_line(text: str, width: int) -> str:
    """Return a text as one line of at most ``width`` characters, in which no control character is left."""
    words = visible(" ".join(text.split()))
    return words if len(words) <= width else f"{words[: width - 3]}..."


def printable(text: str) -> str:
    """Return a text whole, on one line, with signs for whatever a terminal would act on."""
    return visible(text).replace("\t", "\N{SYMBOL FOR HORIZONTAL TABULATION}").replace("\n", "\N{SYMBOL FOR LINE FEED}")


def as_json(value: Any) -> str:
    """Return JSON in one line, in characters that the standard output has."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, ensure_ascii=not is_unicode)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def told_for_commands(error: ModelMismatchError) -> ModelMismatchError:
    """Say what to do on the command line, where the error says it for Python."""
    what, _, _ = str(error).partition("; use that one")
    return ModelMismatchError(f"{what}; leave --model out, or make the index anew with qrag index")

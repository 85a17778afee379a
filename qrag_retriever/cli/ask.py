"""qrag ask: search an index, and show every hop."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrag_retriever._files import check_can_write
from qrag_retriever._terminal import tell
from qrag_retriever.cli.files import PAGE_KEY
from qrag_retriever.cli.options import add_command, add_model_options, at_least_one
from qrag_retriever.cli.output import (
    BOLD,
    CYAN,
    DIM,
    as_json,
    count_of,
    one_line,
    paint,
    printable,
    told_for_commands,
)
from qrag_retriever.errors import DataError, ModelMismatchError
from qrag_retriever.hops.wording import visible
from qrag_retriever.records import DOCUMENT_KEY, SOURCE_KEY

if TYPE_CHECKING:
    from qrag_retriever import Selection, Step
    from qrag_retriever.retriever import MinQ

_EXAMPLES = """  qrag ask story.qrag "Where was the football before the kitchen?"
  qrag ask story.qrag "Who owns the shop?" --k 3 --filter source=town.txt --filter page=3
  qrag ask story.qrag --questions questions.txt --min-q auto --json > found.jsonl
  echo "Who owns the shop?" | qrag ask story.qrag -
"""
_STANDARD_INPUT = "-"
_SHOWN_CHARACTERS = 240
_MOST_COLUMNS = 100


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "ask", run, "search an index, and show every hop", _EXAMPLES)
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="a folder written by qrag index")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("question", nargs="?", metavar="QUESTION", help="- reads it from the standard input")
    asked.add_argument(
        "--questions", type=Path, metavar="FILE", help="a question in each line; - reads the standard input"
    )
    add(
        "--k",
        type=at_least_one,
        metavar="K",
        help="most chunks, so the number of hops (default: as saved, or 4)",
    )
    add("--min-q", type=_min_q, metavar="Q", help="stop when no chunk is worth more; auto: the model's own value")
    add(
        "--beam-width",
        type=at_least_one,
        metavar="W",
        help="sequences of picks to keep (default: as saved, or 1)",
    )
    add(
        "--filter", type=_filter, action="append", default=[], metavar="KEY=VALUE",
        help="search only chunks with this metadata; several keys must all fit, of one key any value",
    )  # fmt: skip
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print an object in one line for each question")
    shown.add_argument("--full", action="store_true", help="show chunks at full length")
    add("--html", type=Path, metavar="FILE", help="also write a page that shows the hops of the question")
    add_model_options(parser, "the one that built the index, from where it was")


def run(options: argparse.Namespace) -> int:
    """Carry out the command."""
    if options.html and options.questions:
        options.parser.error("--html shows one question, not --questions")
    if options.html is not None:
        check_can_write(options.html)
    questions = _questions(options)
    from qrag_retriever.retriever import QRAGRetriever

    settings = {name: getattr(options, name) for name in ("k", "min_q", "beam_width")}
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        retriever = QRAGRetriever.load(options.index, options.model, options.device, **given)
    except ModelMismatchError as error:
        raise told_for_commands(error) from error
    selections = retriever.search_many(questions, filters=_filters(options.filter))
    if options.html:
        selections[0].to_html(options.html)
    if options.json:
        tell("".join(f"{as_json(selection.to_dict())}\n" for selection in selections))
    else:
        tell("\n".join(_shown(selection, options.full, bool(options.filter)) for selection in selections))
    if options.html:
        # Not among what --json prints.
        sys.stderr.write(f"{options.html}: the hops as a page, for any browser\n")
    return 0


def _questions(options: argparse.Namespace) -> list[str]:
    if options.questions is None:
        if options.question != _STANDARD_INPUT:
            return [options.question]
        question = sys.stdin.read().strip()
        if not question:
            raise DataError("expected a question on the standard input, got nothing")
        return [question]
    try:
        if str(options.questions) == _STANDARD_INPUT:
            lines = sys.stdin.read().splitlines()
        else:
            lines = options.questions.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{options.questions}: not valid UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{options.questions}: {error.strerror or error}") from error
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise DataError(f"{options.questions}: expected a question in each line, got none")
    return questions


def _min_q(text: str) -> MinQ:
    return "auto" if text == "auto" else float(text)


_min_q.__name__ = "number, or auto"


def _filter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, value


def _filters(given: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """Turn pairs into filters; ``3`` fits a number and a text, as nobody can tell them apart on a command line."""
    filters: dict[str, Any] = {}
    for key, value in given:
        filters.setdefault(key, []).append(value)
        # Documents are named by texts alone.
        if key != DOCUMENT_KEY and (other := _value(value)) != value:
            filters[key].append(other)
    return filters or None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(selection: Selection, full: bool, is_filtered: bool) -> str:
    lines = [paint(visible(selection.query), BOLD)]
    width = min(_MOST_COLUMNS, shutil.get_terminal_size().columns)
    for hop, step in enumerate(selection.steps, 1):
        place = f"  {_place(step)}" if _place(step) else ""
        lines.append(f"{hop:3}. Q {step.q_value:+.3f}{paint(place, CYAN)}  {paint(f'[{printable(step.id)}]', DIM)}")
        text = visible(step.text) if full else one_line(step.text, _SHOWN_CHARACTERS)
        lines += textwrap.wrap(text, width, initial_indent=" " * 5, subsequent_indent=" " * 5)
    lines.append(paint(f"     {_why(selection, is_filtered)}", DIM))
    return "\n".join(lines) + "\n"


def _place(step: Step) -> str:
    """Name the document and the page of a chunk, as far as they are known."""
    source = step.metadata.get(SOURCE_KEY, step.metadata.get(DOCUMENT_KEY))
    page = step.metadata.get(PAGE_KEY)
    return ", ".join(
        [*([printable(str(source))] if source else []), *([f"page {printable(str(page))}"] if page else [])]
    )


def _why(selection: Selection, is_filtered: bool) -> str:
    if is_filtered and not selection.steps and selection.stop_reason == "exhausted":
        # Perhaps a misspelt key: "no other" would let one think of the question.
        return "0 chunks; no chunk passes the filter (qrag ask --json shows the metadata of chunks)"
    found = count_of(len(selection), "chunk")
    reasons = {
        "k": f"{found}, as many as asked for",
        "min_q": f"{found}; no other is worth it (min_q)",
        "exhausted": f"{found}; no other is left",
    }
    return reasons[selection.stop_reason]

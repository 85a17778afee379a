"""Strict reading of data files: what is wrong with a line is said with file, line number, expectation and finding."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrag_retriever.checks import check_text
from qrag_retriever.errors import DataError

KEYS = ("id", "question", "chunks", "document", "supporting", "answers")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was read: a file, and a line in it (from 1) if there is one to name."""

    path: Path
    line: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}, line {self.line}"

    def error(self, reason: str) -> DataError:
        """Return an error that names the place."""
        return DataError(f"{self}: {reason}")

    def expected(self, what: str, expected: str, got: Any) -> DataError:
        """Return an error that says what was expected of what, and what came."""
        return self.error(f"{what}: expected {expected}, got {show(got)}")


@dataclass(frozen=True, slots=True)
class Line:
    """A checked line of a JSON-lines file; ``document`` goes with ``spans``, ``chunks`` with ``supporting``.

    Attributes:
        id: The user's name for it; None if it has none.
        question: What is asked.
        chunks: The chunks, unless there is a document.
        document: The text that is still to be split.
        supporting: Ids of the supporting chunks, ascending.
        spans: Start and end of the supporting passages in the document, in characters.
        answers: Aliases of each part of the answer.
    """

    id: str | None
    question: str
    chunks: tuple[str, ...] | None = None
    document: str | None = None
    supporting: tuple[int, ...] | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    answers: tuple[tuple[str, ...], ...] | None = None


def show(value: Any) -> str:
    """Return a value with its type, as short as an error message wants it."""
    return "null" if value is None else f"{type(value).__name__} {_short.repr(value)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' where a known name is near, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse_object(raw: bytes, place: Place) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DataError: If the bytes are not UTF-8, not JSON, not one object, or name a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise place.error(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        return found

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise place.error(
            f"not valid UTF-8 at byte {error.start} of the line ({error.reason}); save it as UTF-8"
        ) from None
    except RecursionError:
        raise place.error("not a JSON object that can be read: nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, or a number of thousands of digits
        raise place.error(f"not JSON: {error}; expected one object in each line, got {raw[:60]!r}") from None
    if not isinstance(value, dict):
        raise place.expected("line", "a JSON object", value)
    return value


def checked_text(value: Any, what: str, place: Place) -> str:
    """Return a string that says something.

    Raises:
        DataError: If it is not a string, is blank, or has a lone surrogate.
    """
    try:
        check_text(value, what)
    except TypeError:
        raise place.expected(what, "a string", value) from None
    except ValueError as error:
        raise place.error(str(error)) from None
    text: str = value
    if not text.strip():
        raise place.expected(what, "a string that is not blank", value)
    return text


def text_of(record: dict[str, Any], key: str, place: Place) -> str:
    """Return the text under a key that must be there.

    Raises:
        DataError: If the key is missing or its value is not a string that says something.
    """
    if key not in record:
        raise place.error(f"the key {key!r} is missing; the line has {', '.join(map(repr, record)) or 'no keys'}")
    return checked_text(record[key], key, place)


def list_of(record: dict[str, Any], key: str, place: Place) -> list[Any]:
    """Return the list under a key that must be there.

    Raises:
        DataError: If the key is missing or its value is not a list with something in it.
    """
    if key not in record:
        raise place.error(f"the key {key!r} is missing; the line has {', '.join(map(repr, record)) or 'no keys'}")
    return _filled_list(record[key], key, place)


def is_integer(value: Any) -> bool:
    """Tell an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_line(raw: bytes, place: Place) -> Line:
    """Read and check one line of a user's JSON-lines file.

    Raises:
        DataError: If anything about the line is not as the format has it.
    """
    record = parse_object(raw, place)
    for key in record:
        if key not in KEYS:
            raise place.error(f"unknown key {key!r}; expected {', '.join(KEYS)}{nearest(key, KEYS)}")
    line_id = checked_text(record["id"], "id", place) if "id" in record else None
    question = text_of(record, "question", place)
    answers = _answers(record["answers"], place) if "answers" in record else None
    if "chunks" in record and "document" in record:
        raise place.error("both 'chunks' and 'document' are given; expected one of them")
    if "document" in record:
        document = checked_text(record["document"], "document", place)
        spans = _spans(record["supporting"], document, place) if "supporting" in record else None
        return Line(line_id, question, document=document, spans=spans, answers=answers)
    if "chunks" not in record:
        raise place.error("neither 'chunks' nor 'document' is given; expected one of them")
    if record["chunks"] == []:
        raise place.expected("chunks", "a list with something in it", [])
    listed = list_of(record, "chunks", place)
    chunks = tuple(checked_text(chunk, f"chunks[{i}]", place) for i, chunk in enumerate(listed))
    supporting = _indices(record["supporting"], len(chunks), place) if "supporting" in record else None
    return Line(line_id, question, chunks=chunks, supporting=supporting, answers=answers)


def _filled_list(value: Any, what: str, place: Place) -> list[Any]:
    if not isinstance(value, list):
        raise place.expected(what, "a list", value)
    if not value:
        raise place.expected(what, "a list with something in it (leave the key out if it is not known)", value)
    return value


def _indices(value: Any, num_chunks: int, place: Place) -> tuple[int, ...]:
    for i, chunk_id in enumerate(_filled_list(value, "supporting", place)):
        what = f"supporting[{i}]"
        if not is_integer(chunk_id):
            raise place.expected(what, "an integer, the index of a chunk", chunk_id)
        if not 0 <= chunk_id < num_chunks:
            raise place.expected(
                what, f"an index from 0 to {num_chunks - 1}, as there are {num_chunks} chunks", chunk_id
            )
        if chunk_id in value[:i]:
            raise place.expected(what, "every index once", chunk_id)
    return tuple(sorted(value))


def _spans(value: Any, document: str, place: Place) -> tuple[tuple[int, int], ...]:
    spans = []
    for i, span in enumerate(_filled_list(value, "supporting", place)):
        what = f"supporting[{i}]"
        if not isinstance(span, list) or len(span) != 2 or not all(map(is_integer, span)):
            raise place.expected(what, "two integers [start, end], a span of the document in characters", span)
        start, end = span
        if not 0 <= start < end <= len(document):
            raise place.expected(what, f"0 <= start < end <= {len(document)}, the document's length", span)
        if not document[start:end].strip():
            raise place.expected(what, "a span that is not blank", span)
        if (start, end) in spans:
            raise place.expected(what, "every span once", span)
        spans.append((start, end))
    return tuple(sorted(spans))


def _answers(value: Any, place: Place) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(
            checked_text(alias, f"answers[{i}][{j}]", place)
            for j, alias in enumerate(_filled_list(aliases, f"answers[{i}]", place))
        )
        for i, aliases in enumerate(_filled_list(value, "answers", place))
    )

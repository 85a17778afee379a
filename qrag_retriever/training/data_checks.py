"""The lines of a user's own questions, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qrag_retriever.json_lines import (
    Place,
    checked_text,
    filled_list,
    is_integer,
    list_of,
    nearest,
    parse_object,
    text_of,
)

KEYS = ("id", "question", "chunks", "document", "supporting", "answers")


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


def _indices(value: Any, num_chunks: int, place: Place) -> tuple[int, ...]:
    for i, chunk_id in enumerate(filled_list(value, "supporting", place)):
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
    for i, span in enumerate(filled_list(value, "supporting", place)):
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
            for j, alias in enumerate(filled_list(aliases, f"answers[{i}]", place))
        )
        for i, aliases in enumerate(filled_list(value, "answers", place))
    )

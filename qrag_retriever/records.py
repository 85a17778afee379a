"""Chunks as the index keeps them, and the checks on what comes in."""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qrag_retriever.errors import DuplicateIdError

DOCUMENT_KEY = "document_id"
SOURCE_KEY = "source"


@dataclass(frozen=True, slots=True)
class Record:
    """One chunk.

    Attributes:
        id: The user's stable name for it.
        text: What is returned, and shown to the state encoder.
        metadata: The user's; JSON values only once the index is saved.
        document_id: The document it is a part of; None if it stands alone.
        node: A LlamaIndex node as a dict, to be rebuilt on the way out; None for plain texts and LangChain documents.
        embedded_text: What the action encoder embeds if it is not ``text``.
    """

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    document_id: str | None = None
    node: dict[str, Any] | None = None
    embedded_text: str | None = None

    def filter_view(self) -> Mapping[str, Any]:
        """Return the metadata as filters see it: with the document id."""
        if self.document_id is None or DOCUMENT_KEY in self.metadata:
            return self.metadata
        return {**self.metadata, DOCUMENT_KEY: self.document_id}


def records_from_texts(
    texts: Sequence[str],
    metadatas: Sequence[Mapping[str, Any] | None] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Record]:
    """Check texts and what belongs to them, and make records; missing ids are random UUIDs.

    Raises:
        TypeError: If a text or an id is not a string.
        ValueError: If the lengths differ, or a text cannot be encoded in UTF-8.
        DuplicateIdError: If an id occurs twice.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"expected a sequence of texts, got one {type(texts).__name__}; put it in a list")
    texts = list(texts)
    for name, values in (("metadatas", metadatas), ("ids", ids)):
        if values is not None and len(values) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(values)} {name}; give one for each text, or None")
    records = []
    for i, text in enumerate(texts):
        metadata = copy.deepcopy(dict((metadatas[i] if metadatas is not None else None) or {}))
        record_id = ids[i] if ids is not None else None
        records.append(
            Record(str(uuid.uuid4()) if record_id is None else record_id, text, metadata, document_of(metadata))
        )
    check_records(records)
    return records


def document_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the document that metadata names: ``document_id``, else LangChain's ``source``."""
    value = metadata.get(DOCUMENT_KEY, metadata.get(SOURCE_KEY))
    return value if isinstance(value, str) else None


def check_records(records: Sequence[Record]) -> None:
    """Check ids and texts; see `records_from_texts` for what is raised."""
    seen: set[str] = set()
    for i, record in enumerate(records):
        check_text(record.text, f"text {i}")
        check_text(record.id, f"id {i}")
        if not record.id:
            raise ValueError(f"id {i} is empty; give a name, or None to have one made")
        if record.id in seen:
            raise DuplicateIdError(f"id {record.id!r} occurs twice in one call; ids must be unique")
        seen.add(record.id)


def check_text(text: Any, what: str) -> None:
    """Raise TypeError unless ``text`` is a string, ValueError if it holds half a surrogate pair."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a lone surrogate at character {error.start} and is not valid Unicode; "
            "clean it with text.encode('utf-8', 'replace').decode()"
        ) from error


def check_json(value: Any, path: str) -> None:
    """Raise TypeError, naming the key, unless a value comes back from JSON as it went in."""
    for inner, reason in _not_json(value, path):
        raise TypeError(f"{inner} {reason}; an index on disk keeps JSON values only (str, int, float, bool, None, ...)")


def _not_json(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, f"is {value}, which JSON does not have"
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield path, "has a lone surrogate"
    elif type(value) is dict:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _not_json(inner, f"{path}[{key!r}]")
            else:
                yield f"{path}[{key!r}]", f"has a key of type {type(key).__name__}"
    elif type(value) is list:
        for i, inner in enumerate(value):
            yield from _not_json(inner, f"{path}[{i}]")
    elif value is not None and type(value) not in (bool, int, float):
        yield path, f"is a {type(value).__name__}"

"""Chunks as the index keeps them, and the checks on what comes in."""

from __future__ import annotations

import copy
import numbers
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qrag_retriever.checks import check_list, check_text
from qrag_retriever.errors import DuplicateIdError

DOCUMENT_KEY = "document_id"
SOURCE_KEY = "source"
_NAMES = (str, numbers.Integral, os.PathLike, uuid.UUID)


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

    def __post_init__(self) -> None:
        """Turn subclasses of str (numpy's, say) into str itself: they may write themselves otherwise."""
        for name in ("id", "text", "document_id"):
            value = getattr(self, name)
            if isinstance(value, str) and type(value) is not str:
                object.__setattr__(self, name, str.__str__(value))

    def filter_view(self) -> Mapping[str, Any]:
        """Return the metadata as filters see it: ``document_id`` names the chunk's document."""
        if self.document_id is None or self.metadata.get(DOCUMENT_KEY) == self.document_id:
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
    check_list(texts, "texts")
    for name, values in (("metadatas", metadatas), ("ids", ids)):
        if values is None:
            continue
        check_list(values, name)
        if len(values) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(values)} {name}; give one for each text, or None")
    records = []
    for i, text in enumerate(texts):
        given = {} if metadatas is None or metadatas[i] is None else metadatas[i]
        if not isinstance(given, Mapping):
            raise TypeError(f"metadata {i} must be a dict or None, got {type(given).__name__}")
        try:
            metadata = copy.deepcopy(dict(given))
        except RecursionError:
            raise ValueError(f"metadata {i} is nested too deeply to be copied; make it flatter") from None
        record_id = ids[i] if ids is not None else None
        records.append(
            Record(str(uuid.uuid4()) if record_id is None else record_id, text, metadata, document_of(metadata))
        )
    check_records(records)
    return records


def document_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the document that metadata names: ``document_id``, else LangChain's ``source``.

    Whole numbers (also numpy's), paths and UUIDs as text; whatever else there is names none.
    """
    value = metadata.get(DOCUMENT_KEY, metadata.get(SOURCE_KEY))
    return str(value) if isinstance(value, _NAMES) and not isinstance(value, bool) else None


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

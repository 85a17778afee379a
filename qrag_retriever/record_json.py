"""Records as JSON text, for wherever an index is kept outside memory."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qrag_retriever.checks import check_json, json_culprit
from qrag_retriever.records import Record


def check_metadata(records: Sequence[Record]) -> None:
    """Raise TypeError, naming the key, unless all metadata comes back from JSON as it went in."""
    for record in records:
        check_json(record.metadata, f"metadata of {record.id!r}")


def metadata_json(record: Record) -> str:
    """Return the metadata as JSON."""
    return json.dumps(record.metadata, ensure_ascii=False)


def node_json(record: Record) -> str | None:
    """Return what a framework's node adds to a record as JSON; None for plain chunks.

    Raises:
        TypeError: If the node has no JSON; the message names the key.
    """
    extra = {"node": record.node, "embedded_text": record.embedded_text}
    if all(value is None for value in extra.values()):
        return None
    culprit = json_culprit(record.node, f"node {record.id!r}")
    if culprit is not None:
        raise TypeError(f"{culprit} has no JSON; an index on disk keeps JSON values only")
    return json.dumps(extra, ensure_ascii=False)


def parsed_record(id_: str, document_id: str | None, text: str, metadata: str, node: str | None) -> Record:
    """Make a record from what `metadata_json` and `node_json` gave.

    Raises:
        ValueError: If they gave something else.
    """
    values, extra = json.loads(metadata), json.loads(node) if node else {}
    if not (isinstance(text, str) and isinstance(values, dict) and isinstance(extra, dict)):
        raise ValueError("it is not a text with metadata")
    inner, embedded = extra.get("node"), extra.get("embedded_text")
    if not (isinstance(inner, dict | None) and isinstance(embedded, str | None)):
        raise ValueError("its node is none")
    return Record(id_, text, values, document_id, inner, embedded)

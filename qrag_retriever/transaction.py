"""A change to an index folder that happens whole or not at all: the tables, and what is written into them."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from qrag_retriever._files import sync
from qrag_retriever.config import Mode
from qrag_retriever.layout import Key
from qrag_retriever.record_json import check_metadata, metadata_json, node_json
from qrag_retriever.records import Record

FORMAT_VERSION = 1
SCHEMA = """
CREATE TABLE settings (value TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE chunks (
    row INTEGER PRIMARY KEY, major INTEGER NOT NULL, minor INTEGER NOT NULL, id TEXT NOT NULL, document_id TEXT,
    valid INTEGER NOT NULL, checksum INTEGER NOT NULL
);
CREATE UNIQUE INDEX valid_ids ON chunks (id) WHERE valid = 1;
CREATE TABLE deleted (id TEXT PRIMARY KEY);
CREATE TABLE records (
    row INTEGER PRIMARY KEY, text TEXT NOT NULL, metadata TEXT NOT NULL, node TEXT, checksum INTEGER NOT NULL
);
"""
# As SQLite keeps them.
SCHEMA_STATEMENTS = {statement.strip() for statement in SCHEMA.split(";") if statement.strip()}


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class FolderSettings:
    """What an index folder says of itself.

    Attributes:
        dim: Components of a vector.
        mode: "document" or "corpus".
        model: Configuration, fingerprint and source of the model that built it; None if there was none.
        retriever: The retriever's settings, if one was saved.
        vectors_file: Name of the vectors' file.
        num_rows: Vectors in that file that a transaction has named.
        num_chunks: Valid chunks.
        version: Counts the transactions, from the time when the folder was made (microseconds).
        generation: Counts the complete rewrites, from the same time; rows keep their meaning within one.
        format_version: Of the folder.
    """

    dim: PositiveInt
    mode: Mode
    model: dict[str, Any] | None = None
    retriever: dict[str, Any] = field(default_factory=dict)
    # Never a path: what is written there must stay within the folder.
    vectors_file: Annotated[str, Field(pattern=r"^vectors(-[0-9]+)?\.f16$")] = "vectors.f16"
    num_rows: NonNegativeInt = 0
    num_chunks: NonNegativeInt = 0
    version: NonNegativeInt = 0
    generation: NonNegativeInt = 0
    format_version: int = FORMAT_VERSION

    @property
    def revision(self) -> tuple[int, int]:
        """What changes with every change of the index."""
        return self.version, self.generation


class Transaction:
    """A change to an index folder that happens whole or not at all."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, settings: FolderSettings) -> None:
        """Start from the settings as they are within the transaction."""
        self.settings = settings
        self.abandoned = False
        self._folder = folder
        self._connection = connection

    def add(self, records: Sequence[Record], keys: Sequence[Key], vectors: np.ndarray) -> np.ndarray:
        """Append vectors, synced, and insert the records that name them; returns their rows, shape (M,).

        Raises:
            TypeError: If metadata is not JSON; the message names the key.
            ValueError: If a vector does not fit into float16.
        """
        check_metadata(records)
        first = self.settings.num_rows
        stored = self._write_vectors(vectors)
        chunks, texts = [], []
        for row, (record, key, vector) in enumerate(zip(records, keys, stored, strict=True), start=first):
            metadata, node = metadata_json(record), node_json(record)
            checksum = chunk_checksum(row, key, record.id, record.document_id, vector)
            chunks.append((row, *key, record.id, record.document_id, 1, checksum))
            texts.append((row, record.text, metadata, node, record_checksum(row, record.text, metadata, node)))
        self._connection.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)", chunks)
        self._connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", texts)
        count = len(records)
        self.settings = replace(self.settings, num_rows=first + count, num_chunks=self.settings.num_chunks + count)
        return np.arange(first, first + count, dtype=np.int64)

    def invalidate(self, rows: np.ndarray) -> None:
        """Mark records as no longer part of the index; their texts stay until the index is rewritten by a save."""
        self._connection.executemany("UPDATE chunks SET valid = 0 WHERE row = ?", [(int(row),) for row in rows])
        self.settings = replace(self.settings, num_chunks=self.settings.num_chunks - len(rows))

    def fill(self, records: Sequence[Record], vectors: np.ndarray, deleted_ids: Collection[str]) -> None:
        """Replace everything; ``vectors`` (N, dim) in the order of the records."""
        for table in ("chunks", "records", "deleted"):
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608  # our own names
        self._connection.executemany("INSERT INTO deleted VALUES (?)", [(id_,) for id_ in deleted_ids])
        self.add(records, [(major, 0) for major in range(len(records))], vectors)

    def finish(self) -> None:
        """Write the settings; the last step before the commit."""
        self.settings = replace(self.settings, version=self.settings.version + 1)
        value = json.dumps(asdict(self.settings), ensure_ascii=False)
        self._connection.execute("DELETE FROM settings")
        self._connection.execute("INSERT INTO settings VALUES (?, ?)", (value, zlib.crc32(value.encode())))

    def _write_vectors(self, vectors: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(vectors, dtype=np.float16)
        if not np.isfinite(stored).all():
            raise ValueError("an embedding component exceeds 65504 and does not fit into float16; scale the embeddings")
        path = self._folder / self.settings.vectors_file
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            # What lies behind the last named vector is left from a write that was cut off.
            file.seek(self.settings.num_rows * self.settings.dim * 2)
            file.write(stored.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        if self.settings.num_rows == 0:
            sync(path.parent)
        return stored


def prepare_for_writing(connection: sqlite3.Connection) -> None:
    """Choose how SQLite keeps a change whole."""
    # A rollback journal, not a write-ahead log: that needs a writable folder even to read. EXTRA syncs the folder entry
    # too; without spilling, readers wait only for the commit itself; dropped texts are overwritten.
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("PRAGMA cache_spill = OFF")
    connection.execute("PRAGMA secure_delete = ON")


def chunk_checksum(row: int, key: Key, id_: str, document: str | None, vector: np.ndarray) -> int:
    """Checksum a chunk's place, ids and vector."""
    return zlib.crc32(vector.tobytes(), zlib.crc32(f"{row} {key[0]} {key[1]} {id_!r} {document!r}".encode()))


def record_checksum(row: int, text: str, metadata: str, node: str | None) -> int:
    """Checksum a chunk's text and what belongs to it."""
    return zlib.crc32(f"{row} {metadata!r} {node!r} {text}".encode())

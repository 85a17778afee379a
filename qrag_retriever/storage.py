"""An index on disk: a folder with an SQLite database and an append-only file of float16 vectors.

The vectors of an addition are written and synced before the transaction that names them, so a crash leaves either the
old index or the new one. Records are never overwritten, only marked invalid: a reader in another process keeps its
version. Every record carries a checksum over its text, its place and its vector.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from qrag_retriever._files import whole_folder
from qrag_retriever.errors import IndexFolderError
from qrag_retriever.layout import Layout
from qrag_retriever.mapped_vectors import MappedVectors
from qrag_retriever.record_json import check_metadata, parsed_record
from qrag_retriever.records import Record
from qrag_retriever.stored_layout import check_layout, read_layout
from qrag_retriever.transaction import (
    FORMAT_VERSION,
    SCHEMA,
    SCHEMA_STATEMENTS,
    FolderSettings,
    Transaction,
    prepare_for_writing,
    record_checksum,
)

DATABASE_NAME = "index.sqlite"
_BUSY_SECONDS = 60.0


class IndexFolder:
    """The files of one index. Safe for many threads; several processes may read while one writes."""

    def __init__(self, path: Path) -> None:
        """Name a folder; nothing is opened yet."""
        self.path = path.absolute()
        self._lock = threading.RLock()
        self._reader: tuple[tuple[int, tuple[int, int]], sqlite3.Connection] | None = None

    def read(self) -> tuple[FolderSettings, Layout, MappedVectors]:
        """Read settings and layout in one transaction, map the vectors, and verify every chunk's checksum.

        Returns:
            Settings, layout, and the mapped vectors.

        Raises:
            IndexFolderError: If the folder is not an index, or is damaged.
        """
        if not (self.path / DATABASE_NAME).is_file():
            if not self.path.exists():
                raise IndexFolderError(f"{self.path} is not an index folder: there is nothing of that name")
            raise IndexFolderError(f"{self.path} is not an index folder: it has no {DATABASE_NAME}")
        with self._reading() as connection:
            settings = self._settings(connection)
            try:
                layout, checksums = read_layout(connection)
            except ValueError as error:
                raise self._damaged(str(error)) from error
            # Within the transaction, before others can rewrite the folder.
            vectors = self.map_vectors(settings)
        try:
            check_layout(layout, checksums, settings.num_chunks, vectors.whole())
        except ValueError as error:
            raise self._damaged(str(error)) from error
        return settings, layout, vectors

    def records(self, rows: Sequence[int], generation: int) -> list[Record]:
        """Read records by row, in the given order, valid or not.

        Raises:
            IndexFolderError: If a record is missing or damaged, or the folder was rewritten since it was opened.
        """
        found: dict[int, Record] = {}
        with self._reading() as connection:
            if self._settings(connection).generation != generation:
                raise IndexFolderError(
                    f"{self.path} was rewritten since it was opened; call refresh() or load it again"
                )
            for first in range(0, len(rows), 500):
                part = [int(row) for row in rows[first : first + 500]]
                marks = ",".join("?" * len(part))
                query = (
                    "SELECT row, id, document_id, text, metadata, node, records.checksum "  # noqa: S608  # marks only
                    f"FROM records JOIN chunks USING (row) WHERE row IN ({marks})"
                )
                for row, id_, document, text, metadata, node, checksum in connection.execute(query, part):
                    if record_checksum(row, text, metadata, node) != checksum:
                        raise self._damaged(f"the checksum of the text of chunk {id_!r} does not match")
                    found[row] = self._record(id_, document, text, metadata, node)
        missing = [int(row) for row in rows if int(row) not in found]
        if missing:
            raise self._damaged(f"the text of row {missing[0]} is missing")
        return [found[int(row)] for row in rows]

    def _record(self, id_: str, document: str | None, text: str, metadata: str, node: str | None) -> Record:
        try:
            return parsed_record(id_, document, text, metadata, node)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"chunk {id_!r}: {error}") from error

    def deleted_ids(self) -> set[str]:
        """Return the ids that the index has held at some time and no longer holds."""
        with self._reading() as connection:
            query = (
                "SELECT id FROM chunks WHERE valid = 0 UNION SELECT id FROM deleted "
                "EXCEPT SELECT id FROM chunks WHERE valid = 1"
            )
            return {row[0] for row in connection.execute(query)}

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Open the one write transaction; commits at the end of the block, rolls back if it raises.

        Raises:
            PermissionError: If the folder is read-only.
            OSError: If the disk is full.
        """
        with self._lock, self._errors():
            connection = self._connect("rw")
            try:
                self._settings(connection)  # a foreign database is refused before anything of it changes
                prepare_for_writing(connection)
                connection.execute("BEGIN IMMEDIATE")
                transaction = Transaction(self.path, connection, self._settings(connection))
                yield transaction
                if not transaction.abandoned:
                    transaction.finish()
                    connection.execute("COMMIT")
            finally:
                # Closing rolls back what was not committed.
                connection.close()

    def write_new(
        self,
        settings: FolderSettings,
        records: Sequence[Record],
        vectors: np.ndarray,
        deleted_ids: Collection[str] = (),
        expected: tuple[int, int] | None = None,
    ) -> bool:
        """Write a complete index: a new folder, or the new contents of an existing index, whole or not at all.

        Args:
            settings: Of the new index.
            records: N chunks in order.
            vectors: Shape (N, dim).
            deleted_ids: Ids to remember as deleted.
            expected: Version and generation that an existing index must have; None replaces any.

        Returns:
            Whether it was written: False if the existing index is not the expected one.

        Raises:
            FileExistsError: If the path holds something that is not an index.
            TypeError: If metadata is not JSON; the message names the key.
        """
        check_metadata(records)
        if (self.path / DATABASE_NAME).is_file():
            return self._rewrite(settings, records, vectors, deleted_ids, expected)
        with self._errors(), whole_folder(self.path, may_replace=lambda _: False) as draft:
            folder = IndexFolder(draft)
            connection = folder._connect("rwc")
            try:
                prepare_for_writing(connection)
                connection.executescript(SCHEMA)
                connection.execute("BEGIN IMMEDIATE")
                # Counts that go on from the time: whoever had another index open here must not take this for it.
                now = time.time_ns() // 1000
                fresh = replace(settings, version=now, generation=now, num_rows=0, num_chunks=0)
                transaction = Transaction(draft, connection, fresh)
                transaction.fill(records, vectors, deleted_ids)
                transaction.finish()
                connection.execute("COMMIT")
            finally:
                connection.close()
        return True

    def _rewrite(
        self,
        settings: FolderSettings,
        records: Sequence[Record],
        vectors: np.ndarray,
        deleted_ids: Collection[str],
        expected: tuple[int, int] | None,
    ) -> bool:
        with self.writing() as transaction:
            old = transaction.settings
            if expected is not None and expected != (old.version, old.generation):
                transaction.abandoned = True
                return False
            generation = old.generation + 1
            transaction.settings = replace(
                settings,
                vectors_file=f"vectors-{generation}.f16",
                num_rows=0,
                num_chunks=0,
                version=old.version,
                generation=generation,
            )
            transaction.fill(records, vectors, deleted_ids)
        # Readers that still map an old file keep it until they close it; Windows lets it go only then.
        for path in self.path.glob("vectors*.f16"):
            if path.name != f"vectors-{generation}.f16":
                with suppress(PermissionError):
                    path.unlink(missing_ok=True)
        return True

    def map_vectors(self, settings: FolderSettings) -> MappedVectors:
        """Map the vectors that settings name.

        Raises:
            IndexFolderError: If the file is missing or too short.
        """
        return MappedVectors(self.path / settings.vectors_file, settings.num_rows, settings.dim)

    def _settings(self, connection: sqlite3.Connection) -> FolderSettings:
        self._check_schema(connection)
        row = connection.execute("SELECT value, checksum FROM settings").fetchone()
        if row is None or zlib.crc32(str(row[0]).encode()) != row[1]:
            raise self._damaged("the checksum of its settings does not match")
        values = json.loads(row[0])
        if not isinstance(values, dict):
            raise self._damaged("its settings are not an object")
        if values.get("format_version") != FORMAT_VERSION:
            raise IndexFolderError(
                f"{self.path} has index format {values.get('format_version')}, this release reads {FORMAT_VERSION}; "
                "upgrade, or build the index again"
            )
        return FolderSettings(**values)

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """Refuse a database with other tables, views or triggers than ours, which could do anything when it is read."""
        found = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        if {row[0] for row in found} != SCHEMA_STATEMENTS:
            raise self._damaged("its tables are not those of an index")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            # SQLite connections must not cross a fork, and know nothing of a folder that took the place of theirs.
            whose = os.getpid(), _file_id(self.path / DATABASE_NAME)
            if self._reader is None or self._reader[0] != whose:
                self._reader = whose, self._connect("ro")
            connection = self._reader[1]
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    def _connect(self, mode: str) -> sqlite3.Connection:
        # A reader opens for writing where it can: only then may SQLite undo what a crash has left half-done. On
        # read-only media SQLite opens for reading by itself.
        uri = f"{(self.path / DATABASE_NAME).absolute().as_uri()}?mode={'rw' if mode == 'ro' else mode}"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS
        )
        if mode == "ro":
            connection.execute("PRAGMA query_only = ON")
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into those that a caller expects."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "readonly" in text or "read-only" in text or "unable to open" in text:
                raise PermissionError(f"{self.path} cannot be written: {text}; save to another folder") from error
            if "full" in text or "disk I/O" in text:
                raise OSError(f"{self.path} could not be written, nothing was changed: {text}") from error
            if "locked" in text:
                raise TimeoutError(f"{self.path} was in use for {_BUSY_SECONDS:.0f} s; try again") from error
            raise self._damaged(text) from error
        except (sqlite3.Error, ValidationError, json.JSONDecodeError, RecursionError, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from error
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise PermissionError(f"{self.path} cannot be written: {error}; save to another folder") from error
            raise

    def _damaged(self, reason: str) -> IndexFolderError:
        return IndexFolderError(f"{self.path} is damaged: {reason}; restore it or build the index again")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path alone."""
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open again when needed."""
        self.__init__(state["path"])  # type: ignore[misc]


def _file_id(path: Path) -> tuple[int, int]:
    """Tell a file from another one of the same name; zeros where there is none, which is for others to tell."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino

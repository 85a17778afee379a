"""Chunk embeddings kept in one file, so that what has been embedded once is read from then on."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever.errors import CacheError

# Tells our files from other SQLite databases: "QRAG".
_APPLICATION_ID = 0x51524147
_FORMAT_VERSION = 1
_BUSY_SECONDS = 60.0
_KEYS_AT_ONCE = 500
# Behind the components of an embedding whose text was cut.
_CUT = b"\x01"


class EmbeddingCache:
    """Embeddings by text and model, in an SQLite file.

    A block of embeddings is on disk, whole or not at all, when `write` returns. A damaged entry counts as missing, so
    that its text is embedded again. Several threads and processes may use one file. An entry takes four bytes per
    component; the file never shrinks by itself, and may be deleted at any time.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file, or make it.

        Raises:
            CacheError: If there is something else in its place, or it is damaged.
            OSError: If it cannot be read or made.
        """
        self.path = Path(path).expanduser().absolute()
        self._lock = threading.RLock()
        self._open: tuple[int, sqlite3.Connection] | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection():
            pass

    def read(self, keys: Sequence[bytes], dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Look embeddings up.

        Args:
            keys: As `key` makes them.
            dim: Components of an embedding.

        Returns:
            Which of the keys are known, ascending (M,), int64, their embeddings (M, dim), float32, and whether their
            texts were cut, (M,), bool.
        """
        found: dict[bytes, bytes] = {}
        with self._connection() as connection:
            for first in range(0, len(keys), _KEYS_AT_ONCE):
                part = list(keys[first : first + _KEYS_AT_ONCE])
                marks = ",".join("?" * len(part))
                query = f"SELECT key, vector, checksum FROM embeddings WHERE key IN ({marks})"  # noqa: S608  # marks only
                for key, vector, checksum in connection.execute(query, part):
                    if _checksum(key, vector) == checksum and len(vector) in (4 * dim, 4 * dim + len(_CUT)):
                        found[key] = vector
        known = np.array([place for place, key in enumerate(keys) if key in found], np.int64)
        vectors = np.empty((len(known), dim), np.float32)
        for row, place in enumerate(known):
            vectors[row] = np.frombuffer(found[keys[place]], "<f4", dim)
        return known, vectors, np.array([len(found[keys[place]]) > 4 * dim for place in known], np.bool_)

    def write(self, keys: Sequence[bytes], embeddings: np.ndarray, is_cut: np.ndarray) -> None:
        """Keep embeddings (M, dim) under their keys, and whether their texts were cut (M,)."""
        vectors = np.ascontiguousarray(embeddings, "<f4")
        values = [bytes(vector) + _CUT * bool(cut) for vector, cut in zip(vectors, is_cut, strict=True)]
        rows = [(key, data, _checksum(key, data)) for key, data in zip(keys, values, strict=True)]
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        """Count the embeddings."""
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM embeddings").fetchone()[0])

    def __repr__(self) -> str:
        """Name the file."""
        return f"EmbeddingCache({str(self.path)!r})"

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                # SQLite connections must not cross a fork.
                if self._open is None or self._open[0] != os.getpid():
                    self._open = (os.getpid(), self._connected())
                yield self._open[1]
            except sqlite3.OperationalError as error:
                raise OSError(f"the embedding cache {self.path} cannot be used: {error}") from error
            except sqlite3.DatabaseError as error:
                raise CacheError(f"{self.path} is no embedding cache, or damaged: {error}; delete it") from error

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
        try:
            # In one transaction: another process may be making the file.
            connection.execute("BEGIN")
            is_empty, application, version = (
                connection.execute(query).fetchone()[0]
                for query in ("SELECT count(*) = 0 FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
            )
            connection.execute("COMMIT")
            if is_empty and not application:
                connection.executescript(
                    f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID}; "
                    f"PRAGMA user_version = {_FORMAT_VERSION}; CREATE TABLE IF NOT EXISTS embeddings "
                    "(key BLOB PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID; COMMIT;"
                )
            elif (application, version) != (_APPLICATION_ID, _FORMAT_VERSION):
                raise CacheError(f"{self.path} is no embedding cache that this release reads; give another path")
        except BaseException:
            connection.close()
            raise
        return connection

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path alone."""
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open again."""
        self.__init__(state["path"])  # type: ignore[misc]


def key_of(embedder: str, text: str) -> bytes:
    """Return the key of a text's embedding by whatever ``embedder`` identifies."""
    return hashlib.sha256(f"{embedder}\n{text}".encode()).digest()


def _checksum(key: bytes, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(key))

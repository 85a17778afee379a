"""PostgreSQL with pgvector.

A hop is one statement: every range of places is a scan of the primary key, with exact inner products; no vector index
is made, and one that somebody makes is not used. A change is one transaction, in which the row of the settings is
locked, so that writers in several processes take turns. What comes from a user is bound as a parameter; names are
quoted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qrag_retriever._extras import require_extra
from qrag_retriever.engines.base import Change, EngineSettings, layout_of, padded
from qrag_retriever.errors import EngineError
from qrag_retriever.layout import Layout
from qrag_retriever.record_json import metadata_json, node_json, parsed_record
from qrag_retriever.records import Record

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

Result = TypeVar("Result")

_NAME_BYTES = 63
# Vectors of up to this many components fit into a page with the rest of their row, where a scan reads them fastest.
_PLAIN_DIM = 1_700

_CREATE = """
CREATE TABLE {table} (
    place bigint PRIMARY KEY, id text NOT NULL, document_id text, text text NOT NULL, metadata json NOT NULL, node json,
    embedding vector({dim}) NOT NULL
);
CREATE TABLE {deleted_table} (id text NOT NULL);
CREATE TABLE {settings_table} (value json NOT NULL);
"""
# By the negated distance, so that no index on the distance can stand in for the exact order. Queries go in binary: as
# text they take longer than their search.
_SEARCH = """
SELECT s.number, r.place, r.score
FROM unnest(%(queries)b::vector[], %(lows)s::bigint[], %(highs)s::bigint[])
    WITH ORDINALITY AS s (query, low, high, number)
CROSS JOIN LATERAL (
    SELECT place, -(embedding <#> s.query) AS score FROM {table}
    WHERE place >= s.low AND place < s.high
    ORDER BY score DESC, place LIMIT %(k)s
) AS r
ORDER BY s.number, r.score DESC, r.place
"""


class PgVectorEngine:
    """Tables of one index in PostgreSQL. One connection, which threads use in turn."""

    def __init__(
        self, connection: psycopg.Connection[Any], table: str, schema: str | None = None, address: str | None = None
    ) -> None:
        """Take a connection in autocommit mode; see `ChunkIndex.on_pgvector`.

        Args:
            connection: To the server.
            table: Name of the table, and the beginning of the others' names.
            schema: Where they are.
            address: To connect anew with, where the connection is lost; None: then that is an error.
        """
        if not connection.autocommit:
            raise ValueError(
                "expected a psycopg connection in autocommit mode, or additions would not be committed; "
                "make it with psycopg.connect(..., autocommit=True)"
            )
        self.location = f"in the PostgreSQL table {table!r}"
        self._live, self._address, self._process = connection, address, os.getpid()
        self._is_changing = False
        self._lock = threading.RLock()
        names = {"table": table, "settings_table": f"{table}_settings", "deleted_table": f"{table}_deleted"}
        self._names = {key: _identifier(schema, name) for key, name in names.items()}
        # Where values are bound, psycopg looks for placeholders in names too.
        self._bound_names = {key: _identifier(schema, name, "%%") for key, name in names.items()}
        with self._lock:
            _prepare(connection)

    @classmethod
    def connect(cls, connection: Any, table: str, schema: str | None = None) -> PgVectorEngine:
        """Open a connection if a connection string is given.

        Raises:
            ImportError: If the ``pgvector`` extra is not installed.
        """
        psycopg = require_extra("psycopg", "pgvector")
        require_extra("pgvector", "pgvector")
        if isinstance(connection, str):
            return cls(psycopg.connect(connection, autocommit=True), table, schema, connection)
        if not isinstance(connection, psycopg.Connection):
            raise TypeError(f"expected a connection string or a psycopg connection, got {type(connection).__name__}")
        return cls(connection, table, schema)

    def create(self, settings: EngineSettings) -> bool:
        """Make the tables; see `Engine.create`."""
        from psycopg.errors import DuplicateTable, UniqueViolation
        from psycopg.sql import Literal
        from psycopg.types.json import Json

        try:
            with self._changing():
                self._connection.execute(self._sql(_CREATE, dim=Literal(settings.dim)))
                if settings.dim <= _PLAIN_DIM:
                    self._connection.execute(self._sql("ALTER TABLE {table} ALTER COLUMN embedding SET STORAGE PLAIN"))
                self._execute("INSERT INTO {settings_table} VALUES (%s)", [Json(asdict(settings))])
        except (DuplicateTable, UniqueViolation):
            # Made by another process since it was looked for; of a name that both make, the server tells the second one
            # so when the first is done.
            if not self._exists("settings_table") or not self._exists("table"):
                raise
            return False
        return True

    def read(self) -> tuple[EngineSettings, Layout] | None:
        """Read settings and layout; see `Engine.read`."""
        with self._lock:
            if not self._exists("table"):
                return None
            if not self._exists("settings_table"):
                raise EngineError(f"there is something else {self.location}: it has no settings; name another table")
            settings: EngineSettings | None = None
            # Two statements see one version if no other was committed in between.
            while settings != (newest := self._settings()):
                settings = newest
                rows = self._execute("SELECT place, id, document_id FROM {table}").fetchall()
        places, ids, documents = zip(*rows, strict=True) if rows else ((), (), ())
        return newest, layout_of(places, ids, documents)

    @contextmanager
    def writing(self) -> Iterator[Change]:
        """Open the one write transaction; see `Engine.writing`."""
        with self._changing():
            change = Change(self._settings("FOR UPDATE"))
            yield change
            change.finish()
            self._apply(change)

    def search(self, queries: np.ndarray, ranges: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search all ranges in one statement; see `StepSearch.search`. Ties by the lower place."""
        from pgvector import Vector

        values = {
            "queries": [Vector(query) for query in queries],
            "lows": ranges[:, 0].tolist(),
            "highs": ranges[:, 1].tolist(),
            "k": k,
        }
        found: list[list[tuple[int, float]]] = [[] for _ in queries]
        with self._lock:
            for number, place, score in self._execute(_SEARCH, values):
                found[number - 1].append((place, score))
        return padded(found, k)

    def oldest(self) -> int:
        """Return the oldest version that is still whole; see `Engine.oldest`."""
        with self._lock:
            row = self._execute("SELECT (value->>'oldest')::bigint FROM {settings_table}").fetchone()
        return int(row[0]) if row else self._settings().oldest

    def deleted_ids(self) -> set[str]:
        """Return the ids that were ever deleted."""
        with self._lock:
            return {row[0] for row in self._execute("SELECT id FROM {deleted_table}")}

    def records(self, places: np.ndarray) -> list[Record | None]:
        """Read records; see `Engine.records`."""
        found = self._by_place("id, document_id, text, metadata::text, node::text", places)
        return [parsed_record(*found[place]) if place in found else None for place in places.tolist()]

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """Read vectors; see `Engine.vectors`."""
        found = self._by_place("embedding", places)
        dim = self._settings().dim
        missing = np.full(dim, np.nan, np.float32)
        rows = [found[place][0].to_numpy() if place in found else missing for place in places.tolist()]
        return np.array(rows, np.float32).reshape(-1, dim)

    def _by_place(self, columns: str, places: np.ndarray) -> dict[int, Sequence[Any]]:
        statement = f"SELECT place, {columns} FROM {{table}} WHERE place = ANY(%s)"  # noqa: S608  # our own columns

        def read() -> dict[int, Sequence[Any]]:
            with self._connection.cursor(binary=True) as cursor:
                return {row[0]: row[1:] for row in cursor.execute(self._sql(statement, bound=True), [places.tolist()])}

        with self._lock:
            return self._retried(read)

    def _apply(self, change: Change) -> None:
        from psycopg.types.json import Json

        for record in change.records:
            _check_storable(record)
        removed = self._execute("DELETE FROM {table} WHERE place = ANY(%s) RETURNING id", [change.removed])
        gone = change.deleted([row[0] for row in removed])
        self._execute("DELETE FROM {deleted_table} WHERE id = ANY(%s)", [gone])
        self._execute("INSERT INTO {deleted_table} SELECT unnest(%s::text[])", [gone])
        self._copy(change)
        self._execute("UPDATE {settings_table} SET value = %s", [Json(asdict(change.settings))])

    def _copy(self, change: Change) -> None:
        from psycopg.types.json import Json

        statement = self._sql(
            "COPY {table} (place, id, document_id, text, metadata, node, embedding) FROM STDIN (FORMAT BINARY)"
        )
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(["int8", "text", "text", "text", "json", "json", "vector"])
            for place, record, vector in zip(change.places.tolist(), change.records, change.vectors, strict=True):
                # Text that is JSON already.
                metadata, node = (text and Json(text, dumps=str) for text in (metadata_json(record), node_json(record)))
                copy.write_row((place, record.id, record.document_id, record.text, metadata, node, vector))

    def _settings(self, lock: str = "") -> EngineSettings:
        with self._lock:
            row = self._execute(f"SELECT value FROM {{settings_table}} {lock}").fetchone()  # noqa: S608  # our own words
        if row is None:
            raise EngineError(f"the index {self.location} has lost its settings; restore it or build it again")
        return EngineSettings.parsed(row[0], self.location)

    def _exists(self, name: str) -> bool:
        def read() -> Any:
            quoted = self._names[name].as_string(self._connection)
            return self._connection.execute("SELECT to_regclass(%s)", [quoted]).fetchone()

        row = self._retried(read)
        return row is not None and row[0] is not None

    def _execute(self, statement: str, values: Any = None) -> psycopg.Cursor[Any]:
        composed = self._sql(statement, bound=values is not None)
        return self._retried(lambda: self._connection.execute(composed, values))

    @property
    def _connection(self) -> psycopg.Connection[Any]:
        """The connection: made anew where it was lost, or is a parent process's, but never within a change."""
        lost = self._live.closed or (self._process != os.getpid() and self._address is not None)
        if lost and not self._is_changing:
            if self._address is None:
                raise EngineError(f"the connection to the index {self.location} is closed; open the index with another")
            import psycopg

            self._live, self._process = psycopg.connect(self._address, autocommit=True), os.getpid()
            _prepare(self._live)
        return self._live

    @contextmanager
    def _changing(self) -> Iterator[None]:
        from psycopg import OperationalError

        with self._lock:
            try:
                with self._connection.transaction():
                    self._is_changing = True
                    yield
            except OperationalError as error:
                if not self._live.closed:
                    raise
                raise EngineError(
                    f"the connection to the index {self.location} was lost in the middle of a change, which was made "
                    f"whole or not at all; refresh() and look: {error}"
                ) from error
            finally:
                self._is_changing = False

    def _retried(self, read: Callable[[], Result]) -> Result:
        """Read once more where the connection was lost and can be made anew."""
        from psycopg import OperationalError

        try:
            return read()
        except OperationalError:
            if self._is_changing or self._address is None or not self._live.closed:
                raise
            return read()

    def _sql(self, statement: str, bound: bool = False, **parts: sql.Composable) -> sql.Composed:
        from psycopg.sql import SQL

        return SQL(statement).format(**self._bound_names if bound else self._names, **parts)


def _prepare(connection: psycopg.Connection[Any]) -> None:
    """See to it that the server has pgvector and the connection knows its type."""
    from pgvector.psycopg import register_vector
    from psycopg.errors import Error

    if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone() is None:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except Error as error:
            raise EngineError(
                f"the database has no pgvector, and it could not be added: {error}; install pgvector on the server and "
                "let its owner run CREATE EXTENSION vector"
            ) from error
    register_vector(connection)
    # Compiling a statement that runs for milliseconds takes longer than running it.
    connection.execute("SET jit = off")


def _identifier(schema: str | None, name: str, percent: str = "%") -> sql.Identifier:
    from psycopg.sql import Identifier

    for part in (name, schema):
        if part is not None and (not part or "\0" in part or len(part.encode()) > _NAME_BYTES):
            raise ValueError(
                f"expected a name of 1 to {_NAME_BYTES} bytes, got {part!r}; PostgreSQL would cut a longer one short"
            )
    return Identifier(*(part.replace("%", percent) for part in (schema, name) if part is not None))


def _check_storable(record: Record) -> None:
    for what, value in (("id", record.id), ("document", record.document_id), ("text", record.text)):
        if value is not None and "\0" in value:
            raise ValueError(f"the {what} of {record.id!r} has a NUL character, which PostgreSQL cannot store")

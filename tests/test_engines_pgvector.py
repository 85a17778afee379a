"""PostgreSQL with pgvector: transactions, names, what is refused."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector
from qrag_retriever.engines.base import Change, EngineSettings
from qrag_retriever.engines.pgvector import PgVectorEngine
from qrag_retriever.errors import EngineError
from tests.engine_indexes import DIM, MODEL, Opener, assert_same_hop, fresh_name, in_memory, states, story

psycopg = pytest.importorskip("psycopg")
HOSTILE_NAMES = [
    'x"; DROP TABLE victim; --',
    "x'); DELETE FROM victim; --",
    "{table}",
    "%s",
    "%(k)s",
    "Größe",
    "a.b",
    "select",
]


@pytest.fixture
def opener(postgres: str) -> Opener:
    return Opener("pgvector", postgres)


@pytest.fixture
def connection(postgres: str) -> Any:
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection


def test_a_connection_may_be_given_and_is_shared_by_threads(connection: Any) -> None:
    index = ChunkIndex.on_pgvector(connection, fresh_name(), model=MODEL)
    index.add(**story())
    memory = in_memory()
    memory.add(**story())
    wrong = []

    def search(number: int) -> None:
        for seed in range(5):
            (state,) = states(1, seed=10 * number + seed)
            try:
                assert_same_hop(index.top_k(state, [number], 5), memory.top_k(state, [number], 5))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_are_taken_literally(opener: Opener, connection: Any, name: str) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS victim (a int)")
    connection.execute("INSERT INTO victim VALUES (1)")
    opener(name=name, model=MODEL).add(["a"], ids=["a"])
    assert opener(name=name).ids == ["a"]
    tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert {name, f"{name}_settings", f"{name}_deleted", "victim"} <= tables
    assert connection.execute("SELECT count(*) FROM victim").fetchone()[0] > 0


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 60])
def test_names_that_postgresql_would_change_are_refused(opener: Opener, name: str) -> None:
    with pytest.raises(ValueError, match="name of 1 to 63 bytes"):
        ChunkIndex.on_pgvector(opener.postgres, name, dim=DIM)


def test_a_schema_holds_the_tables(opener: Opener, connection: Any) -> None:
    connection.execute('CREATE SCHEMA IF NOT EXISTS "my schema"')
    name = fresh_name()
    opener(name=name, schema="my schema", model=MODEL).add(["a"], ids=["a"])
    assert opener(name=name, schema="my schema").ids == ["a"]
    assert connection.execute(f'SELECT text FROM "my schema"."{name}"').fetchall() == [("a",)]
    opener(name=name, model=MODEL).add(["b"], ids=["b"])  # the same name elsewhere is another index
    assert opener(name=name, schema="my schema").ids == ["a"]


def test_a_foreign_table_is_refused_and_left_alone(opener: Opener, connection: Any) -> None:
    name = fresh_name()
    connection.execute(f"CREATE TABLE {name} (place int)")
    with pytest.raises(EngineError, match="something else"):
        opener(name=name, model=MODEL)
    assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (0,)


def test_another_format_is_refused(opener: Opener, connection: Any) -> None:
    name = fresh_name()
    opener(name=name, model=MODEL)
    connection.execute(f"UPDATE {name}_settings SET value = '{{\"format_version\": 99}}'")
    with pytest.raises(EngineError, match="format 99"):
        opener(name=name)
    connection.execute(f"DELETE FROM {name}_settings")
    with pytest.raises(EngineError, match="lost its settings"):
        opener(name=name)


def test_a_connection_that_would_not_commit_is_refused(opener: Opener) -> None:
    with psycopg.connect(opener.postgres) as connection, pytest.raises(ValueError, match="autocommit"):
        ChunkIndex.on_pgvector(connection, fresh_name(), dim=DIM)
    with pytest.raises(TypeError, match="connection string"):
        ChunkIndex.on_pgvector(5, fresh_name(), dim=DIM)


def test_a_change_that_fails_leaves_the_old_state(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    name = fresh_name()
    index = opener(name=name, model=MODEL)
    index.add(["a", "b"], ids=["a", "b"])
    for bad in (["new a", "nul \0"], ["new a", "x"]):
        if "\0" not in bad[1]:
            # The last statement of the transaction fails.
            monkeypatch.setattr(Change, "finish", lambda change: setattr(change, "settings", object()))
        with pytest.raises((ValueError, TypeError), match=r"NUL|asdict"):
            index.add(bad, ids=["a", "c"])
        for one in (index, opener(name=name)):
            assert one.ids == ["a", "b"]
            assert [record.text for record in one.get(["a", "b"])] == ["a", "b"]
    monkeypatch.undo()
    index.add(["new a"], ids=["a"])
    assert opener(name=name).get(["a"])[0].text == "new a"


def test_what_is_added_and_deleted_is_committed(opener: Opener, connection: Any) -> None:
    name = fresh_name()
    index = opener(name=name, model=MODEL)
    index.add(["some text", "b"], [{"key": [1, "x"]}, None], ids=["a", "b"])
    rows = connection.execute(f"SELECT id, text, metadata->'key'->>0 FROM {name} ORDER BY place").fetchall()
    assert rows == [("a", "some text", "1"), ("b", "b", None)]
    index.delete(["a"])
    assert connection.execute(f"SELECT id FROM {name}").fetchall() == [("b",)]
    assert connection.execute(f"SELECT id FROM {name}_deleted").fetchall() == [("a",)]


def test_an_approximate_index_on_the_table_changes_nothing(opener: Opener, connection: Any) -> None:
    name = fresh_name()
    index = opener(name=name, dim=DIM, mode="corpus")
    vectors = states(3_000, seed=3)
    index.add(["x"] * len(vectors), embeddings=vectors)
    connection.execute(f"CREATE INDEX ON {name} USING ivfflat (embedding vector_ip_ops) WITH (lists = 100)")
    for state in states(5):
        ids, _ = index.top_k(state, [], 10)
        assert ids.tolist() == np.argsort(-(vectors @ state), kind="stable")[:10].tolist()


def test_writers_in_two_threads_take_turns(opener: Opener) -> None:
    name = fresh_name()
    indexes = [opener(name=name, model=MODEL) for _ in range(2)]

    def write(index: ChunkIndex, label: str) -> None:
        for number in range(8):
            index.add([f"{label}{number}"], ids=[f"{label}{number}"])

    threads = [threading.Thread(target=write, args=(index, label)) for index, label in zip(indexes, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = opener(name=name).ids
    assert sorted(ids) == sorted(f"{label}{number}" for label in "ab" for number in range(8))
    assert [id_ for id_ in ids if id_[0] == "a"] == [f"a{number}" for number in range(8)]


def test_a_long_vector_does_not_fit_a_page_and_works(opener: Opener) -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 3_000)).astype(np.float32)
    index = opener(dim=3_000, mode="corpus")
    index.add(["x" * 9_000] * 5, embeddings=vectors)
    assert index.top_k(vectors[3], [], 1)[0].tolist() == [3]


def test_an_index_that_was_rebuilt_or_dropped_is_noticed(opener: Opener, connection: Any) -> None:
    name = fresh_name()
    index = opener(name=name, model=MODEL)
    for table in (name, f"{name}_settings", f"{name}_deleted"):
        connection.execute(f"DROP TABLE {table}")
    with pytest.raises(EngineError, match="no longer there"):
        index.refresh()
    opener(name=name, dim=8)
    with pytest.raises(EngineError, match="another kind of index"):
        index.refresh()
    assert MultiStepSelector(index).select("?").steps == ()


def lose(index: ChunkIndex, connection: Any) -> None:
    """End the server's side of an index's connection, as a restart would."""
    engine: Any = index._backing._engine  # type: ignore[union-attr]
    pid = engine._live.info.backend_pid
    connection.execute("SELECT pg_terminate_backend(%s)", [pid])
    for _ in range(100):
        if not connection.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone():
            return
        time.sleep(0.05)


def test_a_connection_that_was_lost_is_made_anew(postgres: str, connection: Any) -> None:
    index = ChunkIndex.on_pgvector(postgres, fresh_name(), model=MODEL)
    index.add(**story())
    (state,) = states(1, seed=1)
    expected = index.top_k(state, [2], 5)
    lose(index, connection)
    assert_same_hop(index.top_k(state, [2], 5), expected)
    assert len(index.get(index.ids[:2])) == 2
    lose(index, connection)
    index.refresh()
    lose(index, connection)
    with pytest.raises(EngineError, match=r"lost in the middle of a change, which was made whole or not at all"):
        index.add(["more"], ids=["more"])
    index.add(["more"], ids=["more"])
    assert index.ids[-1] == "more"


def test_a_given_connection_that_was_lost_is_told(postgres: str, connection: Any) -> None:
    given = psycopg.connect(postgres, autocommit=True)
    index = ChunkIndex.on_pgvector(given, fresh_name(), model=MODEL)
    index.add(**story())
    given.close()
    with pytest.raises(EngineError, match="is closed; open the index with another"):
        index.top_k(states(1, seed=1)[0], [2], 5)


def test_two_that_make_a_new_table_at_once_share_it(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, both_have_looked = PgVectorEngine.create, threading.Barrier(2, timeout=60)

    def create(self: PgVectorEngine, settings: EngineSettings) -> bool:
        both_have_looked.wait()
        return original(self, settings)

    monkeypatch.setattr(PgVectorEngine, "create", create)
    name = fresh_name()
    with ThreadPoolExecutor(2) as pool:
        opened = [pool.submit(ChunkIndex.on_pgvector, postgres, name, model=MODEL) for _ in range(2)]
        first, second = (future.result() for future in opened)
    first.add(["one"], ids=["one"])
    second.refresh()
    assert second.ids == ["one"]

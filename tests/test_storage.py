"""Index folders: round trips, several writers and readers, crashes, damage, full and read-only disks."""

from __future__ import annotations

import builtins
import errno
import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrag_retriever import QRAGModel
from qrag_retriever.errors import IndexFolderError, ModelMismatchError, UnknownIdError
from qrag_retriever.index import ChunkIndex
from qrag_retriever.index_model import IndexModel
from qrag_retriever.records import Record, records_from_texts
from qrag_retriever.selector import MultiStepSelector
from qrag_retriever.storage import IndexFolder
from tests.conftest import QUESTION, STORY
from tests.disks import mounted, needs_mount
from tests.index_folders import (
    STATE,
    assert_consistent,
    assert_equal_or_refused,
    contents,
    files_of,
    flip,
    load,
    new_index,
    observed,
    record,
    saved,
    set_settings,
    sql,
)
from tests.toy_model import DIM, ToyModel, embedding_of

ODD_TEXTS = {
    "NUL": "before\0after\0",
    "emoji": "👩🏽‍🚀 left 🚀",
    "right to left": "\u202eשלמה, مرحبا",
    "combining": "e\u0301 \u212b \ufb01",
    "line ends": "one\r\ntwo\u2028three\x85four\n",
    "quotes": '\'; DROP TABLE chunks; -- "x" \\ %s ?',
    "beyond the basic plane": "\U0010ffff\ufffe\uffff",
    "byte order mark": "\ufefftext",
    "empty": "",
    "1 MB": "schön 🙂 " * 95_000,
}
NESTED = {
    "deep": {"list": [1, [2.5, None, {"x": []}], True], "empty": {}, "": ""},
    "large": 2**70,
    "small": 5e-324,
    "text": "ü \0 👍",
    "ключ": ["значение"],
}


# Round trips


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_texts_come_back_as_they_were(tmp_path: Path, text: str) -> None:
    index = ChunkIndex.from_texts([text, "b"], model=ToyModel())
    index.save(tmp_path / "index")
    assert [one.text for one in load(tmp_path / "index").get(index.ids)] == [text, "b"]


def test_ids_metadata_documents_and_nodes_come_back_as_they_were(tmp_path: Path) -> None:
    node = {
        "id_": "node",
        "class_name": "TextNode",
        "metadata": {"page": 3},
        "relationships": {"1": {"node_id": "doc", "node_type": "4", "metadata": {}, "hash": None}},
        "text": "as shown",
        "start_char_idx": 0,
        "excluded_llm_metadata_keys": ["page"],
    }
    records = [
        Record("ид \0 🙂 '", "a", NESTED, "документ"),
        Record("node", "as shown", {"page": 3}, "doc", node, "page: 3\n\nas shown"),
        Record(" ", "only a node", {}, None, {"class_name": "TextNode"}),
        Record("x" * 5_000, "only embedded", {}, None, None, ""),
    ]
    index = ChunkIndex.from_records(records, ToyModel())
    index.save(tmp_path / "index")
    index.add_records([Record("later", "b", NESTED, "документ", node)])
    loaded = load(tmp_path / "index")
    expected = [records[0], Record("later", "b", NESTED, "документ", node), *records[1:]]
    assert loaded.ids == [one.id for one in expected]
    assert loaded.get(loaded.ids) == expected
    vectors = loaded.view.source.vectors(np.arange(5))
    assert vectors[2].tolist() == embedding_of("page: 3\n\nas shown").tolist()
    assert vectors[4].tolist() == embedding_of("").tolist()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), min_size=1)] * 3),
        min_size=1,
        max_size=4,
        unique_by=lambda pair: pair[0],
    )
)
def test_any_unicode_comes_back(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str, str]]) -> None:
    records = [Record(id_, text, {text: [id_]}, document) for id_, text, document in pairs]
    folder = tmp_path_factory.mktemp("unicode") / "index"
    ChunkIndex.from_records(records, ToyModel()).save(folder)
    loaded = load(folder)
    assert loaded.get([one.id for one in records]) == records
    assert set(loaded.view.layout.chunks_of_document) == {document for _, _, document in pairs}


@pytest.mark.parametrize("name", ["plain", "with blank", "dé%20?#&=x", "'quoted\"", "index.sqlite", "🙂"])
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    index = saved(tmp_path / "parents" / "made" / name)
    assert index.path == tmp_path / "parents" / "made" / name
    assert contents(load(index.path)) == contents(index)
    assert [path.name for path in (tmp_path / "parents" / "made").iterdir()] == [name]


@pytest.mark.parametrize("mode", ["document", "corpus"])
@pytest.mark.parametrize("positions", ["relative", "absolute", "none"])
@pytest.mark.parametrize("scan", ["float32", "int8", "mapped"])
def test_picks_are_the_same_after_save_and_after_load(tmp_path: Path, positions: Any, mode: Any, scan: Any) -> None:
    model = ToyModel(positions)
    index = ChunkIndex.from_texts([f"text {i}" for i in range(50)], model=model, mode=mode, scan=scan)

    def hops(one: ChunkIndex) -> Any:
        picked: list[int] = []
        for _ in range(5):
            picked.append(int(one.top_k(STATE, picked, 1)[0][0]))
        return picked, one.top_k(STATE, picked, 9)[0].tolist()

    before = hops(index)
    index.save(tmp_path / "index")
    assert hops(index) == before
    loaded = ChunkIndex.load(tmp_path / "index", model, scan=scan)
    assert (loaded.mode, loaded.dim, len(loaded), loaded.ids) == (mode, DIM, 50, index.ids)
    assert hops(loaded) == before


def test_a_memory_limit_holds_and_changes_no_picks(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    metadatas = [{"document_id": "AB"[i // 1500]} for i in range(3000)]
    texts = [f"text {i}" for i in range(3000)]
    model = ToyModel()
    ChunkIndex.from_texts(texts, metadatas, model=model).save(tmp_path / "index")
    free = ChunkIndex.load(tmp_path / "index", model)

    def picks(index: ChunkIndex) -> list[int]:
        selection = MultiStepSelector(index, 3, filters={"document_id": "B"}).select("q")
        return [step.chunk_id for step in selection.steps]

    expected = free.top_k(STATE, [7, 2000], 9)
    for limit, hot in (("1 MB", 3000 * (DIM + 8)), (3000 * (180 + DIM + 8), 3000 * (DIM + 8)), (3000 * 190, 0)):
        index = ChunkIndex.load(tmp_path / "index", model, memory_limit=limit)
        found = index.top_k(STATE, [7, 2000], 9)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
        assert index.hot_bytes == hot
        # The scan of one document stays within it, too.
        assert picks(index) == picks(free)
        assert [part.hot_bytes for part in index.view._parts.values()] == [0]
    growing = ChunkIndex.load(tmp_path / "index", model, memory_limit=3000 * (180 + DIM + 8) + 100)
    growing.top_k(STATE, [], 1)
    growing.add(["one more"])
    growing.top_k(STATE, [], 1)
    assert growing.hot_bytes == 0
    assert pickle.loads(pickle.dumps(growing)).view.geometry.memory_limit == 3000 * (180 + DIM + 8) + 100


def test_after_save_the_index_searches_what_is_stored(tmp_path: Path) -> None:
    chunks = np.random.default_rng(0).standard_normal((20, 8), np.float32)
    index = ChunkIndex.from_embeddings(chunks)
    index.top_k(STATE, [], 1)
    index.save(tmp_path / "index")
    np.testing.assert_array_equal(index.view.source.vectors(np.arange(20)), chunks.astype(np.float16))
    np.testing.assert_array_equal(index.top_k(STATE, [2], 9), ChunkIndex.load(tmp_path / "index").top_k(STATE, [2], 9))


def test_an_index_without_model_comes_back_without(tmp_path: Path) -> None:
    index = ChunkIndex.from_embeddings(np.eye(8), ["t"] * 8, mode="corpus")
    index.save(tmp_path / "index")
    loaded = ChunkIndex.load(tmp_path / "index")
    assert (loaded.mode, loaded.dim, loaded.config) == ("corpus", 8, None)
    assert ChunkIndex.load(tmp_path / "index", ToyModel()).add_records([record(1)]) == ["c1"]


def test_an_emptied_index_can_be_saved_loaded_and_filled(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 2)
    index.delete(["c0", "c1"])
    loaded = load(tmp_path / "index")
    assert (len(loaded), loaded.top_k(STATE, [], 2)[0].tolist()) == (0, [-1, -1])
    loaded.save(tmp_path / "other")
    again = load(tmp_path / "other")
    again.add_records([record(7)])
    assert again.ids == ["c7"]
    assert_consistent(load(tmp_path / "other"))


def test_finished_folders_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        saved(tmp_path / "index")
    finally:
        os.umask(old)
    assert (tmp_path / "index").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "index").iterdir()} == {0o644}


# Bound to a folder


def test_save_binds_so_that_changes_are_on_disk_before_they_return(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 4)
    steps: list[Callable[[], Any]] = [
        lambda: index.add_records([record(8), record(9)]),
        lambda: index.add_records([record(1, "changed")]),
        lambda: index.delete(["c0", "c9"]),
        lambda: index.add_records([Record("d1", "in a document", {}, "D")]),
    ]
    for step in steps:
        step()
        other = load(tmp_path / "index")
        assert contents(other) == contents(index)
        assert_consistent(other)
    assert load(tmp_path / "index").ids == ["c1", "c2", "c3", "c8", "d1"]


def test_load_binds(tmp_path: Path) -> None:
    saved(tmp_path / "index", 3)
    loaded = load(tmp_path / "index")
    loaded.add_records([record(5)])
    loaded.delete(["c0"])
    assert load(tmp_path / "index").ids == loaded.ids == ["c1", "c2", "c5"]


def test_an_index_in_memory_is_not_bound(tmp_path: Path) -> None:
    saved(tmp_path / "index", 3)
    index = new_index(3)
    index.add_records([record(4)])
    assert load(tmp_path / "index").ids == ["c0", "c1", "c2"]


def test_save_to_another_folder_binds_to_that_one(tmp_path: Path) -> None:
    index = saved(tmp_path / "first", 3)
    index.save(tmp_path / "second")
    index.add_records([record(5)])
    assert load(tmp_path / "first").ids == ["c0", "c1", "c2"]
    assert load(tmp_path / "second").ids == ["c0", "c1", "c2", "c5"]


def test_refresh_takes_over_the_changes_of_others(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 5)
    other = load(tmp_path / "index")
    index.top_k(STATE, [], 1)
    other.add_records([record(7), record(1, "changed")])
    other.delete(["c0"])
    assert index.ids == ["c0", "c1", "c2", "c3", "c4"]
    assert index.get(["c0", "c1"]) == [record(0), record(1)]
    index.refresh()
    assert contents(index) == contents(other)
    assert_consistent(index)


def test_refresh_of_an_index_in_memory_does_nothing() -> None:
    index = new_index(3)
    view = index.view
    index.refresh()
    assert index.view is view


def test_writers_in_turn_build_on_each_other(tmp_path: Path) -> None:
    first = saved(tmp_path / "index", 3)
    second = load(tmp_path / "index")
    first.top_k(STATE, [], 1)
    second.top_k(STATE, [], 1)
    for number in range(10, 16):
        writer, reader = (first, second) if number % 2 else (second, first)
        writer.add_records([record(number), record(0, f"changed by {number}")])
        assert_consistent(writer)
        if number > 10:
            assert writer.delete([f"c{number - 1}"]) == [f"c{number - 1}"]
            assert writer.delete([f"c{number - 1}"]) == []
            assert_consistent(writer)
        assert_consistent(reader)
    second.refresh()
    first.refresh()
    assert contents(first) == contents(second) == contents(load(tmp_path / "index"))
    assert first.ids == ["c0", "c1", "c2", "c15"]


def test_a_save_to_its_own_folder_keeps_what_others_have_added(tmp_path: Path) -> None:
    first = saved(tmp_path / "index", 3)
    load(tmp_path / "index").add_records([record(9)])
    first.save(tmp_path / "index")
    assert load(tmp_path / "index").ids == ["c0", "c1", "c2", "c9"]


def test_a_save_to_its_own_folder_drops_the_texts_of_deleted_chunks(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 4, "recognisable")
    index.delete(["c1"])
    index.add_records([record(2, "changed")])
    before = observed(tmp_path / "index")
    assert b"recognisable 1" in (tmp_path / "index" / "index.sqlite").read_bytes()
    index.save(tmp_path / "index")
    assert observed(tmp_path / "index") == before
    connection = sqlite3.connect(tmp_path / "index" / "index.sqlite")
    assert sorted(text for (text,) in connection.execute("SELECT text FROM records")) == [
        "changed 2",
        "recognisable 0",
        "recognisable 3",
    ]
    connection.close()
    assert sum(path.suffix == ".f16" for path in (tmp_path / "index").iterdir()) == 1
    index.add_records([record(5)])
    assert_consistent(load(tmp_path / "index"))


def test_dropped_texts_leave_no_bytes_behind(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 40, "recognisable")
    index.delete([f"c{i}" for i in range(30)])
    index.save(tmp_path / "index")
    assert b"recognisable 7" not in (tmp_path / "index" / "index.sqlite").read_bytes()


def test_a_rewrite_gives_a_clear_error_to_those_who_have_it_open(tmp_path: Path) -> None:
    saved(tmp_path / "index", 5)
    reader = load(tmp_path / "index")
    before = reader.top_k(STATE, [1], 3)
    new_index(7, "new").save(tmp_path / "index")
    with pytest.raises(IndexFolderError, match="was rewritten since it was opened"):
        reader.get(["c1"])
    np.testing.assert_array_equal(reader.top_k(STATE, [1], 3), before)
    assert len(load(tmp_path / "index")) == 7
    reader.refresh()
    assert contents(reader) == contents(load(tmp_path / "index"))


def test_whoever_has_a_folder_open_does_not_write_to_another_models_index(tmp_path: Path) -> None:
    saved(tmp_path / "index", 5)
    reader = load(tmp_path / "index")
    other = ChunkIndex.load(tmp_path / "index", ToyModel(seed=1), reindex=True)
    for attempt in (lambda: reader.add_records([record(9)]), reader.refresh):
        with pytest.raises((IndexFolderError, ModelMismatchError)):
            attempt()
    other.refresh()
    assert other.ids == [f"c{i}" for i in range(5)]


@pytest.mark.parametrize("change", [{"seed": 1}, {"dim": 16}, {}], ids=["weights", "dimension", "none"])
def test_a_pickled_index_is_of_the_model_that_it_was_built_by(tmp_path: Path, change: dict[str, Any]) -> None:
    pickled = pickle.dumps(saved(tmp_path / "index", 5))
    ChunkIndex.from_texts(["new"], model=ToyModel(**change)).save(tmp_path / "index")
    if change:
        with pytest.raises(IndexFolderError, match=r"was rebuilt .*load it again"):
            pickle.loads(pickled)
    else:
        assert len(pickle.loads(pickled)) == 1


@pytest.mark.parametrize("change", [{"mode": "corpus"}, {"dim": 16}], ids=["mode", "dimension"])
def test_whoever_has_a_folder_open_notices_another_kind_of_index(tmp_path: Path, change: dict[str, Any]) -> None:
    saved(tmp_path / "index", 5)
    reader = load(tmp_path / "index")
    model = ToyModel(dim=change.get("dim", DIM))
    ChunkIndex.from_texts(["new"], model=model, mode=change.get("mode", "auto")).save(tmp_path / "index")
    for attempt in (lambda: reader.add_records([record(9)]), reader.refresh):
        with pytest.raises(IndexFolderError, match="load it again"):
            attempt()
    assert len(ChunkIndex.load(tmp_path / "index")) == 1


def test_a_load_in_the_middle_of_a_rewrite_sees_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "index", 5)
    rewriter = new_index(7, "new")
    map_vectors, rewritten = IndexFolder.map_vectors, []

    def late(folder: IndexFolder, *arguments: Any) -> np.ndarray:
        # The database has been read; now somebody else saves a new index here.
        if not rewritten:
            rewritten.append(threading.Thread(target=rewriter.save, args=[tmp_path / "index"]))
            rewritten[0].start()
            rewritten[0].join(timeout=0.5)
        return map_vectors(folder, *arguments)

    monkeypatch.setattr(IndexFolder, "map_vectors", late)
    assert len(load(tmp_path / "index")) in (5, 7)
    rewritten[0].join()
    assert len(load(tmp_path / "index")) == 7


def _watch(path: str, stop: Any, seen: Any) -> None:
    """Read an index over and over; what it finds goes to ``seen``."""
    lengths: set[int] = set()
    try:
        index = ChunkIndex.load(path)
        seen.put(("ready", None))
        while not stop.is_set():
            index.refresh()
            assert_consistent(index)
            fresh = ChunkIndex.load(path)
            assert_consistent(fresh)
            assert index.ids[0] == fresh.ids[0] == "c0"
            lengths.update((len(index), len(fresh)))
        seen.put(("lengths", lengths))
    except BaseException as error:
        seen.put(("error", repr(error)))
        raise


def test_another_process_reads_while_one_writes(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 5)
    context = multiprocessing.get_context("spawn")
    stop, seen = context.Event(), context.Queue()
    reader = context.Process(target=_watch, args=(str(tmp_path / "index"), stop, seen), daemon=True)
    reader.start()
    try:
        assert seen.get(timeout=60) == ("ready", None)
        end, number = time.monotonic() + 1.5, 10
        index.add_records([record(number)])
        while time.monotonic() < end or number < 20:
            number += 1
            index.add_records([record(number), record(1, f"changed {number}")])
            index.delete([f"c{number - 1}"] if number % 3 else [f"c{number}"])
            if not seen.empty():
                break
        stop.set()
        kind, lengths = seen.get(timeout=60)
        assert kind == "lengths", lengths
        assert len(lengths) > 1
        reader.join(60)
        assert reader.exitcode == 0
    finally:
        reader.kill()
        reader.join()


def test_threads_write_through_two_objects_at_once(tmp_path: Path) -> None:
    first = saved(tmp_path / "index", 2)
    writers = [first, load(tmp_path / "index")]
    problems: list[BaseException] = []

    def write(writer: ChunkIndex, name: str) -> None:
        try:
            for i in range(12):
                writer.add_records([Record(f"{name}{i}", f"{name} {i}")])
                if i % 3 == 0:
                    writer.delete([f"{name}{i}"])
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(w, n)) for w, n in zip(writers * 2, "pqrs", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    loaded = load(tmp_path / "index")
    assert sorted(loaded.ids) == sorted(["c0", "c1", *(f"{n}{i}" for n in "pqrs" for i in range(12) if i % 3)])
    assert_consistent(loaded)


# Where a save may go


def test_save_replaces_an_index(tmp_path: Path) -> None:
    saved(tmp_path / "index", 9)
    index = ChunkIndex.from_texts(["one", "two"], ids=["a", "b"], model=ToyModel(), mode="corpus")
    index.save(tmp_path / "index")
    loaded = load(tmp_path / "index")
    assert (loaded.ids, loaded.mode) == (["a", "b"], "corpus")
    assert contents(index) == contents(loaded)
    assert_consistent(loaded)


def test_save_fills_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    saved(tmp_path / "index")
    assert_consistent(load(tmp_path / "index"))


def _foreign_database(folder: Path, journal: str) -> None:
    connection = sqlite3.connect(folder / "index.sqlite")
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("CREATE TABLE notes (text)")
    connection.execute("INSERT INTO notes VALUES ('mine')")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "fill",
    [
        pytest.param(lambda folder: (folder / "note.txt").write_text("mine"), id="files"),
        pytest.param(lambda folder: (folder / "sub").mkdir(), id="a folder"),
        pytest.param(lambda folder: (folder / "vectors.f16").write_bytes(b"\0" * 64), id="vectors alone"),
        pytest.param(lambda folder: (folder / "index.sqlite").write_text("not a database"), id="a foreign file"),
        pytest.param(lambda folder: _foreign_database(folder, "DELETE"), id="a foreign database"),
        pytest.param(lambda folder: _foreign_database(folder, "WAL"), id="a foreign database with WAL"),
    ],
)
def test_save_refuses_a_folder_with_something_else_and_touches_nothing(
    tmp_path: Path, fill: Callable[[Path], Any]
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    fill(target)
    before, index = files_of(tmp_path), new_index(3)
    with pytest.raises((FileExistsError, IndexFolderError), match=str(target)):
        index.save(target)
    assert files_of(tmp_path) == before
    assert index.path is None
    index.add_records([record(5)])
    assert_consistent(index)


def test_save_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another path"):
        new_index(3).save(tmp_path / "file")
    assert files_of(tmp_path) == {"file": b"mine"}


# What cannot be stored


BAD_METADATA = {
    "datetime": ({"when": datetime(2020, 1, 1, tzinfo=timezone.utc)}, "when"),
    "tuple": ({"pair": (1, 2)}, "pair"),
    "set": ({"tags": {"a"}}, "tags"),
    "NaN": ({"score": float("nan")}, "score"),
    "int key": ({"outer": {7: "x"}}, "7"),
    "nested": ({"a": {"b": [{"deep": b"x"}]}}, "deep"),
    "numpy": ({"count": np.int64(3)}, "count"),
    "surrogate in a value": ({"name": "\ud800"}, "name"),
    "surrogate in a key": ({"outer": {"\ud800": 1}}, "outer"),
}


@pytest.mark.parametrize(("metadata", "key"), BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_metadata_that_is_not_json_is_a_type_error_and_nothing_is_written(
    tmp_path: Path, metadata: dict[Any, Any], key: str
) -> None:
    bad = Record("culprit", "text", metadata)
    unbound = new_index(3)
    unbound.add_records([bad])
    with pytest.raises(TypeError, match=rf"'culprit'.*{key}.*JSON"):
        unbound.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    assert unbound.path is None
    unbound.top_k(STATE, [], 1)

    index = saved(tmp_path / "index", 3)
    before = files_of(tmp_path)
    with pytest.raises(TypeError, match=rf"'culprit'.*{key}.*JSON"):
        index.add_records([record(8), bad])
    with pytest.raises(TypeError, match=rf"'culprit'.*{key}.*JSON"):
        unbound.save(tmp_path / "index")
    assert files_of(tmp_path)["index/index.sqlite"] == before["index/index.sqlite"]
    assert index.ids == load(tmp_path / "index").ids == ["c0", "c1", "c2"]
    index.add_records([record(8)])
    assert_consistent(load(tmp_path / "index"))


def test_a_node_that_is_not_json_is_a_type_error_that_names_the_key(tmp_path: Path) -> None:
    when = datetime(2020, 1, 1, tzinfo=timezone.utc)
    node = {"class_name": "TextNode", "relationships": {"1": {"node_id": "d", "metadata": {"when": when}}}}
    index = saved(tmp_path / "index", 3)
    with pytest.raises(TypeError, match=r"'culprit'.*when"):
        index.add_records([Record("culprit", "text", {}, None, node)])
    assert load(tmp_path / "index").ids == ["c0", "c1", "c2"]


class _LoudModel(ToyModel):
    def encode_chunks(self, texts: Any, show_progress: bool | None = None) -> np.ndarray:
        return super().encode_chunks(texts) * [1e6 if text == "loud 9" else 1.0 for text in texts][-1]


def test_embeddings_beyond_float16_are_a_value_error_and_nothing_is_written(tmp_path: Path) -> None:
    chunks = np.eye(8, dtype=np.float32)
    chunks[3, 3] = 65_520
    index = ChunkIndex.from_embeddings(chunks)
    with pytest.raises(ValueError, match=r"65504.*float16"):
        index.save(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []
    assert index.top_k(chunks[3], [], 1)[0].tolist() == [3]
    saved(tmp_path / "index", 3)
    before = observed(tmp_path / "index")
    with pytest.raises(ValueError, match=r"65504.*float16"):
        index.save(tmp_path / "index")
    bound = load(tmp_path / "index")
    bound._model = IndexModel(_LoudModel())
    with pytest.raises(ValueError, match=r"65504.*float16"):
        bound.add_records([record(9, "loud")])
    assert observed(tmp_path / "index") == before
    bound.add_records([record(8)])
    assert_consistent(load(tmp_path / "index"))


# Crashes


def _copy_during_commit(folder: Path, copy: Path) -> None:
    """Copy an index as a crash in the middle of a commit leaves it: pages half written, the journal complete."""
    connection = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    connection.execute("PRAGMA cache_size = 2")
    connection.execute("PRAGMA cache_spill = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE records SET text = 'half written' || zeroblob(2000)")
    connection.execute("UPDATE chunks SET valid = 0")
    assert (folder / "index.sqlite-journal").stat().st_size > 0
    shutil.copytree(folder, copy)
    connection.execute("ROLLBACK")
    connection.close()


def test_an_index_opens_after_a_crash_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    saved(tmp_path / "index", 200)
    before = observed(tmp_path / "index")
    _copy_during_commit(tmp_path / "index", tmp_path / "crashed")
    assert (tmp_path / "crashed" / "index.sqlite").read_bytes() != (tmp_path / "index" / "index.sqlite").read_bytes()
    assert observed(tmp_path / "crashed") == before


def test_a_write_recovers_an_index_after_a_crash_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 200)
    before = contents(index)
    _copy_during_commit(tmp_path / "index", tmp_path / "crashed")
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "crashed").rename(tmp_path / "index")
    index = load(tmp_path / "index")
    index.add_records([record(999)])
    assert contents(load(tmp_path / "index"))[:-1] == before


def test_vectors_of_a_write_that_was_cut_off_are_overwritten(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 5)
    with (tmp_path / "index" / "vectors.f16").open("ab") as file:
        file.write(b"\xff" * 100)
    before = observed(tmp_path / "index")
    assert_consistent(index)
    assert [entry[0].id for entry in before[0]] == index.ids
    index.add_records([record(7), record(8)])
    assert_consistent(load(tmp_path / "index"))


# Damage


def _cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        size = (folder / name).stat().st_size
        os.truncate(folder / name, int(size * keep) if keep < 1 else size - 1)

    return damage


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "vectors missing": lambda folder: (folder / "vectors.f16").unlink(),
    "vectors empty": _cut("vectors.f16", 0.0),
    "vectors cut": _cut("vectors.f16", 0.6),
    "vectors one byte short": _cut("vectors.f16", 1.0),
    "database missing": lambda folder: (folder / "index.sqlite").unlink(),
    "database empty": _cut("index.sqlite", 0.0),
    "database cut within the header": _cut("index.sqlite", 0.002),
    "database cut to a quarter": _cut("index.sqlite", 0.25),
    "database cut to a half": _cut("index.sqlite", 0.5),
    "database cut to nine tenths": _cut("index.sqlite", 0.9),
    "database one byte short": _cut("index.sqlite", 1.0),
    "database is text": _write("index.sqlite", b"this is no database, " * 500),
    "database is zeros": _write("index.sqlite", b"\0" * 8192),
    "database is a folder": lambda folder: ((folder / "index.sqlite").unlink(), (folder / "index.sqlite").mkdir()),
    "foreign database": lambda folder: ((folder / "index.sqlite").unlink(), _foreign_database(folder, "DELETE")),
    "no settings": sql("DELETE FROM settings"),
    "settings changed": sql("UPDATE settings SET value = replace(value, 'document', 'corpus')"),
    "text changed": sql("UPDATE records SET text = 'other' WHERE row = 2"),
    "metadata changed": sql("UPDATE records SET metadata = '{}' WHERE row = 2"),
    "text missing": sql("DELETE FROM records WHERE row = 2"),
    "chunk missing": sql("DELETE FROM chunks WHERE row = 2"),
    "chunk invalid": sql("UPDATE chunks SET valid = 0 WHERE row = 2"),
    "id changed": sql("UPDATE chunks SET id = 'other' WHERE row = 2"),
    "order changed": sql("UPDATE chunks SET major = 99 WHERE row = 2"),
    "document no text": sql("UPDATE chunks SET document_id = x'00' WHERE row = 2"),
    "checksum no number": sql("UPDATE chunks SET checksum = 'many' WHERE row = 2"),
    "checksum fractional": sql("UPDATE chunks SET checksum = checksum + 0.5 WHERE row = 2"),
    "document changed": sql("UPDATE chunks SET document_id = 'other' WHERE row = 2"),
    "row out of range": sql("UPDATE chunks SET row = 99 WHERE row = 2"),
    "table missing": sql("DROP TABLE records"),
    "newer format": lambda folder: set_settings(folder, lambda values: values.update(format_version=2)),
    "newer model format": lambda folder: set_settings(
        folder, lambda values: values["model"]["config"].update(format_version=2)
    ),
    "unknown field of a newer model": lambda folder: set_settings(
        folder, lambda values: values["model"]["config"].update(new_field=1)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_an_error_that_names_it(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    saved(tmp_path / "index", 60)
    before = observed(tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(IndexFolderError, match=str(tmp_path / "index")):
        assert observed(tmp_path / "index") == before


def test_an_index_of_many_blocks_is_read_in_order_and_checked_to_its_end(tmp_path: Path) -> None:
    count = 9_001
    records = [Record(f"c{i}", f"text {i}", document_id=f"d{i // 1000}") for i in range(count)]
    embeddings = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    ChunkIndex(records, embeddings).save(tmp_path / "index")
    loaded = ChunkIndex.load(tmp_path / "index")
    layout = loaded.view.layout
    assert (loaded.ids, layout.rows.tolist()) == ([one.id for one in records], list(range(count)))
    assert list(layout.document_ids) == [one.document_id for one in records]
    # Millions of chunks of some documents are not to take a string each.
    assert len({id(name) for name in layout.document_ids}) == 10
    sql("UPDATE chunks SET document_id = 'other' WHERE row = 9000")(tmp_path / "index")
    with pytest.raises(IndexFolderError, match="the checksum of chunk 'c9000' does not match"):
        ChunkIndex.load(tmp_path / "index")


@pytest.mark.parametrize("what", ["missing", "empty", "file", "foreign"])
def test_what_is_no_index_folder_is_an_error_that_says_so(tmp_path: Path, what: str) -> None:
    path = tmp_path / "place"
    if what == "file":
        path.write_text("mine")
    elif what != "missing":
        path.mkdir()
    if what == "foreign":
        (path / "config.json").write_text("{}")
    with pytest.raises(
        IndexFolderError, match=r"is not an index folder: (it has no index.sqlite|there is nothing of that name)$"
    ):
        ChunkIndex.load(path)
    assert [one.name for one in tmp_path.iterdir()] == ([] if what == "missing" else ["place"])


def test_a_newer_format_says_what_to_do(tmp_path: Path) -> None:
    saved(tmp_path / "index", 3)
    set_settings(tmp_path / "index", lambda values: values.update(format_version=2, something_new=1))
    with pytest.raises(IndexFolderError, match=r"has index format 2, this release reads 1; upgrade"):
        ChunkIndex.load(tmp_path / "index")


@pytest.mark.parametrize("mask", [0x01, 0x10, 0xFF])
def test_every_byte_of_a_small_database_is_noticed_or_does_not_matter(tmp_path: Path, mask: int) -> None:
    saved(tmp_path / "index", 5)
    before, path = observed(tmp_path / "index"), tmp_path / "index" / "index.sqlite"
    whole = path.read_bytes()
    wrong = []
    for place in range(len(whole)):
        if place >= 100 and not whole[place]:
            continue
        flip(path, place, mask)
        try:
            assert_equal_or_refused(tmp_path / "index", before)
        except Exception as error:
            wrong.append(f"byte {place}: {type(error).__name__}")
        path.write_bytes(whole)
        for extra in path.parent.glob("index.sqlite-*"):
            extra.unlink()
    assert wrong == []


def test_a_header_of_another_journal_mode_is_noticed_or_does_not_matter(tmp_path: Path) -> None:
    saved(tmp_path / "index", 5)
    before = observed(tmp_path / "index")
    with (tmp_path / "index" / "index.sqlite").open("r+b") as file:
        file.seek(18)
        file.write(b"\x02\x02")
    assert_equal_or_refused(tmp_path / "index", before)


def test_a_page_in_place_of_its_neighbour_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path / "index", 500)
    before, path = observed(tmp_path / "index"), tmp_path / "index" / "index.sqlite"
    whole = path.read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    tried = 0
    for start in range(0, len(whole), size):
        head = start if start else 100
        if whole[head] != 5:  # an inner page of a table
            continue
        cells = int.from_bytes(whole[head + 3 : head + 5], "big")
        offsets = [head + 12 + 2 * cell for cell in range(cells)]
        pointers = [start + int.from_bytes(whole[place : place + 2], "big") for place in offsets]
        for one, other in itertools.pairwise(pointers):
            path.write_bytes(whole[:one] + whole[other : other + 4] + whole[one + 4 :])
            try:
                assert_equal_or_refused(tmp_path / "index", before)
            except AssertionError as error:
                raise AssertionError(f"pointer at {one}") from error
            tried += 1
    assert tried > 3


# Disks


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


class _HalfWritten:
    """A file that is full in the middle of a write."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> _HalfWritten:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, data: Any) -> Any:
        self.file.write(bytes(data)[: len(bytes(data)) // 2])
        self.file.flush()
        no_space()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


WRITES: dict[str, Callable[[Path], Any]] = {
    "add": lambda folder: load(folder).add_records([record(50), record(1, "changed")]),
    "rewrite": lambda folder: new_index(7, "new").save(folder),
    "save elsewhere": lambda folder: load(folder).save(folder.parent / "elsewhere"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_full_disk_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any], failing: str
) -> None:
    saved(tmp_path / "index", 10)
    before = observed(tmp_path / "index")
    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", no_space)
        else:
            fdopen, real_open = os.fdopen, builtins.open
            patch.setattr(os, "fdopen", lambda *args, **options: _HalfWritten(fdopen(*args, **options)))
            patch.setattr(
                builtins,
                "open",
                lambda file, mode="r", *args, **options: (
                    _HalfWritten(real_open(file, mode, *args, **options))
                    if str(file).endswith(".f16") and mode != "rb"
                    else real_open(file, mode, *args, **options)
                ),
            )
        with pytest.raises(OSError, match="No space left") as caught:
            write(tmp_path / "index")
        assert caught.value.errno == errno.ENOSPC
    assert observed(tmp_path / "index") == before
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    load(tmp_path / "index").add_records([record(60)])
    assert_consistent(load(tmp_path / "index"))


def test_the_object_that_met_a_full_disk_stays_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = saved(tmp_path / "index", 10)
    before = contents(index)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            index.add_records([record(50), record(1, "changed")])
    assert contents(index) == before
    index.add_records([record(51)])
    index.delete(["c0"])
    assert contents(index) == contents(load(tmp_path / "index"))
    assert_consistent(index)


@needs_mount
@pytest.mark.parametrize("kind", ["add", "update", "save", "delete"])
def test_a_really_full_disk_leaves_the_last_good_state(tmp_path: Path, kind: str) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "tmpfs") as disk:
        folder = disk / "index"
        index: ChunkIndex = saved(folder, 100)
        # Only a little is left over, at another place each time.
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        left = [0, 4096, 8192, 12288, 20480]
        good = observed(folder)
        failures = 0
        for keep in left:
            (disk / "filler").write_bytes(b"x" * max(0, free - keep))
            for number in range(1, 40):
                try:
                    if kind == "add":
                        index.add_records([Record(f"f{keep} {number} {i}", "filling " * 40) for i in range(5)])
                    elif kind == "delete":
                        index.delete(index.ids[:2])
                    elif kind == "update":
                        index.add_records([record(i, f"update {number}") for i in range(0, 90, 9)])
                    else:
                        new_index(100, f"save {number} " + "long " * number).save(folder)
                except PermissionError:
                    raise
                except OSError:
                    failures += 1
                    assert observed(folder) == good
                    break
                good = observed(folder)
                if len(index) < 10:
                    break
            (disk / "filler").unlink()
            assert observed(folder) == good
            index = load(folder)
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        assert failures > 0 or kind == "delete"
        index.add_records([record(7, "again")])
        assert_consistent(load(folder))
        assert [path.name for path in disk.iterdir()] == ["index"]


@needs_mount
def test_a_new_folder_on_a_full_disk_is_absent(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64k", "tmpfs") as disk:
        index = new_index(300, "a long text " * 20)
        with pytest.raises(OSError, match=r"[Nn]o space|could not be written|full"):
            index.save(disk / "index")
        assert list(disk.iterdir()) == []
        assert index.path is None
        index.save(tmp_path / "elsewhere")
        assert_consistent(load(tmp_path / "elsewhere"))


@needs_mount
def test_read_only_media_can_be_searched_and_refuse_writes_clearly(tmp_path: Path) -> None:
    index = saved(tmp_path / "index", 20)
    other = new_index(3)
    (tmp_path / "media").mkdir()
    with mounted(tmp_path / "media", "--bind", str(tmp_path / "index")) as media:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(media)], check=True)
        loaded = load(media)
        assert contents(loaded) == contents(index)
        np.testing.assert_array_equal(loaded.top_k(STATE, [3], 5), index.top_k(STATE, [3], 5))
        before = files_of(media)
        attempts: list[Callable[[], Any]] = [
            lambda: loaded.add_records([record(50)]),
            lambda: loaded.delete(["c1"]),
            lambda: loaded.save(media),
            lambda: other.save(media),
        ]
        for attempt in attempts:
            with pytest.raises(PermissionError, match=f"{media} cannot be written.*save to another folder"):
                attempt()
        assert files_of(media) == before
        loaded.refresh()
        assert contents(loaded) == contents(index)
        loaded.save(tmp_path / "copy")
        loaded.add_records([record(50)])
    assert load(tmp_path / "copy").ids == [*index.ids, "c50"]


# What a load needs


def test_opening_and_one_hop_need_no_torch(tmp_path: Path) -> None:
    saved(tmp_path / "index", 20)
    script = f"""
import sys
import numpy as np
from qrag_retriever import ChunkIndex
index = ChunkIndex.load({str(tmp_path / "index")!r})
assert len(index) == 20
assert index.top_k(np.ones({DIM}, np.float32), [3], 4)[0].shape == (4,)
assert index.get(["c3"])[0].text == "text 3"
index.delete(["c3"])
assert len(index) == 19
heavy = {{"torch", "transformers", "sentence_transformers", "langchain_core", "llama_index"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("change", [{"seed": 1}, {"positions": "absolute"}], ids=["weights", "positions"])
def test_another_model_is_refused_and_reindex_embeds_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    model = ToyModel(**change)
    index = saved(tmp_path / "index", 10)
    index.delete(["c4"])
    index.add_records([Record("n", "a node", {"a": 1}, "D", {"x": 1}, "embedded")])
    before = observed(tmp_path / "index")
    with pytest.raises(ModelMismatchError, match=r"another model.*fingerprint.*reindex=True"):
        ChunkIndex.load(tmp_path / "index", model)
    assert observed(tmp_path / "index") == before
    records = index.get(index.ids)
    fresh = ChunkIndex.load(tmp_path / "index", model, reindex=True)
    assert fresh.path == tmp_path / "index"
    assert fresh.get(fresh.ids) == records
    loaded = ChunkIndex.load(tmp_path / "index", model)
    texts = [one.text if one.embedded_text is None else one.embedded_text for one in records]
    np.testing.assert_array_equal(loaded.view.source.vectors(np.arange(10)), model.encode_chunks(texts))
    assert loaded.view.geometry.positions == model.config.positions
    with pytest.raises(ModelMismatchError):
        load(tmp_path / "index")


def test_reindex_with_the_same_model_changes_nothing(tmp_path: Path) -> None:
    saved(tmp_path / "index", 10)
    before = files_of(tmp_path)
    assert len(load(tmp_path / "index", reindex=True)) == 10
    assert files_of(tmp_path) == before


def test_reindex_takes_another_dimension(tmp_path: Path) -> None:
    saved(tmp_path / "index", 10)
    wide = ToyModel(dim=16)
    with pytest.raises(ModelMismatchError):
        ChunkIndex.load(tmp_path / "index", wide)
    assert ChunkIndex.load(tmp_path / "index", wide, reindex=True).dim == 16
    assert ChunkIndex.load(tmp_path / "index", wide).top_k(np.ones(16), [], 2)[0].shape == (2,)


def test_reindex_gives_an_index_from_embeddings_its_model(tmp_path: Path) -> None:
    ChunkIndex.from_embeddings(np.eye(16), [f"text {i}" for i in range(16)]).save(tmp_path / "index")
    with pytest.raises(ValueError, match=r"dimension 16.*8"):
        load(tmp_path / "index")
    assert_consistent(load(tmp_path / "index", reindex=True))
    assert_consistent(load(tmp_path / "index"))


def test_what_a_retriever_keeps_survives_changes_and_reindexing(tmp_path: Path) -> None:
    index = new_index(5)
    index.save(tmp_path / "index", {"k": 7})
    index.add_records([record(8)])
    index.save(tmp_path / "index")
    ChunkIndex.load(tmp_path / "index", ToyModel(seed=1), reindex=True)
    assert ChunkIndex.load(tmp_path / "index").retriever_settings == {"k": 7}


def test_records_of_many_chunks_are_read_in_order(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(1_203)]
    index = ChunkIndex.from_records(records_from_texts(texts, None, texts), ToyModel())
    index.save(tmp_path / "index")
    shuffled = random.Random(0).sample(texts, len(texts))
    assert [one.text for one in load(tmp_path / "index").get(shuffled)] == shuffled


def test_saving_to_its_own_folder_does_not_disturb_searches(tmp_path: Path, model: Any) -> None:
    # Here and not above: the frameworks take seconds to import, and the processes to be killed import this file.
    from qrag_retriever import QRAGRetriever

    retriever = QRAGRetriever.from_texts(STORY, model=model)
    retriever.save(tmp_path / "index")
    expected = retriever.search(QUESTION).ids
    failures: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                assert retriever.search(QUESTION).ids == expected
            except Exception as error:  # whatever it is, it is counted
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        retriever.save(tmp_path / "index")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_vectors_file_that_cannot_be_removed_yet_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows keeps a file as long as somebody maps it."""
    index = saved(tmp_path / "index", 4)
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(PermissionError(13, "in use"))
        )
        index.save(tmp_path / "index")
    assert len(load(tmp_path / "index")) == 4
    assert len(list((tmp_path / "index").glob("vectors*.f16"))) == 2
    index.save(tmp_path / "index")
    assert len(list((tmp_path / "index").glob("vectors*.f16"))) == 1


def test_an_index_follows_its_folder_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "index", 3)
    monkeypatch.chdir(tmp_path)
    index = load(Path("index"))
    monkeypatch.chdir(tmp_path.parent)
    index.add_records([record(7)])
    assert len(load(tmp_path / "index")) == 4


class TestReindex:
    @pytest.fixture
    def two_models(self, tiny_encoder: Path) -> tuple[QRAGModel, QRAGModel]:
        first = QRAGModel.from_encoder(tiny_encoder, device="cpu")
        return first, QRAGModel.from_encoder(tiny_encoder, num_layers=1, device="cpu")

    def test_what_others_add_meanwhile_is_kept(
        self, tmp_path: Path, two_models: tuple[QRAGModel, QRAGModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = two_models
        ChunkIndex.from_texts(["a", "b"], ids=["a", "b"], model=first).save(tmp_path / "index")
        other = ChunkIndex.load(tmp_path / "index", model=first)
        other.delete(["b"])
        encode, added = second.encode_chunks, []

        def slow(texts: list[str], *arguments: Any) -> np.ndarray:
            if not added:
                added.extend(other.add(["new"], ids=["new"]))
            return encode(texts, *arguments)

        monkeypatch.setattr(second, "encode_chunks", slow)
        again = ChunkIndex.load(tmp_path / "index", model=second, reindex=True)
        assert again.ids == ["a", "new"]
        assert again.delete(["b"]) == [], "ids that were deleted before are remembered"

    def test_an_empty_index(self, tmp_path: Path, two_models: tuple[QRAGModel, QRAGModel]) -> None:
        first, second = two_models
        index = ChunkIndex.from_texts(["a"], ids=["a"], model=first)
        index.delete(["a"])
        index.save(tmp_path / "index")
        assert len(ChunkIndex.load(tmp_path / "index", model=second, reindex=True)) == 0

    def test_a_model_retrained_in_place(self, tmp_path: Path, two_models: tuple[QRAGModel, QRAGModel]) -> None:
        first, second = two_models
        first.save_pretrained(tmp_path / "model")
        model = QRAGModel.from_pretrained(tmp_path / "model", device="cpu")
        ChunkIndex.from_texts(["a", "b"], model=model).save(tmp_path / "index")
        second.save_pretrained(tmp_path / "model")
        with pytest.raises(ModelMismatchError, match="reindex=True"):
            ChunkIndex.load(tmp_path / "index").model  # loads it  # noqa: B018
        again = ChunkIndex.load(tmp_path / "index", reindex=True)
        assert again.model.fingerprint() == second.fingerprint()


def test_an_index_that_took_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    ChunkIndex.from_texts(["A", "B", "C"], ids=["a", "b", "c"], model=ToyModel()).save(folder)
    opened = [load(folder) for _ in range(4)]
    shutil.rmtree(folder)
    ChunkIndex.from_texts(["Z", "Y", "X"], ids=["z", "y", "x"], model=ToyModel()).save(folder)
    with pytest.raises(UnknownIdError, match="'b'"):
        opened[0].delete(["b"])
    assert load(folder).ids == ["z", "y", "x"]
    assert opened[1].add(["W"], ids=["w"]) == ["w"]
    opened[2].refresh()
    assert opened[1].ids == opened[2].ids == load(folder).ids == ["z", "y", "x", "w"]
    with pytest.raises(IndexFolderError, match="was rewritten since it was opened"):
        opened[3].get(["a"])


# A change that fails after others' changes


FAILING = {
    "unknown id": lambda index: index.delete(["nope"]),
    "metadata": lambda index: index.add(["x"], [{"w": {1}}]),
}


@pytest.mark.parametrize("fail", FAILING.values(), ids=FAILING.keys())
@pytest.mark.parametrize("change", ["delete", "add", "update"])
def test_a_change_that_fails_leaves_the_index_at_its_version(tmp_path: Path, fail: Any, change: str) -> None:
    path = tmp_path / "index"
    saved(path, 3)
    one, other = load(path), load(path)
    other.delete(["c0"])
    other.add(["theirs"], ids=["b"])
    with pytest.raises((KeyError, TypeError)):
        fail(one)
    assert one.ids == ["c0", "c1", "c2"], "its version is still the old one"
    if change == "delete":
        assert one.delete(["c0"]) == []
        expected = ["c1", "c2", "b"]
    else:
        name = "b" if change == "update" else "mine"
        one.add(["mine"], ids=[name])
        expected = ["c1", "c2", "b"] if change == "update" else ["c1", "c2", "b", "mine"]
    assert one.ids == load(path).ids == expected
    keys = load(path).view.layout.keys.tolist()
    assert len({tuple(key) for key in keys}) == len(keys)


def test_a_document_that_others_have_added_to_is_deleted_whole(tmp_path: Path) -> None:
    path = tmp_path / "index"
    saved(path, 3)
    one, other = load(path), load(path)
    other.add(["1", "2"], [{"source": "d"}, {"source": "e"}], ["d1", "e1"])
    assert one.delete_document("d") == ["d1"]
    assert one.delete(["e1", "nobody"], ignore_unknown=True) == ["e1"]
    other.add(["3"], [{"source": "f"}], ["f1"])
    with pytest.raises(UnknownIdError, match="no chunk belongs to the document 'nobody'"):
        one.delete(["f1"], documents=["nobody"])
    assert "f1" in load(path).ids, "all or nothing"
    assert one.delete(["f1"], documents=["f"]) == ["f1"]
    assert one.ids == load(path).ids == ["c0", "c1", "c2"]


def test_ids_and_texts_of_numpy_are_plain_ones(tmp_path: Path) -> None:
    path = tmp_path / "index"
    saved(path, 1)
    index = load(path)
    index.add(np.array(["text"]), [{"source": np.str_("d")}], ids=np.array(["a"]))
    assert [type(one) for one in (index.ids[-1], index.get(["a"])[0].text)] == [str, str]
    assert load(path).ids == ["c0", "a"]
    made = ChunkIndex.from_texts(["x"], ids=np.array(["b"]), model=ToyModel())
    made.save(tmp_path / "made")
    assert load(tmp_path / "made").ids == ["b"]


def test_a_document_named_by_a_number_is_deleted_by_it(tmp_path: Path) -> None:
    index = ChunkIndex.from_texts(["a", "b"], [{"document_id": 3}, None], ["x", "y"], model=ToyModel())
    assert index.ids_of_document(3) == ["x"]  # type: ignore[arg-type]
    assert index.delete_document(3) == ["x"]  # type: ignore[arg-type]

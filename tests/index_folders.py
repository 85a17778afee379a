"""Index folders of a model without a network: made, looked at, damaged. Worker processes import this: nothing heavy."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever.errors import IndexFolderError
from qrag_retriever.index import ChunkIndex
from qrag_retriever.records import Record
from tests.toy_model import ToyModel, embedding_of

STATE = embedding_of("a state")


def record(i: int, text: str = "text", **fields: Any) -> Record:
    return Record(f"c{i}", f"{text} {i}", {"n": i}, **fields)


def new_index(count: int = 10, text: str = "text", **arguments: Any) -> ChunkIndex:
    return ChunkIndex.from_records([record(i, text) for i in range(count)], ToyModel(), **arguments)


def saved(path: Path, count: int = 10, text: str = "text") -> ChunkIndex:
    index = new_index(count, text)
    index.save(path)
    return index


def load(path: Path, **arguments: Any) -> ChunkIndex:
    return ChunkIndex.load(path, ToyModel(), **arguments)


def contents(index: ChunkIndex) -> list[tuple[Record, list[float]]]:
    """Return everything a user can read: records and exact embeddings, in order."""
    vectors = index.view.source.vectors(np.arange(len(index)))
    return list(zip(index.get(index.ids), vectors.tolist(), strict=True))


def observed(path: Path, picked: tuple[int, ...] = (1,)) -> Any:
    """Return all that can be seen of a folder: contents and one search."""
    index = ChunkIndex.load(path)
    ids, values = index.top_k(STATE, [i for i in picked if i < len(index)], 4)
    return contents(index), index.mode, ids.tolist(), values.tolist()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_consistent(index: ChunkIndex) -> None:
    """Check that every embedding belongs to its text, and that a search agrees."""
    for one, vector in contents(index):
        assert vector == embedding_of(one.text).tolist()
    if len(index):
        ids, _ = index.top_k(STATE, [], len(index))
        assert sorted(ids.tolist()) == list(range(len(index)))


def assert_equal_or_refused(folder: Path, before: Any) -> bool:
    """Check that a damaged folder gives the original results or an IndexFolderError; tells which."""
    try:
        after = observed(folder)
    except IndexFolderError:
        return False
    assert after == before
    return True


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def set_settings(folder: Path, change_values: Callable[[dict[str, Any]], Any]) -> None:
    """Change the settings of a folder as a program would, checksum and all."""
    connection = sqlite3.connect(folder / "index.sqlite")
    values = json.loads(connection.execute("SELECT value FROM settings").fetchone()[0])
    change_values(values)
    value = json.dumps(values)
    connection.execute("UPDATE settings SET value = ?, checksum = ?", (value, zlib.crc32(value.encode())))
    connection.commit()
    connection.close()


def sql(statement: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        connection = sqlite3.connect(folder / "index.sqlite")
        connection.execute(statement)
        connection.commit()
        connection.close()

    return damage

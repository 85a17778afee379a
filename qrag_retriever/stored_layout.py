"""Ids and places of all chunks, read from the table of an index folder and checked, in little memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np

from qrag_retriever.layout import Layout
from qrag_retriever.transaction import chunk_checksum

_BLOCK = 4096
_KINDS = {(int, int, int, str, document, int) for document in (str, type(None))}


def read_layout(connection: sqlite3.Connection) -> tuple[Layout, np.ndarray]:
    """Read the chunks of an index in document order, block by block.

    The rows of a large table as Python objects take several times the memory of what is kept of them, and the
    interpreter would not give it back, since ids lie between them.

    Returns:
        The layout, and the checksums of its chunks, (N,), int64.

    Raises:
        ValueError: If a row is not of numbers and names, as only damage can make it.
    """
    # From the table itself: what an index of the database says is not covered by the checksums.
    cursor = connection.execute(
        "SELECT row, major, minor, id, document_id, checksum FROM chunks NOT INDEXED "
        "WHERE valid = 1 ORDER BY major, minor"
    )
    numbers = [np.empty((0, 4), np.int64)]
    ids: list[str] = []
    documents: list[str | None] = []
    names: dict[str | None, str | None] = {}
    while block := cursor.fetchmany(_BLOCK):
        _check_kinds(block)
        numbers.append(np.array([(*entry[:3], entry[5]) for entry in block], np.int64))
        ids.extend(entry[3] for entry in block)
        # One string for all chunks of a document.
        documents.extend(names.setdefault(entry[4], entry[4]) for entry in block)
    rows, major, minor, checksums = np.concatenate(numbers).T
    layout = Layout(rows.copy(), np.stack([major, minor], axis=1), tuple(ids), tuple(documents))
    return layout, checksums.copy()


def _check_kinds(block: Sequence[tuple[Any, ...]]) -> None:
    if not {tuple(map(type, entry)) for entry in block} <= _KINDS:
        raise ValueError("its rows are not numbers and names")


def check_layout(layout: Layout, checksums: np.ndarray, num_chunks: int, vectors: np.ndarray) -> None:
    """Check that a layout is what was written, each chunk with the checksum of its vector.

    Args:
        layout: N chunks.
        checksums: Shape (N,): what the table says.
        num_chunks: As many as there should be.
        vectors: Shape (M, D), float16: those of all rows.

    Raises:
        ValueError: Saying what is wrong.
    """
    if len(np.unique(layout.rows)) != len(layout):
        raise ValueError("its rows are not distinct numbers")
    if len(set(layout.ids)) != len(layout):
        raise ValueError("an id occurs twice")
    if len(layout) != num_chunks:
        raise ValueError(f"it should hold {num_chunks} chunks and has {len(layout)}")
    if len(layout) and not 0 <= layout.rows.min() <= layout.rows.max() < len(vectors):
        raise ValueError("a chunk has no vector")
    for start in range(0, len(layout), _BLOCK):
        block = slice(start, start + _BLOCK)
        parts = (layout.rows[block], *layout.keys[block].T, checksums[block])
        numbers = zip(*(part.tolist() for part in parts), strict=True)
        names = zip(layout.ids[block], layout.document_ids[block], strict=True)
        for (row, major, minor, checksum), (id_, document) in zip(numbers, names, strict=True):
            if chunk_checksum(row, (major, minor), id_, document, vectors[row]) != checksum:
                raise ValueError(f"the checksum of chunk {id_!r} does not match")

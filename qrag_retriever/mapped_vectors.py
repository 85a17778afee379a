"""Vectors of an index folder, mapped from their file."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from qrag_retriever.errors import IndexFolderError


class MappedVectors:
    """The vectors that a transaction has named: they are read from the file when they are looked at."""

    def __init__(self, path: Path, num_rows: int, dim: int) -> None:
        """Map a file.

        Args:
            path: Of the file; it may be longer.
            num_rows: Vectors to map.
            dim: Components of each, float16.

        Raises:
            IndexFolderError: If the file is missing or too short.
        """
        self._path = path
        self._needed = num_rows * dim * 2
        size = path.stat().st_size if path.is_file() else 0
        self._check(size)
        self._map: mmap.mmap | None = None
        self._array = np.empty((0, dim), np.float16)
        if self._needed:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), self._needed, access=mmap.ACCESS_READ)
            self._array = np.frombuffer(self._map, np.float16).reshape(num_rows, dim)

    def whole(self) -> np.ndarray:
        """Return the vectors, (num_rows, dim), float16, not copied.

        Raises:
            IndexFolderError: If the file was cut since it was mapped: reading behind its end would end the process.
        """
        if self._map is not None:
            self._check(self._map.size())
        return self._array

    def _check(self, size: int) -> None:
        if size < self._needed:
            raise IndexFolderError(
                f"{self._path.parent} is damaged: {self._path.name} has {size} bytes, {self._needed} are needed; it is "
                "missing or cut short; restore it or build the index again"
            )

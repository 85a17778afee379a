"""How additions and deletions make the next version of an index: in memory, or through its folder.

Both backings answer the same calls; the caller sees to it that one thread makes a change at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qrag_retriever.errors import IndexFolderError, UnknownIdError
from qrag_retriever.layout import Key, Layout
from qrag_retriever.mapped_vectors import MappedVectors
from qrag_retriever.records import Record
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.sources import FolderSource, MemorySource
from qrag_retriever.storage import IndexFolder
from qrag_retriever.transaction import FolderSettings
from qrag_retriever.view import Geometry, IndexView


class MemoryBacking:
    """An index that lives in memory."""

    def __init__(self, deleted: Sequence[str] = ()) -> None:
        """Remember the ids that were deleted before."""
        self._deleted = set(deleted)

    def deleted_ids(self) -> set[str]:
        """Return the ids that were ever deleted."""
        return set(self._deleted)

    def add(self, view: IndexView, records: Sequence[Record], vectors: np.ndarray) -> IndexView:
        """Add or update records; returns the version that has them."""
        replaced, keys = view.layout.place(records)
        return self._changed(view, replaced, records, keys, vectors)

    def delete(self, view: IndexView, ids: Sequence[str]) -> tuple[IndexView, list[str]]:
        """Delete records; returns the version without them, and the ids that were deleted now."""
        removed = known_chunks(view.layout, ids, self._deleted)
        gone = [view.layout.ids[chunk] for chunk in removed]
        successor = self._changed(view, removed, [], [], np.empty((0, view.geometry.dim), np.float32))
        self._deleted.update(gone)
        return successor, gone

    def _changed(
        self,
        view: IndexView,
        removed: Sequence[int],
        records: Sequence[Record],
        keys: Sequence[Key],
        vectors: np.ndarray,
    ) -> IndexView:
        source: Any = view.source
        layout, origin = view.layout.changed(removed, records, keys, np.empty(len(records), np.int64))
        everything = [*source.kept, *records]
        kept = tuple(everything[i] for i in origin)
        if np.array_equal(origin, np.arange(len(view) + len(records))):
            rows = source.rows.appended(vectors)
        else:
            rows = GrowingArray(np.concatenate([source.rows.array, vectors])[origin])
        successor = IndexView(view.geometry, layout, MemorySource(kept, rows))
        view.hand_over(successor, vectors, origin)
        return successor


class FolderBacking:
    """An index that is bound to a folder: a change is on disk before the new version is seen."""

    def __init__(self, folder: IndexFolder, settings: FolderSettings) -> None:
        """Bind to a folder as it was read."""
        self.folder = folder
        self.settings = settings

    @classmethod
    def open(cls, folder: IndexFolder) -> tuple[FolderBacking, Layout, FolderSource]:
        """Read a folder.

        Raises:
            IndexFolderError: If it is not an index or is damaged.
        """
        settings, layout, vectors = folder.read()
        source = FolderSource(folder, settings.generation, vectors, layout.rows)
        return cls(folder, settings), layout, source

    def reopened(self, geometry: Geometry) -> IndexView:
        """Take over what other processes have changed."""
        fresh, layout, source = self.open(self.folder)
        if fresh.settings.dim != geometry.dim or fresh.settings.mode != geometry.mode:
            raise IndexFolderError(f"{self.folder.path} was rebuilt as another kind of index; load it again")
        known, found = ((s.model or {}).get("fingerprint") for s in (self.settings, fresh.settings))
        if known != found:
            raise IndexFolderError(f"{self.folder.path} was rebuilt with another model; load it again")
        self.settings = fresh.settings
        return IndexView(geometry, layout, source)

    def deleted_ids(self) -> set[str]:
        """Return the ids that were ever deleted."""
        return self.folder.deleted_ids()

    def add(self, view: IndexView, records: Sequence[Record], vectors: np.ndarray) -> IndexView:
        """Add or update records; returns the version that has them."""
        with self.folder.writing() as transaction:
            view = self._caught_up(view, transaction.settings)
            replaced, keys = view.layout.place(records)
            transaction.invalidate(view.layout.rows[replaced])
            rows = transaction.add(records, keys, vectors)
            layout, origin = view.layout.changed(replaced, records, keys, rows)
            # Mapped before others can rewrite the folder.
            mapped = self.folder.map_vectors(transaction.settings)
        # The scan goes on with what is stored, not with what was rounded.
        stored = vectors.astype(np.float16).astype(np.float32)
        return self._adopted(view, transaction.settings, layout, mapped, stored, origin)

    def delete(self, view: IndexView, ids: Sequence[str]) -> tuple[IndexView, list[str]]:
        """Delete records; returns the version without them, and the ids that were deleted now."""
        with self.folder.writing() as transaction:
            view = self._caught_up(view, transaction.settings)
            absent = any(id_ not in view.layout.chunk_of for id_ in ids)
            removed = known_chunks(view.layout, ids, self.folder.deleted_ids() if absent else set())
            transaction.invalidate(view.layout.rows[removed])
            mapped = self.folder.map_vectors(transaction.settings)
        gone = [view.layout.ids[chunk] for chunk in removed]
        layout, origin = view.layout.changed(removed, [], [], np.empty(0, np.int64))
        nothing = np.empty((0, view.geometry.dim), np.float32)
        return self._adopted(view, transaction.settings, layout, mapped, nothing, origin), gone

    def _caught_up(self, view: IndexView, settings: FolderSettings) -> IndexView:
        """Take over other processes' changes before making one's own."""
        unchanged = (settings.version, settings.generation) == (self.settings.version, self.settings.generation)
        return view if unchanged else self.reopened(view.geometry)

    def _adopted(
        self,
        view: IndexView,
        settings: FolderSettings,
        layout: Layout,
        mapped: MappedVectors,
        vectors: np.ndarray,
        origin: np.ndarray,
    ) -> IndexView:
        """Make the version that a committed transaction has left."""
        self.settings = settings
        source = FolderSource(self.folder, settings.generation, mapped, layout.rows)
        successor = IndexView(view.geometry, layout, source)
        view.hand_over(successor, vectors, origin)
        return successor


def known_chunks(layout: Layout, ids: Sequence[str], deleted_before: set[str]) -> list[int]:
    """Return the chunk ids of ids; those deleted before are passed over.

    Raises:
        UnknownIdError: If an id is not, and never was, in the index.
    """
    unknown = [id_ for id_ in ids if id_ not in layout.chunk_of and id_ not in deleted_before]
    if unknown:
        raise UnknownIdError(f"unknown ids: {unknown[:5]} ({len(unknown)} in all); nothing was deleted")
    return [layout.chunk_of[id_] for id_ in ids if id_ in layout.chunk_of]

"""How additions and deletions make the next version of an index: in memory, or through where it is kept.

All backings answer the same calls; the caller sees to it that one thread makes a change at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from qrag_retriever.errors import IndexFolderError, UnknownIdError
from qrag_retriever.layout import Key, Layout
from qrag_retriever.mapped_vectors import MappedVectors
from qrag_retriever.records import DOCUMENT_KEY, Record, document_of
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.sources import FolderSource, MemorySource
from qrag_retriever.storage import IndexFolder
from qrag_retriever.transaction import FolderSettings
from qrag_retriever.view import Geometry, IndexView, Source

Choice = Callable[[Layout, Callable[[], set[str]]], list[int]]
"""Chooses the chunks to delete from a version's layout and from what returns the ids that were ever deleted: within
the change, so that nothing that others have added meanwhile is missed."""


class MemoryBacking:
    """An index that lives in memory."""

    location = "in memory"

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

    def delete(self, view: IndexView, choose: Choice) -> tuple[IndexView, list[str]]:
        """Delete records; returns the version without them, and the ids that were deleted now."""
        removed = choose(view.layout, self.deleted_ids)
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


class StoredSettings(Protocol):
    """What an index outside memory says of itself, as far as a backing needs it."""

    @property
    def dim(self) -> int:
        """Components of a vector."""

    @property
    def mode(self) -> str:
        """Either "document" or "corpus"."""

    @property
    def model(self) -> dict[str, Any] | None:
        """The model that built it."""

    @property
    def revision(self) -> tuple[int, ...]:
        """What changes with every change of the index."""


class Store(Protocol):
    """Where an index is kept outside memory."""

    def writing(self) -> AbstractContextManager[Any]:
        """Open the one write transaction: it has ``settings``, ``add`` and ``invalidate``."""

    def deleted_ids(self) -> set[str]:
        """Return the ids that were ever deleted."""


class StoredBacking(ABC):
    """An index that is bound to a store: a change is committed before the new version is seen."""

    error: type[ValueError]

    def __init__(self, store: Store, settings: Any) -> None:
        """Bind to a store as it was read."""
        self._store = store
        self.settings = settings

    @property
    @abstractmethod
    def location(self) -> str:
        """Where the index is kept, to be read after "an index"."""

    @abstractmethod
    def _read(self) -> tuple[StoredSettings, Layout, Source]:
        """Read what the store holds now."""

    @abstractmethod
    def _successor(
        self, view: IndexView, layout: Layout, pinned: Any, vectors: np.ndarray, origin: np.ndarray
    ) -> IndexView:
        """Make the version that a committed transaction has left; ``self.settings`` are its settings already."""

    def _pin(self, settings: Any) -> Any:
        """Take hold, within the transaction, of what the next version will read from."""
        return None

    def reopened(self, geometry: Geometry) -> IndexView:
        """Take over what other processes have changed."""
        self.settings, view = self._reread(geometry)
        return view

    def _reread(self, geometry: Geometry) -> tuple[Any, IndexView]:
        """Read what other processes have changed."""
        fresh, layout, source = self._read()
        if fresh.dim != geometry.dim or fresh.mode != geometry.mode:
            raise self.error(f"the index {self.location} was rebuilt as another kind of index; load it again")
        known, found = ((s.model or {}).get("fingerprint") for s in (self.settings, fresh))
        if known != found:
            raise self.error(f"the index {self.location} was rebuilt with another model; load it again")
        return fresh, IndexView(geometry, layout, source)

    def deleted_ids(self) -> set[str]:
        """Return the ids that were ever deleted."""
        return self._store.deleted_ids()

    def add(self, view: IndexView, records: Sequence[Record], vectors: np.ndarray) -> IndexView:
        """Add or update records; returns the version that has them."""
        with self._store.writing() as transaction:
            view = self._caught_up(view, transaction.settings)
            replaced, keys = view.layout.place(records)
            transaction.invalidate(view.layout.rows[replaced])
            rows = transaction.add(records, keys, vectors)
            layout, origin = view.layout.changed(replaced, records, keys, rows)
            pinned = self._pin(transaction.settings)
        self.settings = transaction.settings
        return self._successor(view, layout, pinned, vectors, origin)

    def delete(self, view: IndexView, choose: Choice) -> tuple[IndexView, list[str]]:
        """Delete records; returns the version without them, and the ids that were deleted now."""
        with self._store.writing() as transaction:
            view = self._caught_up(view, transaction.settings)
            removed = choose(view.layout, self.deleted_ids)
            transaction.invalidate(view.layout.rows[removed])
            pinned = self._pin(transaction.settings)
        self.settings = transaction.settings
        gone = [view.layout.ids[chunk] for chunk in removed]
        layout, origin = view.layout.changed(removed, [], [], np.empty(0, np.int64))
        nothing = np.empty((0, view.geometry.dim), np.float32)
        return self._successor(view, layout, pinned, nothing, origin), gone

    def _caught_up(self, view: IndexView, settings: StoredSettings) -> IndexView:
        """Return the version to change: with what other processes have changed.

        It is nobody's yet: should the change fail, the index stays at its version and ``self.settings`` at that one's.
        """
        return view if settings.revision == self.settings.revision else self._reread(view.geometry)[1]


class FolderBacking(StoredBacking):
    """An index that is bound to a folder."""

    error = IndexFolderError
    settings: FolderSettings

    def __init__(self, folder: IndexFolder, settings: FolderSettings) -> None:
        """Bind to a folder as it was read."""
        super().__init__(folder, settings)
        self.folder = folder

    @classmethod
    def open(cls, folder: IndexFolder) -> tuple[FolderBacking, Layout, FolderSource]:
        """Read a folder.

        Raises:
            IndexFolderError: If it is not an index or is damaged.
        """
        settings, layout, source = _read_folder(folder)
        return cls(folder, settings), layout, source

    @property
    def location(self) -> str:
        """Where the index is kept."""
        return f"at {str(self.folder.path)!r}"

    def _read(self) -> tuple[FolderSettings, Layout, FolderSource]:
        return _read_folder(self.folder)

    def _pin(self, settings: FolderSettings) -> MappedVectors:
        # Mapped before others can rewrite the folder.
        return self.folder.map_vectors(settings)

    def _successor(
        self, view: IndexView, layout: Layout, pinned: MappedVectors, vectors: np.ndarray, origin: np.ndarray
    ) -> IndexView:
        source = FolderSource(self.folder, self.settings.generation, pinned, layout.rows)
        successor = IndexView(view.geometry, layout, source)
        # The scan goes on with what is stored, not with what was rounded.
        view.hand_over(successor, vectors.astype(np.float16).astype(np.float32), origin)
        return successor


def _read_folder(folder: IndexFolder) -> tuple[FolderSettings, Layout, FolderSource]:
    settings, layout, vectors = folder.read()
    return settings, layout, FolderSource(folder, settings.generation, vectors, layout.rows)


def with_ids(ids: Sequence[str], is_strict: bool = True) -> Choice:
    """Choose chunks by their ids; those deleted before are passed over.

    Args:
        ids: The ids.
        is_strict: Whether one that is not, and never was, in the index is an `UnknownIdError`; else it is passed over.
    """

    def choose(layout: Layout, deleted_before: Callable[[], set[str]]) -> list[int]:
        found = {id_: layout.find(id_) for id_ in ids}
        absent = [id_ for id_ in ids if found[id_] is None] if is_strict else []
        known = deleted_before() if absent else set()
        if unknown := [id_ for id_ in absent if id_ not in known]:
            raise UnknownIdError(f"unknown ids: {unknown[:5]} ({len(unknown)} in all); nothing was deleted")
        return [chunk for id_ in ids if (chunk := found[id_]) is not None]

    return choose


def of_document(document_id: Any) -> Choice:
    """Choose a document's chunks; `UnknownIdError` if no chunk belongs to it."""

    def choose(layout: Layout, _deleted_before: Callable[[], set[str]]) -> list[int]:
        members = layout.chunks_of_document.get(document_of({DOCUMENT_KEY: document_id}) or "")
        if members is None:
            raise UnknownIdError(f"no chunk belongs to the document {document_id!r}")
        return [int(chunk) for chunk in members]

    return choose


def before_in_document(document_id: str, ids: Sequence[str], outdated: Sequence[str]) -> Choice:
    """Choose a document's chunks that stand before some of its chunks, and others that are outdated.

    Whoever adds to a document adds at its end. So of several that replace it at the same time the last one is left.

    Args:
        document_id: The document.
        ids: The chunks that are kept; if others have deleted them, nothing before them is chosen.
        outdated: Ids of chunks that are chosen wherever they are.
    """

    def choose(layout: Layout, _deleted_before: Callable[[], set[str]]) -> list[int]:
        kept = {chunk for id_ in ids if (chunk := layout.find(id_)) is not None}
        members = [int(chunk) for chunk in layout.chunks_of_document.get(document_id, ())]
        old = {chunk for id_ in outdated if (chunk := layout.find(id_)) is not None}
        before = {chunk for chunk in members if kept and chunk < max(kept)}
        return sorted((before | old) - kept)

    return choose


def all_of(*choices: Choice) -> Choice:
    """Choose what any of several choose, each chunk once."""

    def choose(layout: Layout, deleted_before: Callable[[], set[str]]) -> list[int]:
        return list(dict.fromkeys(chunk for one in choices for chunk in one(layout, deleted_before)))

    return choose

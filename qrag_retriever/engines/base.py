"""What a search engine has to do to carry an index."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from qrag_retriever.engines.places import keys_of, places_of
from qrag_retriever.errors import EngineError, StaleVersionError
from qrag_retriever.layout import Key, Layout
from qrag_retriever.record_json import check_metadata
from qrag_retriever.records import Record

FORMAT_VERSION = 1


class StepSearch(Protocol):
    """One hop: a batch of range-filtered inner-product queries."""

    def search(self, queries: np.ndarray, ranges: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best chunks of each query among the places of its range.

        Places that must not come back are no argument: ranges leave them out.

        Args:
            queries: Shape (Q, D), float32, already rotated.
            ranges: Shape (Q, 2), int64: half-open ranges [low, high) of places.
            k: Chunks to return for each query, at least 1.

        Returns:
            Places (Q, k), int64, and inner products (Q, k), float32, best first; rows padded with -1 and -inf where
            a range holds fewer than k chunks.
        """


@dataclass(frozen=True)
class EngineSettings:
    """What an index on an engine says of itself.

    Attributes:
        dim: Components of a vector.
        mode: "document" or "corpus".
        model: Configuration, fingerprint and source of the model that built it; None if there was none.
        version: Counts the changes, from the time when the index was made (microseconds): one that took the place of
            another is newer than all versions of that.
        oldest: The oldest version whose chunks are all still there: the newest that deleted or replaced any.
        format_version: Of the tables or collections.
    """

    dim: int
    mode: str
    model: dict[str, Any] | None = None
    version: int = 0
    oldest: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def revision(self) -> tuple[int]:
        """What changes with every change of the index."""
        return (self.version,)

    @classmethod
    def parsed(cls, values: dict[str, Any], where: str) -> EngineSettings:
        """Make settings of what an engine has kept.

        Raises:
            EngineError: If another release wrote them.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise EngineError(
                f"the index {where} has format {values.get('format_version')}, this release reads {FORMAT_VERSION}; "
                "upgrade, or build the index again"
            )
        return cls(**values)


class Change:
    """What a transaction does to an engine. Engines apply it when the block of the transaction ends."""

    def __init__(self, settings: EngineSettings) -> None:
        """Start from the settings as they are within the transaction."""
        self.settings = settings
        self.removed: list[int] = []
        self.records: list[Record] = []
        self.places = np.empty(0, np.int64)
        self.vectors = np.empty((0, settings.dim), np.float32)

    def invalidate(self, rows: np.ndarray) -> None:
        """Take out the chunks at these places."""
        self.removed.extend(int(row) for row in rows)

    def add(self, records: Sequence[Record], keys: Sequence[Key], vectors: np.ndarray) -> np.ndarray:
        """Put in records with their vectors (M, D); returns their places, (M,).

        Raises:
            TypeError: If metadata is not JSON; the message names the key.
        """
        check_metadata(records)
        self.records, self.places, self.vectors = list(records), places_of(keys), vectors
        return self.places

    def finish(self) -> None:
        """Count the version; the last step before the change is applied."""
        version = self.settings.version + 1
        self.settings = replace(
            self.settings, version=version, oldest=version if self.removed else self.settings.oldest
        )

    def deleted(self, removed_ids: Sequence[str]) -> list[str]:
        """Return which of the removed chunks' ids are gone for good, and not replaced."""
        added = {record.id for record in self.records}
        return [id_ for id_ in removed_ids if id_ not in added]


class Engine(StepSearch, Protocol):
    """Keeps records and vectors by place, and searches them. Safe for many threads."""

    @property
    def location(self) -> str:
        """Where the index is kept, to be read after "an index"."""

    def create(self, settings: EngineSettings) -> bool:
        """Make an empty index; tell whether it is this one, and not another process's of the same moment."""

    def read(self) -> tuple[EngineSettings, Layout] | None:
        """Read settings and layout; None if there is no index yet.

        Raises:
            EngineError: If what is there is not an index of a format that this release reads.
        """

    def writing(self) -> AbstractContextManager[Change]:
        """Open the one write transaction; applied at the end of the block, not at all if the block raises."""

    def deleted_ids(self) -> set[str]:
        """Return the ids that were ever deleted."""

    def oldest(self) -> int:
        """Return `EngineSettings.oldest` as it is now."""

    def records(self, places: np.ndarray) -> list[Record | None]:
        """Read records in the given order; None where there is none."""

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """Read vectors (M, D), float32, in the given order; rows of NaN where there is none."""


def check_version(engine: Engine, version: int) -> None:
    """Raise StaleVersionError if an engine no longer has all chunks of a version."""
    if engine.oldest() > version:
        raise StaleVersionError(
            f"chunks of this version of the index {engine.location} were deleted or replaced meanwhile; "
            "call refresh() and search again"
        )


def layout_of(places: Sequence[int], ids: Sequence[str], document_ids: Sequence[str | None]) -> Layout:
    """Lay out chunks by their places, given in any order."""
    rows = np.array(places, np.int64)
    order = np.argsort(rows)
    return Layout(
        rows[order], keys_of(rows[order]), tuple(ids[i] for i in order), tuple(document_ids[i] for i in order)
    )


def padded(found: Sequence[Sequence[tuple[int, float]]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay out what Q queries found, (place, score) each, as `StepSearch.search` returns it."""
    places = np.full((len(found), k), -1, np.int64)
    scores = np.full((len(found), k), -np.inf, np.float32)
    for row, hits in enumerate(found):
        if hits:
            places[row, : len(hits)], scores[row, : len(hits)] = zip(*hits, strict=True)
    return places, scores

"""A vector store behind its framework's interface, as an index on it needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

PLACE_KEY = "qrag_place"
"""Metadata key of a chunk's place."""
RangeFilter = Callable[[str, int, int], Any]
"""Makes a store's filter from (key, low, high): admit what has low <= metadata[key] < high."""
Hit = tuple[int, float, Sequence[float] | None]
"""Place, score as the store has it, and the stored vector if the store gives it back."""


class StoreSide(Protocol):
    """What is asked of a store."""

    def add(self, ids: Sequence[str], texts: Sequence[str], places: Sequence[int], vectors: np.ndarray) -> None:
        """Store vectors with their places as metadata."""

    def remove(self, ids: Sequence[str]) -> None:
        """Delete by id."""

    def query(self, vector: np.ndarray, low: int, high: int, k: int) -> list[Hit]:
        """Return the k nearest with low <= place < high, best first."""

    def range_filters(self) -> Sequence[RangeFilter | None]:
        """Return the ways to write a range filter that shall be tried."""

    def use_range_filter(self, range_filter: RangeFilter | None) -> None:
        """Choose one of them."""

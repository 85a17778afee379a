"""SearchTrace: what a search leaves behind, so that its hops can be looked at afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from qrag_retriever.view import IndexView

# Q-values of all chunks in some states that are held at one time: 128 MiB of float32.
_VALUES_AT_ONCE = 2**25


class Segment(NamedTuple):
    """Chunks between two earlier picks; their positions share a stretch of the position scale.

    Attributes:
        first: The first place of the segment.
        stop: The place behind its last one.
        first_position: Position of its first chunk, in position units.
        last_position: Position of its last chunk.
    """

    first: int
    stop: int
    first_position: int
    last_position: int


@dataclass(frozen=True)
class Hop:
    """One state of the search and the Q-values that all chunks have in it.

    A *place* is a chunk's rank among the chunks that were searched: its chunk id, unless a filter on one document left
    only that document.

    Attributes:
        q_values: Shape (N,), float32, by place.
        available: Shape (N,), bool: neither picked before nor ruled out by a filter.
        earlier: Places of the earlier picks, in the order of picking.
        pick: Place of this hop's pick; None in the state in which the search stopped.
        segments: What the earlier picks cut the document into; empty without relative positions.
    """

    q_values: np.ndarray
    available: np.ndarray
    earlier: tuple[int, ...]
    pick: int | None
    segments: tuple[Segment, ...]

    def best(self, count: int) -> list[int]:
        """Return the places of the best available chunks, best first, the pick included."""
        values = np.where(self.available, self.q_values, -np.inf)
        count = min(count, int(np.count_nonzero(self.available)))
        candidates = np.argpartition(-values, count - 1)[:count] if count else np.empty(0, np.int64)
        return [int(place) for place in candidates[np.lexsort((candidates, -values[candidates]))]]

    @property
    def runner_up(self) -> int | None:
        """The place of the best available chunk that was not picked."""
        return next((place for place in self.best(2) if place != self.pick), None)


@dataclass(frozen=True, eq=False)
class SearchTrace:
    """The version of the index that was searched and the states of the hops: enough to compute every Q-value again.

    Nothing of the index is copied, but its chunks stay in memory (or its files open) as long as the trace lives.

    Attributes:
        view: What was searched, after filters.
        mask: Shape (N,), bool: False where a filter ruled a chunk out; None allows all.
        picked: Places of the picks, in the order of picking.
        states: State embeddings (D,) of the hops; one more than picks if the search stopped in a state that it had
            embedded already.
        min_q: The Q-value that a pick had to exceed; None if there was none.
    """

    view: IndexView
    mask: np.ndarray | None
    picked: tuple[int, ...]
    states: tuple[np.ndarray, ...]
    min_q: float | None

    def __len__(self) -> int:
        """Count the states that can be shown."""
        return len(self.states)

    @property
    def num_chunks(self) -> int:
        """Chunks that were searched, ruled out ones included."""
        return len(self.view)

    @property
    def num_ruled_out(self) -> int:
        """Chunks that a filter ruled out."""
        return 0 if self.mask is None else int(np.count_nonzero(~self.mask))

    @property
    def in_document_order(self) -> bool:
        """Whether a chunk's neighbours are its context."""
        return self.view.geometry.mode == "document"

    @property
    def has_positions(self) -> bool:
        """Whether a chunk's position counts."""
        return self.view.geometry.placed != "none"

    @property
    def first_chunk_id(self) -> int | None:
        """The chunk id at place 0, if all others follow without a gap."""
        ids = self.chunk_ids([0, self.num_chunks - 1]) if self.num_chunks else [0, -1]
        return ids[0] if ids[1] - ids[0] == self.num_chunks - 1 else None

    def chunk_ids(self, places: Sequence[int]) -> list[int]:
        """Translate places to chunk ids of the whole index."""
        return [int(chunk) for chunk in self.view.global_ids(np.asarray(places, np.int64))]

    def hop(self, number: int) -> Hop:
        """Compute the Q-values of all chunks in one state.

        Reads every vector of the searched chunks once, in blocks; the result takes five bytes a chunk.

        Args:
            number: From 0, below ``len(self)``.
        """
        earlier = self.picked[:number]
        return self._hop(number, earlier, self.view.q_values(self.states[number], earlier))

    def hops(self) -> Iterator[Hop]:
        """Compute the Q-values of all chunks in every state, in the order of the hops.

        Reads every vector of the searched chunks once, in blocks, for all hops whose Q-values together are at most
        2^25: thirty over a million chunks.
        """
        at_once = max(1, _VALUES_AT_ONCE // max(self.num_chunks, 1))
        for first in range(0, len(self), at_once):
            numbers = range(first, min(first + at_once, len(self)))
            earlier = [self.picked[:number] for number in numbers]
            values = self.view.many_q_values([self.states[number] for number in numbers], earlier)
            for number, picks, row in zip(numbers, earlier, values, strict=True):
                yield self._hop(number, picks, row)

    def _hop(self, number: int, earlier: tuple[int, ...], q_values: np.ndarray) -> Hop:
        available = np.ones(self.num_chunks, np.bool_) if self.mask is None else self.mask.copy()
        available[list(earlier)] = False
        return Hop(
            q_values=q_values,
            available=available,
            earlier=earlier,
            pick=self.picked[number] if number < len(self.picked) else None,
            segments=self._segments(earlier),
        )

    def surroundings(self, place: int, reach: int) -> range:
        """Return the places around a place, itself included, as far as its document goes."""
        low, high = max(0, place - reach), min(self.num_chunks, place + reach + 1)
        documents = [self.view.layout.document_ids[chunk] for chunk in self.chunk_ids(range(low, high))]
        own = documents[place - low]
        first, stop = place, place + 1
        while first > low and documents[first - 1 - low] == own:
            first -= 1
        while stop < high and documents[stop - low] == own:
            stop += 1
        return range(first, stop)

    def _segments(self, earlier: Sequence[int]) -> tuple[Segment, ...]:
        if self.view.geometry.placed != "relative" or not self.num_chunks:
            return ()
        cuts = sorted({0, *earlier, self.num_chunks})
        runs = self.view.positions(earlier)
        return tuple(
            Segment(first, stop, runs.position_of(first), runs.position_of(stop - 1)) for first, stop in pairwise(cuts)
        )

"""What the templates show: each hop in plain values, taken from the steps and, where there is one, the trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrag_retriever.errors import EngineError, IndexFolderError, StaleVersionError
from qrag_retriever.hops.map_data import Packing, hop_of_map, map_of
from qrag_retriever.hops.strips import Strip, strip_of
from qrag_retriever.hops.wording import clipped, stop_sentence
from qrag_retriever.records import Record
from qrag_retriever.steps import Step, StopReason
from qrag_retriever.trace import Hop, SearchTrace, Segment

_REACH = 2
_CANDIDATES = 5
_MOST_OF_A_TEXT = 20_000
_MOST_OF_A_NEIGHBOUR = 600
_MOST_OF_METADATA = 400


@dataclass(frozen=True)
class Passage:
    """A chunk among its neighbours.

    Attributes:
        chunk_id: Its chunk id.
        text: Of the chunk, perhaps cut.
        left_out: Characters that were cut off.
        picked_at: The hop that picked it, from 1; None for a mere neighbour.
    """

    chunk_id: int
    text: str
    left_out: int
    picked_at: int | None


@dataclass(frozen=True)
class Candidate:
    """One of the best chunks of a hop."""

    chunk_id: int
    id: str
    q_value: float
    text: str
    is_pick: bool


@dataclass(frozen=True)
class HopView:
    """One hop, or the state in which the search stopped (then ``step`` is None).

    Attributes:
        number: From 1.
        step: What was picked.
        passages: The pick among its neighbours.
        metadata: Keys and values as text.
        strip: Its Q-values as a picture.
        candidates: The best chunks, best first.
        runner_up: The best chunk that was not picked.
        margin: By how much the pick was better than it.
        segments: First chunk, last chunk, first and last position of each segment.
        spread: Lowest, median and highest Q-value of the chunks that could be picked.
        num_available: How many those were.
    """

    number: int
    step: Step | None
    passages: list[Passage]
    metadata: list[tuple[str, str]]
    strip: Strip | None = None
    candidates: Sequence[Candidate] = ()
    runner_up: Candidate | None = None
    margin: float | None = None
    segments: Sequence[tuple[int, int, int, int]] = ()
    spread: tuple[float, float, float] | None = None
    num_available: int = 0


@dataclass(frozen=True)
class SearchView:
    """A whole search.

    Attributes:
        query: The question.
        hops: Those that picked something.
        stopped: The state in which it stopped, if that was looked at.
        why_it_stopped: A sentence.
        trace: What it left behind; None if that is unknown.
        map: What the map is drawn from; None without a trace, or without any state.
    """

    query: str
    hops: list[HopView]
    stopped: HopView | None
    why_it_stopped: str
    trace: SearchTrace | None
    map: dict[str, Any] | None

    @property
    def states(self) -> list[HopView]:
        """All states that can be shown."""
        return [*self.hops, *([] if self.stopped is None else [self.stopped])]


def view_of(
    query: str, steps: Sequence[Step], reason: StopReason, trace: SearchTrace | None, with_map: bool = True
) -> SearchView:
    """Collect what the templates show; without a trace, or where its vectors cannot be read, that is less.

    ``with_map`` packs the Q-values of every chunk for a map.
    """
    try:
        return _view_of(query, steps, reason, trace, with_map)
    except (EngineError, StaleVersionError):  # a store that gives no vectors back, or has only newer ones
        return _view_of(query, steps, reason, None, with_map)


def _view_of(
    query: str, steps: Sequence[Step], reason: StopReason, trace: SearchTrace | None, with_map: bool
) -> SearchView:
    if trace is None:
        hops = [_untraced(number, step) for number, step in enumerate(steps, start=1)]
        return SearchView(query, hops, None, stop_sentence(reason, len(steps), None, None), None, None)
    packing = Packing(trace.num_chunks, len(trace))
    views: list[HopView] = []
    layers: list[dict[str, Any]] = []
    for number, hop in enumerate(trace.hops()):
        step = steps[number] if number < len(steps) else None
        views.append(_traced(number + 1, step, hop, trace))
        if with_map:
            layers.append(hop_of_map(hop, step, trace.chunk_ids(hop.earlier), trace.min_q, packing))
    stopped = views.pop() if len(views) > len(steps) else None
    best_left = None if stopped is None or stopped.runner_up is None else stopped.runner_up.q_value
    sentence = stop_sentence(reason, len(steps), trace.min_q, best_left)
    return SearchView(query, views, stopped, sentence, trace, map_of(trace, layers, packing) if layers else None)


def _untraced(number: int, step: Step) -> HopView:
    return HopView(number, step, [_passage(step.chunk_id, step.text, number)], _shown_metadata(step.metadata))


def _traced(number: int, step: Step | None, hop: Hop, trace: SearchTrace) -> HopView:
    candidates = _candidates(hop, trace)
    runner_up = next((candidate for candidate in candidates if not candidate.is_pick), None)
    values = hop.q_values[hop.available]
    return HopView(
        number=number,
        step=step,
        passages=[] if step is None else _passages(number, step, hop, trace),
        metadata=[] if step is None else _shown_metadata(step.metadata),
        strip=strip_of(hop, step, trace.min_q),
        candidates=candidates,
        runner_up=runner_up,
        margin=None if step is None or runner_up is None else step.q_value - runner_up.q_value,
        segments=[_named(part, trace) for part in hop.segments],
        spread=(float(values.min()), float(np.median(values)), float(values.max())) if len(values) else None,
        num_available=len(values),
    )


def _named(part: Segment, trace: SearchTrace) -> tuple[int, int, int, int]:
    first, last = trace.chunk_ids([part.first, part.stop - 1])
    return first, last, part.first_position, part.last_position


def _candidates(hop: Hop, trace: SearchTrace) -> list[Candidate]:
    places = hop.best(_CANDIDATES)
    if hop.pick is not None and hop.pick not in places:
        places.append(hop.pick)  # a beam or a sample may take a chunk that is not among the best
    chunk_ids = trace.chunk_ids(places)
    ids = [trace.view.layout.ids[chunk] for chunk in chunk_ids]
    texts = [record.text for record in _readable(trace, places)] or [""] * len(places)
    return [
        Candidate(chunk, id_, float(hop.q_values[place]), clipped(text, 110), place == hop.pick)
        for place, chunk, id_, text in zip(places, chunk_ids, ids, texts, strict=True)
    ]


def _readable(trace: SearchTrace, places: Sequence[int]) -> list[Record]:
    """Read records; none if the folder was rewritten since the search, which leaves only the vectors."""
    try:
        return trace.view.records(places)
    except IndexFolderError:
        return []


def _passages(number: int, step: Step, hop: Hop, trace: SearchTrace) -> list[Passage]:
    own = _passage(step.chunk_id, step.text, number)
    if not trace.in_document_order or hop.pick is None:
        return [own]
    places = trace.surroundings(hop.pick, _REACH)
    records = _readable(trace, places)
    if not records:
        return [own]
    hop_of = {place: hop_number for hop_number, place in enumerate(trace.picked, start=1)}
    return [
        own if place == hop.pick else _passage(chunk, record.text, hop_of.get(place), _MOST_OF_A_NEIGHBOUR)
        for place, chunk, record in zip(places, trace.chunk_ids(places), records, strict=True)
    ]


def _passage(chunk_id: int, text: str, picked_at: int | None, most: int = _MOST_OF_A_TEXT) -> Passage:
    return Passage(chunk_id, text[:most], max(0, len(text) - most), picked_at)


def _shown_metadata(metadata: Mapping[Any, Any]) -> list[tuple[str, str]]:
    return [(clipped(str(key), 80), clipped(str(value), _MOST_OF_METADATA)) for key, value in metadata.items()]

"""MultiStepSelector: the loop over an index that picks one chunk after the other."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from typing import Literal

import numpy as np

from qrag_retriever.checks import check_at_least_one, check_list, check_number, check_query
from qrag_retriever.errors import IndexFolderError, StaleVersionError
from qrag_retriever.filters import Filters, filters_key
from qrag_retriever.index import ChunkIndex
from qrag_retriever.paths import Path, RankBy, Search, heard
from qrag_retriever.records import Record
from qrag_retriever.selection import Selection, traced
from qrag_retriever.state import RetrievalState
from qrag_retriever.steps import HopListener, Step, StopReason
from qrag_retriever.streams import HopStream, not_shown
from qrag_retriever.trace import SearchTrace
from qrag_retriever.view import IndexView

Found = tuple[Selection, tuple[Record, ...]]


class MultiStepSelector:
    """Picks chunks one by one: embed the state, take what has the best Q-value, repeat.

    Greedy by default; ``beam_width`` above 1 keeps several sequences of picks and returns the best; ``temperature``
    samples. Safe to use from many threads, except while sampling with one seed.

    Source: Q-RAG (arXiv 2511.07328), Section 3 (greedy), Plan Q-RAG (beam search).
    """

    def __init__(
        self,
        index: ChunkIndex,
        k: int = 4,
        min_q: float | Literal["auto"] | None = None,
        beam_width: int = 1,
        temperature: float | None = None,
        sample_top_k: int = 5,
        seed: int | None = None,
        rank_by: RankBy = "max",
        filters: Filters | None = None,
    ) -> None:
        """Set up a selector.

        Args:
            index: Where to search.
            k: Most chunks to pick, which is also the number of hops.
            min_q: Stop when the best Q-value is not above this, also before the first pick; "auto" takes the model's
                calibrated value for the index's mode; None never stops early.
            beam_width: Sequences of picks to keep at every hop.
            temperature: Sample from softmax(Q / temperature) over the best chunks; None picks the best.
            sample_top_k: Chunks to sample from.
            seed: Of the sampling.
            rank_by: How beams are ranked: by the highest Q-value reached, the last one, or the mean; then by their sum.
            filters: See `qrag_retriever.filters`.

        Raises:
            ValueError: If a number is out of range, or "auto" is asked of a model without a calibrated value.
        """
        check_at_least_one(k=k, beam_width=beam_width, sample_top_k=sample_top_k)
        if temperature is not None:
            check_number(temperature, "temperature", " or None")
            if temperature <= 0 or beam_width > 1:
                raise ValueError(
                    f"sampling needs a positive temperature and beam_width 1, got {temperature}, {beam_width}"
                )
        if rank_by not in ("max", "last", "mean"):
            raise ValueError(f"expected rank_by 'max', 'last' or 'mean', got {rank_by!r}")
        self.index = index
        self.k = k
        self.min_q = _resolved_min_q(min_q, index)
        self.beam_width = beam_width
        self.temperature = temperature
        self.sample_top_k = sample_top_k
        self.rank_by: RankBy = rank_by
        self.filters = filters
        self._random = np.random.default_rng(seed)

    def select(self, query: str, first_state: np.ndarray | None = None) -> Selection:
        """Search for one query.

        Args:
            query: The question, not empty.
            first_state: Shape (D,): used in place of the first hop's state embedding (a hypothetical document's, say).

        Raises:
            ValueError: If the query is empty or ``first_state`` has another dimension.
            TypeError: If the query is not a string.
        """
        return self.select_many([query], [first_state])[0]

    def select_iter(self, query: str, first_state: np.ndarray | None = None) -> HopStream:
        """Search for one query hop by hop: do as `select`, and show each step as soon as it is picked.

        With ``beam_width`` above 1 all steps come at the end, since only then it is known which sequence is the best.

        Args:
            query: As in `select`.
            first_state: As in `select`.

        Raises:
            ValueError: As `select`, and at once.
            TypeError: As `select`, and at once.
        """
        check_query(query)
        return HopStream(self._streamed(query, self._checked_first_state(first_state)))

    def select_records(
        self, query: str, first_state: np.ndarray | None = None, listener: HopListener | None = None
    ) -> Found:
        """Search for one query; also return the records of its steps, as the version that was searched has them."""
        return self.select_many_records([query], [first_state], [listener])[0]

    def select_together(
        self,
        query: str,
        first_state: np.ndarray | None = None,
        wait: float = 0.005,
        listener: HopListener | None = None,
    ) -> Found:
        """Do as `select_records`, in one batch with the searches of other threads over this index.

        Only searches with the same settings come together, and those with a callable as filter go alone: it may look at
        what belongs to its caller. Picks the same chunks as alone in float32 where Q-values differ by more than 1e-5.

        Args:
            query: The question, not empty.
            first_state: As in `select`.
            wait: Seconds that the first search of a batch waits for others, at most.
            listener: Who hears of the hops.
        """
        # A wrong query must not fail the others'.
        check_query(query)
        item = query, self._checked_first_state(first_state), listener
        filters = filters_key(self.filters)
        if self.filters is not None and filters is None:
            return self.select_records(*item)
        # Sampling goes on with a stream of its own.
        own = id(self) if self.temperature is not None else None
        kind = (self.k, self.min_q, self.beam_width, self.rank_by, filters, own)
        found: Found = self.index.batcher.run(
            kind, lambda items: self.select_many_outcomes(*zip(*items, strict=True)), item, wait
        )
        return found

    def select_many(
        self, queries: Sequence[str], first_states: Sequence[np.ndarray | None] | None = None
    ) -> list[Selection]:
        """Search for many queries: at each hop their states are embedded in one batch.

        Picks the same chunks as `select` one by one in float32 where Q-values differ by more than 1e-5.
        """
        check_list(queries, "queries")
        given = [None] * len(queries) if first_states is None else first_states
        found = self.select_many_records(queries, given)
        return [selection for selection, _ in found]

    def select_many_records(
        self,
        queries: Sequence[str],
        first_states: Sequence[np.ndarray | None],
        listeners: Sequence[HopListener | None] | None = None,
    ) -> list[Found]:
        """Do as `select_many`, and also return the records of the steps; ``listeners`` hear of each query's hops."""
        return [_raised(found) for found in self.select_many_outcomes(queries, first_states, listeners)]

    def select_many_outcomes(
        self,
        queries: Sequence[str],
        first_states: Sequence[np.ndarray | None],
        listeners: Sequence[HopListener | None] | None = None,
    ) -> list[Found | Exception]:
        """Do as `select_many_records`; what a listener raises ends its own search, and stands in place of its steps."""
        for query in queries:
            check_query(query)
        given = [self._checked_first_state(state) for state in first_states]
        rounds = self._rounds(queries, given, listeners or [None] * len(queries))
        while True:
            try:
                next(rounds)
            except StopIteration as end:
                found: list[Found | Exception] = end.value
                return found

    def _streamed(self, query: str, first_state: np.ndarray | None) -> Generator[Step, None, Selection]:
        """Search for one query; yield the steps and return the selection."""
        shown: list[Step] = []
        rounds = self._rounds([query], [first_state], [None])
        while True:
            try:
                [search] = next(rounds)
            except StopIteration as end:
                found: list[Found | Exception] = end.value
                break
            if self.beam_width == 1 and search.paths:
                yield from not_shown(search.paths[0].steps, shown)
        selection, _ = _raised(found[0])
        yield from not_shown(selection.steps, shown, is_end=True)
        return selection

    def _rounds(
        self,
        queries: Sequence[str],
        first_states: Sequence[np.ndarray | None],
        listeners: Sequence[HopListener | None],
    ) -> Generator[list[Search], None, list[Found | Exception]]:
        """Search hop by hop: yield all searches after each hop, and return what they have found.

        Starts anew, from the first hop, where the version that is searched is no longer there.
        """
        while True:
            searches = [
                Search(state, [Path(RetrievalState(query))], listener=listener)
                for query, state, listener in zip(queries, first_states, listeners, strict=True)
            ]
            version = self.index.view
            try:
                view, mask = yield from self._hops(searches, version)
            except IndexFolderError:
                # This index's own save has rewritten the folder meanwhile: once more, on the version it has left.
                if self.index.settled_view() is version:
                    raise
            except StaleVersionError:
                # Others have deleted or replaced chunks on the engine: once more, on what there is now.
                if self.index.settled_view() is version:
                    self.index.refresh()
            else:
                return [self._outcome(search, view, mask) for search in searches]

    def _hops(
        self, searches: list[Search], version: IndexView
    ) -> Generator[list[Search], None, tuple[IndexView, np.ndarray | None]]:
        """Search one version; yield after each hop, and return the part of it that was searched, and the mask."""
        view, mask = version.restricted(self.filters)
        available = len(view) if mask is None else int(mask.sum())
        for hop in range(self.k):
            self._stop_all_if(hop >= available, searches, "exhausted")
            if not any(search.paths for search in searches):
                break
            with heard(searches, hop + 1):
                self._hop(searches, view, mask)
            yield searches
        self._stop_all_if(True, searches, "k")
        return view, mask

    def _hop(self, searches: Sequence[Search], view: IndexView, mask: np.ndarray | None) -> None:
        paths = [path for search in searches for path in search.paths]
        states = self._embed(searches, view)
        width = self.sample_top_k if self.temperature is not None else self.beam_width
        chunk_ids, values = view.top_k(states, [path.state.picked for path in paths], width, mask)
        row = 0
        for search in searches:
            candidates: list[tuple[tuple[float, float], int, int, float]] = []  # rank and sum, row, chunk, Q-value
            for path in search.paths:
                found = [(int(c), float(q)) for c, q in zip(chunk_ids[row], values[row], strict=True) if c >= 0]
                worthy = [pair for pair in found if self.min_q is None or pair[1] > self.min_q]
                if not worthy:
                    search.finished.append(path.stopped("min_q" if found else "exhausted", states[row].copy()))
                elif self.temperature is not None:
                    candidates.append(((0.0, 0.0), row, *self._sampled(worthy, self.temperature)))
                else:
                    candidates.extend((path.rank_with(q, self.rank_by), row, chunk, q) for chunk, q in worthy)
                row += 1
            search.paths = self._best(candidates, paths, states, view)

    def _best(
        self,
        candidates: list[tuple[tuple[float, float], int, int, float]],
        paths: Sequence[Path],
        states: np.ndarray,
        view: IndexView,
    ) -> list[Path]:
        """Keep the best continuations; two orders of one set of chunks are one state."""
        chosen: list[tuple[int, int, float]] = []
        seen: set[frozenset[int]] = set()
        best_first = sorted(candidates, key=lambda candidate: (*(-value for value in candidate[0]), *candidate[1:3]))
        for _, row, chunk, q_value in best_first:
            picks = frozenset((*paths[row].state.picked, chunk))
            if picks not in seen and len(chosen) < self.beam_width:
                seen.add(picks)
                chosen.append((row, chunk, q_value))
        records = view.records([chunk for _, chunk, _ in chosen])
        return [
            self._extended(paths[row], chunk, q_value, record, states[row], view)
            for (row, chunk, q_value), record in zip(chosen, records, strict=True)
        ]

    def _extended(
        self, path: Path, chunk: int, q_value: float, record: Record, state: np.ndarray, view: IndexView
    ) -> Path:
        step = Step(
            chunk_id=int(view.global_ids(np.array([chunk]))[0]),
            id=record.id,
            text=record.text,
            metadata=copy.deepcopy(record.metadata),
            q_value=q_value,
            position=view.positions(path.state.picked).position_of(chunk),
            position_gain=view.gain(state, chunk, q_value),
        )
        return Path(
            state=path.state.append(chunk, record.text),
            steps=(*path.steps, step),
            records=(*path.records, record),
            embeddings=(*path.embeddings, state.copy()),
        )

    def _embed(self, searches: Sequence[Search], view: IndexView) -> np.ndarray:
        """Embed the states of all open paths, (P, D); a given first state replaces its query's first."""
        model = self.index.model
        order = model.config.order_in(view.geometry.mode)
        states = np.empty((sum(len(search.paths) for search in searches), self.index.dim), np.float32)
        rows, inputs, row = [], [], 0
        for search in searches:
            for path in search.paths:
                if search.first_state is not None and not path.steps:
                    states[row] = search.first_state
                else:
                    rows.append(row)
                    inputs.append(path.state.render(order))
                row += 1
        if inputs:
            states[rows] = model.encode_states(inputs, show_progress=False)
            if not np.isfinite(states).all():
                raise ValueError("the model's state embeddings have NaN or infinite values; try dtype='float32'")
        return states

    def _sampled(self, found: Sequence[tuple[int, float]], temperature: float) -> tuple[int, float]:
        logits = np.array([q_value for _, q_value in found]) / temperature
        weights = np.exp(logits - logits.max())
        return found[self._random.choice(len(found), p=weights / weights.sum())]

    def _stop_all_if(self, condition: bool, searches: Sequence[Search], reason: StopReason) -> None:
        if condition:
            for search in searches:
                search.finished.extend(path.stopped(reason) for path in search.paths)
                search.paths = []

    def _outcome(self, search: Search, view: IndexView, mask: np.ndarray | None) -> Found | Exception:
        if search.error is not None:
            return search.error
        path = search.best(self.rank_by)
        return self._selection(path, view, mask), path.records

    def _selection(self, path: Path, view: IndexView, mask: np.ndarray | None) -> Selection:
        selection = Selection(path.state.query, path.steps, path.stop_reason)
        return traced(selection, SearchTrace(view, mask, path.state.picked, path.embeddings, self.min_q))

    def _checked_first_state(self, state: np.ndarray | None) -> np.ndarray | None:
        if state is None:
            return None
        state = np.asarray(state, np.float32)
        if state.shape != (self.index.dim,):
            raise ValueError(
                f"expected a state embedding of shape ({self.index.dim},), got {state.shape}; if another retriever has "
                "left it in a QueryBundle, give this one a bundle of its own"
            )
        if not np.isfinite(state).all():
            raise ValueError("the given state embedding has NaN or infinite values")
        return state


def _raised(found: Found | Exception) -> Found:
    if isinstance(found, Exception):
        raise found
    return found


def _resolved_min_q(min_q: float | str | None, index: ChunkIndex) -> float | None:
    if min_q is None:
        return None
    if isinstance(min_q, str):
        if min_q != "auto":
            raise ValueError(f"expected min_q as a number, 'auto' or None, got {min_q!r}")
        calibrated = None if index.config is None else index.config.min_q.get(index.mode)
        if calibrated is None:
            raise ValueError(f"the model has no calibrated min_q for {index.mode} mode; give a number or None")
        return calibrated
    check_number(min_q, "min_q", ", 'auto' or None")
    return float(min_q)

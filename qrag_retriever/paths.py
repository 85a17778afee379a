"""The sequences of picks that a search follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from qrag_retriever.records import Record
from qrag_retriever.state import RetrievalState
from qrag_retriever.steps import HopListener, Step, StopReason

RankBy = Literal["max", "last", "mean"]


@dataclass(frozen=True)
class Path:
    """One sequence of picks for one query: a beam, or the only path of a greedy search.

    Attributes:
        state: The query and what was picked.
        steps: The picks.
        records: Of the picks.
        embeddings: Of the states, (D,) each, as far as they were embedded.
        stop_reason: Why it ended, if it has.
    """

    state: RetrievalState
    steps: tuple[Step, ...] = ()
    records: tuple[Record, ...] = ()
    embeddings: tuple[np.ndarray, ...] = ()
    stop_reason: StopReason = "k"

    def rank(self, rank_by: RankBy) -> float:
        """Return the value by which paths are compared; higher is better."""
        values = [step.q_value for step in self.steps]
        if not values:
            return -np.inf
        if rank_by == "last":
            return values[-1]
        return max(values) if rank_by == "max" else float(np.mean(values))

    @property
    def total(self) -> float:
        """The sum of Q-values, by which paths of equal rank are told apart: after the highest they mostly fall."""
        return float(sum(step.q_value for step in self.steps))

    def rank_with(self, q_value: float, rank_by: RankBy) -> tuple[float, float]:
        """Return rank and sum of this path continued by a chunk of this Q-value."""
        total = self.total + q_value
        if rank_by == "last" or not self.steps:
            return q_value, total
        if rank_by == "max":
            return max(q_value, self.rank("max")), total
        return total / (len(self.steps) + 1), total

    def stopped(self, reason: StopReason, *embeddings: np.ndarray) -> Path:
        """Return this path, ended."""
        return replace(self, stop_reason=reason, embeddings=(*self.embeddings, *embeddings))


@dataclass
class Search:
    """The paths of one query.

    Attributes:
        first_state: Shape (D,): given in place of the first hop's state embedding.
        paths: Those that go on, the best first.
        finished: Those that have ended.
        listener: Who hears of the hops.
        error: What the listener raised, which has ended this search, and no other of its batch.
    """

    first_state: np.ndarray | None
    paths: list[Path]
    finished: list[Path] = field(default_factory=list)
    listener: HopListener | None = None
    error: Exception | None = None

    @contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """End this search with what is raised within."""
        try:
            yield
        except Exception as error:
            self.error, self.paths = error, []

    def best(self, rank_by: RankBy) -> Path:
        """Return the best path that has ended."""
        return max(self.finished, key=lambda path: (path.rank(rank_by), path.total))


@contextmanager
def heard(searches: Sequence[Search], hop: int) -> Iterator[None]:
    """Tell the listeners of all open searches that a hop begins, and how it ends."""
    listening = [(search, search.listener) for search in searches if search.listener is not None and search.paths]
    for search, listener in listening:
        with search.ended_by_errors():
            listener.started(hop)
    listening = [(search, listener) for search, listener in listening if search.error is None]
    try:
        yield
    except BaseException as error:
        for _, listener in listening:
            listener.failed(hop, error)
        raise
    for search, listener in listening:
        kept = [path.steps for path in search.paths]
        with search.ended_by_errors():
            listener.ended(hop, kept, None if kept else search.finished[-1].stop_reason)

"""The state of a retrieval: the query and the chunks picked so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

StateOrder = Literal["document", "retrieved"]
StateInput = tuple[str, Sequence[str]]
"""What a state encoder embeds: the query and the picked chunks' texts, in order."""


@dataclass(frozen=True, slots=True)
class RetrievalState:
    """A query and the chunks picked for it so far.

    Attributes:
        query: The question.
        picked: Chunk ids in the order of picking.
        texts: The picked chunks' texts, in the same order.

    Source: Q-RAG (arXiv 2511.07328), Section 3, the decision process.
    """

    query: str
    picked: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    def append(self, chunk_id: int, text: str) -> RetrievalState:
        """Return the state after picking one more chunk: the transition of the decision process.

        Raises:
            ValueError: If the chunk has been picked already.
        """
        if chunk_id in self.picked:
            raise ValueError(f"chunk {chunk_id} has been picked already; picks so far: {list(self.picked)}")
        return RetrievalState(self.query, (*self.picked, chunk_id), (*self.texts, text))

    def render(self, order: StateOrder) -> StateInput:
        """Return what the state encoder embeds.

        Args:
            order: "document" sorts the picked chunks by their place in the document, "retrieved" keeps the order of
                picking.
        """
        if order == "retrieved":
            return self.query, self.texts
        by_place = sorted(range(len(self.picked)), key=self.picked.__getitem__)
        return self.query, tuple(self.texts[i] for i in by_place)

"""The LangChain side: steps become Documents."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.callbacks.manager import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.indexing import DeleteResponse, UpsertResponse
from langchain_core.indexing.base import DocumentIndex
from langchain_core.runnables.config import run_in_executor

from qrag_retriever.filters import Filters
from qrag_retriever.steps import Step


def document_of_step(step: Step, hop: int, score_key: str | None, hop_key: str | None) -> Document:
    """Make a new document of a step; the hop counts from 1."""
    metadata = copy.deepcopy(step.metadata)
    if hop_key is not None:
        metadata[hop_key] = hop
    if score_key is not None:
        metadata[score_key] = step.q_value
    return Document(page_content=step.text, metadata=metadata, id=step.id)


class LangChainSide(DocumentIndex):
    """``invoke`` and its relatives; a ``DocumentIndex`` too, so that ``langchain_core.indexing.index`` takes it."""

    # From the shared base, repeated for type checkers.
    score_key: str | None
    hop_key: str | None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filters: Filters | None = None,
        min_q: float | Literal["auto"] | None = None,
    ) -> list[Document]:
        selection, _, order = self._ordered_search(query, k=k, filters=filters, min_q=min_q)  # type: ignore[attr-defined]
        return [document_of_step(selection.steps[i], i + 1, self.score_key, self.hop_key) for i in order]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filters: Filters | None = None,
        min_q: float | Literal["auto"] | None = None,
    ) -> list[Document]:
        return await run_in_executor(
            self._executor,  # type: ignore[attr-defined]
            self._get_relevant_documents,
            query,
            run_manager=run_manager.get_sync(),
            k=k,
            filters=filters,
            min_q=min_q,
        )

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Add or update documents by id; part of LangChain's ``DocumentIndex``.

        Raises:
            TypeError: If an option is given that has no meaning here.
        """
        # langchain_core.indexing passes its batch size on; documents come in batches of it already.
        if unknown := kwargs.keys() - {"batch_size"}:
            raise TypeError(f"upsert got unknown options {sorted(unknown)}")
        return UpsertResponse(succeeded=self.add_documents(list(items)), failed=[])  # type: ignore[attr-defined]

    async def aupsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Do as `upsert`, off the event loop."""
        return await run_in_executor(None, self.upsert, items, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Delete chunks by id.

        An id that was deleted before is passed over; one that never was in the index is an error.

        Raises:
            ValueError: If no ids are given.
            UnknownIdError: If an id never was in the index; then nothing is deleted.
        """
        if ids is None or kwargs:
            raise ValueError(f"delete needs a list of ids and nothing else, got ids={ids!r}, {kwargs}")
        gone = self.index.delete(ids)  # type: ignore[attr-defined]
        return DeleteResponse(num_deleted=len(gone), succeeded=gone, num_failed=0, failed=[])

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Do as `delete`, off the event loop."""
        return await run_in_executor(None, self.delete, ids, **kwargs)

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """Return documents by id; unknown ids are left out. Part of LangChain's ``DocumentIndex``."""
        records = self.index.get(ids)  # type: ignore[attr-defined]
        return [Document(page_content=r.text, metadata=copy.deepcopy(r.metadata), id=r.id) for r in records]

    async def aget(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """Do as `get`, off the event loop."""
        return await run_in_executor(None, self.get, ids, **kwargs)

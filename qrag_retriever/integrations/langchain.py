"""The LangChain side: steps become Documents."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

from langchain_core.callbacks.manager import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.indexing import DeleteResponse, UpsertResponse
from langchain_core.indexing.base import DocumentIndex
from langchain_core.retrievers import LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_config_list, run_in_executor

from qrag_retriever.batching import off_the_loop
from qrag_retriever.checks import check_at_least_one
from qrag_retriever.filters import Filters
from qrag_retriever.index import ChunkIndex
from qrag_retriever.integrations.added_metadata import free_key
from qrag_retriever.integrations.langchain_batch import Result, arun_batch, run_batch
from qrag_retriever.integrations.langchain_hops import hop_listener
from qrag_retriever.selection import Selection
from qrag_retriever.setting_names import name_here
from qrag_retriever.steps import HopListener, Step


def document_of_step(step: Step, hop: int, score_key: str | None, hop_key: str | None) -> Document:
    """Make a new document of a step; the hop counts from 1. What the user's metadata has stays as it is."""
    metadata = copy.deepcopy(step.metadata)
    if hop_key is not None:
        metadata[free_key(hop_key, step.metadata)] = hop
    if score_key is not None:
        metadata[free_key(score_key, step.metadata)] = step.q_value
    return Document(page_content=step.text, metadata=metadata, id=step.id)


class LangChainSide(DocumentIndex):
    """``invoke`` and its relatives; a ``DocumentIndex`` too, so that ``langchain_core.indexing.index`` takes it."""

    # From the shared base, repeated for type checkers.
    score_key: str | None
    hop_key: str | None
    trace_hops: bool

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filters: Filters | None = None,
        min_q: float | Literal["auto"] | None = None,
    ) -> list[Document]:
        listener = hop_listener(run_manager, query) if self.trace_hops else None
        selection, _, order = self._ordered_search(  # type: ignore[attr-defined]
            query, k=k, filters=filters, min_q=min_q, listener=listener
        )
        return self._documents(selection, order)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filters: Filters | None = None,
        min_q: float | Literal["auto"] | None = None,
    ) -> list[Document]:
        # A subclass may search in its own way, with LangChain's signature, which has no settings per call.
        given = {"k": k, "filters": filters, "min_q": min_q}
        return await off_the_loop(
            self._executor,  # type: ignore[attr-defined]
            self._get_relevant_documents,
            query,
            run_manager=run_manager.get_sync(),
            **{name: value for name, value in given.items() if value is not None},
        )

    def _documents(self, selection: Selection, order: Sequence[int]) -> list[Document]:
        return [document_of_step(selection.steps[i], i + 1, self.score_key, self.hop_key) for i in order]

    def _documents_of_many(
        self, queries: Sequence[str], listeners: Sequence[HopListener | None], **arguments: Any
    ) -> list[Result]:
        found = self._ordered_searches(queries, listeners, **arguments)  # type: ignore[attr-defined]
        return [one if isinstance(one, Exception) else self._documents(*one) for one in found]

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """Return what traces tell of a run: beside LangSmith's own keys the model and the settings of the search."""
        settings = self._trace_settings(**{**kwargs, "compute": False})  # type: ignore[attr-defined]
        return cast("LangSmithRetrieverParams", {**super()._get_ls_params(**kwargs), **settings})

    def _needs_fingerprint(self, configs: Sequence[RunnableConfig | None]) -> bool:
        """Tell whether a trace will want the model's fingerprint, which is unknown: then all weights must be read."""
        index = self.index  # type: ignore[attr-defined]
        return index.short_fingerprint(compute=False) is None and any(map(_is_heard, configs))

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Search, and return the chunks as documents.

        Args:
            input: The question.
            config: Of the run. Its callbacks also see the hops, as child runs named ``qrag_hop``.
            **kwargs: ``k``, ``filters`` and ``min_q``, in place of the retriever's, this time.

        Raises:
            TypeError: If there is another one.
        """
        if self._needs_fingerprint([config]):
            self.index.short_fingerprint()  # type: ignore[attr-defined]
        return super().invoke(input, config, **self._per_call("invoke", kwargs))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Do as `invoke`, off the event loop."""
        if self._needs_fingerprint([config]):
            await run_in_executor(None, self.index.short_fingerprint)  # type: ignore[attr-defined]
        return await super().ainvoke(input, config, **self._per_call("ainvoke", kwargs))

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Search for many questions at once; their states are embedded in one batch at each hop.

        Each has a run of its own with its callbacks, as with `invoke`. ``max_concurrency`` in the (first) config is the
        most questions of a batch. Picks the same chunks as `invoke` in float32 where Q-values differ by more than 1e-5.

        Args:
            inputs: The questions.
            config: Of all runs, or one for each.
            return_exceptions: Return errors in their places; else the first one is raised when all is done.
            **kwargs: ``k``, ``filters`` and ``min_q``, in place of the retriever's, this time.
        """
        kwargs = self._per_call("batch", kwargs)
        if not self._can_join(inputs, kwargs):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        configs = get_config_list(config, len(inputs))
        if self._needs_fingerprint(configs):
            self.index.short_fingerprint()  # type: ignore[attr-defined]
        results = [result for part in _parts(inputs, configs) for result in run_batch(self, *part, kwargs)]
        return _checked(results, return_exceptions)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Do as `batch`, off the event loop."""
        kwargs = self._per_call("abatch", kwargs)
        if not self._can_join(inputs, kwargs):
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        configs = get_config_list(config, len(inputs))
        if self._needs_fingerprint(configs):
            await run_in_executor(None, self.index.short_fingerprint)  # type: ignore[attr-defined]
        results = [result for part in _parts(inputs, configs) for result in await arun_batch(self, *part, kwargs)]
        return _checked(results, return_exceptions)

    def _per_call(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by the names that a search takes; ``run_id`` is LangChain's own."""
        arguments = dict(arguments)
        if "similarity_top_k" in arguments and "k" not in arguments:
            arguments["k"] = arguments.pop("similarity_top_k")
        for name in arguments.keys() - {*_PER_CALL, "run_id"}:
            raise TypeError(f"{method} takes {', '.join(_PER_CALL)} per call, got {name!r}{name_here(name, _PER_CALL)}")
        given = [name for name in _PER_CALL if arguments.get(name) is not None]
        if given and not self._expects_other_args:
            # LangChain would leave them out without a word.
            raise TypeError(
                f"{method} got {given[0]!r} per call, which _get_relevant_documents of {type(self).__name__} does not "
                "take; give it **kwargs and pass them on"
            )
        return arguments

    def _can_join(self, inputs: Sequence[str], kwargs: dict[str, Any]) -> bool:
        """Tell whether one search is the same as many calls: not if a subclass makes other things of a call."""
        kind = type(self)
        own = all(getattr(kind, name) is getattr(LangChainSide, name) for name in _OF_A_CALL)
        return own and len(inputs) > 1 and "run_id" not in kwargs

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

        One that is not in the index is passed over, as LangChain has it (`ChunkIndex.delete` is strict).

        Raises:
            ValueError: If no ids are given.
        """
        if ids is None or kwargs:
            raise ValueError(f"delete needs a list of ids and nothing else, got ids={ids!r}, {kwargs}")
        index: ChunkIndex = self.index  # type: ignore[attr-defined]
        gone = index.delete(ids, ignore_unknown=True)
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


_PER_CALL = ("k", "filters", "min_q")


_OF_A_CALL = ("invoke", "ainvoke", "_get_relevant_documents", "_aget_relevant_documents")


def _is_heard(config: RunnableConfig | None) -> bool:
    """Tell whether a run has handlers: of its configuration, its surroundings, or LangSmith's."""
    return bool(CallbackManager.configure(ensure_config(config).get("callbacks")).handlers)


def _parts(inputs: list[str], configs: list[RunnableConfig]) -> Iterator[tuple[list[str], list[RunnableConfig]]]:
    """Cut a batch into parts of ``max_concurrency``."""
    size = configs[0].get("max_concurrency") or len(inputs)
    check_at_least_one(max_concurrency=size)
    for first in range(0, len(inputs), size):
        yield inputs[first : first + size], configs[first : first + size]


def _checked(results: list[Result], return_exceptions: bool) -> list[list[Document]]:
    errors = [result for result in results if isinstance(result, Exception)]
    if errors and not return_exceptions:
        raise errors[0]
    return cast("list[list[Document]]", results)  # LangChain's own annotation has no errors in it either

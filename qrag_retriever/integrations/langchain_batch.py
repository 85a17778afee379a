"""Many retriever runs of LangChain as one search: callbacks for each, states embedded in one batch at each hop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from langchain_core.callbacks.manager import (
    AsyncCallbackManager,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig

from qrag_retriever.batching import off_the_loop
from qrag_retriever.checks import check_query
from qrag_retriever.integrations.langchain_hops import hop_listener

Manager = TypeVar("Manager", CallbackManager, AsyncCallbackManager)
Result = list[Document] | Exception


def run_batch(
    retriever: Any, queries: Sequence[str], configs: Sequence[RunnableConfig], arguments: dict[str, Any]
) -> list[Result]:
    """Do as ``invoke`` for each query, in one search; a query's error stands in place of its documents.

    Args:
        retriever: A retriever with LangChain's side.
        queries: The questions.
        configs: One for each.
        arguments: ``k``, ``filters`` and ``min_q``, for all.
    """
    runs: list[CallbackManagerForRetrieverRun | Exception] = []
    for query, config in zip(queries, configs, strict=True):
        manager = _manager(CallbackManager, retriever, config, arguments)
        try:
            runs.append(manager.on_retriever_start(None, query, name=_name(config, retriever)))
        except Exception as error:  # a callback's own: of this query alone
            runs.append(error)
    results = _search(retriever, queries, runs, arguments)
    for number, (run, result) in enumerate(zip(runs, results, strict=True)):
        if isinstance(run, Exception):
            continue
        try:
            if isinstance(result, Exception):
                run.on_retriever_error(result)
            else:
                run.on_retriever_end(result)
        except Exception as error:  # a callback's own: of this query alone
            results[number] = error
    return results


async def arun_batch(
    retriever: Any, queries: Sequence[str], configs: Sequence[RunnableConfig], arguments: dict[str, Any]
) -> list[Result]:
    """Do as `run_batch`, with the search off the event loop."""
    runs: list[AsyncCallbackManagerForRetrieverRun | Exception] = []
    for query, config in zip(queries, configs, strict=True):
        manager = _manager(AsyncCallbackManager, retriever, config, arguments)
        try:
            runs.append(await manager.on_retriever_start(None, query, name=_name(config, retriever)))
        except Exception as error:  # a callback's own: of this query alone
            runs.append(error)
    results = await off_the_loop(
        retriever._executor, _search, retriever, queries,
        [run if isinstance(run, Exception) else run.get_sync() for run in runs], arguments,
    )  # fmt: skip
    for number, (run, result) in enumerate(zip(runs, results, strict=True)):
        if isinstance(run, Exception):
            continue
        try:
            if isinstance(result, Exception):
                await run.on_retriever_error(result)
            else:
                await run.on_retriever_end(result)
        except Exception as error:  # a callback's own: of this query alone
            results[number] = error
    return results


def _name(config: RunnableConfig, retriever: BaseRetriever) -> str:
    return config.get("run_name") or retriever.get_name()


def _manager(kind: type[Manager], retriever: Any, config: RunnableConfig, arguments: dict[str, Any]) -> Manager:
    """Make a callback manager with the tags and metadata that ``invoke`` gives one."""
    return kind.configure(
        config.get("callbacks"),
        None,
        inheritable_tags=config.get("tags"),
        local_tags=retriever.tags,
        inheritable_metadata={**(config.get("metadata") or {}), **retriever._get_ls_params(**arguments)},
        local_metadata=retriever.metadata,
    )


def _search(
    retriever: Any,
    queries: Sequence[str],
    runs: Sequence[CallbackManagerForRetrieverRun | Exception],
    arguments: dict[str, Any],
) -> list[Result]:
    """Search for all queries that can be searched for; a wrong one must not fail the others."""
    errors = [run if isinstance(run, Exception) else _error_of(query) for query, run in zip(queries, runs, strict=True)]
    asked = [
        (query, run)
        for query, run, error in zip(queries, runs, errors, strict=True)
        if error is None and not isinstance(run, Exception)
    ]
    try:
        found = iter(
            retriever._documents_of_many(
                [query for query, _ in asked],
                [hop_listener(run, query) if retriever.trace_hops else None for query, run in asked],
                **arguments,
            )
        )
    except Exception as error:  # of all who asked
        return [error if own is None else own for own in errors]
    return [next(found) if own is None else own for own in errors]


def _error_of(query: object) -> Exception | None:
    try:
        check_query(query)
    except (TypeError, ValueError) as error:
        return error
    return None

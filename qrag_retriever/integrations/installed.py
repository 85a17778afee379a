"""The sides of the frameworks that are installed, and stand-ins for those that are not."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


def _import_side(module: str, framework: str) -> ModuleType | None:
    """Import one side; None if its framework is not installed. Any other failure is raised."""
    try:
        return import_module(f"qrag_retriever.integrations.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != framework:
            raise
        return None


langchain = _import_side("langchain", "langchain_core")
llama_index = _import_side("llama_index", "llama_index")
if langchain is None and llama_index is None:
    raise ImportError("QRAGRetriever needs LangChain or LlamaIndex: pip install langchain-core llama-index-core")


def make_callback_manager() -> Any:
    """Return a callback manager for the LlamaIndex side; None without LlamaIndex."""
    return None if llama_index is None else llama_index.make_callback_manager()


def _missing(method: str, package: str) -> Any:
    def method_of_missing_framework(self: object, *args: object, **kwargs: object) -> None:
        raise ImportError(f"{method}() needs {package}, which is not installed: pip install {package}")

    method_of_missing_framework.__name__ = method
    return method_of_missing_framework


class NoLangChain:
    """Stands in for the LangChain side where LangChain is not installed."""

    invoke = _missing("invoke", "langchain-core")
    ainvoke = _missing("ainvoke", "langchain-core")
    batch = _missing("batch", "langchain-core")
    abatch = _missing("abatch", "langchain-core")

    def delete(self, ids: list[str]) -> dict[str, Any]:
        """Delete chunks by id; see `ChunkIndex.delete`."""
        gone = self.index.delete(ids)  # type: ignore[attr-defined]
        return {"num_deleted": len(gone), "succeeded": gone, "num_failed": 0, "failed": []}


class NoLlamaIndex:
    """Stands in for the LlamaIndex side where LlamaIndex is not installed."""

    retrieve = _missing("retrieve", "llama-index-core")
    aretrieve = _missing("aretrieve", "llama-index-core")
    update_ref_doc = _missing("update_ref_doc", "llama-index-core")
    refresh_ref_docs = _missing("refresh_ref_docs", "llama-index-core")


langchain_side: type = NoLangChain if langchain is None else langchain.LangChainSide
llama_index_side: type = NoLlamaIndex if llama_index is None else llama_index.LlamaIndexSide

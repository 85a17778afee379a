"""Multi-step retrieval in embedding space (Q-RAG), for LangChain and LlamaIndex.

Names are imported when they are first used: ``import qrag_retriever`` loads neither torch nor a framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ChunkIndex": "index",
    "MultiStepSelector": "selector",
    "QRAGConfig": "config",
    "QRAGModel": "model",
    "QRAGRetriever": "retriever",
    "Selection": "selection",
    "Step": "selection",
}

__all__ = [
    "ChunkIndex",
    "MultiStepSelector",
    "QRAGConfig",
    "QRAGModel",
    "QRAGRetriever",
    "Selection",
    "Step",
    "__version__",
]

if TYPE_CHECKING:
    from qrag_retriever.config import QRAGConfig
    from qrag_retriever.index import ChunkIndex
    from qrag_retriever.model import QRAGModel
    from qrag_retriever.retriever import QRAGRetriever
    from qrag_retriever.selection import Selection, Step
    from qrag_retriever.selector import MultiStepSelector


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

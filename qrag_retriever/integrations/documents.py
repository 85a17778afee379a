"""Documents of either framework, as records."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from typing import Any

from qrag_retriever.checks import check_list
from qrag_retriever.integrations.added_metadata import without_added
from qrag_retriever.integrations.installed import llama_index
from qrag_retriever.model import QRAGModel
from qrag_retriever.records import Record, document_of


def records_of(
    documents: Sequence[Any],
    splitter: Any,
    model: QRAGModel,
    ids: Sequence[str] | None = None,
    score_key: str | None = None,
    hop_key: str | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Make records of either framework's documents; also return the live objects that index nodes point to.

    Args:
        documents: LangChain documents, LlamaIndex documents and nodes.
        splitter: Of LlamaIndex documents (a node parser) or LangChain documents (a text splitter); None: the model's
            limit for the first, and the second are chunks already.
        model: What will embed them.
        ids: In place of the LangChain documents' own.
        score_key: Where documents that come from a search have their Q-value, which is left out.
        hop_key: Where they have their hop, which is left out.
    """
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Sequence):
        raise TypeError(f"expected a sequence of documents or nodes, got {type(documents).__name__}")
    _check_splitter(splitter)
    _check_ids(ids, documents, splitter)
    records: list[Record] = []
    objects: dict[str, Any] = {}
    for number, item in enumerate(documents):
        if llama_index is not None and llama_index.is_node(item):
            nodes = [item]
            if llama_index.is_document(item):
                _check_splits(splitter, "get_nodes_from_documents", "a LlamaIndex document")
                encoder = model.action_encoder
                nodes = llama_index.split_documents([item], splitter, encoder.content_limit, encoder.token_ids)
            records.extend(llama_index.record_of(node, hop_key) for node in nodes)
            objects.update(llama_index.objects_of(nodes))
        elif _is_langchain(item):
            own_id = item.id if ids is None else ids[number]
            for part in _split(item, splitter):
                metadata = copy.deepcopy(without_added(part.metadata, score_key, hop_key))
                document_id = document_of(metadata)
                if part is not item:
                    own_id, document_id = None, item.id if document_id is None else document_id
                records.append(Record(own_id or str(uuid.uuid4()), part.page_content, metadata, document_id))
        else:
            raise TypeError(
                f"document {number} is a {type(item).__name__}; expected LangChain documents, LlamaIndex documents or "
                "nodes (for plain strings use from_texts)"
            )
    return records, objects


def _is_langchain(item: object) -> bool:
    return hasattr(item, "page_content") and hasattr(item, "metadata")


def _split(document: Any, splitter: Any) -> list[Any]:
    if splitter is None:
        return [document]
    _check_splits(splitter, "split_documents", "a LangChain document")
    return list(splitter.split_documents([document]))


def _check_splitter(splitter: Any) -> None:
    if splitter is not None and not any(hasattr(splitter, name) for name in _SPLITS):
        raise TypeError(
            f"expected splitter as a LlamaIndex node parser or a LangChain text splitter, got {type(splitter).__name__}"
        )


def _check_splits(splitter: Any, method: str, what: str) -> None:
    if splitter is not None and not hasattr(splitter, method):
        raise TypeError(f"{what} cannot be split by a {type(splitter).__name__}, which is for {_SPLITS[method]}")


# What a splitter of the other framework's documents is for, by the method that it lacks.
_SPLITS = {"get_nodes_from_documents": "LangChain documents", "split_documents": "LlamaIndex documents"}


def _check_ids(ids: Sequence[str] | None, documents: Sequence[Any], splitter: Any) -> None:
    if ids is None:
        return
    check_list(ids, "ids")
    if splitter is not None or not all(map(_is_langchain, documents)):
        raise TypeError(
            "ids name LangChain documents that are chunks; nodes have their own, and what is split gets new ones"
        )
    if len(ids) != len(documents):
        raise ValueError(f"{len(documents)} documents but {len(ids)} ids; give one for each document, or None")

"""Documents of either framework, as records."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from qrag_retriever.checks import check_list
from qrag_retriever.integrations.added_metadata import AddedKeys
from qrag_retriever.integrations.installed import llama_index
from qrag_retriever.model import QRAGModel
from qrag_retriever.records import Record, document_of


def records_of(
    documents: Sequence[Any],
    splitter: Any,
    model: QRAGModel,
    ids: Sequence[str] | None = None,
    added: AddedKeys | None = None,
    known: Mapping[str, Record] | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Make records of either framework's documents; also return the live objects that index nodes point to.

    Args:
        documents: LangChain documents, LlamaIndex documents and nodes.
        splitter: Of LlamaIndex documents (a node parser) or LangChain documents (a text splitter); the others, and all
            if it is None, are split to the model's limit if they are LlamaIndex's, and are chunks if LangChain's.
        model: What will embed them.
        ids: In place of the LangChain documents' own.
        added: Where documents that come from a search have what it has put in, which is left out.
        known: What the index has of their `ids_of`: an edited result stays what it was, in the document that it was in.
    """
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Sequence):
        raise TypeError(f"expected a sequence of documents or nodes, got {type(documents).__name__}")
    _check_splitter(splitter, documents)
    _check_ids(ids, documents, splitter)
    added, known = added or AddedKeys(), known or {}
    records: list[Record] = []
    objects: dict[str, Any] = {}
    for number, item in enumerate(documents):
        if _is_node(item):
            nodes = _nodes_of(item, splitter, model)
            records.extend(_record_of_node(node, added, known.get(node.node_id)) for node in nodes)
            objects.update(llama_index.objects_of(nodes))  # type: ignore[union-attr]
        elif _is_langchain(item) and hasattr(splitter, "split_documents"):
            records.extend(_record_of_part(part, item.id, added) for part in splitter.split_documents([item]))
        elif _is_langchain(item):
            own_id = (item.id if ids is None else ids[number]) or str(uuid.uuid4())
            records.append(_record_of_document(item, own_id, added, known.get(own_id)))
        else:
            raise TypeError(
                f"document {number} is a {type(item).__name__}; expected LangChain documents, LlamaIndex documents or "
                "nodes (for plain strings use from_texts)"
            )
    return records, objects


def ids_of(documents: Sequence[Any], ids: Sequence[str] | None = None) -> list[str]:
    """Return the ids that documents and nodes have, or are to have; those that are made later are left out.

    Of what are no documents or ids there are none: `records_of` tells what is wrong.
    """
    if not isinstance(documents, Sequence) or not isinstance(ids, Sequence | None):
        return []
    if ids is not None:
        return [one for one in ids if isinstance(one, str)]
    found = [getattr(item, "node_id" if _is_node(item) else "id", None) for item in documents]
    return [one for one in found if isinstance(one, str)]


def _record_of_node(node: Any, added: AddedKeys, known: Record | None) -> Record:
    own = AddedKeys(hop=added.hop).without(node.metadata, None if known is None else known.metadata)
    return llama_index.record_of(node, own)  # type: ignore[union-attr,no-any-return]


def _record_of_document(document: Any, own_id: str, added: AddedKeys, known: Record | None) -> Record:
    metadata = copy.deepcopy(added.without(document.metadata, None if known is None else known.metadata))
    if known is not None and known.node is not None and llama_index is not None:
        return llama_index.edited(known, document.page_content, metadata)  # type: ignore[no-any-return]
    document_id = document_of(metadata)
    if document_id is None and known is not None and document_of(known.metadata) is None:
        document_id = known.document_id  # which no metadata has told
    return Record(own_id, document.page_content, metadata, document_id)


def _record_of_part(part: Any, source_id: str | None, added: AddedKeys) -> Record:
    metadata = copy.deepcopy(added.without(part.metadata, None))
    document_id = document_of(metadata)
    return Record(str(uuid.uuid4()), part.page_content, metadata, source_id if document_id is None else document_id)


def _nodes_of(item: Any, splitter: Any, model: QRAGModel) -> list[Any]:
    if not llama_index.is_document(item):  # type: ignore[union-attr]
        return [item]
    encoder = model.action_encoder
    parser = splitter if hasattr(splitter, "get_nodes_from_documents") else None
    split: Any = llama_index.split_documents  # type: ignore[union-attr]
    return list(split([item], parser, encoder.content_limit, encoder.token_ids))


def _is_node(item: object) -> bool:
    return llama_index is not None and llama_index.is_node(item)


def _is_langchain(item: object) -> bool:
    return hasattr(item, "page_content") and hasattr(item, "metadata")


def _check_splitter(splitter: Any, documents: Sequence[Any]) -> None:
    """Raise TypeError if a splitter is none, or can split nothing of what is given."""
    if splitter is None:
        return
    splits_nodes, splits_langchain = (
        hasattr(splitter, name) for name in ("get_nodes_from_documents", "split_documents")
    )
    kind = type(splitter).__name__
    if not splits_nodes and not splits_langchain:
        raise TypeError(f"expected splitter as a LlamaIndex node parser or a LangChain text splitter, got {kind}")
    if documents and not splits_langchain and all(map(_is_langchain, documents)):
        raise TypeError(f"LangChain documents cannot be split by a {kind}, which is for LlamaIndex documents")
    if documents and not splits_nodes and all(map(_is_node, documents)):
        raise TypeError(f"LlamaIndex documents cannot be split by a {kind}, which is for LangChain documents")


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

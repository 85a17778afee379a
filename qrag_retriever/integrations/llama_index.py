"""The LlamaIndex side: steps become nodes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llama_index.core import schema
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.node_parser import NodeParser, SentenceSplitter
from llama_index.core.schema import (
    BaseNode,
    Document,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)

from qrag_retriever.batching import off_the_loop
from qrag_retriever.integrations.llama_index_hops import hop_listener
from qrag_retriever.records import Record, document_of

_AS_GOOD_AS_1 = 1e-4


def is_node(item: object) -> bool:
    """Tell a LlamaIndex node or document."""
    return isinstance(item, BaseNode)


def is_document(item: object) -> bool:
    """Tell a LlamaIndex document, which is to be split, from a node, which is a chunk."""
    return isinstance(item, Document)


def record_of(node: BaseNode) -> Record:
    """Make a record of a node; what a live ``IndexNode.obj`` is belongs in the retriever's object map.

    Raises:
        TypeError: If the node is of a class that LlamaIndex's schema does not have: it could not be built again.
    """
    if type(node) is not getattr(schema, node.class_name(), None):
        raise TypeError(f"expected a node class of llama_index.core.schema, got {type(node).__qualname__}")
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    embedded = node.get_content(metadata_mode=MetadataMode.EMBED)
    return Record(
        node.node_id,
        text,
        copy.deepcopy(node.metadata),
        node.ref_doc_id if node.ref_doc_id is not None else document_of(node.metadata),
        copy.deepcopy(_without_object(node).to_dict()),
        None if embedded == text else embedded,
    )


def objects_of(nodes: Sequence[BaseNode]) -> dict[str, Any]:
    """Return the live objects that index nodes point to, by index id."""
    return {node.index_id: node.obj for node in nodes if isinstance(node, IndexNode) and _is_live(node)}


def node_of(record: Record) -> BaseNode:
    """Build a new node from a record."""
    if record.node is None:
        node = TextNode(id_=record.id, text=record.text, metadata=copy.deepcopy(record.metadata))
        if record.document_id is not None:
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=record.document_id)
        return node
    node_class: Any = getattr(schema, str(record.node["class_name"]), None)
    if not (isinstance(node_class, type) and issubclass(node_class, BaseNode)):
        raise ValueError(f"node class {record.node['class_name']!r} is not one of llama_index.core.schema")
    return node_class.from_dict(copy.deepcopy(record.node))


def split_documents(
    documents: Sequence[Document], splitter: NodeParser | None, chunk_tokens: int, tokenizer: Callable[[str], list[int]]
) -> list[BaseNode]:
    """Split documents into nodes: by sentences up to the model's chunk limit, or as ``splitter`` does."""
    if splitter is None:
        splitter = SentenceSplitter(chunk_size=chunk_tokens, chunk_overlap=0, tokenizer=tokenizer)
    return splitter.get_nodes_from_documents(documents)


def make_callback_manager() -> CallbackManager:
    """Return a fresh callback manager."""
    return CallbackManager()


class LlamaIndexSide(BaseRetriever):
    """``retrieve`` and its relatives."""

    # From the shared base, repeated for type checkers.
    hop_key: str | None

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # The records of the version that was searched, whatever was added or deleted meanwhile.
        selection, records, order = self._ordered_search(  # type: ignore[attr-defined]
            query_bundle.query_str,
            first_state=self._first_state(query_bundle),
            listener=hop_listener(query_bundle.query_str, self._trace_settings),  # type: ignore[attr-defined]
        )
        return [self._node(records[place], selection.steps[place].q_value, place + 1) for place in order]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await off_the_loop(self._executor, self._retrieve, query_bundle)  # type: ignore[attr-defined]

    def _first_state(self, query_bundle: QueryBundle) -> np.ndarray | None:
        """Return what the bundle says is to be embedded in place of the question, for the first hop (HyDE)."""
        if query_bundle.embedding is not None:
            state = np.asarray(query_bundle.embedding, np.float32)
            self._warn_of_foreign(state)
            return state
        if query_bundle.custom_embedding_strs:
            model = self.index.model  # type: ignore[attr-defined]
            return np.asarray(model.encode_states(query_bundle.custom_embedding_strs).mean(axis=0))
        return None

    def _warn_of_foreign(self, state: np.ndarray) -> None:
        """Warn where another retriever seems to have left an embedding of its own in the bundle.

        LlamaIndex's vector retrievers do so, and most embedders make lengths of 1, which states seldom have.
        """
        config = self.index.config  # type: ignore[attr-defined]
        is_of_length_1 = abs(float(np.linalg.norm(state)) - 1.0) < _AS_GOOD_AS_1
        if config is not None and is_of_length_1 and config.normalize is not True:
            warnings.warn(
                "the embedding in this QueryBundle has length 1, which this model's states have not: another retriever "
                "has left its own there, it seems. Give each retriever a bundle of its own: QueryBundle(query_str)",
                stacklevel=2,
            )

    def _node(self, record: Record, score: float, hop: int) -> NodeWithScore:
        node = node_of(record)
        key = self.hop_key
        if key is not None:
            node.metadata[key] = hop
            # For programs; a language model or an embedding has no use for it.
            for excluded in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
                if key not in excluded:
                    excluded.append(key)
        return NodeWithScore(node=node, score=score)


def _is_live(node: IndexNode) -> bool:
    return node.obj is not None and not isinstance(node.obj, BaseNode)


def _without_object(node: BaseNode) -> BaseNode:
    if isinstance(node, IndexNode) and _is_live(node):
        return node.model_copy(update={"obj": None})
    return node

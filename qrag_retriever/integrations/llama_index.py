"""The LlamaIndex side: steps become nodes."""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from qrag_retriever.errors import UnknownIdError
from qrag_retriever.index import ChunkIndex
from qrag_retriever.integrations.added_metadata import free_key
from qrag_retriever.integrations.llama_index_hops import hop_listener
from qrag_retriever.records import Record, document_of

_AS_GOOD_AS_1 = 1e-4


def is_node(item: object) -> bool:
    """Tell a LlamaIndex node or document."""
    return isinstance(item, BaseNode)


def is_document(item: object) -> bool:
    """Tell a LlamaIndex document, which is to be split, from a node, which is a chunk."""
    return isinstance(item, Document)


def record_of(node: BaseNode, metadata: Mapping[str, Any] | None = None) -> Record:
    """Make a record of a node.

    Its embedding, which is another model's, is left out. What a live ``IndexNode.obj`` is belongs in the index's
    ``live_objects``.

    Args:
        node: Of any class in LlamaIndex's schema.
        metadata: What of the node's own is kept; None: all.

    Raises:
        TypeError: If the node is of a class that LlamaIndex's schema does not have: it could not be built again.
    """
    if type(node) is not getattr(schema, node.class_name(), None):
        raise TypeError(f"expected a node class of llama_index.core.schema, got {type(node).__qualname__}")
    node = _plain(node, node.metadata if metadata is None else metadata)
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    embedded = node.get_content(metadata_mode=MetadataMode.EMBED)
    return Record(
        node.node_id,
        text,
        copy.deepcopy(node.metadata),
        node.ref_doc_id if node.ref_doc_id is not None else document_of(node.metadata),
        copy.deepcopy(node.to_dict()),
        None if embedded == text else embedded,
    )


def edited(record: Record, text: str, metadata: dict[str, Any]) -> Record:
    """Return a node's record with another text and other metadata, with the same relationships."""
    node = node_of(record)
    node.set_content(text)
    node.metadata = metadata
    return record_of(node)


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
    trace_hops: bool

    def update_ref_doc(self, document: Document, splitter: NodeParser | None = None) -> list[str]:
        """Index a document anew, in place of its chunks so far if there are any; returns the new chunks' ids.

        The new ones come first, so a search meanwhile may find both, and never none.

        Args:
            document: Its ``id_`` names it.
            splitter: As in ``add_documents``.
        """
        index: ChunkIndex = self.index  # type: ignore[attr-defined]
        old = _chunks_of(index, document.id_)
        new: list[str] = self.add_documents([document], splitter)  # type: ignore[attr-defined]
        index.delete_before(document.id_, new, old)
        return new

    async def aupdate_ref_doc(self, document: Document, splitter: NodeParser | None = None) -> list[str]:
        """Do as `update_ref_doc`, off the event loop."""
        return await asyncio.to_thread(self.update_ref_doc, document, splitter)

    def refresh_ref_docs(self, documents: Sequence[Document], splitter: NodeParser | None = None) -> list[bool]:
        """Index the documents that are new or have changed, and tell for each whether it was one.

        Args:
            documents: Whose ``id_`` name them; those whose text and metadata are as before are passed over.
            splitter: As in ``add_documents``.
        """
        changed = []
        for document in documents:
            changed.append(_hash_of(self.index, document.id_) != document.hash)  # type: ignore[attr-defined]
            if changed[-1]:
                self.update_ref_doc(document, splitter)
        return changed

    async def arefresh_ref_docs(self, documents: Sequence[Document], splitter: NodeParser | None = None) -> list[bool]:
        """Do as `refresh_ref_docs`, off the event loop."""
        return await asyncio.to_thread(self.refresh_ref_docs, documents, splitter)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # The records of the version that was searched, whatever was added or deleted meanwhile.
        settings: Any = self._trace_settings  # type: ignore[attr-defined]
        selection, records, order = self._ordered_search(  # type: ignore[attr-defined]
            query_bundle.query_str,
            first_state=self._first_state(query_bundle),
            listener=hop_listener(query_bundle.query_str, settings) if self.trace_hops else None,
        )
        return [self._node(records[place], selection.steps[place].q_value, place + 1) for place in order]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await off_the_loop(self._executor, self._retrieve, query_bundle)  # type: ignore[attr-defined]

    def _first_state(self, query_bundle: QueryBundle) -> np.ndarray | None:
        """Return what the bundle says is to be embedded in place of the question, for the first hop (HyDE)."""
        # An empty one is what is left of none in some formats.
        if query_bundle.embedding is not None and len(query_bundle.embedding):
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
        if isinstance(node, IndexNode) and node.obj is None and node.index_id not in self.object_map:
            live: Any = self.index.live_objects  # type: ignore[attr-defined]
            node.obj = live.get(node.index_id)
        if self.hop_key is not None:
            key = free_key(self.hop_key, node.metadata)
            node.metadata[key] = hop
            # For programs; a language model or an embedding has no use for it.
            for excluded in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
                if key not in excluded:
                    excluded.append(key)
        return NodeWithScore(node=node, score=score)


def _chunks_of(index: ChunkIndex, document_id: str) -> list[str]:
    try:
        return index.ids_of_document(document_id)
    except UnknownIdError:
        return []


def _hash_of(index: ChunkIndex, document_id: str) -> str | None:
    """Return the hash that a document had when it was indexed; None if it was not, or as something else."""
    for record in index.get(_chunks_of(index, document_id)[:1]):
        source = node_of(record).source_node
        return None if source is None else source.hash
    return None


def _is_live(node: IndexNode) -> bool:
    return node.obj is not None and not isinstance(node.obj, BaseNode)


def _plain(node: BaseNode, metadata: Mapping[str, Any]) -> BaseNode:
    """Copy a node without what cannot or need not be kept: a live object, an embedding, metadata that is left out."""
    changed: dict[str, Any] = {"embedding": None}
    if isinstance(node, IndexNode) and _is_live(node):
        changed["obj"] = None
    if added := node.metadata.keys() - metadata.keys():
        changed["metadata"] = dict(metadata)
        for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
            changed[name] = [key for key in getattr(node, name) if key not in added]
    return node.model_copy(update=changed)

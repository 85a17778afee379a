"""Documents of either framework, as records."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from typing import Any

from qrag_retriever.integrations.installed import llama_index
from qrag_retriever.model import QRAGModel
from qrag_retriever.records import Record, document_of


def records_of(documents: Sequence[Any], splitter: Any, model: QRAGModel) -> tuple[list[Record], dict[str, Any]]:
    """Make records of either framework's documents; also return the live objects that index nodes point to."""
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Sequence):
        raise TypeError(f"expected a sequence of documents or nodes, got {type(documents).__name__}")
    records: list[Record] = []
    objects: dict[str, Any] = {}
    for number, item in enumerate(documents):
        if llama_index is not None and llama_index.is_node(item):
            nodes = [item]
            if llama_index.is_document(item):
                encoder = model.action_encoder
                nodes = llama_index.split_documents([item], splitter, encoder.content_limit, encoder.token_ids)
            records.extend(llama_index.record_of(node) for node in nodes)
            objects.update(llama_index.objects_of(nodes))
        elif hasattr(item, "page_content") and hasattr(item, "metadata"):
            metadata = copy.deepcopy(dict(item.metadata))
            record_id = item.id or str(uuid.uuid4())
            records.append(Record(record_id, item.page_content, metadata, document_of(metadata)))
        else:
            raise TypeError(
                f"document {number} is a {type(item).__name__}; expected LangChain documents, LlamaIndex documents or "
                "nodes (for plain strings use from_texts)"
            )
    return records, objects

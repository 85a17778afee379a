"""Search results that are edited and put back: the user's metadata stays, and what the search put in goes."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode

from qrag_retriever import QRAGModel, QRAGRetriever

TEXT = "Mara works at the Blue Oven."


@pytest.mark.parametrize(
    ("own", "score_at"),
    [
        ({}, "score"),
        ({"author": "Ann"}, "score"),
        ({"score": 5}, "qrag_score"),
        ({"score": 5, "qrag_hop": "x"}, "qrag_score"),
    ],
)
def test_a_langchain_document_keeps_its_own_metadata(model: QRAGModel, own: dict[str, Any], score_at: str) -> None:
    retriever = QRAGRetriever.from_documents([Document(TEXT, id="d", metadata=own)], model=model, k=1)
    (found,) = retriever.invoke("Who works?")
    assert own.items() <= found.metadata.items()
    assert found.metadata[score_at] == retriever.search("Who works?").steps[0].q_value
    found.metadata["reviewed"] = True
    assert retriever.add_documents([found]) == ["d"]
    assert retriever.get(["d"])[0].metadata == {**own, "reviewed": True}
    again = QRAGRetriever.from_documents(retriever.invoke("Who works?"), model=model)
    assert again.get(["d"])[0].metadata == {**own, "reviewed": True}


@pytest.mark.parametrize("hop_key", ["qrag_hop", "hop"])
def test_a_node_keeps_its_own_metadata(model: QRAGModel, hop_key: str) -> None:
    own = {"score": 5, "hop": "of beer"}
    node = TextNode(id_="n", text=TEXT, metadata=own, excluded_llm_metadata_keys=["score"])
    retriever = QRAGRetriever.from_defaults(nodes=[node], model=model, hop_key=hop_key)
    (found,) = retriever.retrieve("Who works?")
    assert found.metadata == {**own, {"hop": "qrag_hop"}.get(hop_key, hop_key): 1}
    assert retriever.add_documents([found.node]) == ["n"]
    plain = retriever.model_copy(update={"hop_key": None}).retrieve("Who works?")[0].node
    assert plain.to_dict() == node.to_dict()


def test_metadata_of_other_searches_is_left_alone(model: QRAGModel) -> None:
    """Without a hop nothing says that the score was put in by a search."""
    retriever = QRAGRetriever.from_documents([Document(TEXT, id="d", metadata={"score": 0.5})], model=model)
    assert retriever.get(["d"])[0].metadata == {"score": 0.5}


def test_embeddings_of_nodes_are_not_kept(model: QRAGModel) -> None:
    node = TextNode(id_="n", text=TEXT, embedding=[0.25] * 1536)
    retriever = QRAGRetriever.from_defaults(nodes=[node], model=model)
    assert retriever.retrieve("Who works?")[0].node.embedding is None
    assert node.embedding == [0.25] * 1536

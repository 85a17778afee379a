"""Search results that are edited and put back: the user's metadata stays, and what the search put in goes."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_text_splitters import CharacterTextSplitter
from llama_index.core import Document as LlamaDocument
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode

from qrag_retriever import QRAGModel, QRAGRetriever

TEXT = "Mara works at the Blue Oven."


@pytest.mark.parametrize(
    ("own", "score_at"),
    [
        ({}, "score"),
        ({"author": "Ann"}, "score"),
        ({"score": 5}, "qrag_score"),
        ({"qrag_score": 7}, "score"),
        ({"score": 5, "qrag_score": 0.5}, "qrag_qrag_score"),
        ({"score": 5, "qrag_hop": "the third"}, "qrag_score"),
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


def test_results_of_other_settings_keep_the_users_metadata(model: QRAGModel) -> None:
    own = {"score": 5}
    retriever = QRAGRetriever.from_documents([Document(TEXT, id="d", metadata=own)], model=model, k=1)
    (without_score,) = retriever.model_copy(update={"score_key": None}).invoke("Who works?")
    (node,) = retriever.retrieve("Who works?")
    for found in (without_score, Document(TEXT, id="d", metadata=node.metadata)):
        retriever.add_documents([found])
        assert retriever.get(["d"])[0].metadata == own


def test_another_index_leaves_out_what_was_put_in(model: QRAGModel) -> None:
    for own in ({}, {"author": "Ann"}, {"score": 5}):
        retriever = QRAGRetriever.from_documents([Document(TEXT, id="d", metadata=own)], model=model, k=1)
        again = QRAGRetriever.from_documents(retriever.invoke("Who works?"), model=model)
        assert again.get(["d"])[0].metadata == own


def test_a_part_of_a_document_stays_one(model: QRAGModel) -> None:
    splitter = CharacterTextSplitter(separator=". ", chunk_size=30, chunk_overlap=0)
    text = "Mara works at the Blue Oven. Ben works at the Red Lantern. It rained all day long"
    parser = SentenceSplitter(chunk_size=12, chunk_overlap=0)
    sources: list[Any] = [(Document(text, id="doc"), splitter), (LlamaDocument(text=text, id_="doc"), parser)]
    for document, by in sources:
        retriever = QRAGRetriever.from_documents([document], by, model=model, mode="document", k=1)
        before = retriever.index.ids
        (found,) = retriever.invoke("Where does Mara work?")
        found.page_content += " today"
        retriever.add_documents([found])
        assert retriever.index.ids == before
        assert retriever.index.ids_of_document("doc") == before
        assert retriever.get([found.id])[0].page_content.endswith(" today")
        assert len(retriever.delete_ref_doc("doc")) == len(before)


def test_an_edited_node_is_still_a_node(model: QRAGModel) -> None:
    document = LlamaDocument(text=TEXT, id_="doc", metadata={"year": 2001})
    retriever = QRAGRetriever.from_documents([document], model=model, k=1)
    (found,) = retriever.invoke("Who works?")
    found.metadata["reviewed"] = True
    retriever.add_documents([found])
    (node,) = retriever.retrieve("Who works?")
    assert node.node.ref_doc_id == "doc"
    assert node.metadata == {"year": 2001, "reviewed": True, "qrag_hop": 1}
    assert retriever.refresh_ref_docs([document]) == [False], "the source has not changed"


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

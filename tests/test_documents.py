"""What becomes chunks of documents: splitters, ids, documents that are indexed anew, and indexes that begin empty."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_text_splitters import CharacterTextSplitter
from llama_index.core import Document as LlamaDocument
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import IndexNode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from qrag_retriever import ChunkIndex, QRAGModel, QRAGRetriever

SENTENCES = [f"Person {number} owns shop {number}." for number in range(6)]
TEXT = " ".join(SENTENCES)
BY_SENTENCES: dict[str, Any] = {
    "LangChain": CharacterTextSplitter(separator=". ", chunk_size=30, chunk_overlap=0),
    "LlamaIndex": SentenceSplitter(chunk_size=14, chunk_overlap=0),
}


def test_each_framework_s_splitter_splits_its_documents(model: QRAGModel) -> None:
    documents = [Document(TEXT, id="whole", metadata={"page": 3})]
    retriever = QRAGRetriever.from_documents(documents, BY_SENTENCES["LangChain"], model=model)
    assert len(retriever.index) == 6
    assert len(retriever.index.ids_of_document("whole")) == 6
    assert {found.metadata["page"] for found in retriever.invoke("Who owns shop 2?")} == {3}
    nodes = QRAGRetriever.from_documents([LlamaDocument(text=TEXT)], BY_SENTENCES["LlamaIndex"], model=model)
    assert len(nodes.index) == 6


@pytest.mark.parametrize(
    ("document", "splitter", "expected"),
    [
        (Document(TEXT), BY_SENTENCES["LlamaIndex"], "LangChain documents cannot be split by a SentenceSplitter"),
        (LlamaDocument(text=TEXT), BY_SENTENCES["LangChain"], "LlamaIndex documents cannot be split by a Character"),
        (Document(TEXT), ["z"], "expected splitter as a LlamaIndex node parser or a LangChain text splitter, got list"),
    ],
)
def test_a_splitter_that_cannot_split_is_refused(model: QRAGModel, document: Any, splitter: Any, expected: str) -> None:
    retriever = QRAGRetriever.from_texts(["x"], model=model)
    with pytest.raises(TypeError, match=expected):
        retriever.add_documents([document], splitter)
    assert len(retriever.index) == 1


@pytest.mark.parametrize(
    ("documents", "ids", "expected"),
    [
        (None, None, "expected a sequence of documents or nodes, got NoneType"),
        (3, None, "expected a sequence of documents or nodes, got int"),
        (iter([Document("a")]), None, "expected a sequence of documents or nodes, got list_iterator"),
        ("a", None, "expected a sequence of documents or nodes, got str"),
        ([Document("a")], 5, "expected a sequence of ids, got one int"),
        ([Document("a")], "z", "expected a sequence of ids, got one str"),
        ([Document("a")], [5], "id 0"),
    ],
)
def test_what_are_no_documents_or_ids_is_said(model: QRAGModel, documents: Any, ids: Any, expected: str) -> None:
    retriever = QRAGRetriever.from_texts(["x"], model=model)
    with pytest.raises(TypeError, match=expected):
        retriever.add_documents(documents, ids=ids)
    assert len(retriever.index) == 1


def test_ids_in_place_of_the_documents_own(model: QRAGModel) -> None:
    retriever = QRAGRetriever.from_documents([Document("a"), Document("b", id="B")], ids=["0", "1"], model=model)
    assert retriever.index.ids == ["0", "1"]
    assert retriever.add_documents([Document("c")], ids=["1"]) == ["1"]
    assert [found.page_content for found in retriever.get(["0", "1"])] == ["a", "c"]
    with pytest.raises(ValueError, match="2 documents but 1 ids"):
        retriever.add_documents([Document("a"), Document("b")], ids=["0"])
    for documents, splitter in (([TextNode(text="a")], None), ([Document("a")], BY_SENTENCES["LangChain"])):
        with pytest.raises(TypeError, match="ids name LangChain documents that are chunks"):
            retriever.add_documents(documents, splitter, ids=["0"])


@pytest.mark.parametrize("mode", ["corpus", "document"])
def test_an_index_can_begin_empty_if_its_mode_is_named(model: QRAGModel, mode: Any) -> None:
    for made in (
        QRAGRetriever.from_texts([], model=model, mode=mode),
        QRAGRetriever.from_documents([], model=model, mode=mode),
        QRAGRetriever(index=ChunkIndex.from_texts([], model=model, mode=mode)),
    ):
        assert made.mode == mode
        assert made.invoke("Who owns shop 2?") == []
        manager = InMemoryRecordManager("shops")
        manager.create_schema()
        documents = [Document(text, metadata={"source": text[:8]}) for text in SENTENCES]
        assert index(documents, manager, made, cleanup="full", key_encoder="sha256")["num_added"] == 6
        assert made.mode == mode
        assert made.invoke("Who owns shop 2?")


def test_a_document_is_indexed_anew_in_place_of_itself(model: QRAGModel) -> None:
    parser = BY_SENTENCES["LlamaIndex"]
    retriever = QRAGRetriever.from_documents(
        [LlamaDocument(text=TEXT, id_="a"), LlamaDocument(text="Rain.", id_="b")], parser, model=model
    )
    kept = retriever.index.ids_of_document("b")
    new = retriever.update_ref_doc(LlamaDocument(text="Person 9 owns shop 9. It rains.", id_="a"), parser)
    assert retriever.index.ids_of_document("a") == new
    assert sorted(retriever.index.ids) == sorted(kept + new)
    assert retriever.update_ref_doc(LlamaDocument(text="Snow.", id_="c")) == retriever.index.ids_of_document("c")
    # Chunks that came with ids of their own go as well, and what names no document stays.
    retriever.add_documents([TextNode(id_="t", text="x", metadata={"document_id": "d"}), TextNode(id_="u", text="y")])
    assert retriever.refresh_ref_docs([LlamaDocument(text="z", id_="d")]) == [True]
    assert "t" not in retriever.index.ids
    assert "u" in retriever.index.ids


def test_a_shorter_document_leaves_none_of_its_old_chunks(model: QRAGModel) -> None:
    def numbered(number: int, document: Any) -> str:
        return f"{document.id_}-{number}"

    parser = SentenceSplitter(chunk_size=14, chunk_overlap=0, id_func=numbered)
    retriever = QRAGRetriever.from_documents([LlamaDocument(text=TEXT, id_="a")], parser, model=model)
    assert len(retriever.index) == 6
    retriever.update_ref_doc(LlamaDocument(text=" ".join(SENTENCES[3:5]), id_="a"), parser)
    assert retriever.index.ids == ["a-0", "a-1"]
    assert [found.page_content for found in retriever.get(["a-0", "a-1"])] == SENTENCES[3:5]


async def test_of_several_that_replace_a_document_one_is_left(model: QRAGModel, tmp_path: Path) -> None:
    retriever = QRAGRetriever.from_documents([LlamaDocument(text="Old.", id_="a")], model=model)
    texts = [f"New text {number}." for number in range(8)]
    await asyncio.gather(*(retriever.aupdate_ref_doc(LlamaDocument(text=text, id_="a")) for text in texts))
    assert len(retriever.index) == 1
    retriever.save(tmp_path / "index")
    two = [QRAGRetriever.load(tmp_path / "index", model=model) for _ in range(2)]
    for number, one in enumerate(two):
        one.update_ref_doc(LlamaDocument(text=f"Newest {number}.", id_="a"))
    left = QRAGRetriever.load(tmp_path / "index", model=model)
    assert [found.text for found in left.retrieve("What is new?")] == ["Newest 1."]
    assert await left.arefresh_ref_docs([LlamaDocument(text="Newest 1.", id_="a")]) == [False]


def test_a_splitter_of_one_framework_leaves_the_other_s_documents_as_they_are(model: QRAGModel) -> None:
    mixed = [Document(TEXT, id="whole"), LlamaDocument(text=TEXT, id_="split")]
    retriever = QRAGRetriever.from_documents(mixed, BY_SENTENCES["LlamaIndex"], model=model)
    assert retriever.get(["whole"])[0].page_content == TEXT
    assert len(retriever.index.ids_of_document("split")) == 6
    retriever = QRAGRetriever.from_documents(mixed, BY_SENTENCES["LangChain"], model=model)
    assert len(retriever.index.ids_of_document("whole")) == 6


def test_only_changed_documents_are_indexed_anew(model: QRAGModel, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [LlamaDocument(text=text, id_=str(number)) for number, text in enumerate(SENTENCES)]
    retriever = QRAGRetriever.from_documents(documents[:4], model=model)
    before = retriever.index.ids
    documents[1] = LlamaDocument(text="Another text.", id_="1")
    documents[2] = LlamaDocument(text=SENTENCES[2], id_="2", metadata={"year": 2001})
    assert retriever.refresh_ref_docs(documents) == [False, True, True, False, True, True]
    assert retriever.refresh_ref_docs(documents) == [False] * 6
    assert len(retriever.index) == 6
    assert set(before) & set(retriever.index.ids) == {before[0], before[3]}


def test_every_retriever_of_an_index_knows_its_live_objects(model: QRAGModel) -> None:
    child = QRAGRetriever.from_texts(["Mr. Adler owns the Blue Oven."], model=model, k=1)
    retriever = QRAGRetriever.from_texts(["rain"], model=model, mode="corpus")
    earlier = QRAGRetriever(index=retriever.index)
    own = QRAGRetriever(index=retriever.index, object_map={"own": earlier})
    retriever.add_documents([IndexNode(text="Owners of shops", index_id="own", id_="i", obj=child)])
    for one in (retriever, earlier, QRAGRetriever(index=retriever.index), earlier.model_copy()):
        assert {found.text for found in one.retrieve("Owners of shops")} == {"Mr. Adler owns the Blue Oven.", "rain"}
    assert own.object_map["own"] is earlier
    copied = own.model_copy()
    copied.object_map["other"] = child
    assert own.object_map.keys() == {"own"}


def test_an_index_whose_vector_store_keeps_the_text_is_refused(model: QRAGModel) -> None:
    class Store:
        stores_text = True

    class VectorStoreIndex:
        docstore, vector_store = SimpleDocumentStore(), Store()

    with pytest.raises(ValueError, match="this VectorStoreIndex is empty, since its vector store keeps"):
        QRAGRetriever.from_defaults(index=VectorStoreIndex(), model=model)
    VectorStoreIndex.vector_store.stores_text = False
    with pytest.raises(ValueError, match="expected at least one document, got none"):
        QRAGRetriever.from_defaults(index=VectorStoreIndex(), model=model)
    assert len(QRAGRetriever.from_defaults(index=VectorStoreIndex(), model=model, mode="corpus").index) == 0

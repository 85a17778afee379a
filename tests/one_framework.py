"""The retriever where only one framework is installed, or an old one; run with --framework in an environment like that.

Not collected by default: the file has no ``test_`` in its name.
"""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest

from qrag_retriever import QRAGModel, QRAGRetriever
from tests.conftest import QUESTION, STORY

MODULES = {"langchain": "langchain_core", "llama_index": "llama_index.core"}


def is_installed(module: str) -> bool:
    """Other packages keep the namespace ``llama_index`` alive when its core is gone."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture
def present(request: pytest.FixtureRequest) -> set[str]:
    chosen = request.config.getoption("--framework")
    return set(MODULES) if chosen == "both" else {chosen}


@pytest.fixture
def retriever(corpus_model: QRAGModel) -> QRAGRetriever:
    return QRAGRetriever.from_texts(STORY, ids=[f"s{i}" for i in range(len(STORY))], model=corpus_model, k=3)


def test_the_environment_is_what_it_is_said_to_be(present: set[str]) -> None:
    assert {name for name, module in MODULES.items() if is_installed(module)} == present


def test_the_class_is_a_retriever_of_what_is_there(present: set[str]) -> None:
    if "langchain" in present:
        from langchain_core.retrievers import BaseRetriever

        assert issubclass(QRAGRetriever, BaseRetriever)
    if "llama_index" in present:
        from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexRetriever

        assert issubclass(QRAGRetriever, LlamaIndexRetriever)


def test_the_model_in_the_package_needs_nothing_else() -> None:
    ids = [f"s{i}" for i in range(len(STORY))]
    found = QRAGRetriever.from_texts(STORY, ids=ids, k=3).search(QUESTION).ids
    assert len(set(found) & set(ids)) == 3


def test_the_present_side_works_and_the_other_names_its_package(retriever: QRAGRetriever, present: set[str]) -> None:
    expected = retriever.search(QUESTION).ids
    calls = {"langchain": ("invoke", "langchain-core"), "llama_index": ("retrieve", "llama-index-core")}
    for framework, (method, package) in calls.items():
        if framework in present:
            found = getattr(retriever, method)(QUESTION)
            assert [getattr(hit, "id", None) or hit.node.node_id for hit in found] == expected
        else:
            with pytest.raises(ImportError, match=f"pip install {package}"):
                getattr(retriever, method)(QUESTION)


async def test_asynchronous_calls(retriever: QRAGRetriever, present: set[str]) -> None:
    expected = retriever.search(QUESTION).ids
    assert (await retriever.asearch(QUESTION)).ids == expected
    if "langchain" in present:
        assert [document.id for document in await retriever.ainvoke(QUESTION, k=2)] == expected[:2]
    if "llama_index" in present:
        assert [node.node.node_id for node in await retriever.aretrieve(QUESTION)] == expected


def test_documents_of_what_is_there(corpus_model: QRAGModel, present: set[str]) -> None:
    if "langchain" in present:
        from langchain_core.documents import Document

        documents = [Document(text, metadata={"place": i}) for i, text in enumerate(STORY)]
        found = QRAGRetriever.from_documents(documents, model=corpus_model).invoke(QUESTION)
        assert {"place", "qrag_hop", "score"} <= found[0].metadata.keys()
    if "llama_index" in present:
        from llama_index.core.schema import Document as LlamaIndexDocument

        document = LlamaIndexDocument(text=" ".join(STORY), doc_id="story", metadata={"author": "nobody"})
        retriever = QRAGRetriever.from_documents([document], model=corpus_model, k=1)
        (hit,) = retriever.retrieve(QUESTION)
        assert hit.node.ref_doc_id == "story"
        assert hit.metadata["author"] == "nobody"


def test_add_delete_save_load_and_pickle(retriever: QRAGRetriever, tmp_path: Path) -> None:
    retriever.add_texts(["Mary slept."], ids=["new"])
    retriever.delete(["new"])
    retriever.save(tmp_path / "story.qrag")
    expected = retriever.search(QUESTION).ids
    assert QRAGRetriever.load(tmp_path / "story.qrag").search(QUESTION).ids == expected
    assert pickle.loads(pickle.dumps(retriever)).search(QUESTION).ids == expected


def test_a_chain_with_the_present_framework(retriever: QRAGRetriever, present: set[str]) -> None:
    if "langchain" in present:
        from langchain_core.runnables import RunnableLambda

        chain = retriever | RunnableLambda(len)
        assert chain.invoke(QUESTION) == 3
    if "llama_index" in present:
        from llama_index.core.llms import MockLLM
        from llama_index.core.query_engine import RetrieverQueryEngine

        engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
        assert len(engine.query(QUESTION).source_nodes) == 3


async def test_batches_and_streams(retriever: QRAGRetriever, present: set[str]) -> None:
    expected = retriever.search(QUESTION).ids
    assert [step.id for step in retriever.search_iter(QUESTION)] == expected
    assert [step.id async for step in retriever.asearch_iter(QUESTION)] == expected
    if "langchain" in present:
        for found in (retriever.batch([QUESTION, QUESTION]), await retriever.abatch([QUESTION, QUESTION])):
            assert [[document.id for document in documents] for documents in found] == [expected, expected]
    else:
        with pytest.raises(ImportError, match="pip install langchain-core"):
            retriever.batch([QUESTION])

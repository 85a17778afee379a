"""Vector stores of LangChain and LlamaIndex: the probe, what scores mean, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery, VectorStoreQueryResult
from pydantic import Field

from qrag_retriever import ChunkIndex, MultiStepSelector
from qrag_retriever.engines.langchain_store import GivenVectors
from qrag_retriever.engines.store_side import PLACE_KEY
from qrag_retriever.errors import EngineError
from tests.engine_indexes import DIM, MODEL, assert_same_hop, assert_same_search, in_memory, states, story


class Plain(VectorStore):
    """A LangChain store of one's own: how it scores and filters is to be varied."""

    def __init__(self, embedding: Embeddings | None = None) -> None:
        self.embedding_function = embedding
        self.rows: dict[str, tuple[np.ndarray, Document]] = {}

    @property
    def embeddings(self) -> Embeddings | None:
        return self.embedding_function

    def add_texts(self, texts: Any, metadatas: Any = None, *, ids: Any = None, **_: Any) -> list[str]:
        vectors = self.embedding_function.embed_documents(list(texts))  # type: ignore[union-attr]
        for id_, text, metadata, vector in zip(ids, texts, metadatas, vectors, strict=True):
            self.rows[id_] = (np.array(vector), Document(text, id=id_, metadata=metadata))
        return list(ids)

    def delete(self, ids: Any = None, **_: Any) -> None:
        for id_ in ids:
            self.rows.pop(id_, None)

    def admits(self, wanted: Any, metadata: dict[str, Any]) -> bool:
        return bool(wanted(metadata))

    def score(self, query: np.ndarray, vector: np.ndarray) -> float:
        return float(((query - vector) ** 2).sum())

    best_is_low = True

    def similarity_search_with_score(self, query: str, k: int = 4, filter: Any = None, **_: Any) -> Any:
        asked = np.array(self.embedding_function.embed_query(query))  # type: ignore[union-attr]
        rows = [row for row in self.rows.values() if self.admits(filter, row[1].metadata)]
        scored = [(document, self.score(asked, vector)) for vector, document in rows]
        return sorted(scored, key=lambda pair: pair[1] if self.best_is_low else -pair[1])[:k]

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, **options)]

    @classmethod
    def from_texts(cls, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def cosine(query: np.ndarray, vector: np.ndarray) -> float:
    return float(query @ vector / np.linalg.norm(query) / np.linalg.norm(vector))


SCORES: dict[str, tuple[Any, bool]] = {
    "cosine": (cosine, False),
    "cosine distance": (lambda q, v: 1 - cosine(q, v), True),
    "inner product": (lambda q, v: float(q @ v), False),
    "negative inner product": (lambda q, v: -float(q @ v), True),
    "one minus inner product": (lambda q, v: 1 - float(q @ v), True),
    "distance": (lambda q, v: float(np.linalg.norm(q - v)), True),
    "squared distance": (lambda q, v: float(((q - v) ** 2).sum()), True),
    "exp(-squared distance)": (lambda q, v: float(np.exp(-((q - v).astype(float) ** 2).sum())), False),
    "exp(-cosine distance)": (lambda q, v: float(np.exp(cosine(q, v) - 1)), False),
    "exp(-one minus inner product)": (lambda q, v: float(np.exp(float(q @ v) - 1)), False),
}


def filled(store: Any, **arguments: Any) -> tuple[ChunkIndex, ChunkIndex]:
    index, memory = ChunkIndex.on_store(store, MODEL, **arguments), in_memory()
    for one in (index, memory):
        one.add(**story())
    return index, memory


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_every_usual_meaning_become_q_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    score, best_is_low = SCORES[name]
    monkeypatch.setattr(Plain, "score", lambda self, query, vector: score(query, vector))
    monkeypatch.setattr(Plain, "best_is_low", best_is_low)
    index, memory = filled(Plain(DeterministicFakeEmbedding(size=5)))
    for picks in ([], [3, 30]):
        assert_same_hop(index.top_k(states(1)[0], picks, 7), memory.top_k(states(1)[0], picks, 7))
    assert_same_search(MultiStepSelector(index).select("?"), MultiStepSelector(memory).select("?"))


def mongo(wanted: Any, metadata: dict[str, Any]) -> bool:
    """Filters as many stores have them; conditions on one key in a list."""
    conditions = wanted["$and"]
    tests = {"$gte": lambda a, b: a >= b, "$lt": lambda a, b: a < b}
    return all(tests[op](metadata[key], value) for one in conditions for key, (op, value) in flat(one))


def flat(condition: dict[str, Any]) -> list[tuple[str, tuple[str, Any]]]:
    return [(key, pair) for key, parts in condition.items() for pair in parts.items()]


def test_filters_of_other_kinds_are_found_or_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "admits", lambda self, wanted, metadata: mongo(wanted, metadata))
    index, memory = filled(Plain(DeterministicFakeEmbedding(size=5)))
    assert_same_hop(index.top_k(states(1)[0], [3], 7), memory.top_k(states(1)[0], [3], 7))
    monkeypatch.setattr(
        Plain, "admits", lambda self, wanted, metadata: wanted[1] <= metadata[wanted[0]] < wanted[1] + wanted[2]
    )
    with pytest.raises(EngineError, match="cannot be on the store Plain"):
        ChunkIndex.on_store(Plain(GivenVectors()), MODEL)
    index, memory = filled(Plain(GivenVectors()), range_filter=lambda key, low, high: (key, low, high - low))
    assert_same_hop(index.top_k(states(1)[0], [3], 7), memory.top_k(states(1)[0], [3], 7))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "ignores filters": ({"admits": lambda self, wanted, metadata: True}, "range of integers"),
    "inclusive filters": (
        {"admits": lambda self, wanted, m: wanted(m) or wanted({PLACE_KEY: m[PLACE_KEY] - 1})},
        "range of integers",
    ),
    "other ranking": ({"score": lambda self, query, vector: float(np.abs(query - vector).max())}, "does not rank"),
    "other scores": ({"score": lambda self, query, vector: float(((query - vector) ** 2).sum()) ** 3}, "none of these"),
    "coarse scores": (
        {"score": lambda self, query, vector: round(float(((query - vector) ** 2).sum()), 2)},
        "none of these|does not rank",
    ),
    "keeps what is deleted": ({"delete": lambda self, ids: None}, "can still be found"),
    "cannot delete": ({"delete": VectorStore.delete}, "deleting vectors by id fails"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_store_that_fails_the_probe_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, message = BROKEN[name]
    for method, replacement in methods.items():
        monkeypatch.setattr(Plain, method, replacement)
    with pytest.raises(EngineError, match=message):
        ChunkIndex.on_store(Plain(GivenVectors()), MODEL)


def test_a_store_of_another_dimension_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(self: Plain, texts: Any, *_: Any, **__: Any) -> None:
        raise ValueError(f"expected 5 components, got {len(self.embeddings.embed_documents(texts)[0])}")

    monkeypatch.setattr(Plain, "add_texts", add)
    with pytest.raises(EngineError, match=f"got {DIM + 1}"):
        ChunkIndex.on_store(Plain(GivenVectors()), MODEL)


def test_a_users_own_store_and_documents_stay_as_they_are() -> None:
    embeddings = DeterministicFakeEmbedding(size=DIM + 1)
    store = InMemoryVectorStore(embeddings)
    store.add_texts(["mine"], ids=["mine"])
    index, memory = filled(store)
    assert store.embeddings is embeddings
    assert len(store.store) == 61  # nothing of the probe is left
    assert_same_hop(index.top_k(states(1)[0], [3], 99), memory.top_k(states(1)[0], [3], 99))
    index.delete(index.ids)
    assert list(store.store) == ["mine"]


def test_a_store_that_hides_its_embeddings_needs_given_vectors() -> None:
    store = Plain(DeterministicFakeEmbedding(size=5))
    hidden = type("Hidden", (Plain,), {"embeddings": property(lambda self: None)})
    with pytest.raises(EngineError, match="GivenVectors"):
        ChunkIndex.on_store(hidden(store.embeddings), MODEL)
    given = GivenVectors()
    ChunkIndex.on_store(Plain(given), MODEL)
    with pytest.raises(EngineError, match="alone may add"):
        given.embed_query("something else")


def test_one_store_carries_one_index() -> None:
    store = SimpleVectorStore()
    filled(store)
    with pytest.raises(EngineError, match="already"):
        ChunkIndex.on_store(store, MODEL)
    with pytest.raises(TypeError, match="vector store of LangChain or LlamaIndex"):
        ChunkIndex.on_store(object(), MODEL)


class GivesBack(BasePydanticVectorStore):
    """A LlamaIndex store that returns nodes with their vectors, and scores of its own."""

    stores_text: bool = True
    nodes: dict[str, TextNode] = Field(default_factory=dict)
    spoil: float = 1.0

    @property
    def client(self) -> None:
        return None

    def add(self, nodes: Sequence[Any], **_: Any) -> list[str]:
        self.nodes.update({node.node_id: node for node in nodes})
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **_: Any) -> None:
        raise NotImplementedError

    def delete_nodes(self, node_ids: Any = None, filters: Any = None, **_: Any) -> None:
        for id_ in node_ids:
            self.nodes.pop(id_, None)

    def query(self, query: VectorStoreQuery, **_: Any) -> VectorStoreQueryResult:
        low, high = (one.value for one in query.filters.filters)  # type: ignore[union-attr]
        found = [node for node in self.nodes.values() if low <= node.metadata[PLACE_KEY] < high]
        products = {node.node_id: np.dot(node.embedding, query.query_embedding) for node in found}  # type: ignore[arg-type]
        best = sorted(found, key=lambda node: -products[node.node_id])[: query.similarity_top_k]
        given = [node.model_copy(update={"embedding": [self.spoil * x for x in node.embedding]}) for node in best]  # type: ignore[union-attr]
        return VectorStoreQueryResult(nodes=given, similarities=[7.0] * len(best), ids=[node.node_id for node in best])


def test_vectors_that_a_store_gives_back_are_scored_again() -> None:
    index, memory = filled(GivesBack())
    found, expected = index.top_k(states(1)[0], [3], 7), memory.top_k(states(1)[0], [3], 7)
    assert found[0].tolist() == expected[0].tolist()
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    with pytest.raises(EngineError, match="none of these"):
        ChunkIndex.on_store(GivesBack(spoil=0.5), MODEL)


def test_an_addition_that_fails_leaves_the_old_state(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Plain(GivenVectors())
    index, memory = filled(store)
    delete, add = Plain.delete, Plain.add_texts

    def half(self: Plain, texts: Any, metadatas: Any = None, *, ids: Any = None, **_: Any) -> None:
        add(self, texts[:1], metadatas[:1], ids=ids[:1])
        raise OSError("full")

    def refusing(self: Plain, ids: Any = None, **_: Any) -> None:
        monkeypatch.setattr(Plain, "delete", delete)
        raise OSError("full")

    for method, broken in (("add_texts", half), ("delete", refusing)):
        monkeypatch.setattr(Plain, method, broken)
        with pytest.raises(OSError, match="full"):
            index.add(["new", "other"], ids=["id1", "x"])
        monkeypatch.undo()
        assert len(store.rows) == len(index) == 60
        assert index.get(index.ids) == memory.get(memory.ids)
        assert_same_hop(index.top_k(states(1)[0], [3], 60), memory.top_k(states(1)[0], [3], 60))


def test_longer_embeddings_than_were_planned_for_are_refused() -> None:
    index = ChunkIndex.on_store(SimpleVectorStore(), dim=4)
    index.add(["a"], embeddings=np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="max_norm=12"):
        index.add(["b"], embeddings=3 * np.ones((1, 4), np.float32))
    assert len(index) == 1
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_norm"):
            ChunkIndex.on_store(SimpleVectorStore(), dim=4, max_norm=bad)
    index = ChunkIndex.on_store(SimpleVectorStore(), dim=4, mode="corpus", max_norm=10)
    index.add(["a", "b"], embeddings=np.array([[0, 0, 0, 0], [9, 0, 0, 0]], np.float32))
    found = index.top_k(np.array([-1, 0, 0, 0], np.float32), [], 2)
    np.testing.assert_allclose(found[1], [0, -9], atol=1e-4)
    assert index.top_k(np.zeros(4, np.float32), [], 2)[1].tolist() == [0, 0]


def test_vectors_cannot_be_read_back() -> None:
    index, _ = filled(SimpleVectorStore())
    with pytest.raises(EngineError, match="cannot be read back"):
        index.q_values(states(1)[0])

"""Empty indexes on every kind of engine, and the same chunks for them and for an index in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.vector_stores import SimpleVectorStore
from qdrant_client import QdrantClient

from qrag_retriever import ChunkIndex
from tests.toy_model import ToyModel

DIM = 32
MODEL = ToyModel(dim=DIM)
NATIVE = ["pgvector", "qdrant"]
STORES: dict[str, Callable[[], Any]] = {
    "langchain": lambda: InMemoryVectorStore(DeterministicFakeEmbedding(size=3)),
    "llama_index": SimpleVectorStore,
}
ENGINES = [*NATIVE, *STORES]


def fresh_name() -> str:
    return f"t{uuid.uuid4().hex}"


class Opener:
    """Opens indexes on one engine; the same name twice opens the same index."""

    def __init__(self, engine: str, postgres: str | None) -> None:
        self.engine = engine
        self.postgres = postgres
        self.client = QdrantClient(":memory:") if engine == "qdrant" else None

    def __call__(self, name: str | None = None, **arguments: Any) -> ChunkIndex:
        if "dim" not in arguments and name is None:
            arguments.setdefault("model", MODEL)
        if self.engine == "pgvector":
            return ChunkIndex.on_pgvector(self.postgres, name or fresh_name(), **arguments)
        if self.engine == "qdrant":
            return ChunkIndex.on_qdrant(self.client, name or fresh_name(), **arguments)
        return ChunkIndex.on_store(STORES[self.engine](), **arguments)


def in_memory(mode: str = "document") -> ChunkIndex:
    """An empty index in memory, of the same model."""
    nothing = np.empty((0, DIM), np.float32)
    return ChunkIndex.from_embeddings(nothing, model=MODEL, mode=mode)  # type: ignore[arg-type]


def story(count: int = 60, first: int = 0) -> dict[str, Any]:
    """Arguments for `ChunkIndex.add`: chunks of three documents in turn, and some that stand alone."""
    numbers = range(first, first + count)
    return {
        "texts": [f"chunk {i}" for i in numbers],
        "ids": [f"id{i}" for i in numbers],
        "metadatas": [{"document_id": f"doc{i % 4}" if i % 4 else None, "number": i, "odd": i % 2} for i in numbers],
    }


def states(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((count, DIM)).astype(np.float32)


def assert_same_hop(found: Any, expected: Any) -> None:
    """The same chunks where scores are further apart than rounding, and the same scores."""
    (ids, scores), (other_ids, other_scores) = found, expected
    assert ids.shape == other_ids.shape
    np.testing.assert_allclose(scores, other_scores, atol=1e-5)
    different = ids != other_ids
    # Ties may be in another order.
    assert sorted(ids[different]) == sorted(other_ids[different])


def assert_same_search(found: Any, expected: Any) -> None:
    """The same picks of a selection, with all that is told of them."""
    assert [step.id for step in found.steps] == [step.id for step in expected.steps]
    assert found.stop_reason == expected.stop_reason
    for step, other in zip(found.steps, expected.steps, strict=True):
        assert (step.chunk_id, step.text, step.metadata, step.position) == (
            other.chunk_id,
            other.text,
            other.metadata,
            other.position,
        )
        np.testing.assert_allclose([step.q_value, step.position_gain], [other.q_value, other.position_gain], atol=1e-4)

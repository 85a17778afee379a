"""A search on an engine can be looked at like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_index.core.vector_stores import SimpleVectorStore

from qrag_retriever import ChunkIndex, QRAGModel, QRAGRetriever
from qrag_retriever.errors import EngineError
from tests.conftest import QUESTION, STORY
from tests.engine_indexes import MODEL, story


@pytest.mark.filterwarnings("ignore:Local mode")
def test_hops_on_an_engine_show_the_same_values(tmp_path: Path, model: QRAGModel) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    index = ChunkIndex.on_qdrant(qdrant_client.QdrantClient(":memory:"), model=model)
    index.add(STORY, ids=[str(i) for i in range(len(STORY))])
    found = QRAGRetriever(index=index, batch_wait_ms=1).search(QUESTION)
    expected = QRAGRetriever.from_texts(STORY, ids=index.ids, model=model).search(QUESTION)
    assert found.ids == expected.ids
    for hop in range(len(found)):
        own, other = (selection._trace.hop(hop).q_values for selection in (found, expected))  # type: ignore[union-attr]
        np.testing.assert_allclose(own, other, atol=1e-5)
    page = found.to_html(tmp_path / "hops.html").read_text(encoding="utf-8")
    assert all(step.text in page for step in found.steps)


def test_a_store_that_gives_no_vectors_back_shows_its_hops_without_a_map(tmp_path: Path) -> None:
    index = ChunkIndex.on_store(SimpleVectorStore(), model=MODEL)
    index.add(**story(20))
    selection = QRAGRetriever(index=index).search("what happened?")
    assert selection.steps[0].text in selection._repr_html_()
    assert selection.steps[0].text in selection.to_html(tmp_path / "hops.html").read_text(encoding="utf-8")
    with pytest.raises(EngineError, match="cannot be read back"):
        selection.plot()

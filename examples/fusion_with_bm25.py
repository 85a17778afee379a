"""Keyword search (BM25) and the hops in one ranking, in both frameworks, offline.

Fusion by RANK fits: reciprocal rank fusion (LangChain's EnsembleRetriever, LlamaIndex's mode "reciprocal_rerank") asks
only what came before what. Fusion by SCORE does not ("relative_score", "dist_based_score", "simple"): it takes the
scores of a list as one measure of relevance. A Q-value is the value of picking a chunk in the state of its own hop: the
second hop asks something else than the first, and where its values are lower, less is left to find; the chunk does not
matter less. "relative_score" turns the lowest Q-value of the list into 0, whichever hop's it is, and so ranks
evidence no higher than chunks that are none. Here BM25 finds who had the football, and only the second hop finds
where that was, in a story that lies scattered in a chapter of "Alice's Adventures in Wonderland".

Run it with: python examples/fusion_with_bm25.py
It needs bm25s and langchain-classic (pip install -c constraints.txt '.[examples]').
"""

import re
from pathlib import Path
from typing import Any

import bm25s
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from qrag_retriever import QRAGRetriever

STORY = [
    "Mary took the football.",
    "Mary went to the garden.",
    "John moved to the office.",
    "Mary travelled to the kitchen.",
    "John picked up the apple.",
    "Mary went back to the hallway.",
    "Mary dropped the football.",
    "John journeyed to the bedroom.",
    "Sandra took the milk.",
    "Sandra moved to the garden.",
    "John put down the apple.",
]
QUESTION = "Where is the football?"
EVIDENCE = ["Mary dropped the football.", "Mary went back to the hallway."]
K = 2


class Keywords:
    """BM25 over texts."""

    def __init__(self, texts: list[str]) -> None:
        self._bm25 = bm25s.BM25()
        self._bm25.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def best(self, question: str) -> list[tuple[int, float]]:
        found, scores = self._bm25.retrieve(bm25s.tokenize([question], show_progress=False), k=K, show_progress=False)
        return [(int(number), float(score)) for number, score in zip(found[0], scores[0], strict=True)]


class LangChainBM25(LangChainRetriever):
    """BM25 for LangChain."""

    keywords: Any
    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager) -> list[Document]:
        return [self.documents[number] for number, _ in self.keywords.best(query)]


class LlamaIndexBM25(LlamaIndexRetriever):
    """BM25 for LlamaIndex."""

    def __init__(self, keywords: Keywords, nodes: list[TextNode]) -> None:
        super().__init__()
        self._keywords, self._nodes = keywords, nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=self._nodes[n], score=s) for n, s in self._keywords.best(query_bundle.query_str)]


def main() -> None:
    book = Path(__file__).with_name("alice.txt").read_text(encoding="utf-8")
    chapter = book.split("CHAPTER I. Down the Rabbit-Hole")[1].split("CHAPTER II.")[0]
    sentences = re.split(r"(?<=[.!?;])\s+", chapter.strip())
    for place, line in enumerate(STORY):
        sentences.insert(8 * place + 7, line)
    ids = [str(number) for number in range(len(sentences))]
    keywords = Keywords(sentences)
    # LlamaIndex tells duplicates by text and metadata: without the hop, a chunk that both have found is one chunk.
    # order stays "retrieved": in document order, a chunk's rank would be its place in the text.
    hops = QRAGRetriever.from_texts(sentences, ids=ids, k=K, score_key=None, hop_key=None)

    print(f"{QUESTION}\nevidence: {[sentences.index(sentence) for sentence in EVIDENCE]}")
    steps = hops.search(QUESTION).steps
    print("\nThe hops, with Q-values:", [(step.chunk_id, round(step.q_value, 3)) for step in steps])
    print("BM25, with its scores:", [(number, round(score, 3)) for number, score in keywords.best(QUESTION)])

    documents = [Document(text, id=id_) for text, id_ in zip(sentences, ids, strict=True)]
    bm25 = LangChainBM25(keywords=keywords, documents=documents)
    ensemble = EnsembleRetriever(retrievers=[hops, bm25], weights=[0.6, 0.4])
    print("\nLangChain, EnsembleRetriever:", [int(document.id) for document in ensemble.invoke(QUESTION)])

    nodes = [TextNode(text=text, id_=id_) for text, id_ in zip(sentences, ids, strict=True)]
    for mode in ("reciprocal_rerank", "relative_score"):
        fusion = QueryFusionRetriever(
            [hops, LlamaIndexBM25(keywords, nodes)],
            llm=MockLLM(),  # it would write more queries; with num_queries=1 nothing is asked of it
            num_queries=1,
            mode=mode,
            retriever_weights=[0.6, 0.4],
            similarity_top_k=2 * K,
            use_async=False,
        )
        found = [(int(node.node_id), round(node.score, 3)) for node in fusion.retrieve(QUESTION)]
        print(f"LlamaIndex, {mode}: {found}")


if __name__ == "__main__":
    main()

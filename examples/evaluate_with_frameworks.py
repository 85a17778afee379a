"""Measure the hops with what the frameworks measure retrieval with, side by side with keyword search, offline.

LlamaIndex has RetrieverEvaluator, with hit_rate, mrr, recall and others. LangChain itself only judges answers; for
retrieval there is LangSmith's evaluate, whose evaluators are functions of one's own and which needs no account when
nothing is to be uploaded.

Mind what is measured: hit_rate and mrr are content with the first piece of evidence, which a single step finds too. A
question of several hops is answered only if all of its evidence is there: that is "all_found" below.

The questions are about a story whose sentences lie scattered in a chapter of "Alice's Adventures in Wonderland". Only
the order tells what is true in the end, so BM25 finds who dropped the football, but not where that was.

Run it with: python examples/evaluate_with_frameworks.py
It needs bm25s (pip install -c constraints.txt '.[examples]'). More figures, with intervals: qrag eval, qrag-bench.
"""

import asyncio
import re
import uuid
from pathlib import Path
from typing import ClassVar

import bm25s
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from langsmith import Client, evaluate, tracing_context
from langsmith.schemas import Example
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.evaluation.retrieval.metrics import MRR, HitRate, Recall
from llama_index.core.evaluation.retrieval.metrics_base import BaseRetrievalMetric, RetrievalMetricResult
from llama_index.core.retrievers import BaseRetriever
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
QUESTIONS = {  # and their evidence
    "Where is the football?": ["Mary dropped the football.", "Mary went back to the hallway."],
    "Where is the apple?": ["John put down the apple.", "John journeyed to the bedroom."],
    "Where is the milk?": ["Sandra took the milk.", "Sandra moved to the garden."],
    "Where is Mary?": ["Mary went back to the hallway."],
    "Where is John?": ["John journeyed to the bedroom."],
    "Where is Sandra?": ["Sandra moved to the garden."],
}
K = 3


class AllFound(BaseRetrievalMetric):
    """1 if all of the evidence was retrieved, else 0."""

    metric_name: ClassVar[str] = "all_found"

    def compute(self, query=None, expected_ids=None, retrieved_ids=None, *args, **kwargs) -> RetrievalMetricResult:
        return RetrievalMetricResult(score=float(set(expected_ids) <= set(retrieved_ids)))


class Keywords(BaseRetriever):
    """BM25 for LlamaIndex."""

    def __init__(self, nodes: list[TextNode]) -> None:
        super().__init__()
        self._nodes = nodes
        self._bm25 = bm25s.BM25()
        texts = [node.text for node in nodes]
        self._bm25.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = bm25s.tokenize([query_bundle.query_str], show_progress=False)
        found, scores = self._bm25.retrieve(query, k=K, show_progress=False)
        return [NodeWithScore(node=self._nodes[n], score=float(s)) for n, s in zip(found[0], scores[0], strict=True)]


async def with_llama_index(retriever: BaseRetriever, expected: dict[str, list[str]]) -> dict[str, float]:
    """Return each metric's mean over the questions, whose expected ids are given."""
    evaluator = RetrieverEvaluator(metrics=[HitRate(), MRR(), Recall(), AllFound()], retriever=retriever)
    results = [(await evaluator.aevaluate(question, ids)).metric_vals_dict for question, ids in expected.items()]
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def all_found(outputs: dict, reference_outputs: dict) -> bool:
    """Judge one question, for LangSmith."""
    return set(reference_outputs["ids"]) <= set(outputs["ids"])


def with_langsmith(retriever: LangChainRetriever, expected: dict[str, list[str]]) -> float:
    """Return the share of questions with all evidence found."""
    dataset = uuid.uuid4()
    examples = [
        Example(id=uuid.uuid4(), dataset_id=dataset, inputs={"question": question}, outputs={"ids": ids})
        for question, ids in expected.items()
    ]

    def target(inputs: dict) -> dict:
        # evaluate would trace what LangChain does in here, and send it off in spite of upload_results=False.
        with tracing_context(enabled=False):
            return {"ids": [document.id for document in retriever.invoke(inputs["question"])]}

    # With a key, Client(), the name of a data set there and upload_results=True, LangSmith's pages show the same.
    offline = Client(api_key="none", auto_batch_tracing=False)
    results = evaluate(target, data=examples, evaluators=[all_found], client=offline, upload_results=False)
    scores = [result.score for row in results for result in row["evaluation_results"]["results"]]
    return sum(scores) / len(scores)


def main() -> None:
    book = Path(__file__).with_name("alice.txt").read_text(encoding="utf-8")
    chapter = book.split("CHAPTER I. Down the Rabbit-Hole")[1].split("CHAPTER II.")[0]
    sentences = re.split(r"(?<=[.!?;])\s+", chapter.strip())
    for place, line in enumerate(STORY):
        sentences.insert(8 * place + 7, line)
    nodes = [TextNode(text=sentence, id_=str(number)) for number, sentence in enumerate(sentences)]
    expected = {
        question: [str(sentences.index(sentence)) for sentence in evidence] for question, evidence in QUESTIONS.items()
    }
    hops = QRAGRetriever.from_defaults(nodes=nodes, mode="document", k=K)

    print(f"{len(expected)} questions, the {K} best of {len(nodes)} sentences")
    for name, retriever in (("hops", hops), ("BM25", Keywords(nodes))):
        means = asyncio.run(with_llama_index(retriever, expected))
        print(f"LlamaIndex, {name}:  " + "  ".join(f"{metric} {mean:.2f}" for metric, mean in means.items()))
    print(f"LangSmith, hops:  all_found {with_langsmith(hops, expected):.2f}")


if __name__ == "__main__":
    main()

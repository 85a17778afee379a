"""The baseline that pays for a language model at every hop: retrieve, let it write the next query, retrieve."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from qrag_retriever.benchmarks.suite.methods import Found, SingleStepDense, top
from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards.asking import ask_method, ask_once_more

PROMPT = """\
You look for passages that together answer a question. Write the next search query: one line, no explanation.

Question: {question}

Passages found so far:
{passages}

Next search query:"""


class StandInLLM:
    """A language model of fixed latency that writes no new thought: its query repeats question and last passage.

    For comparing latency where no language model is at hand.
    """

    def __init__(self, seconds: float) -> None:
        """Answer after so many seconds."""
        self._seconds = seconds

    def invoke(self, prompt: str) -> str:
        """Answer one prompt."""
        time.sleep(self._seconds)
        lines = [line for line in prompt.splitlines() if line.startswith(("Question: ", "- "))]
        return " ".join(line.split(" ", 1)[1] for line in (lines[0], lines[-1]))

    def batch(self, prompts: Sequence[str], **_: Any) -> list[str]:
        """Answer prompts one after the other."""
        return [self.invoke(prompt) for prompt in prompts]


class LLMAgent:
    """Picks one chunk per query by dense retrieval; the first query is the question, the model writes the others."""

    def __init__(self, dense: SingleStepDense, llm: Any) -> None:
        """Take a retriever, and a LangChain chat model or LlamaIndex LLM."""
        # Its figures are not to be taken for a language model's.
        self.name = f"{dense.name} (stand-in)" if isinstance(llm, StandInLLM) else dense.name
        self.model = dense.model
        self._dense, self._ask = dense, ask_method(llm)

    @property
    def embed_seconds(self) -> float:
        """Seconds spent on embedding chunks so far."""
        return self._dense.embed_seconds

    def find(self, sample: Sample, k: int) -> Found:
        """Pick chunk after chunk.

        Raises:
            RewardError: If the model fails, or answers without text.
        """
        matrix = self._dense.matrix(sample)
        start = time.perf_counter()
        picked: list[int] = []
        query, calls = sample.question, 0
        for hop in range(min(k, len(sample.chunks))):
            if hop:
                query, calls = self._next_query(sample, picked), calls + 1
            scores = matrix @ self._dense.embed(query)
            scores[picked] = -np.inf
            picked.extend(top(scores, 1))
        return Found(tuple(picked), time.perf_counter() - start, llm_calls=calls)

    def _next_query(self, sample: Sample, picked: Sequence[int]) -> str:
        passages = "\n".join(f"- {' '.join(sample.chunks[i].split())}" for i in picked)
        answer = ask_once_more(self._ask, PROMPT.format(question=sample.question, passages=passages))
        return answer.strip() or sample.question

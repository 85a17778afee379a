"""The optional reader: a language model answers from the picks, and its answers are scored."""

from __future__ import annotations

from typing import Any

from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards.answer_text import answer_score, exact_match, f1
from qrag_retriever.training.rewards.asking import ask_method, ask_once_more
from qrag_retriever.training.rewards.llm import DEFAULT_PROMPT


class Reader:
    """Asks a language model the question over what was picked."""

    def __init__(self, llm: Any) -> None:
        """Take a LangChain chat model or a LlamaIndex LLM."""
        self._ask = ask_method(llm)

    def scores(self, sample: Sample, chunk_ids: tuple[int, ...]) -> dict[str, float]:
        """Return exact match and F1 of the answer, by SQuAD's normalisation; nothing where no answer is known.

        Raises:
            RewardError: If the model fails, or answers without text.
        """
        if not sample.answers:
            return {}
        shown = sorted(chunk_ids) if sample.mode == "document" else chunk_ids
        prompt = DEFAULT_PROMPT.format(passages="\n\n".join(sample.chunks[i] for i in shown), question=sample.question)
        answer = ask_once_more(self._ask, prompt)
        return {
            "answer_em": answer_score(answer, sample.answers, exact_match),
            "answer_f1": answer_score(answer, sample.answers, f1),
        }

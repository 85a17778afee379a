"""The reward for what a language model answers when it is shown the picked chunks."""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.errors import RewardError
from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards.answer_text import answer_score, exact_match, f1
from qrag_retriever.training.rewards.asking import ask_many, ask_method, attempt, text_of
from qrag_retriever.training.rewards.base import Feedback, Outcome, check_amounts

logger = logging.getLogger(__name__)

Judge = Literal["exact", "f1"]

DEFAULT_PROMPT = """\
Answer the question from these passages alone. Give the shortest possible answer: a name, a date, yes or no, a few \
words, but no sentence. Separate several answers by semicolons. If the passages do not tell, answer: unknown.

Passages:
{passages}

Question: {question}
Answer:"""

_THRESHOLDS = {"exact": 1.0, "f1": 0.5}
# A model may have nothing to say to a prompt, but hardly to so many in a row.
_MANY_EMPTY = 32
_MEASURES = {"exact": exact_match, "f1": f1}
_PLACES = ("{passages}", "{question}")


class LLMAnswerReward:
    """Pays when a language model that sees the question and the picked chunks answers right.

    By default the model is asked once, at the end of an episode; with ``every_step`` after every pick until it is
    right, and the first right answer is paid. Every prompt is asked once only, as long as it is in the cache.

    Attributes:
        num_calls: Prompts put to the model, repeated ones included.
        num_cache_hits: Answers that were needed and known already.
    """

    def __init__(
        self,
        llm: Any,
        judge: Judge = "exact",
        *,
        threshold: float | Literal["auto"] | None = "auto",
        prompt: str = DEFAULT_PROMPT,
        batch_size: int = 16,
        cache_size: int = 10_000,
        every_step: bool = False,
        reward: float = 1.0,
        penalize_extra_steps: bool = False,
        terminate: bool = False,
        max_retries: int = 2,
        retry_wait_seconds: float = 1.0,
    ) -> None:
        """Take a language model as judge.

        Args:
            llm: A LangChain model or a LlamaIndex LLM, ready to answer. Several prompts may be put to it from several
                threads at once; ``batch_size=1`` avoids that.
            judge: How its answer is compared with the known ones: "exact" match or "f1" of the words, both normalised
                as SQuAD's evaluation does; see `answer_text.answer_score` for several answers.
            threshold: Score from which an answer is right and earns the whole reward; "auto": 1.0 for "exact", so that
                every known answer has to be there and nothing else, 0.5 for "f1". None pays in proportion to the score
                (not with ``every_step``).
            prompt: What the model is asked, with the places ``{passages}`` and ``{question}``. The passages are the
                picked chunks, in document order in document mode, in the order of picking otherwise.
            batch_size: Most prompts put to the model at the same time.
            cache_size: Answers kept, the least recently used go first; 0 keeps none.
            every_step: Whether to ask after every pick.
            reward: What a right answer earns.
            penalize_extra_steps: Whether it is multiplied by ``0.5 + 0.5 / |picked|`` (with ``every_step``; else all
                episodes are as long as they may be).
            terminate: Whether a right answer ends the episode (with ``every_step``).
            max_retries: How often a prompt is put again after a failure.
            retry_wait_seconds: Wait before the first retry; it doubles each time.

        Raises:
            TypeError: If ``llm`` is no model of either framework.
            ValueError: If a setting is out of range, or the prompt lacks a place.
        """
        ask_method(llm)
        threshold = _THRESHOLDS.get(judge) if threshold == "auto" else threshold
        _check(judge, threshold, prompt, every_step)
        check_at_least_one(batch_size=batch_size)
        check_amounts(
            reward=reward, cache_size=cache_size, max_retries=max_retries, retry_wait_seconds=retry_wait_seconds
        )
        self.llm = llm
        self.prompt = prompt
        self.threshold = threshold
        self.batch_size = batch_size
        self.cache_size = cache_size
        self.every_step = every_step
        self.reward = reward
        self.penalize_extra_steps = penalize_extra_steps and every_step
        self.terminate = terminate
        self._empty_in_a_row = 0
        self.num_calls = 0
        self.num_cache_hits = 0
        self._measure = _MEASURES[judge]
        self._waits = [retry_wait_seconds * 2**retry for retry in range(max_retries)]
        self._cache: OrderedDict[str, str] = OrderedDict()

    def judge(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
        """Judge the picks of one step.

        Raises:
            RewardError: If the model still fails after the retries, or answers with something else than text. Answers
                that did come are kept, so judging the same outcomes again asks only for the others.
            ValueError: If a sample's answers are not known.
        """
        if self.every_step:
            return self._judge_every_step(outcomes)
        asked = [outcome for outcome in outcomes if outcome.last]
        scores = iter(self._scores([(outcome.sample, outcome.picked) for outcome in asked]))
        return [
            Feedback(self.reward * self._paid_share(next(scores)), settled=True) if outcome.last else Feedback(0.0)
            for outcome in outcomes
        ]

    def unusable(self, sample: Sample) -> str | None:
        """Return why this reward cannot judge a sample; None if it can."""
        if not sample.answers or not all(sample.answers):
            return "its answers are not known"
        if any(set(aliases) == {"noanswer"} for aliases in sample.answers):
            return "it has no answer"
        return None

    def most(self, sample: Sample) -> float:
        """Return the highest sum of rewards that an episode can have."""
        return self.reward

    def _judge_every_step(self, outcomes: Sequence[Outcome]) -> list[Feedback]:
        """Find for each outcome the first number of picks with a right answer: only that pick is paid.

        The answers to earlier picks are in the cache, unless it is too small or training was resumed; once one is
        right, later picks are not asked about.
        """
        first_right: dict[int, int] = {}
        for num_picked in range(1, max((len(outcome.picked) for outcome in outcomes), default=0) + 1):
            asked = [i for i, o in enumerate(outcomes) if i not in first_right and len(o.picked) >= num_picked]
            scores = self._scores([(outcomes[i].sample, outcomes[i].picked[:num_picked]) for i in asked])
            first_right |= {i: num_picked for i, score in zip(asked, scores, strict=True) if self._paid_share(score)}
        return [
            Feedback(
                self._paid_after(len(outcome.picked)) if first_right.get(i) == len(outcome.picked) else 0.0,
                ends=self.terminate and i in first_right,
                settled=i in first_right,
            )
            for i, outcome in enumerate(outcomes)
        ]

    def _paid_after(self, num_picked: int) -> float:
        return self.reward * (0.5 + 0.5 / num_picked if self.penalize_extra_steps else 1.0)

    def _paid_share(self, score: float) -> float:
        return score if self.threshold is None else float(score >= self.threshold)

    def _scores(self, shown: Sequence[tuple[Sample, tuple[int, ...]]]) -> list[float]:
        for sample, _ in shown:
            if self.unusable(sample) is not None:
                raise ValueError(f"sample {sample.id!r} cannot be judged: {self.unusable(sample)}; leave it out")
        answers = self._answers([(self._prompt(sample, picked), sample.question) for sample, picked in shown])
        return [
            answer_score(answer, sample.answers or (), self._measure)
            for answer, (sample, _) in zip(answers, shown, strict=True)
        ]

    def _prompt(self, sample: Sample, picked: tuple[int, ...]) -> str:
        order = sorted(picked) if sample.mode == "document" else picked
        passages = "\n\n".join(sample.chunks[chunk_id] for chunk_id in order)
        values = dict(zip(_PLACES, (passages, sample.question), strict=True))
        # In one pass: a passage may hold the characters of a place.
        return re.sub("|".join(map(re.escape, _PLACES)), lambda place: values[place[0]], self.prompt)

    def _answers(self, prompts: Sequence[tuple[str, str]]) -> list[str]:
        """Answer (prompt, question) pairs from the cache or by asking, equal prompts once."""
        known = {prompt: self._cache[prompt] for prompt, _ in prompts if prompt in self._cache}
        for prompt in known:
            self._cache.move_to_end(prompt)
        new = {prompt: question for prompt, question in prompts if prompt not in known}
        self.num_cache_hits += len(prompts) - len(new)
        waiting = list(new.items())
        for start in range(0, len(waiting), self.batch_size):
            known |= self._ask(dict(waiting[start : start + self.batch_size]))
        return [known[prompt] for prompt, _ in prompts]

    def _ask(self, questions: dict[str, str]) -> dict[str, str]:
        """Put a batch of prompts to the model; what it answers is in the cache even if another prompt fails."""
        responses = dict(zip(questions, ask_many(self.llm, list(questions)), strict=True))
        self.num_calls += len(questions)
        texts = {prompt: text_of(response) for prompt, response in responses.items()}
        answers = {prompt: self._keep(prompt, text) for prompt, text in texts.items() if text is not None}
        for prompt in responses.keys() - answers.keys():
            answers[prompt] = self._keep(prompt, self._insist(prompt, questions[prompt], responses[prompt]))
        return answers

    def _insist(self, prompt: str, question: str, response: Any) -> str:
        """Put a prompt again while it fails; return the text, or raise RewardError."""
        llm = type(self.llm).__name__
        for seconds in self._waits:
            if not isinstance(response, Exception):
                break
            time.sleep(seconds)
            self.num_calls += 1
            response = attempt(ask_method(self.llm), prompt)
        if isinstance(response, Exception):
            raise RewardError(
                f"{llm} failed {1 + len(self._waits)} times on the question {question!r}: "
                f"{type(response).__name__}: {response}"
            ) from response
        text = text_of(response)
        if text is None:
            raise RewardError(
                f"{llm} gave no text to the question {question!r}: {type(response).__name__} {str(response)[:200]!r}; "
                "LLMAnswerReward needs a model that answers in text"
            )
        return text

    def _keep(self, prompt: str, answer: str) -> str:
        self._empty_in_a_row = 0 if answer.strip() else self._empty_in_a_row + 1
        if self._empty_in_a_row == _MANY_EMPTY:
            logger.warning(
                "%s has answered %d questions in a row with an empty text, which earns nothing; its limit of tokens "
                "may be too small, or a filter takes its answers away", type(self.llm).__name__, _MANY_EMPTY,
            )  # fmt: skip
        self._cache[prompt] = answer
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return answer


def _check(judge: str, threshold: float | None, prompt: str, every_step: bool) -> None:
    if judge not in _MEASURES:
        raise ValueError(f"judge must be one of {list(_MEASURES)}, got {judge!r}")
    if threshold is None and every_step:
        raise ValueError("every_step needs a threshold: only the first right answer is paid; set threshold")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, or None, got {threshold}")
    missing = [place for place in _PLACES if place not in prompt]
    if missing:
        raise ValueError(f"the prompt lacks {' and '.join(missing)}, where the text goes: {prompt!r}")

"""Questions over sets of passages: as they stand in a file, or filled up from a pool at every draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.json_lines import Place
from qrag_retriever.sentences import CountTokens
from qrag_retriever.training.data import Sample, SampleSource
from qrag_retriever.training.datasets.reading import num_fitting
from qrag_retriever.training.datasets.splits import Split, check_filled, cut_linked

_IN_TEST = "gold title in a test file"
_WINDOW = 400


@dataclass(frozen=True, slots=True)
class TitledSample:
    """A sample over Wikipedia paragraphs, with the titles of its supporting ones."""

    sample: Sample
    gold_titles: tuple[str, ...]


class FixedQuestions:
    """Questions that are what they are in their file, in training with passages of other questions if wanted.

    Attributes:
        name: Names the source in reports.
        split: "train", "validation" or "test".
        samples: The questions.
        dropped: How many questions were left out, by reason.
        default_step_limit: Picks that an episode or an evaluation should have.
    """

    def __init__(
        self,
        name: str,
        split: Split,
        samples: Sequence[Sample],
        default_step_limit: int,
        dropped: dict[str, int],
        num_mixed: int = 0,
    ) -> None:
        """Keep samples.

        Args:
            name: Names the source in reports.
            split: "train", "validation" or "test".
            samples: The questions.
            default_step_limit: Picks that an episode or an evaluation should have.
            dropped: How many questions were left out, by reason.
            num_mixed: Passages of other questions that are added at every draw, within an era from some of them;
                train split only.

        Raises:
            DataError: If there are no samples.
        """
        check_filled(len(samples), f"{name}, {split}")
        if num_mixed < 0:
            raise ValueError(f"num_mixed must be at least 0, got {num_mixed}")
        self.name, self.split = name, split
        self.default_step_limit = default_step_limit
        self.dropped = dropped
        self.samples = tuple(samples)
        self._num_mixed = num_mixed if split == "train" else 0
        self._pool = tuple(sorted({text for sample in samples for text in sample.chunks})) if self._num_mixed else ()

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self.samples)

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Return one question; see `SampleSource`."""
        sample = self.samples[number]
        if not self._num_mixed:
            return sample
        # Behind its own, so that the ids of the supporting ones stay what they are; order has no meaning here.
        others = drawn_from(window_of(self._pool, era), self._num_mixed, set(sample.chunks), random)
        return dataclasses.replace(sample, chunks=(*sample.chunks, *others))


@dataclass(frozen=True, slots=True)
class PooledQuestion:
    """A question whose passages are filled up from a pool.

    Attributes:
        id: Names the question.
        question: What is asked.
        gold: The supporting passages.
        near: Passages that come before random ones: of the same article, or found with the question.
        answers: What a right answer must contain.
    """

    id: str
    question: str
    gold: tuple[str, ...]
    near: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]


class PooledQuestions:
    """Questions over as many passages as wanted, filled up and shuffled at every draw as RULER's QA tasks do.

    Attributes:
        name: Names the source in reports.
        split: "train", "validation" or "test".
        pool: All passages, sorted.
        num_chunks: Passages of a sample.
        dropped: How many questions were left out, by reason.
        default_step_limit: Picks that an episode or an evaluation should have.
    """

    default_step_limit = 2

    def __init__(
        self,
        name: str,
        split: Split,
        questions: Sequence[PooledQuestion],
        *,
        num_chunks: int | None,
        num_tokens: int | None,
        count_tokens: CountTokens | None,
        default_num_chunks: int,
        dropped: dict[str, int],
    ) -> None:
        """Make the pool of all passages of the questions.

        Raises:
            DataError: If there are no questions.
            ValueError: If both lengths are given, or the pool is smaller than a sample.
        """
        check_filled(len(questions), f"{name}, {split}")
        self.name, self.split, self.dropped = name, split, dropped
        self.pool = tuple(sorted({text for question in questions for text in (*question.gold, *question.near)}))
        self.num_chunks = num_wanted(num_chunks, num_tokens, count_tokens, self.pool, default_num_chunks)
        if self.num_chunks > len(self.pool):
            raise ValueError(
                f"{name}, {split}: {self.num_chunks} passages asked for, but there are {len(self.pool)}; ask for fewer"
            )
        most_gold = max(len(question.gold) for question in questions)
        if self.num_chunks < most_gold:
            raise ValueError(f"{name}: num_chunks must be at least {most_gold}, the gold passages; got {num_chunks}")
        self._questions = tuple(questions)

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self._questions)

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Fill up a question's passages and shuffle them; see `SampleSource`."""
        question = self._questions[number]
        others = [question.near[i] for i in random.permutation(len(question.near))]
        chosen = [*question.gold, *others][: self.num_chunks]
        missing = self.num_chunks - len(chosen)
        if missing:
            chosen += drawn_from(self.pool, missing, set(chosen), random)
        order = random.permutation(len(chosen)).tolist()
        supporting = tuple(place for place, i in enumerate(order) if i < len(question.gold))
        chunks = tuple(chosen[i] for i in order)
        return Sample(question.id, question.question, chunks, supporting, question.answers, "corpus")


class PassagesAsDocument:
    """Loose passages as if they were the chunks of one text, in a new order at every draw.

    Where order tells nothing, a pair learns to go by what the chunks say, and not only by where they are.

    Attributes:
        name: That of the source, with "-document" behind it.
        default_step_limit: That of the source, if it has one.
    """

    def __init__(self, source: SampleSource) -> None:
        """Wrap a source.

        Args:
            source: Its samples are in corpus mode.

        Raises:
            ValueError: If they are not.
        """
        if source.sample(0, np.random.default_rng(0)).mode != "corpus":
            raise ValueError(f"{source.name} has documents already, whose chunks keep their order")
        self._source = source
        self.name = f"{source.name}-document"
        self.default_step_limit: int | None = getattr(source, "default_step_limit", None)

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self._source)

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Shuffle a question's passages; see `SampleSource`."""
        sample = self._source.sample(number, random, era)
        order = random.permutation(len(sample.chunks)).tolist()
        supporting = sample.supporting
        if supporting is not None:
            supporting = tuple(place for place, i in enumerate(order) if i in supporting)
        chunks = tuple(sample.chunks[i] for i in order)
        return dataclasses.replace(
            sample, id=f"{sample.id}-document", chunks=chunks, supporting=supporting, mode="document"
        )


def window_of(pool: Sequence[str], era: int) -> Sequence[str]:
    """Return the passages that an era fills up from, so that they are embedded once in it."""
    if len(pool) <= _WINDOW:
        return pool
    return [pool[i] for i in np.random.default_rng(era).choice(len(pool), _WINDOW, replace=False).tolist()]


def drawn_from(pool: Sequence[str], count: int, taken: set[str], random: np.random.Generator) -> list[str]:
    """Draw passages that are not taken, fewer if the pool has no more."""
    # As many more as may turn out to be taken already, so that one draw is enough.
    drawn = random.choice(len(pool), min(len(pool), count + len(taken)), replace=False)
    return [text for i in drawn if (text := pool[i]) not in taken][:count]


def num_wanted(
    num_chunks: int | None,
    num_tokens: int | None,
    count_tokens: CountTokens | None,
    chunks: Sequence[str],
    default: int,
) -> int:
    """Return the chunks of a document whose length is given in chunks, in tokens, or not at all.

    Raises:
        ValueError: If both lengths are given, or tokens without a way to count them.
    """
    if num_chunks is not None and num_tokens is not None:
        raise ValueError("num_chunks and num_tokens are both given; give one of them")
    if num_tokens is not None:
        return num_fitting(num_tokens, chunks, count_tokens)
    wanted = default if num_chunks is None else num_chunks
    check_at_least_one(num_chunks=wanted)
    return wanted


def select_split(
    questions: Sequence[TitledSample],
    split: Split,
    test_titles: set[str],
    validation_share: float,
    dropped: dict[str, int],
) -> list[TitledSample]:
    """Return the questions of a train file that belong to a split; a test file is taken whole.

    Questions with a gold paragraph that a test question needs too are dropped, and counted in ``dropped``.
    """
    if split == "test":
        return list(questions)
    kept = [question for question in questions if test_titles.isdisjoint(question.gold_titles)]
    dropped[_IN_TEST] = len(questions) - len(kept)
    parts = cut_linked([question.gold_titles for question in kept], validation_share)
    return [question for question, part in zip(kept, parts, strict=True) if part == split]


def check_new_id(sample_id: str, seen: set[str], place: Place) -> None:
    """Remember an id; DataError if it was there before."""
    if sample_id in seen:
        raise place.error(f"the id {sample_id!r} occurs twice; ids must be unique")
    seen.add(sample_id)

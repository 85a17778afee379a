"""RULER's eight needle-in-a-haystack tasks, made up at every draw."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from qrag_retriever._extras import require_extra
from qrag_retriever.checks import check_at_least_one
from qrag_retriever.json_lines import nearest
from qrag_retriever.sentences import CountTokens, split_sentences
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.books import BookNoise, default_noise
from qrag_retriever.training.datasets.passages import num_wanted
from qrag_retriever.training.datasets.reading import find_files, read_text
from qrag_retriever.training.datasets.splits import Split, check_split

Haystack = Literal["noise", "essay", "needle"]
ValueType = Literal["words", "numbers", "uuids"]
NOISE_LINE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
_DEPTHS = np.round(np.linspace(0, 100, num=40)).astype(int)  # percent of the haystack
_DEFAULT_NUM_CHUNKS = 160
_MEASURED = 500
_NEEDLES = 4_000  # that the needle haystacks of an era are drawn from, at least


@dataclass(frozen=True, slots=True)
class NiahTask:
    """What a task hides where, and what it asks for."""

    haystack: Haystack
    key_type: ValueType
    value_type: ValueType
    num_keys: int = 1
    values_per_key: int = 1
    num_asked: int = 1

    @property
    def num_needles(self) -> int:
        """Needles put into a haystack."""
        return self.num_keys * self.values_per_key

    @property
    def num_gold(self) -> int:
        """Needles of the keys asked for."""
        return self.num_asked * self.values_per_key


TASKS = {
    "niah-single-1": NiahTask("noise", "words", "numbers"),
    "niah-single-2": NiahTask("essay", "words", "numbers"),
    "niah-single-3": NiahTask("essay", "words", "uuids"),
    "niah-multikey-1": NiahTask("essay", "words", "numbers", num_keys=4),
    "niah-multikey-2": NiahTask("needle", "words", "numbers"),
    "niah-multikey-3": NiahTask("needle", "uuids", "uuids"),
    "niah-multivalue": NiahTask("essay", "words", "numbers", values_per_key=4),
    "niah-multiquery": NiahTask("essay", "words", "numbers", num_keys=4, num_asked=4),
}


class Niah:
    """Needle sentences hidden in a haystack, a sentence a chunk; the needles of the keys asked for are to be found.

    Questions, keys and places are made up at a draw, in a random stream of its own for each task and split; the needle
    haystack is drawn from sentences that are made up once in an era. The essay haystack is Paul
    Graham's essays from their beginning for the test split, sentences of the split's books for the others.

    Attributes:
        name: A name of `TASKS`.
        task: What it hides and asks.
        split: "train", "validation" or "test".
        num_chunks: Sentences of a sample, needles included.
        default_step_limit: Picks that an episode or an evaluation should have: one more than needles are asked for.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path,
        split: Split = "test",
        *,
        num_chunks: int | None = None,
        num_tokens: int | None = None,
        count_tokens: CountTokens | None = None,
        num_questions: int = 500,
        noise: BookNoise | None = None,
        noise_window: int | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare a task.

        Args:
            name: A name of `TASKS`.
            folder: The data folder; read for the essay haystack only.
            split: "train", "validation" or "test".
            num_chunks: Sentences of a sample, needles included; 160 if no length is given.
            num_tokens: The length in tokens instead, met on average.
            count_tokens: Turns a text into its tokens; needed for ``num_tokens``.
            num_questions: The length of the source, which is without end by nature.
            noise: Book sentences for the essay haystack; None for what the split has in the data folder. Other
                haystacks do without.
            noise_window: Most sentences of books or needles that the haystacks of one era share; None for thousands.
                The fewer, the fewer chunks there are to embed in an era. A needle haystack takes at least a quarter
                more than it needs. Train split only.
            seed: With the split, chooses the random stream.

        Raises:
            DataError: If the folder lacks the essays or the books.
            ImportError: If the package wonderwords is not installed and keys are words.
            ValueError: If the task is not known, or a sample is too short for its needles.
        """
        if name not in TASKS:
            raise ValueError(f"name must be one of {', '.join(TASKS)}, got {name!r}{nearest(name, TASKS)}")
        check_split(split)
        check_at_least_one(num_questions=num_questions)
        self.name, self.task, self.split = name, TASKS[name], split
        self.default_step_limit = self.task.num_gold + 1
        self._num_questions = num_questions
        if noise_window is not None:
            check_at_least_one(noise_window=noise_window)
        noise_window = noise_window if split == "train" else None
        self._num_needles = _NEEDLES if noise_window is None else noise_window
        self._needles: tuple[int, int, list[tuple[str, str]]] | None = None
        self._stream = [zlib.crc32(name.encode()), get_args(Split).index(split), seed]
        if self.task.key_type == "words":
            _words()
        own_books = self.task.haystack == "essay" and split != "test" and noise is None
        self._noise = default_noise(folder, split, num_chunks or 0, seed, noise_window) if own_books else noise
        has_essay = self.task.haystack == "essay" and self._noise is None
        self._essay = _essay(find_files(folder, "essays/paul_graham/*.txt")) if has_essay else []
        self.num_chunks = self._num_wanted(num_chunks, num_tokens, count_tokens)
        if own_books and num_tokens is not None:
            self._noise = default_noise(folder, split, self.num_chunks, seed, noise_window)

    def __len__(self) -> int:
        """Return ``num_questions``."""
        return self._num_questions

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Hide needles; see `SampleSource`."""
        # Mixed with the split, so that two splits differ even where a caller gives both the same generator.
        random = np.random.default_rng([*self._stream, number, int(random.integers(2**63))])
        task = self.task
        keys = _make(task.key_type, task.num_keys, random)
        pairs = [(key, value) for key in keys for value in _make(task.value_type, task.values_per_key, random)]
        asked = keys[: task.num_asked]  # any will do: all are drawn alike, and the needles are shuffled
        haystack = self._haystack(self.num_chunks - task.num_needles, random, era, frozenset(asked))
        places = self._places(len(haystack), random)
        needles = [pairs[i] for i in random.permutation(len(pairs))]
        chunks: list[str] = []
        supporting = []
        for i, ((key, value), place) in enumerate(zip(needles, places, strict=True)):
            chunks += haystack[len(chunks) - i : place]
            if key in asked:
                supporting.append(len(chunks))
            chunks.append(self._needle(key, value))
        chunks += haystack[len(chunks) - len(needles) :]
        answers = tuple((value,) for query in asked for key, value in pairs if key == query)
        return Sample(
            f"{self.name}-{self.split}-{number}", self._question(asked), tuple(chunks), tuple(supporting), answers
        )

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self.task.value_type} for {key} is: {value}."

    def _question(self, asked: Sequence[str]) -> str:
        query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
        kinds: str = self.task.value_type
        kind, verb = (kinds[:-1], "is") if self.task.num_gold == 1 else (kinds, "are all")
        return f"What {verb} the special magic {kind} for {query} mentioned in the provided text?"

    def _haystack(self, size: int, random: np.random.Generator, era: int, asked: frozenset[str]) -> list[str]:
        if self.task.haystack == "noise":
            return [NOISE_LINE[i % len(NOISE_LINE)] for i in range(size)]
        if self.task.haystack == "needle":
            # RULER lets a distractor have an asked key; here it would be evidence that is not marked.
            others = [needle for key, needle in self._other_needles(size, era) if key not in asked]
            return [others[i] for i in random.permutation(len(others))[:size].tolist()]
        if self._noise is not None:
            return self._noise.draw(size, random, era)
        return (self._essay * (size // len(self._essay) + 1))[:size]

    def _other_needles(self, size: int, era: int) -> list[tuple[str, str]]:
        """Return the keys and sentences that the haystacks of an era are drawn from, so that they are embedded once."""
        # Some more than a haystack takes: those with an asked key are left out.
        count = max(self._num_needles, size + size // 4)
        if self._needles is None or self._needles[:2] != (era, count):
            random = np.random.default_rng([*self._stream, era])
            keys = _make(self.task.key_type, count, random)
            values = _make(self.task.value_type, count, random)
            self._needles = era, count, list(zip(keys, map(self._needle, keys, values), strict=True))
        return self._needles[2]

    def _places(self, size: int, random: np.random.Generator) -> list[int]:
        """Return before which sentences of the haystack the needles go, ascending."""
        num_needles = self.task.num_needles
        if self.task.haystack == "essay":
            depths = random.choice(_DEPTHS, num_needles, replace=False)
            return sorted((size * depths // 100).tolist())
        if self.task.haystack == "needle":
            return sorted(random.choice(size, num_needles, replace=False).tolist())
        num_lines = -(-size // len(NOISE_LINE))
        return sorted((random.choice(num_lines, num_needles, replace=False) * len(NOISE_LINE)).tolist())

    def _num_wanted(self, num_chunks: int | None, num_tokens: int | None, count_tokens: CountTokens | None) -> int:
        measured: list[str] = []
        if num_tokens is not None:
            books = self._noise if self.task.haystack == "essay" else None
            size = _MEASURED if books is None else min(_MEASURED, len(books.sentences()))
            measured = self._haystack(size, np.random.default_rng(self._stream), 0, frozenset())
        wanted = num_wanted(num_chunks, num_tokens, count_tokens, measured, _DEFAULT_NUM_CHUNKS)
        if wanted <= self.task.num_needles:
            raise ValueError(f"{self.name} hides {self.task.num_needles} needles; {wanted} sentences are too few")
        return wanted


def _make(kind: ValueType, count: int, random: np.random.Generator) -> list[str]:
    """Make up keys or values."""
    if kind == "numbers":
        return list(map(str, random.integers(10**6, 10**7, count).tolist()))
    if kind == "uuids":
        raw = random.bytes(16 * count)
        return [str(uuid.UUID(bytes=raw[i : i + 16], version=4)) for i in range(0, len(raw), 16)]
    adjectives, nouns = _words()
    first, second = random.integers(len(adjectives), size=count), random.integers(len(nouns), size=count)
    return [f"{adjectives[i]}-{nouns[j]}" for i, j in zip(first.tolist(), second.tolist(), strict=True)]


@cache
def _words() -> tuple[list[str], list[str]]:
    """Return the sorted adjectives and nouns of wonderwords, each once."""
    words = require_extra("wonderwords", "train").RandomWord(enhanced_prefixes=False)
    return words.filter(include_categories=["adjective"]), words.filter(include_categories=["noun"])


def _essay(paths: Sequence[Path]) -> list[str]:
    return split_sentences(" ".join(" ".join(read_text(path).split()) for path in paths))

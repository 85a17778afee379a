"""The benchmarks of the suite: which questions, over what, at which lengths, with how many picks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever.benchmarks.suite import stress
from qrag_retriever.checks import check_at_least_one
from qrag_retriever.json_lines import nearest
from qrag_retriever.training.data import Sample, SampleSource
from qrag_retriever.training.datasets import LENGTHS, SOURCES, BabiLong, DatasetSource, open_source

# Name of a length -> tokens, counted by MiniLM's tokenizer.
TOKENS = {"1k": 1_024, "4k": 4_096, "32k": 32_768, "128k": 131_072, "1M": 1_048_576}
# Most questions at a length, so that long documents stay affordable; 500 at any other.
_MOST_QUESTIONS = {"1M": 200, "10M": 100}
_NEEDLE_MOST_QUESTIONS = {"128k": 100, "1M": 20}
_USUAL_QUESTIONS = 500
NATIVE = "-"


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one benchmark at one length.

    Attributes:
        benchmark: Its name.
        length: A name of a length, or "-" where documents are as long as they are.
        source: Where samples come from.
        numbers: Which of the source's questions, in the order that they are asked in.
        step_limit: Picks for each question (T).
        seed: Decides where noise is put.
    """

    benchmark: str
    length: str
    source: SampleSource
    numbers: Sequence[int]
    step_limit: int
    seed: int

    def __len__(self) -> int:
        """Count the questions."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[Sample]:
        """Make the samples one by one: at 10M tokens a document has 400,000 chunks."""
        for number in self.numbers:
            yield self.source.sample(number, np.random.default_rng([self.seed, number]))

    def is_longer(self, sample: Sample) -> bool:
        """Tell whether a sample's document is longer than the length says: a long story is kept whole."""
        return self.length != NATIVE and len(sample.chunks) > getattr(self.source, "num_chunks", len(sample.chunks))


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the suite.

    Attributes:
        name: As on the command line.
        lengths: Names of the lengths that it has.
        open: Takes data folder, length and seed.
        most_questions: Length -> most questions to ask by default.
    """

    name: str
    lengths: tuple[str, ...]
    open: Callable[[Path, str, int], DatasetSource]
    most_questions: dict[str, int]


def _babilong(task: int) -> Callable[[Path, str, int], DatasetSource]:
    def open_at(folder: Path, length: str, seed: int) -> DatasetSource:
        num_chunks = LENGTHS[length]
        return BabiLong(folder, task, "test", num_chunks=num_chunks, noise=stress.books(folder, num_chunks))

    return open_at


def _by_tokens(name: str) -> Callable[[Path, str, int], DatasetSource]:
    def open_at(folder: Path, length: str, seed: int) -> DatasetSource:
        options: dict[str, Any] = {"num_tokens": TOKENS[length], "count_tokens": _minilm_tokens()}
        if name.startswith("niah-"):
            options["seed"] = seed
        return open_source(name, folder, "test", **options)

    return open_at


@cache
def _minilm_tokens() -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    from qrag_retriever.default_model import MINILM, local_name

    tokenizer = AutoTokenizer.from_pretrained(local_name(MINILM), trust_remote_code=False)

    def count_tokens(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    return count_tokens


def _native(name: str, **options: Any) -> Callable[[Path, str, int], DatasetSource]:
    return lambda folder, length, seed: open_source(name, folder, "test", **options)


def _all() -> dict[str, Benchmark]:
    found = [Benchmark(f"babilong-qa{task}", tuple(LENGTHS), _babilong(task), _MOST_QUESTIONS) for task in range(1, 6)]
    for name in SOURCES:
        if name.startswith("niah-"):
            found.append(
                Benchmark(name, tuple(TOKENS), _by_tokens(name), {**_MOST_QUESTIONS, **_NEEDLE_MOST_QUESTIONS})
            )
        elif name.startswith("ruler-"):
            found.append(Benchmark(name, ("4k", "32k"), _by_tokens(name), {}))
    found += [
        Benchmark("hotpotqa", (NATIVE,), _native("hotpotqa", setting="distractor"), {}),
        Benchmark("hotpotqa-fullwiki", (NATIVE,), _native("hotpotqa", setting="fullwiki"), {}),
        *(Benchmark(name, (NATIVE,), _native(name), {}) for name in ("musique", "2wiki", "2wiki-open")),
        *(Benchmark(name, tuple(LENGTHS), make, _MOST_QUESTIONS) for name, make in stress.SOURCES.items()),
    ]
    return {benchmark.name: benchmark for benchmark in found}


BENCHMARKS = _all()


def open_questions(
    name: str, length: str, folder: str | Path, num_samples: int | None = None, seed: int = 0
) -> QuestionSet:
    """Open a benchmark at a length.

    Args:
        name: A key of `BENCHMARKS`.
        length: One of its lengths.
        folder: The data folder.
        num_samples: Most questions; None for what the length affords. The questions of a smaller number are among
            those of a larger, and they are the same at every length (but for "stress-quarter", where the places of
            the facts decide what can be asked).
        seed: Decides which questions, and where noise is put.

    Raises:
        ValueError: If there is no such benchmark, or it has no such length.
        DataError: If a file is missing or not as its format has it.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"there is no benchmark {name!r}{nearest(name, BENCHMARKS)}; there are {', '.join(BENCHMARKS)}"
        )
    if num_samples is not None:
        check_at_least_one(num_samples=num_samples)
    benchmark = BENCHMARKS[name]
    if length not in benchmark.lengths:
        raise ValueError(f"{name} has the lengths {', '.join(benchmark.lengths)}, got {length!r}")
    source = benchmark.open(Path(folder), length, seed)
    most = benchmark.most_questions.get(length, _USUAL_QUESTIONS) if num_samples is None else num_samples
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    return QuestionSet(name, length, source, order[:most], source.default_step_limit, seed)

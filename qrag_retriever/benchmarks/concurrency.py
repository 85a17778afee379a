"""Many users at once: ``python -m qrag_retriever.benchmarks.concurrency [--model M] [--chunks 4600]``.

The same questions over one index: one after the other, in batches (`search_many`), from threads and from tasks of an
event loop, each for itself and joined into batches (``batch_wait_ms``), and from processes that open one folder. The
ways take turns in one run; a rate is the median over rounds. All must pick the same chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from qrag_retriever import QRAGModel, QRAGRetriever
from qrag_retriever.benchmarks.timing import table
from qrag_retriever.devices import peak_memory_mb

Picks = list[list[str]]
Way = Callable[[Sequence[str]], Picks]
WORDS = "the river stone garden letter clock winter bread harbour lantern cousin market".split()  # noqa: SIM905


def made_up_texts(count: int, seed: int) -> list[str]:
    """Return sentences of common words, all different."""
    random = np.random.default_rng(seed)
    return [f"{' '.join(random.choice(WORDS, 12))} number {i}." for i in range(count)]


def ways(retriever: QRAGRetriever, batch_wait_ms: float, users: int) -> dict[str, Way]:
    """Return the ways to ask within this process, by name."""
    batching = retriever.model_copy(update={"batch_wait_ms": batch_wait_ms})

    def by_threads(asked: QRAGRetriever) -> Way:
        def ask(questions: Sequence[str]) -> Picks:
            with ThreadPoolExecutor(users) as pool:
                return [found.ids for found in pool.map(asked.search, questions)]

        return ask

    def by_tasks(asked: QRAGRetriever) -> Way:
        async def ask_all(questions: Sequence[str]) -> Picks:
            gate = asyncio.Semaphore(users)

            async def ask(question: str) -> list[str]:
                async with gate:
                    return (await asked.asearch(question)).ids

            return await asyncio.gather(*map(ask, questions))

        return lambda questions: asyncio.run(ask_all(questions))

    def in_batches(questions: Sequence[str]) -> Picks:
        parts = [questions[first : first + users] for first in range(0, len(questions), users)]
        return [found.ids for part in parts for found in retriever.search_many(part)]

    return {
        "one after the other": lambda questions: [retriever.search(question).ids for question in questions],
        f"search_many, {users} at once": in_batches,
        f"{users} threads": by_threads(retriever),
        f"{users} threads, joined": by_threads(batching),
        f"{users} tasks": by_tasks(retriever),
        f"{users} tasks, joined": by_tasks(batching),
    }


def measure(asked: dict[str, Way], questions: Sequence[str], rounds: int) -> list[list[str]]:
    """Time all ways in turn; returns a table's rows.

    Raises:
        AssertionError: If two ways pick different chunks.
    """
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    picks: dict[str, Picks] = {}
    for number in range(rounds + 1):  # the first round warms up
        for name, way in asked.items():
            start = time.perf_counter()
            picks[name] = way(questions)
            if number:
                seconds[name].append(time.perf_counter() - start)
    first = next(iter(picks.values()))
    differing = {name: sum(a != b for a, b in zip(own, first, strict=True)) for name, own in picks.items()}
    if any(differing.values()):
        raise AssertionError(f"questions with other picks than one after the other: {differing}")
    rates = {name: len(questions) / float(np.median(own)) for name, own in seconds.items()}
    batch = next(rate for name, rate in rates.items() if name.startswith("search_many"))
    return [[name, f"{rate:.1f}", f"{rate / batch:.2f}"] for name, rate in rates.items()]


class _Process:
    retriever: QRAGRetriever


def _open(folder: str, k: int) -> None:
    import torch

    torch.set_num_threads(1)
    _Process.retriever = QRAGRetriever.load(folder, k=k)


def _ask(question: str) -> tuple[list[str], float]:
    return _Process.retriever.search(question).ids, peak_memory_mb() or 0.0


def measure_processes(folder: str, k: int, questions: Sequence[str], expected: Picks, count: int) -> str:
    """Ask from processes that map one folder; returns a line that tells rate and memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _open, (folder, k)) as pool:
        list(pool.map(_ask, questions[: 4 * count]))
        start = time.perf_counter()
        found = list(pool.map(_ask, questions))
        seconds = time.perf_counter() - start
    if [ids for ids, _ in found] != expected:
        raise AssertionError("processes have picked other chunks")
    most = max(memory for _, memory in found)
    return f"{count} processes over one folder: {len(questions) / seconds:.1f} questions/s, at most {most:.0f} MiB each"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id; the one in the package if none is given")
    parser.add_argument("--chunks", type=int, default=4600)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2, help="0: none")
    parser.add_argument("--batch-wait-ms", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    model = QRAGModel.from_pretrained(options.model)
    retriever = QRAGRetriever.from_texts(made_up_texts(options.chunks, 1), model=model, k=4)
    questions = [f"where was the {text.split()[0]} before {text}" for text in made_up_texts(options.questions, 2)]
    rows = measure(ways(retriever, options.batch_wait_ms, options.users), questions, options.rounds)
    print(table(["way", "questions/s", "of search_many"], rows))
    if options.processes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "index.qrag"
            retriever.save(folder)  # and searches what is stored
            expected = [found.ids for found in retriever.search_many(questions)]
            print(measure_processes(str(folder), retriever.k, questions, expected, options.processes))


if __name__ == "__main__":
    main()

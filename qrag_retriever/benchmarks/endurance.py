"""A long run: ``python -m qrag_retriever.benchmarks.endurance [--queries 100000]``.

Searches an index on disk again and again, adding and deleting a chunk now and then, and tells what has grown: memory,
open files and threads after the warm-up and at the end, and latencies of the first and the last tenth of the queries.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qrag_retriever import QRAGModel, QRAGRetriever
from qrag_retriever.benchmarks.timing import table
from qrag_retriever.devices import process_status

_WORDS_PER_CHUNK, _WORDS_PER_QUERY = 40, 12
_LEAST_WARM_UP = 20


@dataclass(frozen=True)
class Resources:
    """What a process holds: resident memory in bytes, open file descriptors, threads."""

    memory: int
    files: int
    threads: int

    @classmethod
    def now(cls) -> Resources:
        """Ask the system.

        Raises:
            OSError: Where there is no ``/proc``, that is, outside of Linux.
        """
        files = len(list(Path("/proc/self/fd").iterdir()))
        status = process_status()
        return cls(status["VmRSS"] * 1024, files, status["Threads"])


@dataclass(frozen=True)
class Endurance:
    """What a long run has shown.

    Attributes:
        seconds: Shape (num_queries,): how long each search took, the warm-up's too.
        warm: Resources after the warm-up.
        end: Resources at the end.
    """

    seconds: np.ndarray
    warm: Resources
    end: Resources

    def rows(self) -> list[list[str]]:
        """Lay out beginning and end side by side."""
        tenth = max(1, len(self.seconds) // 10)
        parts = 1e3 * self.seconds[:tenth], 1e3 * self.seconds[-tenth:]
        sides = self.warm, self.end
        return [
            ["memory, MB", *(f"{side.memory / 1e6:.1f}" for side in sides)],
            ["open files", *(str(side.files) for side in sides)],
            ["threads", *(str(side.threads) for side in sides)],
            ["p50, ms", *(f"{np.percentile(part, 50):.2f}" for part in parts)],
            ["p99, ms", *(f"{np.percentile(part, 99):.2f}" for part in parts)],
        ]


class Texts:
    """Draws chunks and questions of made-up words."""

    def __init__(self, seed: int) -> None:
        """Make the words."""
        self._random = np.random.default_rng(seed)
        letters = self._random.integers(97, 123, (5_000, 6)).astype(np.uint8)
        self._words = ["".join(map(chr, row)) for row in letters]

    def draw(self, num_words: int) -> str:
        """Draw one text."""
        return " ".join(self._words[i] for i in self._random.integers(0, len(self._words), num_words))


def measure(
    retriever: QRAGRetriever, texts: Texts, num_queries: int, change_every: int, most_seconds: float
) -> Endurance:
    """Search until all queries are done or the time is over.

    Args:
        retriever: Over an index; a chunk is added to it and the one before deleted now and then.
        texts: Gives the questions.
        num_queries: Searches.
        change_every: Searches between two changes of the index.
        most_seconds: End earlier after this long.
    """
    # A changed index keeps what it read from open until the next change.
    warm_up = min(num_queries, max(_LEAST_WARM_UP, num_queries // 100, 3 * change_every))
    seconds = np.zeros(num_queries)
    begun, warm, done = time.monotonic(), Resources.now(), 0
    while done < num_queries and time.monotonic() - begun < most_seconds:
        query = texts.draw(_WORDS_PER_QUERY)
        start = time.perf_counter()
        retriever.search(query)
        seconds[done] = time.perf_counter() - start
        done += 1
        if done % change_every == 0:
            number = done // change_every
            retriever.add_texts([texts.draw(_WORDS_PER_CHUNK)], ids=[f"added {number}"])
            if number > 1:
                retriever.delete([f"added {number - 1}"])
        if done == warm_up:
            warm = Resources.now()
    return Endurance(seconds[:done], warm, Resources.now())


def main(argv: Sequence[str] | None = None) -> None:
    """Build an index in a temporary folder, search it, print the table."""
    parser = argparse.ArgumentParser(prog="python -m qrag_retriever.benchmarks.endurance", description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000, help="searches, of 4 hops each")
    parser.add_argument("--chunks", type=int, default=5_000)
    parser.add_argument("--change-every", type=int, default=1_000, help="searches between two changes of the index")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end earlier after so many seconds")
    parser.add_argument("--encoder", help="an untrained encoder in place of the model of the package")
    parser.add_argument("--num-layers", type=int, help="of the encoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here")
    chosen = parser.parse_args(argv)
    for name in ("queries", "chunks", "change_every"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(chosen, name)}")
    texts = Texts(chosen.seed)
    model = None
    if chosen.encoder is not None:
        model = QRAGModel.from_encoder(chosen.encoder, chosen.num_layers, device="cpu", positions="relative")
    chunks = [texts.draw(_WORDS_PER_CHUNK) for _ in range(chosen.chunks)]
    with tempfile.TemporaryDirectory() as scratch:
        retriever = QRAGRetriever.from_texts(chunks, model=model)
        retriever.save(Path(scratch) / "index")
        found = measure(retriever, texts, chosen.queries, chosen.change_every, chosen.seconds)
    rows = found.rows()
    print(f"{len(found.seconds)} searches of 4 hops over {chosen.chunks} chunks:\n")
    print(table(["", "after warm-up, first tenth", "at the end, last tenth"], rows), flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"queries": len(found.seconds), "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Sentences of books as noise: an era keeps to a window of them, so that they are embedded once in an era."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.errors import DataError
from qrag_retriever.sentences import split_sentences
from qrag_retriever.training.datasets.reading import find_files, read_text
from qrag_retriever.training.datasets.splits import Split, check_split

TRAINING_WINDOW, TEST_WINDOW = 4_000, 20_000
_EVERY = 10  # every so manieth train book is for validation


class Noise(Protocol):
    """Where the sentences between those of a story come from."""

    def draw(self, num_sentences: int, random: np.random.Generator, era: int = 0) -> list[str]:
        """Draw sentences; within an era from one part of what there is."""
        ...


class BookNoise:
    """Runs of consecutive sentences from random books.

    A book is split into sentences when it is first needed, once in a process. Validation has every tenth of the train
    books, by name.

    Attributes:
        split: Whose books these are.
        books: Names of the files, ascending.
        window: Most sentences that one era draws from; None for all of the books.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split = "train",
        *,
        window: int | None = TRAINING_WINDOW,
        stretch: int = 500,
        run: int = 50,
        seed: int = 0,
    ) -> None:
        """Find the books.

        Args:
            folder: The data folder; the books are ``books/{train,test}/*.txt.gz``, a paragraph in each line.
            split: "train", "validation" or "test".
            window: Most sentences that one era draws from; None for all of the books, split at the first draw.
            stretch: Consecutive sentences that a window takes from a book at a time.
            run: Most consecutive sentences that a draw takes at a time.
            seed: With the era, decides what is in the window.

        Raises:
            DataError: If there are no books.
        """
        check_split(split)
        check_at_least_one(stretch=stretch, run=run)
        if window is not None:
            check_at_least_one(window=window)
        found = book_files(folder, split)
        self.split: Split = split
        self.books = tuple(path.name for path in found)
        self.window = window
        self._paths = found
        self._stretch, self._run, self._seed = stretch, run, seed
        self._pool: tuple[int, SentencePool] | None = None

    def sentences(self, era: int = 0) -> list[str]:
        """Return the window of an era, stretch after stretch; fewer sentences if the books have no more."""
        return self._pool_of(era).sentences

    def draw(self, num_sentences: int, random: np.random.Generator, era: int = 0) -> list[str]:
        """Draw runs of consecutive sentences, no sentence twice.

        Args:
            num_sentences: How many sentences in all.
            random: Decides which runs, and their order.
            era: Decides, with the seed, the window that they come from.

        Raises:
            ValueError: If the window has fewer sentences.
        """
        return self._pool_of(era).draw(num_sentences, random)

    def _pool_of(self, era: int) -> SentencePool:
        if self._pool is None or self._pool[0] != era:
            pieces = list(map(self._book, range(len(self.books)))) if self.window is None else self._pieces(era)
            self._pool = era, SentencePool.of(pieces, self._run)
        return self._pool[1]

    def _pieces(self, era: int) -> list[list[str]]:
        """Take a stretch of each book in turn, in random order, until the window is full."""
        random = np.random.default_rng([self._seed, era])
        order = random.permutation(len(self.books)).tolist()
        waiting: dict[int, list[tuple[int, int]]] = {}
        pieces, missing = [], self.window or 0
        while missing and order:
            for book in list(order):
                if not missing:
                    break  # before the next book is split
                if book not in waiting:
                    waiting[book] = self._stretches(book, random)
                if not waiting[book]:
                    order.remove(book)
                else:
                    start, end = waiting[book].pop()
                    pieces.append(self._book(book)[start:end][:missing])
                    missing -= len(pieces[-1])
        return pieces

    def _stretches(self, book: int, random: np.random.Generator) -> list[tuple[int, int]]:
        """Cut a book into stretches at a random phase; to be taken from the end, the short ones last."""
        length = len(self._book(book))
        edges = [0, *range(int(random.integers(1, self._stretch + 1)), length, self._stretch), length]
        bounds = [(start, end) for start, end in pairwise(edges) if end > start]
        order = random.permutation(len(bounds)).tolist()
        return sorted((bounds[i] for i in order), key=lambda bound: bound[1] - bound[0] == self._stretch)

    def _book(self, book: int) -> list[str]:
        path = self._paths[book]
        return _sentences_of(path, path.stat().st_mtime_ns)


# A recipe has many sources with the same books, which take longer to split than all else that a draw does.
@lru_cache(maxsize=512)
def _sentences_of(path: Path, _modified: int) -> list[str]:
    return [sentence for text in read_text(path).split("\n") for sentence in split_sentences(text)]


@dataclass(frozen=True)
class SentencePool:
    """Sentences, and a grid of run starts over them that every draw shifts.

    Attributes:
        sentences: Stretch after stretch.
        cells: Starts of runs, before they are shifted.
        firsts: Of each cell, where the stretch that it lies in starts; a run stays within.
        lasts: Of each cell, where its stretch ends.
        run: Most sentences of a run.
    """

    sentences: list[str]
    cells: np.ndarray
    firsts: np.ndarray
    lasts: np.ndarray
    run: int

    @classmethod
    def of(cls, pieces: list[list[str]], run: int) -> SentencePool:
        """Make a pool of stretches of consecutive sentences."""
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        starts = ends - np.array([len(piece) for piece in pieces], np.int64)
        grids = [np.arange(start - run, end, run) for start, end in zip(starts, ends, strict=True)]
        counts = [len(grid) for grid in grids]
        sentences = [sentence for piece in pieces for sentence in piece]
        cells = np.concatenate([np.zeros(0, np.int64), *grids])
        return cls(sentences, cells, np.repeat(starts, counts), np.repeat(ends, counts), run)

    def draw(self, num_sentences: int, random: np.random.Generator) -> list[str]:
        """Draw runs of consecutive sentences, no sentence twice.

        Raises:
            ValueError: If there are fewer sentences.
        """
        if num_sentences > len(self.sentences):
            raise ValueError(
                f"{num_sentences} sentences of noise asked for, but there are {len(self.sentences)}; "
                "ask for fewer, or for a larger window of more books"
            )
        cells = self.cells + int(random.integers(1, self.run + 1))
        starts, ends = np.maximum(cells, self.firsts), np.minimum(cells + self.run, self.lasts)
        order = random.permutation(np.flatnonzero(ends > starts))
        drawn: list[str] = []
        for start, end in zip(starts[order].tolist(), ends[order].tolist(), strict=True):
            if len(drawn) >= num_sentences:
                break
            drawn += self.sentences[start:end]
        return drawn[:num_sentences]


def book_files(folder: str | Path, split: Split) -> list[Path]:
    """Return the files of a split's books, by name; validation has every tenth of the train books.

    Raises:
        DataError: If there are none.
    """
    found = find_files(folder, f"books/{'test' if split == 'test' else 'train'}/*.txt.gz")
    if split != "test":
        # The last of every ten, so that fewer than ten books leave none for validation rather than for training.
        found = [path for i, path in enumerate(found) if (i % _EVERY == _EVERY - 1) == (split == "validation")]
        if not found:
            raise DataError(f"{folder} has fewer than {_EVERY} books in books/train: none is left for {split}")
    return found


def default_noise(
    folder: str | Path, split: Split, num_sentences: int, seed: int = 0, window: int | None = None
) -> BookNoise:
    """Make the noise of a source whose documents have so many sentences.

    Args:
        folder: The data folder.
        split: The split of the source.
        num_sentences: Of the longest document; the window has at least as many.
        seed: Decides what is in the window.
        window: Most sentences that one era draws from; None for thousands.

    Raises:
        ValueError: If the window is smaller than the longest document.
        DataError: If there are no books.
    """
    if window is None:
        window = max(TEST_WINDOW if split == "test" else TRAINING_WINDOW, num_sentences)
    if window < num_sentences:
        raise ValueError(f"documents of {num_sentences} sentences need a noise_window of as many, got {window}")
    # Of several books, however few sentences there are.
    return BookNoise(folder, split, window=window, stretch=min(500, max(1, window // 4)), seed=seed)

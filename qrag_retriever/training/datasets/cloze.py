"""Passages of books to be found by a piece of what they say: practice in prose, without annotated questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.errors import DataError
from qrag_retriever.sentences import split_sentences
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.books import book_files
from qrag_retriever.training.datasets.reading import read_text
from qrag_retriever.training.datasets.splits import Split, check_split

_STEP_LIMIT = 3
_SHORTEST = 200  # characters of a paragraph that is asked for
_WORDS = (6, 16)  # of a piece
_READ = 500  # characters into a paragraph after which an encoder may have stopped reading
_TWO_SHARE = 0.4  # questions made of two pieces
_CUT_SHARE = 0.7  # paragraphs that no longer have the sentence that a piece is of


@dataclass(frozen=True, slots=True)
class _Piece:
    """Words of a paragraph, and the paragraph as it is to be found."""

    words: str
    paragraph: str


class BookCloze:
    """Consecutive paragraphs of a book, one or two of which are to be found by words that were taken out of them.

    Attributes:
        name: "books-cloze".
        split: "train" or "validation"; their books differ.
        num_chunks: Paragraphs of a document.
        default_step_limit: Picks that an episode should have.

    Source: the inverse cloze task (arXiv 1906.00300), here for one or two passages.
    """

    name = "books-cloze"
    default_step_limit = _STEP_LIMIT

    def __init__(
        self,
        folder: str | Path,
        split: Split = "train",
        *,
        num_chunks: int = 60,
        num_documents: int = 40,
        num_questions: int = 20_000,
        seed: int = 0,
    ) -> None:
        """Find the books.

        Args:
            folder: The data folder, with ``books/train/``.
            split: "train" or "validation".
            num_chunks: Paragraphs of a document.
            num_documents: Documents of an era, so that their paragraphs are embedded once in an era.
            num_questions: The length of the source, which has no end by nature.
            seed: With the era, decides which documents.

        Raises:
            DataError: If there are no books.
        """
        check_split(split, ["train", "validation"])
        check_at_least_one(num_chunks=num_chunks, num_documents=num_documents, num_questions=num_questions)
        self.split: Split = split
        self.num_chunks, self._num_documents, self._num_questions = num_chunks, num_documents, num_questions
        self._paths, self._seed = book_files(folder, split), seed
        self._books: dict[int, list[str]] = {}
        self._documents: tuple[int, list[list[str]]] | None = None

    def __len__(self) -> int:
        """Return ``num_questions``."""
        return self._num_questions

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Take words out of one of the era's documents; see `SampleSource`.

        Raises:
            DataError: If no book is long enough for the documents.
        """
        documents = self._documents_of(era)
        chunks = list(documents[int(random.integers(len(documents)))])
        usable = [i for i, chunk in enumerate(chunks) if len(chunk) >= _SHORTEST and _sentences(chunk)]
        wanted = min(len(usable), 2 if random.random() < _TWO_SHARE else 1)
        facts = sorted(usable[i] for i in random.choice(len(usable), wanted, replace=False).tolist())
        pieces = {fact: _piece(chunks[fact], random) for fact in facts}
        for fact, piece in pieces.items():
            chunks[fact] = piece.paragraph
        order = random.permutation(facts).tolist()
        question = ", ".join(pieces[fact].words for fact in order)
        return Sample(f"{self.name}-{number}", f"{question}?", tuple(chunks), tuple(facts))

    def _documents_of(self, era: int) -> list[list[str]]:
        if self._documents is None or self._documents[0] != era:
            random = np.random.default_rng([self._seed, era])
            self._documents = era, [self._document(random) for _ in range(self._num_documents)]
        return self._documents[1]

    def _document(self, random: np.random.Generator) -> list[str]:
        """Take paragraphs around one that can be asked for, from a random book that has enough of them."""
        for book in random.permutation(len(self._paths)).tolist():
            if book not in self._books:
                self._books[book] = [text for text in read_text(self._paths[book]).split("\n") if text.strip()]
            paragraphs = self._books[book]
            usable = [place for place, text in enumerate(paragraphs) if len(text) >= _SHORTEST and _sentences(text)]
            if len(paragraphs) < self.num_chunks or not usable:
                continue
            place = usable[int(random.integers(len(usable)))]
            first = max(0, place - self.num_chunks + 1)
            start = int(random.integers(first, min(place, len(paragraphs) - self.num_chunks) + 1))
            return paragraphs[start : start + self.num_chunks]
        raise DataError(
            f"no book for {self.split} has {self.num_chunks} paragraphs, one of them of {_SHORTEST} characters"
        )


def _sentences(paragraph: str) -> list[tuple[int, str]]:
    """Return the sentences that words may be taken out of, with their places: long ones that an encoder reads."""
    found, read = [], 0
    for place, sentence in enumerate(split_sentences(paragraph)):
        if len(sentence.split()) >= _WORDS[0] and read <= _READ:
            found.append((place, sentence))
        read += len(sentence)
    return found


def _piece(paragraph: str, random: np.random.Generator) -> _Piece:
    """Take a few words out of a paragraph; the sentence around them may go with them."""
    usable = _sentences(paragraph)
    place, sentence = usable[int(random.integers(len(usable)))]
    words = sentence.split()
    start = int(random.integers(len(words) - _WORDS[0] + 1))
    piece = " ".join(words[start : start + int(random.integers(*_WORDS))]).strip(' .,;:!?"')
    kept = split_sentences(paragraph)
    if len(kept) > 1 and random.random() < _CUT_SHARE:
        del kept[place]
        paragraph = " ".join(kept)
    return _Piece(piece, paragraph)

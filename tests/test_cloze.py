"""Passages of books that are to be found by words taken out of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qrag_retriever.errors import DataError
from qrag_retriever.training.datasets import open_source
from qrag_retriever.training.datasets.cloze import BookCloze
from tests.test_datasets import put


def put_books(folder: Path, num_paragraphs: int = 30) -> None:
    """Books whose long paragraphs have five sentences of words of their own, and every third is too short."""
    for book in range(20):
        lines = []
        for place in range(num_paragraphs):
            words = [f"word{book:02}x{place:02}x{i:02}" for i in range(40)]
            sentences = [f"Then {' '.join(words[start : start + 8])}." for start in range(0, 40, 8)]
            lines.append(" ".join(sentences) if place % 3 else "A short one.")
        put(folder, f"books/train/book{book:02}.txt.gz", "\n".join(lines) + "\n")


def source_of(folder: Path, **options: int) -> BookCloze:
    return BookCloze(folder, **{"num_chunks": 10, "num_documents": 6, **options})


def own_words(text: str) -> set[str]:
    return {word.strip("?,.") for word in text.split() if word.startswith("word")}


def test_the_evidence_is_where_the_words_are_from(tmp_path: Path) -> None:
    put_books(tmp_path)
    source, random = source_of(tmp_path), np.random.default_rng(0)
    counts, kept = set(), set()
    for number in range(200):
        sample = source.sample(number, random)
        assert sample.mode == "document"
        assert len(sample.chunks) == 10
        facts = sample.supporting or ()
        counts.add(len(facts))
        # word<book>x<paragraph>x..: which paragraph a word belongs to.
        asked = {word[:9] for word in own_words(sample.question)}
        told = [{word[:9] for word in own_words(sample.chunks[fact])} for fact in facts]
        assert asked == set().union(*told)
        assert all(len(own) == 1 for own in told)
        kept.add(own_words(sample.question) <= set().union(*(own_words(sample.chunks[fact]) for fact in facts)))
        others = {word for i, chunk in enumerate(sample.chunks) if i not in facts for word in own_words(chunk)}
        assert not own_words(sample.question) & others
    assert counts == {1, 2}
    assert kept == {True, False}, "the sentence is cut out at times, and not always"


def test_an_era_keeps_to_its_documents(tmp_path: Path) -> None:
    put_books(tmp_path)
    source = source_of(tmp_path, num_documents=2)

    def whole(era: int) -> set[str]:
        # What was taken out aside, the paragraphs of an era are always the same ones.
        samples = [source.sample(i, np.random.default_rng(i), era) for i in range(40)]
        return {chunk for s in samples for i, chunk in enumerate(s.chunks) if i not in (s.supporting or ())}

    first = whole(0)
    assert len(first) <= 20
    assert whole(1) != first
    assert whole(0) == first


def test_splits_have_books_of_their_own(tmp_path: Path) -> None:
    put_books(tmp_path)
    words = {}
    for split in ("train", "validation"):
        source = open_source("books-cloze", tmp_path, split, num_chunks=10)  # type: ignore[arg-type]
        samples = [source.sample(i, np.random.default_rng(i)) for i in range(60)]
        words[split] = {word[:6] for sample in samples for chunk in sample.chunks for word in own_words(chunk)}
    assert words["train"]
    assert words["validation"]
    assert not words["train"] & words["validation"]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    put_books(tmp_path)
    with pytest.raises(ValueError, match="split"):
        open_source("books-cloze", tmp_path, "test")
    with pytest.raises(DataError, match="no book for train has 31 paragraphs, one of them of 200 characters"):
        source_of(tmp_path, num_chunks=31).sample(0, np.random.default_rng(0))

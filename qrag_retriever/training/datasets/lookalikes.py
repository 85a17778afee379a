"""Sentences of books that mention what a story is about: the hard negatives of long documents, brought into short ones.

Among a thousand sentences of a book hardly one speaks of milk or of a Mary, among a hundred thousand many do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from qrag_retriever.sentences import split_sentences
from qrag_retriever.training.datasets.reading import read_text

# Of each word, so many sentences serve an era.
_OF_AN_ERA = 12
_MOST_CHARACTERS = 200


class Lookalikes:
    """Draws sentences that mention some of the words of a vocabulary."""

    def __init__(self, paths: Sequence[Path], words: Sequence[str], seed: int = 0) -> None:
        """Find the sentences of books, when they are first needed.

        Args:
            paths: The books, a paragraph in each line.
            words: The vocabulary.
            seed: With the era, decides which of the sentences an era has.
        """
        self._paths, self._words, self._seed = tuple(paths), tuple(words), seed
        self._era: tuple[int, dict[str, list[str]]] | None = None

    def draw(self, texts: Sequence[str], count: int, random: np.random.Generator, era: int = 0) -> list[str]:
        """Draw sentences that share a word of the vocabulary with some texts, no sentence twice.

        Args:
            texts: Whose words count.
            count: Most sentences; fewer if there are no more.
            random: Decides which of the era's.
            era: See `SampleSource`.
        """
        by_word = self._of_era(era)
        named = sorted({word for text in texts for word in by_word if re.search(rf"\b{word}\b", text)})
        found = sorted({sentence for word in named for sentence in by_word[word]} - set(texts))
        return [found[place] for place in random.permutation(len(found))[:count].tolist()]

    def _of_era(self, era: int) -> dict[str, list[str]]:
        if self._era is None or self._era[0] != era:
            random = np.random.default_rng([self._seed, era])
            chosen = {
                word: [sentences[place] for place in random.permutation(len(sentences))[:_OF_AN_ERA].tolist()]
                for word, sentences in _mentions(self._paths, self._words).items()
            }
            self._era = era, chosen
        return self._era[1]


@lru_cache(maxsize=4)
def _mentions(paths: tuple[Path, ...], words: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the sentences that mention each word, capital letters or not."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
    spelt = {word.lower(): word for word in words}
    found: dict[str, dict[str, None]] = {word: {} for word in words}
    for path in paths:
        for paragraph in read_text(path).split("\n"):
            # Splitting takes far longer than looking.
            if pattern.search(paragraph):
                for sentence in split_sentences(paragraph):
                    if len(sentence) <= _MOST_CHARACTERS:
                        for match in pattern.findall(sentence):
                            found[spelt[match.lower()]].setdefault(sentence)
    return {word: list(sentences) for word, sentences in found.items()}

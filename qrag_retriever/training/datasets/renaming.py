"""Other names for the people, rooms and things of bAbI's stories: many stories from one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

# The words of bAbI's world that a story may exchange among each other and stay a story.
_KINDS = (
    ("Bill", "Daniel", "Fred", "Jeff", "John", "Mary", "Sandra"),
    ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office"),
    ("apple", "football", "milk"),
)
WORDS = tuple(word for words in _KINDS for word in words)
_WORD = re.compile("|".join(rf"\b{word}\b" for word in WORDS))

Rename = Callable[[str], str]


class Renaming:
    """Permutes the names that occur in some texts, each kind among itself."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Find the names that occur: a task does not get people of another."""
        found = {word for text in texts for word in _WORD.findall(text)}
        self._kinds = [[word for word in words if word in found] for words in _KINDS]

    def draw(self, random: np.random.Generator) -> Rename:
        """Draw new names; the result gives every text that it is applied to the same ones."""
        new = {
            word: words[place]
            for words in self._kinds
            for word, place in zip(words, random.permutation(len(words)).tolist(), strict=True)
        }
        return lambda text: _WORD.sub(lambda match: new[match[0]], text)

"""Passages under other names: what a question's evidence says stays, what it is about is called something else."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.mentions import what_it_is
from qrag_retriever.training.datasets.passages import FixedQuestions
from qrag_retriever.training.datasets.splits import Split
from qrag_retriever.training.datasets.training_paragraphs import plain_name

_SHARE = 0.75  # draws under other names
_FEWEST = 3  # names of a kind that others of it can be called by
_SHORTEST = 4  # letters of a name, or of its last word, that is exchanged


class RenamedPassages:
    """Questions whose passages are about things under the names of others of their kind, drawn anew every time.

    A pair that is trained on few questions for long knows by heart which passages go with which question. Where people
    bear the names of other people and films those of other films, the same in the question and in all passages, it has
    to find out from names and from what is said which passage leads to which.

    Attributes:
        name: That of the source.
        split: That of the source.
        default_step_limit: That of the source.
        dropped: That of the source.
    """

    def __init__(self, source: FixedQuestions) -> None:
        """Gather the names that things of a kind have."""
        self._source = source
        self.name, self.dropped = source.name, source.dropped
        self.split: Split = source.split
        self.default_step_limit = source.default_step_limit
        found: dict[str, set[str]] = defaultdict(set)
        for sample in source.samples:
            for chunk in sample.chunks:
                name, kind = _named(chunk)
                if kind is not None:
                    found[kind].add(name)
        self._names = {kind: sorted(names) for kind, names in found.items() if len(names) >= _FEWEST}

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self._source)

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Draw a question under other names; see `SampleSource`."""
        sample = self._source.sample(number, random, era)
        if random.random() >= _SHARE:
            return sample
        exchange = _Exchange(self._drawn_names(sample.chunks, random))
        return dataclasses.replace(
            sample,
            question=exchange(sample.question),
            chunks=tuple(map(exchange, sample.chunks)),
            answers=sample.answers and tuple(tuple(map(exchange, own)) for own in sample.answers),
        )

    def _drawn_names(self, chunks: Sequence[str], random: np.random.Generator) -> dict[str, str]:
        """Draw another name for each thing whose kind has several."""
        own = dict(map(_named, chunks))
        taken = set(own)
        drawn: dict[str, str] = {}
        for name, kind in own.items():
            others = [other for other in self._names.get(kind or "", ()) if other not in taken]
            if others and len(name) >= _SHORTEST:
                drawn[name] = others[int(random.integers(len(others)))]
                taken.add(drawn[name])
        return drawn


class _Exchange:
    """Replaces names, and the last word of one of two or three words, a surname mostly, where it stands alone."""

    def __init__(self, names: Mapping[str, str]) -> None:
        words = dict(names)
        for name, other in names.items():
            last, other_last = name.split()[-1], other.split()[-1]
            # Longer names are rarely those of people, and their last word may be any word.
            if 2 <= len(name.split()) <= 3 and len(last) >= _SHORTEST and last not in words:
                words[last] = other_last
        self._words = words
        longest_first = sorted(words, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)") if words else None

    def __call__(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._words[found[0]], text) if self._pattern else text


def _named(chunk: str) -> tuple[str, str | None]:
    """Return what a passage's thing is called, and the last word of what it is: "Shirley Temple", "actress"."""
    title, _, about = chunk.partition(". ")
    what = what_it_is(about)
    return plain_name(title), what.split()[-1].lower() if what else None

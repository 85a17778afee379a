"""The paragraphs of a data set's training questions, for questions that are made up from them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qrag_retriever.training.datasets.passages import drawn_from, window_of
from qrag_retriever.training.datasets.wiki import WikiName, WikiQuestions, read_wiki, wiki_file

_NEAR = 8  # paragraphs that stood beside the evidence in a real question


@dataclass(frozen=True)
class TrainingParagraphs:
    """Paragraphs by title.

    Attributes:
        texts: The text of each title, which it begins with.
        beside: The titles that stood beside each in a question.
        pool: All texts, sorted.
        forbidden: Titles of evidence for questions of validation and test.
    """

    texts: Mapping[str, str]
    beside: Mapping[str, Set[str]]
    pool: tuple[str, ...]
    forbidden: frozenset[str] = frozenset()

    @classmethod
    def merged(cls, parts: Sequence[TrainingParagraphs]) -> TrainingParagraphs:
        """Join the paragraphs of several data sets, without what is forbidden in any of them.

        Where two have a title, the text of the first counts.
        """
        forbidden = frozenset().union(*(part.forbidden for part in parts))
        texts: dict[str, str] = {}
        beside: dict[str, set[str]] = defaultdict(set)
        for part in parts:
            for title, text in part.texts.items():
                if forbidden.isdisjoint({title, plain_name(title)}):
                    texts.setdefault(title, text)
        for part in parts:
            for title, others in part.beside.items():
                beside[title] |= others & texts.keys()
        return cls(texts, beside, tuple(sorted(set(texts.values()))), forbidden)

    def among_others(
        self,
        evidence: Sequence[str],
        num_chunks: int,
        random: np.random.Generator,
        era: int,
        likely: Sequence[str] = (),
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Put evidence among likely mistakes, paragraphs that stood beside it and random ones, and shuffle.

        Args:
            evidence: Titles.
            num_chunks: Paragraphs in all, at most as many as there are.
            random: The sample's stream.
            era: Decides which paragraphs the random ones come from.
            likely: Titles of paragraphs that might be taken for evidence; they come before all others.

        Returns:
            The paragraphs, and the ascending ids of the evidence.
        """
        chunks = [self.texts[title] for title in evidence]
        beside = sorted({title for own in evidence for title in self.beside[own]} - set(evidence))
        near = [self.texts[title] for title in likely if title not in evidence]
        near += [self.texts[beside[i]] for i in random.permutation(len(beside))[:_NEAR]]
        near = list(dict.fromkeys(near))
        chunks += [text for text in near if text not in chunks][: num_chunks - len(chunks)]
        chunks += drawn_from(window_of(self.pool, era), num_chunks - len(chunks), set(chunks), random)
        # More are wanted than an era's window has.
        chunks += drawn_from(self.pool, num_chunks - len(chunks), set(chunks), random)
        order = random.permutation(len(chunks)).tolist()
        supporting = tuple(place for place, i in enumerate(order) if i < len(evidence))
        return tuple(chunks[i] for i in order), supporting


def training_paragraphs(name: WikiName, folder: str | Path, validation_share: float) -> TrainingParagraphs:
    """Gather the paragraphs of the training cut that are no evidence for a question of validation or test.

    Args:
        name: "hotpotqa" or "2wiki".
        folder: The data folder.
        validation_share: That of the source of the same name.

    Raises:
        DataError: If a file is missing or a line of it is not as the format has it.
    """
    titles_of: dict[str, str] = {}
    for record in read_wiki(wiki_file(folder, f"{name}/{name}_train")):
        titles_of.update({text: title for title, text in record.paragraphs})
    source = WikiQuestions(name, folder, "train", validation_share=validation_share)
    forbidden = source.test_titles | source.validation_titles
    texts: dict[str, str] = {}
    beside: dict[str, set[str]] = defaultdict(set)
    for sample in source.samples:
        own = {titles_of[text]: text for text in sample.chunks if titles_of[text] not in forbidden}
        for title, text in own.items():
            texts.setdefault(title, text)
            beside[title] |= own.keys() - {title}
    return TrainingParagraphs(texts, beside, tuple(sorted(texts.values())), frozenset(forbidden))


def plain_name(title: str) -> str:
    """Return a title without what tells it from others of the same name: "X (film)" is "X"."""
    return re.sub(r" \([^)]*\)$", "", title)

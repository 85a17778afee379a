"""More questions of 2WikiMultihopQA's kinds, made up from the paragraphs of its training questions.

2Wiki's own questions were made by templates from facts that link two articles. What evidence such a question needs does
not depend on what it asks of the second article (when a director was born, where, of which nation), so that questions
can be made wherever one paragraph of the training data names the title of another one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.errors import DataError
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.splits import Split, check_split
from qrag_retriever.training.datasets.training_paragraphs import plain_name, training_paragraphs

_STEP_LIMIT = 4
_OPENING = 250  # characters of a paragraph that say what it is about

# What is asked of a person; {0} is "the director of film X".
_OF_PERSON = (
    "Where was {0} born?",
    "Where did {0} die?",
    "When was {0} born?",
    "When did {0} die?",
    "What is the date of birth of {0}?",
    "What is the date of death of {0}?",
    "What is the place of birth of {0}?",
    "Where was the place of death of {0}?",
    "What nationality is {0}?",
    "Which country {0} is from?",
    "What is the cause of death of {0}?",
    "Why did {0} die?",
    "Who is the child of {0}?",
    "Who is the father of {0}?",
    "Who is the mother of {0}?",
    "Who is the spouse of {0}?",
    "What is the award that {0} received?",
    "Which award {0} won?",
    "Where did {0} study?",
    "Where was {0} educated at?",
    "Where does {0} work at?",
    "When is {0}'s birthday?",
)
_TWO_WORKS = (
    "Which film has the director who was born first, {0} or {1}?",
    "Which film has the director who was born earlier, {0} or {1}?",
    "Which film has the director who was born later, {0} or {1}?",
    "Which film has the director who died first, {0} or {1}?",
    "Which film has the director who died earlier, {0} or {1}?",
    "Which film has the director who died later, {0} or {1}?",
    "Which film whose director is younger, {0} or {1}?",
    "Which film has the director who is older, {0} or {1}?",
    "Do director of film {0} and director of film {1} share the same nationality?",
    "Do director of film {0} and director of film {1} have the same nationality?",
    "Are director of film {0} and director of film {1} both from the same country?",
    "Are director of film {0} and director of film {1} from the same country?",
    "Do both films {0} and {1} have the directors from the same country?",
    "Do both directors of films {0} and {1} share the same nationality?",
)
_COMPARED = {
    "person": (
        "Who is older, {0} or {1}?",
        "Who is younger, {0} or {1}?",
        "Who was born first, {0} or {1}?",
        "Who was born earlier, {0} or {1}?",
        "Who was born later, {0} or {1}?",
        "Was {0} or {1} born first?",
        "Who died first, {0} or {1}?",
        "Who lived longer, {0} or {1}?",
        "Are {0} and {1} both from the same country?",
        "Are {0} and {1} of the same nationality?",
        "Do {0} and {1} have the same nationality?",
    ),
    "film": (
        "Which film came out first, {0} or {1}?",
        "Which film came out earlier, {0} or {1}?",
        "Which film was released more recently, {0} or {1}?",
        "Which film was released first, {0} or {1}?",
        "Are {0} and {1} both from the same country?",
        "Do the movies {0} and {1} originate from the same country?",
    ),
    "place": (
        "Are both {0} and {1} located in the same country?",
        "Are {0} and {1} both located in the same country?",
        "Are {0} and {1} located in the same country?",
        "Are both places, {0} and {1}, located in the same country?",
    ),
}
# Role in a question -> what the paragraph is about, and its words before the name.
_ROLES = {
    "director of film": ("film", re.compile(r"directed by ")),
    "performer of song": ("song", re.compile(r"(?:song|single|track)\b[^.]{0,60}?\bby ")),
    "composer of film": ("film", re.compile(r"(?:composed|music|scored) by ")),
}
_KINDS = {
    "person": re.compile(r"\( ?(?:born|\d{1,2} \w+ \d{4}|\w+ \d{1,2}, \d{4})"),
    "film": re.compile(r"\bis an? [^.]{0,80}\bfilm\b(?! director| actor| producer)"),
    "song": re.compile(r"\bis an? [^.]{0,60}\b(?:song|single|track)\b"),
    "place": re.compile(r"\bis an? [^.]{0,60}\b(?:village|town|river|municipality|mountain|island|lake|stream)\b"),
}
_KIND_SHARES = {"role": 0.45, "two works": 0.25, "compared": 0.3}


@dataclass(frozen=True, slots=True)
class _Link:
    """A paragraph that names the title of another: a film and its director, say."""

    role: str
    work: str
    person: str


class TwoWikiMade:
    """Questions made up from the paragraphs of 2Wiki's training questions; for training only.

    Paragraphs that are evidence for a question of validation or test take no part.

    Attributes:
        name: "2wiki-made".
        split: "train".
        num_chunks: Paragraphs of a sample.
        default_step_limit: Picks that an episode should have.
    """

    name = "2wiki-made"
    default_step_limit = _STEP_LIMIT

    def __init__(
        self,
        folder: str | Path,
        split: Split = "train",
        *,
        num_chunks: int = 40,
        num_questions: int = 20_000,
        validation_share: float = 0.1,
    ) -> None:
        """Find what links the paragraphs.

        Args:
            folder: The data folder, with ``2wiki/``.
            split: "train".
            num_chunks: Paragraphs of a sample.
            num_questions: How many questions to make up; there could be more.
            validation_share: That of the source "2wiki", whose validation this keeps away from.

        Raises:
            DataError: If a file is missing, a line of it is not as the format has it, or nothing is linked.
        """
        check_split(split, ["train"])
        check_at_least_one(num_chunks=num_chunks, num_questions=num_questions)
        if num_chunks < _STEP_LIMIT:
            raise ValueError(f"num_chunks must be at least {_STEP_LIMIT}, the evidence of a question; got {num_chunks}")
        self.split: Split = split
        self.num_chunks, self._num_questions = num_chunks, num_questions
        self._paragraphs = training_paragraphs("2wiki", folder, validation_share)
        texts = self._paragraphs.texts
        if num_chunks > len(texts):
            raise ValueError(f"{self.name}: {num_chunks} paragraphs asked for, but there are {len(texts)}")
        self._links = _links(texts)
        self._films = [link for link in self._links if link.role == "director of film"]
        self._titles = {kind: _titles_of(kind, texts) for kind in _COMPARED}
        if len(self._films) < 2 or any(len(titles) < 2 for titles in self._titles.values()):
            raise DataError(f"{folder}: the paragraphs in 2wiki/ have too few links to make up questions from")

    def __len__(self) -> int:
        """Return ``num_questions``."""
        return self._num_questions

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Make up a question, the same for a number at every call, among other paragraphs; see `SampleSource`."""
        question, evidence = self._question(np.random.default_rng(number))
        chunks, supporting = self._paragraphs.among_others(evidence, self.num_chunks, random, era)
        return Sample(f"{self.name}-{number}", question, chunks, supporting, None, "corpus")

    def _question(self, random: np.random.Generator) -> tuple[str, list[str]]:
        """Return a question and the titles of its evidence."""
        kind = random.choice(list(_KIND_SHARES), p=list(_KIND_SHARES.values()))
        if kind == "role":
            link = self._links[int(random.integers(len(self._links)))]
            return _one_of(_OF_PERSON, random).format(f"the {link.role} {link.work}"), [link.work, link.person]
        if kind == "two works":
            first, second = (self._films[i] for i in random.choice(len(self._films), 2, replace=False).tolist())
            titles = dict.fromkeys([first.work, second.work, first.person, second.person])
            return _one_of(_TWO_WORKS, random).format(first.work, second.work), list(titles)
        about = _one_of(list(_COMPARED), random)
        titles_of = self._titles[about]
        one, other = (titles_of[i] for i in random.choice(len(titles_of), 2, replace=False).tolist())
        return _one_of(_COMPARED[about], random).format(one, other), [one, other]


def _one_of(options: Sequence[str], random: np.random.Generator) -> str:
    return options[int(random.integers(len(options)))]


def _links(texts: Mapping[str, str]) -> list[_Link]:
    """Find the paragraphs that name another's title in a role; a name that two titles share links nothing."""
    titles: dict[str, list[str]] = defaultdict(list)
    for title in texts:
        titles[plain_name(title)].append(title)
    found = []
    for work, text in texts.items():
        for role, (kind, before) in _ROLES.items():
            if not _is(kind, text):
                continue
            for match in before.finditer(text):
                person = _named(text[match.end() :], titles)
                # Not every article on a person has a date of birth, but what is another thing is no person.
                if person is not None and not any(_is(thing, texts[person]) for thing in ("film", "song", "place")):
                    found.append(_Link(role, work, person))
                    break
    return found


def _named(text: str, titles: dict[str, list[str]]) -> str | None:
    """Return the title whose name a text begins with, at most four words into it."""
    words = text[:120].split()
    for start in range(min(5, len(words))):
        for length in range(min(6, len(words) - start), 0, -1):
            name = " ".join(words[start : start + length]).rstrip(",.;")
            if len(titles.get(name, ())) == 1:
                return titles[name][0]
        if words[start].endswith((",", ".", ";")):
            return None
    return None


def _is(kind: str, text: str) -> bool:
    return _KINDS[kind].search(text[:_OPENING]) is not None


def _titles_of(kind: str, texts: Mapping[str, str]) -> list[str]:
    return sorted(title for title, text in texts.items() if _is(kind, text))

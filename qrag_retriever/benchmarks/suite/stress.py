"""Stress tests: what relative positions gain and lose, and noise that no training has shown."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

from qrag_retriever.errors import DataError
from qrag_retriever.sentences import split_sentences
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets import LENGTHS, BabiLong, BookNoise, DatasetSource, Split
from qrag_retriever.training.datasets.babi import read_stories
from qrag_retriever.training.datasets.books import Noise, SentencePool
from qrag_retriever.training.datasets.reading import find_file, find_files, read_text
from qrag_retriever.training.datasets.squad import read_articles

_MOVE = re.compile(r"(\w+) (?:went|moved|journeyed|travelled)(?: back)? to the (\w+)\.")
_ORDINALS = ("first", "second", "third", "fourth")
_QUARTERS = ("first", "second", "third", "last")
_RUN = 50
_NOISE_SENTENCES = 20_000
Move = tuple[str, int]  # a room, and the place of the chunk that says so
Asked = tuple[str, str, tuple[int, ...]]  # question, answer, evidence


class TemporalQuestions:
    """Questions on who was where and when, made from the moves in bAbI's QA1 test stories, among sentences of books.

    Each question has one right answer, and the moves that prove it are its evidence:

    - "before", "after": "Where was Mary before the kitchen?" (the move to the kitchen and the one before it; she was
      there once).
    - "ordinal": "Where did Mary go the second time?" (her second move).
    - "quarter": "Where did Mary go in the first quarter of the text?" (her only move there).

    Attributes:
        name: "stress-before" and so on.
        split: "test".
        kind: "before", "after", "ordinal" or "quarter".
        default_step_limit: One pick more than there is evidence.
    """

    split: Split = "test"

    def __init__(self, folder: str | Path, kind: str, num_chunks: int, noise: Noise) -> None:
        """Read the stories.

        Raises:
            DataError: If the file of the stories is missing or not as its format has it.
        """
        self.name, self.kind = f"stress-{kind}", kind
        self.default_step_limit = 3 if kind in ("before", "after") else 2
        self._num_chunks, self._noise = num_chunks, noise
        stories = read_stories(find_file(folder, "babi/en/qa1_*_test.txt", "babi/en-10k/qa1_*_test.txt"))
        self._stories = [story.statements for story in stories]

    def __len__(self) -> int:
        """Return how many stories there are; each gives one question."""
        return len(self._stories)

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Put a story among noise and ask about it; see `SampleSource`.

        Raises:
            DataError: If the story leaves nothing to ask, wherever its statements lie.
        """
        statements = self._stories[number]
        num_noise = max(0, self._num_chunks - len(statements))
        for _ in range(100):  # which question there is may depend on the places
            places = np.sort(random.choice(num_noise + len(statements), len(statements), replace=False)).tolist()
            asked = self._questions(statements, places, num_noise + len(statements))
            if asked:
                question, answer, supporting = asked[int(random.integers(len(asked)))]
                noise = iter(self._noise.draw(num_noise, random, era))
                facts = dict(zip(places, statements, strict=True))
                chunks = tuple(facts[i] if i in facts else next(noise) for i in range(num_noise + len(statements)))
                return Sample(f"{self.name}-{number}", question, chunks, tuple(sorted(supporting)), ((answer,),))
        raise DataError(f"story {number} of the QA1 test file has nothing to ask for {self.name}")

    def _questions(self, statements: Iterable[str], places: list[int], length: int) -> list[Asked]:
        moves: dict[str, list[Move]] = {}
        for statement, place in zip(statements, places, strict=True):
            if found := _MOVE.fullmatch(statement):
                moves.setdefault(found[1], []).append((found[2], place))
        if self.kind == "ordinal":
            return [asked for person, own in moves.items() for asked in _ordinal(person, own)]
        if self.kind == "quarter":
            return [asked for person, own in moves.items() for asked in _quarter(person, own, length)]
        step = -1 if self.kind == "before" else 1
        return [asked for person, own in moves.items() for asked in _neighbour(person, own, self.kind, step)]


def _ordinal(person: str, moves: list[Move]) -> Iterator[Asked]:
    for ordinal, (room, place) in zip(_ORDINALS, moves, strict=False):
        yield f"Where did {person} go the {ordinal} time?", room, (place,)


def _quarter(person: str, moves: list[Move], length: int) -> Iterator[Asked]:
    for quarter, name in enumerate(_QUARTERS):
        inside = [move for move in moves if move[1] * len(_QUARTERS) // length == quarter]
        if len(inside) == 1:
            ((room, place),) = inside
            yield f"Where did {person} go in the {name} quarter of the text?", room, (place,)


def _neighbour(person: str, moves: list[Move], relation: str, step: int) -> Iterator[Asked]:
    rooms = [room for room, _ in moves]
    for i, (room, place) in enumerate(moves):
        if rooms.count(room) == 1 and 0 <= i + step < len(moves):
            other, there = moves[i + step]
            yield f"Where was {person} {relation} the {room}?", other, (place, there)


class TextNoise:
    """Sentences of any texts as noise, in runs; drawn again where there are fewer than wanted."""

    def __init__(self, sentences: list[str]) -> None:
        """Keep the sentences."""
        self._pool = SentencePool.of([sentences], _RUN)

    def draw(self, num_sentences: int, random: np.random.Generator, era: int = 0) -> list[str]:
        """Draw runs of consecutive sentences; a sentence comes again only after all have come."""
        drawn: list[str] = []
        while missing := num_sentences - len(drawn):
            drawn += self._pool.draw(min(missing, len(self._pool.sentences)), random)
        return drawn


def licence_texts(folder: Path) -> list[str]:
    """Return the licence texts of the installed Python packages."""
    found = set()
    for package in importlib.metadata.distributions():
        for file in package.files or ():
            if re.fullmatch(r"(licen[cs]e|copying|notice)(\.\w+)?", file.name, re.IGNORECASE):
                path = Path(str(package.locate_file(file)))
                if path.is_file():
                    found.add(path.read_text(encoding="utf-8", errors="replace"))
    return sorted(found)


def python_documentation(folder: Path) -> list[str]:
    """Return the documentation strings of Python's standard library."""
    import ast
    import sysconfig

    texts = []
    for module in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                texts.append(text)
    return texts


def squad_articles(folder: Path) -> list[str]:
    """Return the paragraphs of SQuAD's test articles."""
    path = find_file(folder, "squad/squad_v2_dev_half.json.gz", "squad/squad_v2_dev_half.json")
    return [paragraph for article in read_articles(path) for paragraph in article.paragraphs]


def essays(folder: Path) -> list[str]:
    """Return Paul Graham's essays."""
    return [read_text(path) for path in find_files(folder, "essays/paul_graham/*.txt")]


_DOMAINS: dict[str, Callable[[Path], list[str]]] = {
    "licences": licence_texts,
    "python-docs": python_documentation,
    "squad": squad_articles,
    "essays": essays,
}


@cache
def _noise_of(domain: str, folder: Path) -> TextNoise:
    texts = _DOMAINS[domain](folder)
    sentences = [sentence for text in texts for sentence in split_sentences(" ".join(text.split()))]
    # Licences repeat each other, marks and numbers alone are no sentences, and a few "sentences" are whole tables.
    kept = [sentence for sentence in dict.fromkeys(sentences) if 10 <= len(sentence) <= 1000]
    if not kept:
        raise DataError(f"the texts of {domain} have no sentence of 10 to 1,000 characters")
    return TextNoise(kept)


@cache
def books(folder: Path, num_sentences: int) -> BookNoise:
    """Share test noise between tasks and questions: the same sentences are embedded once."""
    return BookNoise(folder, "test", window=max(_NOISE_SENTENCES, num_sentences))


def _temporal(kind: str, folder: Path, length: str, seed: int) -> DatasetSource:
    return TemporalQuestions(folder, kind, LENGTHS[length], books(folder, LENGTHS[length]))


def _other_noise(task: int, domain: str, folder: Path, length: str, seed: int) -> DatasetSource:
    return BabiLong(folder, task, "test", num_chunks=LENGTHS[length], noise=_noise_of(domain, folder))


# Name -> what opens it, given data folder, length and seed.
SOURCES: dict[str, Callable[[Path, str, int], DatasetSource]] = {
    **{f"stress-{kind}": partial(_temporal, kind) for kind in ("before", "after", "ordinal", "quarter")},
    **{f"stress-qa{task}-{domain}": partial(_other_noise, task, domain) for task in (2, 3) for domain in _DOMAINS},
}

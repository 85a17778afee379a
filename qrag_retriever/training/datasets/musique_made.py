"""More questions of two to four hops like MuSiQue's, chained from single hops as MuSiQue's own were.

A question about a thing becomes one of two hops when the thing's name gives way to what another paragraph says of it:
"when was Hong Kong taken by the British" and a film produced in Hong Kong make "When was the country that produced Fist
Power taken by the British?"; and that film may be described by a third paragraph that names it. The last hops are
questions that people asked (the parts of MuSiQue's training questions, questions on SQuAD's articles) or made by
template; all other hops follow the names that paragraphs of MuSiQue, HotpotQA and 2Wiki share. A last hop may also ask
for what a paragraph about something else says of the thing in passing: "first president of the American Psychological
Association", in the paragraph on adolescence.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.errors import DataError
from qrag_retriever.json_lines import Place, list_of, text_of
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.chain_texts import ASKED, ASKED_OF_ALL, DESCRIPTIONS, KINDS, KINDS_OF_PLACES
from qrag_retriever.training.datasets.mentions import Mention, find_mentions, telling_names, what_it_is, words_around
from qrag_retriever.training.datasets.musique import MuSiQue
from qrag_retriever.training.datasets.reading import find_file, object_at, passage, read_records
from qrag_retriever.training.datasets.splits import Split, check_split
from qrag_retriever.training.datasets.squad import VALIDATION_SHARE, articles_of
from qrag_retriever.training.datasets.training_paragraphs import TrainingParagraphs, plain_name, training_paragraphs

Option = TypeVar("Option")
_STEP_LIMIT = 5
_MOST_HOPS = 4
_GO_ON_SHARE = 0.6  # chains that get one hop more, where one is possible
_ASKED_BY_PEOPLE_SHARE = 0.25
_MOST_NAMED = 30  # paragraphs with a name; of more, words around it hardly tell which one is meant
_OPENING = 300  # characters of a paragraph that say what may be asked
_SAME_KIND = 3  # paragraphs of the kind of each one of the evidence that are among the others
_SLOT = re.compile(r"#(\d+)")
_RELATION = " >> "
_TWO_ARTICLES = re.compile(r"\b(?:the|a|an) (the|a|an) ", re.IGNORECASE)
_QUESTION_WORDS = ("Who ", "What ", "Which one ", "")
_NAME = re.compile(r"[A-Z][\w'.\-]+(?: (?:(?:of|the|and|de|in) )?[A-Z][\w'.\-]+)*")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that a paragraph answers; ``{}`` stands for the name that it is about."""

    question: str
    name: str
    title: str


class MuSiQueMade:
    """Questions of several hops made up from paragraphs and parts of training questions; for training only.

    Paragraphs with the title of evidence for a question of validation or test take no part.

    Attributes:
        name: "musique-made".
        split: "train".
        num_chunks: Paragraphs of a sample.
        default_step_limit: Picks that an episode should have.
    """

    name = "musique-made"
    default_step_limit = _STEP_LIMIT

    def __init__(
        self,
        folder: str | Path,
        split: Split = "train",
        *,
        num_chunks: int = 20,
        num_questions: int = 20_000,
        parts: bool = True,
        passing: float = 0.0,
        validation_share: float = 0.1,
    ) -> None:
        """Find what links the paragraphs.

        Args:
            folder: The data folder, with ``musique/``, ``hotpotqa/``, ``2wiki/`` and ``squad/``.
            split: "train".
            num_chunks: Paragraphs of a sample.
            num_questions: How many questions to make up; there could be more.
            parts: Ask the single hops of MuSiQue's training questions too. Without them these questions stay unseen,
                and can tell what the others teach.
            passing: The share of questions whose last hop asks for what a paragraph about something else says.
            validation_share: That of the sources "musique", "hotpotqa" and "2wiki", whose validation this keeps away
                from.

        Raises:
            DataError: If a file is missing, a line of it is not as the format has it, or nothing is linked.
        """
        check_split(split, ["train"])
        check_at_least_one(num_chunks=num_chunks, num_questions=num_questions)
        if num_chunks < _MOST_HOPS:
            raise ValueError(f"num_chunks must be at least {_MOST_HOPS}, the evidence of a question; got {num_chunks}")
        self.split: Split = split
        self.num_chunks, self._num_questions, self._passing_share = num_chunks, num_questions, passing
        musique, asked_parts = _musique(folder, validation_share)
        squad, questions = _squad(folder)
        wiki = [training_paragraphs(name, folder, validation_share) for name in ("hotpotqa", "2wiki")]
        self._paragraphs = TrainingParagraphs.merged([musique, squad, *wiki])
        texts = self._paragraphs.texts
        if num_chunks > len(texts):
            raise ValueError(f"{self.name}: {num_chunks} paragraphs asked for, but there are {len(texts)}")
        self._titles = telling_names(texts)
        known = {plain_name(title) for title in texts}
        by_name: dict[str, list[_Asked]] = defaultdict(list)
        for asked in [*(asked_parts if parts else ()), *questions]:
            # A word with a capital may be a month or a language, unless an article has it as its name.
            if asked.title in texts and (" " in asked.name or asked.name in known):
                by_name[asked.name].append(asked)
        names = {name: name for name in (*self._titles, *by_name)}
        self._naming: dict[str, list[Mention]] = defaultdict(list)
        for mention in find_mentions(texts, names):
            self._naming[mention.named].append(mention)
        # An article whose name only its own paragraphs have leads nowhere.
        self._asked = {
            name: linked
            for name, own in sorted(by_name.items())
            if (linked := [one for one in own if self._ways(name, [one.title])])
        }
        self._ends = list(self._asked), sorted(self._naming.keys() & self._titles.keys())
        self._passing = self._said_in_passing() if passing else {}
        if not any(self._ends):
            raise DataError(f"{folder}: no paragraph in musique/ names another one to make up questions from")
        self._of_kind: dict[str, list[str]] = defaultdict(list)
        for title in texts:
            self._of_kind[self._kind(title)].append(title)

    def __len__(self) -> int:
        """Return ``num_questions``."""
        return self._num_questions

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Make up a question, the same for a number at every call, among other paragraphs; see `SampleSource`."""
        question, evidence = self._question(np.random.default_rng(number))
        likely = []
        for title in evidence:
            kin = self._of_kind[self._kind(title)]
            likely += [kin[i] for i in random.permutation(len(kin))[:_SAME_KIND]]
        chunks, supporting = self._paragraphs.among_others(evidence, self.num_chunks, random, era, likely)
        return Sample(f"{self.name}-{number}", question, chunks, supporting, None, "corpus")

    def _about(self, title: str) -> str:
        return self._paragraphs.texts[title].removeprefix(f"{plain_name(title)}. ").removeprefix(f"{title}. ")

    def _kind(self, title: str) -> str:
        """Return the last word of what a thing is: "actress"."""
        what = what_it_is(self._about(title))
        return what.split()[-1] if what else ""

    def _question(self, random: np.random.Generator) -> tuple[str, list[str]]:
        """Return a question and the titles of its evidence, the last hop's first."""
        while True:
            asked = self._last_hop(random)
            phrase, name, evidence = asked.name, asked.name, [asked.title]
            while len(evidence) < _MOST_HOPS and (ways := self._ways(name, evidence)):
                longer = [mention for mention in ways if plain_name(mention.title) in self._naming]
                goes_on = bool(longer) and random.random() < _GO_ON_SHARE
                mention = _one_of(longer if goes_on else ways, random)
                phrase = phrase.replace(name, self._described(mention, random))
                name = plain_name(mention.title)
                evidence.append(mention.title)
                if not goes_on:
                    break
            if len(evidence) > 1:
                question = _TWO_ARTICLES.sub(r"\1 ", asked.question.replace("{}", phrase))
                return question[0].upper() + question[1:], evidence

    def _ways(self, name: str, evidence: Sequence[str]) -> list[Mention]:
        """Return where paragraphs name something, but not two paragraphs of one article."""
        taken = {plain_name(title) for title in evidence}
        return [mention for mention in self._naming.get(name, ()) if plain_name(mention.title) not in taken]

    def _said_in_passing(self) -> dict[str, list[_Asked]]:
        """Return what paragraphs about other things say of each thing that yet another paragraph leads to."""
        found: dict[str, list[_Asked]] = {}
        for name, mentions in sorted(self._naming.items()):
            if len(mentions) > _MOST_NAMED:
                continue
            asked = [
                _Asked(f"{words}?", name, mention.title)
                for mention in mentions
                if (words := words_around(mention)) and self._ways(name, [name, mention.title])
            ]
            if asked:
                found[name] = asked
        return found

    def _last_hop(self, random: np.random.Generator) -> _Asked:
        if self._passing and random.random() < self._passing_share:
            asked = _one_of(self._passing[_one_of(list(self._passing), random)], random)
            return replace(asked, question=_one_of(_QUESTION_WORDS, random) + asked.question)
        by_people, titled = self._ends
        if by_people and (not titled or random.random() < _ASKED_BY_PEOPLE_SHARE):
            return _one_of(self._asked[_one_of(by_people, random)], random)
        name = _one_of(titled, random)
        title = self._titles[name]
        opening = self._about(title)[:_OPENING]
        fitting = [questions for words, questions in ASKED if words.search(opening)] or [ASKED_OF_ALL]
        return _Asked(_one_of(_one_of(fitting, random), random), name, title)

    def _described(self, mention: Mention, random: np.random.Generator) -> str:
        """Describe what a sentence names by what the sentence is about."""
        phrases = next(phrases for before, phrases in DESCRIPTIONS if before.search(mention.before))
        title = self._titles.get(mention.named)
        kind = what_it_is(self._about(title)) if title else None
        if kind is None:
            place = re.search(r"\b(?:in|at|near|of)(?: the)?$", mention.before)
            kind = _one_of(KINDS_OF_PLACES if place else KINDS, random)
        return _one_of(phrases, random).format(plain_name(mention.title), kind)


def _one_of(options: Sequence[Option], random: np.random.Generator) -> Option:
    return options[int(random.integers(len(options)))]


def _musique(folder: str | Path, validation_share: float) -> tuple[TrainingParagraphs, list[_Asked]]:
    """Return the paragraphs of MuSiQue's training questions, and the single hops that the questions consist of."""
    source = MuSiQue(folder, "train", validation_share=validation_share)
    forbidden = source.test_titles | source.validation_titles
    chosen = {sample.id for sample in source.samples}
    texts = _Articles()
    beside: dict[str, set[str]] = defaultdict(set)
    asked: list[_Asked] = []
    for place, record in read_records(find_file(folder, *MuSiQue.files("train"))):
        if text_of(record, "id", place) not in chosen:
            continue
        titles = [
            texts.add(text_of(entry, "title", place), text_of(entry, "paragraph_text", place))
            for entry in list_of(record, "paragraphs", place)
        ]
        for title in titles:
            beside[title] |= set(titles) - {title}
        asked += _single_hops(record, titles, place)
    return TrainingParagraphs(texts.texts, beside, tuple(sorted(texts.texts.values())), frozenset(forbidden)), asked


def _single_hops(record: dict[str, Any], titles: Sequence[str], place: Place) -> Iterator[_Asked]:
    """Yield the parts of a question as questions about the name that each of them has."""
    answers: list[str] = []
    steps = record.get("question_decomposition", [])
    if not isinstance(steps, list):
        raise place.expected("question_decomposition", "a list of objects", steps)
    for i, entry in enumerate(steps):
        step = object_at(entry, f"question_decomposition[{i}]", place)
        question, support = text_of(step, "question", place), step.get("paragraph_support_idx")
        answers.append(text_of(step, "answer", place))
        if not isinstance(support, int) or not 0 <= support < len(titles):
            continue
        subject, is_relation, relation = question.partition(_RELATION)
        if is_relation:
            question = f"What is the {relation} of {subject}?"
        slots = [int(number) - 1 for number in _SLOT.findall(question)]
        if any(not 0 <= slot < i for slot in slots):  # only an earlier answer can be meant
            continue
        for slot in dict.fromkeys(slots):
            open_one = question.replace(f"#{slot + 1}", "{}")
            open_one = _SLOT.sub(lambda found: answers[int(found[1]) - 1], open_one)
            yield _Asked(open_one, answers[slot], titles[support])
        if not slots:
            yield from _about_names(question, titles[support], [subject] if is_relation else None)


def _about_names(question: str, title: str, names: Iterable[str] | None = None) -> Iterator[_Asked]:
    """Yield a question as one about each name in it; by default what has capitals is a name."""
    if names is None:
        # A first word has a capital whatever it is.
        names = [found[0] for found in _NAME.finditer(question) if found.start() > 0]
    for name in dict.fromkeys(names):
        yield _Asked(question.replace(name, "{}", 1), name, title)


def _squad(folder: str | Path) -> tuple[TrainingParagraphs, list[_Asked]]:
    """Return the paragraphs of SQuAD's training articles, with titles as Wikipedia's have them, and their questions."""
    texts = _Articles()
    asked: list[_Asked] = []
    beside: dict[str, set[str]] = defaultdict(set)
    for article in articles_of(folder, "train", VALIDATION_SHARE, {}):
        title = article.title.replace("_", " ")
        titles = {text: texts.add(title, text) for text in article.paragraphs}
        for own in titles.values():
            beside[own] |= set(titles.values()) - {own}
        for question in article.questions:
            asked += _about_names(question.question.strip(), titles[question.gold[0]])
    return TrainingParagraphs(texts.texts, beside, tuple(sorted(texts.texts.values()))), asked


class _Articles:
    """Paragraphs by title, where an article may have several: the later ones get a number behind their title."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._titles: dict[str, str] = {}

    def add(self, title: str, text: str) -> str:
        """Remember a paragraph; return what it is filed under."""
        whole = passage(title, text)
        if whole not in self._titles:
            number = sum(plain_name(known) == plain_name(title) for known in self.texts)
            self._titles[whole] = f"{plain_name(title)} (paragraph {number + 1})" if number else title
            self.texts[self._titles[whole]] = whole
        return self._titles[whole]

"""Questions over made-up facts: who the mayor of the town is that the author of a book comes from.

Short sentences in which a name leads from one fact to the next, with many names and many ways to tell and to ask: what
the stories of bAbI (few names) and paragraphs of Wikipedia (long ones) do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.relation_texts import (
    ADJECTIVES,
    FIRST_NAMES,
    LAST_NAMES,
    NAMES,
    NOUNS,
    PLACE_ENDS,
    PLACE_MIDDLES,
    PLACE_STARTS,
    RELATIONS,
    WORDS,
    Relation,
)
from qrag_retriever.training.datasets.splits import Split, check_split, cut_of

_STEP_LIMIT = 4
_HOPS = ((1, 0.15), (2, 0.6), (3, 0.25))  # facts that lead from a name to the answer, and the share of questions
_COMPARED_SHARE = 0.12  # questions whether two entities share something
_BACKWARD_SHARE = 0.5  # facts used from their object, where that is possible
_GROUPED_SHARE = 0.35  # documents whose chunks have all that is told of one entity
_DECOY_CHAINS = 2  # other ways through the same relations
_VALIDATION_SHARE = 0.2  # of the parts of names


_YES_OR_NO_SHARE = 0.75  # of comparisons
_YES_OR_NO = (
    "Do {0} and {1} have the same {2}?",
    "Is the {2} of {0} the same as that of {1}?",
    "Do {0} and {1} share their {2}?",
)


@dataclass(frozen=True, slots=True)
class _Fact:
    subject: str
    relation: Relation
    object: str


@dataclass
class _World:
    """Facts that do not contradict each other: a subject has one object in a relation, an object one subject."""

    random: np.random.Generator
    draw_name: Callable[[str, np.random.Generator], str]
    facts: list[_Fact] = field(default_factory=list)
    _taken: set[tuple[Relation, str]] = field(default_factory=set)
    _names: set[str] = field(default_factory=set)

    def entity(self, kind: str) -> str:
        """Name something new of a kind; words and numbers may come again."""
        name = self.draw_name(kind, self.random)
        while name in self._names and kind not in WORDS:
            name = self.draw_name(kind, self.random)
        self._names.add(name)
        return name

    def tell(self, subject: str, relation: Relation, told: str) -> _Fact | None:
        """Add a fact, unless something else is told already."""
        taken = {(relation, subject), (relation, told)} if relation.inverse else {(relation, subject)}
        if taken & self._taken:
            return None
        self._taken |= taken
        self.facts.append(_Fact(subject, relation, told))
        return self.facts[-1]


# A question, the facts that answer it, and the answers.
_Asked = tuple[str, list[_Fact], tuple[tuple[str, ...], ...]]


class MadeRelations:
    """Short statements about made-up people, firms, towns and works, and a question that one to three of them answer.

    Every question has decoys: other facts about the same entities, and other ways through the same relations. Names of
    training and validation differ in all their parts.

    Attributes:
        name: "relations-made".
        split: "train" or "validation".
        num_chunks: At most so many chunks of a sample, single statements or all that is told of an entity.
        default_step_limit: Picks that an episode should have.
    """

    name = "relations-made"
    default_step_limit = _STEP_LIMIT

    def __init__(self, split: Split = "train", *, num_chunks: int = 24, num_questions: int = 20_000) -> None:
        """Choose the names of the split.

        Args:
            split: "train" or "validation".
            num_chunks: Chunks of a sample, at most.
            num_questions: The length of the source, which has no end by nature.
        """
        check_split(split, ["train", "validation"])
        check_at_least_one(num_chunks=num_chunks, num_questions=num_questions)
        self.split: Split = split
        self.num_chunks, self._num_questions = num_chunks, num_questions
        self._first, self._last, self._adjectives, self._nouns, self._starts = (
            [word for word in words if cut_of(word, _VALIDATION_SHARE) == split]
            for words in (FIRST_NAMES, LAST_NAMES, ADJECTIVES, NOUNS, PLACE_STARTS)
        )

    def __len__(self) -> int:
        """Return ``num_questions``."""
        return self._num_questions

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Make up a world and a question about it; see `SampleSource`."""
        world = _World(random, self._name_of)
        ask = _comparison if random.random() < _COMPARED_SHARE else _chain
        question, evidence, answers = ask(world)
        _add_decoys(world, evidence, 2 * self.num_chunks)
        grouped = bool(random.random() < _GROUPED_SHARE)
        chunks, supporting = _as_chunks(world, evidence, self.num_chunks, grouped)
        return Sample(f"{self.name}-{number}", question, chunks, supporting, answers, mode="corpus")

    def _name_of(self, kind: str, random: np.random.Generator) -> str:
        if kind in WORDS:
            return _any(WORDS[kind], random)
        if kind in ("year", "number"):
            return str(random.integers(1700, 2000)) if kind == "year" else f"{random.integers(1, 999)},000"
        if kind == "person":
            return f"{_any(self._first, random)} {_any(self._last, random)}"
        start = _any(self._starts, random) + _any(PLACE_MIDDLES, random)
        if kind in PLACE_ENDS:
            name = start + _any(PLACE_ENDS[kind], random)
            return f"the {name}" if kind == "river" else name
        adjective, noun, last = (_any(words, random) for words in (self._adjectives, self._nouns, self._last))
        return _any(NAMES[kind], random).format(adjective, noun, last, start)


def _any(items: Sequence[str], random: np.random.Generator) -> str:
    return items[int(random.integers(len(items)))]


def _related(kind: str, ends: bool) -> list[tuple[Relation, bool]]:
    """Return relations that lead on from a kind of entity, and whether backward; at the end also to words."""
    found = [(r, False) for r in RELATIONS if r.subject == kind and (ends or r.object in _KINDS)]
    return found + [(r, True) for r in RELATIONS if r.object == kind and r.inverse]


_KINDS = {relation.subject for relation in RELATIONS}


def _chain(world: _World) -> _Asked:
    """Tell facts that lead from a name to an answer, and ask for it."""
    random = world.random
    lengths, shares = zip(*_HOPS, strict=True)
    length = int(random.choice(lengths, p=shares))
    kind = _any(sorted(_KINDS), random)
    place = world.entity(kind)
    phrase, question, evidence = place, "", list[_Fact]()
    for hop in range(length):
        ways = _related(kind, ends=hop == length - 1)
        back = [way for way in ways if way[1]]
        ways = back if back and random.random() < _BACKWARD_SHARE else [way for way in ways if not way[1]] or back
        relation, backward = ways[int(random.integers(len(ways)))]
        other_kind = relation.subject if backward else relation.object
        other = world.entity(other_kind)
        fact = world.tell(other, relation, place) if backward else world.tell(place, relation, other)
        if fact is None:  # what was told of this one already: the question ends here
            break
        evidence.append(fact)
        asked = () if backward else relation.questions
        question = _any(asked, random).format(phrase) if asked else ""
        phrase = _any(relation.inverse if backward else relation.phrases, random).format(phrase)
        kind, place = other_kind, other
    if not question or random.random() < 0.3:
        question = _asking(kind, phrase, random)
    return question[0].upper() + question[1:], evidence, ((place,),)


def _asking(kind: str, phrase: str, random: np.random.Generator) -> str:
    """Ask for what a phrase names."""
    ways = ["What is {0}?", "{0}?", "Name {0}.", "What is the name of {0}?", "I would like to know {0}."]
    if kind == "person":
        ways = ["Who is {0}?", "Who is {0}?", "{0}?", "What is the name of {0}?", "Do you know {0}?"]
    elif kind in ("colour", "product", "year", "number", "instrument"):
        ways = ["What is {0}?", "{0}?", "Tell me {0}."]
    return _any(ways, random).format(phrase)


def _comparison(world: _World) -> _Asked:
    """Ask whether two entities share what each of them has."""
    random = world.random
    shared = [relation for relation in RELATIONS if relation.noun]
    relation = shared[int(random.integers(len(shared)))]
    subjects = [world.entity(relation.subject) for _ in range(2)]
    one = world.entity(relation.object)
    same = not relation.inverse and random.random() < 0.5
    objects = [one, one if same else world.entity(relation.object)]
    facts = [world.tell(subject, relation, told) for subject, told in zip(subjects, objects, strict=True)]
    evidence = [fact for fact in facts if fact is not None]
    asked = f"What is the {relation.noun} of {subjects[0]}, and what is that of {subjects[1]}?"
    answers: tuple[tuple[str, ...], ...] = tuple((name,) for name in objects)
    if random.random() < _YES_OR_NO_SHARE:
        asked = _any(_YES_OR_NO, random).format(*subjects, relation.noun)
        answers = (("yes" if objects[0] == objects[1] else "no",),)
    return asked, evidence, answers


def _add_decoys(world: _World, evidence: Sequence[_Fact], num_facts: int) -> None:
    """Tell more: of the question's entities, of others in the same relations, and anything."""
    random, relations = world.random, [fact.relation for fact in evidence]
    for fact in evidence:
        for kind, entity in ((fact.relation.subject, fact.subject), (fact.relation.object, fact.object)):
            others = [relation for relation in RELATIONS if relation.subject == kind and relation not in relations]
            for index in random.permutation(len(others))[:2].tolist():
                world.tell(entity, others[index], world.entity(others[index].object))
    for _ in range(_DECOY_CHAINS):
        entities: dict[str, str] = {}  # of each entity of the question, the one in its place
        for fact in evidence:
            for kind, name in ((fact.relation.subject, fact.subject), (fact.relation.object, fact.object)):
                entities.setdefault(name, world.entity(kind))
            world.tell(entities[fact.subject], fact.relation, entities[fact.object])
    while len(world.facts) < num_facts:
        relation = RELATIONS[int(random.integers(len(RELATIONS)))]
        world.tell(world.entity(relation.subject), relation, world.entity(relation.object))


def _as_chunks(
    world: _World, evidence: Sequence[_Fact], num_chunks: int, grouped: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Write the facts down in random order, each by itself or with all others about its subject."""
    random = world.random
    pieces: dict[object, list[_Fact]] = {}
    for fact in world.facts:  # the question's own first, then what is most like them
        pieces.setdefault(fact.subject if grouped else fact, []).append(fact)
    kept = list(pieces.values())[: max(num_chunks, len(evidence))]
    kept = [kept[index] for index in random.permutation(len(kept)).tolist()]
    chunks = tuple(" ".join(_statement(fact, random) for fact in facts) for facts in kept)
    supporting = tuple(index for index, facts in enumerate(kept) if any(fact in evidence for fact in facts))
    return chunks, supporting


def _statement(fact: _Fact, random: np.random.Generator) -> str:
    sentence = _any(fact.relation.statements, random).format(s=fact.subject, o=fact.object)
    return sentence[0].upper() + sentence[1:]

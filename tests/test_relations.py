"""Questions over made-up facts: one to three of them answer, none contradicts another, and town.jsonl stays unseen."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets import MadeRelations, open_source
from qrag_retriever.training.datasets.relation_texts import FIRST_NAMES, LAST_NAMES, RELATIONS

TOWN = Path(__file__).parents[1] / "examples" / "town.jsonl"


def drawn(source: MadeRelations, count: int = 200) -> Iterator[Sample]:
    for number in range(count):
        yield source.sample(number, np.random.default_rng([3, number]))


def told(sample: Sample) -> list[tuple[int, str, str]]:
    """Read (relation, subject, object) back from chunks of single statements."""
    found = []
    for chunk in sample.chunks:
        for index, relation in enumerate(RELATIONS):
            for statement in relation.statements:
                pattern = re.escape(statement).replace(r"\{s\}", "(?P<s>.+)").replace(r"\{o\}", "(?P<o>.+)")
                if match := re.fullmatch(pattern, chunk, re.IGNORECASE):
                    found.append((index, match["s"].lower(), match["o"].lower()))
    return found


def test_the_same_generator_state_makes_the_same_sample() -> None:
    source = MadeRelations()
    one, other = (source.sample(5, np.random.default_rng(9)) for _ in range(2))
    assert one == other
    assert one != source.sample(5, np.random.default_rng(10))


def test_one_to_three_chunks_are_the_evidence() -> None:
    counts = [len(sample.supporting or ()) for sample in drawn(MadeRelations(num_chunks=16))]
    assert set(counts) == {1, 2, 3}
    assert sum(count >= 2 for count in counts) > 0.6 * len(counts)
    assert all(len(sample.chunks) == 16 for sample in drawn(MadeRelations(num_chunks=16), 50))


def test_the_evidence_names_what_the_question_names() -> None:
    people = re.compile(rf"\b(?:{'|'.join(FIRST_NAMES)}) (?:{'|'.join(LAST_NAMES)})\b")
    asked = [sample for sample in drawn(MadeRelations()) if people.search(sample.question)]
    assert len(asked) > 15
    for sample in asked:
        evidence = " ".join(sample.chunks[index] for index in sample.supporting or ())
        assert all(name in evidence for name in people.findall(sample.question)), sample


def test_the_evidence_holds_the_answer() -> None:
    samples = list(drawn(MadeRelations()))
    yes_or_no = [sample for sample in samples if sample.answers in ((("yes",),), (("no",),))]
    assert 5 < len(yes_or_no) < 40
    for sample in samples:
        evidence = " ".join(sample.chunks[index] for index in sample.supporting or ()).lower()
        if sample not in yes_or_no:
            assert all(name.lower() in evidence for (name,) in sample.answers or ()), sample


def test_no_statement_contradicts_another() -> None:
    single = [s for s in drawn(MadeRelations()) if all(chunk.count(". ") == 0 for chunk in s.chunks)]
    assert len(single) > 50
    for sample in single:
        facts = told(sample)
        assert len({(relation, subject) for relation, subject, _ in facts}) == len(facts)
        backward = [(relation, told) for relation, _, told in facts if RELATIONS[relation].inverse]
        assert len(set(backward)) == len(backward)


def test_names_of_validation_are_new() -> None:
    def people(source: MadeRelations) -> set[str]:
        text = " ".join(chunk for sample in drawn(source, 60) for chunk in sample.chunks)
        return {first for first in FIRST_NAMES for last in LAST_NAMES if f" {first} {last}" in text}

    assert people(MadeRelations("validation"))
    assert not people(MadeRelations("train")) & people(MadeRelations("validation"))


def test_the_questions_of_the_example_stay_a_check() -> None:
    lines = [json.loads(line) for line in TOWN.read_text(encoding="utf-8").splitlines()]
    statements = {chunk for line in lines for chunk in line["chunks"]}
    templates = [s for relation in RELATIONS for s in relation.statements]
    patterns = [re.escape(s).replace(r"\{s\}", ".+").replace(r"\{o\}", ".+") for s in templates]
    told_there = {s for s in statements if any(re.fullmatch(pattern, s) for pattern in patterns)}
    assert not told_there
    names = {name for s in statements for name in re.findall(r"[A-Z][a-z]+", s)}
    assert not names & {*FIRST_NAMES, *LAST_NAMES}


def test_it_opens_by_name_for_training_and_validation_only(tmp_path: Path) -> None:
    source = open_source("relations-made", tmp_path, "train", num_chunks=8)
    assert source.default_step_limit == 4
    assert source.sample(0, np.random.default_rng(0)).mode == "corpus"
    with pytest.raises(ValueError, match="split must be one of train, validation"):
        open_source("relations-made", tmp_path, "test")
    with pytest.raises(ValueError, match="num_chunks"):
        MadeRelations(num_chunks=0)

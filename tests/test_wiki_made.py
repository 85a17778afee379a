"""Questions made up from 2Wiki's paragraphs: their evidence, what they keep away from, and how they are drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever.errors import DataError
from qrag_retriever.training.datasets import open_source
from qrag_retriever.training.datasets.wiki_made import TwoWikiMade
from tests.test_datasets import put

FILMS = {
    "Red River": ("is a 1950 American film directed by Ann Lee and starring John Doe.", "Ann Lee"),
    "Blue Moon (film)": ("is a 1961 French drama film directed by the Indian director Raj Rao.", "Raj Rao (director)"),
    "Two Suns": ("is a 1970 film directed by Bo Ek, who also wrote it.", "Bo Ek"),
    "No Link": ("is a 1971 film directed by Nobody Known.", None),
    "Twice": ("is a 1972 film directed by Kim Park.", None),  # there are two of that name
}
PEOPLE = ["Ann Lee", "Raj Rao (director)", "Bo Ek", "Kim Park (actor)", "Kim Park (director)"]
PLACES = ["Upper Ford", "Lower Ford"]
TEXTS = {
    **{title: text for title, (text, _) in FILMS.items()},
    **{title: "(born 1 May 1930) is a person." for title in PEOPLE},
    **{title: "is a village in the north." for title in PLACES},
}


def line(number: int, gold: list[str], titles: list[str]) -> dict[str, Any]:
    return {
        "_id": f"id{number}",
        "type": "compositional",
        "question": f"Question {number}?",
        "answer": "it",
        "supporting_facts": [[title, 0] for title in gold],
        "context": [[title, [TEXTS.get(title, "is a thing.")]] for title in titles],
    }


def put_lines(folder: Path, tested: tuple[str, ...] = ()) -> None:
    """Write questions over all paragraphs; the evidence of a question in the test file is ``tested``."""
    everything = list(TEXTS)
    # The evidence of one question stands beside another one's too.
    beside = [[f"Thing {(i + 1) % 40}", *everything[i % 6 : i % 6 + 7]] for i in range(40)]
    lines = [line(i, [f"Thing {i}"], [f"Thing {i}", *beside[i]]) for i in range(40)]
    put(folder, "2wiki/2wiki_train.jsonl", lines)
    if tested:
        put(folder, "2wiki/2wiki_dev.jsonl", [line(99, list(tested), list(tested))])


def titles_of(sample: Any) -> list[str]:
    return [sample.chunks[i].partition(". ")[0] for i in sample.supporting]


def test_the_evidence_of_a_question_is_what_it_names_and_who_that_paragraph_names(tmp_path: Path) -> None:
    put_lines(tmp_path)
    source, random = open_source("2wiki-made", tmp_path, num_chunks=12), np.random.default_rng(0)
    linked = {title: person for title, (_, person) in FILMS.items() if person}
    kinds = set()
    for number in range(400):
        sample = source.sample(number, random)
        assert sample.mode == "corpus"
        assert len(sample.chunks) == len(set(sample.chunks)) == 12
        named = [title for title in TEXTS if title in sample.question]
        if re.search(r"director of|directors|the director who|whose director", sample.question):
            assert set(titles_of(sample)) == {part for title in named for part in (title, linked[title])}
            kinds.add(("director", len(named)))
        else:
            assert set(titles_of(sample)) == set(named)
            assert len(named) == 2
            kinds.add("compared")
    assert kinds == {("director", 1), ("director", 2), "compared"}


def test_paragraphs_beside_the_evidence_come_before_random_ones(tmp_path: Path) -> None:
    put_lines(tmp_path)
    source, random = TwoWikiMade(tmp_path, num_chunks=4), np.random.default_rng(0)
    for number in range(100):
        sample = source.sample(number, random)
        evidence = titles_of(sample)
        beside = {title for own in evidence for title in source._paragraphs.beside[own]}
        others = {chunk.partition(". ")[0] for chunk in sample.chunks} - set(evidence)
        assert others <= beside


def test_evidence_of_test_and_validation_takes_no_part(tmp_path: Path) -> None:
    put_lines(tmp_path, tested=("Red River", "Ann Lee"))
    source, random = TwoWikiMade(tmp_path, num_chunks=6), np.random.default_rng(0)
    seen = {chunk for number in range(200) for chunk in source.sample(number, random).chunks}
    assert not any(chunk.startswith(("Red River.", "Ann Lee.")) for chunk in seen)
    assert any(chunk.startswith("Two Suns.") for chunk in seen)
    held = open_source("2wiki", tmp_path, "validation")
    gold = {sample.chunks[i] for sample in held.samples for i in sample.supporting}  # type: ignore[attr-defined]
    assert gold
    assert not gold & seen


def test_a_draw_repeats(tmp_path: Path) -> None:
    put_lines(tmp_path)
    source = TwoWikiMade(tmp_path, num_chunks=6)
    assert source.sample(3, np.random.default_rng(5)) == source.sample(3, np.random.default_rng(5))
    others = [source.sample(3, np.random.default_rng(i)) for i in range(20)]
    assert len({sample.question for sample in others}) == 1, "a number names a question"
    assert len({sample.chunks for sample in others}) > 5
    assert len({source.sample(i, np.random.default_rng(0)).question for i in range(20)}) > 5
    assert len(source) == 20_000


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    put_lines(tmp_path)
    with pytest.raises(ValueError, match="split"):
        open_source("2wiki-made", tmp_path, "validation")
    with pytest.raises(ValueError, match="at least 4"):
        open_source("2wiki-made", tmp_path, num_chunks=3)
    with pytest.raises(ValueError, match="1000 paragraphs asked for, but there are"):
        open_source("2wiki-made", tmp_path, num_chunks=1000)
    put(tmp_path, "2wiki/2wiki_train.jsonl", [line(i, [f"Thing {i}"], [f"Thing {i}", "Rest"]) for i in range(40)])
    with pytest.raises(DataError, match="too few links"):
        TwoWikiMade(tmp_path, num_chunks=4)

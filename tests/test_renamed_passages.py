"""Training questions under other names: what is exchanged, what stays, and that it is the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets import open_source
from qrag_retriever.training.datasets.renamed_passages import RenamedPassages
from tests.test_datasets import put, wiki_line

PEOPLE = ("Ada Moore", "Ben Stone", "Cora Hill", "Dan Field", "Eva Long")
FILMS = ("Red Dawn (film)", "Blue Dusk", "Green Noon", "White Night", "Black Morning")
TEXTS = {
    **{name: f"{name} is a singer. {name.split()[1]} was born in Oslo." for name in PEOPLE},
    **{
        title: f"{title.removesuffix(' (film)')} is a film with {name} in it."
        for title, name in zip(FILMS, PEOPLE, strict=True)
    },
    "Oslo": "Oslo is a city.",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = []
    for i in range(40):
        name, film = PEOPLE[i % 2], FILMS[i % 2]
        others = [*PEOPLE[2:], *FILMS[2:]] if i % 4 == 3 else []
        lines.append(
            wiki_line(
                i,
                [film, name],
                question=f"Where was the singer in {film.removesuffix(' (film)')} born, {i}?",
                answer=name,
                context=[[title, [TEXTS[title]]] for title in [film, name, "Oslo", *others]],
            )
        )
    put(tmp_path, "hotpotqa/hotpotqa_train.jsonl", lines)
    return tmp_path


def draws(folder: Path, number: int, count: int = 200) -> list[Sample]:
    source = open_source("hotpotqa", folder, rename=True, validation_share=0.0)
    random = np.random.default_rng(0)
    return [source.sample(number, random) for _ in range(count)]


def title_of(chunk: str) -> str:
    return chunk.partition(". ")[0]


def test_a_question_and_its_passages_get_the_same_names_of_their_kinds(folder: Path) -> None:
    (plain,) = {sample for sample in draws(folder, 0) if "Red Dawn" in sample.question}
    films, people = set(), set()
    for sample in draws(folder, 0):
        film, person, city = sample.chunks
        name = title_of(person)
        assert sample.supporting == plain.supporting
        assert city == "Oslo. Oslo is a city.", "there is no other city"
        assert name in PEOPLE
        assert person == f"{name}. {name} is a singer. {name.split()[1]} was born in Oslo.", "a surname too"
        films.add(title_of(film))
        people.add(name)
        called = title_of(film).removesuffix(" (film)")
        assert film == f"{title_of(film)}. {called} is a film with {name} in it."
        assert sample.question == f"Where was the singer in {called} born, 0?"
        assert sample.answers == ((name,),)
    # "(film)" stays behind a name that is exchanged.
    assert {film.removesuffix(" (film)") for film in films} == {film.removesuffix(" (film)") for film in FILMS}
    assert people == set(PEOPLE)


def test_a_quarter_of_the_draws_is_as_it_stands_in_the_file(folder: Path) -> None:
    own = sum("Red Dawn" in sample.question for sample in draws(folder, 0, 400))
    assert 60 <= own <= 140


def test_names_stay_different_from_each_other(folder: Path) -> None:
    for sample in draws(folder, 3):
        titles = [title_of(chunk) for chunk in sample.chunks]
        assert len(set(titles)) == len(titles)


def test_a_kind_of_few_names_keeps_them(folder: Path) -> None:
    few = {"Moss": "Moss is a river.", "Fern": "Fern is a river."}
    lines = [wiki_line(i, [name], context=[[name, [text]]]) for i, (name, text) in enumerate(few.items())]
    put(folder, "hotpotqa/hotpotqa_train.jsonl", lines)
    for number in range(2):
        assert len({sample.chunks for sample in draws(folder, number, 50)}) == 1


def test_only_training_is_under_other_names(folder: Path) -> None:
    put(folder, "hotpotqa/hotpotqa_dev.jsonl", [wiki_line(99, ["Elsewhere"])])
    assert not isinstance(open_source("hotpotqa", folder, "test", rename=True), RenamedPassages)
    plain = open_source("hotpotqa", folder, "train")
    renamed = open_source("hotpotqa", folder, "train", rename=True)
    assert (len(renamed), renamed.name, renamed.split) == (len(plain), "hotpotqa", "train")
    assert renamed.default_step_limit == plain.default_step_limit


def test_a_draw_repeats(folder: Path) -> None:
    source = open_source("hotpotqa", folder, rename=True)
    assert source.sample(3, np.random.default_rng(5)) == source.sample(3, np.random.default_rng(5))

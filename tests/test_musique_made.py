"""Questions chained from single hops: their evidence, what they tell, what they keep away from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever.errors import DataError
from qrag_retriever.training.datasets import open_source
from qrag_retriever.training.datasets.musique_made import MuSiQueMade
from tests.test_datasets import put, squad, wiki_line

PARAGRAPHS = {
    "Fist Power": "Fist Power is an action film that was shot in Hong Kong.",
    "Hong Kong": "Hong Kong is a city. It was taken by the British in 1842.",
    "Alan Chui": "Alan Chui is an actor who was starring in Fist Power, not in others.",
    "Hanoi Tower": "Hanoi Tower is a building in Vietnam.",
}
PARTS = [
    {"question": "Fist Power >> place", "answer": "Hong Kong", "paragraph_support_idx": 0},
    {"question": "when was #1 taken by the British", "answer": "1842", "paragraph_support_idx": 1},
]


def line(number: int, gold: tuple[int, ...] = (0, 1), more: dict[str, str] | None = None, **changes: Any) -> Any:
    paragraphs = {**PARAGRAPHS, f"Alone {number}": "It names nothing.", **(more or {})}
    return {
        "id": f"2hop__{number}",
        "question": f"Question {number}?",
        "answer": "it",
        "question_decomposition": PARTS,
        "paragraphs": [
            {"idx": i, "title": title, "paragraph_text": text, "is_supporting": i in gold}
            for i, (title, text) in enumerate(paragraphs.items())
        ],
        **changes,
    }


def put_all(folder: Path, lines: list[Any], tested: list[Any] | None = None) -> None:
    put(folder, "musique/musique_train.jsonl", lines)
    if tested is not None:
        put(folder, "musique/musique_dev.jsonl", tested)
    put(folder, "hotpotqa/hotpotqa_train.jsonl", [wiki_line(i, [f"H {i}"]) for i in range(40)])
    put(folder, "2wiki/2wiki_train.jsonl", [wiki_line(i, [f"W {i}"]) for i in range(40)])
    put(folder, "squad/squad_v2_dev_half.json", squad(("Test", 2)))
    put(folder, "squad/xquad_en_squad_v1_dev_subset.json", squad(*((f"Article {i}", 2) for i in range(9)), version=1))


def drawn(source: Any, count: int = 300) -> list[tuple[str, list[str]]]:
    """Questions, and the titles of their evidence in the order of the chunks."""
    random = np.random.default_rng(0)
    samples = [source.sample(number, random) for number in range(count)]
    return [
        (sample.question, sorted(sample.chunks[i].partition(". ")[0] for i in sample.supporting)) for sample in samples
    ]


@pytest.fixture
def source(tmp_path: Path) -> Any:
    put_all(tmp_path, [line(0)])
    return open_source("musique-made", tmp_path, num_chunks=6, validation_share=0.0)


def test_the_name_in_a_question_gives_way_to_what_names_it(source: Any) -> None:
    questions = drawn(source)
    asked = [(question, titles) for question, titles in questions if "taken by the British" in question]
    assert asked, "the part of the training question is asked"
    for _, titles in questions:
        assert set(titles) <= {"Fist Power", "Hong Kong", "Alan Chui"}, "no other paragraph names one"
        assert len(titles) in (2, 3)
    for question, titles in asked:
        assert "Hong Kong" in titles
        assert "Hong Kong" not in question, "what is described is not named"
        assert ("Fist Power" in question) == (len(titles) == 2), "nor is what is between"
        assert ("Alan Chui" in question) == (len(titles) == 3)
    assert {len(titles) for _, titles in asked} == {2, 3}
    assert any("Alan Chui" in question and titles == ["Alan Chui", "Fist Power"] for question, titles in questions)


def test_the_words_before_a_name_say_how_it_is_described(source: Any) -> None:
    questions = " ".join(question for question, _ in drawn(source))
    assert "the star of Alan Chui" in questions or "a cast member of Alan Chui" in questions
    assert "the city where Fist Power is located" in questions, "what it is comes from its own paragraph"


def test_relations_of_the_decomposition_are_asked_as_questions(tmp_path: Path) -> None:
    put_all(tmp_path, [line(0)])
    source = MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0)
    asked = {asked.question for own in source._asked.values() for asked in own}
    assert asked == {"What is the place of {}?", "when was {} taken by the British"}
    others = MuSiQueMade(tmp_path, num_chunks=6, parts=False, validation_share=0.0)
    assert not others._asked, "the questions stay unseen"
    assert not any("taken by the British" in question for question, _ in drawn(others))


@pytest.mark.parametrize("slot", ["#0", "#2", "#9"])
def test_only_an_earlier_answer_fills_a_slot(tmp_path: Path, slot: str) -> None:
    # Its own answer and the last of all are names that would do.
    wrong = {**PARTS[1], "question": f"who took {slot}", "answer": "Hong Kong"}
    put_all(tmp_path, [line(0, question_decomposition=[PARTS[0], wrong])])
    source = MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0)
    asked = {asked.question for own in source._asked.values() for asked in own}
    assert asked == {"What is the place of {}?"}


def test_a_description_brings_its_own_article(tmp_path: Path) -> None:
    put_all(tmp_path, [line(0, question_decomposition=[PARTS[0], {**PARTS[1], "question": "who took the #1 then"}])])
    asked = [question for question, _ in drawn(MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0))]
    taken = [question for question in asked if question.startswith("Who took")]
    assert any("Who took the city where Fist Power is located then" in question for question in taken)
    assert not any("the the" in question for question in taken)


def test_what_is_said_in_passing_is_asked_for_without_what_may_be_the_answer(tmp_path: Path) -> None:
    more = {
        "Old Poster": "Old Poster is a picture that Ann drew for Fist Power in 1999 and sold.",
        "The Long Bill": "The Long Bill of 1980 lists Fist Power.",
    }
    put_all(tmp_path, [line(0, more=more)])
    asked = drawn(MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0, passing=1.0), count=100)
    starring = [(question, titles) for question, titles in asked if "s an actor who was starring in" in question]
    drew = [(question, titles) for question, titles in asked if "s a picture that drew for" in question]
    assert len(starring) + len(drew) == 100, "the bill says too little of it"
    for (question, titles), own in [*((one, "Alan Chui") for one in starring), *((one, "Old Poster") for one in drew)]:
        assert own in titles
        assert "Fist Power" not in titles, "of which nothing is asked that its own paragraph says"
        assert not any(word in question for word in ("Fist Power", "1999", own))
        assert len(titles) == 2
    assert any(question.startswith("Which one is an actor") for question, _ in starring)
    assert any("in and sold?" in question for question, _ in drew), "words behind the name too"


def test_no_question_changes_while_nothing_is_asked_in_passing(tmp_path: Path) -> None:
    put_all(tmp_path, [line(0)])
    usual = MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0)
    assert drawn(usual) == drawn(MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0, passing=0.0))


def test_questions_of_squad_are_last_hops(tmp_path: Path) -> None:
    put_all(tmp_path, [line(0, more={"Report": "Report is a text on Deep Thing and others."})])
    articles = squad(*((f"Deep Thing {i}", 1) for i in range(9)), version=1)
    for article in articles["data"]:
        article["paragraphs"][0]["qas"][0]["question"] = "How {deep} is the Deep Thing really?"
    put(tmp_path, "squad/xquad_en_squad_v1_dev_subset.json", articles)
    source = MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0)
    asked = [(question, titles) for question, titles in drawn(source) if "How {deep} is" in question]
    assert asked
    for question, titles in asked:
        assert "Report" in titles
        assert "Report" in question
        assert "Deep Thing" not in question


def test_an_article_of_several_paragraphs_is_named_by_none_of_its_own(tmp_path: Path) -> None:
    paragraphs = [
        *line(0)["paragraphs"],
        {"title": "Hong Kong", "paragraph_text": "Hong Kong is large.", "is_supporting": False},
    ]
    put_all(tmp_path, [line(0, paragraphs=paragraphs)])
    source = MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0)
    for question, titles in drawn(source):
        assert titles.count("Hong Kong") <= 1, question
        # Which of its paragraphs is meant only a real question tells.
        assert "Hong Kong" not in titles or "taken by the British" in question


def test_a_name_that_only_its_own_article_has_ends_no_chain(tmp_path: Path) -> None:
    put_all(tmp_path, [line(0)])
    articles = squad(("Deep Thing", 2), *((f"Article {i}", 2) for i in range(9)), version=1)
    first, second = articles["data"][0]["paragraphs"]
    first["qas"][0]["question"] = "How deep is the Deep Thing really?"
    second["context"] += " The Deep Thing is deep. {It} {} is}."
    put(tmp_path, "squad/xquad_en_squad_v1_dev_subset.json", articles)
    source = MuSiQueMade(tmp_path, num_chunks=6, validation_share=0.0)
    assert "Deep Thing (paragraph 2)" in source._paragraphs.texts
    assert set(source._asked) == {"Fist Power", "Hong Kong"}
    assert not any("really" in question for question, _ in drawn(source))


def test_evidence_of_test_and_validation_takes_no_part(tmp_path: Path) -> None:
    put_all(tmp_path, [line(i, gold=(4,), question_decomposition=[]) for i in range(40)], [line(99, gold=(1,))])
    source = MuSiQueMade(tmp_path, num_chunks=6)
    random = np.random.default_rng(0)
    seen = {c.partition(". ")[0] for n in range(200) for c in source.sample(n, random).chunks}
    assert "Hong Kong" not in seen
    held = open_source("musique", tmp_path, "validation")
    gold = {s.chunks[i].partition(". ")[0] for s in held.samples for i in s.supporting}  # type: ignore[attr-defined]
    assert gold
    assert not gold & seen
    assert seen >= {"Fist Power", "Alan Chui"}


def test_a_draw_repeats(source: Any) -> None:
    assert source.sample(3, np.random.default_rng(5)) == source.sample(3, np.random.default_rng(5))
    others = [source.sample(3, np.random.default_rng(i)) for i in range(20)]
    assert len({sample.question for sample in others}) == 1, "a number names a question"
    assert len({sample.chunks for sample in others}) > 5
    assert len(source) == 20_000


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    put_all(tmp_path, [line(0)])
    with pytest.raises(ValueError, match="split"):
        open_source("musique-made", tmp_path, "test")
    with pytest.raises(ValueError, match="at least 4"):
        MuSiQueMade(tmp_path, num_chunks=3)
    with pytest.raises(ValueError, match="1000 paragraphs asked for, but there are"):
        MuSiQueMade(tmp_path, num_chunks=1000, validation_share=0.0)
    bad = [{**PARTS[0], "question": 7}]
    put_all(tmp_path, [line(0, question_decomposition=bad)])
    with pytest.raises(DataError, match=r"question.*string"):
        MuSiQueMade(tmp_path, num_chunks=4, validation_share=0.0)
    put_all(tmp_path, [line(0, question_decomposition="none")])
    with pytest.raises(DataError, match="question_decomposition"):
        MuSiQueMade(tmp_path, num_chunks=4, validation_share=0.0)
    nothing = [{"idx": 0, "title": "Alone", "paragraph_text": "It names nothing.", "is_supporting": True}]
    put_all(tmp_path, [line(0, paragraphs=nothing, question_decomposition=[])])
    with pytest.raises(DataError, match="no paragraph in musique/ names another"):
        MuSiQueMade(tmp_path, num_chunks=4, validation_share=0.0)

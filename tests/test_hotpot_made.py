"""Questions made up from HotpotQA's paragraphs: their evidence, what they must not tell, what they keep away from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever.errors import DataError
from qrag_retriever.training.datasets import open_source
from qrag_retriever.training.datasets.hotpot_made import HotpotMade
from qrag_retriever.training.datasets.training_paragraphs import plain_name
from tests.test_datasets import put

# Words that only one paragraph has begin with "only".
TEXTS = {
    "Kiss and Tell": "Kiss and Tell is a 1945 comedy film in which only1a Shirley Temple only1b played.",
    "Shirley Temple": "Shirley Temple was an American actress who only2a only2b only2c only2d only2e only2f only2g.",
    "Blue Harbor (album)": "Blue Harbor is the second album of only3a Tin Roof, only3b in Oslo.",
    "Tin Roof": "Tin Roof was a Norwegian band from only4a only4b only4c only4d only4e only4f only4g only4h.",
    "Long Road (film)": "Long Road is a film of only5a Kiss and Tell, only5b by the director of onlyfive.",
    "United (album)": "United is the first album of a singer.",
    "Report": "Report is a text on the United States, on Tin Roofs and on the Tin Roof Society.",
    "Gale (name)": "Gale is a name.",
    "Gale (storm)": "Gale is a strong wind.",
    "Stormy Day": "Stormy Day is a poem about a Gale at sea by night.",
}
NAMED = {
    ("Kiss and Tell", "Shirley Temple"),
    ("Blue Harbor (album)", "Tin Roof"),
    ("Long Road (film)", "Kiss and Tell"),
}


def line(number: int, gold: list[str], titles: list[str]) -> dict[str, Any]:
    return {
        "_id": f"id{number}",
        "type": "bridge",
        "question": f"Question {number}?",
        "answer": "it",
        "setting": "distractor",
        "supporting_facts": [[title, 0] for title in gold],
        "context": [[title, [TEXTS.get(title, "is a thing.")]] for title in titles],
    }


def put_lines(folder: Path, tested: tuple[str, ...] = ()) -> None:
    everything = list(TEXTS)
    # The evidence of one question stands beside another one's too.
    beside = [[f"Thing {(i + 1) % 40}", *everything[i % (len(everything) - 3) :][:4]] for i in range(40)]
    lines = [line(i, [f"Thing {i}"], [f"Thing {i}", *beside[i]]) for i in range(40)]
    put(folder, "hotpotqa/hotpotqa_train.jsonl", lines)
    if tested:
        put(folder, "hotpotqa/hotpotqa_dev.jsonl", [line(99, list(tested), list(tested))])


def title_of(chunk: str) -> str:
    return chunk.partition(". ")[0]


def test_evidence_is_a_paragraph_and_the_one_that_it_names(tmp_path: Path) -> None:
    put_lines(tmp_path)
    source, random = open_source("hotpotqa-made", tmp_path, num_chunks=12), np.random.default_rng(0)
    found = set()
    for number in range(300):
        sample = source.sample(number, random)
        titles = {title_of(sample.chunks[i]) for i in sample.supporting or ()}
        (pair,) = (pair for pair in NAMED if set(pair) == titles)
        found.add(pair)
        assert sample.mode == "corpus"
        assert len(sample.chunks) == len(set(sample.chunks)) == 12
        assert sample.question.endswith("?")
        assert plain_name(pair[1]) not in sample.question, "what is named must be found by way of the other paragraph"
    assert found == NAMED, "a name that is shared (Gale), goes on (Tin Roof Society) or means more (United) is none"


def test_half_of_the_questions_have_words_of_both_paragraphs(tmp_path: Path) -> None:
    put_lines(tmp_path)
    source, random = HotpotMade(tmp_path, num_chunks=4), np.random.default_rng(0)
    of_both, of_first = 0, 0
    for number in range(200):
        sample = source.sample(number, random)
        asked = {word.strip("?.,") for word in sample.question.split() if word.startswith("only")}
        having = [any(word in sample.chunks[i] for word in asked) for i in sample.supporting or ()]
        of_both += all(having)
        of_first += any(having) and not all(having)
    # A short piece may have no such word.
    assert of_both > 60
    assert of_first > 60


def test_the_other_half_asks_for_what_a_thing_of_its_kind_has(tmp_path: Path) -> None:
    put_lines(tmp_path)
    source, random = HotpotMade(tmp_path, num_chunks=4), np.random.default_rng(0)
    questions = " ".join(source.sample(number, random).question for number in range(200))
    assert "when was the Norwegian band founded" in questions
    assert "the American actress born" not in questions, "nobody is said to be born"


def test_things_of_the_same_kind_are_among_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        monkeypatch.setitem(TEXTS, f"Singer {i}", f"Singer {i} is an American actress from nowhere.")
    put_lines(tmp_path)
    source, random = HotpotMade(tmp_path, num_chunks=8, validation_share=0.0), np.random.default_rng(0)
    seen = 0
    for number in range(60):
        sample = source.sample(number, random)
        titles = [title_of(chunk) for chunk in sample.chunks]
        if "Shirley Temple" in {titles[i] for i in sample.supporting or ()}:
            # Three of six actresses are drawn, one of which may be herself.
            assert sum(title.startswith("Singer") for title in titles) >= 2
            seen += 1
    assert seen > 5


def test_what_a_thing_is_stands_for_its_name(tmp_path: Path) -> None:
    put_lines(tmp_path)
    source, random = HotpotMade(tmp_path, num_chunks=4), np.random.default_rng(0)
    questions = " ".join(source.sample(number, random).question for number in range(100))
    assert "which American actress" in questions
    assert "the Norwegian band" in questions


def test_evidence_of_test_and_validation_takes_no_part(tmp_path: Path) -> None:
    put_lines(tmp_path, tested=("Tin Roof", "Blue Harbor (album)"))
    source, random = HotpotMade(tmp_path, num_chunks=6), np.random.default_rng(0)
    seen = {chunk for number in range(200) for chunk in source.sample(number, random).chunks}
    assert not {"Tin Roof", "Blue Harbor (album)"} & set(map(title_of, seen))
    assert "Shirley Temple" in set(map(title_of, seen))
    held = open_source("hotpotqa", tmp_path, "validation")
    gold = {sample.chunks[i] for sample in held.samples for i in sample.supporting}  # type: ignore[attr-defined]
    assert gold
    assert not gold & seen
    assert any(chunk.startswith("Thing") for chunk in seen), "evidence of other training questions may be there"


def test_without_validation_nothing_is_held_back(tmp_path: Path) -> None:
    put_lines(tmp_path)
    whole = HotpotMade(tmp_path, num_chunks=4, validation_share=0.0)
    assert len(whole._paragraphs.texts) == len(TEXTS) + 40


def test_a_draw_repeats(tmp_path: Path) -> None:
    put_lines(tmp_path)
    source = HotpotMade(tmp_path, num_chunks=6)
    assert source.sample(3, np.random.default_rng(5)) == source.sample(3, np.random.default_rng(5))
    others = [source.sample(3, np.random.default_rng(i)) for i in range(20)]
    assert len({sample.question for sample in others}) == 1, "a number names a question"
    assert len({sample.chunks for sample in others}) > 5
    assert len({source.sample(i, np.random.default_rng(0)).question for i in range(20)}) > 5
    assert len(source) == 20_000


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    put_lines(tmp_path)
    with pytest.raises(ValueError, match="split"):
        open_source("hotpotqa-made", tmp_path, "test")
    with pytest.raises(ValueError, match="at least 2"):
        HotpotMade(tmp_path, num_chunks=1)
    with pytest.raises(ValueError, match="1000 paragraphs asked for, but there are"):
        HotpotMade(tmp_path, num_chunks=1000)
    put(tmp_path, "hotpotqa/hotpotqa_train.jsonl", [line(i, [f"T {i}"], [f"T {i}", f"Rest {i}"]) for i in range(40)])
    with pytest.raises(DataError, match="no paragraph in hotpotqa/ names another"):
        HotpotMade(tmp_path, num_chunks=4)

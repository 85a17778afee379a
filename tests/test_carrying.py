"""Questions made of bAbI's stories of people who carry things: answers and evidence as the files have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qrag_retriever.training.datasets import BabiLong
from qrag_retriever.training.datasets.babi import read_stories
from qrag_retriever.training.datasets.carrying import questions_before

STORY = [
    "Mary moved to the garden.",  # 0
    "Mary took the apple there.",  # 1
    "John went to the office.",  # 2
    "Mary went back to the kitchen.",  # 3
    "Mary journeyed to the hallway.",  # 4
    "Mary put down the apple.",  # 5
    "John travelled to the hallway.",  # 6
    "John picked up the apple there.",  # 7
    "John got the milk.",  # 8
    "John went to the kitchen.",  # 9
]
LINES = "\n".join(f"{number} {line}" for number, line in enumerate(STORY, 1))


def asked(statements: list[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {one.text: (one.answer, one.supporting) for one in questions_before(statements)}


def test_every_thing_and_every_room_but_its_first() -> None:
    assert asked(STORY) == {
        # The last time in the kitchen counts; it was in the hallway all along from Mary to John.
        "Where was the apple before the kitchen?": ("hallway", (4, 7, 9)),
        "Where was the apple before the hallway?": ("kitchen", (3, 4, 7)),
        "Where was the milk before the kitchen?": ("hallway", (6, 8, 9)),
    }


def test_earlier_in_the_story() -> None:
    assert asked(STORY[:6]) == {
        "Where was the apple before the kitchen?": ("garden", (0, 3, 5)),
        "Where was the apple before the hallway?": ("kitchen", (3, 4, 5)),
    }
    assert asked(STORY[:3]) == {}


def test_nothing_is_made_up_where_a_room_is_not_told() -> None:
    assert asked(["Mary took the apple.", "Mary went to the hallway.", "Mary went to the kitchen."]) == {
        "Where was the apple before the kitchen?": ("hallway", (0, 1, 2))
    }
    assert asked(["Mary took the apple.", "Mary dropped the apple."]) == {}


def test_what_is_put_down_stays() -> None:
    assert asked([*STORY[:6], "Mary went to the office."]) == asked(STORY[:6])


def write_story(folder: Path) -> None:
    path = folder / "babi" / "en" / "qa3_three-supporting-facts_train.txt"
    path.parent.mkdir(parents=True)
    path.write_text(f"{LINES}\n11 Where was the milk before the kitchen? \thallway\t7 9 10\n", encoding="utf-8")


def test_a_source_that_asks_all_that_a_story_answers(tmp_path: Path) -> None:
    write_story(tmp_path)
    source = BabiLong(tmp_path, 3, num_chunks=None, validation_share=0, made=True)
    samples = [source.sample(i, np.random.default_rng(i)) for i in range(len(source))]
    assert len({sample.id for sample in samples}) == 3
    found = {sample.question: (sample.answers, sample.supporting) for sample in samples}
    assert found == {text: (((answer,),), facts) for text, (answer, facts) in asked(STORY).items()}
    assert all(list(sample.chunks) == STORY for sample in samples)


def test_only_training_and_only_the_third_task(tmp_path: Path) -> None:
    write_story(tmp_path)
    held_out = BabiLong(tmp_path, 3, "validation", num_chunks=None, validation_share=0.999, made=True)
    assert [held_out.sample(i, np.random.default_rng(i)).question for i in range(len(held_out))] == [
        "Where was the milk before the kitchen?"
    ]
    with pytest.raises(ValueError, match="for task 3 only, not for task 2"):
        BabiLong(tmp_path, 2, made=True)


def test_all_questions_of_the_real_files_have_the_files_answers_and_evidence(shared: Path) -> None:
    count = 0
    for path in sorted((shared / "data" / "babi").glob("*/qa3_*.txt")):
        for story in read_stories(path):
            for question in story.questions:
                answer, supporting = asked(list(story.statements[: question.num_statements]))[question.text]
                assert ((answer,), supporting) == (question.answers, question.supporting)
                count += 1
    assert count >= 3000

"""Settings of a source that would have no effect are refused and not ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qrag_retriever.errors import DataError, RecipeError
from qrag_retriever.training.opening import open_tasks
from qrag_retriever.training.recipe import parse_recipe
from tests.test_datasets import put


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"source": "mine.jsonl", "split": "test"}, "mine.jsonl has no splits"),
        ({"source": "hotpotqa", "mode": "corpus"}, "hotpotqa has its own mode"),
        ({"source": "hotpotqa", "options": {"split": "train"}}, "'split' is none of them; it stands beside source"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, source: dict[str, str], told: str) -> None:
    line = '{"question": "Who?", "chunks": ["Ann.", "Bob."], "supporting": [0]}\n'
    (tmp_path / "mine.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(RecipeError, match=told):
        open_tasks(parse_recipe({"data": [source]}), tmp_path, tmp_path, {})


def put_hotpotqa(folder: Path) -> None:
    lines = [
        {
            "_id": f"id{i}",
            "type": "bridge",
            "question": f"Question {i}?",
            "answer": "it",
            "supporting_facts": [[f"Thing {i}", 0]],
            "context": [[f"{kind} {i}", ["A text."]] for kind in ("Thing", "Other", "Third")],
        }
        for i in range(60)
    ]
    put(folder, "hotpotqa/hotpotqa_train.jsonl", lines)


def test_passages_may_be_given_as_a_document(tmp_path: Path) -> None:
    put_hotpotqa(tmp_path)
    recipe = parse_recipe({"data": [{"source": "hotpotqa", "mode": "document"}, {"source": "hotpotqa"}]})
    training, validation = open_tasks(recipe, tmp_path, tmp_path, {})
    assert [task.source.name for task in (*training, *validation)] == ["hotpotqa-document", "hotpotqa"] * 2
    assert [task.step_limit for task in training] == [2, 2]
    sample, _ = training[0].episode(0, np.random.default_rng(0))
    plain, _ = training[1].episode(0, np.random.default_rng(0))
    assert (sample.mode, plain.mode) == ("document", "corpus")
    assert (sample.question, sorted(sample.chunks)) == (plain.question, sorted(plain.chunks))
    orders = set()
    for seed in range(20):
        sample, _ = training[0].episode(0, np.random.default_rng(seed))
        assert [sample.chunks[i] for i in sample.supporting or ()] == [plain.chunks[i] for i in plain.supporting or ()]
        orders.add(sample.chunks)
    assert len(orders) > 3, "a new order at every draw"


def test_made_questions_are_no_validation(tmp_path: Path) -> None:
    recipe = parse_recipe({"data": [{"source": "hotpotqa"}], "validation": [{"source": "hotpotqa-made"}]})
    put_hotpotqa(tmp_path)
    with pytest.raises(RecipeError, match="hotpotqa-made makes up questions for training only"):
        open_tasks(recipe, tmp_path, tmp_path, {})


def test_what_data_lacks_is_not_told_as_a_matter_of_mode(tmp_path: Path) -> None:
    recipe = parse_recipe({"data": [{"source": "hotpotqa", "mode": "document"}]})
    with pytest.raises(DataError):
        open_tasks(recipe, tmp_path, tmp_path, {})


def test_a_document_keeps_its_order(tmp_path: Path) -> None:
    story = "1 Mary went to the garden.\n2 Where is Mary? \tgarden\t1\n"
    put(tmp_path, "babi/en/qa1_single-supporting-fact_train.txt", story * 40)
    data = {"source": "babilong-qa1", "mode": "document", "options": {"num_chunks": None, "validation_share": 0.0}}
    with pytest.raises(
        RecipeError, match="babilong-qa1 has documents already, whose chunks keep their order; leave out mode"
    ):
        open_tasks(parse_recipe({"data": [data]}), tmp_path, tmp_path, {})

"""Settings of a source that would have no effect are refused and not ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_retriever.errors import RecipeError
from qrag_retriever.training.opening import open_tasks
from qrag_retriever.training.recipe import parse_recipe


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"source": "mine.jsonl", "split": "test"}, "mine.jsonl has no splits"),
        ({"source": "hotpotqa", "mode": "document"}, "hotpotqa has its own mode"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, source: dict[str, str], told: str) -> None:
    line = '{"question": "Who?", "chunks": ["Ann.", "Bob."], "supporting": [0]}\n'
    (tmp_path / "mine.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(RecipeError, match=told):
        open_tasks(parse_recipe({"data": [source]}), tmp_path, tmp_path, {})

"""Recipes and data files with bytes changed at random, and made up by rule: read as they are or refused by name."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qrag_retriever.errors import DataError, RecipeError
from qrag_retriever.training.data import JsonLines
from qrag_retriever.training.recipe import read_recipe
from tests.training_runs import settings_of, toml_of, write_questions
from tests.trust.counts import CASES, time_limit
from tests.trust.damage import damaged
from tests.trust.test_hostile_input import anything, cases, texts

RECIPES = sorted((Path(__file__).parents[2] / "training").glob("*.toml"))
SECONDS = 20
# What a mutation puts in, beside what is there.
TOKENS = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"[", b"[" * 2_000, b"]", b"{", b'"', b"'''", b"=", b"\n", b"\r", b"nan", b"inf",
    b"1" * 5_000, b"-1", b"1e999", b"true", b"null", b"\\ud800", b"#", b".", b"1979-05-27", b'{"a": 1}', b"a.b.c = 1\n",
]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Damage data, put tokens in, or repeat a part of it: some times over."""
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(3)
        if kind == 0:
            data = damaged(data, rng)
        elif kind == 1:
            data = data[:place] + rng.choice(TOKENS) + data[place:]
        else:
            start = rng.randrange(len(data) + 1)
            data = data[:place] + data[start : start + rng.randrange(1, 200)] + data[place:]
    return data


def read_or_refused(path: Path, error: type[Exception], read: Any) -> Any:
    """Return what is read; None where it is refused by an error that names the file."""
    with time_limit(SECONDS):
        try:
            return read()
        except error as refusal:
            message = str(refusal)
    assert path.name in message or "--set" in message or "in '" in message, message
    return None


def test_a_mutated_recipe_is_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random("recipes")
    path = tmp_path / "recipe.toml"
    own = toml_of(settings_of(tmp_path, tmp_path)).encode()
    wholes = [own, *(one.read_bytes() for one in RECIPES)]
    found = 0
    for _ in range(CASES):
        path.write_bytes(mutated(rng.choice(wholes), rng))
        found += read_or_refused(path, RecipeError, lambda: read_recipe(path)) is not None
    assert found < CASES


@cases
@given(
    key=st.one_of(st.sampled_from(["pqn.alpha", "data.0.weight", "data.x", "model", "run.seed.a"]), texts), value=texts
)
@example(key="data.x", value="'; DROP TABLE chunks; --")
def test_any_override_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, key: str, value: str) -> None:
    path = tmp_path_factory.mktemp("recipe", numbered=True) / "recipe.toml"
    path.write_text('[[data]]\nsource = "a.jsonl"\n', encoding="utf-8")
    for override in (f"{key}={value}", f"{key}={'[' * 5_000}", value, f"{key}={'9' * 5_000}"):
        read_or_refused(path, RecipeError, lambda one=override: read_recipe(path, [one]))


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "7", "{}", "[" * 100_000, '{"qrag": {}, "rows": [], "differences": []}']
)
def test_damaged_figures_for_a_card_are_refused(tmp_path: Path, text: str) -> None:
    bundle = runpy.run_path(str(RECIPES[0].parent / "bundle.py"))
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=str(path)):
        bundle["read_figures"](path)


def test_an_encoder_folder_that_is_damaged_ends_bundling_by_name(tmp_path: Path) -> None:
    bundle = runpy.run_path(str(RECIPES[0].parent / "bundle.py"))
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(SystemExit, match=r"modules\.json cannot be read as JSON"):
        bundle["write_oldest_layout"](tmp_path)


def read_all(path: Path) -> list[Any]:
    source = JsonLines(path)
    return [source.sample(i, np.random.default_rng(0)) for i in range(len(source))]


def test_mutated_data_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random("data")
    path = write_questions(tmp_path / "data.jsonl", 5, seed=1)
    document = {
        "question": "Who?",
        "document": "Mary left. John came. " * 9,
        "supporting": [[0, 5]],
        "answers": [["a"]],
    }
    whole = path.read_bytes() + json.dumps(document).encode() + b"\n"
    found = 0
    for _ in range(CASES):
        path.write_bytes(mutated(whole, rng))
        samples = read_or_refused(path, DataError, lambda: read_all(path))
        found += samples is not None
        for sample in samples or ():
            assert sample.question.strip()
            assert all(0 <= chunk < len(sample.chunks) for chunk in sample.supporting or ())
    assert 0 < found < CASES


@cases
@given(
    line=st.dictionaries(
        st.sampled_from(["id", "question", "chunks", "document", "supporting", "answers"]),
        st.one_of(texts, st.lists(texts, max_size=3), st.lists(st.integers(-1, 5), max_size=3), anything),
        max_size=5,
    )
)
def test_any_line_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, line: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("data", numbered=True) / "data.jsonl"
    try:
        path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    except (TypeError, ValueError):
        return
    read_or_refused(path, DataError, lambda: read_all(path))

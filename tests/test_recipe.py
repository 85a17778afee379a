"""Recipes: strict reading, and errors that say where, what and what instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qrag_retriever.errors import RecipeError
from qrag_retriever.training import Recipe, read_recipe
from qrag_retriever.training.recipe import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    PQNSettings,
    RewardSettings,
    RunSettings,
    Settings,
    WarmStartSettings,
    parse_recipe,
)

RECIPES = sorted((Path(__file__).parents[1] / "training").glob("*.toml"))
DATA = {"data": [{"source": "mine.jsonl"}]}
GROUPS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "reward": RewardSettings,
    "warm_start": WarmStartSettings,
    "pqn": PQNSettings,
    "optimizer": OptimizerSettings,
    "run": RunSettings,
}


def write(folder: Path, text: str = '[[data]]\nsource = "mine.jsonl"\n') -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(content: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**DATA, **content})
    return str(caught.value)


def test_one_source_of_data_is_all_that_a_recipe_needs(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path)) == Recipe(data=[DataSettings(source="mine.jsonl")])


@pytest.mark.parametrize("group", [*GROUPS.values(), LoraSettings, DataSettings])
def test_defaults_are_within_their_own_bounds(group: type[Settings]) -> None:
    needed = {"source": "mine.jsonl"} if group is DataSettings else {}
    group(**{name: getattr(group(**needed), name) for name in group.model_fields})


def test_the_dump_of_a_recipe_is_the_same_recipe() -> None:
    recipe = parse_recipe({**DATA, "model": {"lora": {"rank": 2}}, "optimizer": {"betas": [0.5, 0.9]}})
    assert parse_recipe(recipe.model_dump()) == recipe
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_settings_do_not_change_after_reading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe(**DATA).pqn.alpha = 1.0  # type: ignore[misc,arg-type]


@pytest.mark.skipif(not RECIPES, reason="no recipes beside the package")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_our_own_recipes_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.run.output == f"runs/{path.stem}"


# Keys


def test_a_recipe_without_data_says_so() -> None:
    with pytest.raises(RecipeError, match=r"data: Field required$"):
        parse_recipe({})
    with pytest.raises(RecipeError, match=r"data: List should have at least 1 item"):
        parse_recipe({"data": []})
    with pytest.raises(RecipeError, match=r"data\.0\.source: Field required$"):
        parse_recipe({"data": [{"weight": 2.0}]})


@pytest.mark.parametrize(
    ("content", "place", "nearest"),
    [
        ({"pqm": {}}, "pqm", "pqn"),
        ({"warmstart": {"num_updates": 3}}, "warmstart", "warm_start"),
        ({"pqn": {"aplha": 0.1}}, "pqn.aplha", "alpha"),
        ({"warm_start": {"learning_rte": 0.1}}, "warm_start.learning_rte", "learning_rate"),
        ({"model": {"layers": 3}}, "model.layers", "num_layers"),
        ({"model": {"lora": {"rnk": 3}}}, "model.lora.rnk", "rank"),
        ({"data": [{"source": "a.jsonl"}, {"source": "b.jsonl", "wieght": 1.0}]}, "data.1.wieght", "weight"),
        ({"validation": [{"sorce": "a.jsonl", "source": "a.jsonl"}]}, "validation.0.sorce", "source"),
        ({"reward": {"terminates": True}}, "reward.terminates", "terminate"),
        ({"optimizer": {"beta": [0.9, 0.9]}}, "optimizer.beta", "betas"),
        ({"run": {"outptu": "x"}}, "run.outptu", "output"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_its_place_and_the_nearest_known_one(
    content: dict[str, Any], place: str, nearest: str
) -> None:
    text = complaint(content)
    assert f"  {place}: unknown key; nearest known key: {nearest} (known here: " in text


def test_all_that_is_wrong_is_told_at_once_with_the_files_name(tmp_path: Path) -> None:
    path = write(tmp_path, '[[data]]\nsource = 3\n[pqn]\nalpha = -1\ngama = 0.5\n[run]\nseed = "one"\n')
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    first, *others = str(caught.value).splitlines()
    assert first == f"{path} has wrong settings:"
    assert [line.split(":")[0].strip() for line in others] == ["data.0.source", "pqn.alpha", "pqn.gama", "run.seed"]


# Values


@pytest.mark.parametrize(
    ("place", "value"),
    [
        # Nothing is converted: what looks like a number to somebody may be a slip.
        ("pqn.num_updates", "5"),
        ("pqn.num_updates", True),
        ("pqn.num_updates", 5.5),
        ("pqn.alpha", "0.1"),
        ("pqn.twin_heads", "no"),
        ("pqn.twin_heads", 1),
        ("run.output", 7),
        ("model.lora", True),
        ("model", "all-MiniLM-L6-v2"),
        ("data", {"source": "mine.jsonl"}),
        ("model.encoder", ["a"]),
        ("optimizer.betas", 0.9),
        ("optimizer.betas", [0.9, 0.9, 0.9]),
        # Ranges.
        ("pqn.num_updates", -1),
        ("pqn.num_envs", 0),
        ("pqn.gamma", 1.01),
        ("pqn.lam", -0.1),
        ("pqn.alpha", 0),
        ("pqn.tau", 0),
        ("pqn.tau", 1.5),
        ("pqn.value", "softish"),
        ("pqn.schedule", "step"),
        ("pqn.learning_rate", float("nan")),
        ("pqn.learning_rate", float("inf")),
        ("warm_start.value_weight", float("inf")),
        ("warm_start.wrong_share", 1.1),
        ("warm_start.start_temperature", 0),
        ("model.dropout", 1),
        ("model.frozen", "everything"),
        ("model.num_layers", 0),
        ("model.positions", "random"),
        ("model.output_scale", 0),
        ("model.lora.rank", 0),
        ("reward.kind", "nothing"),
        ("reward.completion_reward", 0),
        ("optimizer.betas", [0.9, 1.0]),
        ("optimizer.betas", [-0.1, 0.9]),
        ("optimizer.max_gradient_norm", 0),
        ("run.seed", -1),
        ("run.dtype", "float16"),
        ("run.checkpoint_minutes", 0),
        ("run.refresh_updates", 0),
    ],
)
def test_a_wrong_value_is_an_error_that_names_place_and_value(place: str, value: Any) -> None:
    content: Any = value
    for part in reversed(place.split(".")):
        content = {part: content}
    text = complaint(content)
    assert f"\n  {place}" in text
    assert "got " in text


@pytest.mark.parametrize(
    ("place", "value"),
    [("pqn.alpha", 1), ("pqn.lam", 0), ("pqn.tau", 1), ("pqn.num_updates", 0), ("optimizer.betas", [0, 0.9])],
)
def test_whole_numbers_are_numbers_and_bounds_belong_to_the_range(place: str, value: Any) -> None:
    group, key = place.split(".")
    found = getattr(getattr(parse_recipe({**DATA, group: {key: value}}), group), key)
    assert found == (tuple(value) if isinstance(value, list) else value)


# Files


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.toml: No such file"):
        read_recipe(tmp_path / "none.toml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*: Is a directory"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("text", ["[pqn", "alpha == 3", "pqn.alpha = ", "a = 1\na = 2", "x = 'y"])
def test_broken_toml_is_an_error_that_names_file_and_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"mine\.toml is not valid TOML: .*(line|end of)"):
        read_recipe(write(tmp_path, text))


def test_what_is_not_utf8_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'[[data]]\nsource = "caf\xe9.jsonl"\n')
    with pytest.raises(RecipeError, match=r"mine\.toml is not valid TOML: .*utf-8"):
        read_recipe(path)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes('\ufeff[[data]]\r\nsource = "größe.jsonl"\r\n'.encode())
    assert read_recipe(path).data[0].source == "größe.jsonl"


# --set


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("pqn.alpha=0.05", "pqn.alpha", 0.05),
        (" pqn.alpha = 0.05", "pqn.alpha", 0.05),
        ("pqn.twin_heads=false", "pqn.twin_heads", False),
        ("run.output=runs/longer", "run.output", "runs/longer"),
        ("run.output= runs/with blank ", "run.output", "runs/with blank"),
        ('run.output="runs/quoted"', "run.output", "runs/quoted"),
        ("run.output=a=b", "run.output", "a=b"),
        ("model.encoder=intfloat/e5-base", "model.encoder", "intfloat/e5-base"),
        ("model.lora.rank=8", "model.lora.rank", 8),
        ("model.lora.target_modules=['query','value']", "model.lora.target_modules", ["query", "value"]),
        ("optimizer.betas=[0.8, 0.9]", "optimizer.betas", (0.8, 0.9)),
        ("data.0.weight=2", "data.0.weight", 2.0),
        ("data.0.options.chunk_tokens=64", "data.0.options", {"chunk_tokens": 64}),
        ("data.0={source='other.jsonl'}", "data.0.source", "other.jsonl"),
        ("data=[{source='a.jsonl'},{source='b.jsonl'}]", "data.1.source", "b.jsonl"),
        ("pqn={alpha=0.5}", "pqn.alpha", 0.5),
    ],
)
def test_a_setting_is_replaced_from_the_command_line(tmp_path: Path, override: str, place: str, value: Any) -> None:
    found: Any = read_recipe(write(tmp_path), [override])
    for part in place.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("USERPROFILE", "/home/ann")
    recipe = read_recipe(write(tmp_path), ["run.output=~/run", "data.0.source=~/my.jsonl", "model.encoder=~/pair"])
    assert (recipe.run.output, recipe.data[0].source) == ("/home/ann/run", "/home/ann/my.jsonl")
    assert recipe.model.encoder == "/home/ann/pair"


def test_settings_from_the_command_line_win_and_the_last_one_stands(tmp_path: Path) -> None:
    path = write(tmp_path, '[[data]]\nsource = "mine.jsonl"\n[pqn]\nalpha = 0.1\ngamma = 0.5\n')
    recipe = read_recipe(path, ["pqn.alpha=0.2", "pqn.alpha=0.3"])
    assert (recipe.pqn.alpha, recipe.pqn.gamma) == (0.3, 0.5)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("pqn.alpha", r"expected key=value after --set, got 'pqn\.alpha'"),
        ("=3", "expected key=value after --set"),
        ("", "expected key=value after --set"),
        ("data.1.weight=2", "expected a number from 0 to 0 in place of '1' in --set 'data.1.weight=2'"),
        ("data.first.weight=2", "expected a number from 0 to 0 in place of 'first'"),
        ("data.-1.weight=2", "expected a number from 0 to 0 in place of '-1'"),
        ("data.².weight=2", "expected a number from 0 to 0 in place of '²'"),
        ("data.1={source='b.jsonl'}", "expected a number from 0 to 0 in place of '1'"),
        ("data.0.source.name=x", r"data\.0\.source in .* is a value and has no keys"),
        ("data.0.source.very.deep=x", r"data\.0\.source in .* is a value and has no keys"),
        ("pqn.aplha=3", "pqn.aplha: unknown key; nearest known key: alpha"),
        ("pqn.alpha=hot", "pqn.alpha: Input should be a valid number, got 'hot'"),
        ("pqn..alpha=3", "unknown key"),
        ("pqn.targets=True", "valid boolean, got 'True'; in TOML: true, 3 or 0.05, without quotes"),
        ("pqn.alpha=.05", "valid number, got '.05'; in TOML: true"),
        ('run.seed=1\nrun.device="cuda"', "expected one value after --set run.seed="),
        ("run.output=", r"run\.output: String should have at least 1 character"),
        ("reward.judge=f1", "judge does nothing with kind = 'supporting_facts'; leave it out"),
        ("reward={kind='answer_contained', per_fact_reward=0.2}", "per_fact_reward does nothing"),
        ("reward={kind='llm', llm='a:b', terminate=true}", "terminate needs every_step = true"),
    ],
)
def test_a_wrong_replacement_is_an_error_that_says_why(tmp_path: Path, override: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        read_recipe(write(tmp_path), [override])


@pytest.mark.parametrize("several", [False, True])
def test_a_blend_is_one_table_or_a_list_with_the_same_errors(several: bool) -> None:
    def blend_of(**settings: Any) -> Any:
        blend = [settings] if several else settings
        return parse_recipe({"data": [{"source": "hotpotqa"}], "model": {"blend": blend}}).model.blend

    assert [one.share for one in blend_of(encoder="x", share=0.2)] == [0.2]
    with pytest.raises(RecipeError) as refused:
        blend_of(encoder="x", share=0.2, shar=0.1)
    assert "model.blend.0.shar: unknown key; nearest known key: share" in str(refused.value)
    assert str(refused.value).count("\n") == 1

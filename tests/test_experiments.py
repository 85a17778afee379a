"""The experiments' scripts start, and the speed benchmark of training measures what it says, on tiny data."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qrag_retriever import QRAGModel
from qrag_retriever.benchmarks import training as benchmark
from qrag_retriever.training.recipe import BlendSettings, parse_recipe
from tests.test_datasets import put, put_books

EXPERIMENTS = Path(__file__).parents[1] / "training" / "experiments"
SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "def main" in path.read_text(encoding="utf-8"))


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with QA2 stories and a few books."""
    folder = tmp_path_factory.mktemp("data")
    rooms = ("garden", "kitchen", "office", "hallway")
    lines = []
    for i in range(120):
        room, other = rooms[i % 4], rooms[i // 4 % 4]
        who, thing = ("John", "Sandra", "Daniel")[i % 3], ("apple", "milk", "football")[i // 12 % 3]
        lines += [
            f"1 Mary took the {thing}.", f"2 {who} went to the {other}.", f"3 Mary went to the {room}.",
            f"4 Where is the {thing}? \t{room}\t1 3",
        ]  # fmt: skip
    put(folder, "babi/en-10k/qa2_two-supporting-facts_train.txt", "\n".join(lines) + "\n")
    put_books(folder, "train", num_books=20)
    return folder


def test_there_are_scripts() -> None:
    assert {"babilong", "blending", "rl_gain", "answers_only", "overfit_one", "positions", "ablations"} <= set(SCRIPTS)


def test_the_noise_of_measurements_is_enough_for_their_longest_documents(experiments: None, tmp_path: Path) -> None:
    harness = importlib.import_module("harness")
    put_books(tmp_path, "test", num_sentences=300)
    noise = harness.noise_of_test(tmp_path)
    assert noise.split == "test"
    assert len(noise.draw(harness.LENGTHS["128k"], np.random.default_rng(0))) == harness.LENGTHS["128k"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_does(
    name: str, experiments: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
    assert str(module.__doc__).splitlines()[0] in capsys.readouterr().out


def test_shares_of_a_blend_are_read(experiments: None) -> None:
    blends_of = importlib.import_module("blending").blends_of
    assert blends_of("0", ["wiki"], "minilm") == []
    assert blends_of("0.2", ["wiki", "story"], "minilm") == [BlendSettings(encoder="wiki", share=0.2)]
    assert blends_of("0.7+0.5", ["wiki"], "minilm") == [
        BlendSettings(encoder="wiki", share=0.5, own_share=0.7, base="minilm")
    ]
    with pytest.raises(SystemExit, match=r"'0.2\+0.3\+0.5' has shares of 2 other pairs, --other names 1"):
        blends_of("0.2+0.3+0.5", ["wiki"], "minilm")


def test_shares_of_three_pairs_are_those_of_their_weights(
    experiments: None, tmp_path: Path, tiny_encoder: Path
) -> None:
    blending = importlib.import_module("blending")
    weights = {}
    for seed, name in enumerate(("one", "two", "three")):
        model = QRAGModel.from_encoder(tiny_encoder, positions="relative", normalize="chunks", device="cpu")
        torch.manual_seed(seed)
        with torch.no_grad():
            for encoder in (model.state_encoder.model, model.action_encoder.model):
                for weight in encoder.parameters():
                    weight.add_(torch.randn_like(weight))
        model.save_pretrained(tmp_path / name)
        weights[name] = model.action_encoder.model.state_dict()
    plain = QRAGModel.from_encoder(tiny_encoder, device="cpu").action_encoder.model.state_dict()
    blends = blending.blends_of("0.5+0.2+0.2", [str(tmp_path / "two"), str(tmp_path / "three")], str(tiny_encoder))
    pair = blending.pair_of(str(tmp_path / "one"), blends, "own")
    assert pair.config.normalize == "chunks"
    for key, mixed in pair.action_encoder.model.state_dict().items():
        if (
            mixed.is_floating_point() and ".pooler." not in key
        ):  # poolers of the tiny encoder are drawn anew at every load
            one, two, three = (weights[name][key] for name in ("one", "two", "three"))
            # Folders keep weights in bfloat16.
            assert torch.allclose(mixed, 0.5 * one + 0.2 * two + 0.2 * three + 0.1 * plain[key], atol=0.02)


def test_the_reader_of_babi_answers_from_the_last_move_that_it_sees(experiments: None) -> None:
    reader = importlib.import_module("babi_reader").BabiReader()
    passages = "Passages:\nMary went to the garden.\nJohn moved to the attic.\nMary travelled to the office.\n"
    assert reader.invoke(f"{passages}\nQuestion: Where is Mary?").content == "office"
    assert reader.invoke(f"{passages}\nQuestion: Where is John?").content == "attic"
    assert reader.invoke(f"{passages}\nQuestion: Where is Sandra?").content == "unknown"


def test_a_finished_run_is_not_trained_again(
    data: Path, tiny_encoder: Path, tmp_path: Path, experiments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = importlib.import_module("harness")
    settings = benchmark.recipe_of("ours", str(tiny_encoder), 2, 1, tmp_path, 1).model_dump()
    settings["data"][0]["options"] = {"num_chunks": 10}
    settings["run"].update(validation_samples=4, evaluate_updates=1)
    first = harness.run(settings, data, tmp_path / "run")
    assert harness.run(settings, data, tmp_path / "run") == first
    assert len(harness.log_of(tmp_path / "run", "pqn")) == 1
    assert [entry["step"] for entry in first["validation"]] == [0, 1]


def test_the_plain_mode_does_what_the_papers_code_does() -> None:
    ours, plain = (benchmark.recipe_of(mode, "encoder", 4, 7, Path("out"), 1) for mode in benchmark.MODES)
    assert (plain.model.frozen, plain.run.dtype, plain.run.plain_batches) == ("none", "float32", True)
    assert (plain.pqn.target_chunks, plain.pqn.reuse_states, plain.run.refresh_updates) == ("encoder", False, 1)
    # Everything else is the same: task, documents, environments, picks, updates.
    for recipe in (ours, plain):
        assert recipe.data[0].options == {"num_chunks": 100, "noise_window": 100}
        assert (recipe.pqn.num_envs, recipe.pqn.num_steps, recipe.pqn.num_updates) == (4, 4, 7)
        assert recipe.warm_start.num_updates == 0


def test_the_speed_benchmark_counts_transitions_of_whole_updates(
    data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "REFRESH_UPDATES", 3)
    monkeypatch.setattr(benchmark, "PLAIN_UPDATES", 2)
    monkeypatch.setattr(benchmark, "MINILM", str(tiny_encoder))
    recipes: list[Any] = []
    original = benchmark.recipe_of

    def smaller(*arguments: Any, **options: Any) -> Any:
        settings = original(*arguments, **options).model_dump()
        settings["data"][0]["options"] = {"num_chunks": 12, "noise_window": 12}
        settings["run"]["validation_samples"] = 5
        recipes.append(settings)
        return parse_recipe(settings)

    monkeypatch.setattr(benchmark, "recipe_of", smaller)
    file = tmp_path / "figures.json"
    benchmark.main(
        ["--data", str(data), "--environments", "2", "--rounds", "2", "--warm-start-updates", "2",
         "--recall-updates", "2", "--recall-environments", "3", "--seeds", "1", "2", "--json", str(file)]
    )  # fmt: skip
    figures = json.loads(file.read_text())
    ours, plain = figures["speed"]
    assert (ours["mode"], plain["mode"], plain["times_plain"]) == ("ours", "plain", 1.0)
    assert ours["times_plain"] == pytest.approx(
        ours["transitions_per_second"] / plain["transitions_per_second"], rel=0.1
    )
    assert ours["lowest"] <= ours["transitions_per_second"] <= ours["highest"]
    for row in figures["recall"]:
        assert (row["transitions"], row["seeds"]) == (3 * 4 * 2, 2)
        assert 0 <= row["recall_after"] <= 1
    assert np.isclose(figures["recall"][0]["recall_before"], figures["recall"][1]["recall_before"], atol=0.25)
    assert "transitions_per_second" in capsys.readouterr().out


def called(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """Run a script as from the command line."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    importlib.import_module(name).main()


def test_answers_only_trains_on_hotpotqa(
    tiny_encoder: Path, tmp_path: Path, experiments: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for part in ("train", "dev"):
        lines = [
            {
                "_id": f"{part}{i}", "type": "bridge" if i % 2 else "comparison", "question": f"Who made {part} {i}?",
                "answer": f"Maker {i}", "supporting_facts": [[f"{part} {i}", 0]],
                "context": [[f"{part} {i}", [f"Maker {i} made it."]], [f"Other {i}", ["A text."]]],
            }
            for i in range(40)
        ]  # fmt: skip
        put(tmp_path / "data", f"hotpotqa/hotpotqa_{part}.jsonl", lines)
    answers_only = importlib.import_module("answers_only")
    monkeypatch.setitem(answers_only.MODEL, "encoder", str(tiny_encoder))
    original = answers_only.hotpotqa

    def smaller(chosen: Any) -> Any:
        settings, rest = original(chosen)
        settings["model"]["num_layers"] = 1
        settings["pqn"]["num_envs"] = 2
        return settings, rest

    monkeypatch.setattr(answers_only, "hotpotqa", smaller)
    folders = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    called(monkeypatch, "answers_only", *folders, "--task", "hotpotqa", "--updates", "1", "--seeds", "1")
    rows = json.loads((tmp_path / "out" / "answers_only_hotpotqa.json").read_text(encoding="utf-8"))
    assert [row["figure"] for row in rows] == ["a paragraph with the answer", "the annotated one"]
    for row in rows:
        assert row["seed"] == 1
        assert row["untrained"] == row["trained"] == 1.0, "two picks of two passages"
    assert "the annotated one: trained less untrained +0.000 [+0.000, +0.000]" in capsys.readouterr().out


def test_both_ways_on_from_a_warm_start_are_measured(
    data: Path, tiny_encoder: Path, tmp_path: Path, experiments: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rl_gain = importlib.import_module("rl_gain")
    settings = benchmark.recipe_of("ours", str(tiny_encoder), 2, 1, tmp_path, 1).model_dump()
    settings["data"][0]["options"] = {"num_chunks": 10}
    settings["warm_start"].update(num_updates=2, samples_per_update=2)
    settings["run"].update(validation_samples=4, evaluate_updates=1)
    monkeypatch.setattr(rl_gain, "read_recipe", lambda path: parse_recipe(settings))
    put(data, "babi/en/qa2_two-supporting-facts_test.txt", "1 Mary took the milk.\n2 Where is the milk? \tgarden\t1\n")
    put_books(data, "test", num_sentences=300)
    called(
        monkeypatch, "rl_gain", "--data", str(data), "--output", str(tmp_path / "out"), "--task", "2",
        "--lengths", "1k", "--updates", "1", "--seeds", "1", "2", "--num-chunks", "15",
    )  # fmt: skip
    rows = json.loads((tmp_path / "out" / "rl_gain.json").read_text(encoding="utf-8"))
    assert [row["stage"] for row in rows] == list(rl_gain.STAGES) * 2
    assert "1k: exact of PQN minus more warm start: " in capsys.readouterr().out
    logs = {path.parent.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*/log.jsonl")}
    assert '"stage": "pqn"' in logs["pqn-1"]
    assert '"stage": "warm_start"' not in logs["pqn-1"]
    assert '"stage": "warm_start"' in logs["more-1"]
    assert '"stage": "pqn"' not in logs["more-1"]
    lengths = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["recipe"]["data"][0]["options"]["num_chunks"]
        for path in (tmp_path / "out").glob("*/report.json")
    }
    assert (lengths["warm-1"], lengths["more-1"], lengths["pqn-1"]) == (10, 15, 15)

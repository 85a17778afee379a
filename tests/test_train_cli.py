"""qrag-train: exit codes, the dry run, one line for what is wrong, signals, and words that can be run."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from qrag_retriever.errors import DivergedError, RewardError
from qrag_retriever.training.checkpoint import newest_checkpoint
from qrag_retriever.training.cli import main
from qrag_retriever.training.trainer import Trainer
from tests.conftest import QUESTION, STORY
from tests.training_runs import ALL_UPDATES, files_of, log_of, settings_of, started, toml_of, write_questions


def write_recipe(folder: Path, encoder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_questions(folder / "train.jsonl", 12, seed=1)
    write_questions(folder / "validation.jsonl", 6, seed=2)
    path = folder / "mine.toml"
    path.write_text(toml_of(settings_of(folder, encoder, changes)), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, tiny_encoder: Path) -> Path:
    return write_recipe(tmp_path / "recipes", tiny_encoder)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command line says of an error, which is one line on the error stream and nothing else."""
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("qrag-train: ")]
    assert len(lines) == 1
    assert said.err.endswith(lines[0] + "\n")
    assert "Traceback" not in said.err
    return lines[0]


# A run


def test_a_run_ends_with_words_that_can_be_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Data lies beside the recipe, output where the command is given.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main([str(recipe), "--set", 'run.output=run\'s "first" é']) == 0
    said = capsys.readouterr().out
    words = said[said.index("The model is in") :]
    figures = r"\(validation: fact_recall [01]\.\d{3}, exact [01]\.\d{3}\)"
    assert re.match(rf"The model is in run's \"first\" é/model {figures}\. To use it:\n\n", words)
    code = textwrap.dedent(words.split("To use it:\n\n")[1])
    assert len(code.splitlines()) == 3
    found: dict[str, Any] = {"chunks": STORY}
    exec(code.replace("your question", QUESTION), found)
    assert len(found["docs"]) == 4
    assert (tmp_path / "elsewhere" / 'run\'s "first" é' / "model").is_dir()


def test_settings_on_the_command_line_replace_those_of_the_file(recipe: Path, tmp_path: Path) -> None:
    assert main([str(recipe), "--set", "pqn.num_updates=1", "--set", "warm_start.num_updates=0"]) == 0
    assert [entry["step"] for entry in log_of(tmp_path / "recipes" / "run") if entry["stage"] == "pqn"] == [0]


def test_the_words_name_the_mode_that_was_trained(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "--set", "data.0.mode=corpus", "--set", "pqn.num_updates=1"]) == 0
    assert 'model", mode="corpus")\n' in capsys.readouterr().out


def test_nobody_need_listen(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def fileno(self) -> int:
            return spare

    spare = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", Closed())
    try:
        assert main([str(recipe)]) == 0
    finally:
        os.close(spare)
    assert (recipe.parent / "run" / "report.json").is_file()


def test_the_command_is_installed() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'qrag-train = "qrag_retriever.commands:train"' in project


def test_help_names_every_option_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for word in ("--data", "--set", "--resume", "--dry-run", "--verbose", "examples:", "torchrun"):
        assert word in said


@pytest.mark.parametrize("arguments", [[], ["a.toml", "b.toml"], ["a.toml", "--no-such-option"], ["a.toml", "--set"]])
def test_wrong_usage_is_exit_code_2(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: qrag-train" in capsys.readouterr().err


# The dry run


def test_a_dry_run_tells_model_data_tokens_updates_time_and_memory_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(tmp_path)
    assert main([str(recipe), "--dry-run"]) == 0
    said = capsys.readouterr().out
    patterns = [
        r"model: .*tiny_encoder\d+, all layers, dimension 32",
        r"\d\.\d M weights are trained, of \d\.\d M in both encoders",
        r"positions relative, output_scale \d\.\d+, device cpu",
        r"train: 12 questions, weight 1\n",
        r"8 chunks a document, \d+ tokens a chunk, 2\.0 facts, 4\.0 picks an episode \(means of 12\)",
        r"validation: 6 questions",
        r"warm_start: 4 updates of about \d+\.\d\d s: \d+ min \d+ s",
        r"pqn: 4 updates of about \d+\.\d\d s: \d+ min \d+ s",
        r"validation: 5 times, about \d+ min \d+ s each",
        r"estimate: \d+ min \d+ s, on this machine",
        r"memory: \d+\.\d GiB",
        r"output: .*/run\n",
    ]
    for pattern in patterns:
        assert re.search(pattern, said), pattern
    assert files_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["recipes"]


def test_a_dry_run_counts_what_the_reward_cannot_judge(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_questions(recipe.parent / "train.jsonl", 6, seed=1)
    lines = (recipe.parent / "train.jsonl").read_text()
    write_questions(recipe.parent / "train.jsonl", 6, seed=3, supporting=None)
    with (recipe.parent / "train.jsonl").open("a") as file:
        file.write(lines)
    assert main([str(recipe), "--dry-run"]) == 0
    assert re.search(r"skipped: [1-6] of the samples looked at, because", capsys.readouterr().out)


def test_a_dry_run_does_not_mind_what_is_there_and_tells_it(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe), "--dry-run", "--resume"]) == 0
    assert "/run; no run to go on with, so a new one would begin" in capsys.readouterr().out
    assert main([str(recipe)]) == 0
    before = files_of(tmp_path)
    capsys.readouterr()
    assert main([str(recipe), "--dry-run", "--resume"]) == 0
    assert "/run holds a run; it is finished, so nothing would be done" in capsys.readouterr().out
    assert main([str(recipe), "--dry-run"]) == 0
    assert "/run holds a run; without --resume this one would be refused" in capsys.readouterr().out
    assert files_of(tmp_path) == before
    (recipe.parent / "run" / "report.json").unlink()
    assert main([str(recipe), "--dry-run", "--resume"]) == 0
    assert f"/run holds a run; this one would go on from {recipe.parent}/run/checkpoints" in capsys.readouterr().out
    assert main([str(recipe), "--dry-run", "--resume", "--set", "pqn.alpha=0.3"]) == 0
    assert "this one would be refused: the run in the output folder has other settings (pqn.alpha)" in (
        capsys.readouterr().out
    )
    assert main([str(recipe), "--dry-run", "--set", f"run.output={recipe}"]) == 0
    assert f"output: {recipe} is no folder; the run would be refused" in capsys.readouterr().out


class NeverAsked:
    """A language model that must not be asked."""

    def invoke(self, prompt: str) -> str:
        raise AssertionError("asked")

    batch = invoke


def no_key() -> None:
    raise RuntimeError("no API key")


def test_a_dry_run_asks_no_language_model(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = ["reward.kind=llm", f"reward.llm={__name__}:NeverAsked", "warm_start.num_updates=0"]
    assert main([str(recipe), "--dry-run", *(part for override in llm for part in ("--set", override))]) == 0
    said = capsys.readouterr().out
    assert "pqn: 4 updates; not timed, because each asks the language model" in said
    assert "estimate: 0 min 0 s without what asks the language model, on this machine" in said


def test_a_dry_run_warns_as_the_run_would(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "--dry-run", "--set", "data.0.step_limit=1"]) == 0
    assert re.search(r"warning: \d+ of the 14 questions looked at have more evidence", capsys.readouterr().out)


# What is wrong


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pqn.alpha"], "expected key=value after --set, got 'pqn.alpha'"),
        (["data.0.source=none.jsonl"], "none.jsonl is missing; expected a file with a JSON object in each line"),
        (["data.0.source=hotpotqa"], "lies in a data folder; name it with --data DIR"),
        (["data.0.options.tokens=3"], "options of train.jsonl: 'tokens' is not known; a .jsonl file has chunk_tokens"),
        (["data.0.options.chunk_tokens='a'"], "options of train.jsonl: chunk_tokens"),
        (["reward.kind=llm", f"reward.llm={__name__}:no_key", "warm_start.num_updates=0"], "RuntimeError: no API key"),
        (["reward.kind=llm", f"reward.llm={__name__}:Path", "warm_start.num_updates=0"], "reward.llm: llm must be"),
        (["reward.kind=llm", f"reward.llm={__name__}:nope", "warm_start.num_updates=0"], "cannot be imported: Attribu"),
        (["pqn.num_updates=0", "warm_start.num_updates=0"], "nothing to do"),
        (["reward.kind=answer_contained"], "a warm start imitates annotated facts"),
        (["reward.kind=llm", "warm_start.num_updates=0"], "reward.llm: expected 'package.module:callable'"),
        (["data.0.withhold_supporting=true"], "withhold_supporting keeps the facts from a reward that goes by them"),
        (["run.device=quantum"], "expected a torch device such as 'cpu'"),
        (["model.num_layers=7"], "expected num_layers from 1 to 2, got 7"),
        (["model.encoder=/no/such/encoder"], "model.encoder '/no/such/encoder' cannot be loaded"),
        (["run.output=/dev/null/run"], "run.output cannot be the folder '/dev/null/run'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line_on_the_error_stream_and_exit_code_1(
    recipe: Path, capsys: pytest.CaptureFixture[str], overrides: Sequence[str], words: str
) -> None:
    assert main([str(recipe), *(part for override in overrides for part in ("--set", override))]) == 1
    assert words in one_line(capsys)
    assert not (recipe.parent / "run").exists()


def test_a_recipe_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.toml")]) == 1
    assert one_line(capsys) == f"qrag-train: cannot read the recipe {tmp_path / 'none.toml'}: No such file or directory"


def test_a_rate_that_blows_up_is_told_with_advice(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "--set", "pqn.learning_rate=1e9"]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("qrag-train: "))
    assert "Try a smaller learning rate" in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.seed=18446744073709551616", "run.seed: Input should be less than"),
        ("model.encoder=''", "model.encoder: String should have at least 1 character"),
        ("data={source = 'train.jsonl'}", "data: one source of several; write [[data]] with double brackets"),
    ],
)
def test_a_setting_out_of_bounds_is_named(
    recipe: Path, capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    assert main([str(recipe), "--set", override]) == 1
    assert words in capsys.readouterr().err


def test_every_wrong_setting_has_a_line_of_its_own(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "--set", "pqn.aplha=1", "--set", "run.seed=-1"]) == 1
    first, *others = capsys.readouterr().err.splitlines()
    assert first == f"qrag-train: {recipe} has wrong settings:"
    assert [line.split(":")[0].strip() for line in others] == ["pqn.aplha", "run.seed"]
    assert "nearest known key: alpha" in others[0]


def test_a_bad_line_of_data_is_named_by_file_and_line(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (recipe.parent / "train.jsonl").open("a") as file:
        file.write('{"question": "Who?", "chunks": []}\n')
    assert main([str(recipe)]) == 1
    assert re.search(r"train\.jsonl.*13", one_line(capsys))


@pytest.mark.parametrize("error", [DivergedError("too large"), RewardError("no answer"), OSError("disk full")])
def test_what_goes_wrong_later_is_one_line_too(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "fit", fail)
    assert main([str(recipe)]) == 1
    assert one_line(capsys) == f"qrag-train: {error}"


def test_a_run_that_is_there_is_not_overwritten_and_a_broken_checkpoint_is_named(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe)]) == 0
    before = files_of(recipe.parent / "run")
    capsys.readouterr()
    assert main([str(recipe)]) == 1
    assert "run holds a run; go on with --resume, or name another run.output" in one_line(capsys)
    (checkpoint,) = (recipe.parent / "run" / "checkpoints").iterdir()
    assert checkpoint.name == f"{ALL_UPDATES:08d}"
    # As if its last updates were still to come.
    (recipe.parent / "run" / "report.json").unlink()
    (checkpoint / "process-0.safetensors").unlink()
    assert main([str(recipe), "--resume"]) == 1
    assert f"the checkpoint {checkpoint} is damaged" in one_line(capsys)
    shutil.rmtree(checkpoint)
    assert main([str(recipe), "--resume"]) == 0
    assert {name for name in files_of(recipe.parent / "run") if "events" not in name} == before.keys()


def test_resuming_a_run_that_is_done_changes_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe)]) == 0
    before = files_of(recipe.parent / "run")
    first = capsys.readouterr().out
    assert main([str(recipe), "--resume"]) == 0
    after = files_of(recipe.parent / "run")
    assert after == before
    assert capsys.readouterr().out.endswith(first[first.index("The model is in") :])


# Signals


def test_an_interrupt_before_training_is_exit_code_130_without_traceback(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "__init__", interrupted)
    assert main([str(recipe)]) == 130
    assert "Traceback" not in capsys.readouterr().err


def begun(recipe: Path, *arguments: str) -> BaseProcess:
    """Start the command in a process of its own and wait until it has made some updates."""
    log = recipe.parent / "run" / "log.jsonl"
    before = log.stat().st_size if log.exists() else 0
    process = started(main, recipe.parent, [str(recipe), *arguments])
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size > before + 1000):
        assert time.monotonic() < deadline, (recipe.parent / "err.txt").read_text()
        assert process.is_alive(), (recipe.parent / "err.txt").read_text()
        time.sleep(0.02)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, tiny_encoder: Path) -> None:
    recipe = write_recipe(
        tmp_path, tiny_encoder, {"warm_start.num_updates": 100_000, "run.checkpoint_minutes": 60.0, "validation": []}
    )
    done = 0
    for number, arguments in ((signal.SIGTERM, ()), (signal.SIGINT, ("--resume",))):
        process = begun(recipe, *arguments)
        os.kill(process.pid or 0, number)
        process.join(60)
        assert process.exitcode == 128 + number
        said = (tmp_path / "err.txt").read_text()
        assert "stopping after this update, with a checkpoint" in said
        checkpoint = newest_checkpoint(tmp_path / "run")
        assert checkpoint is not None
        assert f"stopped by {number.name}; go on with --resume from {checkpoint} (the model of update 0 is in" in said
        assert "Traceback" not in said
        steps = [entry["step"] for entry in log_of(tmp_path / "run") if entry["stage"] == "warm_start"]
        assert steps == list(range(int(checkpoint.name)))
        assert int(checkpoint.name) > done
        done = int(checkpoint.name)


def test_a_data_folder_that_is_not_there_is_told_even_if_nothing_is_read_from_it(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe), "--dry-run", "--data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is not there; name it with --data DIR" in capsys.readouterr().err

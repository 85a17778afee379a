"""Training runs: what they write, that they repeat and resume bit for bit, and what they survive."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qrag_retriever import QRAGModel, QRAGRetriever
from qrag_retriever.checksums import checksum_lines
from qrag_retriever.errors import CheckpointError, DataError, DivergedError, RecipeError, RewardError
from qrag_retriever.training.assembly import build_optimizer
from qrag_retriever.training.checkpoint import drop_older, newest_checkpoint, read_checkpoint
from qrag_retriever.training.data import JsonLines
from qrag_retriever.training.logs import RunLog
from qrag_retriever.training.processes import Processes
from qrag_retriever.training.recipe import PQNSettings, parse_recipe
from qrag_retriever.training.rewards import Feedback, Outcome, SupportingFactsReward
from qrag_retriever.training.sampling import held_out
from qrag_retriever.training.stop_signals import StopSignals
from qrag_retriever.training.timing import Stopwatch
from qrag_retriever.training.trainer import Interrupted, Trainer
from tests.conftest import QUESTION, STORY
from tests.disks import mounted, needs_mount
from tests.training_runs import (
    ALL_UPDATES,
    PQN_UPDATES,
    WARM_UPDATES,
    assert_same,
    files_of,
    log_of,
    norm_of_difference,
    outcome_of,
    recipe_of,
    some_updates,
    trainer_of,
    weights_of,
    without_validation,
    write_questions,
)

Changes = Mapping[str, Any]
Outcomes = Callable[[Changes], dict[str, Any]]


@contextmanager
def after_updates(actions: Mapping[int, Callable[[], Any]]) -> Iterator[None]:
    """Do something right after so many updates, before validation and checkpoint."""
    original = RunLog.update

    def update(self: RunLog, step: int, stage: str, figures: Mapping[str, float]) -> None:
        original(self, step, stage, figures)
        if step + 1 in actions:
            actions[step + 1]()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "update", update)
        yield


def stopped_after(trainer: Trainer, updates: int, number: int = signal.SIGTERM) -> Path:
    """Stop a run by a signal; return its checkpoint."""
    with after_updates({updates: lambda: signal.raise_signal(number)}), pytest.raises(Interrupted) as stopped:
        trainer.fit(resume=True)
    assert stopped.value.signal_number == number
    checkpoint = newest_checkpoint(trainer.output)
    assert checkpoint is not None
    assert str(checkpoint) in str(stopped.value)
    assert "--resume" in str(stopped.value)
    return checkpoint


def finished(trainer: Trainer, resume: bool = False) -> dict[str, Any]:
    trainer.fit(resume=resume)
    return outcome_of(trainer.output, weights_of(trainer))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Outcomes:
    """Return the outcome of a run that nothing interrupts, by what its recipe changes."""
    known: dict[str, dict[str, Any]] = {}

    def outcome(changes: Changes) -> dict[str, Any]:
        key = repr(changes)
        if key not in known:
            known[key] = finished(trainer_of(tmp_path_factory.mktemp("whole"), tiny_encoder, changes))
        return known[key]

    return outcome


# What a run leaves


def test_a_run_leaves_model_log_report_and_tensorboard_files(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder, {"run.tensorboard": True, "run.checkpoint_minutes": 5.0})
    returned = trainer.fit()
    output = tmp_path / "run"
    visible = sorted(path.name for path in output.iterdir() if path.name != ".lock")
    assert visible == ["log.jsonl", "model", "report.json", "tensorboard"]
    entries = log_of(output)
    warm = [entry["step"] for entry in entries if entry["stage"] == "warm_start"]
    pqn = [entry["step"] for entry in entries if entry["stage"] == "pqn"]
    assert (warm, pqn) == ([0, 1, 2, 3], [4, 5, 6, 7])
    validated = [entry["step"] for entry in entries if entry["stage"].startswith("validation/")]
    assert validated == [0, 2, 4, 6, 8]
    report = json.loads((output / "report.json").read_text())
    assert [entry["step"] for entry in report["validation"]] == validated
    assert report["best"]["score"] == max(entry["score"] for entry in report["validation"])
    assert report["recipe"] == trainer.recipe.model_dump(mode="json")
    assert len(list((output / "tensorboard").glob("events.*"))) == 1
    loaded = QRAGModel.from_pretrained(output / "model", device="cpu")
    np.testing.assert_array_equal(loaded.encode_chunks(STORY), returned.encode_chunks(STORY))


def test_the_model_of_a_run_retrieves_and_knows_when_to_stop(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer_of(tmp_path, tiny_encoder).fit()
    retriever = QRAGRetriever.from_texts(STORY, model=str(tmp_path / "run" / "model"), min_q="auto")
    assert retriever.search(QUESTION).stop_reason in ("k", "min_q", "exhausted")
    config = retriever.index.config
    assert config is not None
    assert set(config.min_q) == {"document"}
    assert np.isfinite(config.min_q["document"])
    # As many picks as a question of the validation has at most: two more than facts.
    assert config.step_limit == 4


def test_tensorboard_shows_every_figure(tmp_path: Path, tiny_encoder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer_of(tmp_path, tiny_encoder, {"run.tensorboard": True}).fit()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    shown = {(tag, event.step) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    logged = {
        (f"{entry['stage']}/{name}", entry["step"])
        for entry in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        for name in entry.keys() - {"step", "stage"}
    }
    assert shown == logged


def test_questions_of_ones_own_are_cut_into_training_and_validation(tmp_path: Path, tiny_encoder: Path) -> None:
    path = write_questions(tmp_path / "train.jsonl", 60, seed=1)
    trainer = trainer_of(tmp_path, tiny_encoder, {"validation": [], "run.validation_samples": 100})
    questions, documents = JsonLines(path).hashes()
    chosen = held_out(questions, documents, 0.1)
    training, validation = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    assert len(training) + len(validation) == 60
    assert len(validation) > 0
    assert trainer.mixture.tasks[0].numbers.tolist() == training.tolist()
    assert {sample.id for sample, _ in trainer.validation.episodes} == {
        f"train.jsonl:{number + 1}" for number in validation
    }


def test_a_validation_that_the_reward_cannot_judge_is_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    line = {"question": "Who?", "chunks": ["Ann.", "Bob."], "answers": [["Ann"]]}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="can judge no question of the validation"):
        trainer_of(tmp_path, tiny_encoder, {"validation": [{"source": str(tmp_path / "answers.jsonl")}]})


def test_without_validation_the_last_model_is_kept_and_said_so(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder, without_validation(tmp_path))
    assert len(trainer.validation) == 0
    model = trainer.fit()
    assert "warning: no question is left for validation" in capsys.readouterr().out
    with torch.no_grad():
        np.testing.assert_allclose(model.encode_chunks(STORY), trainer.pair.embed_chunks(STORY), atol=1e-5)
    assert model.config.min_q == {}

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    report = json.loads((tmp_path / "run" / "report.json").read_text(), parse_constant=refuse)
    assert report["best"] is None


def test_validation_decides_which_model_is_kept_and_nothing_else(tmp_path: Path, tiny_encoder: Path) -> None:
    none = without_validation(tmp_path)
    write_questions(tmp_path / "validation.jsonl", 6, seed=2)
    weights = []
    for number, changes in enumerate([none, {"run.evaluate_updates": 1}, {"run.validation_samples": 2}]):
        trainer = trainer_of(tmp_path, tiny_encoder, {**changes, "run.output": str(tmp_path / str(number))})
        trainer.fit()
        weights.append({name: weight.numpy().tobytes() for name, weight in weights_of(trainer).items()})
    assert weights[0] == weights[1] == weights[2]


def test_the_model_that_was_best_on_validation_is_kept(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder, {"run.evaluate_updates": 1})
    embedded: list[np.ndarray] = []
    recalls = [0.1, 0.4, 0.2, 0.9, 0.9, 0.3, 0.8, 0.2, 0.1]
    scripted = iter(recalls)

    def figures(picks: Any) -> Any:
        recall = next(scripted)
        embedded.append(trainer.pair.embed_chunks(STORY).detach().numpy())
        return type("Figures", (), {"to_dict": lambda self: {"fact_recall": recall, "exact": recall}})()

    monkeypatch.setattr("qrag_retriever.training.validation.figures_of", figures)
    model = trainer.fit()
    np.testing.assert_allclose(model.encode_chunks(STORY), embedded[3], atol=1e-5)
    assert np.abs(embedded[3] - embedded[4]).max() > 1e-4
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["best"]["step"], report["best"]["score"]) == (3, 0.9)
    assert "fact_recall 0.900" in trainer.closing_words()


def test_a_stage_without_progress_for_too_long_makes_room_for_the_next(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"warm_start.num_updates": 50, "warm_start.patience_updates": 4, "warm_start.learning_rate": 1e-12}
    trainer_of(tmp_path, tiny_encoder, changes).fit()
    stages = [entry["stage"] for entry in log_of(tmp_path / "run")]
    assert (stages.count("warm_start"), stages.count("pqn")) == (4, 4)
    assert "warm_start ends after 4 of 50 updates: validation has not improved for 4" in capsys.readouterr().out


def test_patience_waits_for_a_validation(tmp_path: Path, tiny_encoder: Path) -> None:
    changes = {
        "warm_start.num_updates": 50, "warm_start.patience_updates": 1, "warm_start.learning_rate": 1e-12,
        "run.evaluate_updates": 5, "run.keep": "last", "pqn.num_updates": 0,
    }  # fmt: skip
    trainer = trainer_of(tmp_path, tiny_encoder, changes)
    trainer.fit()
    assert [entry["step"] for entry in trainer.state.history] == [0, 5]
    assert trainer.state.best["step"] == trainer.state.step == 5


@pytest.mark.parametrize("stage", ["warm_start", "pqn"])
def test_one_stage_alone_is_a_run(tmp_path: Path, tiny_encoder: Path, stage: str) -> None:
    other = {"warm_start": "pqn", "pqn": "warm_start"}[stage]
    trainer_of(tmp_path, tiny_encoder, {f"{other}.num_updates": 0}).fit()
    assert {entry["stage"] for entry in log_of(tmp_path / "run")} == {stage, f"validation/{stage}"}


def test_targets_of_pqn_begin_where_the_warm_start_has_led(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder)
    _, weights = some_updates(trainer, trainer.stages[0], 2)
    live = {name: weights[name] for name in trainer.pair.target_weights()}
    assert norm_of_difference(trainer.pair.target_weights(), live) > 1e-4
    trainer.stages[1].begin()
    assert norm_of_difference(trainer.pair.target_weights(), live) == 0


# Repeats


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes
) -> None:
    torch.rand(7)
    np.random.rand(7)
    assert_same(finished(trainer_of(tmp_path, tiny_encoder)), uninterrupted({}))


def test_another_seed_gives_other_weights(tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes) -> None:
    found = finished(trainer_of(tmp_path, tiny_encoder, {"run.seed": 2}))
    assert found["weights"] != uninterrupted({})["weights"]


# Interrupted and resumed

VARIANTS: dict[str, tuple[Changes, Sequence[int]]] = {
    "plain": ({}, [1, 3, 4, 5, 6, 8]),
    "targets of chunks, several rollouts": ({"pqn.target_chunks": "encoder", "pqn.accumulate": 2}, [2, 5, 7]),
    "dropout": ({"model.dropout": 0.3}, [2, 4, 6]),
    "adapters": ({"model.lora": {"rank": 2}}, [3, 6]),
    "imitation that has faded": (
        {"pqn.imitation_weight": 0.3, "pqn.imitation_fade_updates": 2, "pqn.num_steps": 2},
        [2, 4, 5, 6, 7],
    ),
    "corpus": ({"data": [{"source": "train.jsonl", "mode": "corpus"}], "pqn.targets": False}, [3, 7]),
    "bfloat16": ({"run.dtype": "bfloat16"}, [2, 5]),
    "out of patience": (
        {"warm_start.num_updates": 50, "warm_start.patience_updates": 4, "warm_start.learning_rate": 1e-12},
        [3, 4, 5],
    ),
}


@pytest.mark.parametrize(("changes", "stops"), VARIANTS.values(), ids=VARIANTS.keys())
def test_a_run_that_signals_stop_and_resume_equals_one_that_they_do_not(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, changes: Changes, stops: Sequence[int]
) -> None:
    for updates in stops:
        checkpoint = stopped_after(trainer_of(tmp_path, tiny_encoder, changes), updates)
        assert checkpoint.name == f"{updates:08d}"
        assert len(list(checkpoint.parent.iterdir())) <= 2, "it and the one before it, until an update has gone well"
    assert_same(finished(trainer_of(tmp_path, tiny_encoder, changes), resume=True), uninterrupted(changes))


def test_a_rare_checkpoint_is_gone_on_from_and_the_log_says_nothing_twice(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes
) -> None:
    stopped_after(trainer_of(tmp_path, tiny_encoder), 3)
    rare = {"run.checkpoint_minutes": 5.0}

    def fall() -> None:
        with (tmp_path / "run" / "log.jsonl").open("a") as log:
            log.write('{"step": 6, "stage": "pq')
        raise RuntimeError("power cut")

    with after_updates({7: fall}), pytest.raises(RuntimeError, match="power cut"):
        trainer_of(tmp_path, tiny_encoder, rare).fit(resume=True)
    found = finished(trainer_of(tmp_path, tiny_encoder), resume=True)
    assert_same(found, uninterrupted({}))


def test_without_a_checkpoint_resuming_begins_anew(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, capsys: pytest.CaptureFixture[str]
) -> None:
    def fall() -> None:
        raise RuntimeError("power cut")

    with after_updates({5: fall}), pytest.raises(RuntimeError, match="power cut"):
        trainer_of(tmp_path, tiny_encoder, {"run.checkpoint_minutes": 5.0}).fit()
    capsys.readouterr()
    found = finished(trainer_of(tmp_path, tiny_encoder, {"run.checkpoint_minutes": 5.0}), resume=True)
    assert "no checkpoint to go on from; a new run begins" in capsys.readouterr().out
    found["report"]["recipe"]["run"]["checkpoint_minutes"] = 1e-9
    assert_same(found, uninterrupted({}))


def test_a_model_that_a_kill_caught_between_two_names_is_put_back(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder)
    stopped_after(trainer, 5)
    output = trainer.output
    kept = files_of(output / "model")
    (output / ".model-old-x1y2").mkdir()
    os.replace(output / "model", output / ".model-old-x1y2" / "model")
    (output / ".model-z3").mkdir()
    (output / ".model-z3" / "qrag_config.json").write_text("{")
    # Nothing is validated between 5 and 5 more updates, so the model can only be the one that was there.
    with after_updates({6: lambda: (_ for _ in ()).throw(RuntimeError("power cut"))}), pytest.raises(RuntimeError):
        trainer_of(tmp_path, tiny_encoder).fit(resume=True)
    assert sorted(path.name for path in output.iterdir()) == [".lock", "checkpoints", "log.jsonl", "model"]
    assert files_of(output / "model") == kept


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, tiny_encoder: Path) -> None:
    first = trainer_of(tmp_path, tiny_encoder)
    first.fit()
    before = files_of(first.output)
    again = trainer_of(tmp_path, tiny_encoder)
    again.fit(resume=True)
    assert files_of(first.output) == before
    assert again.closing_words() == "The run was finished before; nothing has been done. " + first.closing_words()
    with pytest.raises(CheckpointError, match=r"pqn\.gamma"):
        trainer_of(tmp_path, tiny_encoder, {"pqn.gamma": 0.9}).fit(resume=True)


def test_two_runs_do_not_work_in_one_folder(tmp_path: Path, tiny_encoder: Path) -> None:
    first, second = (trainer_of(tmp_path, tiny_encoder) for _ in range(2))

    def intrude() -> None:
        with pytest.raises(FileExistsError, match="another run is at work in"):
            second.fit(resume=True)

    with after_updates({3: intrude}):
        first.fit()
    assert log_of(first.output)[-1]["step"] == ALL_UPDATES


def test_time_and_skipped_samples_of_a_run_go_on_where_it_was_stopped(tmp_path: Path, tiny_encoder: Path) -> None:
    first = trainer_of(tmp_path, tiny_encoder)
    first.mixture.restore_skipped([("train", "a", "too hard"), ("train", "b", "too hard")])
    stopped_after(first, 5)
    spent = first.state.spent()
    second = trainer_of(tmp_path, tiny_encoder)
    second.fit(resume=True)
    report = json.loads((second.output / "report.json").read_text())
    assert report["skipped_samples"] == {"too hard": 2}
    for name, seconds in spent.items():
        assert report[name] > 0.5 * seconds


def test_the_temperature_of_the_warm_start_is_not_decayed(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder, {"optimizer.weight_decay": 1.0})
    optimizer = build_optimizer(trainer.recipe.optimizer, trainer._networks)
    trainer._networks.log_temperature.grad = torch.zeros_like(trainer._networks.log_temperature)
    before = trainer._networks.log_temperature.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert torch.equal(trainer._networks.log_temperature.detach(), before)


def test_what_does_not_decide_weights_may_change_between_stops(tmp_path: Path, tiny_encoder: Path) -> None:
    stopped_after(trainer_of(tmp_path, tiny_encoder), 5)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    changes = {"run.output": str(tmp_path / "moved"), "run.checkpoint_minutes": 1.0, "run.tensorboard": True}
    trainer_of(tmp_path, tiny_encoder, changes).fit(resume=True)
    assert log_of(tmp_path / "moved")[-1]["step"] == ALL_UPDATES


def test_signals_do_what_they_did_before_when_the_run_is_over(tmp_path: Path, tiny_encoder: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = trainer_of(tmp_path, tiny_encoder)
    stopped_after(trainer, 2, signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_stops_at_once_but_not_an_echo_of_the_first(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    signals = StopSignals(tell=True)
    with signals.handled():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        said = capfd.readouterr().err
        assert said.count("stopping after this update") == 1
        now = time.monotonic()
        monkeypatch.setattr("qrag_retriever.training.stop_signals.time.monotonic", lambda: now + 2.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signals.noted == signal.SIGINT


# Divergence


def poison_state_encoder(trainer: Trainer) -> None:
    with torch.no_grad():
        next(weight for name, weight in trainer.pair.trainable().items() if name.startswith("state")).fill_(torch.nan)


@pytest.mark.parametrize("updates", [2, 6], ids=["warm_start", "pqn"])
@pytest.mark.parametrize("way", ["weights", "gradient", "huge"])
def test_a_loss_that_is_no_number_stops_the_run_and_touches_nothing(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, updates: int, way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Validation right after the poison would see it too.
    changes = {"run.evaluate_updates": 4}
    trainer = trainer_of(tmp_path, tiny_encoder, changes)
    before: dict[str, bytes] = {}

    def poison() -> None:
        if way == "weights":
            poison_state_encoder(trainer)
        elif way == "gradient":
            weight = next(iter(trainer.pair.trainable().values()))
            weight.register_hook(lambda gradient: gradient * torch.inf)
        else:
            original = type(trainer.stages[0]).loss, type(trainer.stages[1]).loss
            for stage, loss in zip(trainer.stages, original, strict=True):
                monkeypatch.setattr(
                    type(stage), "loss", lambda self, *a, loss=loss: ((found := loss(self, *a))[0] * 1e6, found[1])
                )

    # The checkpoint of the update that was the last good one has not been written yet.
    def remember() -> None:
        before.update(files_of(tmp_path / "run" / "model"))

    with after_updates({updates - 1: remember, updates: poison}), pytest.raises(DivergedError) as caught:
        trainer.fit()
    text = str(caught.value)
    assert "training has stopped, the best model so far is in" in text
    assert "Try a smaller learning rate" in text
    assert files_of(tmp_path / "run" / "model") == before
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert checkpoint.name == f"{updates - 1:08d}", "the newest one has led straight to it"
    monkeypatch.undo()
    assert_same(finished(trainer_of(tmp_path, tiny_encoder, changes), resume=True), uninterrupted(changes))


@pytest.mark.parametrize("keep", ["best", "last"])
def test_values_that_are_no_numbers_are_no_best_model(tmp_path: Path, tiny_encoder: Path, keep: str) -> None:
    # Where the evidence comes first, picks by values that are all alike would be right.
    write_questions(tmp_path / "first.jsonl", 10, seed=3, supporting=[0, 1])
    changes = {"validation": [{"source": "first.jsonl"}], "run.keep": keep}
    trainer = trainer_of(tmp_path, tiny_encoder, changes)
    before: dict[str, bytes] = {}

    def poison() -> None:
        before.update(files_of(tmp_path / "run" / "model"))
        poison_state_encoder(trainer)

    with (
        after_updates({2: poison}),
        pytest.raises(DivergedError, match=r"no numbers any more at update 2; .* so far is"),
    ):
        trainer.fit()
    assert files_of(tmp_path / "run" / "model") == before
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")


def test_a_divergence_at_once_is_no_matter_of_the_learning_rate(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(DivergedError, match=r"at update 0; .* leave out model\.output_scale") as caught:
        trainer_of(tmp_path, tiny_encoder, {"model.output_scale": 100.0}).fit()
    assert "smaller learning rate" not in str(caught.value)


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory: you tried"])
def test_a_device_without_memory_is_told_with_what_to_lower(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{text}\nmore lines")

    trainer = trainer_of(tmp_path, tiny_encoder)
    fill = {2: lambda: monkeypatch.setattr(type(trainer.stages[0]), "loss", full)}
    told = r"memory of cpu was not enough at update 2 .*fresh_tokens"
    with after_updates(fill), pytest.raises(MemoryError, match=told) as caught:
        trainer.fit()
    assert "more lines" not in str(caught.value)
    assert newest_checkpoint(tmp_path / "run") is not None


def test_a_large_reward_is_no_divergence(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer_of(tmp_path, tiny_encoder, {"reward.completion_reward": 100.0, "reward.per_fact_reward": 50.0}).fit()
    assert log_of(tmp_path / "run")[-1]["step"] == ALL_UPDATES


# Full disks


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


# A better model is found after two updates.
@pytest.mark.parametrize("updates", [2, 5], ids=["model", "checkpoint"])
def test_a_disk_that_cannot_sync_loses_nothing(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, updates: int
) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder)
    before: dict[str, bytes] = {}

    def fill() -> None:
        drop_older(tmp_path / "run")  # as the trainer is about to
        before.update(files_of(tmp_path / "run"))
        patch.setattr(os, "fsync", no_space)

    with (
        pytest.MonkeyPatch.context() as patch,
        after_updates({updates: fill}),
        pytest.raises(OSError, match="No space left"),
    ):
        trainer.fit()
    after = files_of(tmp_path / "run")
    assert after.pop("log.jsonl").startswith(before.pop("log.jsonl"))
    assert after == before
    assert_same(finished(trainer_of(tmp_path, tiny_encoder), resume=True), uninterrupted({}))


@needs_mount
@pytest.mark.parametrize("left", [0, 4096, 40_960, 200_000, 600_000])
def test_a_really_full_disk_loses_nothing(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, left: int
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as disk:
        changes = {"run.output": str(disk / "run"), "run.evaluate_updates": 1, "run.tensorboard": left == 4096}
        before: dict[str, bytes] = {}

        def fill() -> None:
            drop_older(disk / "run")
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "filler").write_bytes(b"x" * max(0, free - left))
            before.update(files_of(disk / "run"))

        with after_updates({5: fill}), pytest.raises(OSError, match=r"[Nn]o space|os error 28"):
            trainer_of(tmp_path, tiny_encoder, changes).fit()
        kept = files_of(disk / "run")
        if left < 200_000:
            assert {name: kept.get(name) for name in before if name != "log.jsonl" and "tensorboard" not in name} == {
                name: content for name, content in before.items() if name != "log.jsonl" and "tensorboard" not in name
            }
        # Where there was more room, a better model and a newer checkpoint may be whole.
        newest = newest_checkpoint(disk / "run")
        assert newest is not None
        read_checkpoint(newest, Processes())
        QRAGModel.from_pretrained(disk / "run" / "model", device="cpu").encode_chunks(STORY[:1])
        (disk / "filler").unlink()
        found = finished(trainer_of(tmp_path, tiny_encoder, changes), resume=True)
        found["report"]["recipe"]["run"]["tensorboard"] = False
        assert_same(found, uninterrupted({"run.evaluate_updates": 1}))
        assert sorted(path.name for path in disk.iterdir()) == ["run"]
        assert [path.name for path in (disk / "run").iterdir() if path.name.startswith(".")] == [".lock"]


# Damaged checkpoints


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A folder with a run that was stopped in its second stage; to be copied."""
    folder = tmp_path_factory.mktemp("interrupted")
    stopped_after(trainer_of(folder, tiny_encoder), 6)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, interrupted: Path) -> Path:
    """The checkpoint of a stopped run, for a test to damage."""
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run" / "checkpoints" / "00000006"


PROCESS = "process-0"
DAMAGES: dict[str, Callable[[Path], Any]] = {
    f"{what} {name}": damage
    for name in ("shared.json", "shared.safetensors", "shared.sha256", "process-0.json", "process-0.safetensors")
    for what, damage in {
        "missing": lambda folder, name=name: (folder / name).unlink(),
        "empty": lambda folder, name=name: (folder / name).write_bytes(b""),
        "truncated": lambda folder, name=name: (folder / name).write_bytes((folder / name).read_bytes()[:-20]),
        "foreign": lambda folder, name=name: (folder / name).write_bytes(b"[1, 2]"),
    }.items()
}
DAMAGES["empty folder"] = lambda folder: (shutil.rmtree(folder), folder.mkdir())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_an_error_that_names_it_and_a_way_out(
    checkpoint: Path, damage: Callable[[Path], Any]
) -> None:
    read_checkpoint(checkpoint, Processes())
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=f"{checkpoint} is damaged .*; remove it, and --resume begins anew"):
        read_checkpoint(checkpoint, Processes())


def test_a_run_with_a_damaged_checkpoint_is_left_as_it_is(checkpoint: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    (checkpoint / "shared.json").write_text("{")
    before = files_of(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is damaged"):
        trainer_of(tmp_path, tiny_encoder).fit(resume=True)
    assert files_of(tmp_path / "run") == before


def changed(checkpoint: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a checkpoint as another release would have written it, checksums included."""
    path = checkpoint / f"{name}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    (checkpoint / f"{name}.sha256").write_text(checksum_lines(checkpoint, (checkpoint / f"{name}.safetensors", path)))


def test_a_newer_format_says_what_to_do(checkpoint: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    changed(checkpoint, "shared", lambda content: content.update(format=3))
    with pytest.raises(CheckpointError, match=r"format 3, this release reads 2; resume with the release that wrote it"):
        trainer_of(tmp_path, tiny_encoder).fit(resume=True)


def test_another_number_of_processes_says_what_to_do(checkpoint: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    changed(checkpoint, "shared", lambda content: content.update(num_processes=2))
    with pytest.raises(CheckpointError, match="written by 2 processes, now there are 1; resume with the same number"):
        trainer_of(tmp_path, tiny_encoder).fit(resume=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pqn.gamma": 0.5}, r"pqn\.gamma"),
        ({"run.seed": 5, "warm_start.learning_rate": 1e-5}, r"warm_start\.learning_rate, run\.seed"),
        ({"model.lora": {"rank": 2}}, r"model\.lora"),
        ({"validation": [{"source": "train.jsonl"}]}, "validation"),
        ({"data": [{"source": "train.jsonl", "weight": 2.0}]}, "data"),
    ],
)
def test_another_recipe_is_refused_by_the_names_of_its_settings(
    checkpoint: Path, tmp_path: Path, tiny_encoder: Path, changes: Changes, named: str
) -> None:
    before = files_of(tmp_path / "run")
    with pytest.raises(CheckpointError, match=rf"other settings \({named}\); resume with the recipe it was started"):
        trainer_of(tmp_path, tiny_encoder, changes).fit(resume=True)
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_data_that_has_changed_is_refused(checkpoint: Path, tmp_path: Path, tiny_encoder: Path, name: str) -> None:
    path = tmp_path / name
    # The same texts, other evidence.
    lines = [{**json.loads(line), "supporting": [0]} for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{name} has changed since the checkpoint was written; put back"):
        trainer_of(tmp_path, tiny_encoder).fit(resume=True)


def test_an_encoder_that_has_changed_is_refused_where_it_changes_the_scale(
    checkpoint: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder)
    trainer.pair.config = trainer.pair.config.replaced(output_scale=2 * trainer.pair.config.output_scale)
    with pytest.raises(CheckpointError, match="the data or the encoder has changed since the checkpoint was written"):
        trainer.fit(resume=True)


def test_a_best_model_that_is_gone_is_told_and_the_run_ends_with_a_model(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_after(trainer_of(tmp_path, tiny_encoder), ALL_UPDATES - 1)
    shutil.rmtree(tmp_path / "run" / "model")
    trainer = trainer_of(tmp_path, tiny_encoder)
    trainer.fit(resume=True)
    assert "the best model so far is not in" in capsys.readouterr().out
    assert trainer.state.best["step"] == ALL_UPDATES


def test_a_trainer_goes_on_after_a_signal(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder)
    stopped_after(trainer, 2)
    trainer.fit(resume=True)
    assert trainer.state.step == ALL_UPDATES


def test_a_reward_that_fails_leaves_a_checkpoint_of_the_update_before(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder)
    judge, calls = trainer._reward.judge, 0

    def fails_once(outcomes: Any) -> Any:
        nonlocal calls
        calls += 1
        if trainer.state.step == WARM_UPDATES + 2 and calls % 3 == 0:  # in the middle of a rollout
            raise RewardError("the model is out of credit")
        return judge(outcomes)

    with monkeypatch.context() as patch:
        patch.setattr(SupportingFactsReward, "judge", lambda reward, outcomes: fails_once(outcomes))
        with pytest.raises(RewardError, match=r"out of credit; go on with --resume from .*0000000\d"):
            trainer.fit()
    assert_same(finished(trainer_of(tmp_path, tiny_encoder), resume=True), uninterrupted({}))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_reward_that_fails_in_the_second_rollout_leaves_no_trace_of_the_first(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    changes = {"pqn.accumulate": 2, "run.checkpoint_minutes": 5.0, "model.dropout": dropout}
    trainer = trainer_of(tmp_path, tiny_encoder, changes)
    judge, calls = trainer._reward.judge, 0

    def fails_later(outcomes: Any) -> Any:
        nonlocal calls
        calls += trainer.state.step == WARM_UPDATES + 1
        if calls > trainer.recipe.pqn.num_steps:
            raise RewardError("no route")
        return judge(outcomes)

    with monkeypatch.context() as patch:
        patch.setattr(SupportingFactsReward, "judge", lambda reward, outcomes: fails_later(outcomes))
        with pytest.raises(RewardError, match="no route; go on"):
            trainer.fit()
    assert_same(finished(trainer_of(tmp_path, tiny_encoder, changes), resume=True), uninterrupted(changes))


@pytest.mark.parametrize(
    ("method", "broken", "told"),
    [
        ("judge", lambda self, outcomes: [None] * len(outcomes), "returned None for sample"),
        ("judge", lambda self, outcomes: [Feedback(50.0) for _ in outcomes], r"paid 50\.0 .* most\(\) says"),
        ("unusable", lambda self, sample: 1 // 0, "unusable failed: ZeroDivisionError"),
    ],
)
def test_a_reward_that_is_none_is_told_and_loses_nothing(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, monkeypatch: pytest.MonkeyPatch, method: str,
    broken: Any, told: str,
) -> None:  # fmt: skip
    poison = {WARM_UPDATES + 1: lambda: monkeypatch.setattr(SupportingFactsReward, method, broken)}
    with after_updates(poison), pytest.raises(RewardError, match=rf"{told}.*; go on with --resume from"):
        trainer_of(tmp_path, tiny_encoder).fit()
    monkeypatch.undo()
    assert_same(finished(trainer_of(tmp_path, tiny_encoder), resume=True), uninterrupted({}))


@pytest.mark.parametrize("step", [2, WARM_UPDATES, ALL_UPDATES])
def test_a_reward_that_fails_in_a_validation_leaves_a_checkpoint_before_it(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    rare = {"run.checkpoint_minutes": 5.0}
    trainer = trainer_of(tmp_path, tiny_encoder, rare)
    measure = trainer.validation.measure

    def fails(pair: Any) -> Any:
        if trainer.state.step == step:
            raise RewardError("no route")
        return measure(pair)

    monkeypatch.setattr(trainer.validation, "measure", fails)
    with pytest.raises(RewardError, match=rf"no route; go on with --resume from .*{step:08d}"):
        trainer.fit()
    found = finished(trainer_of(tmp_path, tiny_encoder, rare), resume=True)
    found["report"]["recipe"]["run"]["checkpoint_minutes"] = 1e-9
    assert_same(found, uninterrupted({}))


def test_a_reward_that_pays_no_number_loses_nothing(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = SupportingFactsReward.judge

    def poisoned(self: SupportingFactsReward, outcomes: Sequence[Outcome]) -> list[Feedback]:
        return [Feedback(float("nan"), one.ends, one.settled) for one in judge(self, outcomes)]

    poison = {WARM_UPDATES + 1: lambda: monkeypatch.setattr(SupportingFactsReward, "judge", poisoned)}
    with after_updates(poison), pytest.raises(RewardError, match=r"paid nan .*; go on with --resume from"):
        trainer_of(tmp_path, tiny_encoder).fit()
    monkeypatch.undo()
    assert_same(finished(trainer_of(tmp_path, tiny_encoder), resume=True), uninterrupted({}))


def test_evidence_that_is_cut_is_warned_of(tmp_path: Path, tiny_encoder: Path) -> None:
    long = "rain " * 300
    write_questions(tmp_path / "long.jsonl", 10, seed=4, chunks=["It rained.", "It stopped.", long], supporting=[2])
    source = [{"source": "long.jsonl"}]
    changes = {"data": source, "model.max_chunk_tokens": 64, "model.output_scale": 0.2}
    (warning,) = [w for w in trainer_of(tmp_path, tiny_encoder, changes).warnings if "evidence" in w]
    assert "the evidence of 8 of the 14 questions looked at is longer than 62 tokens" in warning
    assert "model.max_chunk_tokens" in warning
    write_questions(tmp_path / "long.jsonl", 10, seed=4, chunks=["It rained.", "It stopped.", long], supporting=[0])
    assert not trainer_of(tmp_path, tiny_encoder, changes).warnings


def test_questions_that_are_trained_on_and_validated_with_are_warned_of(tmp_path: Path, tiny_encoder: Path) -> None:
    write_questions(tmp_path / "one.jsonl", 20, seed=5)
    lines = (tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "two.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    changes = {"data": [{"source": "one.jsonl"}], "validation": [{"source": "two.jsonl"}]}
    (warning,) = trainer_of(tmp_path, tiny_encoder, changes).warnings
    assert "3 questions of the validation are among those of the training" in warning


def test_a_source_that_the_reward_can_judge_nothing_of_is_warned_of(tmp_path: Path, tiny_encoder: Path) -> None:
    write_questions(tmp_path / "open.jsonl", 10, seed=6, supporting=None)
    changes = {"data": [{"source": "train.jsonl"}, {"source": "open.jsonl"}]}
    (warning,) = trainer_of(tmp_path, tiny_encoder, changes).warnings
    assert "none of the 8 questions of open that were looked at can be judged" in warning
    assert "not annotated" in warning


def test_questions_with_more_evidence_than_picks_are_warned_of(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"data": [{"source": "train.jsonl", "step_limit": 1}], "validation": [{"source": "validation.jsonl"}]}
    trainer = trainer_of(tmp_path, tiny_encoder, short)
    trainer.fit()
    said = capsys.readouterr().out
    assert re.search(r"warning: \d+ of the 14 questions looked at have more evidence than they get picks", said)
    assert all(warning in said for warning in trainer.warnings)


def test_the_last_model_may_be_kept(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder, {"run.keep": "last", "run.evaluate_updates": 1})
    model = trainer.fit()
    with torch.no_grad():
        np.testing.assert_allclose(model.encode_chunks(STORY), trainer.pair.embed_chunks(STORY), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("shared", lambda content: content.pop("history")),
        ("shared", lambda content: content.update(recipe=None)),
        ("process-0", lambda content: content.pop("stage")),
        ("process-0", lambda content: content["stage"]["streams"].pop()),
        ("process-0", lambda content: content["stage"]["envs"]["episodes"].pop()),
        ("process-0", lambda content: content["cache"].pop()),
    ],
)
def test_a_checkpoint_that_lacks_something_is_an_error(
    checkpoint: Path, tmp_path: Path, tiny_encoder: Path, name: str, change: Callable[[Any], Any]
) -> None:
    changed(checkpoint, name, change)
    with pytest.raises(CheckpointError, match=r"the checkpoint (does not fit|cannot be restored)"):
        trainer_of(tmp_path, tiny_encoder).fit(resume=True)


def test_weights_of_another_shape_are_an_error(checkpoint: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    path = checkpoint / "shared.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("weight/") and tensors[name].ndim == 1)
    save_file({**tensors, name: tensors[name][:-1].clone()}, path)
    changed(checkpoint, "shared", lambda content: None)
    with pytest.raises(CheckpointError, match="does not fit this recipe's model"):
        trainer_of(tmp_path, tiny_encoder).fit(resume=True)


# What is refused


def test_a_run_that_is_there_is_not_overwritten(checkpoint: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    before = files_of(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"run holds a run; go on with --resume, or name another run\.output"):
        trainer_of(tmp_path, tiny_encoder).fit()
    shutil.rmtree(checkpoint.parent)
    with pytest.raises(FileExistsError, match="holds a run"):
        trainer_of(tmp_path, tiny_encoder).fit()
    assert files_of(tmp_path / "run").items() <= before.items()


def test_facts_that_are_withheld_from_a_reward_that_needs_them_are_an_error(tmp_path: Path, tiny_encoder: Path) -> None:
    changes = {"data": [{"source": "train.jsonl"}, {"source": "train.jsonl", "withhold_supporting": True}]}
    with pytest.raises(RecipeError, match=r"data\.1\.withhold_supporting .* reward\.kind = 'answer_contained'"):
        trainer_of(tmp_path, tiny_encoder, changes)


def test_a_warm_start_without_a_reward_that_goes_by_facts_is_an_error(tmp_path: Path, tiny_encoder: Path) -> None:
    changes = {"reward.kind": "answer_contained"}
    with pytest.raises(RecipeError, match=r"set warm_start\.num_updates = 0, or reward\.kind = 'supporting_facts'"):
        trainer_of(tmp_path, tiny_encoder, changes)
    trainer_of(tmp_path, tiny_encoder, {**changes, "warm_start.num_updates": 0}).fit()


def test_no_facts_are_imitated_where_the_reward_does_not_go_by_them(tmp_path: Path, tiny_encoder: Path) -> None:
    changes = {"reward.kind": "answer_contained", "warm_start.num_updates": 0}
    trainer_of(tmp_path, tiny_encoder, changes).fit()
    log = [entry for entry in log_of(tmp_path / "run") if entry["stage"] == "pqn"]
    assert len(log) == PQN_UPDATES
    assert not any("imitation" in entry for entry in log)
    with pytest.raises(RecipeError, match=r"pqn\.imitation_weight is for annotated facts"):
        trainer_of(tmp_path, tiny_encoder, {**changes, "pqn.imitation_weight": 0.2})
    # A recipe as a report has it, with every default written out.
    parsed = recipe_of(tmp_path, tiny_encoder, changes)
    Trainer(parse_recipe(parsed.model_dump()), recipe_folder=tmp_path)


def test_withheld_facts_do_not_reach_the_training(tmp_path: Path, tiny_encoder: Path) -> None:
    write_questions(tmp_path / "train.jsonl", 12, seed=1, supporting=None)
    write_questions(tmp_path / "validation.jsonl", 6, seed=2)
    changes = {"reward.kind": "answer_contained", "warm_start.num_updates": 0}
    with_none = finished(trainer_of(tmp_path, tiny_encoder, changes))
    write_questions(tmp_path / "train.jsonl", 12, seed=1)
    withheld = [{"source": "train.jsonl", "withhold_supporting": True, "step_limit": 4}]
    changes = {**changes, "data": withheld, "run.output": str(tmp_path / "withheld")}
    assert finished(trainer_of(tmp_path, tiny_encoder, changes))["weights"] == with_none["weights"]


def test_nothing_to_do_is_an_error(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to do"):
        trainer_of(tmp_path, tiny_encoder, {"warm_start.num_updates": 0, "pqn.num_updates": 0})


def test_a_pair_that_is_only_blended_is_measured_and_kept(tmp_path: Path, tiny_encoder: Path) -> None:
    trained = finished(trainer_of(tmp_path, tiny_encoder, {"pqn.num_updates": 0, "run.output": str(tmp_path / "one")}))
    changes = {
        "warm_start.num_updates": 0, "pqn.num_updates": 0, "model.encoder": str(tmp_path / "one" / "model"),
        "model.blend": {"encoder": str(tiny_encoder), "share": 0.5}, "run.output": str(tmp_path / "blended"),
    }  # fmt: skip
    trainer = trainer_of(tmp_path, tiny_encoder, changes)
    blended = finished(trainer)
    assert [entry["step"] for entry in blended["report"]["validation"]] == [0]
    assert trainer.state.best["step"] == 0
    assert blended["weights"] != trained["weights"]
    assert QRAGModel.from_pretrained(tmp_path / "blended" / "model").config.min_q


def test_questions_that_the_reward_cannot_judge_are_an_error_that_says_why(tmp_path: Path, tiny_encoder: Path) -> None:
    write_questions(tmp_path / "train.jsonl", 3, seed=1, supporting=None)
    with pytest.raises(ValueError, match="the reward can judge none of the 3 questions drawn; the last one because"):
        trainer_of(tmp_path, tiny_encoder, {"validation": [{"source": "train.jsonl"}]})


def test_questions_that_cannot_be_judged_are_counted_in_the_report(tmp_path: Path, tiny_encoder: Path) -> None:
    recipe_of(tmp_path, tiny_encoder)
    lines = (tmp_path / "train.jsonl").read_text()
    write_questions(tmp_path / "train.jsonl", 3, seed=5, supporting=None)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(lines)
    trainer_of(tmp_path, tiny_encoder).fit()
    skipped = json.loads((tmp_path / "run" / "report.json").read_text())["skipped_samples"]
    assert list(skipped.values()) == [3]


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"data": [{"source": "nowhere.jsonl"}]}, DataError, r"nowhere\.jsonl is missing"),
        ({"data": [{"source": "babilong-qa77"}]}, RecipeError, "there is no source 'babilong-qa77'"),
        ({"data": [{"source": "babilong-qa2"}]}, RecipeError, "name it with --data DIR"),
        ({"data": [{"source": "train.jsonl", "options": {"chunks": 3}}]}, RecipeError, r"options of train\.jsonl: .*"),
        ({"data": [{"source": "train.jsonl", "options": {"mode": "corpus"}}]}, RecipeError, r"options of train\.jsonl"),
        ({"reward.kind": "llm"}, RecipeError, r"reward\.llm: expected 'package\.module:callable'"),
        ({"reward.kind": "llm", "reward.llm": "no_such_module:model"}, RecipeError, "cannot be imported"),
        ({"run.device": "quantum"}, ValueError, "expected a torch device"),
    ],
)
def test_what_a_recipe_names_and_is_not_there_is_an_error(
    tmp_path: Path, tiny_encoder: Path, changes: Changes, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        trainer_of(tmp_path, tiny_encoder, changes)
    assert not (tmp_path / "run").exists()


# Switches

PQN_ONLY = {
    "warm_start.num_updates": 0, "pqn.num_updates": 3, "pqn.num_envs": 5, "pqn.num_steps": 4, "pqn.warmup_updates": 0,
    "pqn.learning_rate": 1e-3, "pqn.alpha": 0.3,
}  # fmt: skip
SWITCHES: dict[str, list[Any]] = {
    "num_updates": [1, 4],
    "num_envs": [1, 6],
    "num_steps": [1, 7],
    "accumulate": [2],
    "gamma": [0.0, 1.0],
    "lam": [0.0, 1.0],
    "alpha": [0.01],
    "alpha_end_share": [1.0],
    "value": ["soft"],
    "top_k": [1, 2],
    "targets": [False],
    "target_chunks": ["encoder"],
    "tau": [1.0],
    "twin_heads": [False],
    "clip_values": [False],
    "zero_when_settled": [False],
    "imitation_weight": [0.0, 1.0],
    "imitation_fade_updates": [1],
    "learning_rate": [1e-2],
    "warmup_updates": [1, 100],
    "schedule": ["cosine"],
    "end_share": [0.0, 1.0],
    "fresh_chunks": [0],
    "num_alternatives": [2],
    "max_candidates": [2],
    "reuse_states": [False],
}
# What else must be so for a switch to matter: values beyond the reward's range, facts that no environment picks.
BESIDE: dict[str, Changes] = {
    "clip_values": {"reward.completion_reward": 0.2},
    "fresh_chunks": {"data": [{"source": "validation.jsonl"}], "pqn.num_envs": 1, "pqn.num_steps": 1},
}


@pytest.fixture(scope="module")
def pqn_weights(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Callable[[str], dict[str, Any]]:
    """Return the weights after a short PQN run over small documents, by what its recipe changes, as JSON."""
    folder = tmp_path_factory.mktemp("pqn")
    write_questions(folder / "train.jsonl", 12, seed=1, chunks=STORY[:4], supporting=[0, 3])
    write_questions(folder / "validation.jsonl", 2, seed=2)
    numbers = itertools.count()

    @functools.cache
    def weights(changes: str) -> dict[str, torch.Tensor]:
        output = str(folder / f"{next(numbers)}")
        trainer = trainer_of(folder, tiny_encoder, {**PQN_ONLY, **json.loads(changes), "run.output": output})
        trainer.fit()
        return {name: weight.detach().clone() for name, weight in trainer.pair.trainable().items()}

    return weights


def test_every_switch_of_pqn_is_tested() -> None:
    assert SWITCHES.keys() == PQNSettings.model_fields.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SWITCHES.items() for value in values])
def test_a_switch_of_pqn_runs_and_matters(pqn_weights: Callable[[str], dict[str, Any]], name: str, value: Any) -> None:
    beside = BESIDE.get(name, {})
    usual = pqn_weights(json.dumps(beside))
    found = pqn_weights(json.dumps({**beside, f"pqn.{name}": value}))
    assert all(bool(weight.isfinite().all()) for weight in found.values())
    difference = norm_of_difference(found, usual)
    if name == "reuse_states":
        # Another order of the same sums.
        assert difference < 1e-4
    else:
        assert difference > 0


def test_two_accumulated_rollouts_have_the_gradient_of_one_that_is_twice_as_long(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    # Without lambda the cut of a rollout does not matter to its targets.
    same = {"warm_start.num_updates": 0, "pqn.lam": 0.0, "pqn.imitation_weight": 0.0, "run.refresh_updates": 1}
    found = []
    for accumulate, num_steps in ((2, 2), (1, 4)):
        changes = {**same, "pqn.accumulate": accumulate, "pqn.num_steps": num_steps}
        trainer = trainer_of(tmp_path, tiny_encoder, changes)
        found.append(some_updates(trainer, trainer.stages[0], 1)[0])
    assert norm_of_difference(*found) < 1e-5


def test_only_adapters_are_trained_and_the_saved_model_needs_no_peft(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder, {**without_validation(tmp_path), "model.lora": {"rank": 2}})
    assert trainer.pair.trainable()
    assert all(".lora_" in name for name in trainer.pair.trainable())
    encoders = [trainer.pair.state_encoder.model, trainer.pair.action_encoder.model]
    frozen = [
        (weight, weight.detach().clone())
        for encoder in encoders
        for name, weight in encoder.named_parameters()
        if ".lora_" not in name
    ]
    before = weights_of(trainer)
    trainer.fit()
    assert all(torch.equal(weight, kept) for weight, kept in frozen)
    after = weights_of(trainer)
    assert all(not torch.equal(after[name], before[name]) for name in trainer.pair.trainable() if "lora_B" in name)
    saved = tmp_path / "run" / "model"
    for role in ("state_encoder", "action_encoder"):
        assert not [name for name in load_file(saved / role / "model.safetensors") if "lora" in name or "base" in name]
    monkeypatch.setitem(sys.modules, "peft", None)
    model = QRAGModel.from_pretrained(saved, device="cpu")
    with torch.no_grad():
        expected = trainer.pair.embed_chunks(STORY), trainer.pair.embed_states([(QUESTION, tuple(STORY[:2]))])
    np.testing.assert_allclose(model.encode_chunks(STORY), expected[0], atol=1e-5)
    np.testing.assert_allclose(model.encode_states([(QUESTION, STORY[:2])]), expected[1], atol=1e-5)


def test_adapters_have_a_dropout_of_their_own(tmp_path: Path, tiny_encoder: Path) -> None:
    found = []
    for dropout in (0.0, 0.5):
        changes = {"model.lora": {"rank": 2, "dropout": dropout}, "run.output": str(tmp_path / str(dropout))}
        trainer = trainer_of(tmp_path, tiny_encoder, changes)
        found.append(some_updates(trainer, trainer.stages[0], 3)[1])
    assert norm_of_difference(*found) > 1e-4


def test_dropout_is_in_gradient_passes_and_not_in_rollouts_targets_and_validation(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    found = []
    for dropout in (0.0, 0.5):
        trainer = trainer_of(tmp_path, tiny_encoder, {"model.dropout": dropout, "warm_start.num_updates": 0})
        stage: Any = trainer.stages[0]
        stage.begin()
        _, figures = stage.loss(0, Stopwatch())
        picks = [env.state.picked for env in stage._envs.envs]
        with torch.no_grad():
            embedded = trainer.pair.embed_chunks(STORY)
            assert torch.equal(embedded, trainer.pair.embed_chunks(STORY))
        found.append((picks, figures["return"], figures["reward"], embedded.tolist(), figures["td_loss"]))
    plain, dropped = found
    assert dropped[:4] == plain[:4]
    assert dropped[4] != pytest.approx(plain[4], rel=1e-3)


def test_bfloat16_is_for_the_arithmetic_only(tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder, {"run.dtype": "bfloat16"})
    found = finished(trainer)
    assert {weight.dtype for weight in trainer.pair.trainable().values()} == {torch.float32}
    assert {weight.dtype for weight in trainer.pair.target_weights().values()} == {torch.float32}
    assert found["weights"] != uninterrupted({})["weights"]
    saved = load_file(tmp_path / "run" / "model" / "state_encoder" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


@pytest.mark.parametrize(
    "changes",
    [
        {"model.frozen": "none"},
        {"model.frozen": "embeddings"},
        {"model.num_layers": 1},
        {"model.positions": "absolute"},
        {"model.positions": "none"},
        {"model.state_order": "retrieved"},
        {"model.max_chunk_tokens": 4, "model.max_chunk_tokens_in_state": 4},
        {"run.plain_batches": True},
        {"run.refresh_updates": 1},
        {"reward.terminate": True},
        {"reward.per_fact_reward": 0.5, "reward.penalize_extra_steps": False},
        {"warm_start.max_candidates": 3},
        {"warm_start.fresh_tokens": 1},
        {"data": [{"source": "train.jsonl", "step_limit": 2}, {"source": "validation.jsonl", "mode": "corpus"}]},
    ],
    ids=str,
)
def test_other_settings_run_to_the_end(
    tmp_path: Path, tiny_encoder: Path, uninterrupted: Outcomes, changes: Changes
) -> None:
    found = finished(trainer_of(tmp_path, tiny_encoder, changes))
    assert [entry["step"] for entry in found["log"]][-1] == ALL_UPDATES
    assert found["weights"] != uninterrupted({})["weights"]


def test_a_run_may_start_from_the_model_of_another(tmp_path: Path, tiny_encoder: Path) -> None:
    first = trainer_of(tmp_path, tiny_encoder, without_validation(tmp_path))
    first.fit()
    second = trainer_of(
        tmp_path, tmp_path / "run" / "model", {"validation": [], "run.output": str(tmp_path / "second")}
    )
    assert second.pair.config.output_scale == first.pair.config.output_scale
    with torch.no_grad():
        np.testing.assert_allclose(second.pair.embed_chunks(STORY), first.pair.embed_chunks(STORY), atol=1e-5)
    second.fit()
    assert log_of(tmp_path / "second")[-1]["stage"] == "pqn"


def test_leaving_twice_is_leaving_once(tmp_path: Path, tiny_encoder: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_encoder)
    trainer.leave()
    trainer.leave()

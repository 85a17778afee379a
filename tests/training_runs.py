"""Training runs that take a second: questions about a story, recipes for them, and processes that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import sentence_transformers  # noqa: F401  # imported once, by the server that the processes are forked from
import torch
from safetensors.torch import load_file, save_file

from qrag_retriever.training.assembly import build_optimizer
from qrag_retriever.training.logs import RunLog
from qrag_retriever.training.recipe import Recipe, parse_recipe
from qrag_retriever.training.stages import Stage
from qrag_retriever.training.trainer import Interrupted, Trainer
from tests.conftest import STORY

NUM_CHUNKS = 8
WARM_UPDATES, PQN_UPDATES = 4, 4
ALL_UPDATES = WARM_UPDATES + PQN_UPDATES


def write_questions(path: Path, count: int, seed: int, **fields: Any) -> Path:
    """Write questions over random parts of the story, two facts each."""
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        line = {
            "question": f"What did {rng.choice(['Mary', 'John', 'Sandra'])} do before number {seed} {number}?",
            "chunks": rng.sample(STORY, NUM_CHUNKS),
            "supporting": sorted(rng.sample(range(NUM_CHUNKS), 2)),
            "answers": [["the"]],
            **fields,
        }
        lines.append(json.dumps({name: value for name, value in line.items() if value is not None}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def settings_of(folder: Path, encoder: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a recipe's content for questions in a folder; ``changes`` have dots in their names."""
    content: dict[str, Any] = {
        "model": {"encoder": str(encoder)},
        "data": [{"source": "train.jsonl"}],
        "validation": [{"source": "validation.jsonl"}],
        "warm_start": {
            "num_updates": WARM_UPDATES, "samples_per_update": 4, "learning_rate": 1e-3, "warmup_updates": 1,
        },
        "pqn": {
            "num_updates": PQN_UPDATES, "num_envs": 4, "num_steps": 3, "learning_rate": 1e-3, "warmup_updates": 1,
        },
        "run": {
            "output": str(folder / "run"), "device": "cpu", "dtype": "float32", "evaluate_updates": 2,
            "refresh_updates": 3, "checkpoint_minutes": 1e-9, "tensorboard": False,
        },
    }  # fmt: skip
    for name, value in (changes or {}).items():
        place = content
        *groups, last = name.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return content


def without_validation(folder: Path, name: str = "train.jsonl") -> dict[str, Any]:
    """Write one training question, so that none is left for a validation; return what a recipe changes for it."""
    write_questions(folder / name, 1, seed=1)
    return {"data": [{"source": name}], "validation": []}


def recipe_of(folder: Path, encoder: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe of two stages of four updates; write the questions it needs if they are not there."""
    if not (folder / "train.jsonl").exists():
        write_questions(folder / "train.jsonl", 12, seed=1)
        write_questions(folder / "validation.jsonl", 6, seed=2)
    return parse_recipe(settings_of(folder, encoder, changes))


def trainer_of(folder: Path, encoder: Path, changes: Mapping[str, Any] | None = None) -> Trainer:
    return Trainer(recipe_of(folder, encoder, changes), recipe_folder=folder)


def toml_of(content: Mapping[str, Any]) -> str:
    """Write settings as TOML; JSON's values are TOML's but for objects."""
    lines = []
    for group, settings in content.items():
        for one in settings if isinstance(settings, list) else [settings]:
            lines.append(f"[[{group}]]" if isinstance(settings, list) else f"[{group}]")
            lines += [f"{name} = {json.dumps(value)}" for name, value in one.items()]
    return "\n".join(lines) + "\n"


# What a run leaves


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return everything that is trained, and what follows it."""
    live = {name: weight.detach().clone() for name, weight in trainer.pair.trainable().items()}
    targets = {f"target.{name}": weight.clone() for name, weight in trainer.pair.target_weights().items()}
    return {**live, **targets, "log_temperature": trainer._networks.log_temperature.detach().clone()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def log_of(output: Path) -> list[dict[str, Any]]:
    """Return the lines of a log without what a clock says."""
    lines = (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(("time/", "updates_per"))}
        for line in lines
    ]


def outcome_of(output: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return all that is to be the same in two equal runs: weights, kept model, figures, report."""
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    report["recipe"]["run"]["output"] = ""
    assert report.pop("seconds") > 0
    assert report.pop("processor_seconds") > 0
    return {
        "weights": {name: weight.numpy().tobytes() for name, weight in weights.items()},
        "model": files_of(output / "model"),
        "log": log_of(output),
        "report": report,
    }


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare two outcomes; name what differs and do not print its bytes."""
    for part, content in expected.items():
        if isinstance(content, dict):
            assert found[part].keys() == content.keys(), part
            assert [name for name in content if found[part][name] != content[name]] == [], part
        else:
            assert found[part] == content, part


def norm_of_difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return the relative difference of two sets of tensors, all together."""
    assert found.keys() == expected.keys()
    ours, theirs = (torch.cat([tensors[name].flatten().double() for name in expected]) for tensors in (found, expected))
    return float((ours - theirs).norm() / theirs.norm())


def some_updates(trainer: Trainer, stage: Stage, count: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Carry out updates of a stage; return the gradients of the first and the weights after the last."""
    stage.begin()
    optimizer = build_optimizer(trainer.recipe.optimizer, trainer._networks)
    log = RunLog(trainer.output, tensorboard=False, silent=True)
    gradients: dict[str, torch.Tensor] = {}
    for update in range(count):
        trainer._update(stage, update, optimizer, log)
        trainer.state.step += 1
        if update == 0:
            gradients = {
                name: weight.grad.detach().clone()
                for name, weight in trainer.pair.trainable().items()
                if weight.grad is not None
            }
    return gradients, {name: weight.detach().clone() for name, weight in trainer.pair.trainable().items()}


# Processes: forked from a server that has imported torch once, so that each begins at once


def started(job: Callable[..., Any], folder: Path, *arguments: Any) -> BaseProcess:
    """Start a job in a process of its own; what it prints goes to ``out.txt`` and ``err.txt`` in a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training_runs"])
    process = context.Process(target=_job, args=(job, str(folder), arguments))
    process.start()
    return process


def _job(job: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    try:
        code = job(*arguments)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def train_to_the_end(content: Mapping[str, Any], folder: str) -> int:
    """Go on with a run or begin it; keep its last weights when it is done."""
    trainer = Trainer(parse_recipe(content), recipe_folder=folder)
    try:
        trainer.fit(resume=True)
    except Interrupted as stopped:
        return 128 + stopped.signal_number
    save_file(weights_of(trainer), Path(folder) / "last.safetensors")
    return 0


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last.safetensors")

"""What training on a user's own questions brings, by how many of them there are: short runs of the trainer."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever.benchmarks.suite.methods import MultiStep
from qrag_retriever.cli.comparison import Answers, ask_all
from qrag_retriever.config import Mode
from qrag_retriever.errors import DataError
from qrag_retriever.model import QRAGModel
from qrag_retriever.training.data import Sample
from qrag_retriever.training.dry_run import update_seconds
from qrag_retriever.training.recipe import Recipe, parse_recipe
from qrag_retriever.training.trainer import Interrupted, Trainer

SHARES = (0.1, 0.3, 1.0)
_FEWEST_QUESTIONS = 3
# Imitation needs more updates than what it prepares for.
_WARM_PER_PQN = 3
_FEWEST_PQN, _MOST_PQN = 5, 150
# The rest goes to validation, loading and saving.
_SHARE_OF_UPDATES = 0.7
_VALIDATION_SAMPLES = 50


@dataclass(frozen=True)
class Point:
    """One point of the curve.

    Attributes:
        share: Of the questions that may be trained on.
        num_questions: How many these are, those that the run keeps for its own validation included.
        num_updates: Of warm start and PQN.
        seconds: Of the run.
        answers: What the trained model found for the questions that were held out.
    """

    share: float
    num_questions: int
    num_updates: int
    seconds: float
    answers: Answers


def learning_curve(
    start: QRAGModel | None,
    training: Sequence[Sample],
    asked: Sequence[Sample],
    step_limit: int,
    budget_minutes: float,
    device: str | None = None,
) -> Iterator[Point]:
    """Train a model on 10%, 30% and 100% of the questions, with the same number of updates, and measure each.

    Args:
        start: Where every run starts; None: where a recipe that names no encoder does.
        training: Questions to train on; a smaller share is part of a larger.
        asked: Questions to measure with; the training never sees them.
        step_limit: Picks that count for recall.
        budget_minutes: Of all runs together, about; decides the number of updates.
        device: Of the training.

    Raises:
        DataError: If there are too few questions to train on.
    """
    check_enough(training)
    counts = {share: max(_FEWEST_QUESTIONS, round(share * len(training))) for share in SHARES}
    order = np.random.default_rng(0).permutation(len(training)).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        encoder = {}
        if start is not None:
            start.save_pretrained(folder / "start")
            encoder = {"encoder": str(folder / "start")}
        files = {share: folder / f"{round(100 * share)}.jsonl" for share in SHARES}
        for share, path in files.items():
            _write([training[i] for i in order[: counts[share]]], path)
        mode = training[0].mode
        seconds_of_run = 60 * budget_minutes / len(SHARES)
        num_pqn, seconds_of_pqn = _updates_within(
            seconds_of_run, _recipe(files[1.0], mode, encoder, _FEWEST_PQN, device)
        )
        expected = num_pqn * seconds_of_pqn / _SHARE_OF_UPDATES
        if expected > 1.5 * seconds_of_run:
            _say(f"the least that can tell anything takes longer than --budget-minutes {budget_minutes:g}")
        for share, path in files.items():
            _say(
                f"training on {counts[share]} of {len(training)} questions, {(1 + _WARM_PER_PQN) * num_pqn} updates, "
                f"about {max(1, round(expected / 60))} min"
            )
            begun = time.perf_counter()
            trained = _trained(_recipe(path, mode, encoder, num_pqn, device))
            seconds = time.perf_counter() - begun
            method = MultiStep(f"trained on {share:.0%}", trained, "")
            answers = ask_all(method, asked, step_limit)
            yield Point(share, counts[share], (1 + _WARM_PER_PQN) * num_pqn, seconds, answers)


def check_enough(training: Sequence[Sample]) -> None:
    """Raise `DataError` if there are too few questions to train on."""
    if len(training) < _FEWEST_QUESTIONS:
        raise DataError(
            f"{len(training)} questions are left for training, {_FEWEST_QUESTIONS} are needed; give more questions, or "
            "a smaller --held-out"
        )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _write(samples: Sequence[Sample], path: Path) -> None:
    lines = []
    for sample in samples:
        line: dict[str, Any] = {"id": sample.id, "question": sample.question, "chunks": sample.chunks}
        lines.append(json.dumps({**line, "supporting": sample.supporting}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _recipe(path: Path, mode: Mode, encoder: dict[str, str], num_pqn: int, device: str | None) -> Recipe:
    """Return a short recipe for a file; what it does not name is as in every recipe."""
    num_warm = _WARM_PER_PQN * num_pqn
    return parse_recipe(
        {
            "model": encoder,
            "data": [{"source": str(path), "mode": mode}],
            "warm_start": {
                "num_updates": num_warm, "samples_per_update": 8, "fresh_tokens": 800, "learning_rate": 5e-5,
            },
            "pqn": {"num_updates": num_pqn, "num_envs": 8, "num_steps": 3, "warmup_updates": 5, "learning_rate": 2e-5},
            "run": {
                # Of few questions, validation keeps too few to choose a model by.
                "output": str(path.with_suffix("")), "device": device, "tensorboard": False, "keep": "last",
                "evaluate_updates": num_warm, "validation_samples": _VALIDATION_SAMPLES,
            },
        }
    )  # fmt: skip


def _updates_within(seconds: float, recipe: Recipe) -> tuple[int, float]:
    """Time some updates; return how many of PQN fit into a run of so many seconds, and what each takes.

    Both with their warm start.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(recipe)
        warm, pqn = (update_seconds(trainer, stage)[1] for stage in trainer.stages)
    each = _WARM_PER_PQN * warm + pqn
    return min(max(int(_SHARE_OF_UPDATES * seconds / each), _FEWEST_PQN), _MOST_PQN), each


def _trained(recipe: Recipe) -> QRAGModel:
    try:
        # The standard output is for results, and what the trainer says is for those who train.
        with contextlib.redirect_stdout(io.StringIO()):
            return Trainer(recipe).fit()
    except Interrupted as stopped:
        if stopped.signal_number == signal.SIGINT:
            raise KeyboardInterrupt from stopped
        raise SystemExit(128 + stopped.signal_number) from stopped

"""What a run would do, without doing it: model, data, tokens, updates, and an estimate of time and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from qrag_retriever.devices import peak_memory_mb
from qrag_retriever.errors import CheckpointError
from qrag_retriever.training.checkpoint import newest_checkpoint, read_checkpoint
from qrag_retriever.training.evaluation import greedy_picks
from qrag_retriever.training.run_folder import RunFolder
from qrag_retriever.training.run_state import check_same_recipe
from qrag_retriever.training.sampling import Task
from qrag_retriever.training.stages import Stage
from qrag_retriever.training.trainer import Trainer

# Samples looked at for the means; more would keep the reader waiting.
_LOOKED_AT = 32
_TIMED_UPDATES = 3


def describe(trainer: Trainer, resume: bool = False) -> str:
    """Describe a run; carries out a few updates on the loaded copy to time them, and writes nothing.

    Args:
        trainer: Not used for training afterwards.
        resume: Whether the run would go on from a checkpoint, if there is one.
    """
    return "\n".join([*_model(trainer), *_data(trainer), *_cost(trainer), *_output(trainer, resume)]) + "\n"


def _output(trainer: Trainer, resume: bool) -> Iterator[str]:
    folder = RunFolder(trainer.output)
    if folder.path.exists() and not folder.path.is_dir():
        yield f"output: {folder.path} is no folder; the run would be refused"
    elif folder.holds_run:
        yield f"output: {folder.path} holds a run; {_what_becomes(trainer, folder, resume)}"
    else:
        yield f"output: {folder.path}" + ("; no run to go on with, so a new one would begin" if resume else "")
    for warning in trainer.warnings:
        yield f"warning: {warning}"


def _what_becomes(trainer: Trainer, folder: RunFolder, resume: bool) -> str:
    if not resume:
        return "without --resume this one would be refused"
    checkpoint = newest_checkpoint(folder.path)
    try:
        if folder.report.is_file() and folder.has_model:
            check_same_recipe(folder.read_report()["recipe"], trainer.recipe)
            return "it is finished, so nothing would be done"
        if checkpoint is None:
            return "it has left no checkpoint, so a new one would begin"
        check_same_recipe(read_checkpoint(checkpoint, trainer.processes).shared["recipe"], trainer.recipe)
    except (CheckpointError, OSError, ValueError) as error:
        return f"this one would be refused: {error}"
    return f"this one would go on from {checkpoint}"


def _model(trainer: Trainer) -> Iterator[str]:
    pair, settings = trainer.pair, trainer.recipe.model
    trainable = sum(weight.numel() for weight in pair.trainable().values())
    encoders = (pair.state_encoder, pair.action_encoder)
    weights = {id(weight): weight.numel() for encoder in encoders for weight in encoder.model.parameters()}
    yield f"model: {settings.encoder}, {settings.num_layers or 'all'} layers, dimension {pair.config.dim}"
    yield f"  {trainable / 1e6:.1f} M weights are trained, of {sum(weights.values()) / 1e6:.1f} M in both encoders"
    yield f"  positions {pair.config.positions}, output_scale {pair.config.output_scale:.4g}, device {pair.device}"


def _data(trainer: Trainer) -> Iterator[str]:
    yield "data:"
    for task in trainer.mixture.tasks:
        yield f"  {task.source.name}: {len(task.numbers):,} questions, weight {task.weight:g}"
        yield from _means(trainer, task)
    yield f"  validation: {len(trainer.validation):,} questions"
    for reason, count in trainer.mixture.skipped.items():
        yield f"  skipped: {count} of the samples looked at, because {reason}"


def _means(trainer: Trainer, task: Task) -> Iterator[str]:
    random = np.random.default_rng(0)
    numbers = random.permutation(task.numbers)[:_LOOKED_AT]
    episodes = [task.episode(int(number), random) for number in numbers]
    tokens = [
        sum(map(len, trainer.pair.action_encoder.tokenize(sample.chunks)[0])) / len(sample.chunks)
        for sample, _ in episodes[:8]
    ]
    facts = [len(sample.supporting) for sample, _ in episodes if sample.supporting is not None]
    yield (
        f"    {np.mean([len(sample.chunks) for sample, _ in episodes]):.0f} chunks a document, "
        f"{np.mean(tokens):.0f} tokens a chunk, {np.mean(facts) if facts else 0:.1f} facts, "
        f"{np.mean([limit for _, limit in episodes]):.1f} picks an episode (means of {len(episodes)})"
    )


def _cost(trainer: Trainer) -> Iterator[str]:
    recipe = trainer.recipe
    total, not_timed = 0.0, ""
    yield "updates:"
    for stage in trainer.stages:
        if stage.name == "pqn" and recipe.reward.kind == "llm":
            yield f"  {stage.name}: {stage.num_updates:,} updates; not timed, because each asks the language model"
            not_timed = " without what asks the language model"
            continue
        first, usual = update_seconds(trainer, stage)
        refreshes = stage.num_updates / recipe.run.refresh_updates
        seconds = stage.num_updates * usual + refreshes * max(0.0, first - usual)
        total += seconds
        yield f"  {stage.name}: {stage.num_updates:,} updates of about {usual:.2f} s: {_duration(seconds)}"
    if len(trainer.validation) and not not_timed:
        seconds = _validation_seconds(trainer)
        times = 1 + sum(-(-stage.num_updates // recipe.run.evaluate_updates) for stage in trainer.stages)
        total += times * seconds
        yield f"  validation: {times:,} times, about {_duration(seconds)} each"
    yield f"estimate: {_duration(total)}{not_timed}, on this machine"
    yield f"memory: {_memory(trainer.pair.device)}"


def update_seconds(trainer: Trainer, stage: Stage) -> tuple[float, float]:
    """Time a few updates of a stage: the first, which embeds the era's chunks, and the quickest of the next.

    Args:
        trainer: Not used for training afterwards.
        stage: One of its stages.
    """
    # Where an era begins.
    trainer.state.step = 0
    stage.begin()
    first, *later = [trainer.one_update(stage) for _ in range(_TIMED_UPDATES)]
    return first, min(later)


def _validation_seconds(trainer: Trainer) -> float:
    """Time picking for a few questions; the rest of a validation is quick."""
    some = trainer.validation.episodes[:: -(-len(trainer.validation) // _LOOKED_AT)]
    start = time.perf_counter()
    greedy_picks(trainer.pair, some)
    return (time.perf_counter() - start) * len(trainer.validation) / len(some)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _memory(device: torch.device) -> str:
    """Say the most memory that this process has had in the updates that were timed."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB on the device"
    peak = peak_memory_mb()
    return "not known on this system" if peak is None else f"{peak / 1024:.1f} GiB"

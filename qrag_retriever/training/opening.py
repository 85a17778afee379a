"""What a recipe names, opened: data sources and the reward."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever.errors import DataError, RecipeError
from qrag_retriever.training.data import JsonLines, SampleSource
from qrag_retriever.training.datasets import SOURCES, TRAINING_ONLY, open_source
from qrag_retriever.training.datasets.passages import PassagesAsDocument
from qrag_retriever.training.recipe import DataSettings, Recipe, RewardSettings
from qrag_retriever.training.rewards import AnswerContainedReward, LLMAnswerReward, Reward, SupportingFactsReward
from qrag_retriever.training.rewards.asking import make_llm
from qrag_retriever.training.sampling import Task, held_out

# Of a user's own questions, where the recipe names no validation file.
_VALIDATION_SHARE = 0.1
_CHUNK_TOKENS = "chunk_tokens"


def open_tasks(
    recipe: Recipe, data_folder: Path | None, recipe_folder: Path, chunking: Mapping[str, Any]
) -> tuple[list[Task], list[Task]]:
    """Open the sources of training and of validation.

    Args:
        recipe: Names them.
        data_folder: Where data sets lie.
        recipe_folder: What paths of .jsonl files are relative to.
        chunking: ``chunk_tokens`` and ``count_tokens`` of `JsonLines`, for long documents; the recipe's options go
            before.

    Returns:
        Training tasks and validation tasks.

    Raises:
        RecipeError: If a source is not known, or an option does not belong to it.
        DataError: If a file is missing or wrong.
    """
    training, validation = [], []
    places = data_folder, recipe_folder, chunking, recipe.run.seed
    for settings in recipe.data:
        own, cut = _open(settings, "train", *places, with_validation=not recipe.validation)
        training.append(own)
        if cut is not None:
            validation.append(cut)
    for settings in recipe.validation:
        validation.append(_open(settings, "validation", *places, with_validation=False)[0])
    return training, validation


def _open(
    settings: DataSettings, split: Any, data_folder: Path | None, recipe_folder: Path,
    chunking: Mapping[str, Any], seed: int, with_validation: bool,
) -> tuple[Task, Task | None]:  # fmt: skip
    if settings.source.endswith(".jsonl"):
        return _open_file(settings, recipe_folder, chunking, seed, with_validation)
    if settings.source not in SOURCES:
        raise RecipeError(
            f"there is no source {settings.source!r}: expected a .jsonl file or one of {', '.join(SOURCES)}"
        )
    if settings.source in TRAINING_ONLY and (settings.split or split) != "train":
        raise RecipeError(f"{settings.source} makes up questions for training only; validate with the real ones")
    if settings.mode == "corpus":
        raise RecipeError(f"the data set {settings.source} has its own mode; leave out mode = 'corpus'")
    if data_folder is None:
        raise RecipeError(f"the source {settings.source!r} lies in a data folder; name it with --data DIR")
    dataset = _dataset(settings, settings.split or split, data_folder)
    task = _task(settings, dataset, np.arange(len(dataset)), seed)
    if not with_validation or settings.source in TRAINING_ONLY:
        return task, None
    held = _dataset(settings, "validation", data_folder)
    return task, _task(settings, held, np.arange(len(held)), seed, for_validation=True)


def _open_file(
    settings: DataSettings, recipe_folder: Path, chunking: Mapping[str, Any], seed: int, with_validation: bool
) -> tuple[Task, Task | None]:
    if settings.split is not None:
        raise RecipeError(f"{settings.source} has no splits; leave out split, or name another file in [[validation]]")
    if unknown := sorted(settings.options.keys() - {_CHUNK_TOKENS}):
        raise RecipeError(
            f"options of {settings.source}: {unknown[0]!r} is not known; a .jsonl file has {_CHUNK_TOKENS}"
        )
    try:
        source = JsonLines(
            recipe_folder / settings.source, mode=settings.mode or "document", **{**chunking, **settings.options}
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise RecipeError(f"options of {settings.source}: {error}") from error
    if not with_validation:
        return _task(settings, source, np.arange(len(source)), seed), None
    questions, documents = source.hashes()
    chosen = held_out(questions, documents, _VALIDATION_SHARE)
    kept, cut = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return _task(settings, source, kept, seed), _task(settings, source, cut, seed, for_validation=True)


def _dataset(settings: DataSettings, split: Any, folder: Path) -> SampleSource:
    if taken := sorted(settings.options.keys() & {"name", "folder", "split"}):
        raise RecipeError(f"options of {settings.source}: {taken[0]!r} is none of them; it stands beside source")
    try:
        source = open_source(settings.source, folder, split, **settings.options)
    except TypeError as error:
        raise RecipeError(f"options of {settings.source}: {error}") from error
    if settings.mode is None:
        return source
    try:
        return PassagesAsDocument(source)
    except DataError:
        raise
    except ValueError as error:
        raise RecipeError(f"{error}; leave out mode = 'document'") from error


def _task(
    settings: DataSettings, source: SampleSource, numbers: np.ndarray, seed: int, for_validation: bool = False
) -> Task:
    if settings.max_samples is not None and not for_validation:
        numbers = np.sort(np.random.default_rng(seed).permutation(numbers)[: settings.max_samples])
    limit = settings.step_limit or getattr(source, "default_step_limit", None)
    if for_validation:
        return Task(source, numbers, settings.weight, limit)
    return Task(source, numbers, settings.weight, limit, settings.withhold_supporting)


def open_reward(settings: RewardSettings) -> Reward:
    """Make the reward that a recipe names.

    Raises:
        RecipeError: If the LLM cannot be imported, or none is named.
    """
    if settings.kind == "supporting_facts":
        return SupportingFactsReward(
            settings.completion_reward, settings.per_fact_reward, settings.penalize_extra_steps, settings.terminate
        )
    if settings.kind == "answer_contained":
        return AnswerContainedReward(
            settings.completion_reward, settings.penalize_extra_steps, terminate=settings.terminate
        )
    try:
        return LLMAnswerReward(
            make_llm(settings.llm or ""),
            settings.judge,
            batch_size=settings.batch_size,
            every_step=settings.every_step,
            penalize_extra_steps=settings.penalize_extra_steps,
            reward=settings.completion_reward,
            terminate=settings.terminate,
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"reward.llm: {error}") from error

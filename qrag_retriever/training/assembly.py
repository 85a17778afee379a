"""The parts that a recipe asks for: networks with their chunk caches, and the stages that train them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from qrag_retriever.devices import choose_dtype
from qrag_retriever.errors import RecipeError
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import Sample
from qrag_retriever.training.networks import Targets, TrainedPair
from qrag_retriever.training.pqn import PQNLearner
from qrag_retriever.training.processes import Processes
from qrag_retriever.training.recipe import Recipe
from qrag_retriever.training.rewards import Reward, SupportingFactsReward
from qrag_retriever.training.sampling import Mixture
from qrag_retriever.training.stages import PQNStage, Stage, WarmStartStage
from qrag_retriever.training.starting_point import StartingPoint
from qrag_retriever.training.warm_start import WarmStart

# Of a document, to see how large embeddings are.
_CHUNKS_FOR_SCALE = 32


@dataclass(frozen=True)
class Networks:
    """What is trained, and the embeddings that are kept of it.

    Attributes:
        pair: The encoders and their targets.
        caches: Chunk embeddings of an era: ``cache`` of the live action encoder, ``target_cache`` of its target where
            values look at that.
        log_temperature: Logarithm of the cross-entropy's temperature, trained along.
    """

    pair: TrainedPair
    caches: dict[str, ChunkCache]
    log_temperature: torch.nn.Parameter


def build_networks(recipe: Recipe, start: StartingPoint, samples: Sequence[Sample], device: str) -> Networks:
    """Build the networks of a run.

    Args:
        recipe: The settings.
        start: Encoders that training starts from.
        samples: A few of the training data: where the recipe gives no ``output_scale``, embeddings are scaled by them.
        device: Only decides the number format of the arithmetic.
    """
    questions = [sample.question for sample in samples]
    start = start.scaled(questions, [text for sample in samples for text in sample.chunks[:_CHUNKS_FOR_SCALE]])
    model = recipe.model
    pair = TrainedPair(
        start.config,
        *start.encoders(),
        model.frozen,
        targets=_targets(recipe),
        compute_dtype=choose_dtype(recipe.run.dtype, device),
        dropout=max(model.dropout, model.lora.dropout if model.lora else 0.0),
        plain_batches=recipe.run.plain_batches,
    )
    new_cache = partial(ChunkCache, dim=pair.config.dim, device=pair.device, repeats=recipe.run.plain_batches)
    caches = {"cache": new_cache(pair.embed_chunks)}
    if pair.targets == "both":
        caches["target_cache"] = new_cache(partial(pair.embed_chunks, target=True))
    temperature = torch.tensor(math.log(recipe.warm_start.start_temperature), device=pair.device)
    return Networks(pair, caches, torch.nn.Parameter(temperature))


def build_stages(
    recipe: Recipe, networks: Networks, reward: Reward, mixture: Mixture, processes: Processes
) -> list[Stage]:
    """Build the stages of a run, in their order.

    Raises:
        RecipeError: If there is none.
    """
    pair, cache, seed = networks.pair, networks.caches["cache"], recipe.run.seed
    stages: list[Stage] = []
    # Any other reward with a warm start has been refused.
    if recipe.warm_start.num_updates and isinstance(reward, SupportingFactsReward):
        own = processes.share(recipe.warm_start.samples_per_update, "warm_start.samples_per_update")
        warm_start = WarmStart(
            pair, cache, reward, mixture.draw, recipe.warm_start, recipe.pqn.gamma, networks.log_temperature,
            recipe.pqn.twin_heads,
        )  # fmt: skip
        streams = [np.random.default_rng([seed, 1, i]) for i in own]
        stages.append(WarmStartStage(warm_start, recipe.warm_start, streams))
    if recipe.pqn.num_updates:
        own = processes.share(recipe.pqn.num_envs, "pqn.num_envs")
        learner = PQNLearner(
            pair, cache, networks.caches.get("target_cache"), reward, recipe.pqn, networks.log_temperature
        )
        streams = [np.random.default_rng([seed, 2, i]) for i in own]
        stages.append(PQNStage(learner, pair, recipe.pqn, reward, mixture, streams))
    if not stages:
        raise RecipeError("nothing to do: warm_start.num_updates and pqn.num_updates are both 0")
    return stages


def check_facts(recipe: Recipe, reward: Reward) -> None:
    """Raise `RecipeError` unless annotated facts are there for what goes by them."""
    if not isinstance(reward, SupportingFactsReward):
        if recipe.warm_start.num_updates:
            raise RecipeError(
                "a warm start imitates annotated facts, and the reward does not go by them; "
                "set warm_start.num_updates = 0, or reward.kind = 'supporting_facts'"
            )
        return
    for number, settings in enumerate(recipe.data):
        if settings.withhold_supporting:
            raise RecipeError(
                f"data.{number}.withhold_supporting keeps the facts from a reward that goes by them; set it to false, "
                "or reward.kind = 'answer_contained' or 'llm', with warm_start.num_updates = 0"
            )


def _targets(recipe: Recipe) -> Targets:
    if not recipe.pqn.targets or not recipe.pqn.num_updates:
        return "none"
    return "both" if recipe.pqn.target_chunks == "encoder" else "state"

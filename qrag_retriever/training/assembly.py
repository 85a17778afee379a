"""The parts that a recipe asks for: networks with their chunk caches, stages, loss and optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from qrag_retriever.devices import choose_dtype
from qrag_retriever.encoders import ActionEncoder
from qrag_retriever.errors import RecipeError
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import JsonLines, Sample
from qrag_retriever.training.networks import Targets, TrainedPair
from qrag_retriever.training.pqn import PQNLearner
from qrag_retriever.training.processes import Processes
from qrag_retriever.training.recipe import OptimizerSettings, Recipe
from qrag_retriever.training.rewards import Reward, SupportingFactsReward
from qrag_retriever.training.rewards.base import why_unusable
from qrag_retriever.training.sampling import Mixture, Task
from qrag_retriever.training.stages import PQNStage, Stage, WarmStartStage
from qrag_retriever.training.starting_point import StartingPoint
from qrag_retriever.training.timing import Stopwatch
from qrag_retriever.training.validation import Validation
from qrag_retriever.training.warm_start import WarmStart

# Of a document, to see how large embeddings are.
_CHUNKS_FOR_SCALE = 32
# Questions of a source, to see whether the reward can judge any.
_LOOKED_AT = 8


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


class StageLoss(torch.nn.Module):
    """The loss of an update as a module, so that DistributedDataParallel sees one forward pass for one backward."""

    def __init__(self, pair: TrainedPair, log_temperature: torch.nn.Parameter) -> None:
        super().__init__()
        self.pair = pair
        self.encoders = torch.nn.ModuleList([pair.state_encoder.model, pair.action_encoder.model])
        self.log_temperature = log_temperature

    def forward(self, stage: Stage, update: int, watch: Stopwatch, figures: dict[str, float]) -> torch.Tensor:
        """Return the loss of an update of a stage; its figures are added to ``figures``."""
        with self.pair.one_update():
            loss, found = stage.loss(update, watch)
        figures.update(found)
        # Every weight must take part in every update, also the temperature that only the imitation uses.
        return loss + 0.0 * self.log_temperature


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
    # A pair that was only added up is measured, and kept with its values to stop at.
    only_blended = bool(recipe.model.blend) and not recipe.pqn.num_updates
    # Any other reward with a warm start has been refused.
    if (recipe.warm_start.num_updates or only_blended) and isinstance(reward, SupportingFactsReward):
        own = processes.share(recipe.warm_start.samples_per_update, "warm_start.samples_per_update")
        warm_start = WarmStart(
            pair, cache, reward, mixture.draw, recipe.warm_start, recipe.pqn.gamma, networks.log_temperature,
            recipe.pqn.twin_heads,
        )  # fmt: skip
        streams = [np.random.default_rng([seed, 1, i]) for i in own]
        stages.append(WarmStartStage(warm_start, recipe.warm_start, streams))
    if recipe.pqn.num_updates:
        own = processes.share(recipe.pqn.num_envs, "pqn.num_envs")
        by_facts = isinstance(reward, SupportingFactsReward)
        learner = PQNLearner(
            pair, cache, networks.caches.get("target_cache"), reward, recipe.pqn,
            networks.log_temperature if by_facts else None,
        )  # fmt: skip
        streams = [np.random.default_rng([seed, 2, i]) for i in own]
        stages.append(PQNStage(learner, pair, recipe.pqn, reward, mixture, streams))
    if not stages:
        raise RecipeError(
            "nothing to do: warm_start.num_updates and pqn.num_updates are both 0, and no pair is blended"
        )
    return stages


def build_optimizer(settings: OptimizerSettings, networks: Networks) -> torch.optim.Optimizer:
    """Build the optimiser of a stage; the stage sets its learning rate at every update."""
    groups: list[dict[str, Any]] = [
        {"params": list(networks.pair.trainable().values())},
        # Decay would draw the temperature to 1.
        {"params": [networks.log_temperature], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=0.0,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=networks.pair.device.type in ("cpu", "cuda"),
    )


def check_facts(recipe: Recipe, reward: Reward) -> None:
    """Raise `RecipeError` unless annotated facts are there for what goes by them."""
    if not isinstance(reward, SupportingFactsReward):
        if recipe.warm_start.num_updates:
            raise RecipeError(
                "a warm start imitates annotated facts, and the reward does not go by them; "
                "set warm_start.num_updates = 0, or reward.kind = 'supporting_facts'"
            )
        # A recipe that was written out has the default too.
        if recipe.pqn.imitation_weight not in (0.0, type(recipe.pqn).model_fields["imitation_weight"].default):
            raise RecipeError(
                "pqn.imitation_weight is for annotated facts, and the reward does not go by them; leave it out, or set "
                "reward.kind = 'supporting_facts'"
            )
        return
    for number, settings in enumerate(recipe.data):
        if settings.withhold_supporting:
            raise RecipeError(
                f"data.{number}.withhold_supporting keeps the facts from a reward that goes by them; set it to false, "
                "or reward.kind = 'answer_contained' or 'llm', with warm_start.num_updates = 0"
            )


def warnings_of(drawn: Sequence[tuple[Sample, int]], validation: Validation, action: ActionEncoder) -> Iterator[str]:
    """Say what a recipe asks for that nobody can want.

    Args:
        drawn: Some samples of the training data with their step limits.
        validation: With all of its questions.
        action: Tells how long a chunk may be.
    """
    if not len(validation):
        yield (
            "no question is left for validation, so the last model is kept and has no calibrated min_q; name a file "
            "in [[validation]]"
        )
    looked_at = [*drawn, *validation.episodes]
    too_many = sum(len(sample.supporting or ()) > limit for sample, limit in looked_at)
    if too_many:
        yield (
            f"{too_many} of the {len(looked_at)} questions looked at have more evidence than they get picks, and can "
            f"never be complete; set a larger step_limit where the source is named"
        )
    cut = sum(bool(action.tokenize([sample.chunks[i] for i in sample.supporting or ()])[1]) for sample, _ in looked_at)
    if cut:
        yield (
            f"the evidence of {cut} of the {len(looked_at)} questions looked at is longer than "
            f"{action.content_limit} tokens, of which only the beginning is embedded; split chunks smaller, or set a "
            "larger model.max_chunk_tokens"
        )


def warnings_of_sources(training: Sequence[Task], validation: Sequence[Task], reward: Reward) -> Iterator[str]:
    """Say which sources give nothing to learn from, and which questions are on both sides of a user's own files.

    Args:
        training: What is drawn from.
        validation: What is measured on.
        reward: Says which samples it cannot judge.
    """
    for task in training:
        numbers = task.numbers[:_LOOKED_AT].tolist()
        reasons = [why_unusable(reward, task.episode(n, np.random.default_rng([n]))[0]) for n in numbers]
        if all(reasons):
            yield (
                f"none of the {len(reasons)} questions of {task.source.name} that were looked at can be judged by the "
                f"reward; the last one because {reasons[-1]}"
            )
    both = np.intersect1d(_pairs(training), _pairs(validation))
    if len(both):
        yield (
            f"{len(both)} questions of the validation are among those of the training, over the same chunks; what is "
            "measured on them is what was learned by heart. Take them out of one of the files"
        )


def _pairs(tasks: Sequence[Task]) -> np.ndarray:
    """Return a hash of question and chunks together, of every question of the .jsonl files."""
    own = [task.source.hashes()[:, task.numbers] for task in tasks if isinstance(task.source, JsonLines)]
    questions, documents = np.concatenate([np.zeros((2, 0), np.uint64), *own], axis=1)
    pairs: np.ndarray = questions * np.uint64(0x9E3779B97F4A7C15) + documents
    return pairs


def _targets(recipe: Recipe) -> Targets:
    if not recipe.pqn.targets or not recipe.pqn.num_updates:
        return "none"
    return "both" if recipe.pqn.target_chunks == "encoder" else "state"

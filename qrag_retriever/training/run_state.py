"""What a run goes on from, and its way into a checkpoint and out of it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qrag_retriever.errors import CheckpointError
from qrag_retriever.training.checkpoint import Checkpoint
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import JsonLines, SampleSource
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.recipe import Recipe
from qrag_retriever.training.sampling import Mixture
from qrag_retriever.training.stages import Stage

# They decide where and how often things are written, not what weights come out.
_FREE_SETTINGS = ("output", "checkpoint_minutes", "tensorboard", "device")


class RunState:
    """All that the next update depends on besides recipe and data.

    Attributes:
        step: Updates done, over all stages.
        history: Figures of every validation so far.
        best: Of these, the one whose model is kept; its ``step`` is -1 before the first.
    """

    def __init__(
        self,
        recipe: Recipe,
        pair: TrainedPair,
        log_temperature: torch.nn.Parameter,
        caches: Mapping[str, ChunkCache],
        mixture: Mixture,
        sources: Sequence[SampleSource],
    ) -> None:
        """Begin a run.

        Args:
            recipe: The settings.
            pair: The networks and their targets.
            log_temperature: Logarithm of the cross-entropy's temperature, trained along.
            caches: Chunk embeddings, by name.
            mixture: Where samples are drawn from.
            sources: Of training and validation; a run does not go on with other files than it began with.
        """
        self._sources = sources
        self._recipe, self._pair, self._log_temperature = recipe, pair, log_temperature
        self._caches, self._mixture = caches, mixture
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any]
        self.forget_best()
        self._spent_before = {"seconds": 0.0, "processor_seconds": 0.0}
        self.start_clock()

    def forget_best(self) -> None:
        """Let the next validation be the best."""
        self.best = {"score": -math.inf, "step": -1, "figures": {}}

    def start_clock(self) -> None:
        """Count the time of the run from now on."""
        self._begun = _clocks()

    def spent(self) -> dict[str, float]:
        """Return the seconds of the run, those before it was resumed included: by the clock, and of the processor.

        From the call of ``fit`` on: opening data and encoders is not in them. Processor seconds are those of this
        process, one of the run's, on all cores together.
        """
        return {name: self._spent_before[name] + now - self._begun[name] for name, now in _clocks().items()}

    def checkpoint(
        self, number: int, done: int, stage: Stage, optimizer: torch.optim.Optimizer, num_processes: int
    ) -> Checkpoint:
        """Gather the state.

        Args:
            number: Of the stage.
            done: Updates of the stage that are done.
            stage: The stage.
            optimizer: Its optimizer.
            num_processes: Of the run.
        """
        tensors: dict[str, torch.Tensor] = {f"weight/{k}": v.data for k, v in self._pair.trainable().items()}
        tensors.update({f"target/{k}": v for k, v in self._pair.target_weights().items()})
        tensors["log_temperature"] = self._log_temperature.data
        for index, moments in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{index}/{name}": value for name, value in moments.items()})
        own: dict[str, Any] = {
            "stage": stage.state(), "skipped": self._mixture.skipped_samples(), "spent": self.spent(),
        }  # fmt: skip
        own_tensors = random_states(self._pair.device)
        for name, cache in self._caches.items():
            own[name], own_tensors[name] = cache.state()
        shared = {
            "recipe": self._recipe.model_dump(mode="json"),
            "num_processes": num_processes,
            "data": self._data_checksums(),
            "output_scale": self._pair.config.output_scale,
            "stage": number,
            "done": done,
            "step": self.step,
            "best": self.best,
            "history": self.history,
        }
        return Checkpoint(shared, tensors, own, own_tensors)

    def _data_checksums(self) -> list[list[Any]]:
        """Return name and checksum of the user's own files."""
        return [[source.path.name, source.checksum] for source in self._sources if isinstance(source, JsonLines)]

    def restore_shared(self, checkpoint: Checkpoint) -> int:
        """Take over weights, targets and history; returns the number of the stage to go on with.

        Raises:
            CheckpointError: If it is of another recipe, model or data.
        """
        shared, tensors = checkpoint.shared, checkpoint.tensors
        try:
            check_same_recipe(shared["recipe"], self._recipe)
            if changed := [name for name, checksum in self._data_checksums() if [name, checksum] not in shared["data"]]:
                raise CheckpointError(
                    f"{changed[0]} has changed since the checkpoint was written; put back what it was, or start anew "
                    "with another run.output"
                )
            # Another device may round it otherwise.
            if not math.isclose(shared["output_scale"], self._pair.config.output_scale, rel_tol=1e-3):
                raise CheckpointError(
                    "the data or the encoder has changed since the checkpoint was written: the scale of embeddings is "
                    f"{self._pair.config.output_scale:.6g} and was {shared['output_scale']:.6g}; start anew with "
                    "another run.output"
                )
            with torch.no_grad():
                for name, weight in self._pair.trainable().items():
                    weight.copy_(tensors[f"weight/{name}"])
                for name, target in self._pair.target_weights().items():
                    target.copy_(tensors[f"target/{name}"])
                self._log_temperature.copy_(tensors["log_temperature"])
            self.step, self.best, self.history = shared["step"], shared["best"], shared["history"]
            self._spent_before = {name: float(checkpoint.own["spent"][name]) for name in self._spent_before}
            self._mixture.restore_skipped(checkpoint.own["skipped"])
            self._mixture.era = (self.step - 1) // self._recipe.run.refresh_updates if self.step else 0
            return int(shared["stage"])
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this recipe's model or data: {error}") from error

    def restore_stage(self, stage: Stage, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> int:
        """Take over optimizer, random streams, chunk embeddings and episodes; returns the stage's updates done.

        Raises:
            CheckpointError: If something is missing or does not fit.
        """
        try:
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in checkpoint.tensors.items():
                kind, _, rest = key.partition("/")
                if kind == "optimizer":
                    index, _, name = rest.partition("/")
                    moments.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
            set_random_states(checkpoint.own_tensors, self._pair.device)
            for name, cache in self._caches.items():
                cache.restore(checkpoint.own[name], checkpoint.own_tensors[name])
            stage.restore(checkpoint.own["stage"])
            return int(checkpoint.shared["done"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint cannot be restored: {error}") from error


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return torch's random states, of the processor and of the device."""
    states = {"torch_random": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda_random"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps_random"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Set torch's random states to what `random_states` returned, on whatever device that was."""
    torch.set_rng_state(states["torch_random"])
    if "cuda_random" in states:
        torch.cuda.set_rng_state(states["cuda_random"], device)
    if "mps_random" in states:
        torch.mps.set_rng_state(states["mps_random"])


def check_same_recipe(stored: dict[str, Any], recipe: Recipe) -> None:
    """Raise `CheckpointError` unless two recipes agree in everything that decides weights."""
    now, stored = recipe.model_dump(mode="json"), copy.deepcopy(stored)
    for settings in (stored, now):
        for key in _FREE_SETTINGS:
            settings["run"].pop(key, None)
    differing = [
        f"{group}.{key}"
        for group in now
        if isinstance(now[group], dict)
        for key in now[group]
        if stored.get(group, {}).get(key) != now[group][key]
    ]
    differing += [group for group in ("data", "validation") if stored.get(group) != now[group]]
    if differing:
        raise CheckpointError(
            f"the run in the output folder has other settings ({', '.join(differing)}); "
            "resume with the recipe it was started with, or name another run.output"
        )


def _clocks() -> dict[str, float]:
    return {"seconds": time.perf_counter(), "processor_seconds": time.process_time()}

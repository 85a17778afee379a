"""The two stages of a run, warm start and PQN, behind one interface: a loss per update, and a state to resume from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from qrag_retriever.training.environment import VectorEnv
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.pqn import PQNLearner
from qrag_retriever.training.recipe import PQNSettings, WarmStartSettings
from qrag_retriever.training.rewards.base import Reward
from qrag_retriever.training.sampling import Mixture
from qrag_retriever.training.schedules import imitation_weight, learning_rate_factor, temperature
from qrag_retriever.training.timing import Stopwatch
from qrag_retriever.training.warm_start import WarmStart


class Stage(Protocol):
    """One stage of a run."""

    name: str
    num_updates: int
    accumulate: int
    patience_updates: int | None

    def begin(self) -> None:
        """Prepare the first update of the stage; not called when a stage is resumed."""
        ...

    def loss(self, update: int, watch: Stopwatch) -> tuple[torch.Tensor, dict[str, float]]:
        """Make the loss of an update (or of one part of it, where gradients are accumulated)."""
        ...

    def learning_rate(self, update: int) -> float:
        """Return the learning rate of an update."""
        ...

    def after(self, update: int) -> None:
        """Do what follows the optimiser's step."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what continues the stage, in JSON types."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


class WarmStartStage:
    """Imitation of annotated facts."""

    name = "warm_start"
    accumulate = 1

    def __init__(
        self, warm_start: WarmStart, settings: WarmStartSettings, streams: Sequence[np.random.Generator]
    ) -> None:
        """Take the loss and this process's streams, one per sample of an update."""
        self._warm_start, self._settings = warm_start, settings
        self._streams = list(streams)
        self.num_updates, self.patience_updates = settings.num_updates, settings.patience_updates

    def begin(self) -> None:
        """Nothing to prepare."""

    def loss(self, update: int, watch: Stopwatch) -> tuple[torch.Tensor, dict[str, float]]:
        """Make the loss of an update."""
        return self._warm_start.loss(self._streams, watch)

    def learning_rate(self, update: int) -> float:
        """Return the learning rate of an update."""
        settings = self._settings
        warmup = min(settings.warmup_updates, self.num_updates)
        return settings.learning_rate * learning_rate_factor(
            update + 1, warmup, self.num_updates, ratio=settings.end_share
        )

    def after(self, update: int) -> None:
        """Nothing follows: there are no values to hold still for, so targets need not keep up."""

    def state(self) -> dict[str, Any]:
        """Return the streams."""
        return {"streams": stream_states(self._streams)}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the streams."""
        set_streams(self._streams, state["streams"])


class PQNStage:
    """Value-based reinforcement learning."""

    name = "pqn"

    def __init__(
        self, learner: PQNLearner, pair: TrainedPair, settings: PQNSettings, reward: Reward, mixture: Mixture,
        streams: Sequence[np.random.Generator],
    ) -> None:  # fmt: skip
        """Take the learner and this process's streams, one per environment."""
        self._learner, self._pair, self._settings, self._reward = learner, pair, settings, reward
        self._mixture = mixture
        self._streams = list(streams)
        self._envs: VectorEnv | None = None
        self._watch = Stopwatch()
        self.num_updates, self.accumulate = settings.num_updates, settings.accumulate
        self.patience_updates: int | None = None

    def begin(self) -> None:
        """Let the targets start where the live encoders are."""
        self._pair.move_targets(1.0)

    def loss(self, update: int, watch: Stopwatch) -> tuple[torch.Tensor, dict[str, float]]:
        """Collect a rollout and make its loss."""
        settings, self._watch = self._settings, watch
        if self._envs is None:
            self._envs = VectorEnv(self._reward, len(self._streams), self._draw)
        alpha = self.alpha(update)
        fade = settings.imitation_fade_updates or self.num_updates
        weight = imitation_weight(update, settings.imitation_weight, fade)
        loss, figures = self._learner.loss(self._envs, self._streams, alpha, weight, watch)
        return loss, {**figures, "alpha": alpha}

    def alpha(self, update: int) -> float:
        """Return the temperature of an update."""
        settings = self._settings
        warmup = min(settings.warmup_updates, self.num_updates)
        return temperature(update, warmup, self.num_updates, settings.alpha, settings.alpha_end_share)

    def learning_rate(self, update: int) -> float:
        """Return the learning rate of an update."""
        settings = self._settings
        warmup = min(settings.warmup_updates, self.num_updates)
        return settings.learning_rate * learning_rate_factor(
            update + 1, warmup, self.num_updates, settings.schedule, settings.end_share
        )

    def after(self, update: int) -> None:
        """Move the targets."""
        self._pair.move_targets(self._settings.tau)

    def state(self) -> dict[str, Any]:
        """Return the streams and the running episodes."""
        envs = None if self._envs is None else self._envs.to_dict()
        return {"streams": stream_states(self._streams), "envs": envs}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the streams and go on with the episodes."""
        set_streams(self._streams, state["streams"])
        running = state["envs"]
        self._envs = None
        if running is not None:
            self._envs = VectorEnv(self._reward, len(self._streams), self._draw, running=running)

    def _draw(self, env: int) -> Any:
        with self._watch("draw"):
            return self._mixture.draw(self._streams[env])


def stream_states(streams: Sequence[np.random.Generator]) -> list[dict[str, Any]]:
    """Return the state of each random stream, in JSON types."""
    return [dict(stream.bit_generator.state) for stream in streams]


def set_streams(streams: Sequence[np.random.Generator], states: Sequence[dict[str, Any]]) -> None:
    """Set random streams to what `stream_states` returned.

    Raises:
        ValueError: If their number differs.
    """
    for stream, state in zip(streams, states, strict=True):
        stream.bit_generator.state = state

"""Pairs in training, made of the tiny random encoder; samples over its story; the public model of a pair."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from qrag_retriever import QRAGModel
from qrag_retriever.encoders import ActionEncoder, StateEncoder
from qrag_retriever.training.data import Sample
from qrag_retriever.training.networks import TrainedPair
from tests.conftest import QUESTION, STORY

# Settings of the pair's configuration and not of the training.
CONFIG = {"positions": "relative", "output_scale": 0.2, "normalize": False}


@functools.cache
def _loaded(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def tiny_pair(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> TrainedPair:
    """A pair of which all four networks differ, so that none can stand in for another; options of `TrainedPair`."""
    options = {"targets": "both", **options}
    state = copy.deepcopy(_loaded(folder))
    settings = QRAGModel.from_encoder(state, device="cpu", **{**CONFIG, **(config or {})}).config
    action = copy.deepcopy(state)
    pair = TrainedPair(settings, StateEncoder(state, settings), ActionEncoder(action, settings), **options)
    live, targets = pair.trainable(), pair.target_weights()
    # The keys' biases have no effect in an attention.
    shaken = [name for name in live if "attention" in name and not name.endswith("key.bias")]
    nudge([weight for name, weight in live.items() if name in shaken and name.startswith("action")], seed=1)
    nudge([weight for name, weight in targets.items() if name in shaken], seed=2)
    return pair


@torch.no_grad()
def nudge(weights: list[Any], seed: int, size: float = 0.02) -> None:
    """Add small random numbers to weights."""
    random = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(size * torch.randn(weight.shape, generator=random))


def public_model(pair: TrainedPair) -> QRAGModel:
    """What a user would load if the pair were saved as it is now."""
    return QRAGModel(pair.config, lambda: (pair.state_encoder.model, pair.action_encoder.model), device="cpu")


def story(number: int = 0, supporting: tuple[int, ...] | None = (0, 3), **fields: Any) -> Sample:
    """A sample over the story of conftest."""
    values = {"id": f"story-{number}", "question": QUESTION, "chunks": tuple(STORY), "supporting": supporting}
    return Sample(**{**values, **fields})

"""The pair that training starts from: any encoder, cut down and rescaled, or a pair that was trained before."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qrag_retriever.config import CONFIG_NAME, QRAGConfig
from qrag_retriever.default_model import MINILM, minilm_folder
from qrag_retriever.encoders import ActionEncoder, StateEncoder
from qrag_retriever.model import QRAGModel
from qrag_retriever.training.recipe import LoraSettings, ModelSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


def starting_encoders(
    settings: ModelSettings, questions: Sequence[str], chunks: Sequence[str], device: str
) -> tuple[QRAGConfig, StateEncoder, ActionEncoder]:
    """Load and prepare the encoders that training starts from.

    An encoder's Normalize module is dropped, because returns are no cosines, and ``output_scale`` is set so that the
    Q-values of the untrained pair are of the size of cosines all the same, which is the range of returns.

    Args:
        settings: Of the recipe.
        questions: Some questions of the training data, to measure the scale with.
        chunks: Some chunks of the training data.
        device: Where to put the weights.

    Returns:
        The configuration and two encoders that share no weights.
    """
    name = settings.encoder
    overrides: dict[str, Any] = {
        key: getattr(settings, key)
        for key in ("output_scale", "max_chunk_tokens", "max_chunk_tokens_in_state")
        if getattr(settings, key) is not None
    }
    if settings.trust_remote_code:
        overrides["trust_remote_code"] = True
    if (Path(name) / CONFIG_NAME).is_file():
        model = QRAGModel.from_pretrained(name, device="cpu", **overrides)
        state, action, config = model.state_encoder.model, model.action_encoder.model, model.config
    else:
        packaged = minilm_folder() if name == MINILM else None
        model = QRAGModel.from_encoder(
            packaged or name,
            num_layers=settings.num_layers,
            device="cpu",
            positions=settings.positions,
            state_order=settings.state_order,
            normalize=False,
            **overrides,
        )
        state = _without_normalize(model.state_encoder.model)
        action = copy.deepcopy(state)
        config = model.config
        if settings.output_scale is None:
            config = config.replaced(output_scale=1.0)
            scale = _scale(StateEncoder(state, config), ActionEncoder(action, config), questions, chunks)
            config = config.replaced(output_scale=scale)
    for encoder in (state, action):
        if settings.lora is not None:
            _add_lora(encoder, settings.lora)
        encoder.to(device)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = settings.dropout
    return config, StateEncoder(state, config), ActionEncoder(action, config)


def _add_lora(encoder: SentenceTransformer, settings: LoraSettings) -> None:
    """Put low-rank adapters into a transformer and freeze the rest."""
    from peft import LoraConfig, get_peft_model

    transformer: Any = encoder[0]
    transformer.auto_model = get_peft_model(
        transformer.auto_model,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target_modules,
        ),
    )


def merged_copy(encoder: SentenceTransformer) -> SentenceTransformer:
    """Return a copy on the CPU for saving, low-rank adapters merged into the weights."""
    merged: SentenceTransformer = copy.deepcopy(encoder).to("cpu").eval()
    transformer: Any = merged[0]
    if hasattr(transformer.auto_model, "merge_and_unload"):
        transformer.auto_model = transformer.auto_model.merge_and_unload()
    return merged


def _without_normalize(encoder: SentenceTransformer) -> SentenceTransformer:
    kept = [module for module in encoder if type(module).__name__ != "Normalize"]
    if len(kept) == len(encoder):
        return encoder
    from sentence_transformers import SentenceTransformer

    prompts: Any = encoder.prompts
    return SentenceTransformer(
        modules=kept, device="cpu", prompts=prompts, default_prompt_name=encoder.default_prompt_name
    )


def _scale(state: StateEncoder, action: ActionEncoder, questions: Sequence[str], chunks: Sequence[str]) -> float:
    """Return the factor that brings the mean length of embeddings to 1."""
    embeddings = [state.encode([(text, ()) for text in questions], False), action.encode(chunks, False)]
    lengths = [np.linalg.norm(part, axis=1).mean() for part in embeddings if len(part)]
    scale = float(1.0 / np.sqrt(np.prod(lengths) ** (2 / len(lengths))))
    logger.info("mean embedding lengths %s: output_scale %.4f", [round(float(length), 3) for length in lengths], scale)
    return scale

"""The pair that training starts from: any encoder, cut down and rescaled, or a pair that was trained before."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qrag_retriever.config import CONFIG_NAME, QRAGConfig
from qrag_retriever.encoders import ActionEncoder, StateEncoder, keep_layers
from qrag_retriever.errors import RecipeError
from qrag_retriever.model import QRAGModel
from qrag_retriever.training.recipe import BlendSettings, LoraSettings, ModelSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """The encoders that training starts from.

    Attributes:
        config: Of the pair; the scale is 1 until `scaled`.
        state: Embeds states.
        action: Embeds chunks; shares no weights with ``state``.
        is_scaled: Whether the scale is known: given by the recipe, or of a pair that was trained before.
    """

    config: QRAGConfig
    state: SentenceTransformer
    action: SentenceTransformer
    is_scaled: bool

    def encoders(self) -> tuple[StateEncoder, ActionEncoder]:
        """Return both encoders."""
        return StateEncoder(self.state, self.config), ActionEncoder(self.action, self.config)

    def scaled(self, questions: Sequence[str], chunks: Sequence[str]) -> StartingPoint:
        """Set ``output_scale`` so that the Q-values of the untrained pair are of the size of cosines.

        That is the range of returns. Returns are no cosines, though, so that embeddings may have any length.

        Args:
            questions: Some questions of the training data.
            chunks: Some chunks of the training data.
        """
        if self.is_scaled:
            return self
        state, action = self.encoders()
        embeddings = [state.encode([(text, ()) for text in questions], False), action.encode(chunks, False)]
        lengths = [np.linalg.norm(part, axis=1).mean() for part in embeddings]
        scale = float(1.0 / np.sqrt(np.prod(lengths)))
        logger.info("mean embedding lengths %s: output_scale %.4f", [round(float(n), 3) for n in lengths], scale)
        return replace(self, config=self.config.replaced(output_scale=scale), is_scaled=True)


def starting_point(settings: ModelSettings, device: str) -> StartingPoint:
    """Load the encoders that a recipe names.

    Args:
        settings: Of the recipe; the encoder is any sentence-transformers model, of which a Normalize module is dropped,
            or a Q-RAG model folder.
        device: Where to put the weights.

    Raises:
        RecipeError: If the encoder cannot be loaded, has no transformer to feed or too few layers, or if a Q-RAG model
            was trained with other positions, another order of picks in the state, or another normalisation.
        ModelFolderError: If a model folder is damaged.
    """
    overrides: dict[str, Any] = {
        key: getattr(settings, key)
        for key in ("stride", "output_scale", "max_chunk_tokens", "max_chunk_tokens_in_state")
        if getattr(settings, key) is not None
    }
    if (Path(settings.encoder) / CONFIG_NAME).is_file():
        config, state, action = _trained(settings, overrides)
        is_scaled = True
    else:
        config, state = _plain(settings, overrides)
        action, is_scaled = copy.deepcopy(state), settings.output_scale is not None
    for encoder in (state, action):
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = settings.dropout
        if settings.lora is not None:
            _add_lora(encoder, settings.lora)
        encoder.to(device)
    return StartingPoint(config, state, action, is_scaled)


def _trained(
    settings: ModelSettings, overrides: Mapping[str, Any]
) -> tuple[QRAGConfig, SentenceTransformer, SentenceTransformer]:
    """Load a trained pair, changed as the recipe says."""
    model = QRAGModel.from_pretrained(settings.encoder, device="cpu", **overrides)
    _check_same(settings, model.config)
    config = model.config.replaced(normalize=settings.normalize) if settings.normalize else model.config
    state, action = model.state_encoder.model, model.action_encoder.model
    for encoder in (state, action):
        if settings.num_layers is not None:
            keep_layers(encoder, settings.num_layers)
    for blend in settings.blend:
        _blend_pair((state, action), settings, blend)
    return config, state, action


def _blend_pair(
    pair: tuple[SentenceTransformer, SentenceTransformer], settings: ModelSettings, blend: BlendSettings
) -> None:
    """Change the weights of a trained pair as the recipe says, in place."""
    rest = 0.0 if blend.own_share is None else 1 - blend.own_share - blend.share
    parts = [(blend.encoder, blend.share)] + ([(blend.base, rest)] if blend.base is not None else [])
    loaded = [(name, _pair_or_plain(settings, name), share) for name, share in parts]
    for encoder, number in zip(pair, (0, 1), strict=True):
        own = _transformer(encoder).state_dict()
        weights = [(_same_weights(own, others[number], name), share) for name, others, share in loaded]
        for key, tensor in own.items():
            if tensor.is_floating_point():
                tensor.mul_(1 - blend.share - rest)
                for other, share in weights:
                    tensor.add_(other[key].to(tensor), alpha=share)


def _pair_or_plain(settings: ModelSettings, encoder: str) -> tuple[SentenceTransformer, SentenceTransformer]:
    """Load encoders whose weights are mixed in: both of a trained pair, or a plain one twice."""
    if (Path(encoder) / CONFIG_NAME).is_file():
        other = QRAGModel.from_pretrained(encoder, device="cpu")
        return other.state_encoder.model, other.action_encoder.model
    _, plain = _plain(settings.model_copy(update={"encoder": encoder, "blend": []}), {})
    return plain, plain


def _same_weights(own: Mapping[str, torch.Tensor], other: SentenceTransformer, name: str) -> dict[str, torch.Tensor]:
    """Return the weights of an encoder that has the same ones as a pair's."""
    weights: dict[str, torch.Tensor] = _transformer(other).state_dict()
    if {key: one.shape for key, one in own.items()} != {key: one.shape for key, one in weights.items()}:
        raise RecipeError(
            f"model.blend: {name!r} has other weights than the pair; name the encoder that it was trained from, and "
            "model.num_layers if it keeps fewer of its layers, or another pair trained from that"
        )
    return weights


def _plain(settings: ModelSettings, overrides: Mapping[str, Any]) -> tuple[QRAGConfig, SentenceTransformer]:
    """Load any encoder of sentence-transformers."""
    if settings.blend:
        raise RecipeError(
            f"model.blend is for a trained pair, and {settings.encoder!r} is a plain encoder; leave it out"
        )
    options = dict(overrides)
    if settings.trust_remote_code:
        options["trust_remote_code"] = True
    try:
        model = QRAGModel.from_encoder(
            settings.encoder,
            num_layers=settings.num_layers,
            device="cpu",
            positions=settings.positions,
            state_order=settings.state_order,
            normalize=settings.normalize,
            **options,
        )
    except (OSError, ValueError) as error:
        inside = Path(settings.encoder) / "model"
        hint = f"; did you mean {str(inside)!r}?" if (inside / CONFIG_NAME).is_file() else ""
        raise RecipeError(f"model.encoder {settings.encoder!r} cannot be loaded{hint}: {error}") from error
    return model.config, _without_normalize(model.state_encoder.model)


def _check_same(settings: ModelSettings, config: QRAGConfig) -> None:
    """Raise if the recipe asks for what a trained pair does not have, and cannot unlearn."""
    can_be_turned_on = not config.normalize and bool(settings.normalize)
    if can_be_turned_on and settings.output_scale is None:
        raise RecipeError(
            f"model.normalize gives the embeddings of {settings.encoder} another length than it was trained with; set "
            "model.output_scale too, so that Q-values keep their size"
        )
    for key in ("positions", "state_order", "normalize"):
        wanted, own = getattr(settings, key), getattr(config, key)
        if key in settings.model_fields_set and wanted != own and not (key == "normalize" and can_be_turned_on):
            raise RecipeError(
                f"model.{key} is {wanted!r}, but {settings.encoder} was trained with {own!r}; leave it out, or start "
                "from a plain encoder"
            )


def _add_lora(encoder: SentenceTransformer, settings: LoraSettings) -> None:
    """Put low-rank adapters into a transformer and freeze the rest."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
    )
    try:
        adapted = get_peft_model(_transformer(encoder), config)
    except ValueError as error:
        raise RecipeError(f"model.lora.target_modules {settings.target_modules!r}: {error}") from error
    _replace_transformer(encoder, adapted)


def _transformer(encoder: SentenceTransformer) -> Any:
    module: Any = encoder[0]
    return module.auto_model


def _replace_transformer(encoder: SentenceTransformer, transformer: torch.nn.Module) -> None:
    # Newer sentence-transformers keep it as ``model``, and ``auto_model`` only reads it.
    name = "model" if isinstance(getattr(type(encoder[0]), "auto_model", None), property) else "auto_model"
    setattr(encoder[0], name, transformer)


def merged_copy(encoder: SentenceTransformer) -> SentenceTransformer:
    """Return a copy on the CPU for saving, low-rank adapters merged into the weights."""
    merged: SentenceTransformer = copy.deepcopy(encoder).to("cpu").eval()
    transformer = _transformer(merged)
    if hasattr(transformer, "merge_and_unload"):
        _replace_transformer(merged, transformer.merge_and_unload())
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

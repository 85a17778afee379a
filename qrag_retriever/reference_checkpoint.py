"""Reads checkpoints in the format of the paper's own training code: ``model_last.pt`` and ``config.yaml``.

The file is read weights-only: no pickled code runs. Only the critic's two encoders are needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qrag_retriever.config import QRAGConfig
from qrag_retriever.errors import ModelFolderError
from qrag_retriever.safe_loading import MOST_LAYERS

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

WEIGHTS_NAME = "model_last.pt"
SETTINGS_NAME = "config.yaml"
# The paper's code divides the pooled embedding by 10.
OUTPUT_SCALE = 0.1
_PREFIXES = {"state": "state_embed.model.", "action": "action_embed.model.model."}


def is_reference_checkpoint(folder: Path) -> bool:
    """Tell whether a folder holds a checkpoint of the paper's code."""
    return (folder / WEIGHTS_NAME).is_file() and (folder / SETTINGS_NAME).is_file()


def read_config(folder: Path) -> QRAGConfig:
    """Translate the training settings into ours.

    Raises:
        ModelFolderError: If a needed setting is missing or of a kind that is not supported.
    """
    settings = _Settings(folder)
    positions = settings["envs.positions_processor"]
    if positions not in ("relative", "absolute", "none"):
        raise ModelFolderError(f"positions {positions!r} are not supported; known: 'relative', 'absolute', 'none'")
    try:
        return QRAGConfig(
            dim=settings["algo.model.predictor.input_dim"],
            positions=positions,
            stride=settings["envs.positions_processor_dict.relative.step_size"] if positions == "relative" else 20,
            pooling="mean",
            normalize=False,
            output_scale=OUTPUT_SCALE,
            state_order="document" if settings["envs.env.sort_by_index"] else "retrieved",
            max_chunk_tokens=settings["max_action_length"],
            max_chunk_tokens_in_state=settings["max_action_length_in_memory"],
            step_limit=settings["envs.max_steps"],
        )
    except ValidationError as error:
        raise ModelFolderError(f"{folder / SETTINGS_NAME} has wrong settings: {error}") from error


def read_encoders(folder: Path) -> tuple[SentenceTransformer, SentenceTransformer]:
    """Build the state encoder and the action encoder.

    Raises:
        ModelFolderError: If the weights are damaged or do not fit the encoder that the settings name.
    """
    settings = _Settings(folder)
    base = _base_encoder(folder, str(settings["algo.model.model_name"]))
    num_layers = settings["algo.model.predictor.num_layers"]
    if not isinstance(num_layers, int) or not 1 <= num_layers <= MOST_LAYERS:
        raise ModelFolderError(f"{folder / SETTINGS_NAME} has num_layers = {num_layers!r}; expected 1 to {MOST_LAYERS}")
    weights = _weights(folder / WEIGHTS_NAME)
    try:
        state, action = (_encoder(base, num_layers, weights, prefix) for prefix in _PREFIXES.values())
    except ModelFolderError:
        raise
    except Exception as error:  # whatever the libraries make of an encoder that is damaged or not there
        raise ModelFolderError(f"the encoder {base!r} of {folder} cannot be loaded: {error}") from error
    return state, action


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the critic's tensors; nothing that is pickled with them runs."""
    import torch

    try:
        critic = torch.load(path, map_location="cpu", weights_only=True)["critic"]
        return {name: value for name, value in critic.items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # a damaged file fails anywhere within the reader
        reason = f"{type(error).__name__}: {error}"
        raise ModelFolderError(f"{path} cannot be read as a weights-only checkpoint: {reason}") from error


def _encoder(base: str, num_layers: int, weights: Mapping[str, Any], prefix: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    config.num_hidden_layers = num_layers
    transformer: Any = AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    expected = set(transformer.state_dict())
    missing = sorted(expected - own.keys())
    if missing:
        raise ModelFolderError(f"the checkpoint lacks {len(missing)} tensors of {base}, the first is {missing[0]!r}")
    try:
        # What the checkpoint has beyond the transformer (an unused head, two token ids) is left out.
        transformer.load_state_dict({name: own[name] for name in expected})
    except RuntimeError as error:
        raise ModelFolderError(f"the checkpoint does not fit {base}: {error}") from error
    with tempfile.TemporaryDirectory() as draft:
        transformer.save_pretrained(draft)
        AutoTokenizer.from_pretrained(base, trust_remote_code=False).save_pretrained(draft)
        return SentenceTransformer(draft, device="cpu")  # a plain transformer gets mean pooling


def _base_encoder(folder: Path, name: str) -> str:
    """Find the encoder that a checkpoint was trained from: a folder beside it, or a name for the hub's cache."""
    for place in (Path(name), folder / name, folder.parent / name):
        if (place / "config.json").is_file():
            return str(place)
    return name


class _Settings:
    """The YAML settings, with ``${a.b}`` references resolved."""

    def __init__(self, folder: Path) -> None:
        import yaml

        self._path = folder / SETTINGS_NAME
        try:
            self._root = yaml.safe_load(self._path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ModelFolderError(f"{self._path} is not YAML: {error}") from error

    def __getitem__(self, name: str) -> Any:
        value = self._lookup(name)
        for _ in range(20):
            if not (isinstance(value, str) and value.startswith("${") and value.endswith("}")):
                return value
            value = self._lookup(value[2:-1])
        raise ModelFolderError(f"{self._path}: {name!r} refers to itself")

    def _lookup(self, name: str) -> Any:
        value = self._root
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ModelFolderError(f"{self._path} has no setting {name!r}")
            value = value[part]
        return value

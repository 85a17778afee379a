"""What belongs to a pair of encoders besides their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qrag_retriever.errors import ModelFolderError
from qrag_retriever.positions import DEFAULT_STRIDE
from qrag_retriever.state import StateOrder

Positions = Literal["relative", "absolute", "none"]
Mode = Literal["document", "corpus"]
Normalize = bool | Literal["chunks"]

CONFIG_NAME = "qrag_config.json"
FORMAT_VERSION = 1


class QRAGConfig(BaseModel):
    """Settings of a `QRAGModel`; a JSON file in its folder.

    Lengths are in tokens. A piece of a state is the query or one picked chunk.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    dim: int = Field(gt=0, description="Components of an embedding.")
    positions: Positions = "none"
    stride: int = Field(default=DEFAULT_STRIDE, ge=2, description="Position units between neighbouring segments.")
    heads: Literal[2] = Field(default=2, description="Q-heads that share an embedding, half each.")
    pooling: str = Field(
        default="mean", description="How token embeddings become one, in sentence-transformers' words."
    )
    normalize: Normalize = Field(
        default=False,
        description='Whether embeddings are scaled to length 1 before output_scale; "chunks": those of chunks alone, '
        "so that a state can still say by its length how much there is to find.",
    )
    output_scale: float = Field(default=1.0, gt=0, description="Factor on every embedding, states and chunks.")
    query_prompt: str = Field(default="", description="Goes before the query of a state.")
    document_prompt: str = Field(default="", description="Goes before a chunk when it is embedded as an action.")
    state_order: StateOrder = Field(
        default="document", description="Order of picked chunks in a state, in document mode."
    )
    max_chunk_tokens: int = Field(default=256, ge=3, description="A chunk is cut here, special tokens included.")
    max_chunk_tokens_in_state: int = Field(default=256, ge=3, description="A piece of a state is cut here.")
    max_state_tokens: int | None = Field(
        default=None, ge=8, description="Below the encoder's own limit; None: that limit."
    )
    step_limit: int | None = Field(default=None, ge=1, description="Hops the model was trained for.")
    min_q: dict[Mode, float] = Field(default_factory=dict, description="Calibrated stop value for each mode.")

    @field_validator("format_version")
    @classmethod
    def _known_version(cls, version: int) -> int:
        if version != FORMAT_VERSION:
            raise ValueError(f"format {version} is not known here (this release reads {FORMAT_VERSION}); upgrade")
        return version

    def replaced(self, **overrides: Any) -> QRAGConfig:
        """Return a copy with some fields replaced, checked like new ones."""
        return QRAGConfig(**{**self.model_dump(), **overrides})

    def order_in(self, mode: Mode) -> StateOrder:
        """Return the order of picked chunks in a state: corpus mode always keeps the order of picking."""
        return self.state_order if mode == "document" else "retrieved"

    @classmethod
    def read(cls, folder: Path) -> QRAGConfig:
        """Read the configuration of a model folder.

        Raises:
            ModelFolderError: If it is missing, is not JSON, or has unknown or wrong fields.
        """
        path = folder / CONFIG_NAME
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ModelFolderError(f"{folder} is not a model folder: it has no {CONFIG_NAME}") from error
        except (ValueError, ValidationError) as error:
            raise ModelFolderError(f"{path} cannot be read: {error}") from error

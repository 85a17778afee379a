"""The model of an index: given, or recorded in its folder and found again when a query is first embedded."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from qrag_retriever.backends.kinds import Backend
from qrag_retriever.config import QRAGConfig
from qrag_retriever.devices import Dtype
from qrag_retriever.errors import IndexFolderError, ModelMismatchError
from qrag_retriever.model import ModelSource, QRAGModel
from qrag_retriever.records import Record

# So many texts take so long that reading all weights is a small part.
_WORTH_READING = 256

ModelLike = QRAGModel | str | Path | None


class _Stored(BaseModel):
    """What an index folder keeps of its model, as `IndexModel.describe` gives it."""

    model_config = ConfigDict(extra="forbid")

    config: QRAGConfig
    fingerprint: str
    source: ModelSource | None


class IndexModel:
    """Holds a model, or knows where to find the one that built an index."""

    def __init__(
        self,
        model: QRAGModel | None = None,
        stored: Mapping[str, Any] | None = None,
        device: str | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        """Take a model, or what an index folder says of the one that built it.

        Args:
            model: The model, if there is one at hand.
            stored: Configuration, fingerprint and source, as `describe` gave them.
            device: For the model when it is loaded.
            dtype: For the model when it is loaded.

        Raises:
            IndexFolderError: If the stored configuration is not one that this release knows.
        """
        self._model = model
        self._stored = stored
        self.options = (device, dtype)
        self._lock = threading.RLock()
        # Signs of the weights that the fingerprint was compared for.
        self._checked: Any = None
        self._stored_config: QRAGConfig | None = None
        self._short_fingerprint: str | None = None
        if stored is not None:
            try:
                self._stored_config = _Stored.model_validate(stored).config
            except ValidationError as error:
                raise IndexFolderError(f"built by a model that this release does not know: {error}") from error

    @property
    def at_hand(self) -> QRAGModel | None:
        """The model if it was given or has been loaded."""
        return self._model

    @property
    def config(self) -> QRAGConfig | None:
        """Configuration of the model; None if there is none. Loads nothing."""
        return self._stored_config if self._model is None else self._model.config

    def get(self) -> QRAGModel:
        """Return the model, loaded from where it came from if need be.

        Raises:
            ValueError: If there is no model, or it cannot be found again.
            ModelMismatchError: If what is found is another model than built the index.
        """
        with self._lock:
            if self._model is None:
                found = self.source_model()
                self.check(found)
                self._take(found)
                return found
            return self._model

    def source_model(self) -> QRAGModel:
        """Load whatever is now where the index's model came from.

        Raises:
            ValueError: If there was no model, or it never had a place.
            ModelFolderError: If it is no longer there.
        """
        if self._stored is None:
            raise ValueError("this index was built from embeddings alone; build or load it with model=...")
        if self._stored["source"] is None:
            raise ValueError(
                "the model that built this index was never saved, so it cannot be found again; pass model=... to "
                "load() (a model that was trained in memory must be saved with save_pretrained before the index is)"
            )
        return ModelSource(**self._stored["source"]).load(*self.options)

    def use(self, model: QRAGModel, dim: int) -> None:
        """Take a model for an index of this dimension.

        Raises:
            ModelMismatchError: If another model built the index.
            ValueError: If its embeddings have another dimension.
        """
        if self._stored is None:
            check_dim(dim, model.config)
        else:
            self.check(model)
        self._take(model)
        self._short_fingerprint = None

    def _take(self, model: QRAGModel) -> None:
        self._model = model
        self._checked = model.weight_signs()

    def embedder(self, num_texts: int) -> QRAGModel:
        """Return the model to embed further chunks with, which must be what it was when it built the index.

        Args:
            num_texts: To be embedded: for many, all weights are read; else only where they show signs of training.

        Raises:
            ValueError: As `get`.
            ModelMismatchError: As `get`, and if the model was trained since.
        """
        model = self.get()
        if self._stored is not None and (num_texts >= _WORTH_READING or self._checked != model.weight_signs()):
            self.check(model)
            self._checked = model.weight_signs()
        return model

    def short_fingerprint(self, compute: bool) -> str | None:
        """Return the first 12 digits of the model's fingerprint, for traces; loads nothing.

        Args:
            compute: Read all weights, once, if the fingerprint is not known yet.

        Returns:
            None if there is no model, or it is not known.
        """
        with self._lock:
            if self._short_fingerprint is None:
                if self._stored is not None:
                    self._short_fingerprint = self._stored["fingerprint"][:12]
                elif self._model is not None and compute:
                    self._short_fingerprint = self._model.fingerprint()[:12]
            return self._short_fingerprint

    def is_built_by(self, model: QRAGModel) -> bool:
        """Tell whether a model is the one that built the index."""
        return self._stored is not None and model.fingerprint() == self._stored["fingerprint"]

    def check(self, model: QRAGModel) -> None:
        """Raise ModelMismatchError if another model built the index."""
        if self._stored is not None and not self.is_built_by(model):
            source = self._stored["source"]
            name = "never saved" if source is None else source["name"] or "the default model"
            trained = ", trained since it was loaded" if model.source and model.current_source() is None else ""
            raise ModelMismatchError(
                f"this index was built by another model ({name}, fingerprint {self._stored['fingerprint'][:12]}) than "
                f"{model!r} (fingerprint {model.fingerprint()[:12]}{trained}); use that one, or embed anew (load a "
                "folder with reindex=True; on an engine, make a new index)"
            )

    def describe(self) -> dict[str, Any] | None:
        """Return what an index folder keeps of the model; None if there is none."""
        if self._model is None:
            return None if self._stored is None else dict(self._stored)
        source = self._model.current_source()
        return {
            "config": self._model.config.model_dump(),
            "fingerprint": self._model.fingerprint(),
            "source": None if source is None else asdict(source),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock behind."""
        return {"model": self._model, "stored": self._stored, "device": self.options[0], "dtype": self.options[1]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a new lock."""
        self.__init__(**state)  # type: ignore[misc]


def resolve_model(
    model: ModelLike, device: str | None = None, dtype: Dtype | None = None, backend: Backend | None = None
) -> QRAGModel:
    """Return the model itself, or load the one that is named; None names the default model, which is loaded once.

    Raises:
        ValueError: If a backend is named for a model that is loaded already.
    """
    if isinstance(model, QRAGModel):
        if backend not in (None, model.backend):
            raise ValueError(
                f"the model that was given embeds chunks with backend {model.backend!r}, not {backend!r}; load it with "
                f"QRAGModel.from_pretrained(..., backend={backend!r})"
            )
        return model
    if model is not None and not isinstance(model, (str, Path)):
        raise TypeError(
            f"expected a QRAGModel, a folder, a hub id or None as model, got {type(model).__name__}; "
            "QRAGModel.from_encoder makes a model of an encoder, such as a framework's embeddings use"
        )
    found = QRAGModel.from_pretrained(model, device=device, dtype=dtype, backend=backend or "auto")
    found.share_encoders()
    return found


def embed(model: QRAGModel, records: Sequence[Record]) -> np.ndarray:
    """Embed records' texts: shape (N, D), float32."""
    return model.encode_chunks([r.text if r.embedded_text is None else r.embedded_text for r in records])


def check_dim(dim: int, config: QRAGConfig | None) -> None:
    """Raise ValueError unless a model's embeddings have this dimension."""
    if config is not None and dim != config.dim:
        raise ValueError(f"the embeddings have dimension {dim}, the model's have {config.dim}; was it another model?")

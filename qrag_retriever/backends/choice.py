"""Which backend embeds chunks: the one that was asked for, or by trial on the chunks themselves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever.backends.export import Exports
from qrag_retriever.backends.kinds import (
    EXACT_RUNTIMES,
    Backend,
    check_device,
    has_packages,
    is_exact,
    require_backend,
)
from qrag_retriever.backends.runtimes import ExportedEncoder, load_forward
from qrag_retriever.encoders import ActionEncoder
from qrag_retriever.weights import weight_content, weight_signs

logger = logging.getLogger(__name__)

# Largest 1 - cosine between a backend's embedding and torch's at which they count as the same.
LARGEST_DEVIATION = 1e-5
# Texts, spread over all lengths, by which the time of all is estimated and embeddings are compared, and those of a
# trial: about a batch, since a small one tells more of what comes with every call.
_SAMPLE = 32
_TRIED = 128
# The fewest chunks of which a sample is a small part.
_FEWEST_CHUNKS = 64 * _SAMPLE
# Seconds that torch must need for all chunks before another backend is tried: with an export at hand, and without.
_WORTH_A_TRIAL = 30.0
_WORTH_AN_EXPORT = 300.0
# What another backend must gain, so that chance does not choose it.
_LEAST_GAIN = 1.1
# From so many texts on, reading all weights, to be sure that they are those that were exported, is a small part.
_WORTH_READING = 256
_ROUNDS = 3

Identity = Callable[[], str]


class ChunkBackend:
    """Holds what embeds chunks, made when it is first needed."""

    def __init__(self, name: Backend = "auto", folder: Path | None = None) -> None:
        """Name a backend; `check_backend` has passed it.

        Args:
            name: Of the backend.
            folder: Where exported transformers are kept; None: for this process only.
        """
        self.name = name
        self._exports = Exports(folder)
        self._found: Backend | None = None  # by the process that this comes from
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._chosen: Backend | None = None if self.name == "auto" else self.name
        self._exported: ExportedEncoder | None = None
        self._signs: Any = None
        self._content: Any = None

    @property
    def in_use(self) -> Backend:
        """What embeds chunks now: torch as long as nothing else has been chosen or made."""
        return "torch" if self._exported is None or self._chosen is None else self._chosen

    def prepare(self, encoder: ActionEncoder, texts: Sequence[str], identity: Identity) -> None:
        """Get ready to embed texts: make what was asked for, or with "auto" find out what is fastest for so many.

        "auto" stays with torch where all texts take it less than five minutes (half a minute if the encoder has been
        exported before), where it is not float32 on the processor, and where nothing else is a tenth faster. Another
        backend must give the same embeddings, to 1e-5 of their cosine, on a sample of the texts.

        Args:
            encoder: What torch embeds chunks with.
            texts: What is to be embedded.
            identity: Returns what identifies the encoder's weights; called when it is exported.

        Raises:
            ImportError: If a package of the backend that was asked for is missing.
            ValueError: If that backend cannot carry this encoder, or gives other embeddings.
        """
        with self._lock:
            if self._exported is not None and self._is_outdated(encoder, thoroughly=len(texts) >= _WORTH_READING):
                self._forget()
            if not texts or self._exported is not None or self._chosen == "torch":
                return
            if self._chosen is not None:
                self._make(self._chosen, encoder, texts, identity)
            elif len(texts) >= _FEWEST_CHUNKS and _can_be_exported(encoder):
                self._try(encoder, texts, identity)

    def encoder(self, encoder: ActionEncoder) -> ActionEncoder:
        """Return what embeds chunks in place of torch's encoder, or that one."""
        with self._lock:
            if self._exported is None or self._is_outdated(encoder):
                return encoder
            return self._exported

    def _is_outdated(self, encoder: ActionEncoder, thoroughly: bool = False) -> bool:
        """Tell whether the encoder has been trained since it was exported."""
        if self._signs != weight_signs(encoder.model):
            return True
        return thoroughly and self._content != weight_content(encoder.model)

    def decided(self) -> ChunkBackend:
        """Return the backend in use for a worker process: one that asks for no trial, and finds the same exports."""
        copy = ChunkBackend(self._chosen or self._found or "torch")
        copy._exports = self._exports
        return copy

    def _make(self, name: Backend, encoder: ActionEncoder, texts: Sequence[str], identity: Identity) -> None:
        require_backend(name)
        check_device(name, encoder.device.type)
        if not _can_be_exported(encoder):
            raise ValueError(f"backend {name!r} needs float32 weights; load the model with dtype='float32'")
        sample = _sample_of(texts, _SAMPLE)
        made = self._load(name, encoder, identity)
        error = deviation(made.embed(sample)[0], encoder.embed(sample)[0])
        if is_exact(name) and not error.max() < LARGEST_DEVIATION:
            raise ValueError(
                f"backend {name!r} gives other embeddings than torch for this encoder: 1 - cosine {error.max():.1e} on "
                f"{len(sample)} texts, where {LARGEST_DEVIATION} is allowed; use backend='torch'"
            )
        logger.info("chunks are embedded by %s; 1 - cosine to torch: %.1e at most", name, error.max())
        self._take(name, made)

    def _load(self, name: Backend, encoder: ActionEncoder, identity: Identity) -> ExportedEncoder:
        path = self._exports.path_of(encoder, identity(), quantized=not is_exact(name))
        return ExportedEncoder(encoder.model, encoder.config, load_forward(name, path))

    def _take(self, name: Backend, made: ExportedEncoder | None) -> None:
        self._chosen, self._exported = name, made
        if made is not None:
            self._signs, self._content = weight_signs(made.model), weight_content(made.model)

    def _try(self, encoder: ActionEncoder, texts: Sequence[str], identity: Identity) -> None:
        """Choose by trial, where the work is long enough; whatever goes wrong leaves torch in place."""
        sample = _sample_of(texts, _SAMPLE)
        seconds = min(_seconds(encoder, sample) for _ in range(2)) * len(texts) / len(sample)
        if seconds < _WORTH_A_TRIAL:
            return
        candidates = [name for name in EXACT_RUNTIMES if has_packages(name)]
        if not candidates:
            if seconds >= _WORTH_AN_EXPORT:
                logger.info(
                    "embedding %d chunks takes about %d minutes; backends of pip install 'qrag-retriever[onnx]' or "
                    "'[openvino]' may be faster",
                    len(texts),
                    seconds / 60,
                )
            return
        if seconds < _WORTH_AN_EXPORT and not self._exports.has(identity()):
            return
        tried, reasons = self._tried(candidates, encoder, sample, identity)
        name, gain = _fastest(encoder, tried, _sample_of(texts, _TRIED))
        made = tried.get(name)
        self._take(name, made)
        if reasons:
            logger.warning("chunks are embedded by %s; %s", name, "; ".join(reasons))
        else:
            logger.info("chunks are embedded by %s, %.2f times as fast as torch on a sample", name, gain)

    def _tried(
        self, names: Sequence[Backend], encoder: ActionEncoder, sample: Sequence[str], identity: Identity
    ) -> tuple[dict[Backend, ExportedEncoder], list[str]]:
        """Make the backends that give the same embeddings; also return why others do not come into question."""
        expected = encoder.embed(sample)[0]
        tried: dict[Backend, ExportedEncoder] = {}
        reasons = []
        for name in names:
            try:
                made = self._load(name, encoder, identity)
                error = deviation(made.embed(sample)[0], expected).max()
            except Exception as failure:  # of torch's exporter, a disk, or a runtime: torch can do without them all
                reasons.append(f"{name} cannot: {type(failure).__name__}: {failure}")
                continue
            if error < LARGEST_DEVIATION:
                tried[name] = made
            else:
                reasons.append(f"{name} is not exact: 1 - cosine {error:.1e}")
        return tried, reasons

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock and the runtime behind."""
        return {"name": self.name, "exports": self._exports, "found": self._chosen or self._found}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the runtime again when it is needed."""
        self.__init__(state["name"])  # type: ignore[misc]
        self._exports, self._found = state["exports"], state["found"]


def deviation(embeddings: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of each row, (N,), float64; 2 where a value is not finite or only one of the rows is zero."""
    a, b = embeddings.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = 1.0 - np.einsum("nd,nd->n", a, b) / lengths
    result[(lengths == 0) & (a == b).all(axis=1)] = 0.0
    return np.asarray(np.where(np.isfinite(result), np.maximum(result, 0.0), 2.0))


def _fastest(
    encoder: ActionEncoder, tried: dict[Backend, ExportedEncoder], sample: Sequence[str]
) -> tuple[Backend, float]:
    """Time torch and others in turn, so that what else the machine does hits all; also return the gain over torch."""
    named: dict[Backend, ActionEncoder] = {"torch": encoder, **tried}
    best = dict.fromkeys(named, float("inf"))
    for _ in range(_ROUNDS):
        for name, one in named.items():
            best[name] = min(best[name], _seconds(one, sample))
    name = min(best, key=lambda one: best[one])
    gain = best["torch"] / best[name]
    return (name, gain) if gain >= _LEAST_GAIN else ("torch", 1.0)


def _seconds(encoder: ActionEncoder, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    encoder.embed(texts, show_progress=False)
    return time.perf_counter() - start


def _sample_of(texts: Sequence[str], most: int) -> list[str]:
    """Take texts evenly from short to long, so that their batches have padding."""
    ranked = sorted(texts, key=len)
    count = min(most, len(ranked))
    return [ranked[(2 * place + 1) * len(ranked) // (2 * count)] for place in range(count)]


def _can_be_exported(encoder: ActionEncoder) -> bool:
    import torch

    return encoder.device.type == "cpu" and all(
        weight.dtype == torch.float32 for weight in encoder.model.parameters() if weight.is_floating_point()
    )

"""What computes the forward pass of an exported transformer, and an encoder that is fed by it."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qrag_retriever.backends.export import INPUTS
from qrag_retriever.encoders import ActionEncoder

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from qrag_retriever.config import QRAGConfig


class Forward(Protocol):
    """The forward pass of a transformer; may be called by several threads."""

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Embed tokens: ids and mask (B, L), int64, to (B, L, H), float32."""


class OnnxForward:
    """By ONNX Runtime, on the processor."""

    def __init__(self, path: Path, num_threads: int) -> None:
        """Load a file."""
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # only builds for Windows have any
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See `Forward`."""
        outputs = self._session.run(None, dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))
        return np.asarray(outputs[0], np.float32)


class OpenVINOForward:
    """By OpenVINO, on the processor."""

    def __init__(self, path: Path, num_threads: int) -> None:
        """Load a file."""
        openvino = _import_openvino()
        settings = {
            # By default it computes in bfloat16 where the processor can.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": num_threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled: Any = openvino.Core().compile_model(str(path), "CPU", settings)
        self._requests = threading.local()

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See `Forward`."""
        # A request is for one thread at a time.
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        outputs = request.infer(dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))
        return np.array(outputs[0], np.float32)


def _import_openvino() -> Any:
    """Import OpenVINO without its reports: its import sends an event over the network, unless what sends is missing."""
    name = "openvino_telemetry"
    absent = object()
    held: Any = sys.modules.get(name, absent)
    sys.modules[name] = None  # type: ignore[assignment]  # how Python marks a module that cannot be imported
    try:
        return importlib.import_module("openvino")
    finally:
        if held is absent:
            del sys.modules[name]
        else:
            sys.modules[name] = held


def load_forward(backend: str, path: Path) -> Forward:
    """Load an exported transformer, for as many threads as torch has."""
    import torch

    kind: Callable[[Path, int], Forward] = OpenVINOForward if backend == "openvino" else OnnxForward
    return kind(path, torch.get_num_threads())


class ExportedEncoder(ActionEncoder):
    """Embeds chunks with the transformer's part done elsewhere; pooling and what follows are the model's own."""

    def __init__(self, model: SentenceTransformer, config: QRAGConfig, forward: Forward) -> None:
        """Wrap a model and the forward pass of its transformer."""
        super().__init__(model, config)
        self._forward = forward

    def _sentence_embeddings(self, features: dict[str, Any]) -> torch.Tensor:
        import torch

        ids, mask = (features[name].numpy() for name in INPUTS)
        features["token_embeddings"] = torch.from_numpy(self._forward(ids, mask))
        for module in list(self.model)[1:]:
            features = module(features)
        embeddings: torch.Tensor = features["sentence_embedding"]
        return embeddings

"""The backends by name, and what each needs."""

from __future__ import annotations

from typing import Literal, get_args

from qrag_retriever._extras import is_installed, require_extra

Backend = Literal["auto", "torch", "onnx", "openvino", "onnx-int8"]
"""``auto`` chooses among those that are exact; ``onnx-int8`` rounds, so that its embeddings are another model's."""

_EXTRA = {"onnx": "onnx", "onnx-int8": "onnx", "openvino": "openvino"}
# All of them are fed with an ONNX file, which torch writes with onnxscript.
_MODULES = {
    "onnx": ("onnxscript", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnxscript", "openvino"),
}
# In the order in which `auto` tries them.
EXACT_RUNTIMES: tuple[Backend, ...] = ("onnx", "openvino")


def is_exact(backend: Backend) -> bool:
    """Tell whether embeddings differ from torch's float32 by no more than the order of its own sums does."""
    return backend != "onnx-int8"


def check_backend(backend: str, dtype: object, device: str | None) -> None:
    """Check that a backend exists and fits what else is asked for.

    Raises:
        ValueError: If there is no such backend, or it cannot work in this number format or on this device.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"expected backend {', '.join(map(repr, get_args(Backend)))}, got {backend!r}")
    if backend in ("auto", "torch"):
        return
    if str(dtype).removeprefix("torch.") in ("bfloat16", "float16"):
        raise ValueError(f"backend {backend!r} computes in float32, got dtype={dtype!r}; use backend='torch' for it")
    check_device(backend, str(device or "cpu"))


def check_device(backend: str, device: str) -> None:
    """Raise ValueError unless the device is the processor: the one that exported encoders run on."""
    if backend not in ("auto", "torch") and device != "cpu":
        raise ValueError(
            f"backend {backend!r} embeds chunks on the processor, but the device is {device!r}; "
            "give device='cpu', or backend='torch'"
        )


def has_packages(backend: Backend) -> bool:
    """Tell whether the packages that a backend needs are installed."""
    return all(map(is_installed, _MODULES.get(backend, ())))


def require_backend(backend: Backend) -> None:
    """Raise ImportError, with the line that installs it, if a package that a backend needs is missing."""
    for module in _MODULES.get(backend, ()):
        if not is_installed(module):
            require_extra(module, _EXTRA[backend])

"""Choice of device and number format, and the memory of this process."""

from __future__ import annotations

import platform
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


_DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_choice(device: str | torch.device | None, dtype: str | torch.dtype | None) -> str | None:
    """Check what is asked for without loading torch for the processor; return the device's name.

    Raises:
        ValueError: If the device cannot be had, or there is no such dtype.
    """
    name = None if device is None else str(device)
    if name not in (None, "cpu"):
        choose_device(name)
    _dtype_name(dtype)
    return name


def choose_device(device: str | None) -> str:
    """Return the named device, or the best one there is: CUDA, then MPS, then CPU.

    Raises:
        ValueError: If torch cannot use the named device here.
    """
    import torch

    if device is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"expected a torch device such as 'cpu', 'cuda:0' or 'mps', got {device!r}") from error
    usable = (kind != "cuda" or torch.cuda.is_available()) and (kind != "mps" or torch.backends.mps.is_available())
    if not usable:
        raise ValueError(f"device {device!r} is not available here; use device='cpu' or install torch for it")
    return device


def choose_dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype | None:
    """Return the dtype to compute in; None is float32.

    Raises:
        ValueError: If the dtype is none of "auto", "float32", "bfloat16", "float16".
    """
    import torch

    name = _dtype_name(dtype)
    if name == "auto":
        name = "bfloat16" if computes_bfloat16(device) else None
    return {None: None, "float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def cast_dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype | None:
    """Return the dtype to cast weights to; None leaves them as they are. Raises as `choose_dtype`."""
    import torch

    return None if dtype is None else choose_dtype(dtype, device) or torch.float32


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name is not None and name not in _DTYPES:
        raise ValueError(f"expected dtype 'auto', 'float32', 'bfloat16' or 'float16', got {dtype!r}")
    return name


def computes_bfloat16(device: str) -> bool:
    """Tell whether a device has bfloat16 arithmetic, so that it is faster than float32 and not slower."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.startswith("mps"):
        return False
    if platform.machine() in ("arm64", "aarch64"):
        return platform.system() == "Darwin" or "bf16" in _cpu_flags()
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    """Return the processor's feature names; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}


def process_status() -> dict[str, int]:
    """Return the numbers that Linux keeps of this process (``VmRSS`` in KiB, ``Threads``); none on other systems."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return {name: int(words[0]) for name, words in fields.items() if words and words[0].isdecimal()}


def peak_memory_mb() -> float | None:
    """Return the most main memory that this process has had, in MiB; None where the system does not count it."""
    # Of this process alone; what Linux gives below begins with what the process that started it had.
    peak_kib = process_status().get("VmHWM")
    if peak_kib is not None:
        return peak_kib / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch means by an error that a device has not enough memory; only CUDA has a class for it."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def release_free_memory() -> None:
    """Hand memory that has been freed back to the system, where the C library keeps it (glibc).

    Tensors of ever new sizes leave holes behind that glibc does not return by itself: a process then grows for hours.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none

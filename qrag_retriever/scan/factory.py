"""Which scan for which matrix."""

from __future__ import annotations

import numpy as np

from qrag_retriever._extras import is_installed, require_extra
from qrag_retriever.scan.base import ExactRows, Scan, ScanKind
from qrag_retriever.scan.floats import FloatScan
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.scan.int8 import Codes, Int8Scan, quantise

# Below this many chunks a hop is over before numba is imported.
_INT8_CHUNKS = 2_000


def choose_kind(kind: ScanKind, num_chunks: int) -> ScanKind:
    """Resolve "auto": int8 where the ``fast`` extra is installed and the matrix is not tiny, else float32.

    Raises:
        ImportError: If "int8" is asked for without the ``fast`` extra.
        ValueError: If ``kind`` is none of "auto", "float32", "int8".
    """
    if kind not in ("auto", "float32", "int8"):
        raise ValueError(f"expected scan 'auto', 'float32' or 'int8', got {kind!r}")
    if kind == "int8":
        require_extra("numba", "fast")
    if kind == "auto":
        return "int8" if num_chunks >= _INT8_CHUNKS and is_installed("numba") else "float32"
    return kind


def make_scan(vectors: np.ndarray, exact_rows: ExactRows, kind: ScanKind, device: str | None) -> Scan:
    """Build the scan of a matrix.

    Args:
        vectors: Shape (N, D), float32 or float16, in chunk order; may be a file map. A float32 array in C order is not
            copied by a float32 scan.
        exact_rows: Reads exact rows back by chunk id.
        kind: "float32" or "int8"; see `choose_kind`.
        device: A torch device other than "cpu" puts a float32 matrix there.
    """
    if device is not None and not device.startswith("cpu"):
        import torch

        from qrag_retriever.scan.device import TorchScan

        return TorchScan(torch.from_numpy(np.asarray(vectors, np.float32)).to(device))
    if kind == "int8":
        return Int8Scan(Codes(*(GrowingArray(part) for part in quantise(vectors))), exact_rows)
    return FloatScan(np.ascontiguousarray(vectors, np.float32))

"""Which scan for which matrix."""

from __future__ import annotations

import numpy as np

from qrag_retriever._extras import is_installed, require_extra
from qrag_retriever.scan.base import ExactRows, Scan, ScanKind
from qrag_retriever.scan.blocks import MappedScan, RowBlocks
from qrag_retriever.scan.floats import FloatScan
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.scan.int8 import Codes, Int8Scan, quantise

# Below this many chunks a hop is over before numba is imported.
_INT8_CHUNKS = 2_000


# Of the ids, the order and the look-up of ids, per chunk, with ids of 22 characters.
_LAYOUT_BYTES = 180


def choose_kind(kind: ScanKind, num_chunks: int, dim: int = 1, memory_limit: int | None = None) -> ScanKind:
    """Resolve "auto": int8 where the ``fast`` extra is installed and the matrix is not tiny, else float32.

    Where that is more than a memory limit leaves, it is what fits: int8, or "mapped", which holds no vectors.

    Args:
        kind: What was asked for.
        num_chunks: N.
        dim: Components of a vector.
        memory_limit: Bytes that ids, order and scan may take; None: no limit.

    Raises:
        ImportError: If "int8" is asked for without the ``fast`` extra.
        ValueError: If ``kind`` is none there is.
    """
    if kind not in ("auto", "float32", "int8", "mapped"):
        raise ValueError(f"expected scan 'auto', 'float32', 'int8' or 'mapped', got {kind!r}")
    if kind == "int8":
        require_extra("numba", "fast")
    if kind != "auto":
        return kind
    has_int8 = is_installed("numba")
    chosen: ScanKind = "int8" if has_int8 and num_chunks >= _INT8_CHUNKS else "float32"
    if memory_limit is None:
        return chosen
    left = memory_limit - num_chunks * _LAYOUT_BYTES
    if num_chunks * _scan_bytes(chosen, dim) <= left:
        return chosen
    return "int8" if has_int8 and num_chunks * _scan_bytes("int8", dim) <= left else "mapped"


def check_memory_limit(kind: ScanKind, num_chunks: int, memory_limit: int) -> None:
    """Check that a memory limit leaves a choice, and that an index can be opened within it.

    Raises:
        ValueError: If a kind of scan is asked for as well, or ids and order alone take more.
    """
    if kind != "auto":
        raise ValueError(f"a memory limit chooses the scan: leave scan at 'auto', got {kind!r}")
    needed = num_chunks * _LAYOUT_BYTES
    if needed > memory_limit:
        raise ValueError(
            f"memory_limit is {memory_limit:,} bytes, but ids and order of {num_chunks:,} chunks take about "
            f"{needed:,}; set a higher limit, or keep the index on an engine"
        )


def make_scan(rows: np.ndarray | RowBlocks, exact_rows: ExactRows, kind: ScanKind, device: str | None) -> Scan:
    """Build the scan of a matrix.

    Args:
        rows: Shape (N, D), in chunk order. A float32 array in C order is not copied by a float32 scan.
        exact_rows: Reads exact rows back by chunk id.
        kind: "float32", "int8" or "mapped"; see `choose_kind`.
        device: A torch device other than "cpu" puts a float32 matrix there.
    """
    if kind == "mapped":
        return MappedScan(len(rows), exact_rows)
    if device is not None and not device.startswith("cpu"):
        import torch

        from qrag_retriever.scan.device import TorchScan

        return TorchScan(torch.from_numpy(_matrix(rows)).to(device))
    if kind == "int8":
        return Int8Scan(Codes(*(GrowingArray(part) for part in quantise(rows))), exact_rows)
    return FloatScan(np.ascontiguousarray(_matrix(rows)))


def _scan_bytes(kind: ScanKind, dim: int) -> int:
    """Return what the scan of one chunk takes."""
    return dim + 8 if kind == "int8" else 4 * dim


def _matrix(rows: np.ndarray | RowBlocks) -> np.ndarray:
    return rows.matrix() if isinstance(rows, RowBlocks) else np.asarray(rows, np.float32)

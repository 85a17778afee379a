"""Inner products of one state with many rows, each by the same sum, so that equal rows have equal scores."""

from __future__ import annotations

import numpy as np


def write_products(rows: np.ndarray, state: np.ndarray, scores: np.ndarray) -> None:
    """Write the products of rows (N, D) with a state (D,) to scores (N,); all float32 and contiguous.

    By faiss's own kernel: about twice as fast as BLAS on tall thin matrices, it never starts threads of its own, and
    the order of its sums does not depend on where a row is.
    """
    import faiss

    pointer, product = faiss.swig_ptr, faiss.fvec_inner_products_ny  # type: ignore[attr-defined]
    product(pointer(scores), pointer(state), pointer(rows), rows.shape[1], len(rows))

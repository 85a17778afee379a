"""The scan through torch, for CUDA and MPS."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from qrag_retriever.rotary import rotate_backward
from qrag_retriever.scan.base import ExactRows, StateQuery

if TYPE_CHECKING:
    import torch


class TorchScan:
    """Exact top-k over a float32 matrix on a torch device."""

    def __init__(self, matrix: torch.Tensor) -> None:
        """Wrap a matrix of shape (N, D), float32, on its device."""
        self._matrix = matrix

    @property
    def num_chunks(self) -> int:
        """Rows of the matrix."""
        return len(self._matrix)

    @property
    def hot_bytes(self) -> int:
        """Memory that one pass reads."""
        return self._matrix.numel() * self._matrix.element_size()

    def appended(self, vectors: np.ndarray, exact_rows: ExactRows) -> TorchScan:
        """Return a scan with (M, D) more rows; see `Scan.appended`."""
        import torch

        new = torch.from_numpy(np.ascontiguousarray(vectors)).to(self._matrix)
        return TorchScan(torch.cat([self._matrix, new]))

    def taken(self, chunk_ids: np.ndarray, exact_rows: ExactRows) -> TorchScan:
        """Return a scan of some of the rows; see `Scan.taken`."""
        import torch

        return TorchScan(self._matrix[torch.from_numpy(chunk_ids).to(self._matrix.device)])

    def top_k(
        self, queries: Sequence[StateQuery], k: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best chunks of each state; see `Scan.top_k`."""
        import torch

        device = self._matrix.device
        ruled_out = None if mask is None else torch.from_numpy(~mask).to(device)
        ids = np.full((len(queries), k), -1, np.int64)
        values = np.full((len(queries), k), -np.inf, np.float32)
        for b, query in enumerate(queries):
            scores = self._scores(query)
            scores[torch.tensor(query.excluded, dtype=torch.long, device=device)] = -torch.inf
            if ruled_out is not None:
                scores[ruled_out] = -torch.inf
            # A stable sort of the few best would need all ties; ties at the k-th place may be broken either way.
            best = torch.topk(scores, min(k, self.num_chunks))
            found = best.values.cpu().numpy()
            kept = found > -np.inf
            order = np.lexsort((best.indices.cpu().numpy()[kept], -found[kept]))
            ids[b, : kept.sum()] = best.indices.cpu().numpy()[kept][order]
            values[b, : kept.sum()] = found[kept][order]
        return ids, values

    def _scores(self, query: StateQuery) -> torch.Tensor:
        import torch

        state = torch.from_numpy(query.state).to(self._matrix)
        rotated = rotate_backward(state, query.runs.positions)
        scores = torch.empty(self.num_chunks, dtype=self._matrix.dtype, device=self._matrix.device)
        edges = query.runs.edges.tolist()
        for run, (low, high) in enumerate(pairwise(edges)):
            torch.mv(self._matrix[low:high], rotated[run], out=scores[low:high])
        return scores

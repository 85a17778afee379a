"""One version of an index, as a search sees it: immutable, whatever is added or deleted meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from qrag_retriever.config import Mode, Positions, QRAGConfig
from qrag_retriever.devices import check_choice
from qrag_retriever.filters import Filters, compile_filters, filters_key, single_document
from qrag_retriever.layout import Layout
from qrag_retriever.positions import DEFAULT_STRIDE, Runs, absolute_runs, relative_runs, uniform_run
from qrag_retriever.records import Record
from qrag_retriever.rotary import check_dim, rotate_backward, rotate_forward
from qrag_retriever.scan import ScanKind, StateQuery, StepScan, make_scan
from qrag_retriever.scan.base import ExactRows
from qrag_retriever.scan.blocks import RowBlocks
from qrag_retriever.scan.factory import choose_kind
from qrag_retriever.scan.floats import FloatScan

_RECORDS_AT_ONCE = 65_536
_ROWS_AT_ONCE = 4_096
_CACHED_VIEWS = 8
# Numbers that a batch of states may need at one time: 128 MiB of float32.
_FLOATS_AT_ONCE = 2**25


class Source(Protocol):
    """Where a version's records and exact vectors are read from, by chunk id."""

    def records(self, chunk_ids: Sequence[int]) -> list[Record]:
        """Read records in the given order."""

    def vectors(self, chunk_ids: np.ndarray) -> np.ndarray:
        """Read exact, unrotated embeddings: (M, D), float32."""

    def inner_product(self, chunk_id: int, state: np.ndarray) -> float:
        """Multiply a chunk's unrotated embedding with a state (D,)."""

    def scan(self, chunk_ids: np.ndarray | None) -> StepScan | None:
        """Return a scan of some chunks, or of all, if the source searches itself; None if `matrix` is to be scanned."""

    @property
    def in_memory(self) -> bool:
        """Tell whether `matrix` is a float32 array in memory."""

    def matrix(self) -> np.ndarray:
        """Return all embeddings in chunk order, (N, D), float32 or float16; a view or a map where possible."""


@dataclass(frozen=True)
class Geometry:
    """How chunks are placed and scanned.

    Attributes:
        dim: Components of an embedding.
        mode: "document" or "corpus".
        positions: The model's kind of positions; corpus mode places all chunks at 0.
        stride: Of relative positions.
        scan: Kind of scan that is asked for.
        memory_limit: Bytes that ids, order and scan may take, with ``scan`` "auto"; None: no limit.
        device: Torch device of the scan; None or "cpu" for the processor.
    """

    dim: int
    mode: Mode
    positions: Positions
    stride: int
    scan: ScanKind
    device: str | None
    memory_limit: int | None = None

    @property
    def placed(self) -> Positions:
        """The positions in force: none in corpus mode."""
        return self.positions if self.mode == "document" else "none"

    def scan_kind(self, num_chunks: int) -> ScanKind:
        """Choose the scan of so many chunks; see `choose_kind`."""
        return choose_kind(self.scan, num_chunks, self.dim, self.memory_limit)


def make_geometry(
    dim: int,
    mode: str,
    config: QRAGConfig | None,
    scan: ScanKind = "auto",
    device: str | None = None,
    memory_limit: int | None = None,
) -> Geometry:
    """Put together and check how chunks are placed and scanned.

    Raises:
        ValueError: If the mode, the kind of scan or the device is none there is.
        ImportError: If "int8" is asked for without the ``fast`` extra.
    """
    if mode not in ("document", "corpus"):
        raise ValueError(f"expected mode 'document' or 'corpus', got {mode!r}")
    choose_kind(scan, 0)
    device = check_choice(device, None)
    # Without a model nothing says otherwise, so document mode means what the method means by it.
    positions = "relative" if config is None else config.positions
    stride = DEFAULT_STRIDE if config is None else config.stride
    return Geometry(dim, mode, positions, stride, scan, device, memory_limit)  # type: ignore[arg-type]  # checked above


class IndexView:
    """Layout, records and scan of one version."""

    def __init__(
        self,
        geometry: Geometry,
        layout: Layout,
        source: Source,
        scan: StepScan | None = None,
        chunk_ids: np.ndarray | None = None,
    ) -> None:
        """Build a version.

        Args:
            geometry: How chunks are placed and scanned.
            layout: Their order.
            source: Their records and vectors.
            scan: A scan of exactly these chunks, if there is one already; else it is built when first needed.
            chunk_ids: For a view of a part of an index: the chunk ids that it holds, ascending.
        """
        if geometry.placed != "none":
            check_dim(geometry.dim)
        self.geometry = geometry
        self.layout = layout
        self.source = source
        self._chunk_ids = chunk_ids
        self._scan = scan
        self._lock = threading.Lock()
        self._parts: dict[str, IndexView] = {}
        self._masks: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Count the chunks."""
        return len(self.layout) if self._chunk_ids is None else len(self._chunk_ids)

    @property
    def scan(self) -> StepScan:
        """The scan of this version's chunks."""
        with self._lock:
            if self._scan is None:
                self._scan = self.source.scan(self._chunk_ids) or self._matrix_scan()
            return self._scan

    @property
    def hot_bytes(self) -> int:
        """Memory that one hop reads; 0 before the first search."""
        return 0 if self._scan is None else self._scan.hot_bytes

    def hand_over(self, successor: IndexView, vectors: np.ndarray, origin: np.ndarray) -> None:
        """Continue the scan, if it is built, for the next version.

        Args:
            successor: The next version.
            vectors: Shape (M, D), float32: the new chunks, as they are stored.
            origin: Where each chunk of the next version comes from, as `Layout.changed` tells.
        """
        scan: Any = self._scan
        if scan is None or self.geometry.placed == "absolute":
            return
        if isinstance(scan, FloatScan) and successor.source.in_memory:
            return  # it only wraps the matrix that the next version has anyway
        if self.geometry.memory_limit and self.geometry.scan_kind(len(origin)) != self.geometry.scan_kind(len(self)):
            return  # it would outgrow the limit
        if len(vectors):
            scan = scan.appended(vectors, successor._exact_rows())
        if len(origin) < scan.num_chunks or not np.array_equal(origin, np.arange(len(origin))):
            scan = scan.taken(origin, successor._exact_rows())
        successor._scan = scan

    def global_ids(self, chunk_ids: np.ndarray) -> np.ndarray:
        """Translate this view's chunk ids to those of the whole index; -1 stays."""
        return _in_whole(self._chunk_ids, chunk_ids)

    def records(self, chunk_ids: Sequence[int]) -> list[Record]:
        """Read records by this view's chunk ids."""
        return self.source.records([int(i) for i in self.global_ids(np.asarray(chunk_ids, np.int64))])

    def runs(self, picked: Sequence[int]) -> Runs:
        """Return the positions that the scan applies to a state with these picks."""
        if self.geometry.placed == "relative":
            return relative_runs(len(self), picked, self.geometry.stride)
        # Absolute positions are part of the matrix already.
        return uniform_run(len(self))

    def positions(self, picked: Sequence[int]) -> Runs:
        """Return the positions of the chunks as the model means them, given the picks."""
        return absolute_runs(len(self)) if self.geometry.placed == "absolute" else self.runs(picked)

    def top_k(
        self, states: np.ndarray, picked: Sequence[Sequence[int]], k: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One hop for B states; see `ChunkIndex.top_k`."""
        if not len(self) or not len(states):
            return np.full((len(states), k), -1, np.int64), np.full((len(states), k), -np.inf, np.float32)
        queries = [
            StateQuery(state, self.runs(picks), tuple(sorted(picks)))
            for state, picks in zip(states, picked, strict=True)
        ]
        # Per state: its scores, and its rotated copies with their share of a block's products.
        most_runs = max(len(query.runs.positions) for query in queries)
        size = max(1, _FLOATS_AT_ONCE // (len(self) + most_runs * (2 * self.geometry.dim + 1024)))
        if len(queries) <= size:
            return self.scan.top_k(queries, k, mask)
        groups = [self.scan.top_k(queries[i : i + size], k, mask) for i in range(0, len(queries), size)]
        return np.concatenate([ids for ids, _ in groups]), np.concatenate([values for _, values in groups])

    def q_values(self, state: np.ndarray, picked: Sequence[int] = ()) -> np.ndarray:
        """Score every chunk in one state (D,), given this view's chunk ids picked so far; returns (N,), float32."""
        values: np.ndarray = self.many_q_values([state], [picked])[0]
        return values

    def many_q_values(self, states: Sequence[np.ndarray], picked: Sequence[Sequence[int]]) -> np.ndarray:
        """Score every chunk in S states from the exact vectors.

        They are read once, in blocks, whatever the number of states, and never held as a whole.

        Args:
            states: Shape (D,) each: state embeddings, not rotated.
            picked: For each state, this view's chunk ids picked so far; they are scored like all others.

        Returns:
            Shape (S, N), float32.
        """
        values = np.empty((len(states), len(self)), np.float32)
        if not values.size:
            return values
        runs = [self.runs(picks) for picks in picked]
        read = self._exact_rows()
        for first in range(0, len(self), _ROWS_AT_ONCE):
            stop = min(first + _ROWS_AT_ONCE, len(self))
            vectors = read(np.arange(first, stop))
            for row, state in enumerate(states):
                part = runs[row].between(first, stop)
                rotated = rotate_backward(state, part.positions)  # (runs, D)
                for run, (start, end) in enumerate(pairwise(part.edges)):
                    values[row, first + start : first + end] = vectors[start:end] @ rotated[run]
        return values

    def gain(self, state: np.ndarray, chunk_id: int, q_value: float) -> float:
        """Return what its position added to a chunk's Q-value: Q minus Q at position 0."""
        if self.geometry.placed == "none":
            return 0.0
        return q_value - self.source.inner_product(int(self.global_ids(np.array([chunk_id]))[0]), state)

    def restricted(self, filters: Filters | None) -> tuple[IndexView, np.ndarray | None]:
        """Apply filters.

        Returns:
            The view to search and a mask over its chunks. Filters that require one document give that document alone,
            with positions of its own; all others only mask.
        """
        if filters is None:
            return self, None
        document = single_document(filters)
        view = self if document is None else self._part(document)
        return view, view._mask(filters)

    def _part(self, document: str) -> IndexView:
        with self._lock:
            part = self._parts.get(document)
        if part is None:
            chunk_ids = self.layout.chunks_of_document.get(document, np.empty(0, np.int64))
            part = IndexView(self.geometry, self.layout, self.source, chunk_ids=chunk_ids)
            self._remember(self._parts, document, part)
        return part

    def _mask(self, filters: Filters) -> np.ndarray:
        key = filters_key(filters)
        mask = self._masks.get(key) if key is not None else None
        if mask is None:
            allows = compile_filters(filters)
            mask = np.array(
                [
                    allows(record.filter_view())
                    for first in range(0, len(self), _RECORDS_AT_ONCE)
                    for record in self.records(range(first, min(first + _RECORDS_AT_ONCE, len(self))))
                ],
                np.bool_,
            )
            if key is not None:
                self._remember(self._masks, key, mask)
        return mask

    def _remember(self, cache: dict[str, Any], key: str, value: Any) -> None:
        with self._lock:
            while len(cache) >= _CACHED_VIEWS:
                cache.pop(next(iter(cache)))
            cache[key] = value

    def _matrix_scan(self) -> StepScan:
        # Parts come and go beside the whole; where memory is limited they hold no vectors of their own.
        limited_part = self._chunk_ids is not None and self.geometry.memory_limit is not None
        kind = "mapped" if limited_part else self.geometry.scan_kind(len(self))
        return make_scan(self._placed_matrix(), self._exact_rows(), kind, self.geometry.device)

    def _placed_matrix(self) -> np.ndarray | RowBlocks:
        """Return the vectors at their absolute positions, if there are such: what is in memory as it is, or blocks."""
        first, stop = 0, len(self)
        if self._chunk_ids is not None and stop:
            first, stop = int(self._chunk_ids[0]), int(self._chunk_ids[-1]) + 1
        contiguous = stop - first == len(self)
        if self.source.in_memory and contiguous and self.geometry.placed != "absolute":
            return self.source.matrix()[first:stop]
        return RowBlocks(self._exact_rows(), (len(self), self.geometry.dim))

    def _exact_rows(self) -> ExactRows:
        """Return what reads exact rows back; the scan keeps it, so it must not keep the view, and its files, alive."""
        source, part, is_absolute = self.source, self._chunk_ids, self.geometry.placed == "absolute"

        def read(chunk_ids: np.ndarray) -> np.ndarray:
            vectors = source.vectors(_in_whole(part, chunk_ids))
            return rotate_forward(vectors, chunk_ids) if is_absolute else vectors

        return read


def _in_whole(part: np.ndarray | None, chunk_ids: np.ndarray) -> np.ndarray:
    """Translate chunk ids of a part to those of the whole index; -1 stays."""
    return chunk_ids if part is None else np.where(chunk_ids >= 0, part[chunk_ids], -1)

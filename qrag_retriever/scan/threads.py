"""Threads of a scan: one parallel region a hop, each thread over one contiguous stretch of rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController

# Below this many rows a second thread costs more than it saves.
PARALLEL_ROWS = 100_000
_ALIGNMENT = 1024

_blas_lock = threading.Lock()
_blas_users = 0


def num_threads() -> int:
    """Return the threads a scan may use: the cores of this process, or OMP_NUM_THREADS if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(wanted))) if wanted.isdigit() else cores


def for_row_slices(num_rows: int, work: Callable[[tuple[int, int]], None]) -> None:
    """Call ``work((first, stop))`` for slices that cover all rows: in one call, or one per thread for a large matrix.

    Slices start at multiples of 1024 rows.
    """
    shares = num_threads() if num_rows >= PARALLEL_ROWS else 1
    if shares == 1:
        work((0, num_rows))
        return
    starts = [num_rows * share // shares // _ALIGNMENT * _ALIGNMENT for share in range(shares)]
    list(_pool(shares, os.getpid()).map(work, zip(starts, [*starts[1:], num_rows], strict=True)))


@lru_cache(maxsize=4)
def _pool(shares: int, _process: int) -> ThreadPoolExecutor:
    # Keyed by the process too: a forked child inherits the object but not its threads.
    return ThreadPoolExecutor(shares, thread_name_prefix="qrag-scan")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep BLAS to the calling thread: it would start its threads anew for every small product.

    The setting is the process's; it is put back when the last of the concurrent users leaves.
    """
    global _blas_users
    with _blas_lock:
        if _blas_users == 0:
            _blas_settings.enter()
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_settings.leave()


class _BlasSettings:
    def __init__(self) -> None:
        self._limits: list[tuple[object, int]] = []

    def enter(self) -> None:
        libraries = _blas_libraries()
        self._limits = [(library, library.num_threads) for library in libraries]
        for library in libraries:
            library.set_num_threads(1)

    def leave(self) -> None:
        for library, threads in self._limits:
            library.set_num_threads(threads)  # type: ignore[attr-defined]


_blas_settings = _BlasSettings()


@lru_cache(maxsize=1)
def _blas_libraries():  # type: ignore[no-untyped-def]  # threadpoolctl has no types
    return ThreadpoolController().select(user_api="blas").lib_controllers

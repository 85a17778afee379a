"""Threads of a scan: one parallel region a hop, each thread over one contiguous stretch of rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

# Below this many rows a second thread costs more than it saves.
PARALLEL_ROWS = 100_000
_ALIGNMENT = 1024


def num_threads() -> int:
    """Return the threads a scan may use: the cores of this process, or OMP_NUM_THREADS if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(wanted))) if wanted.isdigit() else cores


def for_row_slices(num_rows: int, work: Callable[[tuple[int, int]], None]) -> None:
    """Call ``work((first, stop))`` for slices that cover all rows: in one call, or one per thread for a large matrix.

    Slices start at multiples of 1024 rows.
    """
    # The small matrix first: counting the cores takes as long as a tenth of its scan.
    shares = 1 if num_rows < PARALLEL_ROWS else num_threads()
    if shares == 1:
        work((0, num_rows))
        return
    starts = [num_rows * share // shares // _ALIGNMENT * _ALIGNMENT for share in range(shares)]
    list(_pool(shares, os.getpid()).map(work, zip(starts, [*starts[1:], num_rows], strict=True)))


@lru_cache(maxsize=4)
def _pool(shares: int, _process: int) -> ThreadPoolExecutor:
    # Keyed by the process too: a forked child inherits the object but not its threads.
    return ThreadPoolExecutor(shares, thread_name_prefix="qrag-scan")


class _SingleThreadedBlas:
    """Keeps BLAS to the calling thread while anyone is inside; a context manager for many threads at once.

    The setting is the process's; it is put back when the last of the concurrent users leaves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._restored: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._restored = [(library, library.num_threads) for library in _blas_libraries()]
                for library, _ in self._restored:
                    library.set_num_threads(1)
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for library, threads in self._restored:
                    library.set_num_threads(threads)


# BLAS would start its threads anew for every small product.
single_threaded_blas = _SingleThreadedBlas()


@lru_cache(maxsize=1)
def _blas_libraries() -> list[Any]:
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)

"""Side-by-side timing: all candidates in turn, round after round, so that noise on the machine hits all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Timing:
    """Medians over rounds, in milliseconds; CPU time is that of all threads of the process."""

    wall: float
    cpu: float


def side_by_side(candidates: Mapping[str, Callable[[], object]], rounds: int = 20) -> dict[str, Timing]:
    """Time candidates in turn, once per round, after one untimed call each."""
    walls: dict[str, list[float]] = {name: [] for name in candidates}
    cpus: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    for _ in range(rounds):
        for name, call in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    return {
        name: Timing(1e3 * float(np.median(walls[name])), 1e3 * float(np.median(cpus[name]))) for name in candidates
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give every library the same number of threads: BLAS, OpenMP (faiss), torch and our own scan."""
    import torch

    before = torch.get_num_threads()
    variable = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
        if variable is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = variable


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out rows as a Markdown table."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )

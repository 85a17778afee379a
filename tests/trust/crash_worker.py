"""A process that changes an index until it is killed, and says when each change is done."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from qrag_retriever.index import ChunkIndex
from qrag_retriever.records import Record
from tests.index_folders import load, new_index, record

START = {"add": 20, "update": 20, "delete": 400, "save": 20, "new": 0}
_ROOT = Path(__file__).parents[2]


def change(kind: str, index: ChunkIndex | None, folder: Path, number: int) -> None:
    """Make the change of this number, from 1."""
    if kind == "save":
        new_index(20 + number % 3, f"save {number}").save(folder)
    elif kind == "new":
        new_index(20, f"save {number}").save(folder / str(number))
    elif kind == "add":
        assert index is not None
        index.add_records([Record(f"n{number}", f"new {number}"), Record(f"m{number}", f"more {number}")])
    elif kind == "update":
        assert index is not None
        index.add_records([record(i, f"update {number}") for i in range(0, 20, 3)])
    else:
        assert index is not None
        index.delete([f"c{2 * number - 2}", f"c{2 * number - 1}"])


def expected_after(kind: str, number: int) -> list[tuple[str, str]]:
    """Return ids and texts after so many changes."""
    start = [(f"c{i}", f"text {i}") for i in range(START[kind])]
    if number == 0:
        return start
    if kind == "save":
        return [(f"c{i}", f"save {number} {i}") for i in range(20 + number % 3)]
    if kind == "add":
        new = [[(f"n{i}", f"new {i}"), (f"m{i}", f"more {i}")] for i in range(1, number + 1)]
        return [*start, *itertools.chain.from_iterable(new)]
    if kind == "update":
        return [(f"c{i}", f"update {number} {i}" if i % 3 == 0 else f"text {i}") for i in range(20)]
    return start[2 * number :]


def work(kind: str, path: str) -> None:
    """Make changes until killed."""
    folder = Path(path)
    index = load(folder) if kind in ("add", "update", "delete") else None
    os.write(1, b"0\n")
    for number in itertools.count(1):
        change(kind, index, folder, number)
        os.write(1, b"%d\n" % number)


def killed(kind: str, folder: Path, delay: float) -> int:
    """Kill a worker in the middle of its changes; return how many it has acknowledged."""
    arguments = [sys.executable, "-m", "tests.trust.crash_worker", kind, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment, cwd=_ROOT) as worker:
        assert worker.stdout is not None
        said = worker.stdout.readline()
        time.sleep(delay)
        worker.send_signal(signal.SIGKILL)
        said += worker.stdout.read()
    assert worker.returncode == -signal.SIGKILL
    return int(said[: said.rindex(b"\n")].splitlines()[-1])


if __name__ == "__main__":
    work(*sys.argv[1:])

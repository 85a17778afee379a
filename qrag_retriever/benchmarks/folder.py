"""An index folder as it grows: ``python -m qrag_retriever.benchmarks.folder [--chunks 40000 400000] [--json FILE]``.

Random embeddings of 384 components are added block by block, each synced before the next. Then, in a process of its own
for each kind of scan, the folder is opened (which verifies the checksum of every vector) and hops with 3 picks are
timed on one thread. Linux only, for the memory. Embedding is no part of it: `qrag_retriever.benchmarks.encoding`
measures that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np

from qrag_retriever import ChunkIndex
from qrag_retriever._extras import is_installed
from qrag_retriever.benchmarks.search import make_query, random_matrix
from qrag_retriever.benchmarks.timing import table, threads
from qrag_retriever.devices import process_status
from qrag_retriever.scan import ScanKind

DIM = 384
BLOCK = 20_000
Row = dict[str, Any]


def build(folder: Path, num_chunks: int) -> float:
    """Make an index folder of so many chunks; returns its seconds, those of drawing embeddings left out."""
    seconds = 0.0
    index: ChunkIndex | None = None
    for first in range(0, num_chunks, BLOCK):
        part = random_matrix(min(BLOCK, num_chunks - first), DIM, seed=first)
        places = range(first, first + len(part))
        texts = [f"Sentence {place} of a long text, of about as many letters as sentences have." for place in places]
        start = time.perf_counter()
        if index is None:
            index = ChunkIndex.from_embeddings(part, texts)
            index.save(folder)
        else:
            index.add(texts, ids=[str(place) for place in places], embeddings=part)
        seconds += time.perf_counter() - start
    return seconds


def anonymous_memory_mb() -> float:
    """Return the memory of this process that no file stands behind, in MB (mapped vectors are not in it)."""
    return process_status()["RssAnon"] * 1024 / 1e6


def measure_open(folder: str, scan: str, rounds: int) -> Row:
    """Open a folder and hop: seconds until it is open and until the first hop is done, memory, a later hop."""
    before, start = anonymous_memory_mb(), time.perf_counter()
    index = ChunkIndex.load(folder, scan=cast(ScanKind, scan))
    opened = time.perf_counter() - start
    random = np.random.default_rng(0)
    state, picks = make_query(len(index), DIM, 3, random)
    with threads(1):
        index.top_k(state, picks, 1)
        first = time.perf_counter() - start
        hops = []
        for _ in range(rounds):
            state, picks = make_query(len(index), DIM, 3, random)
            begun = time.perf_counter()
            index.top_k(state, picks, 1)
            hops.append(time.perf_counter() - begun)
    return {
        "scan": scan,
        "open_s": opened,
        "first_hop_after_s": first,
        "hop_ms": 1e3 * float(np.median(hops)),
        "memory_mb": anonymous_memory_mb() - before,
    }


def measure(num_chunks: int, rounds: int) -> list[Row]:
    """Build a folder of a size and open it with each kind of scan."""
    scans = ["float32", *(["int8"] if is_installed("numba") else []), "mapped"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "index.qrag"
        built = build(folder, num_chunks)
        size = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
        context = multiprocessing.get_context("spawn")
        rows = []
        for scan in scans:
            with ProcessPoolExecutor(1, context) as pool:
                opened = pool.submit(measure_open, str(folder), scan, rounds).result()
            rows.append({"chunks": num_chunks, "build_s": built, "folder_mb": size, **opened})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="+", default=[40_000, 400_000, 4_000_000])
    parser.add_argument("--rounds", type=int, default=20, help="timed hops")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args(arguments)
    for name, values in (("chunks", options.chunks), ("rounds", [options.rounds])):
        if min(values) < 1:
            parser.error(f"--{name} must be at least 1, got {min(values)}")
    rows: list[Row] = []
    for num_chunks in options.chunks:
        rows.extend(measure(num_chunks, options.rounds))
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    header = list(rows[0])
    cells = [
        [f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in header] for row in rows
    ]
    print(table(header, cells), flush=True)


if __name__ == "__main__":
    main()

"""Speed of the search step: ``python -m qrag_retriever.benchmarks.search [SECTION ...] [--json FILE]``.

Everything that is compared is timed in turn within one run; medians of at least 20 rounds, except where a round takes
seconds. Sections: step, small, threads, batch, growth, whole, same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever._extras import is_installed
from qrag_retriever.benchmarks.rivals import RotateEveryChunk, floors
from qrag_retriever.benchmarks.timing import Timing, side_by_side, table, threads
from qrag_retriever.positions import relative_runs
from qrag_retriever.q_values import q_values
from qrag_retriever.scan import Scan, ScanKind, StateQuery, make_scan
from qrag_retriever.scan.floats import FloatScan

LARGE = 400_000
Rows = list[dict[str, Any]]


def random_matrix(num_chunks: int, dim: int, seed: int = 0) -> np.ndarray:
    """Make embeddings of the size that encoders give, (N, D) float32."""
    random = np.random.default_rng(seed)
    matrix = np.empty((num_chunks, dim), np.float32)
    for first in range(0, num_chunks, 65_536):
        part = matrix[first : first + 65_536]
        part[:] = random.standard_normal(part.shape, dtype=np.float32) / np.sqrt(dim)
    return matrix


def our_scans(matrix: np.ndarray) -> dict[str, Scan]:
    """Build our scans of a matrix: float32, and int8 where the ``fast`` extra is installed."""
    scans: dict[str, Scan] = {"ours, float32": FloatScan(matrix)}
    if is_installed("numba"):
        scans["ours, int8 [fast]"] = make_scan(matrix, lambda ids: matrix[ids], "int8", None)
    return scans


def mapped_scan(stored: np.ndarray) -> Scan:
    """Build the scan of float16 vectors that are read at every hop."""
    return make_scan(stored, lambda ids: np.asarray(stored[ids], np.float32), "mapped", None)


def make_query(num_chunks: int, dim: int, num_picks: int, random: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Draw a state embedding and picks."""
    picks = sorted(random.choice(num_chunks, num_picks, replace=False).tolist())
    return random.standard_normal(dim).astype(np.float32) / np.float32(np.sqrt(dim)), picks


def step_of(scan: Scan, state: np.ndarray, picks: list[int], k: int) -> Callable[[], object]:
    """One whole step as the index runs it: positions, rotation, scan, best k."""
    return lambda: scan.top_k([StateQuery(state, relative_runs(scan.num_chunks, picks), tuple(picks))], k)


def measure_step(num_chunks: int, dim: int, k: int, num_threads: int, rounds: int = 20) -> Rows:
    """Time one step with 3 picks against the paper's way and the floors."""
    random = np.random.default_rng(1)
    matrix = random_matrix(num_chunks, dim)
    state, picks = make_query(num_chunks, dim, 3, random)
    lower = floors(matrix, state)
    candidates: dict[str, Callable[[], object]] = {name: call for name, (call, _) in lower.items()}
    for name, reuse in (("paper's way", False), ("paper's way, buffers kept", True)):
        rival = RotateEveryChunk(matrix, state, reuse)
        candidates[name] = partial(rival.step, picks, k)
    scans = our_scans(matrix)
    candidates.update({name: step_of(scan, state, picks, k) for name, scan in scans.items()})
    with threads(num_threads):
        timings = side_by_side(candidates, rounds)
    shares = {name: share for name, (_, share) in lower.items()}
    return _step_rows(timings, shares, scans, {"chunks": num_chunks, "dim": dim, "top": k, "threads": num_threads})


def _step_rows(
    timings: dict[str, Timing], shares: dict[str, float], scans: dict[str, Scan], setting: dict[str, Any]
) -> Rows:
    floor = min(timings[name].wall * share for name, share in shares.items())
    return [
        {
            **setting,
            "way": name,
            "wall_ms": timing.wall * shares.get(name, 1.0),
            "cpu_ms": timing.cpu * shares.get(name, 1.0),
            "x_floor": timing.wall * shares.get(name, 1.0) / floor,
            "paper_ratio": timings["paper's way"].wall / timing.wall,
            "paper_buffers_ratio": timings["paper's way, buffers kept"].wall / timing.wall,
            "mb_per_hop": scans[name].hot_bytes / 1e6 if name in scans else None,
        }
        for name, timing in timings.items()
    ]


def section_step(arguments: argparse.Namespace) -> Rows:
    """400,000 chunks on one thread."""
    return [
        row
        for dim, k in ((384, 1), (384, 16), (768, 16))
        for row in measure_step(arguments.chunks, dim, k, 1, arguments.rounds)
    ]


def section_small(arguments: argparse.Namespace) -> Rows:
    """4,600 chunks (a document of 128k tokens) on one thread."""
    return [row for k in (1, 16) for row in measure_step(4_600, 384, k, 1, max(200, arguments.rounds))]


def section_threads(arguments: argparse.Namespace) -> Rows:
    """One thread against two, in turn."""
    random = np.random.default_rng(2)
    matrix = random_matrix(arguments.chunks, 384)
    state, picks = make_query(arguments.chunks, 384, 3, random)
    candidates: dict[str, Callable[[], object]] = {}
    for name, scan in our_scans(matrix).items():
        for count in (1, 2):
            candidates[f"{name}, {count} threads"] = _with_threads(step_of(scan, state, picks, 1), count)
    timings = side_by_side(candidates, arguments.rounds)
    return [
        {"chunks": arguments.chunks, "way": name, "wall_ms": timing.wall, "cpu_ms": timing.cpu,
         "x_one_thread": timing.wall / timings[name.rsplit(",", 1)[0] + ", 1 threads"].wall}
        for name, timing in timings.items()
    ]  # fmt: skip


def _with_threads(call: Callable[[], object], count: int) -> Callable[[], object]:
    def run() -> object:
        with threads(count):
            return call()

    return run


def section_batch(arguments: argparse.Namespace) -> Rows:
    """A batch of states in one pass, on one thread; time per state."""
    random = np.random.default_rng(3)
    matrix = random_matrix(arguments.chunks, 384)
    drawn = [make_query(arguments.chunks, 384, 3, random) for _ in range(16)]
    scans = our_scans(matrix)
    candidates: dict[str, Callable[[], object]] = {}
    for name, scan in scans.items():
        for size in (1, 4, 8, 16):
            queries = [StateQuery(s, relative_runs(arguments.chunks, p), tuple(p)) for s, p in drawn[:size]]
            candidates[f"{name}, batch of {size}"] = partial(scan.top_k, queries, 16)
    with threads(1):
        timings = side_by_side(candidates, arguments.rounds)
    single = timings["ours, float32, batch of 1"].wall
    rows = []
    for name, timing in timings.items():
        size = int(name.rsplit(" ", 1)[1])
        wall, cpu = timing.wall / size, timing.cpu / size
        rows.append({"chunks": arguments.chunks, "way": name, "wall_ms_per_state": wall, "cpu_ms_per_state": cpu,
                     "x_single_float32": wall / single})  # fmt: skip
    return rows


def section_growth(arguments: argparse.Namespace) -> Rows:
    """Step time over the number of chunks, on one thread, with the fitted exponent."""
    random = np.random.default_rng(4)
    sizes = [1_000, 4_600, 20_000, 100_000, LARGE, 1_000_000, 4_000_000]
    rows: Rows = []
    for size in [s for s in sizes if s <= arguments.max_chunks]:
        matrix = random_matrix(size, 384)
        # As a folder has them, in the system's cache.
        stored = matrix.astype(np.float16)
        scans = {**our_scans(matrix), "ours, from the map": mapped_scan(stored)}
        state, picks = make_query(size, 384, 3, random)
        with threads(1):
            timings = side_by_side(
                {name: step_of(scan, state, picks, 1) for name, scan in scans.items()}, arguments.rounds
            )
        rows.extend({"chunks": size, "way": name, "wall_ms": t.wall, "cpu_ms": t.cpu} for name, t in timings.items())
    for name in dict.fromkeys(row["way"] for row in rows):
        own = [(row["chunks"], row["wall_ms"]) for row in rows if row["way"] == name and row["chunks"] >= 20_000]
        if len(own) > 1:
            exponent = np.polyfit(np.log([n for n, _ in own]), np.log([ms for _, ms in own]), 1)[0]
            rows.append({"way": f"{name}: exponent from 20,000 chunks on", "exponent": float(exponent)})
    return rows


def section_same(arguments: argparse.Namespace) -> Rows:
    """Picks compared with an exact scan of the same embeddings, random and real; Q-values within 1e-5 are ties."""
    matrices = {"random": random_matrix(min(arguments.chunks, 50_000), 384), "real": _real_embeddings(arguments.texts)}
    random = np.random.default_rng(5)
    rows: Rows = []
    for kind, matrix in matrices.items():
        scans = our_scans(matrix)
        counts = {(name, k): [0, 0, 0.0] for name in scans for k in (1, 16)}
        rounds = 100
        for _ in range(rounds):
            _, picks = make_query(len(matrix), 384, int(random.integers(0, 6)), random)
            # A state like the real ones: near some of the chunks.
            near = matrix[random.choice(len(matrix), 3)].mean(0)
            state = (near + 0.1 * matrix.std() * random.standard_normal(384)).astype(np.float32)
            runs = relative_runs(len(matrix), picks)
            exact = q_values(state.astype(np.float64), matrix.astype(np.float64), runs)
            exact[picks] = -np.inf
            for (name, k), count in counts.items():
                ids, values = scans[name].top_k([StateQuery(state, runs, tuple(picks))], k)
                best = np.argsort(-exact, kind="stable")[:k]
                gap = float(np.abs(exact[ids[0]] - exact[best]).max())
                count[0] += set(ids[0].tolist()) == set(best.tolist())
                count[1] += gap <= 1e-5
                count[2] = max(count[2], float(np.abs(values[0] - exact[ids[0]]).max()))
        rows.extend(
            {"embeddings": kind, "chunks": len(matrix), "way": name, "top": k, "same_set": f"{same}/{rounds}",
             "same_set_up_to_ties": f"{tied}/{rounds}", "largest_error_of_q": error}
            for (name, k), (same, tied, error) in counts.items()
        )  # fmt: skip
    return rows


def section_whole(arguments: argparse.Namespace) -> Rows:
    """A whole search of 4 hops, with the default model's encoding of the states, and where the time goes."""
    from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel

    model = QRAGModel.from_pretrained(positions="relative")
    rows: Rows = []
    matrix = random_matrix(arguments.chunks, model.config.dim)
    texts = [f"Chunk {i} says that the garden is north of the kitchen." for i in range(arguments.chunks)]
    kinds: tuple[ScanKind, ...] = ("float32", "int8") if is_installed("numba") else ("float32",)
    for kind in kinds:
        index = ChunkIndex.from_embeddings(matrix, texts, model=model, scan=kind)
        spent = {"encode": 0.0, "scan": 0.0}
        _spy(model, "encode_states", spent, "encode")
        _spy(index.view, "top_k", spent, "scan")
        selector = MultiStepSelector(index, k=4)
        selector.select("Where was the football before the kitchen?")
        parts: dict[str, list[float]] = {name: [] for name in ("wall", "rest", *spent)}
        for _ in range(arguments.rounds):
            spent.update(encode=0.0, scan=0.0)
            start = time.perf_counter()
            selector.select("Where was the football before the kitchen?")
            wall = time.perf_counter() - start
            for name, seconds in {"wall": wall, "rest": wall - sum(spent.values()), **spent}.items():
                parts[name].append(1e3 * seconds)
        whole, rest, encode, scan = (float(np.median(times)) for times in parts.values())
        rows.append({"chunks": arguments.chunks, "hops": 4, "scan": kind, "wall_ms": whole, "encode_states_ms": encode,
                     "scan_ms": scan, "rest_ms": rest})  # fmt: skip
        del model.encode_states, index
    return rows


def _spy(target: Any, name: str, spent: dict[str, float], part: str) -> None:
    """Add up the time that a method takes."""
    method = getattr(target, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - start

    setattr(target, name, timed)


def _real_embeddings(paths: Sequence[Path]) -> np.ndarray:
    """Embed the paragraphs of text files, or of this package's own sources, with the default model."""
    from qrag_retriever import QRAGModel

    files = list(paths) or sorted(Path(__file__).parents[1].rglob("*.py"))
    paragraphs = [part for file in files for part in file.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    return QRAGModel.from_pretrained().encode_chunks(paragraphs[:20_000])


SECTIONS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "step": section_step,
    "small": section_small,
    "threads": section_threads,
    "batch": section_batch,
    "growth": section_growth,
    "whole": section_whole,
    "same": section_same,
}


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the named sections, or all."""
    parser = argparse.ArgumentParser(prog="python -m qrag_retriever.benchmarks.search", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--chunks", type=int, default=LARGE, help="rows of the large matrix")
    parser.add_argument("--max-chunks", type=int, default=4_000_000, help="largest matrix of the growth section")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each candidate")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="text files for the real embeddings")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"unknown sections {sorted(unknown)}; known: {', '.join(SECTIONS)}")
    results = {}
    for name in arguments.sections or SECTIONS:
        results[name] = rows = SECTIONS[name](arguments)
        header = list(dict.fromkeys(key for row in rows for key in row))
        print(f"\n## {name}: {SECTIONS[name].__doc__}\n")
        print(table(header, [[_cell(row.get(key)) for key in header] for row in rows]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

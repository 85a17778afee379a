"""A hop on engines against the scan in memory: ``python -m qrag_retriever.benchmarks.engines``.

Random embeddings, document mode; every way is asked the same states with the same picks, in turn, within one run.
PostgreSQL is the one of ``--pgvector``, else one that is started for the run (``pgserver``); Qdrant is the server of
``--qdrant``, else its engine within this process (``qdrant-edge-py``). What is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever import ChunkIndex
from qrag_retriever._extras import is_installed, require_extra
from qrag_retriever.benchmarks.search import make_query, random_matrix
from qrag_retriever.benchmarks.timing import side_by_side, table
from qrag_retriever.positions import relative_runs
from qrag_retriever.scan import StateQuery

Found = tuple[np.ndarray, np.ndarray]
Hop = Callable[[np.ndarray, list[int]], Found]
Rows = list[dict[str, Any]]


def memory_hop(matrix: np.ndarray, kind: Any, k: int) -> Hop:
    """One hop of an index in memory."""
    index = ChunkIndex.from_embeddings(matrix, scan=kind)
    return lambda state, picks: index.top_k(state, picks, k)


def engine_hop(index: ChunkIndex, matrix: np.ndarray, k: int) -> Hop:
    """Fill an index on an engine; one hop of it."""
    index.add([f"Chunk {i}." for i in range(len(matrix))], embeddings=matrix)
    return lambda state, picks: index.top_k(state, picks, k)


def edge_hop(folder: Path, matrix: np.ndarray, k: int, stack: ExitStack) -> Hop:
    """Fill a shard of Qdrant's engine; one hop of it."""
    from qrag_retriever.benchmarks.edge_shard import EdgeShardSearch
    from qrag_retriever.engines.scan import EngineScan

    places = np.arange(len(matrix), dtype=np.int64)
    shard: Any = EdgeShardSearch(folder, matrix, places.tolist())
    stack.callback(shard.close)
    scan = EngineScan(shard, 0, places)

    def hop(state: np.ndarray, picks: list[int]) -> Found:
        ids, values = scan.top_k([StateQuery(state, relative_runs(len(matrix), picks), tuple(sorted(picks)))], k)
        return ids[0], values[0]

    return hop


@contextmanager
def postgres(connection: str | None) -> Iterator[str | None]:
    """Give the connection string of a server; None if there is none and none can be started."""
    if connection is not None or not is_installed("pgserver"):
        yield connection
        return
    with tempfile.TemporaryDirectory() as folder:
        server = require_extra("pgserver", "test").get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def ways(arguments: argparse.Namespace, matrix: np.ndarray, stack: ExitStack) -> dict[str, Callable[[], Hop]]:
    """Name what is compared; each entry loads the matrix and returns its hop."""
    k, dim, name = arguments.top, arguments.dim, f"bench_{uuid.uuid4().hex[:8]}"
    found: dict[str, Callable[[], Hop]] = {"in memory, float32": lambda: memory_hop(matrix, "float32", k)}
    if is_installed("numba"):
        found["in memory, int8"] = lambda: memory_hop(matrix, "int8", k)
    connection = stack.enter_context(postgres(arguments.pgvector))
    if connection is not None:
        found["PostgreSQL, pgvector"] = lambda: engine_hop(ChunkIndex.on_pgvector(connection, name, dim=dim), matrix, k)
    if arguments.qdrant is not None:
        found["Qdrant, server"] = lambda: engine_hop(ChunkIndex.on_qdrant(arguments.qdrant, name, dim=dim), matrix, k)
    elif is_installed("qdrant_edge"):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found["Qdrant, engine in-process"] = lambda: edge_hop(folder, matrix, k, stack)
    return found


def agreement(
    hops: dict[str, Hop], queries: Sequence[tuple[np.ndarray, list[int]]]
) -> dict[str, tuple[int, int, float]]:
    """Count, against the first way: hops with the same best chunk, with the same set; the largest error of a score."""
    first = next(iter(hops))
    counts = {}
    for name, hop in hops.items():
        same_best = same_set = 0
        error = 0.0
        for state, picks in queries:
            (ids, values), (other_ids, other_values) = hop(state, picks), hops[first](state, picks)
            same_best += int(ids[0] == other_ids[0])
            same_set += int(set(ids.tolist()) == set(other_ids.tolist()))
            error = max(error, float(np.abs(values - other_values).max()))
        counts[name] = (same_best, same_set, error)
    return counts


def measure(arguments: argparse.Namespace) -> Rows:
    """Load every way, compare what they find, and time them in turn."""
    matrix = random_matrix(arguments.chunks, arguments.dim)
    random = np.random.default_rng(1)
    queries = [make_query(arguments.chunks, arguments.dim, arguments.picks, random) for _ in range(arguments.rounds)]
    with ExitStack() as stack:
        hops, load_seconds = {}, {}
        for name, load in ways(arguments, matrix, stack).items():
            start = time.perf_counter()
            hops[name] = load()
            load_seconds[name] = time.perf_counter() - start
        counts = agreement(hops, queries)
        timings = side_by_side({name: _in_turn(hop, queries) for name, hop in hops.items()}, arguments.rounds)
    return [
        {
            "chunks": arguments.chunks,
            "way": name,
            "load_s": load_seconds[name],
            "hop_ms": timings[name].wall,
            "same_best": f"{counts[name][0]}/{len(queries)}",
            f"same_top_{arguments.top}": f"{counts[name][1]}/{len(queries)}",
            "largest_error": counts[name][2],
        }
        for name in hops
    ]


def _in_turn(hop: Hop, queries: Sequence[tuple[np.ndarray, list[int]]]) -> Callable[[], object]:
    """Ask the next query at every call."""
    calls = iter(range(2**31))
    return lambda: hop(*queries[next(calls) % len(queries)])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m qrag_retriever.benchmarks.engines", description=__doc__)
    parser.add_argument("--chunks", type=int, default=40_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--picks", type=int, default=3, help="chunks picked before the hop")
    parser.add_argument("--top", type=int, default=16, help="chunks that a hop returns")
    parser.add_argument("--rounds", type=int, default=20, help="timed hops of each way")
    parser.add_argument("--pgvector", help="connection string of a PostgreSQL server with pgvector")
    parser.add_argument("--qdrant", help="URL of a Qdrant server")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args(argv)
    rows = measure(arguments)
    header = list(rows[0])
    print(table(header, [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

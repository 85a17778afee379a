"""The benchmark of engines runs, agrees with the scan in memory, and missing extras are named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qrag_retriever import ChunkIndex
from qrag_retriever.benchmarks.engines import main


def test_every_way_finds_the_same_and_is_timed(
    postgres: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    sizes = ["--chunks", "600", "--dim", "16", "--rounds", "2", "--top", "4"]
    main([*sizes, "--pgvector", postgres, "--json", str(path)])
    rows = json.loads(path.read_text())
    ways = [row["way"] for row in rows]
    assert ways[0] == "in memory, float32"
    assert ways[-2:] == ["PostgreSQL, pgvector", "Qdrant, engine in-process"]
    for row in rows:
        assert (row["same_best"], row["same_top_4"]) == ("2/2", "2/2")
        assert row["hop_ms"] > 0
        assert row["load_s"] > 0
        assert row["largest_error"] < 1e-5
    assert "PostgreSQL, pgvector" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "extra", "opening"),
    [("psycopg", "pgvector", ChunkIndex.on_pgvector), ("qdrant_client", "qdrant", ChunkIndex.on_qdrant)],
)
def test_a_missing_extra_is_named(module: str, extra: str, opening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"qrag-retriever\[{extra}\]"):
        opening("somewhere")

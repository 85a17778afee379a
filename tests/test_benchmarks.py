"""The search benchmark runs, and what it compares with is computed rightly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qrag_retriever.benchmarks.rivals import RotateEveryChunk, floors
from qrag_retriever.benchmarks.search import main, random_matrix
from qrag_retriever.benchmarks.timing import side_by_side
from qrag_retriever.positions import relative_runs
from qrag_retriever.q_values import q_values


@pytest.mark.parametrize("reuse_buffers", [False, True])
def test_the_rival_computes_the_same_q_values(reuse_buffers: bool) -> None:
    matrix = random_matrix(500, 32)
    state = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    rival = RotateEveryChunk(matrix, state, reuse_buffers)
    expected = q_values(state, matrix, relative_runs(500, [7, 300]))
    np.testing.assert_allclose(rival.q_values([7, 300]).numpy(), expected, atol=1e-5)
    values, ids = rival.step([7, 300], 3)
    expected[[7, 300]] = -np.inf
    assert ids.tolist() == np.argsort(-expected)[:3].tolist()
    np.testing.assert_allclose(values.numpy(), np.sort(expected)[::-1][:3], atol=1e-5)


def test_half_a_memcpy_counts_by_half() -> None:
    matrix = random_matrix(10, 8)
    shares = {name: share for name, (_, share) in floors(matrix, matrix[0]).items()}
    assert sorted(shares.values()) == [0.5, 1.0, 1.0]


def test_timings_are_of_every_candidate() -> None:
    calls: list[str] = []
    timings = side_by_side({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] + ["a", "b"] * 3, "in turn, after one untimed call each"
    assert timings.keys() == {"a", "b"}


def test_the_sections_run_and_write_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    sizes = ["--chunks", "2500", "--max-chunks", "5000", "--rounds", "2", "--json", str(path)]
    main(["step", "threads", "batch", "growth", *sizes])
    rows = json.loads(path.read_text())
    assert rows.keys() == {"step", "threads", "batch", "growth"}
    assert all(row["wall_ms"] > 0 for row in rows["step"])
    assert "ours, float32" in capsys.readouterr().out


def test_an_unknown_section_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "unknown sections ['speed']" in capsys.readouterr().err

"""The search benchmark runs, and what it compares with is computed rightly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from qrag_retriever import QRAGModel
from qrag_retriever.benchmarks import concurrency, folder
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


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_folder_is_built_in_blocks_and_opened_with_each_scan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "BLOCK", 200)
    folder.main(["--chunks", "500", "--rounds", "2", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {"float32", "mapped"} <= {row["scan"] for row in rows} <= {"float32", "int8", "mapped"}
    for row in rows:
        assert row["chunks"] == 500
        assert row["folder_mb"] > 500 * folder.DIM * 2 / 1e6, "float16 vectors, and texts"
        assert 0 < row["open_s"] < row["first_hop_after_s"]
        assert row["hop_ms"] > 0
    assert "first_hop_after_s" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--chunks", "--rounds"])
def test_a_folder_of_nothing_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        folder.main([option, "0"])
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


def test_an_unknown_section_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "unknown sections ['speed']" in capsys.readouterr().err


def test_many_users_are_timed_and_must_agree(
    tmp_path: Path, model: QRAGModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--chunks", "30", "--questions", "8", "--users", "4"]
    concurrency.main([*arguments, "--rounds", "1", "--processes", "1"])
    lines = capsys.readouterr().out.splitlines()
    named = [line.split("|")[1].strip() for line in lines[2:8]]
    assert named == [
        "one after the other", "search_many, 4 at once", "4 threads", "4 threads, joined", "4 tasks", "4 tasks, joined"
    ]  # fmt: skip
    assert all(float(line.split("|")[2]) > 0 for line in lines[2:8])
    assert lines[3].split("|")[3].strip() == "1.00"
    assert lines[-1].startswith("1 processes over one folder: ")
    monkeypatch.setattr(
        concurrency.QRAGRetriever, "search_many", lambda self, asked: [self.search("rain")] * len(asked)
    )
    with pytest.raises(AssertionError, match=r"search_many, 4 at once.: [1-8]"):
        concurrency.main([*arguments, "--rounds", "1", "--processes", "0"])

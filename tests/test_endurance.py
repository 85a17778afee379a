"""The long run: its table, and that a short one leaves no files open and no threads behind."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever import QRAGModel, QRAGRetriever
from qrag_retriever.benchmarks.endurance import Endurance, Resources, Texts, main, measure
from tests.conftest import STORY
from tests.index_folders import STATE, new_index, record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def test_beginning_and_end_are_side_by_side() -> None:
    seconds = np.concatenate([np.full(10, 0.001), np.full(80, 1.0), np.full(10, 0.002)])
    rows = Endurance(seconds, Resources(2_000_000, 3, 4), Resources(5_500_000, 6, 7)).rows()
    assert [row[1:] for row in rows] == [["2.0", "5.5"], ["3", "6"], ["4", "7"], ["1.00", "2.00"], ["1.00", "2.00"]]


def test_searches_and_changes_keep_nothing_open(tmp_path: Path, model: QRAGModel) -> None:
    retriever = QRAGRetriever.from_texts(STORY, model=model)
    retriever.save(tmp_path / "index")
    found = measure(retriever, Texts(0), 200, 10, 1e9)
    assert (found.seconds > 0).all()
    assert (found.end.files, found.end.threads) == (found.warm.files, found.warm.threads)
    assert len(retriever.index) == len(STORY) + 1, "the last chunk that was added"


@pytest.mark.parametrize("scan", ["float32", "int8"])
def test_a_version_that_is_over_closes_its_files_at_once(tmp_path: Path, scan: Any) -> None:
    """And not when Python next looks for circles of references."""
    index = new_index(50, scan=scan)
    index.save(tmp_path / "index")
    index.top_k(STATE, [3], 4)
    gc.collect()
    gc.disable()
    try:
        held = []
        for number in range(10):
            index.add_records([record(100 + number)])
            index.delete([f"c{number}"])
            index.top_k(STATE, [3], 4)
            held.append(Resources.now().files)
    finally:
        gc.enable()
    assert held[0] == held[-1]


def test_it_ends_when_its_time_is_over(model: QRAGModel) -> None:
    found = measure(QRAGRetriever.from_texts(STORY, model=model), Texts(0), 10**6, 10, 0.2)
    assert 0 < len(found.seconds) < 10**6


def test_the_command_line(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--queries", "30", "--chunks", "20", "--change-every", "7", "--json", str(tmp_path / "rows.json")]
    main([*options, "--encoder", str(tiny_encoder), "--num-layers", "1"])
    printed = capsys.readouterr().out
    assert "30 searches of 4 hops over 20 chunks" in printed
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["queries"] == 30
    assert [row[0] for row in written["rows"]] == ["memory, MB", "open files", "threads", "p50, ms", "p99, ms"]
    with pytest.raises(SystemExit):
        main(["--queries", "0"])
    assert "--queries must be at least 1, got 0" in capsys.readouterr().err

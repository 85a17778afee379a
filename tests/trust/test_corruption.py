"""Bytes flipped, cut and overwritten at random places: right answers or a clear error, never a wrong one in silence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qrag_retriever import QRAGModel
from qrag_retriever.checksums import CHECKSUMS_NAME
from qrag_retriever.errors import CheckpointError
from qrag_retriever.records import Record
from qrag_retriever.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from qrag_retriever.training.processes import Processes
from tests.index_folders import assert_equal_or_refused, new_index, observed, record, saved
from tests.trust.counts import count
from tests.trust.damage import damages
from tests.trust.model_worker import in_a_process, index_cut_while_open, model_cut_while_open, read_damaged

DAMAGES = count(30, 500)


@pytest.mark.parametrize("name", ["vectors.f16", "index.sqlite"])
@pytest.mark.parametrize("number", [DAMAGES])
def test_a_damaged_index_gives_the_same_results_or_is_refused(tmp_path: Path, name: str, number: int) -> None:
    index = saved(tmp_path / "index", 30)
    index.add_records([record(3, "changed"), Record("d", "text", {"a": [1]}, "D", {"x": 1}, "embedded")])
    index.delete(["c5"])
    before = observed(tmp_path / "index")
    shutil.copytree(tmp_path / "index", tmp_path / "whole")
    refused = 0
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / name, tmp_path / "part")
    for what in damages(tmp_path / "part", number, name):
        shutil.rmtree(tmp_path / "index")
        shutil.copytree(tmp_path / "whole", tmp_path / "index")
        shutil.copy(tmp_path / "part" / name, tmp_path / "index")
        try:
            refused += not assert_equal_or_refused(tmp_path / "index", before)
        except BaseException as error:
            raise AssertionError(what) from error
    assert refused > number // 10


@pytest.mark.parametrize("number", [DAMAGES])
@pytest.mark.parametrize("compact", [False, True], ids=["two folders", "compact"])
@pytest.mark.parametrize("checksums", [True, False], ids=["with checksums", "without"])
def test_a_damaged_model_gives_the_same_embeddings_or_is_refused(
    tmp_path: Path, model: QRAGModel, compact: bool, checksums: bool, number: int
) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder, compact=compact)
    if not checksums:
        (folder / CHECKSUMS_NAME).unlink()
    *wrong, refused = in_a_process(tmp_path, read_damaged, str(folder), number)
    assert wrong == []
    assert int(refused.split()[0]) > number // 10


@pytest.mark.parametrize("number", [DAMAGES])
def test_a_damaged_checkpoint_is_the_same_or_refused(tmp_path: Path, number: int) -> None:
    random = torch.Generator().manual_seed(1)
    tensors = {f"weight/{i}": torch.randn(40, 8, generator=random) for i in range(5)}
    own = {"stage": {"episodes": [1, 2, 3]}, "text": "ü"}
    written = Checkpoint({"num_processes": 1, "step": 7}, tensors, own, {"torch_random": torch.arange(50)})
    folder = write_checkpoint(tmp_path, 7, written, Processes())
    whole = plain(read_checkpoint(folder, Processes()))
    assert whole["own"] == own
    refused = 0
    for what in damages(folder, number, "checkpoint"):
        try:
            assert plain(read_checkpoint(folder, Processes())) == whole, what
        except CheckpointError:
            refused += 1
    # But for the order of lines in a list of checksums nothing is free to change.
    assert refused == number
    assert plain(read_checkpoint(folder, Processes())) == whole


def plain(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint holds, to be compared."""
    parts: dict[str, Any] = {"shared": checkpoint.shared, "own": checkpoint.own}
    for name in ("tensors", "own_tensors"):
        parts[name] = {key: value.numpy().tobytes() for key, value in getattr(checkpoint, name).items()}
    return parts


@pytest.mark.parametrize("searched", ["searched", "untouched"])
@pytest.mark.parametrize(
    ("name", "scan"), [("vectors.f16", "float32"), ("vectors.f16", "int8"), ("index.sqlite", "float32")]
)
def test_an_index_that_is_cut_while_it_is_open_ends_no_process(
    tmp_path: Path, name: str, scan: str, searched: str
) -> None:
    # Several pages of vectors: what lies behind the end of a file cannot be read at all.
    new_index(2_000).save(tmp_path / "index")
    results = in_a_process(tmp_path, index_cut_while_open, str(tmp_path / "index"), name, scan, searched)
    assert set(results) <= {"same", "True", "refused"}
    assert results.count("refused") >= 4


@pytest.mark.parametrize("compact", [False, True], ids=["two folders", "compact"])
def test_a_model_that_is_cut_while_it_is_open_ends_no_process(tmp_path: Path, model: QRAGModel, compact: bool) -> None:
    model.save_pretrained(tmp_path / "model", compact=compact)
    assert in_a_process(tmp_path, model_cut_while_open, str(tmp_path / "model")) in ("same", "refused")

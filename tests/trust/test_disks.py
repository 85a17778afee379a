"""Models on disks that are full or may not be written: the old one stands, the error is clear, nothing stays behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qrag_retriever import QRAGModel
from tests.conftest import STORY
from tests.disks import mounted, needs_mount
from tests.index_folders import files_of


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow above a size: where a full disk cannot be mounted, this is like one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def embedded(folder: Path) -> np.ndarray:
    return QRAGModel.from_pretrained(folder, device="cpu").encode_chunks(STORY[:2])


@pytest.mark.parametrize("compact", [False, True], ids=["two folders", "compact"])
@pytest.mark.parametrize("size", [0, 1_000, 20_000])
def test_a_model_that_does_not_fit_leaves_the_old_one(
    tmp_path: Path, model: QRAGModel, compact: bool, size: int
) -> None:
    model.save_pretrained(tmp_path / "model", compact=compact)
    before, expected = files_of(tmp_path), embedded(tmp_path / "model")
    for target in ("model", "new"):
        with largest_file(size), pytest.raises(OSError, match=r"(?i)file too large|cannot be written"):
            model.save_pretrained(tmp_path / target, compact=compact)
    assert files_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    np.testing.assert_array_equal(embedded(tmp_path / "model"), expected)


@needs_mount
@pytest.mark.parametrize("compact", [False, True], ids=["two folders", "compact"])
@pytest.mark.parametrize("left", [0, 8_192, 65_536])
def test_a_model_on_a_really_full_disk_leaves_the_old_one(
    tmp_path: Path, model: QRAGModel, compact: bool, left: int
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        model.save_pretrained(disk / "model", compact=compact)
        before = files_of(disk)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(b"x" * (free - left))
        with pytest.raises(OSError, match=r"(?i)no space|cannot be written"):
            model.save_pretrained(disk / "model", compact=compact)
        (disk / "filler").unlink()
        assert files_of(disk) == before
        assert [path.name for path in disk.iterdir()] == ["model"]
        assert embedded(disk / "model").shape == (2, 32)


@needs_mount
@pytest.mark.parametrize("compact", [False, True], ids=["two folders", "compact"])
def test_a_model_on_read_only_media_is_used_and_not_replaced(tmp_path: Path, model: QRAGModel, compact: bool) -> None:
    model.save_pretrained(tmp_path / "own" / "model", compact=compact)
    (tmp_path / "media").mkdir()
    with mounted(tmp_path / "media", "--bind", str(tmp_path / "own")) as media:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(media)], check=True)
        assert embedded(media / "model").shape == (2, 32)
        before = files_of(media)
        for target in ("model", "new"):
            with pytest.raises(OSError, match="Read-only file system"):
                model.save_pretrained(media / target, compact=compact)
        assert files_of(media) == before

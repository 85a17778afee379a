"""The memory of this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qrag_retriever import devices


def test_free_memory_is_handed_back_where_the_system_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(devices, "_malloc_trim", lambda: asked.append)
    devices.release_free_memory()
    assert asked == [0]
    monkeypatch.setattr(devices, "_malloc_trim", lambda: None)
    devices.release_free_memory()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_glibc_can_be_asked() -> None:
    devices._malloc_trim.cache_clear()
    devices.release_free_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    devices._malloc_trim.cache_clear()
    monkeypatch.setattr(sys, "platform", "win32")
    assert devices._malloc_trim() is None
    devices._malloc_trim.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a process begins at nothing anyway")
def test_the_peak_of_memory_is_that_of_this_process_and_not_of_the_one_that_started_it() -> None:
    large = bytearray(2**30)
    large[:: 2**12] = b"x" * len(range(0, 2**30, 2**12))
    assert (devices.peak_memory_mb() or 0) > 1024
    code = "from qrag_retriever.devices import peak_memory_mb; print(peak_memory_mb())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(shown.stdout) < 1024
    del large


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has it")
def test_the_status_of_a_process_has_its_numbers() -> None:
    status = devices.process_status()
    assert 2**10 < status["VmRSS"] <= status["VmHWM"]
    assert status["Threads"] >= 1
    assert "Name" not in status


def test_without_a_status_the_peak_is_what_python_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / "missing")
    assert devices.process_status() == {}
    assert (devices.peak_memory_mb() or 0) > 10

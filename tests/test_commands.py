"""The commands where their extras are not installed: one line, and the extra that brings what is missing."""

from __future__ import annotations

import sys

import pytest

from qrag_retriever import commands


@pytest.mark.parametrize(("command", "missing"), [("train", "tensorboard"), ("bench", "bm25s")])
def test_a_missing_extra_is_named(
    command: str, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("qrag_retriever.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(sys, "argv", [f"qrag-{command}", "--help"])
    assert getattr(commands, command)() == 1
    what = f"this needs the package {missing!r}, which is not installed"
    assert capsys.readouterr().err == f"qrag-{command}: {what}: pip install 'qrag-retriever[{command}]'\n"


@pytest.mark.parametrize("command", ["train", "bench"])
def test_the_commands_are_those_of_the_package(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"qrag-{command}", "--help"])
    with pytest.raises(SystemExit, match="0"):
        getattr(commands, command)()
    assert f"usage: qrag-{command}" in capsys.readouterr().out

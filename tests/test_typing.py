"""The annotations as users' type checkers see them: `typing_user_code.py` has no error, and wrong code has some."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

USER_CODE = Path(__file__).with_name("typing_user_code.py")
# Each line is an error.
WRONG_CODE = """\
from qrag_retriever import QRAGRetriever
retriever = QRAGRetriever.from_texts([b"bytes"])
retriever.search(3)
retriever.search("question", top_k=3)
retriever.invoke(3)
retriever.retrieve(3)
retriever.search_iter("question").selection.stop_reason
retriever.order = "reversed"
"""
WRONG_LINES = [2, 3, 4, 5, 6, 7, 8]


def checked(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # As an installed package is seen: with py.typed, and without the settings of this repository.
    environment = {**os.environ, "MYPYPATH": str(USER_CODE.parents[1]), "PYTHONPATH": str(USER_CODE.parents[1])}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("wrong", [False, True], ids=["user code", "wrong code"])
def test_mypy(tmp_path: Path, wrong: bool) -> None:
    pytest.importorskip("mypy")
    file = tmp_path / "user_code.py"
    file.write_text(WRONG_CODE if wrong else USER_CODE.read_text(encoding="utf-8"), encoding="utf-8")
    # Errors inside the package are the repository's own check; a user's mypy follows its imports silently.
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", str(file)]
    found = checked([*command, f"--cache-dir={tmp_path}"], tmp_path)
    lines = {int(line.split(":")[1]) for line in found.stdout.splitlines() if ": error:" in line}
    assert sorted(lines) == (WRONG_LINES if wrong else []), found.stdout + found.stderr


def pyright() -> str | None:
    """A pyright that is there: the one that comes with its own Node.js, or one that was installed."""
    beside = Path(sys.executable).with_name("basedpyright")
    return str(beside) if find_spec("basedpyright") and beside.exists() else shutil.which("pyright")


@pytest.mark.skipif(pyright() is None, reason="neither basedpyright nor pyright is installed")
@pytest.mark.parametrize("wrong", [False, True], ids=["user code", "wrong code"])
def test_pyright(tmp_path: Path, wrong: bool) -> None:
    file = tmp_path / "user_code.py"
    file.write_text(WRONG_CODE if wrong else USER_CODE.read_text(encoding="utf-8"), encoding="utf-8")
    settings = {
        "include": [str(file)],
        "typeCheckingMode": "standard",
        "extraPaths": [str(USER_CODE.parents[1])],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [str(pyright()), "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    found = json.loads(checked(command, tmp_path).stdout)
    errors = [one for one in found["generalDiagnostics"] if one["severity"] == "error"]
    lines = {one["range"]["start"]["line"] + 1 for one in errors}
    assert found["summary"]["filesAnalyzed"] == 1
    assert sorted(lines) == (WRONG_LINES if wrong else []), json.dumps(errors, indent=2)

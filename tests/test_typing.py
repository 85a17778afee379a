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

from tests.trust.counts import FULL

ROOT = Path(__file__).parents[1]
USER_CODE = (ROOT / "tests" / "typing_user_code.py").read_text(encoding="utf-8")
# Every line but the first two is an error.
WRONG_CODE = """\
from qrag_retriever import QRAGRetriever
retriever = QRAGRetriever.from_texts(["text"])
retriever.add_texts([b"bytes"])
retriever.search(3)
retriever.search("question", top_k=3)
retriever.search("question", filters=3)
retriever.search_iter("question").selection.stop_reason
retriever.invoke(3)
retriever.order = "reversed"
"""
WRONG = {"user_code.py": [], "wrong_code.py": [3, 4, 5, 6, 7, 8, 9]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project of a user's, without the settings of this repository."""
    (tmp_path / "user_code.py").write_text(USER_CODE, encoding="utf-8")
    (tmp_path / "wrong_code.py").write_text(WRONG_CODE, encoding="utf-8")
    return tmp_path


def run(command: list[str], folder: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


@pytest.mark.skipif(not FULL, reason="minutes of a checker that reads every dependency; QRAG_FULL=1 runs it")
def test_mypy(folder: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("mypy")
    cache = request.config.cache
    kept = folder / "cache" if cache is None else cache.mkdir("mypy_of_users")
    # What is wrong inside the package is the repository's own check.
    options = ["--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={kept}"]
    command = [sys.executable, "-m", "mypy", *options, *WRONG]
    printed = run(command, folder, MYPYPATH=str(ROOT))
    found = [line.split(":")[:2] for line in printed.splitlines() if ": error:" in line]
    assert {name: sorted({int(line) for file, line in found if file == name}) for name in WRONG} == WRONG, printed


def pyright() -> str | None:
    """A pyright that is there: the one that comes with a Node.js of its own, or one that was installed."""
    beside = Path(sys.executable).with_name("basedpyright")
    return str(beside) if find_spec("basedpyright") and beside.exists() else shutil.which("pyright")


@pytest.mark.skipif(pyright() is None, reason="neither basedpyright nor pyright is installed")
def test_pyright(folder: Path) -> None:
    settings = {"include": [*WRONG], "typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    printed = run([str(pyright()), "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)], folder)
    errors = [one for one in json.loads(printed)["generalDiagnostics"] if one["severity"] == "error"]
    found = [(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in errors]
    assert {name: sorted({line for file, line in found if file == name}) for name in WRONG} == WRONG, printed

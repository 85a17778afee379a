"""What a release needs: one version everywhere, workflows that can be read, drafts that run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from qrag_retriever import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github/workflows"


def workflow(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))
    return content


def test_the_version_is_the_same_everywhere() -> None:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found[1] == citation["version"] == __version__


def test_only_the_publishing_job_gets_an_identity_and_it_waits_for_the_checks() -> None:
    jobs = workflow("release.yml")["jobs"]
    assert {name for name, job in jobs.items() if "id-token" in job.get("permissions", {})} == {"publish"}
    assert set(jobs["publish"]["needs"]) == {"checks", "build"}
    assert jobs["checks"]["uses"] == "./.github/workflows/ci.yml"
    for name in ("ci.yml", "release.yml"):
        assert workflow(name)["permissions"] == {"contents": "read"}


def test_the_checks_are_those_of_a_developer() -> None:
    (job,) = workflow("ci.yml")["jobs"].values()
    assert job["steps"][-1] == {"run": "bash .ci/run"}


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((ROOT / "docs/integrations/langchain_retriever.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(cell for cell in cells if not cell.startswith("%"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # In the order of a notebook, in one namespace.
    exec(compile(code, "notebook", "exec"), {"__name__": "__main__"})
    assert list(tmp_path.glob("*/town.qrag/index.sqlite"))

"""No network and no code of others, unless it is asked for."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qrag_retriever
from qrag_retriever import QRAGModel
from qrag_retriever.training.recipe import ModelSettings
from tests.test_imports import FILES

ROOT = Path(__file__).parents[2]


def test_nothing_asks_the_network_unless_a_hub_id_is_given(tmp_path: Path, tiny_encoder: Path) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.trust.offline", str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_code_of_others_is_not_trusted_by_default() -> None:
    assert ModelSettings().trust_remote_code is False
    for method in (QRAGModel.from_pretrained, QRAGModel.from_encoder):
        named = inspect.signature(method).parameters
        assert "trust_remote_code" not in named or named["trust_remote_code"].default is False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_sources_trust_nothing(path: Path) -> None:
    """No call says ``trust_remote_code=True`` or reads pickles; what transformers loads is told not to trust."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert keywords.get("trust_remote_code", "False") == "False", name
        assert name not in ("pickle.load", "pickle.loads", "yaml.load", "eval", "exec", "os.system"), name
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        if name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config")):
            assert keywords.get("trust_remote_code") == "False", name


def test_an_import_opens_nothing() -> None:
    script = (
        "import sys, qrag_retriever; assert not {'torch', 'requests', 'httpx', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(qrag_retriever.__file__).parents[1])

"""Reads what was damaged in a process of its own, so that a crash of the interpreter is one failed test."""

from __future__ import annotations

import faulthandler
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever import QRAGModel
from qrag_retriever.errors import IndexFolderError, ModelFolderError
from qrag_retriever.index import ChunkIndex
from tests.toy_model import DIM, embedding_of
from tests.training_runs import started
from tests.trust.damage import damages

TEXTS = ["Mary took the football.", "Where was the football?"]


def in_a_process(folder: Path, command: Callable[..., Any], *arguments: Any) -> Any:
    """Carry out a command and return what it returned, JSON values; fail if the interpreter crashed."""
    process = started(_tell, folder, command, str(folder / "result.json"), *arguments)
    process.join()
    assert process.exitcode == 0, (process.exitcode, (folder / "err.txt").read_text()[-3000:])
    return json.loads((folder / "result.json").read_text())


def _tell(command: Callable[..., Any], file: str, *arguments: Any) -> None:
    faulthandler.enable()
    Path(file).write_text(json.dumps(command(*arguments)))


def embeddings(folder: Path) -> list[bytes]:
    model = QRAGModel.from_pretrained(folder, device="cpu")
    return [model.encode_chunks(TEXTS).tobytes(), model.encode_states(TEXTS).tobytes()]


def read_damaged(folder: str, count: int) -> list[str]:
    """Damage a model folder again and again; return what came of it that should not, and how often it was refused.

    A folder without checksums may give other answers; it must not crash, nor raise other errors than ours.
    """
    whole = embeddings(Path(folder))
    has_checksums = (Path(folder) / "SHA256SUMS").exists()
    wrong, refused = [], 0
    for name in damages(Path(folder), count, Path(folder).name):
        try:
            if embeddings(Path(folder)) != whole and has_checksums:
                wrong.append(f"{name}: another answer")
        except ModelFolderError:
            refused += 1
        except Exception as error:  # to be told
            wrong.append(f"{name}: {type(error).__name__}: {error}"[:300])
    return [*wrong, f"{refused} refused"]


def model_cut_while_open(folder: str) -> str:
    """Cut the weights of a model that has been loaded."""
    model = QRAGModel.from_pretrained(folder, device="cpu")
    before = model.encode_chunks(TEXTS)
    for path in Path(folder).rglob("*.safetensors"):
        os.truncate(path, 100)
    try:
        return "same" if np.array_equal(model.encode_chunks(TEXTS), before) else "another answer"
    except ModelFolderError:
        return "refused"


def index_cut_while_open(folder: str, name: str, scan: Any, searched: str) -> list[str]:
    """Cut a file of an index that has been opened, and searched or not; then use it."""
    index = ChunkIndex.load(folder, scan=scan)
    state = embedding_of("a state")
    before = index.top_k(state, [3], 5) if searched == "searched" else None
    os.truncate(Path(folder) / name, 100)
    results = []
    for use in (
        lambda: index.top_k(state, [3], 5),
        lambda: index.get(index.ids[-3:]),
        lambda: index.q_values(state),
        lambda: index.view.gain(state, len(index) - 1, 0.0),
        lambda: index.delete(index.ids[:1]),
        lambda: index.add(["new"], embeddings=np.ones((1, DIM), np.float32)),
        index.refresh,
    ):
        try:
            found = use()
            results.append("same" if before is None or not isinstance(found, tuple) else str(_equal(found, before)))
        except IndexFolderError:
            results.append("refused")
    return results


def _equal(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))

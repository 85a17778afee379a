"""Everything that the package does without being told of a hub id, in a process whose sockets raise.

Run as a program: ``python -m tests.trust.offline FOLDER``; the folder has a small encoder in ``encoder``.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

# The libraries' own offline switches stay off: nothing may even try.
for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[switch] = "0"

TRIED: list[str] = []


def block() -> None:
    """Let every way to another machine raise, and note that it was tried."""

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        TRIED.append(repr(arguments[-2:]))
        raise ConnectionError(f"no network in this test: {arguments[-2:]}")

    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            refuse(address)
        connect(self, address)

    socket.socket.connect = connect_here  # type: ignore[method-assign]
    socket.socket.connect_ex = refuse  # type: ignore[method-assign,assignment]
    socket.socket.sendto = refuse  # type: ignore[method-assign,assignment]
    socket.create_connection = refuse  # type: ignore[assignment]
    socket.getaddrinfo = refuse  # type: ignore[assignment]
    socket.gethostbyname = refuse  # type: ignore[assignment]


def use(folder: Path) -> None:
    """Index with the model of the package, search, save, load, change; train, and measure what was trained."""
    from qrag_retriever import QRAGModel, QRAGRetriever
    from qrag_retriever.benchmarks.suite.cli import main as bench
    from qrag_retriever.training.cli import main as train
    from tests.conftest import QUESTION, STORY
    from tests.test_datasets import put_books
    from tests.test_suite_stress import put_moves
    from tests.training_runs import settings_of, toml_of, write_questions

    retriever = QRAGRetriever.from_texts(STORY)
    found = retriever.search(QUESTION)
    assert len(found.steps) == len(retriever.invoke(QUESTION)) == len(retriever.retrieve(QUESTION)) == 4
    retriever.save(folder / "index")
    again = QRAGRetriever.load(folder / "index")
    again.add_texts(["A new chunk."], ids=["new"])
    again.delete(["new"])
    assert again.search(QUESTION).ids == found.ids
    QRAGModel.from_encoder(folder / "encoder", device="cpu").save_pretrained(folder / "model", compact=True)
    assert QRAGModel.from_pretrained(folder / "model").encode_chunks(["a"]).shape == (1, 32)

    write_questions(folder / "train.jsonl", 12, seed=1)
    write_questions(folder / "validation.jsonl", 6, seed=2)
    recipe = settings_of(folder, folder / "encoder", {"run.tensorboard": True})
    (folder / "recipe.toml").write_text(toml_of(recipe), encoding="utf-8")
    assert train([str(folder / "recipe.toml")]) == 0

    put_books(folder, "test", 5, num_sentences=300)
    put_moves(folder, 12)
    options = ["--data", str(folder), "--model", str(folder / "run" / "model"), "--device", "cpu", "--samples", "2"]
    assert bench(["babilong-qa1", "--lengths", "1k", "--baseline", "bm25", *options]) == 0


def ask_the_hub() -> None:
    """Name a hub id: here the network is asked."""
    from qrag_retriever import QRAGModel

    try:
        QRAGModel.from_pretrained("no-such-owner/no-such-model")
    except (ValueError, OSError):
        return


if __name__ == "__main__":
    block()
    use(Path(sys.argv[1]))
    assert TRIED == [], TRIED
    ask_the_hub()
    assert TRIED, "the block would have been noticed"

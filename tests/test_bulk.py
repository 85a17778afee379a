"""Embedding many chunks: by text and model from a cache, by several processes, going on after a kill."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, QRAGModel, bulk
from qrag_retriever.embedding_cache import EmbeddingCache, key_of
from qrag_retriever.errors import CacheError
from tests.conftest import STORY


@pytest.fixture
def folder(tmp_path: Path, model: QRAGModel) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are really embedded."""
    seen: list[str] = []
    original = QRAGModel.embed_block

    def listen(self: QRAGModel, texts: list[str]) -> tuple[np.ndarray, int]:
        seen.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(QRAGModel, "embed_block", listen)
    return seen


def test_what_was_embedded_once_is_read_from_then_on(tmp_path: Path, folder: Path, embedded: list[str]) -> None:
    plain = QRAGModel.from_pretrained(folder, device="cpu")
    for again in range(2):
        model = QRAGModel.from_pretrained(folder, device="cpu", cache=tmp_path / "cache.sqlite")
        np.testing.assert_allclose(model.encode_chunks([*STORY, *STORY[:3]]), plain.encode_chunks([*STORY, *STORY[:3]]))
        assert sorted(embedded) == sorted(STORY), again
    index = ChunkIndex.from_texts([*STORY[:5], "Rain fell.", *STORY[6:]], model=model)
    assert embedded[len(STORY) :] == ["Rain fell."]
    index.add(["Nobody came.", STORY[0]], ids=["a", "b"])
    assert embedded[len(STORY) + 1 :] == ["Nobody came."]
    assert len(EmbeddingCache(tmp_path / "cache.sqlite")) == len(STORY) + 2


def test_chunks_that_were_cut_are_told_of_at_every_run(
    tmp_path: Path, folder: Path, embedded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    long = "rain fell " * 200
    for run in range(2):
        model = QRAGModel.from_pretrained(folder, device="cpu", cache=tmp_path / "cache.sqlite")
        found = model.encode_chunks([long, STORY[0], long])
        assert [m.split(" are ")[0] for m in caplog.messages if "are longer than" in m] == ["2 of 3 chunks"] * (run + 1)
    assert len(embedded) == 2
    np.testing.assert_allclose(found, model.action_encoder.encode([long, STORY[0], long]), atol=1e-6)


def test_another_model_or_number_format_has_embeddings_of_its_own(
    tmp_path: Path, folder: Path, embedded: list[str]
) -> None:
    for number, options in enumerate([{}, {"output_scale": 0.5}, {"dtype": "bfloat16"}], start=1):
        model = QRAGModel.from_pretrained(folder, device="cpu", cache=tmp_path / "cache.sqlite", **options)
        model.encode_chunks(STORY)
        assert len(embedded) == number * len(STORY)


def test_a_damaged_entry_is_embedded_again(tmp_path: Path, folder: Path, embedded: list[str]) -> None:
    model = QRAGModel.from_pretrained(folder, device="cpu", cache=tmp_path / "cache.sqlite")
    first = model.encode_chunks(STORY)
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        connection.execute(
            "UPDATE embeddings SET vector = zeroblob(length(vector)) WHERE key = (SELECT min(key) FROM embeddings)"
        )
        connection.execute("UPDATE embeddings SET vector = x'00' WHERE key = (SELECT max(key) FROM embeddings)")
    del embedded[:]
    np.testing.assert_allclose(model.encode_chunks(STORY), first, atol=1e-6)
    assert len(embedded) == 2


def test_what_is_no_cache_is_neither_used_nor_changed(tmp_path: Path, folder: Path) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE mine (text)")
    (tmp_path / "letter.txt").write_text("Dear John, this letter is long enough to be looked at. " * 40)
    for name in ("other.sqlite", "letter.txt"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(CacheError, match=name):
            QRAGModel.from_pretrained(folder, cache=tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(OSError, match="cannot be used"):
        EmbeddingCache(tmp_path)


def test_a_cache_travels_by_its_path(tmp_path: Path, folder: Path, embedded: list[str]) -> None:
    model = QRAGModel.from_pretrained(folder, device="cpu", cache=tmp_path / "cache.sqlite")
    model.encode_chunks(STORY)
    again = pickle.loads(pickle.dumps(model))
    again.encode_chunks(STORY)
    assert again.cache is not None
    assert again.cache.path == tmp_path / "cache.sqlite"
    assert len(embedded) == len(STORY)
    assert key_of("one", "text") != key_of("other", "text")


@pytest.mark.parametrize(
    ("workers", "error"), [(0, ValueError), ([], ValueError), ([1], ValueError), ("cpu", TypeError), (True, TypeError)]
)
def test_workers_are_a_number_or_devices(folder: Path, workers: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="worker"):
        QRAGModel.from_pretrained(folder, workers=workers)  # type: ignore[arg-type]


@pytest.mark.parametrize("has_source", [True, False])
def test_processes_embed_the_same(
    tmp_path: Path,
    folder: Path,
    model: QRAGModel,
    monkeypatch: pytest.MonkeyPatch,
    has_source: bool,
    embedded: list[str],
) -> None:
    monkeypatch.setattr(bulk, "_BLOCK", 5)
    monkeypatch.setattr(bulk, "_WORTH_WORKERS", 2)
    options = {"cache": tmp_path / "cache.sqlite", "workers": 2}
    many = QRAGModel.from_pretrained(folder, device="cpu", **options)  # type: ignore[arg-type]
    if not has_source:
        many = QRAGModel.from_encoder(model.action_encoder.model, device="cpu", **options)  # type: ignore[arg-type]
    alone = many.moved("cpu")
    assert (alone.cache, alone.source) == (None, many.source)
    expected = alone.encode_chunks(STORY)
    np.testing.assert_allclose(many.encode_chunks(STORY), expected, atol=1e-6)
    assert embedded == []  # not in this process
    assert many.cache is not None
    assert len(many.cache) == len(STORY)
    assert many.encode_chunks([]).shape == (0, many.config.dim)


SLOW = """
import sys, time
from qrag_retriever import QRAGModel, bulk
bulk._BLOCK = 2
original = QRAGModel.embed_block
def slow(self, texts):
    time.sleep(0.2)
    print(len(texts), flush=True)
    return original(self, texts)
QRAGModel.embed_block = slow
QRAGModel.from_pretrained(sys.argv[1], device="cpu", cache=sys.argv[2]).encode_chunks(sys.argv[3:])
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_after_a_kill_only_the_rest_is_embedded(tmp_path: Path, folder: Path, embedded: list[str]) -> None:
    cache = tmp_path / "cache.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder), str(cache), *STORY], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):  # the third block is under way: two are kept
        process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    kept = len(EmbeddingCache(cache))
    assert 4 <= kept < len(STORY)
    model = QRAGModel.from_pretrained(folder, device="cpu", cache=cache)
    np.testing.assert_allclose(
        model.encode_chunks(STORY), QRAGModel.from_pretrained(folder, device="cpu").encode_chunks(STORY), atol=1e-6
    )
    assert len(embedded) == len(STORY) - kept

"""Backends: the same embeddings from ONNX Runtime and OpenVINO, int8 as another model, and the choice by trial."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qrag_retriever import ChunkIndex, QRAGModel, QRAGRetriever, bulk
from qrag_retriever._extras import is_installed
from qrag_retriever.backends import choice, export, kinds, runtimes
from qrag_retriever.backends.choice import deviation
from qrag_retriever.backends.export import Exports
from qrag_retriever.backends.kinds import Backend, has_packages
from qrag_retriever.benchmarks import encoding
from qrag_retriever.cli.main import main
from qrag_retriever.embedding_cache import EmbeddingCache
from qrag_retriever.errors import ModelMismatchError
from tests import architectures
from tests.conftest import QUESTION, STORY

EXACT = [
    pytest.param(name, marks=pytest.mark.skipif(not has_packages(name), reason=f"{name} is not installed"))
    for name in kinds.EXACT_RUNTIMES
]
with_onnx = pytest.mark.skipif(not has_packages("onnx-int8"), reason="onnx is not installed")
TEXTS = [*STORY, "Who?", " ".join(STORY)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose exports the tests of this module share: an export takes seconds."""
    return tmp_path_factory.mktemp("caches") / "cache.sqlite"


@pytest.fixture
def forgetful(cache: Path) -> Path:
    """The same without embeddings."""
    cache.unlink(missing_ok=True)
    return cache


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are really exported to."""
    made: list[Path] = []
    original = export._export
    monkeypatch.setattr(export, "_export", lambda encoder, path: (made.append(path), original(encoder, path)))
    return made


def with_backend(folder: Path, backend: Backend, cache: Path | None = None) -> QRAGModel:
    return QRAGModel.from_pretrained(folder, device="cpu", backend=backend, cache=cache)


@pytest.mark.parametrize("backend", EXACT)
def test_exact_backends_embed_as_torch_does(model_folder: Path, forgetful: Path, backend: Backend) -> None:
    expected = with_backend(model_folder, "torch").encode_chunks(TEXTS)
    model = with_backend(model_folder, backend, forgetful)
    assert model.backend_in_use == "torch"
    found = model.encode_chunks(TEXTS)
    assert model.backend_in_use == backend
    assert deviation(found, expected).max() < 1e-6
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Any number of texts and of tokens.
    np.testing.assert_allclose(model.embed_block(TEXTS[3:4])[0], expected[3:4], atol=1e-5)
    assert model.encode_chunks([]).shape == (0, 32)


@pytest.mark.skipif(not has_packages("onnx"), reason="onnx is not installed")
@pytest.mark.parametrize("architecture", architectures.NAMES)
def test_every_architecture_can_be_exported(tmp_path: Path, architecture: str) -> None:
    folder = architectures.build(architecture, tmp_path)
    plain = QRAGModel.from_encoder(folder, device="cpu")
    expected = plain.encode_chunks(TEXTS[:6])
    shared = Exports(tmp_path / "exports")
    path = shared.path_of(plain.action_encoder, plain.fingerprint())
    for name in filter(has_packages, kinds.EXACT_RUNTIMES):
        forward = runtimes.load_forward(name, path)
        made = runtimes.ExportedEncoder(plain.action_encoder.model, plain.config, forward)
        assert deviation(made.encode(TEXTS[:6]), expected).max() < 1e-5, name


@pytest.mark.parametrize("backend", EXACT)
def test_exact_backends_share_indexes_and_caches(
    model_folder: Path, forgetful: Path, tmp_path: Path, backend: Backend
) -> None:
    model = with_backend(model_folder, backend, forgetful)
    QRAGRetriever.from_texts(STORY, model=model).save(tmp_path / "index")
    entries = len(EmbeddingCache(forgetful))
    other = with_backend(model_folder, "torch", forgetful)
    assert other.fingerprint() == model.fingerprint()
    retriever = QRAGRetriever.load(tmp_path / "index", model=other)
    retriever.add_texts([STORY[0]], ids=["again"])
    assert len(EmbeddingCache(forgetful)) == entries
    assert retriever.search(QUESTION).ids


@with_onnx
def test_an_export_is_kept_beside_the_cache_and_made_anew_if_damaged(
    model_folder: Path, tmp_path: Path, exports: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache.sqlite"
    expected = with_backend(model_folder, "onnx", cache).encode_chunks(STORY)
    (place,) = (tmp_path / "cache.sqlite.exports").iterdir()
    for damage in (False, True):
        cache.unlink()
        if damage:
            content = bytearray((place / "model.onnx").read_bytes())
            content[len(content) // 2] ^= 0xFF
            (place / "model.onnx").write_bytes(bytes(content))
        found = with_backend(model_folder, "onnx", cache).encode_chunks(STORY)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert len(exports) == 1 + damage
    assert "is damaged" in caplog.text
    assert [path.name for path in (tmp_path / "cache.sqlite.exports").iterdir()] == [place.name]


def test_two_processes_may_export_at_once(tmp_path: Path, model: QRAGModel, monkeypatch: pytest.MonkeyPatch) -> None:
    exports = Exports(tmp_path)
    identity = "0" * 64

    def write(encoder: object, path: Path) -> None:
        path.write_bytes(b"one")
        if len(list(tmp_path.iterdir())) == 1:  # nobody else yet: another process begins now, and ends first
            Exports(tmp_path).path_of(model.action_encoder, identity)

    monkeypatch.setattr(export, "_export", write)
    assert exports.path_of(model.action_encoder, identity).read_bytes() == b"one"
    assert exports.has(identity)
    assert len(list(tmp_path.iterdir())) == 1


@with_onnx
def test_without_a_cache_an_export_goes_with_the_model(model_folder: Path) -> None:
    model = with_backend(model_folder, "onnx")
    model.encode_chunks(STORY[:2])
    folder = model._backend._exports.folder
    assert list(folder.iterdir())
    assert pickle.loads(pickle.dumps(model))._backend._exports.folder == folder
    stored = pickle.dumps(model)
    del model
    assert not folder.exists()
    assert pickle.loads(stored)._backend._exports.folder != folder


@with_onnx
def test_int8_is_another_model(model_folder: Path, forgetful: Path, tmp_path: Path) -> None:
    exact = with_backend(model_folder, "torch", forgetful)
    expected = exact.encode_chunks(STORY)
    rounding = with_backend(model_folder, "onnx-int8", forgetful)
    found = rounding.encode_chunks(STORY)
    assert rounding.backend_in_use == "onnx-int8"
    assert 1e-5 < deviation(found, expected).max() < 0.1
    assert len(EmbeddingCache(forgetful)) == 2 * len(set(STORY))
    assert rounding.fingerprint() != exact.fingerprint()
    assert rounding.fingerprint() == with_backend(model_folder, "onnx-int8").fingerprint()
    ChunkIndex.from_texts(STORY, model=rounding).save(tmp_path / "index")
    with pytest.raises(ModelMismatchError, match="embed anew"):
        ChunkIndex.load(tmp_path / "index", model=exact)
    again = ChunkIndex.load(tmp_path / "index")  # knows what built it
    assert again.model.backend == "onnx-int8"
    assert "backend='onnx-int8'" in repr(again.model)
    with pytest.raises(ValueError, match="not those of 'onnx'"):
        again.model.embed_with(backend="onnx")
    copy = pickle.loads(pickle.dumps(rounding))
    assert (copy.backend, copy.fingerprint()) == ("onnx-int8", rounding.fingerprint())


def test_an_int8_index_is_searched_without_its_packages(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "is_installed", lambda module: True)
    rounding = with_backend(model_folder, "onnx-int8")
    chunks = with_backend(model_folder, "torch").encode_chunks(STORY)
    ChunkIndex.from_embeddings(chunks, STORY, model=rounding).save(tmp_path / "index")
    monkeypatch.setattr(kinds, "is_installed", lambda module: "onnx" not in module)
    retriever = QRAGRetriever.load(tmp_path / "index")
    assert retriever.search(QUESTION, k=2).ids
    if not is_installed("onnxscript"):
        with pytest.raises(ImportError, match=r"qrag-retriever\[onnx\]"):
            retriever.add_texts(["Rain fell."])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onxx"}, "expected backend 'auto'.*got 'onxx'"),
        ({"backend": "onnx", "dtype": "bfloat16"}, "float32, got dtype='bfloat16'"),
        ({"backend": "openvino", "device": "mps"}, "device='cpu', or backend='torch'"),
        ({"backend": "onnx", "workers": ["cuda:0"]}, "the device is 'cuda:0'"),
    ],
)
def test_a_backend_must_fit(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(kinds, "is_installed", lambda module: True)
    with pytest.raises(ValueError, match=message):
        QRAGModel.from_pretrained(model_folder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("backend", "extra"), [("onnx", "onnx"), ("onnx-int8", "onnx"), ("openvino", "openvino")])
def test_a_missing_package_is_named_at_once(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend, extra: str
) -> None:
    monkeypatch.setitem(kinds._MODULES, backend, ("qrag_no_such_package",))
    with pytest.raises(ImportError, match=rf"qrag-retriever\[{extra}\]"):
        with_backend(model_folder, backend)
    with pytest.raises(ImportError, match=rf"qrag-retriever\[{extra}\]"):
        QRAGRetriever.from_texts(STORY, model=model_folder, backend=backend)


def test_a_model_that_is_loaded_has_its_backend(model: QRAGModel) -> None:
    with pytest.raises(ValueError, match="backend 'auto', not 'onnx'"):
        ChunkIndex.from_texts(STORY, model=model, backend="onnx")
    assert len(ChunkIndex.from_texts(STORY, model=model, backend="auto")) == len(STORY)


class Bent(runtimes.OnnxForward):
    """A runtime whose embeddings are not those of the encoder."""

    def __init__(self, path: Path, num_threads: int) -> None:
        del path, num_threads

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        del attention_mask
        return np.random.default_rng(0).normal(size=(*input_ids.shape, 32)).astype(np.float32)


@pytest.fixture
def bent(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime is there, and gives something else."""
    monkeypatch.setattr(kinds, "is_installed", lambda module: module != "openvino")
    monkeypatch.setattr(export.Exports, "path_of", lambda *arguments, **options: Path("model.onnx"))
    monkeypatch.setattr(runtimes, "OnnxForward", Bent)


def test_a_backend_that_gives_other_embeddings_is_refused(model_folder: Path, bent: None) -> None:
    with pytest.raises(ValueError, match="gives other embeddings than torch"):
        with_backend(model_folder, "onnx").encode_chunks(STORY)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A trial for any amount of work; the seconds that each kind of encoder is told to need."""
    seconds = {"ActionEncoder": 2.0, "ExportedEncoder": 1.0}
    monkeypatch.setattr(choice, "_FEWEST_CHUNKS", 4)
    monkeypatch.setattr(choice, "_WORTH_A_TRIAL", 0.0)
    monkeypatch.setattr(choice, "_WORTH_AN_EXPORT", 0.0)
    monkeypatch.setattr(choice, "_seconds", lambda encoder, texts: seconds[type(encoder).__name__])
    return seconds


def test_auto_stays_with_torch_where_a_backend_is_not_exact(
    model_folder: Path, bent: None, eager: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    model = with_backend(model_folder, "auto")
    expected = with_backend(model_folder, "torch").encode_chunks(STORY)
    for _ in range(2):
        np.testing.assert_allclose(model.encode_chunks(STORY), expected, atol=1e-6)
    assert model.backend_in_use == "torch"
    told = [message.partition(":")[0] for message in caplog.messages if "chunks are embedded" in message]
    assert told == ["chunks are embedded by torch; onnx is not exact"]


def test_auto_survives_whatever_goes_wrong(
    model_folder: Path,
    bent: None,
    eager: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object, **options: object) -> Path:
        raise OSError("the disk is full")

    monkeypatch.setattr(export.Exports, "path_of", fail)
    model = with_backend(model_folder, "auto")
    assert model.encode_chunks(STORY).shape == (len(STORY), 32)
    assert model.backend_in_use == "torch"
    assert "the disk is full" in caplog.text


@with_onnx
def test_auto_takes_what_is_faster_and_nothing_else(
    model_folder: Path, forgetful: Path, eager: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qrag_retriever")
    expected = with_backend(model_folder, "torch").encode_chunks(STORY)
    fast = with_backend(model_folder, "auto", forgetful)
    np.testing.assert_allclose(fast.encode_chunks(STORY), expected, atol=1e-5)
    assert fast.backend_in_use == "onnx"
    assert "embedded by onnx, 2.00 times as fast" in caplog.text
    eager["ExportedEncoder"] = 1.9  # less than a tenth
    forgetful.unlink()
    slow = with_backend(model_folder, "auto", forgetful)
    slow.encode_chunks(STORY)
    assert slow.backend_in_use == "torch"


def test_auto_tries_nothing_for_little_work(
    model_folder: Path, eager: dict[str, float], monkeypatch: pytest.MonkeyPatch, exports: list[Path]
) -> None:
    model = with_backend(model_folder, "auto")
    model.encode_chunks(STORY[:3])  # too few to take a sample of
    monkeypatch.setattr(choice, "_WORTH_AN_EXPORT", 1e9)
    model.encode_chunks(STORY)  # too short a time for an export
    monkeypatch.setattr(choice, "_WORTH_A_TRIAL", 1e9)
    model.encode_chunks(STORY)
    assert (model.backend_in_use, exports) == ("torch", [])
    cast = QRAGModel.from_pretrained(model_folder, device="cpu", dtype="bfloat16")
    monkeypatch.setattr(choice, "_WORTH_A_TRIAL", 0.0)
    monkeypatch.setattr(choice, "_WORTH_AN_EXPORT", 0.0)
    cast.encode_chunks(STORY)
    assert (cast.backend_in_use, exports) == ("torch", [])


@with_onnx
def test_weights_that_were_trained_are_exported_again(model_folder: Path, exports: list[Path]) -> None:
    model = with_backend(model_folder, "onnx")
    before = model.encode_chunks(STORY)
    with torch.no_grad():
        for weight in model.action_encoder.model.parameters():
            weight.mul_(1.1)
    after = model.encode_chunks(STORY)
    assert len(exports) == 2
    np.testing.assert_allclose(after, model.action_encoder.encode(STORY), atol=1e-5)
    assert np.abs(after - before).max() > 1e-3


REPORTS = """
import sys
from qrag_retriever.backends.runtimes import _import_openvino
_import_openvino()
from openvino.tools.ovc import telemetry_utils
assert telemetry_utils.tm.__name__.endswith("telemetry_stub"), telemetry_utils.tm
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry
"""


@pytest.mark.skipif(not is_installed("openvino_telemetry"), reason="openvino is not installed")
def test_openvino_is_imported_without_its_reports() -> None:
    """Its import reports itself over the network; with the package that does so out of reach it cannot."""
    subprocess.run([sys.executable, "-c", REPORTS], check=True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_BLOCK", 5)
    monkeypatch.setattr(bulk, "_WORTH_WORKERS", 2)


@with_onnx
def test_workers_find_what_was_exported(
    model_folder: Path, forgetful: Path, small_blocks: None, eager: dict[str, float]
) -> None:
    model = QRAGModel.from_pretrained(model_folder, device="cpu", cache=forgetful, workers=1)
    found = model.encode_chunks(STORY)
    assert model.backend_in_use == "onnx"
    assert model._backend.decided().name == "onnx"
    assert pickle.loads(pickle.dumps(model)).moved("cpu").backend == "onnx"
    assert model.moved("meta").backend == "torch"
    np.testing.assert_allclose(found, with_backend(model_folder, "torch").encode_chunks(STORY), atol=1e-5)


@with_onnx
def test_qrag_index_takes_a_backend(
    tmp_path: Path, model_folder: Path, forgetful: Path, capsys: pytest.CaptureFixture[str], without_bars: None
) -> None:
    (tmp_path / "a.txt").write_text(" ".join(STORY))
    (tmp_path / "b.txt").write_text(STORY[0])
    index = str(tmp_path / "a.qrag")
    shared = ["--model", str(model_folder), "--cache", str(forgetful), "--device", "cpu"]
    assert main(["index", str(tmp_path / "a.txt"), "-o", index, *shared, "--backend", "onnx-int8"]) == 0
    add = ["index", str(tmp_path / "b.txt"), "-o", index, "--append", "--mode", "document"]
    assert main([*add, "--backend", "torch"]) == 1
    assert "backend 'onnx-int8'" in capsys.readouterr().err
    assert main([*add, "--cache", str(forgetful)]) == 0
    assert ChunkIndex.load(index).model.backend == "onnx-int8"


@pytest.mark.parametrize("others", [[], pytest.param(["onnx", "onnx-int8"], marks=with_onnx)])
def test_the_benchmark_puts_backends_side_by_side(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], others: list[str]
) -> None:
    data = Path(__file__).parent / "fixtures"
    small = ["--chunks", "6", "--tokens", "8", "--rounds", "1", "--questions", "2", "--data", str(data)]
    encoding.main(["--model", str(model_folder), "--backends", "torch", *others, *small, "--json", str(tmp_path / "r")])
    rows = json.loads((tmp_path / "r").read_text())
    assert [row["backend"] for row in rows] == ["torch", *others]
    assert "cosine_error_max" in capsys.readouterr().out
    assert rows[0]["same_picks"] == rows[0]["gain"] == 1.0
    assert [row["cosine_error_max"] < 1e-5 for row in rows] == [True, True, False][: len(rows)]
    assert 0 <= rows[0]["fact_recall"] <= 1
    assert rows[0]["chunks_per_s"] > 0


def test_the_benchmark_reads_json_lines() -> None:
    lines = Path(__file__).parents[1] / "examples" / "town.jsonl"
    questions = encoding.read_questions(lines, 3)
    assert len(questions) == 3
    assert all(limit == len(sample.supporting or ()) + 1 for sample, limit in questions)

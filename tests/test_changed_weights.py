"""Weights that change after they were loaded, whatever changes them, and folders that change behind a model's back."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qrag_retriever import ChunkIndex, QRAGModel, index_model
from qrag_retriever import model as model_module
from qrag_retriever.backends import choice, export
from qrag_retriever.backends.kinds import has_packages
from qrag_retriever.checksums import CHECKSUMS_NAME
from qrag_retriever.errors import ModelFolderError, ModelMismatchError
from qrag_retriever.pair import Pair, read_pair
from qrag_retriever.weights import weight_content, weight_signs
from tests.conftest import STORY
from tests.tiny_pair import nudge

TEXTS = STORY[:3]


def fused(model: QRAGModel) -> None:
    encoder = model.action_encoder
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=1e-2, fused=True)
    encoder.forward(encoder.tokenize(TEXTS)[0]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def through_data(model: QRAGModel) -> None:
    for weight in model.action_encoder.model.parameters():
        weight.data.mul_(1.1)


def in_place(model: QRAGModel) -> None:
    nudge(list(model.action_encoder.model.parameters()), seed=0)


def pickled(model: QRAGModel) -> QRAGModel:
    again: QRAGModel = pickle.loads(pickle.dumps(model))
    return again


def moved(model: QRAGModel) -> QRAGModel:
    return model.moved("cpu")


@pytest.mark.parametrize("train", [fused, through_data, in_place])
def test_copies_have_the_weights_of_now(model_folder: Path, train: Callable[[QRAGModel], None]) -> None:
    model = QRAGModel.from_pretrained(model_folder, device="cpu")
    before, known = model.encode_chunks(TEXTS), model.fingerprint()
    train(model)
    now = model.encode_chunks(TEXTS)
    assert np.abs(now - before).max() > 1e-4
    assert model.fingerprint() != known
    for made in (copy.deepcopy(model), pickled(model), moved(model)):
        np.testing.assert_allclose(made.embed_block(TEXTS)[0], now, atol=1e-6)
        assert made.fingerprint() == model.fingerprint()


@pytest.mark.skipif(not has_packages("onnx"), reason="onnx is not installed")
@pytest.mark.parametrize("train", [fused, through_data])
def test_an_export_is_not_used_for_other_weights(
    model_folder: Path, train: Callable[[QRAGModel], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = QRAGModel.from_pretrained(model_folder, device="cpu", backend="onnx")
    model.encode_chunks(TEXTS)
    train(model)
    # Whoever asks for the encoder before it is exported again gets torch's.
    assert model._backend.encoder(model.action_encoder) is model.action_encoder
    np.testing.assert_allclose(model.encode_chunks(TEXTS), model.action_encoder.encode(TEXTS), atol=1e-5)


@pytest.mark.skipif(not has_packages("onnx"), reason="onnx is not installed")
def test_before_much_work_all_weights_are_read(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single value that no sign tells of."""
    model = QRAGModel.from_pretrained(model_folder, device="cpu", backend="onnx")
    model.encode_chunks(TEXTS)
    made: list[Path] = []
    original = export._export
    monkeypatch.setattr(export, "_export", lambda encoder, path: (made.append(path), original(encoder, path)))
    weight = max(model.action_encoder.model.parameters(), key=torch.numel)
    weight.data.view(-1)[1] += 1.0
    model.encode_chunks(TEXTS)
    assert not made
    monkeypatch.setattr(choice, "_WORTH_READING", len(TEXTS))
    model.encode_chunks(TEXTS)
    assert len(made) == 1


def test_signs_and_content_of_weights() -> None:
    layer = torch.nn.Linear(64, 64).to(torch.bfloat16)
    signs, content = weight_signs(layer), weight_content(layer, layer)
    assert (weight_signs(layer), weight_content(layer)) == (signs, content)
    layer.weight.data[0, 1] += 1
    assert weight_signs(layer) == signs
    assert weight_content(layer) != content
    layer.bias.data.add_(1)
    assert weight_signs(layer) != signs


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, moved])
@pytest.mark.parametrize("is_compact", [False, True])
def test_a_copy_is_never_of_what_came_into_the_folder_since(
    tiny_encoder: Path, tmp_path: Path, copied: Callable[[QRAGModel], QRAGModel], is_compact: bool
) -> None:
    trained = QRAGModel.from_encoder(tiny_encoder, device="cpu")
    trained.save_pretrained(tmp_path / "best", compact=is_compact)
    model = QRAGModel.from_pretrained(tmp_path / "best", device="cpu")
    expected = model.encode_chunks(TEXTS)
    unused = copied(QRAGModel.from_pretrained(tmp_path / "best", device="cpu"))
    np.testing.assert_array_equal(copied(copied(model)).embed_block(TEXTS)[0], expected)
    in_place(trained)
    trained.save_pretrained(tmp_path / "best", compact=is_compact)
    for made in (copied(model), copied(copied(model)), unused):
        with pytest.raises(ModelMismatchError, match="no longer the one that was copied"):
            made.embed_block(TEXTS)


def test_a_copy_of_an_encoder_that_was_not_used_yet_is_of_the_weights_that_were_read(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    made = pickled(QRAGModel.from_encoder(tmp_path / "encoder", device="cpu"))
    trained = QRAGModel.from_encoder(tiny_encoder, device="cpu")
    in_place(trained)
    trained.action_encoder.model.save(str(tmp_path / "encoder"))
    with pytest.raises(ModelMismatchError, match="no longer the one that was copied"):
        made.encode_chunks(TEXTS)


@pytest.mark.parametrize("with_checksums", [True, False])
def test_weights_are_never_read_under_the_configuration_of_others(
    tiny_encoder: Path, tmp_path: Path, with_checksums: bool
) -> None:
    QRAGModel.from_encoder(tiny_encoder, device="cpu").save_pretrained(tmp_path / "best")
    if not with_checksums:
        (tmp_path / "best" / CHECKSUMS_NAME).unlink()
    model = QRAGModel.from_pretrained(tmp_path / "best", device="cpu")
    QRAGModel.from_encoder(tiny_encoder, device="cpu", output_scale=0.1).save_pretrained(tmp_path / "best")
    with pytest.raises(ModelFolderError, match="saved anew, or removed, since its configuration was read; load it"):
        model.encode_chunks(TEXTS)


def test_a_folder_that_is_saved_anew_while_it_is_read_is_not_mixed(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = QRAGModel.from_encoder(tiny_encoder, device="cpu")
    trained.save_pretrained(tmp_path / "best")
    in_place(trained)

    def late(folder: Path) -> Pair:
        trained.save_pretrained(folder)
        return read_pair(folder)

    monkeypatch.setattr(model_module, "read_pair", late)
    model = QRAGModel.from_pretrained(tmp_path / "best", device="cpu")
    with pytest.raises(ModelFolderError, match="saved anew"):
        model.encode_chunks(TEXTS)


def test_a_rounded_model_that_is_trained_is_another_one(tiny_encoder: Path, tmp_path: Path) -> None:
    exact = QRAGModel.from_encoder(tiny_encoder, device="cpu")
    model = QRAGModel.from_encoder(tiny_encoder, device="cpu", dtype="bfloat16", cache=tmp_path / "cache.sqlite")
    before = model.encode_chunks(TEXTS)
    assert model.fingerprint() == exact.fingerprint() == pickled(model).fingerprint()
    in_place(model)
    assert model.fingerprint() != exact.fingerprint()
    after = model.encode_chunks(TEXTS)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_array_equal(after, model.embed_block(TEXTS)[0])
    assert pickled(model).fingerprint() == model.fingerprint()
    ChunkIndex.from_texts(TEXTS, model=model).save(tmp_path / "index")
    with pytest.raises(ModelMismatchError):
        ChunkIndex.load(tmp_path / "index", model=exact)


def test_an_index_names_where_the_trained_weights_are(model_folder: Path, tmp_path: Path) -> None:
    model = QRAGModel.from_pretrained(model_folder, device="cpu")
    fused(model)
    assert model.current_source() is None
    index = ChunkIndex.from_texts(TEXTS, model=model)
    index.save(tmp_path / "before")
    with pytest.raises(ValueError, match=r"never saved.*pass model=.*save_pretrained before"):
        ChunkIndex.load(tmp_path / "before").model  # loads it  # noqa: B018
    with pytest.raises(ModelMismatchError, match=r"another model \(never saved, fingerprint"):
        ChunkIndex.load(tmp_path / "before", model=model_folder)
    model.save_pretrained(tmp_path / "compact", compact=True)
    assert model.current_source() is None, "rounded weights are others"
    model.save_pretrained(tmp_path / "trained")
    index.save(tmp_path / "after")
    again = ChunkIndex.load(tmp_path / "after").model
    assert again.source == model.source
    assert again.fingerprint() == model.fingerprint()
    model.save_pretrained(tmp_path / "once more")
    assert model.source == again.source, "it has one already"


def test_rounded_weights_in_a_folder_are_no_source_of_those_before(tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = QRAGModel.from_encoder(tiny_encoder, device="cpu").action_encoder.model
    model = QRAGModel.from_encoder(encoder, device="cpu", dtype="bfloat16")
    known = model.fingerprint()
    model.save_pretrained(tmp_path / "model")
    assert (model.source, model.fingerprint(), pickled(model).fingerprint()) == (None, known, known)
    in_place(model)
    model.save_pretrained(tmp_path / "model")
    assert model.source is not None
    assert model.source.load(device="cpu").fingerprint() == model.fingerprint() != known


@pytest.mark.parametrize("train", [fused, in_place])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_vectors_of_other_weights_do_not_come_into_an_index(
    model_folder: Path, tmp_path: Path, train: Callable[[QRAGModel], None], is_loaded: bool
) -> None:
    model = QRAGModel.from_pretrained(model_folder, device="cpu")
    index = ChunkIndex.from_texts(TEXTS, model=model)
    index.save(tmp_path / "index")
    if is_loaded:
        index = ChunkIndex.load(tmp_path / "index", model=model)
    index.add(["Rain fell."], ids=["rain"])
    train(model)
    with pytest.raises(ModelMismatchError, match=r"trained since it was loaded\); .*embed anew"):
        index.add(["Snow fell."], ids=["snow"])
    assert len(ChunkIndex.load(tmp_path / "index")) == len(index) == len(TEXTS) + 1
    # What was embedded elsewhere is the caller's.
    index.add(["Snow fell."], ids=["snow"], embeddings=np.ones((1, index.dim)))


def test_before_many_chunks_are_added_all_weights_are_read(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = QRAGModel.from_pretrained(model_folder, device="cpu")
    ChunkIndex.from_texts(TEXTS, model=model).save(tmp_path / "index")
    index = ChunkIndex.load(tmp_path / "index", model=model)
    weight = max(model.action_encoder.model.parameters(), key=torch.numel)
    weight.data.view(-1)[1] += 1.0
    monkeypatch.setattr(index_model, "_WORTH_READING", 2)
    index.add(["Rain fell."])
    with pytest.raises(ModelMismatchError):
        index.add(["Rain fell.", "Snow fell."])

"""Where training starts: encoders by name, model folders, the model in the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qrag_retriever import QRAGModel
from qrag_retriever.errors import RecipeError
from qrag_retriever.training.recipe import BlendSettings, ModelSettings
from qrag_retriever.training.starting_point import starting_point
from tests.conftest import QUESTION, STORY


def test_settings_of_an_encoder_s_pair(tiny_encoder: Path) -> None:
    start = starting_point(ModelSettings(encoder=str(tiny_encoder), stride=50, max_chunk_tokens=9, num_layers=1), "cpu")
    assert (start.config.stride, start.config.max_chunk_tokens) == (50, 9)
    assert start.config.positions == "relative"
    assert not start.is_scaled
    assert starting_point(ModelSettings(encoder=str(tiny_encoder)), "cpu").config.stride == 20


def test_normalised_embeddings_are_of_one_length(tiny_encoder: Path) -> None:
    named = {"encoder": str(tiny_encoder), "normalize": True}
    by_itself = starting_point(ModelSettings(**named), "cpu").scaled([QUESTION], STORY)
    assert (by_itself.config.normalize, by_itself.config.output_scale) == (True, pytest.approx(1.0))
    state, action = starting_point(ModelSettings(**named, output_scale=1.5), "cpu").scaled([QUESTION], STORY).encoders()
    lengths = np.linalg.norm([*action.encode(STORY), *state.encode([(QUESTION, ())])], axis=1)
    np.testing.assert_allclose(lengths, 1.5, rtol=1e-5)


def test_a_model_folder_goes_on_as_it_was_saved(tmp_path: Path, model: QRAGModel) -> None:
    model.save_pretrained(tmp_path / "model")
    start = starting_point(ModelSettings(encoder=str(tmp_path / "model"), max_chunk_tokens=30), "cpu")
    assert start.is_scaled
    assert start.config == model.config.replaced(max_chunk_tokens=30)
    state, action = start.encoders()
    np.testing.assert_allclose(action.encode(STORY), model.encode_chunks(STORY), atol=1e-6)
    np.testing.assert_allclose(state.encode([(QUESTION, ())]), model.encode_states([QUESTION]), atol=1e-6)


def test_the_folder_of_a_run_is_not_its_model(tmp_path: Path, model: QRAGModel) -> None:
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(RecipeError, match=rf"cannot be loaded; did you mean '{tmp_path}/model'\?: "):
        starting_point(ModelSettings(encoder=str(tmp_path)), "cpu")


def test_what_a_trained_pair_cannot_unlearn_is_refused(tmp_path: Path, model: QRAGModel) -> None:
    model.save_pretrained(tmp_path / "model")
    named = {"encoder": str(tmp_path / "model")}
    with pytest.raises(RecipeError, match=r"model.positions is .none., but .* was trained with .relative."):
        starting_point(ModelSettings(**named, positions="none"), "cpu")
    with pytest.raises(RecipeError, match=r"model\.state_order"):
        starting_point(ModelSettings(**named, state_order="retrieved"), "cpu")
    with pytest.raises(RecipeError, match=r"model\.normalize is False"):
        starting_point(ModelSettings(**named, normalize=False), "cpu")
    start = starting_point(ModelSettings(**named, positions="relative", num_layers=1), "cpu")
    assert [encoder[0].auto_model.config.num_hidden_layers for encoder in (start.state, start.action)] == [1, 1]


def test_a_trained_pair_goes_on_with_embeddings_of_one_length(tmp_path: Path, tiny_encoder: Path) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, normalize=False, device="cpu")
    model.save_pretrained(tmp_path / "model")
    named = {"encoder": str(tmp_path / "model"), "positions": "none", "normalize": True}
    with pytest.raises(RecipeError, match=r"another length than it was trained with; set model\.output_scale too"):
        starting_point(ModelSettings(**named), "cpu")
    start = starting_point(ModelSettings(**named, output_scale=1.5), "cpu")
    assert (start.config.normalize, start.is_scaled) == (True, True)
    embeddings = start.encoders()[1].encode(STORY)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.5, rtol=1e-5)


def test_chunks_alone_may_have_one_length(tmp_path: Path, tiny_encoder: Path) -> None:
    named = {"encoder": str(tiny_encoder), "output_scale": 1.5}
    state, action = starting_point(ModelSettings(**named, normalize="chunks"), "cpu").encoders()
    np.testing.assert_allclose(np.linalg.norm(action.encode(STORY), axis=1), 1.5, rtol=1e-5)
    plain, _ = starting_point(ModelSettings(**named), "cpu").encoders()
    states = [(QUESTION, ()), (QUESTION, (STORY[0],))]
    np.testing.assert_allclose(state.encode(states), plain.encode(states), rtol=1e-6)


def test_a_trained_pair_is_blended_with_the_encoder_it_was(tmp_path: Path, tiny_encoder: Path) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, positions="relative", device="cpu")
    with torch.no_grad():
        for parameter in model.state_encoder.model.parameters():
            parameter.add_(0.25)
    model.save_pretrained(tmp_path / "model")
    named, blend = {"encoder": str(tmp_path / "model")}, BlendSettings(encoder=str(tiny_encoder), share=0.2)
    ends = [starting_point(ModelSettings(**settings), "cpu") for settings in (named, {"encoder": str(tiny_encoder)})]
    start = starting_point(ModelSettings(**named, blend=blend), "cpu")
    for blended, trained, plain in zip(*([s.state, s.action] for s in (start, *ends)), strict=True):
        weights = [encoder.state_dict() for encoder in (blended, trained, plain)]
        for name in (name for name in weights[0] if ".pooler." not in name):  # random in the tiny encoder, and unused
            torch.testing.assert_close(weights[0][name], 0.8 * weights[1][name] + 0.2 * weights[2][name])


def test_a_trained_pair_is_blended_with_another_one(tmp_path: Path, tiny_encoder: Path) -> None:
    """State encoder with state encoder, and action encoder with action encoder."""
    for name, shifts in {"one": (0.25, 0.5), "other": (-1.0, 2.0)}.items():
        plain = starting_point(ModelSettings(encoder=str(tiny_encoder)), "cpu")
        pair = (plain.state, plain.action)
        with torch.no_grad():
            for encoder, shift in zip(pair, shifts, strict=True):
                encoder[0].auto_model.encoder.layer[0].output.dense.bias.fill_(shift)
        QRAGModel(plain.config, lambda pair=pair: pair, device="cpu").save_pretrained(tmp_path / name)
    base = starting_point(ModelSettings(encoder=str(tiny_encoder)), "cpu").state[0].auto_model
    plain = base.encoder.layer[0].output.dense.bias[0].item()
    for settings, shares in (
        ({"share": 0.4}, (0.6, 0.4, 0.0)),
        ({"share": 0.5, "own_share": 0.7, "base": str(tiny_encoder)}, (0.7, 0.5, -0.2)),
    ):
        blend = BlendSettings(encoder=str(tmp_path / "other"), **settings)
        start = starting_point(ModelSettings(encoder=str(tmp_path / "one"), blend=blend), "cpu")
        for encoder, weights in ((start.state, (0.25, -1.0, plain)), (start.action, (0.5, 2.0, plain))):
            bias = encoder[0].auto_model.encoder.layer[0].output.dense.bias
            torch.testing.assert_close(bias, torch.full_like(bias, float(np.dot(shares, weights))))


def test_blends_come_one_after_the_other(tmp_path: Path, tiny_encoder: Path) -> None:
    for name, shift in {"one": 1.0, "two": 2.0, "three": 4.0}.items():
        plain = starting_point(ModelSettings(encoder=str(tiny_encoder)), "cpu")
        pair = (plain.state, plain.action)
        with torch.no_grad():
            for encoder in pair:
                encoder[0].auto_model.encoder.layer[0].output.dense.bias.fill_(shift)
        QRAGModel(plain.config, lambda pair=pair: pair, device="cpu").save_pretrained(tmp_path / name)
    blends = [
        BlendSettings(encoder=str(tmp_path / name), share=share) for name, share in (("two", 0.5), ("three", 0.25))
    ]
    start = starting_point(ModelSettings(encoder=str(tmp_path / "one"), blend=blends), "cpu")
    for encoder in (start.state, start.action):
        bias = encoder[0].auto_model.encoder.layer[0].output.dense.bias
        torch.testing.assert_close(bias, torch.full_like(bias, 0.75 * 1.5 + 0.25 * 4.0))


def test_a_blend_whose_shares_need_a_base_names_it() -> None:
    with pytest.raises(ValueError, match="own_share and base belong together: give both or none"):
        BlendSettings(encoder="other", share=0.5, own_share=0.7)


def test_only_a_trained_pair_is_blended_and_with_its_own_kind(tmp_path: Path, tiny_encoder: Path) -> None:
    blend = BlendSettings(encoder=str(tiny_encoder), share=0.2)
    QRAGModel.from_encoder(tiny_encoder, num_layers=1, device="cpu").save_pretrained(tmp_path / "model")
    with pytest.raises(
        RecipeError, match=r"has other weights than the pair; name the encoder that it was trained from"
    ):
        starting_point(ModelSettings(encoder=str(tmp_path / "model"), positions="none", blend=blend), "cpu")
    starting_point(ModelSettings(encoder=str(tmp_path / "model"), num_layers=1, blend=blend), "cpu")
    with pytest.raises(RecipeError, match=r"model\.blend is for a trained pair"):
        starting_point(ModelSettings(encoder=str(tiny_encoder), blend=blend), "cpu")

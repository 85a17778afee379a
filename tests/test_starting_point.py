"""Where training starts: encoders by name, model folders, the model in the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qrag_retriever import QRAGModel
from qrag_retriever.errors import RecipeError
from qrag_retriever.training.recipe import ModelSettings
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
    with pytest.raises(RecipeError, match=r"model\.normalize"):
        starting_point(ModelSettings(**named, normalize=not model.config.normalize), "cpu")
    start = starting_point(ModelSettings(**named, positions="relative", num_layers=1), "cpu")
    assert [encoder[0].auto_model.config.num_hidden_layers for encoder in (start.state, start.action)] == [1, 1]

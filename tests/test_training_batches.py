"""Many states over many documents: Q-values, positions, candidates, and the embeddings that are kept for an era."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGConfig
from qrag_retriever.positions import Runs, absolute_runs, relative_runs, uniform_run
from qrag_retriever.q_values import batched_head_q_values, head_q_values
from qrag_retriever.state import RetrievalState
from qrag_retriever.training import batches
from qrag_retriever.training.batches import (
    Candidates,
    candidates_of,
    chunk_positions,
    hardest,
    rendered,
    score,
    with_fresh,
    with_in_batch_negatives,
)
from qrag_retriever.training.chunk_cache import ChunkCache
from tests.conftest import QUESTION, STORY
from tests.tiny_pair import public_model, tiny_pair
from tests.toy_model import ToyModel, embedding_of

DIM = 16
CLOSE = {"rtol": 0, "atol": 1e-5}


def random_floats(*shape: int, seed: int = 0, requires_grad: bool = False) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_(requires_grad)


def runs_of(kind: str, num_chunks: int, picked: Sequence[int]) -> Runs:
    if kind == "relative":
        return relative_runs(num_chunks, picked)
    return absolute_runs(num_chunks) if kind == "absolute" else uniform_run(num_chunks)


class TestBatchedQValues:
    @given(
        st.sampled_from(["relative", "absolute", "none", "mixed"]),
        st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), min_size=1, max_size=5),
        st.integers(0, 2**31),
    )
    @settings(max_examples=60, deadline=None)
    def test_are_those_of_each_document_by_itself(self, kind: str, documents: list[tuple[int, int]], seed: int) -> None:
        random = np.random.default_rng(seed)
        longest = max(count for count, _ in documents)
        states = random_floats(len(documents), DIM, seed=seed, requires_grad=True)
        chunks = random_floats(len(documents), longest, DIM, seed=seed + 1, requires_grad=True)
        weights = random_floats(len(documents), longest, 2, seed=seed + 2)
        positions = np.zeros((len(documents), longest), np.int64)
        alone = []
        for row, (count, num_picked) in enumerate(documents):
            own_kind = kind if kind != "mixed" else str(random.choice(["relative", "absolute", "none"]))
            runs = runs_of(own_kind, count, random.permutation(count)[:num_picked].tolist())
            positions[row, :count] = runs.expand()
            alone.append(head_q_values(states[row], chunks[row, :count], runs))
            weights[row, count:] = 0
        together = batched_head_q_values(states, chunks, positions)
        assert together.shape == (len(documents), longest, 2)
        for row, (count, _) in enumerate(documents):
            torch.testing.assert_close(together[row, :count].T, alone[row], rtol=1e-5, atol=1e-5)
        found = torch.autograd.grad((together * weights).sum(), [states, chunks])
        total = sum((own.T * weights[row, : own.shape[1]]).sum() for row, own in enumerate(alone))
        for ours, expected in zip(found, torch.autograd.grad(total, [states, chunks]), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("kind", ["relative", "absolute", "none"])
    def test_many_states_over_one_document(self, kind: str) -> None:
        states, chunks = random_floats(3, DIM), random_floats(10, DIM, seed=1)
        runs = [runs_of(kind, 10, picked) for picked in ([], [3], [9, 0])]
        together = batched_head_q_values(states, chunks, np.array([own.expand() for own in runs]))
        for state, own, found in zip(states, runs, together, strict=True):
            torch.testing.assert_close(found.T, head_q_values(state, chunks, own), **CLOSE)

    def test_positions_beyond_every_table(self) -> None:
        states, chunks = random_floats(1, DIM), random_floats(1, 2, DIM, seed=1)
        found = batched_head_q_values(states, chunks, np.array([[0, 100_000]]))
        runs = Runs(np.array([0, 1, 2]), np.array([0, 100_000]))
        torch.testing.assert_close(found[0].T, head_q_values(states[0], chunks[0], runs), **CLOSE)

    def test_a_dimension_that_cannot_be_rotated(self) -> None:
        states, chunks = random_floats(1, 6), random_floats(1, 2, 6)
        assert batched_head_q_values(states, chunks, np.zeros((1, 2), int)).shape == (1, 2, 2)
        with pytest.raises(ValueError, match="divisible by 4"):
            batched_head_q_values(states, chunks, np.array([[0, 1]]))


class TestPositions:
    @pytest.mark.parametrize("mode", ["document", "corpus"])
    @pytest.mark.parametrize("kind", ["relative", "absolute", "none"])
    @given(st.integers(1, 60), st.data())
    @settings(max_examples=25, deadline=None)
    def test_are_those_of_an_index(self, kind: Any, mode: Any, num_chunks: int, data: st.DataObject) -> None:
        picked = data.draw(st.lists(st.integers(0, num_chunks - 1), unique=True, max_size=6))
        model = ToyModel(kind)
        index = ChunkIndex.from_texts([f"chunk {i}" for i in range(num_chunks)], model=model, mode=mode)
        found = chunk_positions(model.config, mode, num_chunks, picked)
        assert found.dtype == np.int64
        assert found.tolist() == index.view.positions(picked).expand().tolist()

    def test_the_model_s_own_stride(self) -> None:
        config = QRAGConfig(dim=8, positions="relative", stride=7)
        expected = relative_runs(9, [4], 7).expand().tolist()
        assert chunk_positions(config, "document", 9, [4]).tolist() == expected
        assert expected != relative_runs(9, [4]).expand().tolist()

    @pytest.mark.parametrize("mode", ["document", "corpus"])
    @pytest.mark.parametrize("config", [{"positions": kind} for kind in ("relative", "absolute", "none")], ids=str)
    def test_every_step_of_a_selector_is_at_its_position(self, tiny_encoder: Path, config: dict, mode: Any) -> None:
        model = public_model(tiny_pair(tiny_encoder, config))
        index = ChunkIndex.from_texts(STORY, model=model, mode=mode)
        steps = MultiStepSelector(index, k=5).select(QUESTION).steps
        picks = [step.chunk_id for step in steps]
        expected = [
            int(chunk_positions(model.config, mode, len(STORY), picks[:hop])[pick]) for hop, pick in enumerate(picks)
        ]
        assert [step.position for step in steps] == expected

    @pytest.mark.parametrize("order", ["document", "retrieved"])
    def test_states_are_rendered_as_a_selector_renders_them(self, order: Any) -> None:
        config = QRAGConfig(dim=8, state_order=order)
        state = RetrievalState("q", (3, 1), ("three", "one"))
        in_document = ("one", "three") if order == "document" else ("three", "one")
        assert rendered(config, state, "document") == ("q", in_document)
        assert rendered(config, state, "corpus") == ("q", ("three", "one"))


CONFIG = QRAGConfig(dim=8, positions="relative")


class TestCandidates:
    def candidates(self) -> Candidates:
        documents: list[Any] = [(np.array([5, 6, 7, 8]), "document"), (np.array([7, 9]), "document")]
        documents.append((np.array([1, 2, 3]), "corpus"))
        return candidates_of(CONFIG, documents, [(1, 3), (), (0,)])

    def test_are_padded_to_the_longest_document(self) -> None:
        candidates = self.candidates()
        assert len(candidates) == 3
        assert candidates.rows.tolist() == [[5, 6, 7, 8], [7, 9, 0, 0], [1, 2, 3, 0]]
        expected = [relative_runs(4, [1, 3]).expand().tolist(), [0, 18, 0, 0], [0, 0, 0, 0]]
        assert candidates.positions.tolist() == expected
        assert candidates.available.tolist() == [
            [True, False, True, False],
            [True, True, False, False],
            [False, True, True, False],
        ]

    def test_columns_are_kept_with_all_that_belongs_to_them(self) -> None:
        candidates = self.candidates()
        kept = candidates.columns(np.array([[2, 0], [1, 3], [1, 1]]))
        assert kept.rows.tolist() == [[7, 5], [9, 0], [2, 2]]
        assert kept.available.tolist() == [[True, True], [True, False], [True, True]]
        assert kept.positions.tolist() == [[int(candidates.positions[0, 2]), 0], [18, 0], [0, 0]]

    def test_states_are_kept_with_all_that_belongs_to_them(self) -> None:
        candidates = self.candidates()
        kept = candidates.states(slice(1, 3))
        for name in ("rows", "positions", "available"):
            assert getattr(kept, name).tolist() == getattr(candidates, name)[1:].tolist()


class TestHardest:
    def candidates(self, counts: Sequence[int], random: np.random.Generator) -> tuple[Candidates, np.ndarray]:
        """States over documents of so many chunks, two picked; the positions tell chunks apart; three are right."""
        shape = (len(counts), max(counts))
        rows, available, right = np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, bool)
        for i, count in enumerate(counts):
            rows[i, :count] = 100 * (i + 1) + random.permutation(count)
            available[i, :count] = True
            chunks = random.permutation(count)
            available[i, chunks[:2]] = False
            right[i, chunks[2:5]] = True
        return Candidates(rows, np.where(rows > 0, rows + 5000, 0), available), right

    @pytest.mark.parametrize("drawn", [True, False])
    def test_right_chunks_and_the_best_scored_are_kept_and_nothing_moves(self, drawn: bool) -> None:
        random = np.random.default_rng(0)
        for _ in range(30):
            candidates, right = self.candidates([60, 7, 35, 14], random)
            # What is picked or padding scores best.
            scores = random.permutation(candidates.rows.size).reshape(4, -1) + 1e6 * ~candidates.available
            kept, kept_right, kept_scores = hardest(candidates, right, scores, 12, [random] * 4 if drawn else None)
            assert kept.rows.shape == kept_right.shape == kept_scores.shape == (4, 12)
            for i in range(4):
                column = {row: j for j, row in enumerate(candidates.rows[i].tolist()) if row}
                own = [(j, column[row]) for j, row in enumerate(kept.rows[i].tolist()) if row]
                assert len({j for _, j in own}) == len(own), "each chunk once"
                for new, old in own:
                    assert kept.positions[i, new] == candidates.positions[i, old]
                    assert kept.available[i, new] == candidates.available[i, old]
                    assert kept_right[i, new] == right[i, old]
                    assert kept_scores[i, new] == scores[i, old]
                assert kept_right[i].sum() == right[i].sum() == 3
                chosen = set(kept.rows[i].tolist())
                best = np.argsort(-np.where(candidates.available[i], scores[i], -np.inf))
                best = best[candidates.available[i, best]][: 6 if drawn else 9]
                assert set(candidates.rows[i, best].tolist()) <= chosen
                assert kept.available[i].sum() == min(12, candidates.available[i].sum())

    def test_the_rest_is_drawn(self) -> None:
        random = np.random.default_rng(0)
        candidates, right = self.candidates([60], random)
        scores = -np.arange(60.0)[None]
        seen: Counter[int] = Counter()
        for _ in range(200):
            seen.update(hardest(candidates, right, scores, 12, [random])[0].rows[0].tolist())
        assert seen.keys() == set(candidates.rows[0][candidates.available[0]].tolist())
        always = [times for times in seen.values() if times == 200]
        assert 6 <= len(always) <= 9, "the best half and the right ones"
        assert sorted(seen.values())[-len(always) - 1] < 60

    def test_every_state_draws_from_its_own_stream(self) -> None:
        candidates, right = self.candidates([60, 60], np.random.default_rng(0))
        scores = np.random.default_rng(1).random((2, 60))
        both = hardest(candidates, right, scores, 12, [np.random.default_rng(2), np.random.default_rng(3)])
        own = candidates.states(slice(1, 2))
        alone = hardest(own, right[1:], scores[1:], 12, [np.random.default_rng(3)])
        assert both[0].rows[1].tolist() == alone[0].rows[0].tolist()

    def test_short_documents_stay_whole(self) -> None:
        candidates, right = self.candidates([12, 8], np.random.default_rng(0))
        scores = np.zeros((2, 12))
        assert hardest(candidates, right, scores, 12) == (candidates, right, scores)


class TestInBatchNegatives:
    DOCUMENTS = ((np.array([5, 2, 7]), "corpus"), (np.array([7, 9]), "corpus"), (np.array([1, 2]), "document"))

    def test_loose_passages_of_others_are_candidates_and_what_one_has_itself_is_not_added(self) -> None:
        config = QRAGConfig(dim=8, positions="relative")
        plain = candidates_of(config, self.DOCUMENTS, [(1,), (), (0,)])
        found = with_in_batch_negatives(plain, self.DOCUMENTS)
        width = plain.rows.shape[1]
        for name in ("rows", "positions", "available"):
            np.testing.assert_array_equal(getattr(found, name)[:, :width], getattr(plain, name))
        added = [found.rows[i, width:][found.available[i, width:]].tolist() for i in range(3)]
        assert added == [[9], [2, 5], []], "2 has been picked in the first; the third is one text and takes nothing"
        assert not found.positions[:, width:].any()

    def test_without_loose_passages_nothing_changes(self) -> None:
        config = QRAGConfig(dim=8, positions="relative")
        plain = candidates_of(config, self.DOCUMENTS[2:], [()])
        assert with_in_batch_negatives(plain, self.DOCUMENTS[2:]) is plain


class TestScore:
    def test_is_the_same_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        random = np.random.default_rng(0)
        table, states = random_floats(40, DIM), random_floats(7, DIM, seed=1, requires_grad=True)
        documents: list[Any] = [
            (random.integers(40, size=count), "corpus" if count == 6 else "document")
            for count in (9, 3, 12, 1, 6, 6, 9)
        ]
        candidates = candidates_of(CONFIG, documents, [(), (2,), (1, 7), (), (4,), (0, 1, 2), (8,)])
        whole = score(states, table, candidates)
        assert whole.shape == (7, 12, 2)
        assert not whole.requires_grad
        expected = batched_head_q_values(states, table[torch.from_numpy(candidates.rows)], candidates.positions)
        torch.testing.assert_close(whole, expected.detach(), **CLOSE)
        for most in (1, 12 * DIM * 2, 12 * DIM * 3 + 1, 12 * DIM * 6):
            monkeypatch.setattr(batches, "_SCORED_AT_ONCE", most)
            torch.testing.assert_close(score(states, table, candidates), whole, **CLOSE)


class TestWithFresh:
    ROWS = np.array([[0, 4, 2], [2, 2, 9]])
    FRESH_ROWS = np.array([2, 7, 0])

    def test_fresh_embeddings_take_the_place_of_the_table_s(self) -> None:
        table, fresh = random_floats(10, DIM), random_floats(3, DIM, seed=1)
        before = table.clone()
        found = with_fresh(table, self.ROWS, self.FRESH_ROWS, fresh)
        expected = torch.stack([fresh[2], table[4], fresh[0], fresh[0], fresh[0], table[9]]).view(2, 3, DIM)
        assert torch.equal(found, expected)
        assert torch.equal(table, before)

    def test_gradients_reach_the_fresh_rows_alone_and_add_up(self) -> None:
        table, fresh = random_floats(10, DIM, requires_grad=False), random_floats(3, DIM, seed=1, requires_grad=True)
        weights = random_floats(2, 3, DIM, seed=2)
        (with_fresh(table, self.ROWS, self.FRESH_ROWS, fresh) * weights).sum().backward()
        expected = torch.stack([weights[0, 2] + weights[1, 0] + weights[1, 1], torch.zeros(DIM), weights[0, 0]])
        torch.testing.assert_close(fresh.grad, expected, **CLOSE)
        assert table.grad is None

    def test_nothing_fresh_among_the_rows(self) -> None:
        table, fresh = random_floats(10, DIM), random_floats(1, DIM, seed=1, requires_grad=True)
        found = with_fresh(table, self.ROWS, np.array([8]), fresh)
        assert torch.equal(found.detach(), table[torch.from_numpy(self.ROWS)])
        found.sum().backward()
        assert float(fresh.grad.abs().sum()) == 0

    def test_nothing_fresh_at_all(self) -> None:
        table = random_floats(10, DIM)
        found = with_fresh(table, self.ROWS, np.array([], np.int64), torch.zeros(0, DIM))
        assert torch.equal(found, table[torch.from_numpy(self.ROWS)])

    def test_repeats_bit_by_bit(self) -> None:
        random = np.random.default_rng(3)
        table, rows = random_floats(50, DIM), random.integers(50, size=(64, 200))
        fresh_rows, weights = np.arange(0, 50, 2), random_floats(64, 200, DIM, seed=2)
        gradients = []
        for _ in range(3):
            fresh = random_floats(len(fresh_rows), DIM, seed=1, requires_grad=True)
            (with_fresh(table, rows, fresh_rows, fresh) * weights).sum().backward()
            gradients.append(fresh.grad)
        assert torch.equal(gradients[0], gradients[1])
        assert torch.equal(gradients[0], gradients[2])


class Embedder:
    """Embeds texts by hash and notes which, and whether gradients were enabled."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.calls.append(list(texts))
        return torch.tensor(np.array([embedding_of(text, seed=self.seed) for text in texts]))


def cache_of(embedder: Embedder) -> ChunkCache:
    return ChunkCache(embedder, 8, torch.device("cpu"))


def held(cache: ChunkCache, texts: Sequence[str]) -> np.ndarray:
    (rows,) = cache.rows_of([texts])
    assert [cache.texts[row] for row in rows] == list(texts)
    return cache.table[torch.from_numpy(rows)].numpy()


def embeddings_of(texts: Sequence[str], seed: int = 0) -> np.ndarray:
    return np.array([embedding_of(text, seed=seed) for text in texts])


class TestChunkCache:
    def test_each_text_is_embedded_once_in_an_era(self) -> None:
        embedder = Embedder()
        cache = cache_of(embedder)
        rows = cache.rows_of([["a", "b", "a"], ["c", "b"], []])
        assert embedder.calls == [["a", "b", "c"]], "in one go"
        assert [own.tolist() for own in rows] == [[0, 1, 0], [2, 1], []]
        assert all(own.dtype == np.int64 for own in rows)
        assert [own.tolist() for own in cache.rows_of([["c", "d"], ["a"]])] == [[2, 3], [0]]
        assert embedder.calls[1:] == [["d"]]
        cache.rows_of([["d", "a"]])
        assert len(embedder.calls) == 2
        assert (len(cache), cache.num_embedded, list(cache.texts)) == (4, 4, ["a", "b", "c", "d"])
        np.testing.assert_array_equal(held(cache, ["d", "a", "c", "b"]), embeddings_of("dacb"))

    def test_repeats_are_embedded_as_often_if_wanted(self) -> None:
        embedder = Embedder()
        cache = ChunkCache(embedder, 8, torch.device("cpu"), repeats=True)
        cache.rows_of([["a", "b", "a"], ["c", "b"]])
        assert embedder.calls == [["a", "b", "a", "c", "b"]]
        assert (len(cache), cache.num_embedded) == (3, 5)
        np.testing.assert_array_equal(held(cache, ["b", "c", "a"]), embeddings_of("bca"))
        cache.rows_of([["d", "a", "d"]])
        assert embedder.calls[1:] == [["d", "d"]], "what is held already is not embedded again"
        np.testing.assert_array_equal(held(cache, ["d", "b", "c", "a"]), embeddings_of("dbca"))

    def test_grows(self) -> None:
        cache = cache_of(Embedder())
        texts = [f"text {i}" for i in range(5000)]
        for stop in (3, 1024, 1025, 5000):
            held(cache, texts[:stop])
        np.testing.assert_array_equal(held(cache, texts), embeddings_of(texts))
        assert len(cache) == cache.num_embedded == 5000
        assert not cache.table.requires_grad

    def test_fresher_embeddings_replace_the_held_ones(self) -> None:
        cache = cache_of(Embedder())
        held(cache, ["a", "b", "c"])
        fresh = torch.tensor(embeddings_of(["x", "y"])).requires_grad_()
        cache.store(np.array([2, 0]), fresh * 1)
        np.testing.assert_array_equal(held(cache, ["a", "b", "c"]), embeddings_of(["y", "b", "x"]))
        assert not cache.table.requires_grad

    def test_embeddings_made_elsewhere_are_held_in_place_of_older_ones(self) -> None:
        cache = cache_of(Embedder())
        (before,) = cache.rows_of([["b", "x"]])
        made = random_floats(3, cache.table.shape[1], requires_grad=True)
        rows = cache.put(["a", "b", "c"], made)
        assert rows[1] == before[0]
        assert [cache.texts[row] for row in rows] == ["a", "b", "c"]
        assert torch.equal(cache.table[rows], made.detach())
        assert not cache.table.requires_grad
        assert (len(cache), cache.num_embedded) == (4, 2), "what was made elsewhere was not embedded here"
        np.testing.assert_array_equal(held(cache, ["x"]), embeddings_of(["x"]))
        assert cache.rows_of([["c", "a"]])[0].tolist() == [rows[2], rows[0]]

    def test_what_is_stored_does_not_disturb_gradients_under_way(self) -> None:
        cache = cache_of(Embedder())
        (rows,) = cache.rows_of([["a", "b"]])
        states = torch.ones(1, 8, requires_grad=True)
        fresh = torch.zeros(1, 8, requires_grad=True)
        chunks = with_fresh(cache.table, rows[None], rows[:1], fresh)
        q_values = batched_head_q_values(states, chunks, np.zeros((1, 2), int))
        cache.store(rows, torch.full((2, 8), 5.0))
        q_values.sum().backward()
        np.testing.assert_allclose(states.grad[0], embedding_of("b"), atol=1e-6)
        np.testing.assert_allclose(fresh.grad[0], np.ones(8), atol=1e-6)

    def test_an_era_forgets_everything(self) -> None:
        embedder = Embedder()
        cache = cache_of(embedder)
        held(cache, ["a", "b"])
        cache.clear()
        assert (len(cache), list(cache.texts)) == (0, [])
        embedder.seed = 1
        np.testing.assert_array_equal(held(cache, ["b", "a"]), embeddings_of("ba", seed=1))
        assert cache.num_embedded == 4

    def test_a_checkpoint_brings_everything_back(self) -> None:
        cache = cache_of(Embedder())
        texts = [f"text {i}" for i in range(1500)]
        held(cache, texts)
        cache.store(np.array([7]), torch.full((1, 8), 3.0))
        kept_texts, kept = cache.state()
        expected = held(cache, texts)
        cache.store(np.array([9]), torch.full((1, 8), 4.0))
        assert (kept_texts, tuple(kept.shape)) == (texts, (1500, 8))
        embedder = Embedder(seed=9)
        restored = cache_of(embedder)
        held(restored, ["other"])
        restored.restore(kept_texts, kept)
        np.testing.assert_array_equal(held(restored, texts), expected)
        assert len(embedder.calls) == 1
        assert restored.num_embedded == 1, "what comes from a checkpoint was not embedded"
        restored.restore(*cache_of(Embedder()).state())
        assert len(restored) == 0

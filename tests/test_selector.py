from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGConfig, QRAGModel
from qrag_retriever.index_model import IndexModel
from qrag_retriever.positions import relative_runs
from qrag_retriever.q_values import q_values
from tests.conftest import QUESTION, STORY
from tests.toy_model import DIM, ToyModel

QUERIES = [QUESTION, "Who dropped the apple?", "Where is Sandra?", "What struck nine?", "Rain?"]


@pytest.fixture(scope="module")
def index(model: QRAGModel) -> ChunkIndex:
    return ChunkIndex.from_texts(STORY, ids=[f"s{i}" for i in range(len(STORY))], model=model)


@functools.cache
def _scores(model: QRAGModel, query: str, picked: tuple[int, ...]) -> np.ndarray:
    state = model.encode_states([(query, [STORY[pick] for pick in sorted(picked)])])[0]
    return q_values(state, _chunks(model), relative_runs(len(STORY), picked))


@functools.cache
def _chunks(model: QRAGModel) -> np.ndarray:
    return model.encode_chunks(STORY)


def scores(model: QRAGModel, query: str, picked: list[int]) -> np.ndarray:
    """Q-values of all chunks, from the definition."""
    return _scores(model, query, tuple(picked)).copy()


def greedy(model: QRAGModel, query: str, k: int) -> list[int]:
    picked: list[int] = []
    for _ in range(k):
        values = scores(model, query, picked)
        values[picked] = -np.inf
        picked.append(int(values.argmax()))
    return picked


def picks(selection: Any) -> list[int]:
    return [step.chunk_id for step in selection.steps]


@pytest.mark.parametrize("query", QUERIES)
def test_greedy_takes_the_best_q_value_at_every_hop(index: ChunkIndex, model: QRAGModel, query: str) -> None:
    selection = MultiStepSelector(index, k=5).select(query)
    assert picks(selection) == greedy(model, query, 5)
    assert selection.stop_reason == "k"
    for hop, step in enumerate(selection.steps):
        before = picks(selection)[:hop]
        values = scores(model, query, before)
        assert step.q_value == pytest.approx(values[step.chunk_id], abs=1e-5)
        assert step.position == relative_runs(len(STORY), before).position_of(step.chunk_id)
        state = model.encode_states([(query, [STORY[pick] for pick in sorted(before)])])[0]
        unplaced = float(model.encode_chunks([step.text])[0] @ state)
        assert step.position_gain == pytest.approx(step.q_value - unplaced, abs=1e-5)
        assert (step.id, step.text) == (f"s{step.chunk_id}", STORY[step.chunk_id])


def test_many_queries_pick_the_same_as_one_by_one(index: ChunkIndex) -> None:
    selector = MultiStepSelector(index, k=4)
    together = selector.select_many(QUERIES)
    for query, selection in zip(QUERIES, together, strict=True):
        alone = selector.select(query)
        assert picks(selection) == picks(alone)
        np.testing.assert_allclose([s.q_value for s in selection.steps], [s.q_value for s in alone.steps], atol=1e-5)


def test_many_queries_are_embedded_in_one_batch_per_hop(index: ChunkIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = index.model.encode_states
    monkeypatch.setattr(
        index.model, "encode_states", lambda states, **options: sizes.append(len(states)) or encode(states, **options)
    )
    MultiStepSelector(index, k=3).select_many(QUERIES)
    assert sizes == [5, 5, 5]


def test_min_q_stops_when_nothing_is_above_it(index: ChunkIndex) -> None:
    whole = MultiStepSelector(index, k=len(STORY)).select(QUESTION)
    values = [step.q_value for step in whole.steps]
    threshold = sorted(values)[3]
    stopped = MultiStepSelector(index, k=len(STORY), min_q=threshold).select(QUESTION)
    expected = next(i for i, value in enumerate(values) if value <= threshold)
    assert stopped.stop_reason == "min_q"
    assert picks(stopped) == picks(whole)[:expected]


def test_a_selection_goes_through_its_hops(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=3).select(QUESTION)
    assert [step.id for step in selection] == selection.ids
    assert len(selection) == 3


def test_min_q_can_stop_before_the_first_pick(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=3, min_q=1e9).select(QUESTION)
    assert (len(selection), selection.stop_reason) == (0, "min_q")


def test_min_q_equal_to_the_best_value_stops(index: ChunkIndex) -> None:
    best = MultiStepSelector(index, k=1).select(QUESTION).steps[0].q_value
    assert len(MultiStepSelector(index, k=1, min_q=best).select(QUESTION)) == 0
    assert len(MultiStepSelector(index, k=1, min_q=np.nextafter(best, -1)).select(QUESTION)) == 1


def test_automatic_min_q_is_the_model_s_for_this_mode(tiny_encoder: Any) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, min_q={"corpus": 0.25}, device="cpu")
    corpus = ChunkIndex.from_texts(STORY, model=model, mode="corpus")
    assert MultiStepSelector(corpus, min_q="auto").min_q == 0.25
    with pytest.raises(ValueError, match="no calibrated min_q for document mode"):
        MultiStepSelector(ChunkIndex.from_texts(STORY, model=model), min_q="auto")


@pytest.mark.parametrize("width", [1, 3])
def test_k_beyond_the_corpus_takes_everything_once(index: ChunkIndex, width: int) -> None:
    selection = MultiStepSelector(index, k=50, beam_width=width).select(QUESTION)
    assert sorted(picks(selection)) == list(range(len(STORY)))
    assert selection.stop_reason == "exhausted"


def test_k_equal_to_the_corpus_is_not_exhaustion(index: ChunkIndex) -> None:
    assert MultiStepSelector(index, k=len(STORY)).select(QUESTION).stop_reason == "k"


def test_duplicates_and_empty_chunks_are_chunks_like_others(model: QRAGModel) -> None:
    index = ChunkIndex.from_texts(["rain fell.", "", "rain fell.", "rain fell.", ""], model=model)
    assert sorted(picks(MultiStepSelector(index, k=9).select("rain?"))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("mode", "sorted_by_place"), [("document", True), ("corpus", False)])
def test_the_state_shows_picks_in_the_mode_s_order(
    model: QRAGModel, monkeypatch: pytest.MonkeyPatch, mode: str, sorted_by_place: bool
) -> None:
    index = ChunkIndex.from_texts(STORY, model=model, mode=mode)
    shown = []
    encode = model.encode_states
    monkeypatch.setattr(model, "encode_states", lambda s, **o: shown.append(s[0][1]) or encode(s, **o))
    order = picks(MultiStepSelector(index, k=5).select(QUESTION))
    assert order != sorted(order), "the story must be picked out of order for this test to mean anything"
    for hop, texts in enumerate(shown):
        before = sorted(order[:hop]) if sorted_by_place else order[:hop]
        assert list(texts) == [STORY[pick] for pick in before]


class TestBeamSearch:
    def exhaustive(self, model: QRAGModel, k: int, rank_by: str) -> tuple[float, set[int]]:
        """Every sequence of k picks, the best by rank."""
        best: tuple[float, set[int]] = (-np.inf, set())
        for order in itertools.permutations(range(len(STORY)), k):
            values = [scores(model, QUESTION, list(order[:hop]))[order[hop]] for hop in range(k)]
            rank = {"max": max(values), "last": values[-1], "mean": float(np.mean(values))}[rank_by]
            best = max(best, (rank, set(order)), key=lambda pair: pair[0])
        return best

    @pytest.mark.parametrize("rank_by", ["max", "last", "mean"])
    def test_a_beam_as_wide_as_everything_finds_the_best_sequence(
        self, index: ChunkIndex, model: QRAGModel, rank_by: str
    ) -> None:
        found = MultiStepSelector(index, k=2, beam_width=200, rank_by=rank_by).select(QUESTION)
        rank, _ = self.exhaustive(model, 2, rank_by)
        values = [step.q_value for step in found.steps]
        reached = {"max": max(values), "last": values[-1], "mean": float(np.mean(values))}[rank_by]
        assert reached == pytest.approx(rank, abs=1e-5)

    def test_width_one_is_greedy(self, index: ChunkIndex) -> None:
        for query in QUERIES:
            wide = MultiStepSelector(index, k=4, beam_width=1, rank_by="last").select(query)
            assert picks(wide) == picks(MultiStepSelector(index, k=4).select(query))

    def test_two_orders_of_one_set_are_one_state(self, index: ChunkIndex, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[list[frozenset[str]]] = []
        encode = index.model.encode_states
        monkeypatch.setattr(
            index.model,
            "encode_states",
            lambda states, **o: seen.append([frozenset(s[1]) for s in states]) or encode(states, **o),
        )
        MultiStepSelector(index, k=4, beam_width=6).select(QUESTION)
        assert len(seen[2]) == 6
        for sets in seen:
            assert len(set(sets)) == len(sets)

    def test_a_beam_that_min_q_ends_is_kept(self) -> None:
        """The best pick leads nowhere; the second best leads to more picks, none of them as good."""
        q_values_after = {(): [0.9, 0.5, 0.0], ("a",): [0.0, 0.0, 0.0], ("b",): [0.05, 0.0, 0.6], ("b", "c"): [0.0] * 3}

        def encode_states(states: list, **_: object) -> np.ndarray:
            return np.array([q_values_after[tuple(texts)] for _, texts in states], np.float32)

        index = ChunkIndex.from_embeddings(np.eye(3, dtype=np.float32), ["a", "b", "c"], mode="corpus")
        config = QRAGConfig(dim=3)
        index._model = IndexModel(SimpleNamespace(config=config, encode_states=encode_states))  # type: ignore[arg-type]
        selection = MultiStepSelector(index, k=3, min_q=0.1, beam_width=2).select("q")
        assert (selection.ids, selection.stop_reason) == (["0"], "min_q")
        longer = MultiStepSelector(index, k=3, min_q=0.1, beam_width=2, rank_by="last").select("q")
        assert longer.ids == ["0"]

    @pytest.mark.parametrize("options", [{"beam_width": 4}, {"temperature": 3.0, "seed": 0}, {}])
    def test_no_pick_is_worth_min_q_or_less(self, index: ChunkIndex, options: dict) -> None:
        values = np.sort(scores(index.model, QUESTION, []))
        threshold = float(values[-3])
        for query in QUERIES:
            selection = MultiStepSelector(index, k=6, min_q=threshold, **options).select(query)
            assert all(step.q_value > threshold for step in selection.steps)


class TestSampling:
    def test_a_seed_repeats_and_another_differs(self, index: ChunkIndex) -> None:
        def run(seed: int) -> list[list[int]]:
            selector = MultiStepSelector(index, k=4, temperature=1.0, seed=seed)
            return [picks(selector.select(QUESTION)) for _ in range(5)]

        assert run(1) == run(1)
        assert run(1) != run(2)

    def test_samples_come_from_the_best_few_in_proportion(self, index: ChunkIndex, model: QRAGModel) -> None:
        values = scores(model, QUESTION, [])
        best = np.argsort(-values)[:5]
        temperature = float(values[best].std())
        expected = np.exp((values[best] - values[best[0]]) / temperature)
        expected /= expected.sum()
        selector = MultiStepSelector(index, k=1, temperature=temperature, seed=0)
        counts = np.bincount([picks(selector.select(QUESTION))[0] for _ in range(400)], minlength=len(STORY))
        assert set(np.flatnonzero(counts)) <= set(best.tolist())
        np.testing.assert_allclose(counts[best] / 400, expected, atol=0.08)

    def test_a_tiny_temperature_is_greedy(self, index: ChunkIndex, model: QRAGModel) -> None:
        selection = MultiStepSelector(index, k=3, temperature=1e-6, seed=0).select(QUESTION)
        assert picks(selection) == greedy(model, QUESTION, 3)


def test_a_given_first_state_replaces_only_the_first_hop(index: ChunkIndex, model: QRAGModel) -> None:
    given = model.encode_states(["The captain wrote a letter."])[0]
    selection = MultiStepSelector(index, k=3).select(QUESTION, first_state=given)
    first = int(q_values(given, model.encode_chunks(STORY), relative_runs(len(STORY), [])).argmax())
    assert picks(selection)[0] == first
    values = scores(model, QUESTION, [first])
    values[first] = -np.inf
    assert picks(selection)[1] == int(values.argmax())


def test_first_states_of_many_queries_may_be_an_array(index: ChunkIndex, model: QRAGModel) -> None:
    given = model.encode_states(STORY[:2])
    found = MultiStepSelector(index, k=2).select_many(QUERIES[:2], given)
    one_by_one = [MultiStepSelector(index, k=2).select(*pair) for pair in zip(QUERIES, given, strict=False)]
    assert [picks(one) for one in found] == [picks(one) for one in one_by_one]


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((1, 32)), np.full(32, np.nan)])
def test_a_wrong_first_state_is_an_error(index: ChunkIndex, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="state embedding"):
        MultiStepSelector(index).select(QUESTION, first_state=bad)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 1.5}, TypeError, "k must be an integer"),
        ({"beam_width": 0}, ValueError, "beam_width must be at least 1"),
        ({"temperature": 0.0}, ValueError, "positive temperature"),
        ({"temperature": 1.0, "beam_width": 2}, ValueError, "beam_width 1"),
        ({"rank_by": "sum"}, ValueError, "'max', 'last' or 'mean'"),
        ({"min_q": "high"}, ValueError, "'auto' or None"),
        ({"min_q": float("nan")}, ValueError, "NaN"),
        ({"min_q": []}, TypeError, "expected min_q as a number, 'auto' or None, got"),
        ({"temperature": "hot"}, TypeError, "expected temperature as a number or None, got 'hot'"),
        ({"temperature": float("nan")}, ValueError, "temperature must not be NaN"),
    ],
)
def test_impossible_settings_are_errors(index: ChunkIndex, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        MultiStepSelector(index, **options)


@pytest.mark.parametrize(
    ("query", "error"),
    [("", ValueError), ("  \n", ValueError), (None, TypeError), (7, TypeError), ("\ud800", ValueError)],
)
def test_impossible_queries_are_errors(index: ChunkIndex, query: Any, error: type) -> None:
    with pytest.raises(error, match="query"):
        MultiStepSelector(index).select(query)


def test_one_string_is_not_a_list_of_queries(index: ChunkIndex) -> None:
    with pytest.raises(TypeError, match="use a list"):
        MultiStepSelector(index).select_many(QUESTION)


def test_a_selection_reads_well_and_becomes_plain_data(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=2).select(QUESTION)
    shown = repr(selection)
    assert QUESTION in shown
    assert f"chunk {selection.steps[0].chunk_id} [{selection.ids[0]}]: {selection.steps[0].text}" in shown
    plain = selection.to_dict()
    assert plain["stop_reason"] == "k"
    assert plain["steps"][1]["q_value"] == selection.steps[1].q_value


def test_a_model_that_gives_nan_is_an_error(index: ChunkIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        index.model, "encode_states", lambda states, **_: np.full((len(states), 32), np.nan, np.float32)
    )
    with pytest.raises(ValueError, match="NaN or infinite"):
        MultiStepSelector(index).select(QUESTION)


def test_many_queries_on_a_small_document_stay_within_memory(
    index: ChunkIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    scan = type(index.view.scan)
    top_k = scan.top_k
    monkeypatch.setattr(
        scan, "top_k", lambda self, queries, *rest: sizes.append(len(queries)) or top_k(self, queries, *rest)
    )
    monkeypatch.setattr("qrag_retriever.view._FLOATS_AT_ONCE", 100_000)
    together = MultiStepSelector(index, k=2).select_many(QUERIES * 4)
    assert max(sizes) < 20
    assert [picks(s) for s in together] == [picks(MultiStepSelector(index, k=2).select(q)) for q in QUERIES * 4]


class SameState(ToyModel):
    """Gives every state one embedding, so that every chunk has one Q-value."""

    def encode_states(self, states: Any, show_progress: bool | None = None) -> np.ndarray:
        return np.tile(np.eye(DIM, dtype=np.float32)[0], (len(states), 1))


@pytest.mark.parametrize("rank_by", ["max", "last", "mean"])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_beams_of_equal_rank_are_told_apart_by_their_q_values(rank_by: Any, width: int) -> None:
    values = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.8, 0.6, 1.0]
    embeddings = np.array(values, np.float32)[:, None] * np.eye(DIM, dtype=np.float32)[:1]
    index = ChunkIndex.from_embeddings(embeddings, model=SameState("none"), mode="corpus")
    found = MultiStepSelector(index, k=3, beam_width=width, rank_by=rank_by).select("Where?")
    # After the highest Q-value no other is higher, and all continuations have the same maximum.
    assert sorted(picks(found)) == [7, 8, 9]
    if rank_by == "max":
        assert picks(found)[0] == 9

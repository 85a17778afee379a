from __future__ import annotations

import copy
import dataclasses
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, Selection
from qrag_retriever.errors import IndexFolderError
from qrag_retriever.positions import absolute_runs, relative_runs
from qrag_retriever.trace import Hop, SearchTrace, Segment
from tests.conftest import QUESTION, STORY
from tests.long_document import NUM_CHUNKS, long_index


@pytest.fixture(scope="module")
def index(model: QRAGModel) -> ChunkIndex:
    metadatas = [{"document_id": "odd" if i % 2 else "even", "number": i} for i in range(len(STORY))]
    return ChunkIndex.from_texts(STORY, metadatas, ids=[f"s{i}" for i in range(len(STORY))], model=model)


def trace_of(selection: Selection) -> SearchTrace:
    trace = selection._known_trace
    assert trace is not None
    return trace


def check_picks(selection: Selection) -> None:
    """Every hop's Q-values are those that its pick was made by."""
    trace = trace_of(selection)
    assert trace.chunk_ids(trace.picked) == [step.chunk_id for step in selection.steps]
    for number, step in enumerate(selection.steps):
        hop = trace.hop(number)
        assert hop.pick is not None
        assert hop.available[hop.pick]
        assert hop.q_values[hop.pick] == pytest.approx(step.q_value, abs=1e-5)
        assert not hop.available[list(hop.earlier)].any()


def test_a_selection_stays_a_plain_result(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=3).select(QUESTION)
    by_hand = Selection(selection.query, selection.steps, selection.stop_reason)
    assert selection == by_hand
    assert repr(selection) == repr(by_hand)
    assert selection.to_dict() == by_hand.to_dict() == dataclasses.asdict(selection)
    assert set(selection.to_dict()) == {"query", "steps", "stop_reason"}
    assert pickle.dumps(selection) == pickle.dumps(by_hand)
    assert pickle.loads(pickle.dumps(selection)) == selection


@pytest.mark.parametrize("forget", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_know_no_index_and_say_so(index: ChunkIndex, forget: Any) -> None:
    selection = forget(MultiStepSelector(index, k=2).select(QUESTION))
    assert selection._known_trace is None
    with pytest.raises(ValueError, match="knows no index: it was unpickled, copied or built by hand; search again"):
        selection.plot()


@pytest.mark.parametrize("options", [{}, {"beam_width": 3}, {"temperature": 0.5, "seed": 3}])
def test_states_are_those_of_the_picks(index: ChunkIndex, options: dict[str, Any]) -> None:
    selection = MultiStepSelector(index, k=5, **options).select(QUESTION)
    assert len(trace_of(selection)) == 5
    check_picks(selection)


def test_many_queries_have_their_own_traces(index: ChunkIndex) -> None:
    for selection in MultiStepSelector(index, k=3).select_many([QUESTION, "Who dropped the apple?"]):
        check_picks(selection)


def test_a_given_first_state_is_kept(index: ChunkIndex, model: QRAGModel) -> None:
    state = model.encode_states([("Rain?", [])])[0]
    selection = MultiStepSelector(index, k=2).select(QUESTION, first_state=state)
    np.testing.assert_array_equal(trace_of(selection).states[0], state)
    check_picks(selection)


def test_the_state_in_which_a_search_stopped_is_kept(index: ChunkIndex) -> None:
    free = MultiStepSelector(index, k=2).select(QUESTION)
    threshold = free.steps[0].q_value + 1
    stopped = trace_of(MultiStepSelector(index, k=2, min_q=threshold).select(QUESTION))
    assert stopped.picked == ()
    assert len(stopped) == 1
    assert stopped.min_q == threshold
    assert stopped.hop(0).pick is None
    assert stopped.hop(0).runner_up == free.steps[0].chunk_id


def test_what_was_searched_is_shown_whatever_is_added_since(model: QRAGModel) -> None:
    index = ChunkIndex.from_texts(STORY, model=model)
    selection = MultiStepSelector(index, k=2).select(QUESTION)
    before = index.q_values(trace_of(selection).states[1], [selection.steps[0].chunk_id])
    index.add(["A new sentence."])
    index.delete([selection.steps[0].id])
    trace = trace_of(selection)
    assert trace.num_chunks == len(STORY)
    np.testing.assert_array_equal(trace.hop(1).q_values, before)
    check_picks(selection)


def test_a_folder_that_was_rewritten_since_still_gives_q_values(model: QRAGModel, tmp_path: Path) -> None:
    index = ChunkIndex.from_texts(STORY, model=model)
    index.save(tmp_path / "story.qrag")
    selection = MultiStepSelector(index, k=2).select(QUESTION)
    index.delete([index.ids[0]])
    index.save(tmp_path / "story.qrag")
    check_picks(selection)
    with pytest.raises(IndexFolderError):
        trace_of(selection).view.records([0])
    selection.to_html(tmp_path / "page.html")
    assert selection.steps[0].text in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_mask_rules_out(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=2, filters={"number": [1, 2, 3]}).select(QUESTION)
    trace = trace_of(selection)
    assert (trace.num_chunks, trace.num_ruled_out) == (len(STORY), len(STORY) - 3)
    assert set(trace.hop(0).best(100)) == {1, 2, 3}
    assert trace.hop(1).available.sum() == 2
    check_picks(selection)


def test_one_document_has_places_of_its_own(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=3, filters={"document_id": "odd"}).select(QUESTION)
    trace = trace_of(selection)
    assert trace.num_chunks == len(STORY) // 2
    assert trace.first_chunk_id is None
    assert trace.chunk_ids([0, 1]) == [1, 3]
    assert list(trace.surroundings(2, 2)) == [0, 1, 2, 3, 4]
    assert trace.hop(2).segments[-1].stop == trace.num_chunks
    check_picks(selection)


def test_neighbours_end_with_the_document(model: QRAGModel) -> None:
    documents = [{"document_id": name} for name in ["a"] * 3 + ["b"] * 4 + ["a"] * 5]
    index = ChunkIndex.from_texts(STORY, documents, model=model)
    trace = trace_of(MultiStepSelector(index, k=1).select(QUESTION))
    assert trace.first_chunk_id == 0
    assert [list(trace.surroundings(place, 2)) for place in (0, 2, 4)] == [[0, 1, 2], [0, 1, 2], [3, 4, 5, 6]]


def test_an_empty_document_leaves_nothing(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=2, filters={"document_id": "none such"}).select(QUESTION)
    trace = trace_of(selection)
    assert (selection.stop_reason, len(trace), trace.num_chunks) == ("exhausted", 0, 0)
    assert trace.view.q_values(np.zeros(index.dim, np.float32)).shape == (0,)


def test_segments_and_their_positions(index: ChunkIndex) -> None:
    trace = trace_of(MultiStepSelector(index, k=2).select(QUESTION))
    assert trace.hop(0).segments == (Segment(0, 12, 0, 18),)
    cut = trace.picked[0]
    stride = trace.view.geometry.stride
    second = trace.hop(1).segments[-1]
    assert (second.first, second.stop, second.first_position) == (cut, 12, stride)


def test_corpus_mode_has_no_segments(corpus_model: QRAGModel) -> None:
    index = ChunkIndex.from_texts(STORY, model=corpus_model, mode="corpus")
    selection = MultiStepSelector(index, k=3).select(QUESTION)
    trace = trace_of(selection)
    assert not trace.has_positions
    assert not trace.in_document_order
    assert trace.hop(2).segments == ()
    check_picks(selection)


def test_absolute_positions(tiny_encoder: Path) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, positions="absolute", device="cpu")
    selection = MultiStepSelector(ChunkIndex.from_texts(STORY, model=model), k=3).select(QUESTION)
    assert trace_of(selection).hop(2).segments == ()
    check_picks(selection)


def test_the_best_and_the_runner_up() -> None:
    values = np.array([1.0, 5.0, 3.0, 5.0, 4.0], np.float32)
    available = np.array([True, True, True, True, False])
    hop = Hop(values, available, (4,), 1, ())
    assert hop.best(3) == [1, 3, 2]
    assert hop.best(9) == [1, 3, 2, 0]
    assert hop.runner_up == 3
    assert dataclasses.replace(hop, pick=2).runner_up == 1
    assert dataclasses.replace(hop, available=np.zeros(5, np.bool_)).runner_up is None


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (3, 9), (0, 50), (49, 50), (10, 20)])
def test_runs_between(first: int, stop: int) -> None:
    for runs in (relative_runs(50, [10, 3]), absolute_runs(50)):
        part = runs.between(first, stop)
        assert part.edges[0] == 0
        np.testing.assert_array_equal(part.expand(), runs.expand()[first:stop])


def test_400_000_chunks_are_scored_in_little_memory(model: QRAGModel) -> None:
    trace = trace_of(MultiStepSelector(long_index(model), k=1).select(QUESTION))
    tracemalloc.start()
    trace.hop(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The values and the mask are five bytes a chunk; the matrix would be 128.
    assert peak < 10 * NUM_CHUNKS


def test_blocks_do_not_show(model: QRAGModel, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ChunkIndex.from_texts(STORY, model=model)
    state = model.encode_states([(QUESTION, [])])[0]
    whole = index.q_values(state, [5])
    monkeypatch.setattr("qrag_retriever.view._ROWS_AT_ONCE", 5)
    np.testing.assert_allclose(index.q_values(state, [5]), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"filters": {"number": [1, 2, 3, 7]}}, {"filters": {"document_id": "odd"}}])
def test_all_hops_at_once_are_the_hops_one_by_one(index: ChunkIndex, options: dict[str, Any]) -> None:
    trace = trace_of(MultiStepSelector(index, k=3, **options).select(QUESTION))
    hops = list(trace.hops())
    assert len(hops) == len(trace)
    for number, hop in enumerate(hops):
        alone = trace.hop(number)
        np.testing.assert_allclose(hop.q_values, alone.q_values, atol=1e-6)
        np.testing.assert_array_equal(hop.available, alone.available)
        assert (hop.pick, hop.earlier, hop.segments) == (alone.pick, alone.earlier, alone.segments)


@pytest.mark.parametrize(("values", "passes"), [(2**25, 1), (2 * len(STORY), 2), (1, 3)])
def test_a_notebook_reads_every_vector_once(
    index: ChunkIndex, monkeypatch: pytest.MonkeyPatch, values: int, passes: int
) -> None:
    """Unless Q-values of all hops together would take too much memory."""
    selection = MultiStepSelector(index, k=3).select(QUESTION)
    source = type(trace_of(selection).view.source)
    read, rows = source.vectors, []

    def counted(self: Any, chunk_ids: np.ndarray) -> np.ndarray:
        rows.extend(chunk_ids)
        return read(self, chunk_ids)

    monkeypatch.setattr(source, "vectors", counted)
    monkeypatch.setattr("qrag_retriever.trace._VALUES_AT_ONCE", values)
    assert "<svg" in selection._repr_html_()
    assert sorted(rows) == sorted(list(range(len(STORY))) * passes)

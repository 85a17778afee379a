"""ChunkIndex: constructors, one hop against a brute force, additions, deletions, versions, threads, copies."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrag_retriever.errors import DuplicateIdError, ModelMismatchError, UnknownIdError
from qrag_retriever.index import ChunkIndex
from qrag_retriever.records import Record
from qrag_retriever.view import IndexView
from tests.toy_model import DIM, ToyModel, embedding_of

KINDS = ["float32", "int8", "mapped"]
STATE = embedding_of("a state")


# The brute force: straight from the definition, every chunk turned to its position as complex numbers.


def naive_positions(count: int, picked: Sequence[int], kind: str) -> list[int]:
    if kind == "none":
        return [0] * count
    if kind == "absolute":
        return list(range(count))
    cuts = [0, *sorted(picked), count]
    positions = []
    for segment, (first, stop) in enumerate(itertools.pairwise(cuts)):
        length = stop - first
        positions += [20 * segment + (18 * r // (length - 1) if length > 1 else 0) for r in range(length)]
    return positions


def naive_q(state: np.ndarray, chunks: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    dim = chunks.shape[1]
    half = dim // 2
    angles = [10000.0 ** (-2 * pair / half) for pair in range(dim // 4)]
    total = np.zeros(len(chunks))
    for head in (slice(0, half), slice(half, dim)):
        s, a = (x[..., head].astype(np.float64).reshape(*x.shape[:-1], half // 2, 2) for x in (state, chunks))
        s, a = s[..., 0] + 1j * s[..., 1], a[..., 0] + 1j * a[..., 1]
        turned = a * np.exp(1j * np.outer(positions, angles))
        total += (s.conj() * turned).real.sum(axis=1)
    return total


def naive_top(
    scores: np.ndarray, picked: Sequence[int], k: int, mask: np.ndarray | None = None
) -> list[tuple[int, float]]:
    left = [i for i in range(len(scores)) if i not in set(picked) and (mask is None or mask[i])]
    return [(i, float(scores[i])) for i in sorted(left, key=lambda i: (-scores[i], i))[:k]]


def assert_top(
    ids: np.ndarray,
    values: np.ndarray,
    scores: np.ndarray,
    picked: Sequence[int],
    k: int,
    mask: np.ndarray | None = None,
) -> None:
    """Check one row against all scores: the right chunks wherever scores differ by more than 1e-4."""
    expected = naive_top(scores, picked, k, mask)
    count = len(expected)
    assert ids.shape == values.shape == (k,)
    assert (ids[count:] == -1).all()
    assert np.isneginf(values[count:]).all()
    got = ids[:count].tolist()
    assert len(set(got)) == count
    assert not set(got) & set(picked)
    assert all(0 <= i < len(scores) and (mask is None or mask[i]) for i in got)
    np.testing.assert_allclose(values[:count], [q for _, q in expected], atol=1e-4)
    np.testing.assert_allclose(scores[got], values[:count], atol=1e-4)


def random_index(count: int, dim: int, seed: int, **arguments: Any) -> tuple[ChunkIndex, np.ndarray]:
    chunks = np.random.default_rng(seed).standard_normal((count, dim), np.float32)
    return ChunkIndex.from_embeddings(chunks, **arguments), chunks


def toy_index(count: int = 10, **arguments: Any) -> ChunkIndex:
    arguments = {"model": ToyModel(), "ids": [f"c{i}" for i in range(count)], **arguments}
    return ChunkIndex.from_texts([f"text {i}" for i in range(count)], **arguments)


def texts_of(index: ChunkIndex) -> dict[str, str]:
    return {record.id: record.text for record in index.get(index.ids)}


def assert_searches_like_new(index: ChunkIndex, kind: str = "relative") -> None:
    """Check a hop, with and without a pick, against the embeddings that the texts should have."""
    records = index.get(index.ids)
    chunks = np.array([embedding_of(record.text) for record in records], np.float32).reshape(-1, DIM)
    for picked in ([], [len(records) // 2][: len(records)]):
        scores = naive_q(STATE, chunks, naive_positions(len(chunks), picked, kind))
        k = len(records) + 2
        assert_top(*index.top_k(STATE, picked, k), scores, picked, k)


# Constructors


def test_from_texts_embeds_each_text_once_in_order() -> None:
    index = toy_index(5)
    assert (len(index), index.ids, index.mode, index.dim) == (5, ["c0", "c1", "c2", "c3", "c4"], "document", DIM)
    assert [record.text for record in index.get(["c3", "c0"])] == ["text 3", "text 0"]
    assert index.path is None
    np.testing.assert_array_equal(
        index.view.source.vectors(np.arange(5)), [embedding_of(f"text {i}") for i in range(5)]
    )


def test_repr_says_what_and_where(tmp_path: Path) -> None:
    index = toy_index(3, mode="corpus")
    assert repr(index) == f"ChunkIndex(3 chunks, dim={DIM}, mode='corpus', in memory)"
    index.save(tmp_path / "place")
    assert repr(index).endswith(f"at {str(tmp_path / 'place')!r})")


@pytest.mark.parametrize(("mode", "expected"), [("auto", "document"), ("document", "document"), ("corpus", "corpus")])
def test_mode_of_texts(mode: Any, expected: str) -> None:
    assert toy_index(mode=mode).mode == expected


def test_ids_are_made_where_none_are_given() -> None:
    index = ChunkIndex.from_texts(["a", "b"], model=ToyModel())
    assert len(set(index.ids)) == 2
    assert [record.text for record in index.get(index.ids)] == ["a", "b"]


def test_metadata_and_document_are_kept() -> None:
    index = toy_index(2, metadatas=[{"source": "s", "page": 2}, None])
    first, second = index.get(["c0", "c1"])
    assert (first.metadata, first.document_id) == ({"source": "s", "page": 2}, "s")
    assert (second.metadata, second.document_id) == ({}, None)


def test_from_embeddings_numbers_the_chunks_and_needs_no_texts() -> None:
    index, chunks = random_index(4, 8, 0)
    assert index.ids == ["0", "1", "2", "3"]
    assert [record.text for record in index.get(index.ids)] == [""] * 4
    assert index.mode == "document"
    np.testing.assert_array_equal(index.view.source.vectors(np.arange(4)), chunks)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32, list])
def test_from_embeddings_takes_any_numbers(kind: Any) -> None:
    numbers = np.arange(16).reshape(2, 8)
    index = ChunkIndex.from_embeddings(numbers.tolist() if kind is list else numbers.astype(kind))
    np.testing.assert_array_equal(index.view.source.vectors(np.arange(2)), numbers.astype(np.float32))


def test_an_index_from_embeddings_can_grow_with_a_model() -> None:
    model = ToyModel()
    texts = ["a", "b"]
    index = ChunkIndex.from_embeddings(model.encode_chunks(texts), texts, model=model)
    index.add_records([Record("new", "c")])
    assert index.ids == ["0", "1", "new"]
    assert_searches_like_new(index)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat", "HNSW8,SQfp16", "IVF1,Flat", "SQ8"])
def test_from_faiss_takes_the_vectors_in_order(factory: str) -> None:
    import faiss

    chunks = np.random.default_rng(3).standard_normal((60, 8), np.float32)
    faiss_index = faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT)
    faiss_index.train(chunks)
    faiss_index.add(chunks)
    if factory.startswith("IVF"):
        faiss_index.make_direct_map()
    texts = [f"text {i}" for i in range(60)]
    index = ChunkIndex.from_faiss(faiss_index, texts, mode="corpus", ids=[f"f{i}" for i in range(60)])
    assert (len(index), index.dim, index.mode, index.ids[59]) == (60, 8, "corpus", "f59")
    assert index.get(["f7"])[0].text == "text 7"
    kept = index.view.source.vectors(np.arange(60))
    np.testing.assert_allclose(kept, chunks, atol=0.05)
    assert_top(*index.top_k(chunks[0], [3], 5), naive_q(chunks[0], kept, [0] * 60), [3], 5)


def test_from_faiss_copies_so_that_the_faiss_index_may_change() -> None:
    import faiss

    flat = faiss.IndexFlatIP(8)
    flat.add(np.eye(8, dtype=np.float32))
    index = ChunkIndex.from_faiss(flat)
    flat.reset()
    flat.add(np.zeros((8, 8), np.float32))
    np.testing.assert_array_equal(index.view.source.vectors(np.arange(8)), np.eye(8))


@pytest.mark.parametrize("kind", ["IndexIDMap", "IndexIDMap2"])
def test_from_faiss_takes_an_index_with_ids_of_its_own_or_refuses_it(kind: str) -> None:
    # In a process of its own: faiss ends the process where its parallel loop meets an error.
    script = f"""
import faiss, numpy as np
from qrag_retriever.index import ChunkIndex
chunks = np.arange(48, dtype=np.float32).reshape(6, 8)
mapped = faiss.{kind}(faiss.IndexFlatIP(8))
mapped.add_with_ids(chunks, np.arange(6) + 100)
try:
    index = ChunkIndex.from_faiss(mapped)
    assert np.array_equal(index.view.source.vectors(np.arange(6)), chunks)
except ValueError as error:
    assert "{kind} cannot give its vectors back" in str(error), error
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# One hop


@pytest.mark.parametrize("scan", KINDS)
def test_shapes_for_one_state_and_for_several(scan: Any) -> None:
    index, chunks = random_index(9, 8, 1, scan=scan)
    ids, values = index.top_k(chunks[0], [2], 3)
    assert (ids.shape, values.shape, ids.dtype, values.dtype) == ((3,), (3,), np.int64, np.float32)
    batch_ids, batch_values = index.top_k(chunks[:1], [[2]], 3)
    assert (batch_ids.shape, batch_values.shape) == ((1, 3), (1, 3))
    assert (batch_ids.dtype, batch_values.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(batch_ids[0], ids)
    np.testing.assert_array_equal(batch_values[0], values)


@pytest.mark.parametrize("scan", KINDS)
def test_no_states_give_no_rows(scan: Any) -> None:
    index, _ = random_index(9, 8, 1, scan=scan)
    ids, values = index.top_k(np.empty((0, 8), np.float32), [], 3)
    assert (ids.shape, values.shape) == ((0, 3), (0, 3))


def test_states_and_picks_may_be_plain_lists_tuples_or_arrays() -> None:
    index, chunks = random_index(9, 8, 1)
    expected = index.top_k(chunks[0], [2, 4], 3)
    for state in (chunks[0].tolist(), chunks[0].astype(np.float64), np.repeat(chunks[0], 2)[::2]):
        for picked in ((2, 4), np.array([4, 2]), [np.int64(2), np.int32(4)]):
            np.testing.assert_array_equal(index.top_k(state, picked, 3), expected)


@pytest.mark.parametrize("scan", KINDS)
@pytest.mark.parametrize(("picked", "mask"), [([], [5]), ([0, 5], [5]), (list(range(7)), None), ([1], [])])
def test_padding_where_fewer_than_k_remain(picked: list[int], mask: list[int] | None, scan: Any) -> None:
    index, chunks = random_index(7, 8, 2, scan=scan)
    allowed = None if mask is None else np.isin(np.arange(7), mask)
    left = [i for i in (range(7) if mask is None else mask) if i not in picked]
    for k in (1, 3, 20):
        ids, values = index.top_k(chunks[0], picked, k, allowed)
        assert ids.tolist() == (left + [-1] * k)[:k]
        assert np.isfinite(values).sum() == min(k, len(left))
        assert np.isneginf(values[len(left) :]).all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("scan", KINDS)
@pytest.mark.parametrize(
    ("positions", "mode"),
    [("relative", "document"), ("absolute", "document"), ("none", "document"), ("relative", "corpus"),
     ("absolute", "corpus")],
)  # fmt: skip
def test_top_k_equals_the_brute_force(positions: Any, mode: Any, scan: Any, data: st.DataObject) -> None:
    count, dim = data.draw(st.integers(1, 40)), 4 * data.draw(st.integers(1, 6))
    states = data.draw(st.integers(1, 5))
    k = data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    chunks = rng.standard_normal((count, dim), np.float32) * data.draw(st.sampled_from([1e-3, 1.0, 10.0]))
    if count > 1 and data.draw(st.booleans()):
        chunks[rng.integers(count, size=count // 2)] = chunks[0]
    model = ToyModel(positions, dim)
    index = ChunkIndex.from_embeddings(chunks, model=model, mode=mode, scan=scan)
    queries = rng.standard_normal((states, dim), np.float32)
    picked = [data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=5)) for _ in range(states)]
    mask = rng.random(count) < 0.7 if data.draw(st.booleans()) else None
    ids, values = index.top_k(queries, picked, k, mask)
    for row in range(states):
        placed = positions if mode == "document" else "none"
        scores = naive_q(queries[row], chunks, naive_positions(count, picked[row], placed))
        assert_top(ids[row], values[row], scores, picked[row], k, mask)
        np.testing.assert_allclose(index.q_values(queries[row], picked[row]), scores, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scan", [*KINDS, "auto"])
@pytest.mark.parametrize("states", [1, 5])
@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_top_k_equals_the_brute_force_over_several_blocks(positions: Any, states: int, scan: Any) -> None:
    index, chunks = random_index(5_003, 16, 5, model=ToyModel(positions, 16), scan=scan)
    rng = np.random.default_rng(6)
    queries = rng.standard_normal((states, 16), np.float32)
    picked = [sorted(rng.choice(5_003, size=3 * row, replace=False).tolist()) for row in range(states)]
    ids, values = index.top_k(queries, picked, 7)
    for row in range(states):
        scores = naive_q(queries[row], chunks, naive_positions(5_003, picked[row], positions))
        assert ids[row].tolist() == [i for i, _ in naive_top(scores, picked[row], 7)]
        assert_top(ids[row], values[row], scores, picked[row], 7)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    k=st.integers(1, 35),
    picked=st.sets(st.integers(0, 29), max_size=4),
)
@pytest.mark.parametrize("scan", KINDS)
def test_ties_go_to_the_lower_id(scan: Any, rows: list[int], k: int, picked: set[int]) -> None:
    chunks = np.zeros((len(rows), 4), np.float32)
    chunks[:, 0] = rows
    index = ChunkIndex.from_embeddings(chunks, mode="corpus", scan=scan)
    chosen = sorted(i for i in picked if i < len(rows))
    expected = [i for i, _ in naive_top(chunks[:, 0], chosen, k)]
    for states, picks in ((1, [chosen]), (4, [chosen] * 4)):
        ids, _ = index.top_k(np.tile(np.float32([1, 0, 0, 0]), (states, 1)), picks, k)
        assert (ids == ids[0]).all()
        assert ids[0].tolist() == expected + [-1] * (k - len(expected))


def test_ties_over_many_blocks_go_to_the_lower_id() -> None:
    chunks = np.zeros((4_100, 4), np.float32)
    chunks[[4_050, 3_000, 1_500, 20], 0] = 1
    for scan in KINDS:
        index = ChunkIndex.from_embeddings(chunks, mode="corpus", scan=scan)  # type: ignore[arg-type]
        assert index.top_k(np.float32([1, 0, 0, 0]), [20], 5)[0].tolist() == [1_500, 3_000, 4_050, 0, 1]


def test_equal_texts_are_distinct_chunks() -> None:
    index = ChunkIndex.from_texts(["same"] * 5, ids=list("abcde"), model=ToyModel(), mode="corpus")
    assert index.top_k(embedding_of("same"), [1, 3], 4)[0].tolist() == [0, 2, 4, -1]


# Documents and filters

LAYOUTS = {"contiguous": "AAAABBBBBCCC", "interleaved": "ABCABCBBACAB"}


@pytest.mark.parametrize("order", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("positions", ["relative", "absolute", "none"])
@pytest.mark.parametrize("scan", KINDS)
@pytest.mark.parametrize("bound", [False, True], ids=["memory", "folder"])
def test_a_filter_on_one_document_restricts_search_and_positions(
    order: str, positions: Any, scan: Any, bound: bool, tmp_path: Path
) -> None:
    metadatas = [{"document_id": name, "n": i} for i, name in enumerate(order)]
    index = toy_index(len(order), metadatas=metadatas, model=ToyModel(positions), scan=scan)
    if bound:
        index.save(tmp_path / "index")
    for document in "ABC":
        members = [i for i, name in enumerate(order) if name == document]
        chunks = np.array([embedding_of(f"text {i}") for i in members])
        view, mask = index.view.restricted({"document_id": document})
        assert len(view) == len(members)
        assert [record.text for record in view.records(range(len(view)))] == [f"text {i}" for i in members]
        assert view.global_ids(np.array([0, -1, len(members) - 1])).tolist() == [members[0], -1, members[-1]]
        for picked in ([], [1], [0, 2]):
            expected = naive_positions(len(members), picked, positions)
            assert view.positions(picked).expand().tolist() == expected
            scores = naive_q(STATE, chunks, expected)
            ids, values = view.top_k(STATE[None], [picked], 4, mask)
            assert_top(ids[0], values[0], scores, picked, 4)


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_a_document_filter_with_more_conditions_masks_within_the_document(positions: Any) -> None:
    order = LAYOUTS["interleaved"]
    metadatas = [{"document_id": name, "even": i % 2 == 0} for i, name in enumerate(order)]
    index = toy_index(len(order), metadatas=metadatas, model=ToyModel(positions))
    view, mask = index.view.restricted({"document_id": "B", "even": True})
    members = [i for i, name in enumerate(order) if name == "B"]
    assert mask is not None
    assert mask.tolist() == [i % 2 == 0 for i in members]
    scores = naive_q(STATE, np.array([embedding_of(f"text {i}") for i in members]), naive_positions(5, [0], positions))
    ids, values = view.top_k(STATE[None], [[0]], 5, mask)
    assert_top(ids[0], values[0], scores, [0], 5, mask)


@pytest.mark.parametrize("filters", [{"n": [0, 1, 2]}, {"document_id": ["A", "B"]}, lambda m: m["document_id"] == "A"])
def test_other_filters_never_move_positions(filters: Any) -> None:
    metadatas = [{"document_id": "ABC"[i % 3], "n": i % 5} for i in range(15)]
    index = toy_index(15, metadatas=metadatas)
    view, mask = index.view.restricted(filters)
    assert mask is not None
    assert 0 < mask.sum() < 15
    chunks = np.array([embedding_of(f"text {i}") for i in range(15)])
    scores = naive_q(STATE, chunks, naive_positions(15, [4], "relative"))
    ids, values = view.top_k(STATE[None], [[4]], 15, mask)
    assert_top(ids[0], values[0], scores, [4], 15, mask)


def test_a_restricted_view_follows_additions_and_deletions() -> None:
    index = toy_index(6, metadatas=[{"document_id": "AB"[i % 2]} for i in range(6)])
    index.view.restricted({"document_id": "A"})[0].top_k(STATE[None], [[]], 1)
    index.add_records([Record("new", "text new", {"document_id": "A"}, "A")])
    index.delete(["c0"])
    view, _ = index.view.restricted({"document_id": "A"})
    assert [record.id for record in view.records(range(len(view)))] == ["c2", "c4", "new"]


# Additions and deletions


@pytest.fixture(params=["memory", "folder"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> ChunkIndex:
    """Ten chunks: c0 to c4 are document A, c5 to c7 document B, the others stand alone; searched once already."""
    documents = ["A"] * 5 + ["B"] * 3 + [None] * 2
    records = [Record(f"c{i}", f"text {i}", {"n": i}, document) for i, document in enumerate(documents)]
    index = ChunkIndex.from_records(records, ToyModel())
    if request.param == "folder":
        index.save(tmp_path / "index")
    index.top_k(STATE, [], 1)
    return index


def test_add_appends(index: ChunkIndex) -> None:
    assert index.add_records([Record("x", "new x"), Record("y", "new y")]) == ["x", "y"]
    assert index.ids == [*(f"c{i}" for i in range(10)), "x", "y"]
    assert texts_of(index)["y"] == "new y"
    assert_searches_like_new(index)


def test_add_goes_to_the_end_of_its_document(index: ChunkIndex) -> None:
    index.add_records([Record("x", "new x", {}, "A"), Record("y", "new y", {}, "B"), Record("z", "new z", {}, "A")])
    assert index.ids == ["c0", "c1", "c2", "c3", "c4", "x", "z", "c5", "c6", "c7", "y", "c8", "c9"]
    assert_searches_like_new(index)


def test_the_same_id_is_an_update_in_place(index: ChunkIndex) -> None:
    before = index.ids
    index.add_records([Record("c2", "other text", {"new": True}, "A"), Record("c8", "another text")])
    assert index.ids == before
    assert index.get(["c2"])[0] == Record("c2", "other text", {"new": True}, "A")
    assert index.get(["c8"])[0].text == "another text"
    assert_searches_like_new(index)


def test_an_update_of_the_last_chunk(index: ChunkIndex) -> None:
    index.add_records([Record("c9", "other text")])
    assert index.ids[-1] == "c9"
    assert_searches_like_new(index)


def test_an_update_with_another_document_moves_the_chunk(index: ChunkIndex) -> None:
    index.add_records([Record("c1", "text 1", {}, "B")])
    assert index.ids == ["c0", "c2", "c3", "c4", "c5", "c6", "c7", "c1", "c8", "c9"]
    assert_searches_like_new(index)


def test_an_id_twice_in_one_call_is_an_error_and_nothing_is_added(index: ChunkIndex) -> None:
    with pytest.raises(DuplicateIdError, match="'x' occurs twice"):
        index.add_records([Record("y", "a"), Record("x", "b"), Record("x", "c")])
    assert index.ids == [f"c{i}" for i in range(10)]
    assert_searches_like_new(index)


def test_adding_nothing_changes_nothing(index: ChunkIndex) -> None:
    view = index.view
    assert index.add_records([]) == []
    assert index.view is view


@pytest.mark.parametrize(
    "gone", ["c0", "c4", "c9", "c8 c9", "c7 c8 c9", "c0 c9", "c0 c1 c2 c3 c4 c5 c6 c7 c8 c9"], ids=lambda gone: gone
)
def test_delete_closes_the_ranks(index: ChunkIndex, gone: str) -> None:
    assert index.delete(gone.split()) == gone.split()
    assert index.ids == [f"c{i}" for i in range(10) if f"c{i}" not in gone.split()]
    assert len(index) == 10 - len(gone.split())
    assert_searches_like_new(index)
    index.add_records([Record("new", "new text")])
    assert index.ids[-1] == "new"
    assert_searches_like_new(index)


def test_deleting_a_deleted_id_passes(index: ChunkIndex) -> None:
    index.delete(["c3"])
    assert index.delete(["c3", "c4", "c4"]) == ["c4"]
    assert index.delete(["c3"]) == []
    assert index.ids == ["c0", "c1", "c2", "c5", "c6", "c7", "c8", "c9"]


def test_deleting_a_deleted_id_passes_after_a_save(index: ChunkIndex, tmp_path: Path) -> None:
    index.delete(["c3"])
    index.save(tmp_path / "index")
    assert index.delete(["c3"]) == []
    assert ChunkIndex.load(tmp_path / "index").delete(["c3", "c4"]) == ["c4"]


def test_a_deleted_id_can_be_added_again(index: ChunkIndex) -> None:
    index.delete(["c3"])
    index.add_records([Record("c3", "back", {}, "A")])
    assert index.ids == ["c0", "c1", "c2", "c4", "c3", "c5", "c6", "c7", "c8", "c9"]
    assert index.delete(["c3"]) == ["c3"]
    assert_searches_like_new(index)


def test_an_unknown_id_is_an_error_and_nothing_is_lost(index: ChunkIndex) -> None:
    with pytest.raises(UnknownIdError, match=r"unknown ids: \['nobody'\].*nothing was deleted"):
        index.delete(["c1", "nobody", "c2"])
    assert len(index) == 10
    assert_searches_like_new(index)
    assert index.delete(["c1"]) == ["c1"]


def test_delete_document(index: ChunkIndex) -> None:
    assert index.delete_document("A") == [f"c{i}" for i in range(5)]
    assert index.ids == [f"c{i}" for i in range(5, 10)]
    assert_searches_like_new(index)
    with pytest.raises(UnknownIdError, match="no chunk belongs to the document 'A'"):
        index.delete_document("A")


def test_get_leaves_out_unknown_ids_and_keeps_the_order_asked_for(index: ChunkIndex) -> None:
    assert [record.id for record in index.get(["c5", "nobody", "c0"])] == ["c5", "c0"]


@pytest.mark.parametrize("positions", ["relative", "absolute", "none"])
@pytest.mark.parametrize("scan", KINDS)
@pytest.mark.parametrize("bound", [False, True], ids=["memory", "folder"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_of_changes_searches_like_a_new_index(
    positions: Any, scan: Any, bound: bool, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    model = ToyModel(positions)
    ids = st.lists(st.sampled_from([f"c{i}" for i in range(9)]), min_size=1, max_size=4, unique=True)
    index = ChunkIndex.from_texts([f"text {i}" for i in range(6)], None, [f"c{i}" for i in range(6)], model, scan=scan)
    if bound:
        index.save(tmp_path_factory.mktemp("history") / "index")
    for step in range(data.draw(st.integers(1, 5))):
        chosen = data.draw(ids)
        if data.draw(st.booleans()):
            documents = {id_: data.draw(st.sampled_from([None, "A", "B"])) for id_ in chosen}
            index.add_records([Record(id_, f"{id_} at {step}", {}, document) for id_, document in documents.items()])
        else:
            index.delete([id_ for id_ in chosen if id_ in index.ids])
        assert_searches_like_new(index, positions)


# Versions


def test_a_search_sees_one_version(index: ChunkIndex) -> None:
    view = index.view
    layout, before = view.layout, view.top_k(STATE[None], [[2]], 10)
    records = view.records(range(10))
    index.add_records([Record("x", "x", {}, "A"), Record("c0", "changed", {}, "A"), Record("y", "y")])
    index.delete(["c1", "c2", "c9"])
    index.add_records([Record("z", "z")])
    assert view.layout is layout
    assert view.records(range(10)) == records
    for held in (view, IndexView(view.geometry, view.layout, view.source)):
        np.testing.assert_array_equal(held.top_k(STATE[None], [[2]], 10), before)
    assert index.ids == ["c0", "c3", "c4", "x", "c5", "c6", "c7", "c8", "y", "z"]
    assert_searches_like_new(index)


def test_two_continuations_of_one_version_do_not_meet() -> None:
    index = toy_index(4)
    index.add_records([Record("x", "x")])
    old = index.view
    index.add_records([Record("y", "y")])
    index.delete(["y"])
    index.add_records([Record("z", "z")])
    assert [r.id for r in old.records(range(5))] == ["c0", "c1", "c2", "c3", "x"]
    np.testing.assert_array_equal(old.source.matrix()[4], embedding_of("x"))
    assert_searches_like_new(index)


def test_threads_search_while_others_add_and_delete(index: ChunkIndex) -> None:
    stop = threading.Event()
    problems: list[BaseException] = []
    searches = 0

    def guarded(work: Any) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            problems.append(error)
            stop.set()

    def search() -> None:
        nonlocal searches
        view = index.view
        records = view.records(range(len(view)))
        assert tuple(record.id for record in records) == view.layout.ids
        chunks = np.array([embedding_of(record.text) for record in records])
        scores = naive_q(STATE, chunks, naive_positions(len(view), [0], "relative"))
        ids, values = view.top_k(STATE[None], [[0]], 5)
        assert_top(ids[0], values[0], scores, [0], 5)
        searches += 1

    def writer(name: str, document: str | None) -> Any:
        number = 0

        def write() -> None:
            nonlocal number
            number += 1
            index.add_records([Record(f"{name}{number}", f"{name} {number}", {}, document)])
            index.add_records([Record("c1", f"update {name} {number}", {}, "A")])
            if number > 3:
                assert index.delete([f"{name}{number - 3}"]) == [f"{name}{number - 3}"]

        return write

    works = [search, search, writer("x", None), writer("y", "A")]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert searches > 3
    assert_searches_like_new(index)


# Copies


def test_pickle_of_an_index_in_memory_is_independent() -> None:
    index = toy_index(6, metadatas=[{"document_id": "AB"[i % 2]} for i in range(6)], scan="int8", mode="document")
    index.delete(["c2"])
    index.top_k(STATE, [], 1)
    twin = pickle.loads(pickle.dumps(index))
    assert (twin.ids, twin.mode, twin.dim, twin.path) == (index.ids, index.mode, index.dim, None)
    assert twin.view.geometry == index.view.geometry
    assert twin.get(twin.ids) == index.get(index.ids)
    np.testing.assert_array_equal(twin.top_k(STATE, [1], 5), index.top_k(STATE, [1], 5))
    assert twin.delete(["c2"]) == []
    twin.add_records([Record("x", "x", {}, "A")])
    assert twin.ids == ["c0", "c1", "c3", "c4", "x", "c5"]
    assert "x" not in index.ids


def test_pickle_of_a_bound_index_is_its_folder(tmp_path: Path) -> None:
    index = toy_index(300)
    index.save(tmp_path / "index")
    data = pickle.dumps(index)
    assert len(data) < 3_000
    twin = pickle.loads(data)
    assert twin.path == index.path
    np.testing.assert_array_equal(twin.top_k(STATE, [1], 5), index.top_k(STATE, [1], 5))
    twin.add_records([Record("x", "x")])
    index.refresh()
    assert index.ids[-1] == "x"
    assert_searches_like_new(index)


def test_pickled_positions_without_a_model_stay() -> None:
    index, _ = random_index(9, 8, 4)
    twin = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(twin.top_k(STATE, [3], 5), index.top_k(STATE, [3], 5))


def test_deepcopy_shares(index: ChunkIndex) -> None:
    assert copy.deepcopy(index) is index
    assert copy.deepcopy({"inside": [index]})["inside"][0] is index


# The model of an index


def test_the_model_is_asked_for_by_name_where_there_is_none() -> None:
    index, _ = random_index(3, 8, 0)
    with pytest.raises(ValueError, match=r"built from embeddings alone.*model="):
        index.add_records([Record("x", "x")])
    assert len(index) == 3
    assert len(index.top_k(STATE, [], 2)[0]) == 2


def test_a_loaded_index_finds_its_model_again(tmp_path: Path, tiny_encoder: Path) -> None:
    from qrag_retriever import QRAGModel

    model = QRAGModel.from_encoder(tiny_encoder, positions="relative", output_scale=0.1, device="cpu")
    ChunkIndex.from_texts(["Mary took the football.", "Rain fell."], model=model).save(tmp_path / "index")
    index = ChunkIndex.load(tmp_path / "index", device="cpu")
    assert index.model.fingerprint() == model.fingerprint()
    index.add_records([Record("new", "Nobody heard the door.")])
    np.testing.assert_allclose(
        index.view.source.vectors(np.array([2])), model.encode_chunks(["Nobody heard the door."]), atol=1e-2
    )


def test_a_model_that_was_never_saved_must_be_given(tmp_path: Path) -> None:
    toy_index(3).save(tmp_path / "index")
    index = ChunkIndex.load(tmp_path / "index")
    with pytest.raises(ValueError, match=r"never saved.*model="):
        index.model  # noqa: B018
    assert_searches_like_new(index)
    with pytest.raises(ModelMismatchError):
        ChunkIndex.load(tmp_path / "index", ToyModel(seed=1))


def test_texts_are_added_with_or_without_embeddings(model: Any) -> None:
    index = ChunkIndex.from_texts(["a", "b"], ids=["a", "b"], model=model)
    assert index.add(["c"], [{"document_id": "D"}], ["c"]) == ["c"]
    (made,) = index.add(["d"])
    assert index.ids == ["a", "b", "c", made]
    bare = ChunkIndex.from_embeddings(np.eye(4, dtype=np.float32), mode="corpus")
    bare.add(["five"], ids=["five"], embeddings=np.full((1, 4), 0.9, np.float32))
    assert bare.top_k(np.ones(4), [], 1)[0].tolist() == [4]
    with pytest.raises(ValueError, match="dimension 4, got 3"):
        bare.add(["six"], embeddings=np.ones((1, 3)))
    with pytest.raises(ValueError, match="built from embeddings alone"):
        bare.add(["seven"])
    assert len(bare) == 5


def test_what_get_returns_is_a_copy_and_ids_are_a_list_of_strings() -> None:
    index = ChunkIndex.from_texts(["a", "b"], [{"tags": ["x"]}, None], ids=["s0", "s1"], model=ToyModel())
    index.get(["s0"])[0].metadata["tags"].append("y")
    assert index.get(["s0"])[0].metadata == {"tags": ["x"]}
    for wrong in ("s1", [1]):
        with pytest.raises(TypeError):
            index.get(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names", [(np.int64(1), np.int64(2)), (uuid.UUID(int=1), uuid.UUID(int=2)), (Path("a/b"), Path("c"))], ids=str
)
def test_documents_are_named_by_whole_numbers_paths_and_uuids_too(names: tuple[Any, Any]) -> None:
    sources = [{"source": names[i]} for i in (0, 1, 0)]
    index = ChunkIndex.from_texts(["a", "b", "c"], sources, model=ToyModel())
    assert len(index.ids_of_document(str(names[0]))) == 2

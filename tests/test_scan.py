from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever.positions import relative_runs, uniform_run
from qrag_retriever.q_values import q_values
from qrag_retriever.scan import Scan, StateQuery, make_scan
from qrag_retriever.scan.base import top_of
from qrag_retriever.scan.device import TorchScan
from qrag_retriever.scan.factory import choose_kind
from qrag_retriever.scan.floats import FloatScan
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.scan.threads import PARALLEL_ROWS, for_row_slices

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
KINDS = ["float32", "int8", "mapped", CUDA]


def build(kind: str, matrix: np.ndarray) -> Scan:
    """Build one kind of scan; without a CUDA device the torch scan runs on CPU tensors."""
    if kind == "cuda":
        return TorchScan(torch.from_numpy(matrix).to("cuda" if torch.cuda.is_available() else "cpu"))
    if kind == "int8":
        pytest.importorskip("numba")
    return make_scan(matrix, lambda ids: matrix[ids], kind, None)


def brute_force(
    matrix: np.ndarray, query: StateQuery, k: int, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    scores = q_values(query.state.astype(np.float64), matrix.astype(np.float64), query.runs)
    scores[list(query.excluded)] = -np.inf
    if mask is not None:
        scores[~mask] = -np.inf
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return order, scores[order]


def make_query(random: np.random.Generator, num_chunks: int, dim: int, num_picks: int) -> StateQuery:
    picks = tuple(sorted(random.choice(num_chunks, num_picks, replace=False).tolist()))
    return StateQuery(random.standard_normal(dim).astype(np.float32), relative_runs(num_chunks, picks), picks)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_top_k_is_that_of_an_exact_scan(kind: str, data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    num_chunks = data.draw(st.integers(1, 3000))
    dim = data.draw(st.sampled_from([4, 32, 96]))
    k = data.draw(st.sampled_from([1, 2, 16]))
    scale = data.draw(st.sampled_from([1e-3, 1.0, 100.0]))
    matrix = (random.standard_normal((num_chunks, dim)) * scale).astype(np.float32)
    num_queries = data.draw(st.sampled_from([1, 2, 7]))
    queries = [
        make_query(random, num_chunks, dim, int(random.integers(0, min(4, num_chunks) + 1))) for _ in range(num_queries)
    ]
    mask = random.random(num_chunks) < 0.5 if data.draw(st.booleans()) else None
    ids, values = build(kind, matrix).top_k(queries, k, mask)
    assert ids.shape == values.shape == (num_queries, k)
    for row, query in enumerate(queries):
        expected_ids, expected = brute_force(matrix, query, k, mask)
        found = np.isfinite(expected)
        tolerance = 1e-5 * np.linalg.norm(query.state) * np.linalg.norm(matrix, axis=1).max()
        np.testing.assert_allclose(values[row, : found.sum()], expected[found], atol=tolerance)
        assert (values[row, found.sum() :] == -np.inf).all()
        assert (ids[row, found.sum() :] == -1).all()
        margins = np.diff(expected[found])
        if not len(margins) or (-margins).min() > 10 * tolerance:
            assert ids[row, : found.sum()].tolist() == expected_ids[found].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_real_sized_matrix_with_blocks_and_threads(kind: str) -> None:
    random = np.random.default_rng(0)
    num_chunks = PARALLEL_ROWS + 12_345
    matrix = random.standard_normal((num_chunks, 32)).astype(np.float32)
    scan = build(kind, matrix)
    queries = [make_query(random, num_chunks, 32, 3) for _ in range(8)]
    for k in (1, 16):
        batch_ids, batch_values = scan.top_k(queries, k)
        for row, query in enumerate(queries):
            ids, values = scan.top_k([query], k)
            expected_ids, expected = brute_force(matrix, query, k, None)
            assert ids[0].tolist() == expected_ids.tolist() == batch_ids[row].tolist()
            np.testing.assert_allclose(values[0], expected, atol=1e-4)
            np.testing.assert_allclose(batch_values[row], expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_come_in_document_order(kind: str) -> None:
    matrix = np.tile(np.array([[1.0, 2.0, 3.0, 4.0]], np.float32), (50, 1))
    query = StateQuery(np.ones(4, np.float32), relative_runs(50, ())._replace(positions=np.zeros(19, np.int64)), (0,))
    ids, _ = build(kind, matrix).top_k([query], 3)
    if kind == "cuda":
        assert set(ids[0]) <= set(range(1, 50))
        return
    assert ids[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("num_chunks", [37, 5_000])
@pytest.mark.parametrize("kind", ["float32", "int8", "mapped"])
def test_equal_chunks_have_equal_scores_wherever_they_are(kind: str, num_chunks: int) -> None:
    random = np.random.default_rng(0)
    scan = build(kind, np.repeat(random.standard_normal((1, 384)).astype(np.float32), num_chunks, axis=0))
    for _ in range(20):
        query = StateQuery(random.standard_normal(384).astype(np.float32), uniform_run(num_chunks), (0,))
        ids, values = scan.top_k([query], 5)
        assert ids[0].tolist() == [1, 2, 3, 4, 5]
        assert len(set(values[0])) == 1


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_zero_and_identical_rows_do_not_upset_the_bound(kind: str) -> None:
    matrix = np.zeros((3000, 8), np.float32)
    matrix[1234] = 1e-20
    query = StateQuery(np.ones(8, np.float32), relative_runs(3000, ()), ())
    ids, values = build(kind, matrix).top_k([query], 5)
    assert (ids >= 0).all()
    assert np.abs(values).max() < 1e-6


def test_int8_reads_a_quarter_of_the_bytes_and_rescores_few_rows() -> None:
    pytest.importorskip("numba")
    random = np.random.default_rng(1)
    matrix = random.standard_normal((20_000, 384)).astype(np.float32)
    read: list[int] = []

    def exact_rows(ids: np.ndarray) -> np.ndarray:
        read.append(len(ids))
        return matrix[ids]

    scan = make_scan(matrix, exact_rows, "int8", None)
    for _ in range(20):
        scan.top_k([make_query(random, 20_000, 384, 3)], 16)
    assert scan.hot_bytes <= matrix.nbytes / 3
    assert max(read) < 400


@pytest.mark.parametrize("kind", KINDS)
def test_appending_leaves_the_older_scan_as_it_was(kind: str) -> None:
    random = np.random.default_rng(2)
    matrix = random.standard_normal((2000, 16)).astype(np.float32)
    query = make_query(random, 1000, 16, 2)
    longer = make_query(random, 2000, 16, 2)
    first = build(kind, matrix[:1000].copy())
    before = first.top_k([query], 4)
    second = first.appended(matrix[1000:1500], lambda ids: matrix[ids])
    third = second.appended(matrix[1500:], lambda ids: matrix[ids])
    np.testing.assert_array_equal(first.top_k([query], 4)[0], before[0])
    np.testing.assert_array_equal(third.top_k([longer], 4)[0][0], brute_force(matrix, longer, 4, None)[0])
    assert (first.num_chunks, second.num_chunks, third.num_chunks) == (1000, 1500, 2000)


@pytest.mark.parametrize("kind", KINDS)
def test_taking_rows_reorders_and_drops(kind: str) -> None:
    random = np.random.default_rng(4)
    matrix = random.standard_normal((500, 16)).astype(np.float32)
    order = random.permutation(500)[:200]
    query = make_query(random, 200, 16, 1)
    taken = build(kind, matrix).taken(order, lambda ids: matrix[order[ids]])
    np.testing.assert_array_equal(taken.top_k([query], 5)[0][0], brute_force(matrix[order], query, 5, None)[0])


def test_growing_array_copies_when_two_continue_the_same_view() -> None:
    base = GrowingArray(np.zeros((2, 1))).appended(np.ones((1, 1)))
    one, two = base.appended(np.full((1, 1), 5.0)), base.appended(np.full((1, 1), 7.0))
    assert one.array[-1] == 5
    assert two.array[-1] == 7
    assert base.array.ravel().tolist() == [0, 0, 1]


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=3000), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_top_of_sorts_ties_by_place(scores: list[float], k: int) -> None:
    ids, values = top_of(np.array(scores, np.float32), k)
    expected = sorted((i for i, s in enumerate(scores) if s > -np.inf), key=lambda i: (-scores[i], i))[:k]
    assert [i for i in ids if i >= 0] == expected
    assert [v for v in values if v > -np.inf] == [np.float32(scores[i]) for i in expected]


def test_row_slices_cover_every_row_once() -> None:
    for num_rows in (1, 5000, PARALLEL_ROWS, PARALLEL_ROWS + 777):
        seen = np.zeros(num_rows, int)

        def mark(rows: tuple[int, int], seen: np.ndarray = seen) -> None:
            seen[slice(*rows)] += 1

        for_row_slices(num_rows, mark)
        assert (seen == 1).all()


def test_int8_without_numba_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"pip install 'qrag-retriever\[fast\]'"):
        choose_kind("int8", 10)


@pytest.mark.parametrize(
    ("installed", "num_chunks", "memory_limit", "expected"),
    [
        (True, 10_000, None, "int8"),
        (True, 10_000, 10_000 * (180 + 392), "int8"),
        (True, 10_000, 10_000 * (180 + 392) - 1, "mapped"),
        (True, 1_000, 1_000 * (180 + 4 * 384), "float32"),
        (True, 1_000, 1_000 * (180 + 4 * 384) - 1, "int8"),
        (True, 1_000, 1_000 * 180, "mapped"),
        (False, 10_000, 10_000 * (180 + 4 * 384), "float32"),
        (False, 10_000, 10_000 * (180 + 4 * 384) - 1, "mapped"),
    ],
)
def test_a_memory_limit_takes_the_quickest_scan_that_fits(
    monkeypatch: pytest.MonkeyPatch, installed: bool, num_chunks: int, memory_limit: int | None, expected: str
) -> None:
    monkeypatch.setattr("qrag_retriever.scan.factory.is_installed", lambda name: installed)
    assert choose_kind("auto", num_chunks, 384, memory_limit) == expected


def test_a_mapped_scan_reads_a_block_at_a_time() -> None:
    matrix = np.random.default_rng(3).standard_normal((20_000, 16)).astype(np.float32)
    read: list[int] = []

    def exact_rows(ids: np.ndarray) -> np.ndarray:
        read.append(len(ids))
        return matrix[ids]

    scan = make_scan(matrix, exact_rows, "mapped", None)
    scan.top_k([make_query(np.random.default_rng(4), 20_000, 16, 3) for _ in range(3)], 2)
    assert sum(read) == 20_000  # once for all states
    assert max(read) <= 4096
    assert scan.hot_bytes == 0


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="'auto', 'float32', 'int8' or 'mapped'"):
        choose_kind("int4", 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 33, 50])
def test_without_positions_any_dimension_will_do(kind: str, dim: int) -> None:
    random = np.random.default_rng(dim)
    matrix = random.standard_normal((3000, dim)).astype(np.float32)
    for count in (1, 8):
        queries = [
            StateQuery(random.standard_normal(dim).astype(np.float32), uniform_run(3000), ()) for _ in range(count)
        ]
        ids, _ = build(kind, matrix).top_k(queries, 4)
        for row, query in zip(ids, queries, strict=True):
            assert row.tolist() == np.argsort(-(matrix @ query.state), kind="stable")[:4].tolist()


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e18])
def test_extreme_states_keep_their_order(scale: float) -> None:
    pytest.importorskip("numba")
    random = np.random.default_rng(8)
    matrix = random.standard_normal((3000, 32)).astype(np.float32)
    query = make_query(random, 3000, 32, 2)
    extreme = StateQuery((query.state * scale).astype(np.float32), query.runs, query.excluded)
    scan = build("int8", matrix)
    assert scan.top_k([extreme], 8)[0].tolist() == scan.top_k([query], 8)[0].tolist()


def test_a_batch_on_a_small_document_does_not_multiply_its_work() -> None:
    """Where runs are short, every state scans by itself: the blocked product would take every row times every run."""
    random = np.random.default_rng(9)
    scan = FloatScan(random.standard_normal((1000, 16)).astype(np.float32))
    queries = [make_query(random, 1000, 16, 3) for _ in range(8)]
    scan._batch_scores = None  # type: ignore[assignment]  # must not be called
    ids, _ = scan.top_k(queries, 2)
    assert ids.shape == (8, 2)

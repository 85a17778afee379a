from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever.positions import relative_positions, relative_runs


def naive(num_chunks: int, picked: list[int], stride: int) -> list[int]:
    """The definition, chunk by chunk."""
    cuts = [0, *sorted(picked), num_chunks]
    positions = []
    for segment, (start, stop) in enumerate(pairwise(cuts)):
        length = stop - start
        span = int(0.9 * stride)
        positions += [stride * segment + (span * r // (length - 1) if length > 1 else 0) for r in range(length)]
    return positions


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_positions_follow_the_definition(data: st.DataObject) -> None:
    num_chunks = data.draw(st.integers(1, 400))
    picked = data.draw(st.lists(st.integers(0, num_chunks - 1), unique=True, max_size=min(num_chunks, 60)))
    stride = data.draw(st.sampled_from([2, 7, 10, 20, 33]))
    assert relative_positions(num_chunks, picked, stride).tolist() == naive(num_chunks, picked, stride)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_runs_are_few_and_cover_everything_once(data: st.DataObject) -> None:
    num_chunks = data.draw(st.integers(1, 100_000))
    picked = data.draw(st.lists(st.integers(0, num_chunks - 1), unique=True, max_size=6))
    runs = relative_runs(num_chunks, picked)
    assert len(runs.positions) <= 19 * (len(picked) + 1)
    assert runs.edges[0] == 0
    assert runs.edges[-1] == num_chunks
    assert (np.diff(runs.edges) > 0).all()
    assert (np.diff(runs.positions) >= 0).all()


def test_a_picked_chunk_opens_the_segment_to_its_right() -> None:
    positions = relative_positions(100, [50])
    assert positions[49] == 18
    assert positions[50] == 20


def test_the_segment_counter_advances_over_an_empty_segment() -> None:
    assert relative_positions(10, [0])[0] == 20


def test_ten_million_chunks_and_a_thousand_picks() -> None:
    picked = list(range(0, 10_000_000, 10_000))
    runs = relative_runs(10_000_000, picked)
    assert runs.edges[-1] == 10_000_000
    assert runs.positions[-1] == 20 * 1000 + 18
    assert runs.position_of(9_999_999) == 20 * 1000 + 18


@pytest.mark.parametrize(
    ("num_chunks", "picked", "message"),
    [(0, [], "at least 1 chunk"), (5, [5], r"\[0, 5\)"), (5, [-1], r"\[0, 5\)"), (5, [2, 2], "distinct")],
)
def test_impossible_picks_are_errors(num_chunks: int, picked: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relative_runs(num_chunks, picked)

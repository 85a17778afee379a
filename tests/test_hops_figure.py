from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, Selection
from qrag_retriever.hops.columns import even_columns, wide_columns
from qrag_retriever.trace import Hop
from tests.conftest import QUESTION, STORY
from tests.long_document import NUM_CHUNKS, long_index


@pytest.fixture(scope="module")
def index(model: QRAGModel) -> ChunkIndex:
    metadatas = [{"document_id": "odd" if i % 2 else "even", "number": i} for i in range(len(STORY))]
    return ChunkIndex.from_texts(STORY, metadatas, model=model)


def strips(figure: Figure) -> list[Axes]:
    """The strips that were drawn, with or without axes around them."""
    inset = [child for axes in figure.axes for child in axes.child_axes]
    return inset or list(figure.axes)


def picks(figure: Figure) -> list[tuple[float, float] | None]:
    """Where each strip marks its pick."""
    found = []
    for axes in strips(figure):
        marks = [line for line in axes.lines if line.get_gid() == "pick"]
        found.append((float(marks[0].get_xdata()[0]), float(marks[0].get_ydata()[0])) if marks else None)
    return found


def expected(selection: Selection) -> list[tuple[float, float]]:
    return [(step.chunk_id, step.q_value) for step in selection.steps]


def drawn(figure: Figure) -> Figure:
    figure.canvas.draw()
    return figure


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("num_chunks", "k"), [(1, 1), (4, 1), (4, 4), (12, 10)])
def test_one_strip_for_each_hop_with_its_pick(model: QRAGModel, num_chunks: int, k: int) -> None:
    index = ChunkIndex.from_texts(STORY[:num_chunks], model=model)
    selection = MultiStepSelector(index, k=k).select(QUESTION)
    figure = drawn(selection.plot())
    assert picks(figure) == expected(selection)
    assert [axes.get_ylabel() for axes in strips(figure)] == [f"hop {hop}" for hop in range(1, k + 1)]
    for axes, (x, y) in zip(strips(figure), expected(selection), strict=True):
        assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < y < axes.get_ylim()[1]
        assert any(f"chunk {x}" in text for text in texts(axes))


def test_no_pyplot_figure_is_left_behind(index: ChunkIndex) -> None:
    before = pyplot.get_fignums()
    assert isinstance(MultiStepSelector(index, k=1).select(QUESTION).plot(), Figure)
    assert pyplot.get_fignums() == before


def test_it_draws_where_it_is_told_to(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=2).select(QUESTION)
    figure = Figure()
    assert selection.plot(figure) is figure
    assert len(strips(figure)) == 2
    figure = Figure()
    left, right = figure.subfigures(1, 2)
    assert selection.plot(right) is figure
    assert (len(left.axes), len(right.axes)) == (0, 2)
    figure = Figure()
    axes = figure.subplots(1, 2)[1]
    assert selection.plot(axes) is figure
    assert len(axes.child_axes) == 2
    assert picks(drawn(figure)) == expected(selection)
    figure = Figure()
    assert selection.plot(figure.subfigures(1, 2)[0].subplots()) is figure


def test_earlier_picks_and_segments_are_marked(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=3).select(QUESTION)
    last = strips(selection.plot())[2]
    lines = [line.get_xdata()[0] for line in last.lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 2]
    assert {selection.steps[0].chunk_id, selection.steps[1].chunk_id} <= set(lines)
    assert {"1", "2"} <= set(texts(last))
    assert any(text.startswith("positions ") for text in texts(last))


def test_corpus_mode_has_no_segments(corpus_model: QRAGModel) -> None:
    index = ChunkIndex.from_texts(STORY, model=corpus_model, mode="corpus")
    figure = MultiStepSelector(index, k=3).select(QUESTION).plot()
    assert not any(text.startswith("positions ") for axes in strips(figure) for text in texts(axes))


def test_a_search_that_stops_at_once_has_a_strip_without_a_pick(index: ChunkIndex) -> None:
    figure = drawn(MultiStepSelector(index, k=3, min_q=1e6).select(QUESTION).plot())
    assert picks(figure) == [None]
    assert strips(figure)[0].get_ylabel() == "stopped"


def test_nothing_to_pick_from(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, filters={"document_id": "none such"}).select(QUESTION)
    (axes,) = strips(drawn(selection.plot()))
    assert texts(axes) == ["nothing to pick from"]


def test_ruled_out_chunks_are_hatched(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=1, filters={"number": [0, 1, 5]}).select(QUESTION)
    (axes,) = strips(drawn(selection.plot()))
    assert any(shape.get_hatch() for shape in axes.collections)
    assert "9 ruled out" in axes.get_xlabel()


def test_one_document_is_drawn_by_place(index: ChunkIndex) -> None:
    selection = MultiStepSelector(index, k=1, filters={"document_id": "odd"}).select(QUESTION)
    ((place, _),) = picks(drawn(selection.plot()))
    assert 2 * place + 1 == selection.steps[0].chunk_id


def test_dollars_and_controls_in_a_question_are_text(index: ChunkIndex) -> None:
    figure = MultiStepSelector(index, k=1).select("Is $x_{ 5 $ more\x00 than $?").plot()
    assert strips(drawn(figure))[0].get_title(loc="left") == "Is $x_{ 5 $ more\N{SYMBOL FOR NULL} than $?"


def test_400_000_chunks(model: QRAGModel) -> None:
    selection = MultiStepSelector(long_index(model), k=10).select(QUESTION)
    figure = drawn(selection.plot())
    assert picks(figure) == expected(selection)
    points = [len(line.get_xdata()) for axes in strips(figure) for line in axes.lines]
    assert max(points) < NUM_CHUNKS / 100


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 10_000))
def test_columns_keep_the_extremes(num_chunks: int, parts: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=num_chunks).astype(np.float32)
    available = random.random(num_chunks) < 0.7
    hop = Hop(values, available, (), None, ())
    for columns in (even_columns(hop, parts), wide_columns(hop, parts)):
        assert columns.edges[0] == 0
        assert columns.edges[-1] == num_chunks
        for low, high, first, stop in zip(
            columns.lows, columns.highs, columns.edges[:-1], columns.edges[1:], strict=True
        ):
            own = values[first:stop][available[first:stop]]
            assert (low, high) == (own.min(), own.max()) if len(own) else np.isnan(low) and np.isnan(high)


def test_without_matplotlib_the_extra_is_named(index: ChunkIndex, monkeypatch: Any) -> None:
    selection = MultiStepSelector(index, k=1).select(QUESTION)
    monkeypatch.delitem(sys.modules, "matplotlib")
    monkeypatch.setattr(sys, "meta_path", [_Without("matplotlib"), *sys.meta_path])
    with pytest.raises(ImportError, match=r"qrag-retriever\[plot\]"):
        selection.plot()


class _Without:
    """A finder that knows no module of this name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"no {name}", name=name)


def test_searching_loads_neither_matplotlib_nor_jinja() -> None:
    code = "import sys, qrag_retriever.selector; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"

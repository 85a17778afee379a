"""The order of chunks under additions, updates and deletions, against a plain list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrag_retriever.layout import Layout
from qrag_retriever.records import Record

Entry = tuple[str, str | None]

IDS = [f"id{i}" for i in range(8)]
entries = st.tuples(st.sampled_from(IDS), st.sampled_from([None, "A", "B", "C"]))
batches = st.lists(entries, min_size=1, max_size=5, unique_by=lambda entry: entry[0])
changes = st.lists(batches | st.sets(st.integers(0, 7), max_size=4), max_size=8)


def records_of(batch: list[Entry]) -> list[Record]:
    return [Record(id_, f"text {id_}", {}, document) for id_, document in batch]


def entries_of(layout: Layout) -> list[Entry]:
    return list(zip(layout.ids, layout.document_ids, strict=True))


def naively_added(old: list[Entry], batch: list[Entry]) -> list[Entry]:
    """Insert after the last entry of the document; what an update replaces disappears at the end of the call."""
    slots: list[tuple[Entry, bool]] = [(entry, True) for entry in old]
    for entry in batch:
        place = next((i for i, (other, alive) in enumerate(slots) if alive and other[0] == entry[0]), None)
        if place is not None and slots[place][0][1] == entry[1]:
            continue
        if place is not None:
            slots[place] = (slots[place][0], False)
        siblings = [i for i, (other, _) in enumerate(slots) if other[1] == entry[1] and entry[1] is not None]
        slots.insert(siblings[-1] + 1 if siblings else len(slots), (entry, True))
    return [entry for entry, alive in slots if alive]


def add(layout: Layout, batch: list[Entry], first_row: int = 100) -> tuple[Layout, np.ndarray]:
    removed, keys = layout.place(records_of(batch))
    rows = np.arange(first_row, first_row + len(batch))
    return layout.changed(removed, records_of(batch), keys, rows)


def test_initial_keeps_the_given_order() -> None:
    layout = Layout.initial(records_of([("b", "A"), ("a", None), ("c", "A")]))
    assert entries_of(layout) == [("b", "A"), ("a", None), ("c", "A")]
    assert layout.rows.tolist() == [0, 1, 2]
    assert len(layout) == 3
    assert [layout.find(id_) for id_ in "bacd"] == [0, 1, 2, None]
    assert {name: members.tolist() for name, members in layout.chunks_of_document.items()} == {"A": [0, 2]}


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        pytest.param([("new", None)], "x y z w new", id="no document: at the end"),
        pytest.param([("new", "D")], "x y z w new", id="new document: at the end"),
        pytest.param([("new", "A")], "x y z new w", id="known document: at its end, in the middle of the index"),
        pytest.param([("n1", "A"), ("n2", "A")], "x y z n1 n2 w", id="several keep their order"),
        pytest.param([("n1", "D"), ("n2", "A"), ("n3", "D")], "x y z n2 w n1 n3", id="a new document stays together"),
        pytest.param([("x", "A")], "x y z w", id="same id and document: keeps its place"),
        pytest.param([("x", "B")], "y x z w", id="changed document: moves to its end"),
        pytest.param([("x", None)], "y z w x", id="document dropped: moves to the end of the index"),
        pytest.param([("w", "A"), ("new", None)], "x y z w new", id="a moved chunk is placed before later ones"),
    ],
)
def test_additions_go_where_they_belong(batch: list[Entry], expected: str) -> None:
    layout = Layout.initial(records_of([("x", "A"), ("y", "B"), ("z", "A"), ("w", None)]))
    assert " ".join(add(layout, batch)[0].ids) == expected


@given(st.lists(entries, max_size=8, unique_by=lambda entry: entry[0]), changes)
def test_any_history_equals_the_list_model(start: list[Entry], history: list[list[Entry] | set[int]]) -> None:
    layout, naive, row_of = Layout.initial(records_of(start)), list(start), {e[0]: i for i, e in enumerate(start)}
    next_row = len(start)
    for change in history:
        if isinstance(change, set):
            removed = sorted(chunk for chunk in change if chunk < len(naive))
            naive = [entry for chunk, entry in enumerate(naive) if chunk not in removed]
            layout, _ = layout.changed(removed, [], [], np.empty(0, np.int64))
        else:
            naive = naively_added(naive, change)
            layout, _ = add(layout, change, next_row)
            row_of.update({id_: next_row + i for i, (id_, _) in enumerate(change)})
            next_row += len(change)
        assert entries_of(layout) == naive
        assert [row_of[id_] for id_ in layout.ids] == layout.rows.tolist()
        keys = [tuple(key) for key in layout.keys.tolist()]
        assert keys == sorted(set(keys))
        place_of = {id_: place for place, (id_, _) in enumerate(naive)}
        assert {id_: layout.find(id_) for id_ in IDS} == {id_: place_of.get(id_) for id_ in IDS}
        members: dict[str, list[int]] = {}
        for place, (_, document) in enumerate(naive):
            if document is not None:
                members.setdefault(document, []).append(place)
        assert {name: own.tolist() for name, own in layout.chunks_of_document.items()} == members


@given(st.lists(entries, min_size=1, max_size=8, unique_by=lambda entry: entry[0]), st.data())
def test_origin_says_where_every_chunk_came_from(start: list[Entry], data: st.DataObject) -> None:
    layout = Layout.initial(records_of(start))
    batch = data.draw(batches)
    changed, origin = add(layout, batch)
    sources = [*entries_of(layout), *batch]
    assert [sources[i] for i in origin] == entries_of(changed)
    only_appends = entries_of(changed) == sources
    assert np.array_equal(origin, np.arange(len(layout) + len(batch))) == only_appends


def test_the_old_layout_stays_as_it_was() -> None:
    layout = Layout.initial(records_of([("x", "A"), ("y", None)]))
    add(layout, [("x", "B"), ("z", "A")])
    layout.changed([0], [], [], np.empty(0, np.int64))
    assert entries_of(layout) == [("x", "A"), ("y", None)]
    assert layout.rows.tolist() == [0, 1]


def test_what_is_appended_is_not_found_in_the_layout_before_nor_in_another_one_after_it() -> None:
    layout = Layout.initial(records_of([("x", "A"), ("y", None)]))
    assert (layout.find("y"), sorted(layout.chunks_of_document)) == (1, ["A"])
    lost, _ = add(layout, [("p", "B"), ("q", None)])  # as if writing it had failed
    after, _ = add(layout, [("q", "C"), ("r", "C")])
    assert [layout.find(id_) for id_ in "xypqr"] == [0, 1, None, None, None]
    assert [after.find(id_) for id_ in "xypqr"] == [0, 1, None, 2, 3]
    assert lost.find("p") == 2
    assert [sorted(one.chunks_of_document) for one in (layout, lost, after)] == [["A"], ["A", "B"], ["A", "C"]]


def test_an_emptied_layout_takes_chunks_again() -> None:
    layout = Layout.initial(records_of([("x", "A"), ("y", None)]))
    empty, origin = layout.changed([0, 1], [], [], np.empty(0, np.int64))
    assert (len(empty), len(origin)) == (0, 0)
    assert entries_of(add(empty, [("p", "A"), ("q", None), ("r", "A")])[0]) == [("p", "A"), ("r", "A"), ("q", None)]

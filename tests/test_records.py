"""Checks on chunks that come in."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrag_retriever.checks import check_json
from qrag_retriever.errors import DuplicateIdError
from qrag_retriever.records import Record, check_records, document_of, records_from_texts

valid_text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | valid_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(valid_text, inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.tuples(valid_text, valid_text.filter(bool)), max_size=6, unique_by=lambda pair: pair[1]))
def test_texts_and_ids_pass_unchanged(pairs: list[tuple[str, str]]) -> None:
    records = records_from_texts([text for text, _ in pairs], None, [id_ for _, id_ in pairs])
    assert [(record.text, record.id) for record in records] == pairs


def test_missing_ids_are_distinct_uuids() -> None:
    records = records_from_texts(["a", "b", "c"], ids=["mine", None, None])  # type: ignore[list-item]
    assert records[0].id == "mine"
    assert len({UUID(record.id) for record in records[1:]}) == 2


def test_metadata_is_copied() -> None:
    given_metadata = {"page": 1}
    (record,) = records_from_texts(["a"], [given_metadata])
    given_metadata["page"] = 2
    assert record.metadata == {"page": 1}


def test_metadata_may_be_missing_for_some() -> None:
    assert [record.metadata for record in records_from_texts(["a", "b"], [None, {"x": 1}])] == [{}, {"x": 1}]


@pytest.mark.parametrize(
    ("metadata", "document"),
    [
        ({}, None),
        ({"document_id": "d"}, "d"),
        ({"source": "s.txt"}, "s.txt"),
        ({"document_id": "d", "source": "s.txt"}, "d"),
        ({"source": None}, None),
        ({"source": ["not", "a", "name"]}, None),
    ],
)
def test_document_is_the_document_id_else_the_source(metadata: dict[str, Any], document: str | None) -> None:
    assert document_of(metadata) == document
    assert records_from_texts(["a"], [metadata])[0].document_id == document


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"texts": "one text"}, TypeError, "sequence of texts.*str.*list", id="str for a list of texts"),
        pytest.param({"texts": b"one text"}, TypeError, "sequence of texts.*bytes.*list", id="bytes for a list"),
        pytest.param({"texts": ["a", 5]}, TypeError, "text 1 must be a string, got int", id="text is a number"),
        pytest.param({"texts": [None]}, TypeError, "text 0 must be a string, got NoneType", id="text is None"),
        pytest.param({"texts": [b"a"]}, TypeError, "text 0 must be a string, got bytes", id="text is bytes"),
        pytest.param({"texts": ["a\ud800b"]}, ValueError, "text 0 .*surrogate at character 1", id="lone surrogate"),
        pytest.param({"texts": ["a"], "ids": [7]}, TypeError, "id 0 must be a string, got int", id="id is a number"),
        pytest.param({"texts": ["a"], "ids": ["\udfff"]}, ValueError, "id 0 .*surrogate", id="surrogate in an id"),
        pytest.param({"texts": ["a"], "ids": [""]}, ValueError, "id 0 is empty", id="empty id"),
        pytest.param({"texts": ["a", "b"], "ids": ["x"]}, ValueError, "2 texts but 1 ids", id="too few ids"),
        pytest.param({"texts": ["a"], "ids": ["x", "y"]}, ValueError, "1 texts but 2 ids", id="too many ids"),
        pytest.param({"texts": ["a", "b"], "metadatas": [{}]}, ValueError, "2 texts but 1 metadatas", id="metadatas"),
        pytest.param({"texts": ["a", "b"], "ids": ["x", "x"]}, DuplicateIdError, "'x' occurs twice", id="duplicate"),
        pytest.param({"texts": ["a", "b"], "ids": "xy"}, TypeError, "ids.*str", id="str for a list of ids"),
        pytest.param({"texts": ["a"], "metadatas": ["x"]}, TypeError, "metadata.*str", id="metadata is no mapping"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        records_from_texts(**arguments)


def test_duplicate_ids_among_records_are_refused() -> None:
    with pytest.raises(DuplicateIdError, match=r"'x' occurs twice.*unique"):
        check_records([Record("x", "a"), Record("y", "b"), Record("x", "c")])


def test_filters_see_the_document_id() -> None:
    metadata = {"page": 1}
    assert Record("a", "", metadata, "D").filter_view() == {"page": 1, "document_id": "D"}
    assert Record("a", "", metadata).filter_view() == {"page": 1}
    assert metadata == {"page": 1}


@given(json_values)
def test_json_values_pass_and_come_back_equal(value: Any) -> None:
    check_json(value, "metadata")
    assert json.loads(json.dumps(value, ensure_ascii=False)) == value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"when": datetime(2020, 1, 1, tzinfo=timezone.utc)}, r"m\['when'\] is a datetime"),
        ({"pair": (1, 2)}, r"m\['pair'\] is a tuple"),
        ({"tags": {1}}, r"m\['tags'\] is a set"),
        ({"raw": b"x"}, r"m\['raw'\] is a bytes"),
        ({"x": float("nan")}, r"m\['x'\] is nan"),
        ({"x": float("inf")}, r"m\['x'\] is inf"),
        ({"x": np.float32(1)}, r"m\['x'\] is a float32"),
        ({"x": np.float64(1)}, r"m\['x'\] is a float64"),
        ({"x": np.int64(1)}, r"m\['x'\] is a int64"),
        ({5: "x"}, r"m\[5\] has a key of type int"),
        ({None: "x"}, r"m\[None\] has a key of type NoneType"),
        ({"a": [{"b": {"c": (1,)}}]}, r"m\['a'\]\[0\]\['b'\]\['c'\] is a tuple"),
        ({"x": "\ud800"}, r"m\['x'\] has a lone surrogate"),
        ({"\ud800": 1}, r"surrogate"),
    ],
)
def test_what_json_would_lose_is_a_type_error_that_names_the_key(value: Any, path: str) -> None:
    with pytest.raises(TypeError, match=path):
        check_json(value, "m")

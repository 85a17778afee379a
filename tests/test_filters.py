"""Filters: dicts, callables and anything that looks like LlamaIndex's MetadataFilters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llama_index.core.vector_stores.types import (
    ExactMatchFilter,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from qrag_retriever.filters import compile_filters, filters_key, single_document
from qrag_retriever.index import ChunkIndex
from qrag_retriever.records import Record, records_from_texts
from tests.toy_model import ToyModel

METADATA: list[dict[str, Any]] = [
    {},
    {"n": 3, "name": "Mary Jones", "tags": ["red", "blue"], "flag": 1},
    {"n": 5, "name": "mary", "tags": ["blue"], "flag": 0},
    {"n": 5.0, "name": "", "tags": []},
    {"n": None, "name": None, "tags": None},
]


class Duck:
    """Looks like a filter or a group of filters, and says nothing in its repr."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def one(key: str, value: Any, operator: str = "==") -> MetadataFilter:
    return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))


def group(*filters: Any, condition: str = "and") -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition(condition))


def allowed(filters: Any) -> list[int]:
    test = compile_filters(filters)
    return [i for i, metadata in enumerate(METADATA) if test(metadata)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param({}, [0, 1, 2, 3, 4], id="empty"),
        pytest.param({"n": 3}, [1], id="value"),
        pytest.param({"n": 5, "name": "mary"}, [2], id="all must hold"),
        pytest.param({"n": [3, 5]}, [1, 2, 3], id="any of a list"),
        pytest.param({"n": (3,)}, [1], id="any of a tuple"),
        pytest.param({"name": {"mary", "x"}}, [2], id="any of a set"),
        pytest.param({"tags": ["red", "blue"]}, [1], id="an equal list"),
        pytest.param({"missing": None}, [], id="a missing key is not None"),
        pytest.param({"n": None}, [4], id="None is a value"),
    ],
)
def test_dict(filters: dict[str, Any], expected: list[int]) -> None:
    assert allowed(filters) == expected


def test_a_key_may_begin_as_operators_do() -> None:
    keep = compile_filters({"$id": 1})
    assert [keep({"$id": 1}), keep({"$id": 2}), keep({})] == [True, False, False]


def test_callable_gets_the_metadata_and_its_answer_counts_as_bool() -> None:
    assert allowed(lambda metadata: metadata.get("tags")) == [1, 2]


OPERATORS = [
    ("n", 5, "=="),
    ("n", 5, "!="),
    ("n", 3, ">"),
    ("n", 3, ">="),
    ("n", 5, "<"),
    ("n", 5, "<="),
    ("n", [3, 4], "in"),
    ("n", [3, 4], "nin"),
    ("tags", ["red", "green"], "any"),
    ("tags", ["red", "blue"], "all"),
    ("tags", "blue", "contains"),
    ("name", "mary", "text_match"),
    ("name", "MARY", "text_match_insensitive"),
    ("tags", None, "is_empty"),
    ("name", None, "is_empty"),
    ("missing", None, "is_empty"),
    ("missing", 1, "=="),
    ("missing", 1, "!="),
    ("missing", [1], "nin"),
]


def test_every_operator_is_tried() -> None:
    assert {operator for _, _, operator in OPERATORS} == {operator.value for operator in FilterOperator}


@pytest.mark.parametrize(("key", "value", "operator"), OPERATORS)
@pytest.mark.parametrize("condition", ["and", "or", "not"])
def test_operators_agree_with_llama_index(key: str, value: Any, operator: str, condition: str) -> None:
    filters = group(one(key, value, operator), one("flag", 1), condition=condition)
    reference = build_metadata_filter_fn(lambda i: METADATA[int(i)], filters)
    assert allowed(filters) == [i for i in range(len(METADATA)) if reference(str(i))]
    alone = group(one(key, value, operator))
    reference = build_metadata_filter_fn(lambda i: METADATA[int(i)], alone)
    assert allowed(alone) == [i for i in range(len(METADATA)) if reference(str(i))] == allowed(alone.filters[0])


@pytest.mark.parametrize("condition", ["and", "or", "not"])
def test_no_filters_allow_everything(condition: str) -> None:
    assert allowed(group(condition=condition)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param(
            group(one("n", 5), group(one("name", "mary"), one("name", ""), condition="or")), [2, 3], id="or in and"
        ),
        pytest.param(
            group(group(one("n", 5), one("name", "")), one("flag", 1), condition="or"), [1, 3], id="and in or"
        ),
        pytest.param(group(one("n", 5), group(one("name", "mary"), condition="not")), [3], id="not in and"),
        pytest.param(group(group(group(one("n", 3)))), [1], id="three deep"),
    ],
)
def test_groups_nest(filters: MetadataFilters, expected: list[int]) -> None:
    assert allowed(filters) == expected


def test_duck_typed_filters_are_understood() -> None:
    part = SimpleNamespace(key="n", value=3, operator="==")
    assert allowed(part) == [1]
    assert allowed(SimpleNamespace(filters=[part], condition=None)) == [1]
    assert allowed(SimpleNamespace(filters=[part, Duck(key="n", value=5, operator="==")], condition="or")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("filters", "error", "message"),
    [
        (5, TypeError, "MetadataFilters, a dict or a callable, got int"),
        ("document_id", TypeError, "got str"),
        ([("a", 1)], TypeError, "got list"),
        ({"$or": [{"year": 2000}]}, ValueError, r"has values and no operators, got '\$or'"),
        ({"$and": [{"year": 2000}]}, ValueError, r"has values and no operators, got '\$and'"),
        ({"year": {"$gte": 2000}}, ValueError, r"has values and no operators, got 'year'.*MetadataFilters"),
        (SimpleNamespace(key="n", value=1, operator="~"), ValueError, "operator '~'; known: ==.*is_empty"),
        (SimpleNamespace(filters=[], condition="xor"), ValueError, "condition 'xor'; known: 'and', 'or', 'not'"),
    ],
)
def test_unknown_filters_are_refused_when_compiled(filters: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compile_filters(filters)


def test_a_filter_that_does_not_fit_a_value_names_both() -> None:
    with pytest.raises(TypeError, match="'name' > 3 cannot be applied to the value 'Mary Jones'"):
        allowed(one("name", 3, ">"))


@pytest.mark.parametrize(
    ("filters", "document"),
    [
        pytest.param({"document_id": "d"}, "d", id="dict"),
        pytest.param({"document_id": "d", "n": 1}, "d", id="dict with more"),
        pytest.param({"n": 1}, None, id="dict without"),
        pytest.param({"document_id": ["d", "e"]}, None, id="dict, several"),
        pytest.param(lambda metadata: metadata["document_id"] == "d", None, id="callable"),
        pytest.param(one("document_id", "d"), "d", id="one filter"),
        pytest.param(ExactMatchFilter(key="document_id", value="d"), "d", id="exact match"),
        pytest.param(one("document_id", "d", "!="), None, id="another operator"),
        pytest.param(one("document_id", ["d"], "in"), "d", id="in one"),
        pytest.param(one("document_id", ["d", "e"], "in"), None, id="in several"),
        pytest.param({"document_id": ["d"]}, "d", id="dict, list of one"),
        pytest.param({"document_id": 5}, "5", id="number"),
        pytest.param(one("source", "d"), None, id="another key"),
        pytest.param(group(one("document_id", "d")), "d", id="group of one"),
        pytest.param(group(one("document_id", "d"), condition="or"), "d", id="or of one"),
        pytest.param(group(one("document_id", "d"), condition="not"), None, id="not"),
        pytest.param(group(one("document_id", "d"), one("n", 1)), "d", id="and"),
        pytest.param(group(one("document_id", "d"), one("n", 1), condition="or"), None, id="or"),
        pytest.param(group(one("document_id", "d"), one("document_id", "e")), None, id="and of two documents"),
        pytest.param(group(group(one("document_id", "d")), one("n", 1)), "d", id="nested and"),
        pytest.param(
            group(group(one("document_id", "d"), one("n", 1), condition="or"), one("n", 2)), None, id="or nested in and"
        ),
        pytest.param(group(group(one("document_id", "d"), condition="not")), None, id="not nested in and"),
        pytest.param(SimpleNamespace(filters=[one("document_id", "d")], condition=None), "d", id="no condition"),
        pytest.param(group(), None, id="empty group"),
    ],
)
def test_single_document_is_what_the_filters_require(filters: Any, document: str | None) -> None:
    assert single_document(filters) == document


def numbered_index(**arguments: Any) -> ChunkIndex:
    metadatas = [{"n": i % 3, "document_id": "AB"[i % 2]} for i in range(12)]
    return ChunkIndex.from_texts([f"text {i}" for i in range(12)], metadatas, model=ToyModel(), **arguments)


@pytest.mark.parametrize(
    "filters",
    [
        {"n": 1},
        group(one("n", 1)),
        lambda metadata: metadata["n"] == 1,
        SimpleNamespace(key="n", value=1, operator="=="),
    ],
    ids=["dict", "MetadataFilters", "callable", "duck"],
)
def test_a_filter_on_metadata_only_masks(filters: Any) -> None:
    view, mask = numbered_index().view.restricted(filters)
    assert len(view) == 12
    assert mask is not None
    assert mask.tolist() == [i % 3 == 1 for i in range(12)]


def test_no_filters_leave_the_view_as_it_is() -> None:
    index = numbered_index()
    view, mask = index.view.restricted(None)
    assert (view, mask) == (index.view, None)


def test_filters_without_a_telling_repr_are_not_confused() -> None:
    index = numbered_index()
    for n in [0, 1, 2] * 10:
        # Each is freed at once, so that the next one may well have its address.
        _, mask = index.view.restricted(Duck(key="n", value=n, operator="=="))
        assert np.flatnonzero(mask).tolist() == list(range(n, 12, 3))


def test_a_filter_that_was_changed_is_applied_as_it_is_now() -> None:
    index = numbered_index()
    filters = Duck(key="n", value=0, operator="==")
    first = index.view.restricted(filters)[1]
    filters.value = 1
    assert np.flatnonzero(index.view.restricted(filters)[1]).tolist() == [1, 4, 7, 10]
    assert np.flatnonzero(first).tolist() == [0, 3, 6, 9]


def test_document_id_means_the_chunks_document_whatever_its_metadata_say() -> None:
    records = [Record("a", "text a", {"document_id": "from metadata"}, "node's document"), Record("b", "text b")]
    index = ChunkIndex.from_records(records, ToyModel())
    view, mask = index.view.restricted({"document_id": "node's document"})
    assert [record.id for record in view.records(np.flatnonzero(mask))] == ["a"]


def test_a_document_that_is_not_there_leaves_nothing() -> None:
    view, mask = numbered_index().view.restricted({"document_id": "C"})
    assert len(view) == 0
    assert mask is not None
    assert mask.shape == (0,)
    ids, values = view.top_k(np.ones((1, 8), np.float32), [[]], 2)
    assert ids.tolist() == [[-1, -1]]
    assert np.isneginf(values).all()


@pytest.mark.parametrize("key", ["document_id", "source"])
@pytest.mark.parametrize("wanted", [5, "5", [5, 9], ["5"]])
def test_numbers_name_documents_as_text_does(key: str, wanted: Any) -> None:
    records = records_from_texts(["a", "b"], [{key: 5}, {key: 6}])
    assert [record.document_id for record in records] == ["5", "6"]
    allows = compile_filters({"document_id": wanted})
    assert [allows(record.filter_view()) for record in records] == [True, False]
    allows = compile_filters(one("document_id", wanted, "in" if isinstance(wanted, list) else "=="))
    assert [allows(record.filter_view()) for record in records] == [True, False]


def test_a_set_of_values_may_meet_a_list_in_the_metadata() -> None:
    assert not compile_filters({"tags": {"x"}})({"tags": ["x", "y"]})
    assert compile_filters({"tags": ["x", "y"]})({"tags": ["x", "y"]})
    assert compile_filters({"tags": ("x", "y")})({"tags": ["x", "y"]})


def test_infinities_and_nested_keys_are_other_filters() -> None:
    def less(value: float) -> MetadataFilters:
        return MetadataFilters(filters=[MetadataFilter(key="n", value=value, operator=FilterOperator.LT)])

    keys = [filters_key(one) for one in (less(float("inf")), less(float("-inf")), less(1.0))]
    assert len(set(keys)) == 3
    assert None not in keys
    assert filters_key({"m": {1: 2}}) is None, "JSON writes it as {'1': 2}"
    assert filters_key({"m": [{1: 2}]}) is None
    assert filters_key({"m": {"1": 2}}) is not None
    assert filters_key({"a": [(1, 2)]}) is None, "JSON writes it as a list"
    assert filters_key({"a": ("x", "y")}) == filters_key({"a": ["x", "y"]})
    one = MetadataFilters(filters=[MetadataFilter(key="n", value=1)])
    assert filters_key(one) != filters_key(one.model_dump())
    assert filters_key({"a": "\ud83d\ude00"}) is None, "two halves are not the whole"

    class Asked(MetadataFilters):
        def __call__(self, metadata: dict[str, Any]) -> bool:
            return False

    assert filters_key(Asked(filters=[])) is None


def test_a_function_cannot_change_what_it_is_asked_about() -> None:
    metadata = {"n": 1, "tags": ["a"]}

    def spoils(given: dict[str, Any]) -> bool:
        given["tags"].append("b")
        return bool(given.pop("n")) and given.setdefault("new", True)

    assert compile_filters(spoils)(metadata)
    assert metadata == {"n": 1, "tags": ["a"]}


def test_a_function_that_is_to_be_awaited_admits_nothing() -> None:
    async def admits(_metadata: dict[str, Any]) -> bool:
        return False

    with pytest.raises(TypeError, match="a plain function that answers at once, got a coroutine"):
        compile_filters(admits)({"n": 1})

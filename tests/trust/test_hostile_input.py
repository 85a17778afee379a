"""What callers may hand in by mistake or malice: it works, or a ValueError or TypeError says what was expected."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from qrag_retriever import QRAGModel, QRAGRetriever
from qrag_retriever.errors import UnknownIdError
from qrag_retriever.index import ChunkIndex
from qrag_retriever.training.recipe import parse_recipe
from tests.conftest import STORY
from tests.index_folders import load
from tests.toy_model import ToyModel
from tests.trust.counts import CASES, count, time_limit

SECONDS = 20
cases = settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

ODD = [
    "",
    " \t\n\u2003\u200b",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff left alone",
    "\u202eשלמה, مرحبا\u202c",
    "👩🏽‍🚀🇩🇪",
    "\ufeff",
    "\U0010ffff\uffff",
    "[SEP] [CLS] [PAD] </s> <s> <|endoftext|>",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A",
    "../../etc/passwd",
    "'; DROP TABLE chunks; --",
    "{} %s {0.__class__}",
]
texts = st.one_of(st.sampled_from(ODD), st.text(max_size=60), st.text(st.characters(), max_size=60))
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        # Drawn as a power: the engine prints what it draws, which Python refuses beyond 4,300 digits.
        st.integers(63, 20_000).map(lambda power: 1 << power),
        st.floats(),
        texts,
        st.binary(max_size=10),
        st.builds(object),
        st.just(float),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(texts, st.integers(), st.none(), st.booleans()), inner, max_size=4),
    ),
    max_leaves=8,
)


def refused(call: Callable[[], Any]) -> Any:
    """Return what a call gives; None where it is refused as it may be."""
    with time_limit(SECONDS):
        try:
            return call()
        except (ValueError, TypeError, UnknownIdError) as error:
            message = str(error)
    assert len(message) > 10, message
    return None


def test_what_may_come_out_is_told_from_what_may_not() -> None:
    def fail() -> None:
        raise KeyError("a key that nobody has heard of")

    with pytest.raises(KeyError):
        refused(fail)


@cases
@given(texts, texts, st.lists(texts, max_size=3))
def test_texts_are_embedded_or_refused(model: QRAGModel, query: str, text: str, picked: list[str]) -> None:
    chunks = refused(lambda: model.encode_chunks([text]))
    states = refused(lambda: model.encode_states([(query, picked)]))
    for found, parts in ((chunks, [text]), (states, [query, *picked])):
        assert (found is None) == any("\ud800" <= letter <= "\udfff" for part in parts for letter in part)
        assert found is None or (found.shape == (1, 32) and np.isfinite(found).all())


@pytest.mark.parametrize("unit", ["word ", "x", "\u202eש", "🙂", " ", "\0"])
def test_ten_megabytes_are_kept_and_embedded(model: QRAGModel, tmp_path: Path, unit: str) -> None:
    """A tokeniser of words takes a second or more for each megabyte: all ten only where there is time."""
    text = unit * (10_000_000 // len(unit.encode()))
    with time_limit(count(60, 600)):
        shown = text[: count(100_000, len(text))]
        assert np.isfinite(model.encode_chunks([shown])).all()
        assert np.isfinite(model.encode_states([(shown, [shown])])).all()
    ChunkIndex.from_texts([text, "b"], model=ToyModel()).save(tmp_path / "index")
    loaded = load(tmp_path / "index")
    assert loaded.get(loaded.ids)[0].text == text


@cases
@given(texts, anything, anything)
def test_metadata_comes_back_as_it_was_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, value: Any, metadata: Any
) -> None:
    folder = tmp_path_factory.mktemp("metadata", numbered=True) / "index"
    for given_metadata in ({text: value}, metadata):
        index = refused(lambda one=given_metadata: ChunkIndex.from_texts(["a"], [one], ["x"], ToyModel()))
        if index is None:
            continue
        kept = index.get(["x"])[0].metadata
        if refused(lambda index=index: index.save(folder) or True):
            assert load(folder).get(["x"])[0].metadata == kept
        else:
            assert not folder.exists() or len(load(folder)) == 1


@pytest.mark.parametrize("kind", ["deep", "own"])
def test_metadata_without_end_is_refused(tmp_path: Path, kind: str) -> None:
    metadata: dict[str, Any] = {}
    metadata["a"] = (
        functools.reduce(lambda inner, _: [inner], range(50_000), []) if kind == "deep" else {"inside": metadata}
    )
    with time_limit(SECONDS), pytest.raises((TypeError, ValueError), match="nested too deeply"):
        ChunkIndex.from_texts(["a"], [metadata], model=ToyModel()).save(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


@cases
@given(st.one_of(anything, st.lists(anything, min_size=2, max_size=2)), anything)
def test_ids_are_kept_or_refused(ids: Any, others: Any) -> None:
    index = refused(lambda: ChunkIndex.from_texts(["a", "b"], ids=ids, model=ToyModel()))
    if index is not None:
        assert len(set(index.ids)) == 2
        assert all(isinstance(one, str) for one in index.ids)
        assert ids is None or index.ids == [one if one is not None else index.ids[i] for i, one in enumerate(ids)]
        before = index.ids
        if refused(lambda: index.delete(others)) is None:
            assert index.ids == before
        refused(lambda: index.get(others))
        refused(lambda: index.add(["c"], ids=others))


@pytest.fixture(scope="module")
def filtered() -> ChunkIndex:
    metadatas: list[dict[str, Any]] = [
        {"page": i, "tags": ["x"] if i % 2 else [], "name": f"n{i}", "document_id": f"d{i % 2}"} for i in range(5)
    ]
    return ChunkIndex.from_texts(list("abcdef"), [*metadatas, {}], model=ToyModel())


keys = st.sampled_from(["page", "tags", "name", "document_id", "none", ""])
plain = st.one_of(st.none(), st.integers(-2, 9), st.floats(), texts, st.lists(st.integers(-2, 9), max_size=3))
one_filter = st.builds(
    lambda key, operator, value: (key, operator, value),
    keys,
    st.sampled_from(list(FilterOperator)),
    st.one_of(plain, anything),
)


@cases
@given(st.one_of(st.dictionaries(st.one_of(keys, st.integers(), st.booleans()), anything, max_size=3), anything))
def test_filters_as_dicts_mask_or_are_refused(filtered: ChunkIndex, filters: Any) -> None:
    found = refused(lambda: filtered.view.restricted(filters))
    assert found is None or found[1] is None or found[1].dtype == np.bool_


@cases
@given(st.lists(one_filter, max_size=3), st.sampled_from(list(FilterCondition)))
def test_metadata_filters_mask_or_are_refused(
    filtered: ChunkIndex, parts: list[tuple[str, Any, Any]], condition: FilterCondition
) -> None:
    def make() -> MetadataFilters:
        listed = [MetadataFilter(key=key, operator=operator, value=value) for key, operator, value in parts]
        return MetadataFilters(filters=listed, condition=condition)

    filters = refused(make)
    if filters is not None:
        found = refused(lambda: filtered.view.restricted(filters))
        assert found is None or found[1].dtype == np.bool_


def test_two_filters_that_json_writes_alike_are_two_filters(filtered: ChunkIndex) -> None:
    index = ChunkIndex.from_texts(["a", "b"], [{"True": 1}, {"true": 1}], model=ToyModel())
    assert index.view.restricted({True: 1})[1].tolist() == [True, False]
    assert index.view.restricted({"true": 1})[1].tolist() == [False, True]


@pytest.mark.parametrize("error", [KeyError("k"), ZeroDivisionError("z"), RuntimeError("r")])
def test_what_a_filter_of_the_user_s_raises_comes_out_as_it_is(model: QRAGModel, error: Exception) -> None:
    def broken(_: Any) -> bool:
        raise error

    retriever = QRAGRetriever.from_texts(STORY, model=model)
    with pytest.raises(type(error)) as caught:
        retriever.search("Who?", filters=broken)
    assert caught.value is error
    assert len(retriever.search("Who?").steps) == 4


@cases
@given(st.dictionaries(st.sampled_from(["k", "min_q", "filters"]), anything, max_size=3), anything)
def test_settings_of_a_search_work_or_are_refused(model: QRAGModel, settings_: dict[str, Any], query: Any) -> None:
    retriever = _retriever(model)
    found = refused(lambda: retriever.search(query, **settings_))
    assert found is None or len(found.steps) <= len(STORY)
    assert found is None or all(math.isfinite(step.q_value) for step in found.steps)


@functools.cache
def _retriever(model: QRAGModel) -> QRAGRetriever:
    return QRAGRetriever.from_texts(STORY[:6], model=model)


@cases
@given(anything, st.sampled_from(["model", "data", "reward", "warm_start", "pqn", "run", "optimizer", "validation"]))
def test_settings_of_a_recipe_are_taken_or_refused(value: Any, group: str) -> None:
    refused(lambda: parse_recipe({"data": [{"source": "a"}], group: value}))
    refused(lambda: parse_recipe(value))

"""Metadata filters: LlamaIndex ``MetadataFilters``, plain dicts and callables become one kind of predicate.

LlamaIndex objects are recognised by their attributes, so that no framework is imported here.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from qrag_retriever.records import DOCUMENT_KEY, document_of

Predicate = Callable[[Mapping[str, Any]], bool]


class LikeMetadataFilters(Protocol):
    """What type checkers are to take for LlamaIndex's ``MetadataFilters``."""

    @property
    def filters(self) -> Any:
        """The parts."""

    @property
    def condition(self) -> Any:
        """How they are joined."""


class LikeMetadataFilter(Protocol):
    """What type checkers are to take for LlamaIndex's ``MetadataFilter``."""

    @property
    def key(self) -> Any:
        """Of the metadata."""

    @property
    def operator(self) -> Any:
        """How it is compared."""

    @property
    def value(self) -> Any:
        """With what."""


Filters = Mapping[str, Any] | Callable[[dict[str, Any]], object] | LikeMetadataFilters | LikeMetadataFilter
"""``MetadataFilters``, a dict of ``{key: value}`` (all must hold; a list, tuple or set of values means any of them), or
a callable from metadata to bool. ``document_id`` names the chunk's document in all of them."""

_SEVERAL = (list, tuple, set, frozenset)
# What other stores join filters with; a key of metadata may begin with "$" all the same.
_LOGIC = ("$and", "$or", "$nor", "$not")
_FLAT = frozenset((str, int, float, bool, type(None)))


def compile_filters(filters: Any) -> Predicate:
    """Turn filters into a predicate on metadata.

    Raises:
        TypeError: If they are of no known kind.
        ValueError: If an operator or a condition is unknown.
    """
    if callable(filters):
        return _asked_of(filters)
    if isinstance(filters, Mapping):
        tests = [_equals(str(key), value) for key, value in filters.items()]
        return lambda metadata: all(test(metadata) for test in tests)
    if hasattr(filters, "filters") and hasattr(filters, "condition"):
        return _compile_group(filters)
    if hasattr(filters, "key") and hasattr(filters, "operator"):
        return _compile_one(filters)
    raise TypeError(f"expected filters as MetadataFilters, a dict or a callable, got {type(filters).__name__}")


def _copied(value: Any) -> Any:
    """Copy a value of metadata; quicker than `copy.deepcopy`, as all of an index's metadata is copied for a search."""
    kind = type(value)
    if kind in _FLAT:
        return value
    if kind is dict:
        return {key: inner if type(inner) in _FLAT else _copied(inner) for key, inner in value.items()}
    if kind is list:
        return [_copied(inner) for inner in value]
    return copy.deepcopy(value)


def _asked_of(function: Callable[[dict[str, Any]], object]) -> Predicate:
    """Ask a user's function, which gets a copy of the metadata: no search changes the index."""

    def ask(metadata: Mapping[str, Any]) -> bool:
        answer = function(_copied(dict(metadata)))
        if answer is True or answer is False:
            return answer
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise TypeError(f"a filter must be a plain function that answers at once, got a {type(answer).__name__}")
        return bool(answer)

    return ask


def single_document(filters: Any) -> str | None:
    """Return the document that filters require, if they require one: then search and positions stay within it."""
    if isinstance(filters, Mapping):
        return _one_document(filters.get(DOCUMENT_KEY))
    if hasattr(filters, "filters"):
        condition = _value_of(filters.condition or "and")
        if condition != "and" and (condition != "or" or len(filters.filters) != 1):
            return None
        found = {document for part in filters.filters if (document := single_document(part)) is not None}
        return found.pop() if len(found) == 1 else None
    if getattr(filters, "key", None) == DOCUMENT_KEY and _value_of(filters.operator) in ("==", "in"):
        return _one_document(filters.value)
    return None


def filters_key(filters: Any) -> str | None:
    """Return what filters say, as a key of a cache; None where that cannot be told (callables, foreign objects)."""
    if callable(filters):
        return None
    try:
        if hasattr(filters, "model_dump"):
            said = filters.model_dump()
        else:
            # Of a key's values, a tuple means what a list does.
            said = {key: list(value) if isinstance(value, tuple) else value for key, value in filters.items()}
        if not _is_plain(said):
            return None
        key = f"{type(filters).__qualname__} {json.dumps(said, sort_keys=True, ensure_ascii=False)}"
        key.encode()  # half a surrogate pair is no text
        return key
    except (AttributeError, TypeError, ValueError, RecursionError):
        return None


def _is_plain(value: Any) -> bool:
    """Tell whether JSON writes a value so that no other one is written alike: keys are texts, and there is no tuple."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return not isinstance(value, tuple) and (not isinstance(value, list) or all(map(_is_plain, value)))


def _one_document(value: Any) -> str | None:
    if isinstance(value, _SEVERAL) and len(value) == 1:
        value = next(iter(value))
    return document_of({DOCUMENT_KEY: value})


def _as_text(key: str, value: Any) -> Any:
    """Write numbers that name documents as text, as the index does."""
    if key != DOCUMENT_KEY:
        return value
    if isinstance(value, _SEVERAL):
        return type(value)(_as_text(key, one) for one in value)
    return document_of({key: value}) or value


def _equals(key: str, value: Any) -> Predicate:
    if key in _LOGIC or (isinstance(value, Mapping) and any(str(inner).startswith("$") for inner in value)):
        raise ValueError(
            f"a dict of filters has values and no operators, got {key!r}: {value!r}; use LlamaIndex's MetadataFilters, "
            "or a callable that is given the metadata"
        )
    wanted = _as_text(key, value)
    if isinstance(wanted, _SEVERAL):
        return lambda metadata: (
            key in metadata and (any(metadata[key] == one for one in wanted) or metadata[key] == list(wanted))
        )
    return lambda metadata: key in metadata and bool(metadata[key] == wanted)


def _compile_group(filters: Any) -> Predicate:
    tests = [compile_filters(part) for part in filters.filters]
    condition = _value_of(filters.condition or "and")
    if condition == "and":
        return lambda metadata: all(test(metadata) for test in tests)
    if condition == "or":
        # LlamaIndex: no filters allow everything.
        return lambda metadata: not tests or any(test(metadata) for test in tests)
    if condition == "not":
        return lambda metadata: not any(test(metadata) for test in tests)
    raise ValueError(f"unknown filter condition {condition!r}; known: 'and', 'or', 'not'")


def _compile_one(one: Any) -> Predicate:
    operator = _value_of(one.operator)
    key, wanted = one.key, _as_text(one.key, one.value)
    if operator == "is_empty":
        return lambda metadata: metadata.get(key) in (None, "", [])
    if operator not in _OPERATORS:
        raise ValueError(f"unknown filter operator {operator!r}; known: {', '.join([*_OPERATORS, 'is_empty'])}")
    compare = _OPERATORS[operator]

    def test(metadata: Mapping[str, Any]) -> bool:
        value = metadata.get(key)
        if value is None:
            return operator in ("!=", "nin")
        try:
            return bool(compare(value, wanted))
        except TypeError as error:
            raise TypeError(
                f"filter {key!r} {operator} {wanted!r} cannot be applied to the value {value!r} of a chunk"
            ) from error

    return test


def _text_match(value: Any, wanted: Any) -> bool:
    if not isinstance(value, str) or not isinstance(wanted, str):
        raise TypeError("text matching needs two strings")
    return wanted in value


def _overlap(value: Collection[Any], wanted: Collection[Any]) -> list[bool]:
    return [item in value for item in wanted]


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    ">": lambda value, wanted: value > wanted,
    ">=": lambda value, wanted: value >= wanted,
    "<": lambda value, wanted: value < wanted,
    "<=": lambda value, wanted: value <= wanted,
    "in": lambda value, wanted: value in wanted,
    "nin": lambda value, wanted: value not in wanted,
    "any": lambda value, wanted: any(_overlap(value, wanted)),
    "all": lambda value, wanted: all(_overlap(value, wanted)),
    "contains": lambda value, wanted: wanted in value,
    "text_match": _text_match,
    "text_match_insensitive": lambda value, wanted: _text_match(
        value.lower() if isinstance(value, str) else value, wanted.lower() if isinstance(wanted, str) else wanted
    ),
}


def _value_of(enum_or_text: Any) -> str:
    return str(getattr(enum_or_text, "value", enum_or_text))

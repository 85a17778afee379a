"""Checks on what comes in: a clear error that says what was expected, what came, and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import ByteSize, TypeAdapter, ValidationError

# Python reads and writes no longer numbers than of 4,300 digits.
_MOST_BITS = 14_000


def check_at_least_one(**numbers: Any) -> None:
    """Raise TypeError unless each named number is an integer, ValueError if it is below 1."""
    for name, number in numbers.items():
        if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
            raise TypeError(f"{name} must be an integer, got {number!r}")
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def check_number(value: Any, name: str, instead: str) -> None:
    """Raise TypeError unless a value is one number, ValueError if it is NaN; ``instead`` says what else it may be."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError(f"expected {name} as a number{instead}, got {value!r:.80}")
    if math.isnan(value):
        raise ValueError(f"{name} must not be NaN")


def plain_integer(value: Any) -> Any:
    """Turn numpy's integers into Python's, and leave anything else to the next check."""
    return int(value) if isinstance(value, np.integer) else value


def size_in_bytes(size: int | str, name: str) -> int:
    """Read a size of memory: bytes, or a number with a unit ("2GB", "512 MiB").

    Raises:
        TypeError: If it is neither an integer nor a string.
        ValueError: If it is no size, or below 1 byte.
    """
    if not isinstance(size, (int, np.integer, str)) or isinstance(size, bool):
        raise TypeError(f'{name} must be a number of bytes or a string like "2GB", got {size!r}')
    try:
        found = int(TypeAdapter(ByteSize).validate_python(size if isinstance(size, str) else int(size)))
    except ValidationError:
        found = 0
    if found < 1:
        raise ValueError(f'{name} must be a positive number of bytes or a string like "2GB", got {size!r}')
    return found


def check_list(values: Any, what: str) -> None:
    """Raise TypeError if one string is given where a sequence of things is expected."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray, range)):
        raise TypeError(f"expected a sequence of {what}, got one {type(values).__name__}: {values!r:.80}; use a list")


def check_not_empty(items: Sequence[Any], what: str, mode: str) -> None:
    """Raise ValueError if there is nothing to index, and no mode was named with which it could be added later."""
    if not items and mode == "auto":
        raise ValueError(
            f"expected at least one {what}, got none; an index needs text to search in, or mode='document' or "
            "mode='corpus' to begin empty"
        )


def check_text(text: Any, what: str) -> None:
    """Raise TypeError unless ``text`` is a string, ValueError if it holds half a surrogate pair."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a lone surrogate at character {error.start} and is not valid Unicode; "
            "clean it with text.encode('utf-8', 'replace').decode()"
        ) from error


def check_json(value: Any, path: str) -> None:
    """Raise TypeError, naming the key, unless a value comes back from JSON as it went in."""
    try:
        for inner, reason in _not_json(value, path):
            raise TypeError(
                f"{inner} {reason}; an index on disk keeps JSON values only (str, int, float, bool, None, ...)"
            )
    except RecursionError:
        raise TypeError(f"{path} is nested too deeply, or holds itself; an index on disk keeps it as JSON") from None


def json_culprit(value: Any, path: str) -> str | None:
    """Return the path of the first inner value that ``json.dumps`` refuses; None if it takes all."""
    try:
        json.dumps(value)
    except RecursionError:
        return path
    except (TypeError, ValueError):
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        found = (json_culprit(part, f"{path}[{key!r}]") for key, part in inner)
        return next((culprit for culprit in found if culprit is not None), path)
    return None


def _not_json(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if type(value) is dict:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _not_json(key, f"key {key!r} of {path}")
                yield from _not_json(inner, f"{path}[{key!r}]")
            else:
                yield f"{path}[{key!r}]", f"has a key of type {type(key).__name__}"
    elif type(value) is list:
        for i, inner in enumerate(value):
            yield from _not_json(inner, f"{path}[{i}]")
    elif (reason := _no_json_value(value)) is not None:
        yield path, reason


def _no_json_value(value: Any) -> str | None:
    """Say why a value that holds no others does not come back from JSON; None if it does."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which JSON does not have"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "has a lone surrogate"
    elif type(value) is int and value.bit_length() > _MOST_BITS:
        return f"is a number of {value.bit_length()} bits"
    elif value is not None and type(value) not in (bool, int, float):
        return f"is a {type(value).__name__}"
    return None


def check_query(query: object) -> None:
    """Raise TypeError unless a query is a string, ValueError if it is blank or not valid Unicode."""
    check_text(query, "the query")
    if not str(query).strip():
        raise ValueError("the query is empty; ask something")

"""Strict reading of JSON: what is wrong is said with file, line number, expectation and finding."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrag_retriever.checks import check_text
from qrag_retriever.errors import DataError

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was read: a file, and a line in it (from 1) if there is one to name."""

    path: Path
    line: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}, line {self.line}"

    def error(self, reason: str) -> DataError:
        """Return an error that names the place."""
        return DataError(f"{self}: {reason}")

    def expected(self, what: str, expected: str, got: Any) -> DataError:
        """Return an error that says what was expected of what, and what came."""
        return self.error(f"{what}: expected {expected}, got {show(got)}")


def show(value: Any) -> str:
    """Return a value with its type, as short as an error message wants it."""
    return "null" if value is None else f"{type(value).__name__} {_short.repr(value)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' where a known name is near, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse_value(raw: bytes, place: Place) -> Any:
    """Read one JSON value.

    Raises:
        DataError: If the bytes are not UTF-8, not JSON, or name a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise place.error(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        return found

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise place.error(
            f"not valid UTF-8 at byte {error.start} of the line ({error.reason}); save it as UTF-8"
        ) from None
    except RecursionError:
        raise place.error("not a JSON object that can be read: nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, or a number of thousands of digits
        shown = raw[:60].decode("utf-8", "replace")
        raise place.error(f"not JSON: {error}; expected JSON in each line, got {shown!r}") from None


def parse_object(raw: bytes, place: Place) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DataError: If the bytes are not UTF-8, not JSON, not one object, or name a key twice.
    """
    value = parse_value(raw, place)
    if not isinstance(value, dict):
        raise place.expected("line", "a JSON object", value)
    return value


def checked_text(value: Any, what: str, place: Place) -> str:
    """Return a string that says something.

    Raises:
        DataError: If it is not a string, is blank, or has a lone surrogate.
    """
    try:
        check_text(value, what)
    except TypeError:
        raise place.expected(what, "a string", value) from None
    except ValueError as error:
        raise place.error(str(error)) from None
    text: str = value
    if not text.strip():
        raise place.expected(what, "a string that is not blank", value)
    return text


def text_of(record: dict[str, Any], key: str, place: Place) -> str:
    """Return the text under a key that must be there.

    Raises:
        DataError: If the key is missing or its value is not a string that says something.
    """
    if key not in record:
        raise place.error(f"the key {key!r} is missing; the line has {', '.join(map(repr, record)) or 'no keys'}")
    return checked_text(record[key], key, place)


def list_of(record: dict[str, Any], key: str, place: Place) -> list[Any]:
    """Return the list under a key that must be there.

    Raises:
        DataError: If the key is missing or its value is not a list with something in it.
    """
    if key not in record:
        raise place.error(f"the key {key!r} is missing; the line has {', '.join(map(repr, record)) or 'no keys'}")
    return filled_list(record[key], key, place)


def is_integer(value: Any) -> bool:
    """Tell an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def filled_list(value: Any, what: str, place: Place) -> list[Any]:
    """Return a list with something in it.

    Raises:
        DataError: If it is not a list, or an empty one.
    """
    if not isinstance(value, list):
        raise place.expected(what, "a list", value)
    if not value:
        raise place.expected(what, "a list with something in it (leave the key out if it is not known)", value)
    return value

"""Finding and reading the files of a data folder."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.errors import DataError
from qrag_retriever.json_lines import Place, checked_text, is_integer, parse_object
from qrag_retriever.sentences import CountTokens

_NUM_MEASURED = 500


def find_files(folder: str | Path, *patterns: str) -> list[Path]:
    """Return what matches the first of several patterns that matches anything, by name.

    Args:
        folder: The data folder.
        patterns: Paths below it, with ``*`` where names vary; the best first.

    Raises:
        DataError: If the folder is missing, or nothing matches.
    """
    if not Path(folder).is_dir():
        raise DataError(f"the data folder {folder} is missing or no folder")
    for pattern in patterns:
        found = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
        if found:
            return found
    raise DataError(f"{folder} lacks {' or '.join(patterns)}")


def find_file(folder: str | Path, *patterns: str) -> Path:
    """Return the first file that `find_files` finds."""
    return find_files(folder, *patterns)[0]


def read_text(path: Path) -> str:
    """Read a UTF-8 file; one that ends in ``.gz`` is unpacked.

    Raises:
        DataError: If it cannot be read, is damaged, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 at byte {error.start}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_records(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the objects of a JSON-lines file, packed or not, each with its place.

    Raises:
        DataError: If the file cannot be read, or a line is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            place = Place(path, number)
            yield place, parse_object(line.encode(), place)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that is one JSON object, packed or not.

    Raises:
        DataError: If the file cannot be read, or is something else.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Place(path).expected("file", "a JSON object", value)
    return value


def object_at(value: Any, what: str, place: Place) -> dict[str, Any]:
    """Return a JSON object; DataError if it is something else."""
    if not isinstance(value, dict):
        raise place.expected(what, "a JSON object", value)
    return value


def supporting_titles(facts: Sequence[Any], place: Place) -> list[str]:
    """Return the titles of ``supporting_facts``, each once, in the order of their first mention.

    Raises:
        DataError: If a fact is not a title and a sentence number.
    """
    for i, fact in enumerate(facts):
        if not isinstance(fact, list) or len(fact) != 2 or not is_integer(fact[1]):
            raise place.expected(f"supporting_facts[{i}]", "[title, sentence number]", fact)
        checked_text(fact[0], f"supporting_facts[{i}][0]", place)
    return list(dict.fromkeys(title for title, _ in facts))


def passage(title: str, text: str) -> str:
    """Return the chunk of a titled paragraph."""
    return f"{title.strip()}. {text.strip()}".strip()


def num_fitting(num_tokens: int, chunks: Sequence[str], count_tokens: CountTokens | None) -> int:
    """Return how many chunks make a document of a length in tokens, from the mean over the first few hundred.

    Args:
        num_tokens: The length of the document.
        chunks: What it is to be made of, or a part of that.
        count_tokens: Turns a text into its tokens.

    Raises:
        ValueError: If there is no ``count_tokens``.
    """
    check_at_least_one(num_tokens=num_tokens)
    if count_tokens is None:
        raise ValueError("num_tokens needs count_tokens, a function from a text to its tokens; or give num_chunks")
    measured = chunks[:_NUM_MEASURED]
    return int(num_tokens * len(measured) / max(1, sum(len(count_tokens(chunk)) for chunk in measured)))

"""Reading files of many kinds: the text of each, in pieces that know their place."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrag_retriever._extras import require_extra
from qrag_retriever.checks import check_json, check_text
from qrag_retriever.errors import DataError
from qrag_retriever.json_lines import Place, checked_text, nearest, parse_value
from qrag_retriever.records import SOURCE_KEY, Record, document_of

PAGE_KEY = "page"
_EXTRA = "files"
_LINE_KEYS = ("text", "id", "metadata")
SplitText = Callable[[str], list[str]]


@dataclass(frozen=True)
class Piece:
    """A part of a file.

    Attributes:
        text: Of a page, of a line, or of the whole file.
        metadata: What is known of it besides its file.
        id: The user's own; None to have one made.
        is_chunk: Whether to take it as it is; else it is split.
    """

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    is_chunk: bool = False


def find_files(paths: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """Find the files to read: those that are named, and in folders, at any depth, those of a known kind.

    Returns:
        The files, each once, those of a folder by name; and how many files of other kinds the folders have, by their
        endings. Hidden files and folders are passed over.

    Raises:
        DataError: If a path is missing, or nothing is found.
    """
    found: dict[Path, Path] = {}
    left_out: Counter[str] = Counter()
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} is missing")
        inside = _files_in(path) if path.is_dir() else [path]
        known = [one for one in inside if one.suffix.lower() in READERS or not path.is_dir()]
        left_out.update(one.suffix.lower() or "no ending" for one in inside if one not in known)
        for one in known:
            found.setdefault(one.resolve(), one)
    if not found:
        raise DataError(f"there is no file of a known kind ({', '.join(READERS)})")
    return list(found.values()), left_out


def _files_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found


def read_file(path: Path) -> list[Piece]:
    """Read the pieces of a file that have text.

    Raises:
        DataError: If its kind is not known, it cannot be read, or has no text.
        ImportError: If a package for its kind is not installed.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: {path.suffix or 'a name without an ending'} is not of a known kind: "
                        f"{', '.join(READERS)}")  # fmt: skip
    # A name may have bytes that are no text.
    name = str(path).encode("utf-8", "backslashreplace").decode()
    _check(str(path), "its name", name)
    try:
        pieces = [piece for piece in read(path) if piece.text.strip()]
    except (DataError, ImportError):
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can make a parser fail in any way
        kind, reason = path.suffix.lower()[1:], str(error) or "damaged"
        raise DataError(f"{name}: not readable as {kind}: {reason} ({type(error).__name__})") from error
    for piece in pieces:
        _check(piece.text, "its text", name)
    if not pieces:
        raise DataError(f"{path}: there is no text in it{_SCANNED if read is _read_pdf else ''}")
    return pieces


def _check(text: str, what: str, file: str) -> None:
    try:
        check_text(text, what)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def records_of_file(path: Path, pieces: Sequence[Piece], split: SplitText) -> list[Record]:
    """Make a file's chunks; its path names the document, unless a line of JSON names another.

    Args:
        path: As it was named by the user.
        pieces: Of the file.
        split: Splits a text into chunks.

    Raises:
        DataError: If a text cannot be split.
    """
    source = path.as_posix()
    records: list[Record] = []
    for piece in pieces:
        metadata = {SOURCE_KEY: source, **piece.metadata}
        try:
            texts = [piece.text] if piece.is_chunk else split(piece.text)
        except (ValueError, RecursionError) as error:  # a single character of more tokens than a chunk may have
            raise DataError(f"{path}: it cannot be split: {error}") from error
        for text in texts:
            number = len(records) + 1
            records.append(Record(piece.id or f"{source}:{number}", text, dict(metadata), document_of(metadata)))
    return records


def _read_text(path: Path) -> list[Piece]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 at byte {error.start}; save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{path}: it has NUL bytes, so it is no text")
    return [Piece(text)]


def _read_lines(path: Path) -> list[Piece]:
    pieces = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
            if line:
                pieces.append(_line(line, Place(path, number)))
    return pieces


def _line(raw: bytes, place: Place) -> Piece:
    value = parse_value(raw, place)
    made_id = f"{place.path.as_posix()}:{place.line}"
    if not isinstance(value, dict):
        return Piece(checked_text(value, "line", place), {}, made_id, is_chunk=True)
    for key in value:
        if key not in _LINE_KEYS:
            hint = nearest(key, _LINE_KEYS) or "; put what else is known of the chunk into 'metadata'"
            raise place.error(f"unknown key {key!r}; expected {', '.join(_LINE_KEYS)}{hint}")
    metadata = value.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise place.expected("metadata", "an object", metadata)
    try:
        check_json(metadata, "metadata")
    except TypeError as error:  # NaN, which Python reads, or half a surrogate pair
        raise place.error(str(error)) from None
    own_id = checked_text(value["id"], "id", place) if "id" in value else made_id
    return Piece(checked_text(value.get("text"), "text", place), metadata, own_id, is_chunk=True)


def _read_pdf(path: Path) -> list[Piece]:
    pypdf: Any = require_extra("pypdf", _EXTRA)
    with pypdf.PdfReader(path) as document:
        return [Piece(page.extract_text(), {PAGE_KEY: number}) for number, page in enumerate(document.pages, 1)]


def _read_docx(path: Path) -> list[Piece]:
    docx2txt: Any = require_extra("docx2txt", _EXTRA)
    return [Piece(docx2txt.process(str(path)))]


def _read_html(path: Path) -> list[Piece]:
    inscriptis: Any = require_extra("inscriptis", _EXTRA)
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        html: Any = require_extra("lxml.html", _EXTRA)
        # The charset that the page declares, or what browsers take if it declares none.
        text = raw.decode(html.document_fromstring(raw).getroottree().docinfo.encoding or "windows-1252")
    return [Piece(inscriptis.get_text(text))]


_SCANNED = "; if its pages are pictures, they need OCR first"
READERS: dict[str, Callable[[Path], list[Piece]]] = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), _read_text),
    **dict.fromkeys((".jsonl", ".ndjson"), _read_lines),
    **dict.fromkeys((".html", ".htm"), _read_html),
    ".pdf": _read_pdf,
    ".docx": _read_docx,
}

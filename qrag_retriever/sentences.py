"""Splitting text: into sentences by NLTK's Punkt, into chunks by LlamaIndex's SentenceSplitter.

llama-index-core brings NLTK and the data of its Punkt model along; both are imported when the first text is split, and
nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

CountTokens = Callable[[str], Sequence[int]]
SplitText = Callable[[str], list[str]]


def split_sentences(text: str) -> list[str]:
    """Split English text into sentences, without the white space between them.

    Sentences that hold neither a letter nor a digit (a lone quotation mark, dots) are left out.

    Raises:
        ImportError: If NLTK, which llama-index-core brings, is not installed.
        LookupError: If there is neither llama-index-core's copy of the Punkt model nor another one.
    """
    sentences: list[str] = _punkt().tokenize(text)
    return [sentence for sentence in sentences if any(map(str.isalnum, sentence))]


def make_splitter(chunk_tokens: int, count_tokens: CountTokens | None = None) -> SplitText:
    """Make a function that splits a text by sentences into chunks that do not overlap.

    Args:
        chunk_tokens: Most tokens of a chunk.
        count_tokens: Turns a text into its tokens; None for LlamaIndex's own tokenizer.

    Raises:
        ImportError: If llama-index-core is not installed.
    """
    splitter = _needed("llama_index.core.node_parser").SentenceSplitter(
        chunk_size=chunk_tokens, chunk_overlap=0, tokenizer=count_tokens
    )
    split: SplitText = splitter.split_text
    return split


def locate(text: str, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Find where consecutive pieces of a text lie in it.

    Args:
        text: What was split.
        pieces: Its pieces in order. Between them, and inside, characters of the text may be missing: LlamaIndex's
            splitter strips white space, and older ones lose punctuation where they have to cut a sentence.

    Returns:
        Start and end of each piece, in characters; ascending, without overlap.

    Raises:
        ValueError: If a piece does not come from the text.
    """
    bounds, end = [], 0
    for piece in pieces:
        start = text.find(piece, end)
        # A hit beyond other words is a later repetition of a piece that itself lost a character.
        if start >= 0 and not any(map(str.isalnum, text[end:start])):
            end = start + len(piece)
        else:
            start, end = _align(text, piece, end)
        bounds.append((start, end))
    return bounds


def _align(text: str, piece: str, place: int) -> tuple[int, int]:
    start = None
    for character in piece:
        found = text.find(character, place)
        if found < 0:
            raise ValueError(f"{piece!r:.80} does not come from the text")
        start = found if start is None else start
        place = found + 1
    return (place if start is None else start), place


@cache
def _punkt() -> Any:
    data = _needed("nltk.data")
    package = find_spec("llama_index.core") if find_spec("llama_index") else None
    for folder in (package.submodule_search_locations or []) if package else []:
        bundled = str(Path(folder, "_static", "nltk_cache"))
        # NLTK reads from folders on this list only; llama-index-core appends its own too when it splits.
        if Path(bundled).is_dir() and bundled not in data.path:
            data.path.append(bundled)
    return _needed("nltk.tokenize.punkt").PunktTokenizer("english")


def _needed(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"llama_index", "nltk"}:
            raise
        raise ImportError(
            f"splitting text needs {error.name!r}, which is not installed: pip install llama-index-core"
        ) from error

"""What is trained on: samples, where they come from, and the JSON-lines format of a user's own data."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.config import Mode
from qrag_retriever.errors import DataError
from qrag_retriever.json_lines import Place
from qrag_retriever.sentences import CountTokens, SplitText, locate, make_splitter
from qrag_retriever.training.data_checks import Line, read_line

DEFAULT_CHUNK_TOKENS = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MOST_CACHED_SPLITS = 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One question over one document, or over one set of passages.

    Attributes:
        id: Names the question in reports.
        question: What is asked.
        chunks: The document's chunks in their order, or the passages.
        supporting: Ids (indices into ``chunks``) of the chunks that hold the evidence, ascending; None if not known.
        answers: What a right answer must contain: every inner tuple is met by one of its aliases; None if not known.
        mode: "document" for chunks of one text, where order tells; "corpus" for passages in no order.
    """

    id: str
    question: str
    chunks: tuple[str, ...]
    supporting: tuple[int, ...] | None = None
    answers: tuple[tuple[str, ...], ...] | None = None
    mode: Mode = "document"


class SampleSource(Protocol):
    """Something that samples can be drawn from by number, a file or a generator."""

    name: str

    def __len__(self) -> int:
        """Return how many questions there are."""
        ...

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Make one sample.

        Args:
            number: From 0 to ``len(self) - 1``.
            random: Decides what a source makes up anew at every draw (where noise is put, say); the same number,
                generator state and era give the same sample. Sources with nothing to make up do not touch it.
            era: Counts how often the trainer has thrown away its chunk embeddings. Within an era a source that mixes
                in noise keeps to one part of it, so that the noise is embedded once in an era.
        """
        ...


class JsonLines:
    """A user's own questions: a file with one JSON object in each line.

    Either ``{"id", "question", "chunks": ["..."], "supporting": [indices], "answers": [["alias", ...], ...]}`` or
    ``{"id", "question", "document": "long text", "supporting": [[start, end], ...], "answers": ...}`` with spans in
    characters (Unicode code points). ``id``, ``supporting`` and ``answers`` may be missing; a line without an id gets
    the file's name and the line's number. Blank lines, a byte order mark and Windows line ends do no harm.

    The whole file is checked once, at construction; of every line only its place and a few hashes are kept (40
    bytes), and a sample reads its line again, so that a file may be larger than memory.

    Attributes:
        name: Names the source in reports.
        path: The file.
        mode: The mode of every sample.
    """

    def __init__(
        self,
        path: str | Path,
        name: str | None = None,
        mode: Mode = "document",
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
        count_tokens: CountTokens | None = None,
    ) -> None:
        """Check a file.

        Args:
            path: The file; UTF-8, not compressed.
            name: Names the source in reports; None for the file's name without its ending.
            mode: "document" for chunks of one text, where order tells; "corpus" for passages in no order.
            chunk_tokens: Documents are split by sentences into chunks of at most so many tokens.
            count_tokens: Turns a text into its tokens, to count them; None for LlamaIndex's own tokenizer, whose
                tokens are not those of an encoder.

        Raises:
            DataError: If the file is missing or empty, or any line of it is not as the format has it.
            ImportError: If a document is to be split and llama-index-core is not installed.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        check_at_least_one(chunk_tokens=chunk_tokens)
        self.path = Path(path)
        self.name = self.path.stem if name is None else name
        self.mode: Mode = mode
        self._chunk_tokens, self._count_tokens = chunk_tokens, count_tokens
        self._split: SplitText | None = None
        self._splits: dict[int, list[tuple[int, int]]] = {}
        # (3, num_questions): byte offset, line number, checksum; and (2, num_questions): hashes.
        self._index, self._hashes = self._check()

    def __len__(self) -> int:
        """Return how many questions there are."""
        return int(self._index.shape[1])

    @property
    def checksum(self) -> int:
        """Tells the file from another one, and from what it was before a change."""
        return zlib.crc32(self._index[2].tobytes())

    def hashes(self) -> np.ndarray:
        """Return hashes of each question's text and of its document or chunks: shape (2, num_questions), uint64."""
        return self._hashes

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Read one question; see `SampleSource`. Nothing is drawn: the same number is the same sample.

        Raises:
            IndexError: If there is no question of that number.
            DataError: If the line is not what it was when the file was checked, or its document cannot be split.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has questions 0 to {len(self) - 1}, got {number}")
        line, place = self._line(number)
        return self._sample_of_document(number, line, place) if line.chunks is None else self._sample(line, place)

    def _sample(self, line: Line, place: Place) -> Sample:
        chunks = line.chunks or ()
        return Sample(_id_of(line, place), line.question, chunks, line.supporting, line.answers, self.mode)

    def _sample_of_document(self, number: int, line: Line, place: Place) -> Sample:
        document = line.document or ""
        if number not in self._splits:
            if len(self._splits) >= _MOST_CACHED_SPLITS:
                self._splits.clear()
            self._splits[number] = self._bounds(document, place)
        bounds = self._splits[number]
        chunks = tuple(document[start:end] for start, end in bounds)
        supporting = None if line.spans is None else _chunks_of_spans(line.spans, bounds)
        return Sample(_id_of(line, place), line.question, chunks, supporting, line.answers, self.mode)

    def _bounds(self, document: str, place: Place) -> list[tuple[int, int]]:
        if self._split is None:
            self._split = make_splitter(self._chunk_tokens, self._count_tokens)
        try:
            return locate(document, self._split(document))
        except (ValueError, RecursionError) as error:  # a single character of more tokens than a chunk may have
            raise place.error(f"the document cannot be split into {self._chunk_tokens} tokens: {error}") from error

    def _check(self) -> tuple[np.ndarray, np.ndarray]:
        # Numbers in arrays: as Python's own they would take more memory than short lines do.
        rows, hashes, ids = array("q"), array("Q"), array("Q")
        for offset, place, raw in self._raw_lines():
            line = read_line(raw, place)
            if line.document is not None and self._split is None:
                self._split = make_splitter(self._chunk_tokens, self._count_tokens)
            rows.extend((offset, place.line or 0, zlib.crc32(raw)))
            hashes.extend((_hash(line.question), _hash(line.document or "", *(line.chunks or ()))))
            ids.append(_hash(_id_of(line, place)))
        if not rows:
            raise DataError(f"{self.path} is empty; expected a JSON object in each line")
        index = np.ascontiguousarray(np.frombuffer(rows, np.int64).reshape(-1, 3).T)
        self._check_ids(index, np.frombuffer(ids, np.uint64))
        return index, np.ascontiguousarray(np.frombuffer(hashes, np.uint64).reshape(-1, 2).T)

    def _check_ids(self, index: np.ndarray, ids: np.ndarray) -> None:
        """Raise `DataError` at the first line whose id another line before it has."""
        _, first, same = np.unique(ids, return_index=True, return_inverse=True)
        self._index = index
        for number in np.flatnonzero(first[same] != np.arange(len(ids))).tolist():
            (line, place), (earlier, before) = (self._line(one) for one in (number, int(first[same[number]])))
            if (line_id := _id_of(line, place)) == _id_of(earlier, before):
                raise place.error(f"the id {line_id!r} is that of line {before.line} too; ids must be unique")

    def _raw_lines(self) -> Iterator[tuple[int, Place, bytes]]:
        """Yield the byte offset, the place and the bytes of every line that is not blank."""
        try:
            with self.path.open("rb") as file:
                offset = 0
                for number, raw in enumerate(file, 1):
                    stripped = _stripped(raw, offset)
                    if stripped:
                        yield offset, Place(self.path, number), stripped
                    offset += len(raw)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _line(self, number: int) -> tuple[Line, Place]:
        offset, line_number, checksum = (int(value) for value in self._index[:, number])
        place = Place(self.path, line_number)
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                raw = _stripped(file.readline(), offset)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if zlib.crc32(raw) != checksum:
            raise place.error(
                "the file was changed since it was checked; put back what it was, or open it again and start anew"
            )
        return read_line(raw, place), place


def _hash(*texts: str) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(text.encode("utf-8", errors="surrogatepass") + b"\0")
    return int.from_bytes(digest.digest(), "big")


def _id_of(line: Line, place: Place) -> str:
    return f"{place.path.name}:{place.line}" if line.id is None else line.id


def _stripped(raw: bytes, offset: int) -> bytes:
    return (raw.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else raw).strip()


def _unreadable(path: Path, error: OSError) -> DataError:
    reason = "is a folder" if path.is_dir() else "is missing" if not path.exists() else f"cannot be read ({error})"
    return DataError(f"{path} {reason}; expected a file with a JSON object in each line")


def _chunks_of_spans(spans: tuple[tuple[int, int], ...], bounds: list[tuple[int, int]]) -> tuple[int, ...]:
    """Return the chunks that spans overlap; a span between two chunks belongs to the one before it."""
    starts = np.array([start for start, _ in bounds])
    ends = np.array([end for _, end in bounds])
    found: set[int] = set()
    for start, end in spans:
        first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(starts, end, "left"))
        # Nothing is overlapped where the splitter lost the punctuation that the span consists of.
        found |= set(range(first, last)) if first < last else {max(0, first - 1)}
    return tuple(sorted(found))

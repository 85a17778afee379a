"""qrag index: make an index of files, or add files to one."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from qrag_retriever._files import check_place
from qrag_retriever._terminal import tell
from qrag_retriever.backends.kinds import Backend
from qrag_retriever.cli.files import READERS, Piece, find_files, read_file, records_of_file
from qrag_retriever.cli.options import add_command, add_model_options, at_least_one
from qrag_retriever.cli.output import count_of, told_for_commands
from qrag_retriever.config import Mode
from qrag_retriever.errors import DataError, ModelMismatchError
from qrag_retriever.records import Record, check_records

if TYPE_CHECKING:
    from qrag_retriever.index import ChunkIndex
    from qrag_retriever.model import QRAGModel

_EXAMPLES = """  qrag index story.txt -o story.qrag --chunk-tokens 16    # about a sentence to a chunk
  qrag index docs/ manual.pdf notes.md -o work.qrag --skip-bad
  qrag index chunks.jsonl -o chunks.qrag --mode corpus --model runs/my/model
  qrag index chapter-2.txt -o story.qrag --append
"""
_NO_MODE = "auto"
# Fewer leave nothing to search in.
_FEW_CHUNKS = 8


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "index", run, "make an index of files, or add files to one", _EXAMPLES)
    add = parser.add_argument
    add(
        "files", nargs="+", type=Path, metavar="FILE",
        help=f"files ({', '.join(READERS)}) or folders, which are read at any depth; a line of .jsonl is a chunk: a "
        'string, or {"text", "id", "metadata"} of which only the text must be there; the file is one document, '
        'unless metadata name others ("document_id")',
    )  # fmt: skip
    add("-o", "--output", type=Path, required=True, metavar="INDEX", help="folder to write; an index there is replaced")
    add("--append", action="store_true", help="add to the index that is there")
    add(
        "--mode", choices=(_NO_MODE, *get_args(Mode)), default=_NO_MODE,
        help="document: the order of chunks tells; corpus: it does not (default: document for one document, else "
        "corpus)",
    )  # fmt: skip
    add("--chunk-tokens", type=at_least_one, metavar="N", help="most tokens of a chunk (default: what the model reads)")
    add("--cache", type=Path, metavar="FILE", help="keep embeddings there: the next time only new texts are embedded")
    add("--workers", type=at_least_one, metavar="N", help="processes that embed, where there are thousands of chunks")
    add(
        "--backend", choices=get_args(Backend),
        help="what embeds: torch, onnx and openvino give the same, auto (default) takes the fastest of them where "
        "there is work for minutes; onnx-int8 rounds: its indexes are another model's",
    )  # fmt: skip
    add("--skip-bad", action="store_true", help="leave out files that cannot be read; else nothing is written")
    add_model_options(parser, "the one of the package, or of the index that is added to")


def run(options: argparse.Namespace) -> int:
    """Carry out the command."""
    from qrag_retriever.index import ChunkIndex
    from qrag_retriever.index_model import resolve_model
    from qrag_retriever.storage import DATABASE_NAME

    start = time.perf_counter()
    if not options.append:
        check_place(options.output, may_replace=lambda path: (path / DATABASE_NAME).is_file())
    files, left_out = find_files(options.files)
    if left_out:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(left_out.items()))
        sys.stderr.write(f"{count_of(left_out.total(), 'file')} of other kinds left out: {kinds}\n")
    read = _read(files, options.skip_bad)
    if options.append:
        # A model that is named is loaded with the backend; that of the index comes with its own.
        named = options.model and resolve_model(options.model, options.device, backend=options.backend)
        if not (options.output / DATABASE_NAME).is_file():
            raise DataError(f"{options.output} is no index to add to; leave --append out to make one")
        try:
            index = ChunkIndex.load(options.output, named, options.device)
        except ModelMismatchError as error:
            raise told_for_commands(error) from error
        if options.mode not in (_NO_MODE, index.mode):
            raise ValueError(f"{options.output} is in {index.mode} mode, got --mode {options.mode}; build it anew")
        _check_new(index, read)
        index.model.embed_with(options.cache, options.workers, options.backend)
        had = len(index.view.layout.chunks_of_document)
        added = index.add_records(_records(read, index.model, options.chunk_tokens))
        _advise_on_mode(index, had, options.output)
        what = f"{count_of(len(added), 'chunk')} added or updated, {count_of(len(index), 'chunk')} in all"
    else:
        model = resolve_model(options.model, options.device, backend=options.backend)
        model.embed_with(options.cache, options.workers)
        records = _records(read, model, options.chunk_tokens)
        documents = len({record.document_id for record in records})
        mode: Mode = options.mode if options.mode != _NO_MODE else "document" if documents == 1 else "corpus"
        index = ChunkIndex.from_records(records, model, mode, options.device)
        index.save(options.output)
        what = f"{count_of(len(index), 'chunk')} of {count_of(documents, 'document')}"
        _advise_on_chunks(index, read)
    tell(f"{options.output}: {what}, {index.mode} mode, {time.perf_counter() - start:.1f} s\n")
    return 0


def _advise_on_mode(index: ChunkIndex, documents_before: int, place: Path) -> None:
    """Say that several documents are one text now, where nobody may have meant that."""
    if index.mode == "document" and documents_before <= 1 < len(index.view.layout.chunks_of_document):
        sys.stderr.write(
            f"{place} is in document mode, as one text; where documents are loose, make it anew with all of them, or "
            "with --mode corpus\n"
        )


def _advise_on_chunks(index: ChunkIndex, read: dict[Path, list[Piece]]) -> None:
    """Say that there is little to choose from, where texts were split."""
    if len(index) < _FEW_CHUNKS and not all(piece.is_chunk for pieces in read.values() for piece in pieces):
        sys.stderr.write(
            f"{count_of(len(index), 'chunk')} only: every hop picks one. Where single sentences are what is looked "
            "for, make chunks smaller, with --chunk-tokens 16 or so\n"
        )


def _read(files: Sequence[Path], skip_bad: bool) -> dict[Path, list[Piece]]:
    """Read all files, and say which are bad.

    Raises:
        DataError: If one is bad and not to be skipped, or if none is good.
    """
    from tqdm.auto import tqdm

    read: dict[Path, list[Piece]] = {}
    bad: list[str] = []
    # Of a damaged PDF it says things without the name of the file.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    for path in tqdm(files, desc="read", unit="file", leave=False, delay=1.0, disable=None):
        try:
            read[path] = read_file(path)
        except DataError as error:
            bad.append(str(error))
    if bad and not (skip_bad and read):
        hint = "" if skip_bad or not read else " (--skip-bad leaves bad files out)"
        if len(bad) == 1:
            raise DataError(f"nothing was written{hint}: {bad[0]}")
        sys.stderr.write("".join(f"{reason}\n" for reason in bad))
        raise DataError(f"nothing was written{hint}: {len(bad)} files cannot be read")
    for reason in bad:
        sys.stderr.write(f"left out: {reason}\n")
    return read


def _records(read: dict[Path, list[Piece]], model: QRAGModel, chunk_tokens: int | None) -> list[Record]:
    from qrag_retriever.sentences import make_splitter

    limit = model.action_encoder.content_limit
    if chunk_tokens is not None and chunk_tokens > limit:
        raise ValueError(f"the model reads {limit} tokens of a chunk, got --chunk-tokens {chunk_tokens}")
    split = make_splitter(chunk_tokens or limit, model.action_encoder.token_ids)
    records = [record for path, pieces in read.items() for record in records_of_file(path, pieces, split)]
    # Before they are embedded, which may take long.
    check_records(records)
    return records


def _check_new(index: ChunkIndex, read: dict[Path, list[Piece]]) -> None:
    """Raise ValueError if a text is there already: of an old version, parts would stay. Lines have ids of their own."""
    documents = index.view.layout.chunks_of_document
    for path, pieces in read.items():
        name = path.as_posix()
        if not pieces[0].is_chunk and name in documents:
            raise ValueError(f"{name} is in {index.path} already; first: qrag delete {index.path} --document {name}")

"""qrag show: what is in an index, where it came from, and whether it is whole."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrag_retriever._terminal import tell
from qrag_retriever.cli.options import add_command
from qrag_retriever.cli.output import BOLD, count_of, one_line, paint, printable

if TYPE_CHECKING:
    from qrag_retriever.layout import Layout
    from qrag_retriever.records import Record
    from qrag_retriever.storage import IndexFolder
    from qrag_retriever.transaction import FolderSettings

_EXAMPLES = """  qrag show story.qrag
  qrag show story.qrag --chunks | less
  qrag show story.qrag --check
"""
_MOST_DOCUMENTS = 20
_SHOWN_CHARACTERS = 100
_RECORDS_AT_ONCE = 1000


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "show", run, "show what is in an index", _EXAMPLES)
    parser.add_argument("index", type=Path, metavar="INDEX", help="a folder written by qrag index")
    parser.add_argument("--chunks", action="store_true", help="list all chunks: number, id, text")
    parser.add_argument("--check", action="store_true", help="read everything, and verify every checksum")


def run(options: argparse.Namespace) -> int:
    """Carry out the command; loads no model."""
    from qrag_retriever.storage import IndexFolder

    folder = IndexFolder(options.index)
    # Before opening: a reader may touch files.
    when, size = _files_of(options.index)
    settings, layout, _ = folder.read()
    rows = {
        "holds": f"{count_of(len(layout), 'chunk')} of {count_of(len(layout.chunks_of_document), 'document')}",
        "mode": settings.mode,
        "model": _model(settings.model),
        "on disk": f"{size / 1e6:,.1f} MB{_deleted(settings)}",
        "changed": when,
    }
    tell("".join([paint(str(options.index), BOLD), "\n", *(f"  {key:<9}{value}\n" for key, value in rows.items())]))
    tell("".join(f"  {line}\n" for line in _documents(layout)))
    if options.check:
        for _ in _records(folder, settings, layout):
            pass
        tell("  checked  all texts and vectors match their checksums\n")
    if options.chunks:
        first = 0
        for records in _records(folder, settings, layout):
            tell("".join(_line(number, record) for number, record in enumerate(records, first)))
            first += len(records)
    return 0


def _line(number: int, record: Record) -> str:
    return f"{number}\t{printable(record.id)}\t{one_line(record.text, _SHOWN_CHARACTERS)}\n"


def _files_of(path: Path) -> tuple[str, int]:
    """Return when the files of a folder were changed last, and their bytes."""
    found = [file.stat() for file in path.iterdir() if file.is_file()] if path.is_dir() else []
    newest = max((stat.st_mtime for stat in found), default=0.0)
    return datetime.fromtimestamp(newest).astimezone().isoformat(" ", "seconds"), sum(stat.st_size for stat in found)


def _model(stored: Mapping[str, Any] | None) -> str:
    if stored is None:
        return "none: the index was built from embeddings"
    source, config = stored["source"], stored["config"]
    if source is None:
        name = "one that was never saved"
    elif source["kind"] == "default":
        name = "the one of the package"
    else:
        name = f"{'untrained pair of ' if source['kind'] == 'encoder' else ''}{source['name']}"
    return f"{name} (dimension {config['dim']}, fingerprint {stored['fingerprint'][:12]})"


def _deleted(settings: FolderSettings) -> str:
    gone = settings.num_rows - settings.num_chunks
    return f", {count_of(gone, 'chunk')} of it deleted or replaced (qrag delete --purge)" if gone else ""


def _documents(layout: Layout) -> Iterator[str]:
    documents = layout.chunks_of_document
    for name in list(documents)[:_MOST_DOCUMENTS]:
        yield f"{'':<9}{printable(name)}: {count_of(len(documents[name]), 'chunk')}"
    if len(documents) > _MOST_DOCUMENTS:
        yield f"{'':<9}and {len(documents) - _MOST_DOCUMENTS:,} more"


def _records(folder: IndexFolder, settings: FolderSettings, layout: Layout) -> Iterator[list[Record]]:
    """Read all records, some at a time; the text of each is verified."""
    for first in range(0, len(layout), _RECORDS_AT_ONCE):
        rows = layout.rows[first : first + _RECORDS_AT_ONCE].tolist()
        yield folder.records(rows, settings.generation)

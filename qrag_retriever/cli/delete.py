"""qrag delete: take chunks or whole documents out of an index."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qrag_retriever._terminal import tell
from qrag_retriever.cli.options import add_command
from qrag_retriever.cli.output import count_of

_EXAMPLES = """  qrag delete story.qrag --document chapter-2.txt
  qrag delete story.qrag --id story.txt:17 story.txt:18
  qrag delete story.qrag --purge
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "delete", run, "take chunks or whole documents out of an index", _EXAMPLES)
    parser.add_argument("index", type=Path, metavar="INDEX", help="a folder written by qrag index")
    parser.add_argument(
        "--id", nargs="+", action="extend", default=[], metavar="ID", help="of chunks (qrag show --chunks)"
    )
    parser.add_argument("--document", nargs="+", action="extend", default=[], metavar="DOCUMENT", help="of all chunks")
    parser.add_argument(
        "--purge", action="store_true", help="also remove deleted texts from the disk, by writing the index anew"
    )


def run(options: argparse.Namespace) -> int:
    """Carry out the command: all is deleted, or nothing if a name is not known; loads no model."""
    if not (options.id or options.document or options.purge):
        options.parser.error("name what to delete: --id or --document (or --purge what was deleted before)")
    from qrag_retriever.index import ChunkIndex

    index = ChunkIndex.load(options.index)
    gone = index.delete(options.id, documents=options.document)
    if options.purge:
        index.save(options.index)
    tell(f"{options.index}: {count_of(len(gone), 'chunk')} deleted, {count_of(len(index), 'chunk')} left\n")
    return 0

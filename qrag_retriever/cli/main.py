"""qrag: index files, ask them questions, look after indexes, and measure a model on your own questions."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from qrag_retriever import __version__
from qrag_retriever._terminal import accept_any_encoding, exit_code_of
from qrag_retriever.cli import ask, completion, delete, evaluate, index, show
from qrag_retriever.cli.options import refuse_options

_EXAMPLES = """examples:
  qrag index story.txt -o story.qrag --chunk-tokens 16    # about a sentence to a chunk
  qrag ask story.qrag "Where was the football before the kitchen?"
  qrag show story.qrag
  qrag eval --data my.jsonl
  qrag COMMAND --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 something is wrong, 2 usage, 130 Ctrl-C."""
    options, unknown = make_parser().parse_known_args(arguments)
    if unknown:
        refuse_options(options.parser, unknown)
    accept_any_encoding()
    _set_up_messages()
    return exit_code_of("qrag", lambda: options.run(options))


def _set_up_messages() -> None:
    """Let warnings through, and nothing below them, also of packages that set the level of their own loggers."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s", handlers=[handler])
    if not sys.stderr.isatty():
        # Bars of transformers and the hub, which are drawn into files too.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="qrag",
        description="Multi-step retrieval over your own files, without language-model calls.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qrag-retriever {__version__}")
    completion.add_option(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (index, ask, show, delete, evaluate):
        command.add_parser(commands)
    return parser

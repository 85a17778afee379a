"""What the commands' options have in common."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add the parser of a command.

    Args:
        commands: What ``add_subparsers`` returned.
        name: Of the command.
        run: Carries it out; returns the exit code. ``options.parser`` is the parser, for what is wrong with the usage.
        summary: A line for the list of commands.
        examples: Lines that can be typed.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def refuse_options(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    """End with the usage of the command that was given what it does not know, and the nearest option."""
    known = [name for action in parser._actions for name in action.option_strings]
    hint = difflib.get_close_matches(unknown[0].replace("_", "-"), known, n=1)
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{f'; did you mean {hint[0]}?' if hint else ''}")


def add_model_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--model`` and ``--device``; ``default`` says what is taken if no model is named."""
    parser.add_argument("--model", metavar="M", help=f"model folder or hub id (default: {default})")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (default: the best there is)")


def at_least_one(text: str) -> int:
    """Read a count from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return number


# What argparse calls a value that cannot be converted.
at_least_one.__name__ = "count"

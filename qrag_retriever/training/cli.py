"""qrag-train: train a retriever from a recipe."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from qrag_retriever.errors import CheckpointError, DataError, DivergedError, ModelFolderError, RecipeError, RewardError

_EXAMPLES = """examples:
  qrag-train training/babilong-qa2.toml --data DATA
  qrag-train my.toml --set pqn.num_updates=500 --set run.output=runs/longer
  qrag-train my.toml --dry-run
  qrag-train my.toml --resume
  torchrun --nproc-per-node 4 -m qrag_retriever.training.cli my.toml
"""
# What a shell expects of a process that a signal has ended.
_SIGNAL_EXIT = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 something is wrong, 2 usage, 128 + signal stopped."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of another encoding is no reason to fail at the last line.
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    from qrag_retriever.training.recipe import read_recipe

    try:
        recipe = read_recipe(options.recipe, options.set)
        from qrag_retriever.training.trainer import Interrupted, Trainer

        trainer = Trainer(recipe, options.data, Path(options.recipe).parent)
        if options.dry_run:
            from qrag_retriever.training.dry_run import describe

            description = describe(trainer)
            if trainer.is_first_process:
                _tell(description)
            trainer.leave()
            return 0
        try:
            trainer.fit(resume=options.resume)
        except Interrupted as stopped:
            if trainer.is_first_process:
                sys.stderr.write(f"{stopped}\n")
            trainer.leave()
            return _SIGNAL_EXIT + stopped.signal_number
        if trainer.is_first_process:
            _tell(trainer.closing_words())
        trainer.leave()
    except (
        CheckpointError, DataError, DivergedError, ModelFolderError, RecipeError, RewardError, OSError, ImportError,
        ValueError,
    ) as error:  # fmt: skip
        sys.stderr.write(f"qrag-train: {error}\n")
        return 1
    except KeyboardInterrupt:
        return _SIGNAL_EXIT + signal.SIGINT
    return 0


def _tell(text: str) -> None:
    """Write to the standard output, unless whoever read it has gone."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would be tried again, and complained about, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qrag-train",
        description="Train a multi-step retriever by reinforcement learning in embedding space.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a TOML file; every key is described in qrag_retriever.training.recipe")
    parser.add_argument("--data", metavar="DIR", help="folder of the public data sets that the recipe names")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a setting, for example pqn.alpha=0.05; may be given many times",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in run.output")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, on what, how long; stop")
    parser.add_argument("--verbose", action="store_true", help="say more")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

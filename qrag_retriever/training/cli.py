"""qrag-train: train a retriever from a recipe."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from qrag_retriever._terminal import SIGNAL_EXIT, accept_any_encoding, exit_code_of, tell

_EXAMPLES = """examples:
  qrag-train training/babilong-qa2.toml --data DATA
  qrag-train my.toml --set pqn.num_updates=500 --set run.output=runs/longer
  qrag-train my.toml --dry-run
  qrag-train my.toml --resume
  torchrun --nproc-per-node 4 -m qrag_retriever.training.cli my.toml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 something is wrong, 2 usage, 128 + signal stopped."""
    options = _parser().parse_args(arguments)
    accept_any_encoding()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    return exit_code_of("qrag-train", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from qrag_retriever.training.recipe import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    from qrag_retriever.training.trainer import Interrupted, Trainer

    trainer = Trainer(recipe, options.data, Path(options.recipe).parent)
    code = 0
    if options.dry_run:
        from qrag_retriever.training.dry_run import describe

        description = describe(trainer, options.resume)
        if trainer.is_first_process:
            tell(description)
    else:
        try:
            trainer.fit(resume=options.resume)
            if trainer.is_first_process:
                tell(trainer.closing_words())
        except Interrupted as stopped:
            if trainer.is_first_process:
                sys.stderr.write(f"{stopped}\n")
            code = SIGNAL_EXIT + stopped.signal_number
    trainer.leave()
    return code


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
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in run.output; begin if there is none"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, on what, how long; stop")
    parser.add_argument("--verbose", action="store_true", help="say more")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

"""qrag eval: how a model does on your own questions, against what needs no training, and what training would bring."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from qrag_retriever._extras import require_extra
from qrag_retriever._files import check_can_write
from qrag_retriever._terminal import tell
from qrag_retriever.cli.options import add_command, add_model_options, at_least_one
from qrag_retriever.config import Mode
from qrag_retriever.errors import DataError

if TYPE_CHECKING:
    from qrag_retriever.cli.learning_curve import Point
    from qrag_retriever.model import QRAGModel
    from qrag_retriever.training.data import JsonLines, Sample

_EXAMPLES = """  qrag eval --data my.jsonl --mode corpus
  qrag eval --data my.jsonl --model runs/my/model      # on the tenth that qrag-train has kept for validation
  qrag eval --data my.jsonl --mode corpus --curve --budget-minutes 20
"""
# The last is what qrag-train starts from, untrained; as such it has no positions, whatever the mode.
_BASELINES = ("bm25", "dense-minilm", "multi-step-minilm")
# What qrag-train keeps of a file for validation, by the same cut.
_HELD_OUT_OF_TRAINED = 0.1
_HELD_OUT_OF_CURVE = 0.3
# Two picks more than the evidence has, as in training.
_SPARE_PICKS = 2


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "eval", run, "measure a model on your own questions, and tell whether training pays", _EXAMPLES
    )
    add = parser.add_argument
    add(
        "--data", type=Path, required=True, metavar="FILE",
        help="questions with their evidence, one in a line, as for qrag-train",
    )  # fmt: skip
    add(
        "--mode", choices=get_args(Mode), default="document",
        help="document: chunks are of one text, whose order tells (default); corpus: loose passages",
    )  # fmt: skip
    add("--k", type=at_least_one, metavar="K", help="most picks (default: two more than a question has evidence)")
    add(
        "--held-out", type=_share, metavar="SHARE",
        help="ask this share of the questions, chosen so that no question and no whole document or list of chunks is "
        "on both sides; 1: all (default: 0.1 with "
        "--model, which is what qrag-train does not train on; 0.3 with --curve; else 1)",
    )  # fmt: skip
    add("--samples", type=at_least_one, metavar="N", help="ask at most so many of them, drawn by chance")
    add("--curve", action="store_true", help="also train on 10%%, 30%% and 100%% of the others, briefly")
    add("--budget-minutes", type=_minutes, default=10.0, metavar="M", help="of --curve, about (default: 10)")
    add("--json", type=Path, metavar="FILE", help="also write all figures here")
    add_model_options(parser, "the one of the package")


def run(options: argparse.Namespace) -> int:
    """Carry out the command."""
    share = options.held_out or (_HELD_OUT_OF_TRAINED if options.model else _HELD_OUT_OF_CURVE if options.curve else 1)
    if options.curve and share == 1:
        options.parser.error("--curve trains on what is not held out, and --held-out 1 leaves nothing")
    require_extra("bm25s", "bench")
    if options.json is not None:
        check_can_write(options.json)
    from qrag_retriever.benchmarks.suite.methods import Baselines, Method, MultiStep, model_label
    from qrag_retriever.cli import page
    from qrag_retriever.cli.comparison import ask_all
    from qrag_retriever.default_model import MINILM
    from qrag_retriever.model import QRAGModel

    model = QRAGModel.from_pretrained(options.model, device=options.device)
    source = _open(options, model)
    asked, training = _parts(source, share, options.samples)
    if options.curve:
        from qrag_retriever.cli.learning_curve import check_enough, learning_curve

        check_enough(training)
    step_limit = options.k or max(len(sample.supporting or ()) for sample in asked) + _SPARE_PICKS
    label = model_label(options.model)
    baselines = Baselines(model, label, None, options.device)
    methods: list[Method] = [MultiStep("qrag", model, label), *(baselines.make(name) for name in _BASELINES)]
    tell(page.opening(options.data, len(source), asked, step_limit))
    if options.model and options.held_out is None:
        tell(page.SEEN_BY_TRAINING)
    answers = [ask_all(method, asked, step_limit) for method in methods]
    tell(page.comparison(answers))
    points: list[Point] = []
    if options.curve:
        # As qrag-train: without a model that is named, training starts from a plain encoder, the last baseline's.
        start, before = (model, answers[0]) if options.model else (None, answers[-1])
        if start is None and options.mode == "document":
            pair = QRAGModel.from_encoder(MINILM, device=options.device)
            before = ask_all(MultiStep("untrained", pair, MINILM), asked, step_limit)
        points += learning_curve(start, training, asked, step_limit, options.budget_minutes, options.device)
        tell(page.curve(before, answers, points))
    if options.json:
        page.write_json(options.json, options.data, answers, points)
    return 0


def _open(options: argparse.Namespace, model: QRAGModel) -> JsonLines:
    from qrag_retriever.training.data import DEFAULT_CHUNK_TOKENS, JsonLines

    encoder = model.action_encoder
    tokens = min(DEFAULT_CHUNK_TOKENS, encoder.content_limit)
    return JsonLines(options.data, mode=options.mode, chunk_tokens=tokens, count_tokens=encoder.token_ids)


def _parts(source: JsonLines, share: float, most: int | None) -> tuple[list[Sample], list[Sample]]:
    """Return the questions to ask and those that may be trained on; only those with evidence.

    Raises:
        DataError: If there is none to ask.
    """
    import numpy as np

    from qrag_retriever.training.sampling import held_out

    questions, documents = source.hashes()
    chosen = np.ones(len(source), bool) if share == 1 else held_out(questions, documents, share)
    random = np.random.default_rng(0)
    asked, training = (
        [sample for number in np.flatnonzero(part).tolist() if (sample := source.sample(number, random)).supporting]
        for part in (chosen, ~chosen)
    )
    if not asked:
        raise DataError(
            f"{source.path}: no question to ask: of {len(source)}, {int(chosen.sum())} are held out, none of them with "
            "'supporting'; annotate the evidence, or ask all with --held-out 1"
        )
    if most is not None and most < len(asked):
        asked = [asked[i] for i in sorted(random.permutation(len(asked))[:most].tolist())]
    return asked, training


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and at most 1, got {text}")
    return share


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
    return minutes


_share.__name__, _minutes.__name__ = "share", "number of minutes"

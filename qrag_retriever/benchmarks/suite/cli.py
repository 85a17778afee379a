"""qrag-bench: measure a model and what a user would pick instead, on the same chunks of the same questions."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from qrag_retriever._extras import require_extra
from qrag_retriever._files import check_can_write, write_whole_file
from qrag_retriever.benchmarks.suite.figures import Outcomes, difference, num_picks, row_of, scores_of
from qrag_retriever.benchmarks.suite.methods import Baselines, Found, Method, MultiStep, model_label, names_of
from qrag_retriever.benchmarks.suite.mistakes import mistake_of, write_mistakes
from qrag_retriever.benchmarks.suite.questions import BENCHMARKS, NATIVE, QuestionSet, open_questions
from qrag_retriever.benchmarks.suite.reading import Reader
from qrag_retriever.benchmarks.suite.report import (
    PLOT_SUFFIXES,
    Row,
    differences_table,
    growth,
    growth_table,
    plot,
    recall_table,
    results_table,
    versions,
)
from qrag_retriever.devices import peak_memory_mb
from qrag_retriever.encoders import ActionEncoder
from qrag_retriever.errors import DataError, ModelFolderError, RewardError
from qrag_retriever.model import QRAGModel
from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards.asking import make_llm

_EXAMPLES = """examples:
  qrag-bench babilong-qa2 babilong-qa3 --data DATA --lengths 4k,128k --baseline all
  qrag-bench hotpotqa musique 2wiki --data DATA --model runs/mine/model --json figures.json
  qrag-bench babilong --data DATA --lengths 4k --samples 50 --plot recall.png
  qrag-bench hotpotqa --data DATA --baseline llm-agent --llm my_llms:make --reader my_llms:make
"""
_STAND_IN = "stand-in:"
OURS = "qrag"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 something is wrong, 2 usage."""
    options = _parser().parse_args(arguments)
    rows: list[Row] = []
    differences: list[Row] = []
    code = 0
    try:
        with _each_warning_once():
            run(options, rows, differences)
    except (DataError, ModelFolderError, RewardError, OSError, ImportError, TypeError, ValueError) as error:
        sys.stderr.write(f"qrag-bench: {error}\n")
        code = 1
    except KeyboardInterrupt:
        code = 130
    # What was measured before something went wrong is not thrown away.
    if rows:
        sys.stdout.write(f"{results_table(rows)}\n")
        if len({row["method"] for row in rows}) > 1:
            sys.stdout.write(f"\n{recall_table(rows)}\n")
    if differences:
        sys.stdout.write(f"\n{differences_table(differences)}\n")
    if fitted := growth(rows):
        sys.stdout.write(f"\n{growth_table(fitted)}\n")
    return code


def run(options: argparse.Namespace, rows: list[Row], differences: list[Row]) -> None:
    """Measure everything that was asked for; files are written anew after every set of questions.

    Args:
        options: Of the command line.
        rows: Figures are added here.
        differences: Paired differences between our method and the others are added here.

    Raises:
        ValueError: If a name is not known, or nothing has the lengths asked for.
        DataError: If data is missing or wrong.
        ModelFolderError: If the model is.
        ImportError: If a package is missing.
    """
    wanted = _wanted(options)
    _check_outputs(options)
    llm = _language_model(options.llm)
    reader = Reader(_language_model(options.reader)) if options.reader else None
    model = QRAGModel.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    label = model_label(options.model)
    baselines = Baselines(model, label, llm, options.device)
    methods: list[Method] = [MultiStep(OURS, model, label, options.beam_width)]
    methods += [baselines.make(name) for name in names_of(options.baseline)]
    mistakes: list[Row] = []
    for name, length in wanted:
        questions = open_questions(name, length, options.data, options.samples, options.seed)
        found, compared, stopped = measure(questions, methods, reader, mistakes)
        rows += found
        differences += compared
        if options.json:
            about = {
                "model": str(options.model or label), "fingerprint": model.fingerprint(),
                "beam_width": options.beam_width, "device": str(model.device), "dtype": options.dtype or "float32",
                "llm": options.llm, "reader": options.reader,
            }  # fmt: skip
            content = {
                "rows": rows, "differences": differences, "growth": growth(rows), "qrag": about, "versions": versions(),
            }  # fmt: skip
            write_whole_file(Path(options.json), json.dumps(content, indent=2) + "\n")
        if options.plot:
            plot(rows, Path(options.plot))
        if options.mistakes:
            write_mistakes(mistakes, Path(options.mistakes))
        if stopped is not None:
            raise stopped


def measure(
    questions: QuestionSet,
    methods: Sequence[Method],
    reader: Reader | None = None,
    mistakes: list[Row] | None = None,
) -> tuple[list[Row], list[Row], BaseException | None]:
    """Measure methods on one set of questions; each question is made once and put to all of them.

    Args:
        questions: The questions.
        methods: Ours first.
        reader: Answers from the picks, if wanted.
        mistakes: What ours did not find is added here, if wanted.

    Returns:
        The rows, the paired differences between the first method and every other, and what has stopped it, if anything
        did: a language model that fails, or Ctrl-C. Then the figures are of the questions before.
    """
    outcomes = [Outcomes() for _ in methods]
    embedded = [method.embed_seconds for method in methods]
    asked: list[tuple[int, bool]] = []
    about = {"benchmark": questions.benchmark, "length": questions.length}
    shown = tqdm(questions, desc=f"{questions.benchmark} {questions.length}", leave=False, disable=None)
    stopped: BaseException | None = None
    try:
        for sample in shown:
            answers = [_answered(method, sample, questions.step_limit, reader) for method in methods]
            for (found, scores), outcome in zip(answers, outcomes, strict=True):
                outcome.add(sample, found, scores)
            mistake = None if mistakes is None else mistake_of(sample, answers[0][0], questions.step_limit)
            if mistakes is not None and mistake is not None:
                mistakes.append({**about, **mistake})
            asked.append((len(sample.chunks), questions.is_longer(sample)))
    except (RewardError, KeyboardInterrupt) as error:
        stopped = error
    if not asked:
        return [], [], stopped
    rows = [
        {
            **about,
            "method": method.name,
            "model": method.model,
            "samples": len(asked),
            "seed": questions.seed,
            "step_limit": questions.step_limit,
            "chunks": sum(count for count, _ in asked) / len(asked),
            "longer_documents": sum(is_longer for _, is_longer in asked),
            **row_of(outcome),
            # Of texts that no earlier question of the run had.
            "embed_seconds": method.embed_seconds - before,
            # Of the whole process so far, all methods together.
            "process_peak_mb": peak_memory_mb(),
        }
        for method, outcome, before in zip(methods, outcomes, embedded, strict=True)
    ]
    compared = [
        {**about, "minus": method.name, "score": score, **difference(outcomes[0], outcome, score)}
        for method, outcome in zip(methods[1:], outcomes[1:], strict=True)
        for score in ("fact_recall", "exact")
    ]
    return rows, compared, stopped


def _answered(method: Method, sample: Sample, step_limit: int, reader: Reader | None) -> tuple[Found, dict[str, float]]:
    """Put a question to a method; also return the scores."""
    found = method.find(sample, num_picks(sample, step_limit))
    min_q = method.min_q(sample) if isinstance(method, MultiStep) and method.name == OURS else None
    scores = scores_of(sample, found, step_limit, min_q)
    if reader is not None:
        scores.update(reader.scores(sample, found.chunk_ids[:step_limit]))
    return found, scores


@contextlib.contextmanager
def _each_warning_once() -> Iterator[None]:
    """Let an encoder say once that chunks are longer than it reads, not for every question."""
    shown: set[object] = set()

    def is_new(record: logging.LogRecord) -> bool:
        # Its last argument is the encoder's limit; the others are counts of one question's chunks.
        key = (record.msg, record.args[-1] if isinstance(record.args, tuple) and record.args else None)
        if key in shown:
            return False
        shown.add(key)
        return True

    logger = logging.getLogger(ActionEncoder.__module__)
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def _wanted(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the pairs of benchmark and length that are asked for."""
    names: list[str] = []
    for name in options.benchmark:
        family = [known for known in BENCHMARKS if known.startswith(f"{name}-") and name not in BENCHMARKS]
        names += family or [name]
    lengths = options.lengths.split(",")
    known_lengths = list(dict.fromkeys(length for benchmark in BENCHMARKS.values() for length in benchmark.lengths))
    if unknown := [length for length in lengths if length not in known_lengths]:
        raise ValueError(f"there is no length {unknown[0]!r}; there are {', '.join(known_lengths)}")
    wanted = []
    for name in dict.fromkeys(names):
        if name not in BENCHMARKS:
            raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        own = BENCHMARKS[name].lengths
        chosen = [(name, length) for length in own if own == (NATIVE,) or length in lengths]
        if not chosen:
            sys.stderr.write(f"qrag-bench: {name} is left out: it has {', '.join(own)}\n")
        wanted += chosen
    if not wanted:
        raise ValueError(f"none of {', '.join(names)} has a length of {options.lengths}")
    return wanted


def _language_model(name: str | None) -> Any:
    """Return the language model that an option names, None for None.

    Raises:
        ValueError: If it cannot be made.
    """
    if name is None:
        return None
    if name.startswith(_STAND_IN):
        from qrag_retriever.benchmarks.suite.agent import StandInLLM

        try:
            seconds = float(name.removeprefix(_STAND_IN))
        except ValueError:
            raise ValueError(f"expected stand-in:SECONDS, as in stand-in:0.5; got {name!r}") from None
        return StandInLLM(seconds)
    return make_llm(name)


def _check_outputs(options: argparse.Namespace) -> None:
    """Find out before measuring whether what is measured can be written."""
    for name in filter(None, (options.json, options.plot, options.mistakes)):
        check_can_write(Path(name))
    if options.plot:
        require_extra("matplotlib", "bench")
        if Path(options.plot).suffix not in PLOT_SUFFIXES:
            raise ValueError(f"a plot ends in {', '.join(PLOT_SUFFIXES)}, got {options.plot}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qrag-bench",
        description=f"{__doc__} Benchmarks: {', '.join(BENCHMARKS)}.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("benchmark", nargs="+", metavar="NAME", help="a benchmark, or a family of them (babilong, niah, ruler, stress)")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of the public data sets")
    add("--model", metavar="M", help="model folder or hub id; the default model if not given")
    add("--lengths", default="4k", help="of documents, in tokens: 1k,4k,32k,128k,1M,10M (default: 4k)")
    add("--samples", type=int, metavar="N", help="most questions of each; default 500, fewer from 128k on")
    add("--seed", type=int, default=0, metavar="S", help="decides which questions, and where noise is put")
    add(
        "--baseline", nargs="+", default=["none"], metavar="B", choices=[*Baselines.NAMES, "all", "none"],
        help=f"{', '.join(Baselines.NAMES)}; all (but llm-agent); none",
    )  # fmt: skip
    add("--beam-width", type=int, default=1, metavar="W", help="of our search")
    add(
        "--llm",
        metavar="LLM",
        help="for llm-agent: package.module:callable that makes a chat model, or stand-in:SECONDS",
    )
    add("--reader", metavar="LLM", help="answer from the picks with this chat model and score the answers")
    add("--device", help="cpu, cuda, mps")
    add("--dtype", help="float32, bfloat16, float16")
    add("--json", metavar="FILE", help="write all figures here")
    add("--plot", metavar="FILE", help="draw fact recall over length here")
    add("--mistakes", metavar="FILE", help="write the questions whose evidence ours did not find here, as JSON lines")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

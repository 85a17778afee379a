"""The page that qrag eval prints, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qrag_retriever._files import write_whole_file
from qrag_retriever.benchmarks.suite.figures import difference, row_of
from qrag_retriever.benchmarks.suite.report import versions
from qrag_retriever.benchmarks.timing import table
from qrag_retriever.cli.comparison import SCORE, Answers, best_of, enough_picks, recall_by_k, stop_value, won_by
from qrag_retriever.cli.output import BOLD, count_of, one_line, paint
from qrag_retriever.training.data import Sample

if TYPE_CHECKING:
    from qrag_retriever.cli.learning_curve import Point

_SCORES = {"fact_recall": "fact recall", "exact": "exact", "fact_f1": "fact F1"}
_COMPARED = ("fact_recall", "exact")
# Of a permutation test of the paired differences.
_CHANCE = 0.05
_BETTER, _WORSE = "better", "worse"
_MODE_SHOWN = {"document": "chunks in their order (loose passages: --mode corpus)", "corpus": "loose passages"}
# Of the mean of fact recall and exact: no training would bring more.
_ALL_FOUND = 0.99
_MOST_EXAMPLES = 3
_SHOWN_CHARACTERS = 110
SEEN_BY_TRAINING = """\
These questions are those that qrag-train keeps of a file for validation. Of a model that was trained on it they have
chosen the weights and min_q, so figures are a little too good; a recipe with [[validation]] has trained on them.

"""


def opening(path: Path, num_questions: int, asked: Sequence[Sample], step_limit: int) -> str:
    """Say what is asked."""
    chunks = np.mean([len(sample.chunks) for sample in asked])
    facts = np.mean([len(sample.supporting or ()) for sample in asked])
    return (
        f"{paint(str(path), BOLD)}: {count_of(num_questions, 'question')}, {len(asked):,} of them asked; "
        f"{chunks:,.0f} chunks and {facts:.1f} pieces of evidence each, {count_of(step_limit, 'pick')}, "
        f"{_MODE_SHOWN[asked[0].mode]}\n\n"
    )


def comparison(answers: Sequence[Answers]) -> str:
    """Show the figures of all methods, and what follows for the first one."""
    ours, *others = answers
    best = best_of(others)
    header = ["method", *(f"{head} (95%)" for head in _SCORES.values())]
    lines = [table(header, [[one.name, *_cells(one)] for one in answers]), ""]
    lines += [_against(ours, best), "  the best baseline; better or worse goes by the mean of both figures"]
    lines += _examples("won", won_by(ours, best), best)
    lines += _examples("lost", won_by(best, ours), ours)
    return "\n".join([*lines, "", _k_line(ours), _stop_line(ours)]) + "\n"


def curve(before: Answers, answers: Sequence[Answers], points: Sequence[Point]) -> str:
    """Show what training has brought, and say whether it pays.

    Args:
        before: What was found by the model that training starts from.
        answers: Of the model that is measured, and of the baselines.
        points: Of the learning curve, the last one of all questions.
    """
    rows = [[f"0 ({before.name})", "", "", *_cells(before)]]
    for point in points:
        about = [f"{point.num_questions} ({point.share:.0%})", f"{point.num_updates}", f"{point.seconds / 60:.1f}"]
        rows.append([*about, *_cells(point.answers)])
    header = ["trained on", "updates", "minutes", *(f"{head} (95%)" for head in _SCORES.values())]
    # The model that is measured needs no training either.
    rivals = {one.name: one for one in (answers[0], before, best_of(answers[1:]))}
    trained = points[-1].answers
    words = [*(_against(trained, rival) for rival in rivals.values()), _verdict(list(rivals.values()), points)]
    return "\n".join(["", table(header, rows), "", *words]) + "\n"


def write_json(path: Path, data: Path, answers: Sequence[Answers], points: Sequence[Point]) -> None:
    """Write all figures, whole or not at all."""
    ours, *others = answers
    best, recalls, stop = best_of(others), recall_by_k(ours), stop_value(ours)
    content: dict[str, Any] = {
        "data": str(data),
        "step_limit": ours.step_limit,
        "rows": [_row(one) for one in answers],
        "best_baseline": best.name,
        "differences": {score: difference(ours.outcomes, best.outcomes, score) for score in _SCORES},
        "won": [ours.samples[number].id for number in won_by(ours, best)],
        "lost": [ours.samples[number].id for number in won_by(best, ours)],
        "recall_by_k": recalls,
        "k": enough_picks(recalls),
        "min_q": None if stop is None else asdict(stop),
        "curve": [
            {
                "share": point.share, "questions": point.num_questions, "updates": point.num_updates,
                "seconds": point.seconds, **_row(point.answers),
            }
            for point in points
        ],
        "versions": versions(),
    }  # fmt: skip
    write_whole_file(path, json.dumps(content, indent=2) + "\n")


def _row(answers: Answers) -> dict[str, Any]:
    own = {"method": answers.name, "model": answers.model, "samples": len(answers.samples)}
    return {**own, **row_of(answers.outcomes)}


def _cells(answers: Answers) -> list[str]:
    row = row_of(answers.outcomes)
    return [f"{row[name]:.3f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})" for name in _SCORES]


def _against(ours: Answers, other: Answers) -> str:
    differences = []
    for score in _COMPARED:
        found = difference(ours.outcomes, other.outcomes, score)
        differences.append(f"{_SCORES[score]} {found['difference']:+.3f} ({found['low']:+.2f} to {found['high']:+.2f})")
    return f"{ours.name}: {_judged(ours, other)} than {other.name}: {', '.join(differences)}"


def _judged(ours: Answers, other: Answers) -> str:
    """Tell which is better, unless the differences of their scores may well be chance."""
    found = difference(ours.outcomes, other.outcomes, SCORE)
    if found["p"] >= _CHANCE:
        return "neither better nor worse by these questions"
    return _BETTER if found["difference"] > 0 else _WORSE


def _examples(word: str, numbers: Sequence[int], loser: Answers) -> list[str]:
    """Show some questions with the evidence that the loser has missed."""
    lines = [f"  {word} {len(numbers)} of {len(loser.samples)}"]
    for number in numbers[:_MOST_EXAMPLES]:
        lines.append(f"    {one_line(loser.samples[number].question, _SHOWN_CHARACTERS)}")
        missed = one_line(" / ".join(loser.missed(number)), _SHOWN_CHARACTERS)
        lines.append(f"      not found by {loser.name}: {missed}")
    return lines


def _k_line(ours: Answers) -> str:
    recalls = recall_by_k(ours)
    shown = ", ".join(f"{k}: {recall:.3f}" for k, recall in enumerate(recalls, 1))
    return f"suggested k: {enough_picks(recalls)} (fact recall by k: {shown})"


def _stop_line(ours: Answers) -> str:
    stop = stop_value(ours)
    if stop is None:
        return "suggested min_q: none; the questions are too few to calibrate it on a half and check it on the other"
    return (
        f"suggested min_q: {stop.min_q:.3f} (calibrated on {stop.calibrated_on} questions; on the other "
        f"{stop.checked_on}, {stop.picks:.1f} picks find {stop.fact_recall:.3f} and {ours.step_limit} picks "
        f"{stop.fact_recall_without:.3f})"
    )


def _verdict(rivals: Sequence[Answers], points: Sequence[Point]) -> str:
    """Say whether training pays: whether it beats what it starts from and what needs no training.

    Args:
        rivals: What needs no training, the model that is measured first.
        points: Of the learning curve.
    """
    trained = points[-1].answers
    if rivals[0].mean(SCORE) >= _ALL_FOUND:
        return paint(f"Training is not needed: {rivals[0].name} finds all of it as it is.", BOLD)
    verdicts = {_judged(trained, rival) for rival in rivals}
    if verdicts == {_BETTER}:
        verdict = "Training on your questions pays."
    elif _WORSE in verdicts:
        verdict = "Training on your questions does not pay, with so short a recipe."
    else:
        verdict = "Whether training pays cannot be told by so few questions, or with so short a recipe."
    if _judged(trained, points[-2].answers) == _BETTER and trained.mean(SCORE) < 1:
        verdict += " More questions are likely to bring more: the last step of the curve still rises."
    return paint(verdict, BOLD)

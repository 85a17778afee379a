"""qrag eval: figures by hand, what is held out, the page, and the learning curve."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, default_model
from qrag_retriever.benchmarks.suite.methods import Found
from qrag_retriever.cli import learning_curve as curve_module
from qrag_retriever.cli import page
from qrag_retriever.cli.comparison import (
    Answers,
    ask_all,
    best_of,
    enough_picks,
    recall_by_k,
    stop_value,
    won_by,
)
from qrag_retriever.cli.evaluate import _parts
from qrag_retriever.cli.learning_curve import Point, learning_curve
from qrag_retriever.cli.main import main
from qrag_retriever.training.data import JsonLines, Sample
from qrag_retriever.training.opening import open_tasks
from qrag_retriever.training.recipe import parse_recipe
from qrag_retriever.training.trainer import Interrupted
from tests.tiny_pair import story
from tests.training_runs import write_questions

TOWN = Path(__file__).parents[1] / "examples" / "town.jsonl"
pytestmark = pytest.mark.usefixtures("without_bars")


class Planted:
    """A method that finds what it is told to."""

    model = ""
    embed_seconds = 0.0

    def __init__(self, name: str, found: Sequence[Found]) -> None:
        self.name, self._found = name, iter(found)

    def find(self, sample: Sample, k: int) -> Found:
        return next(self._found)


def answers_of(*picks: Sequence[int], name: str = "qrag", q_values: Sequence[Sequence[float]] | None = None) -> Answers:
    """Answers to questions whose evidence is the chunks 0 and 3, with three picks each."""
    samples = [story(number) for number in range(len(picks))]
    values: Any = [None] * len(picks) if q_values is None else q_values
    found = [Found(tuple(one), 0.0, None if q is None else tuple(q)) for one, q in zip(picks, values, strict=True)]
    return ask_all(Planted(name, found), samples, 3)


RIGHT, LATE, HALF, WRONG = (0, 3, 1), (0, 1, 3), (3, 1, 2), (1, 2, 4)


# Figures


def test_recall_by_k_and_the_picks_that_are_enough() -> None:
    assert recall_by_k(answers_of(RIGHT, RIGHT, LATE, HALF)) == [0.0, 0.5, 0.75]
    assert enough_picks([0.0, 0.5, 0.75]) == 3
    assert enough_picks([0.0, 0.74, 0.75]) == 2, "0.01 may be lost"
    assert enough_picks([0.0, 0.739, 0.75]) == 3
    assert enough_picks([0.5, 0.5, 0.5]) == 1


def test_won_lost_missed_and_the_best() -> None:
    ours, other = answers_of(RIGHT, HALF, LATE, WRONG), answers_of(WRONG, RIGHT, LATE, HALF, name="other")
    assert (won_by(ours, other), won_by(other, ours)) == ([0], [1])
    assert ours.missed(1) == [ours.samples[1].chunks[0]]
    assert ours.missed(0) == []
    better = answers_of(RIGHT, HALF, LATE, HALF)
    assert best_of([other, ours, better]) is better, "the same recall and exact, and a better F1"
    assert best_of([other, answers_of(RIGHT, RIGHT, RIGHT, RIGHT, name="third")]).name == "third"


def test_a_stop_value_is_calibrated_on_one_half_and_checked_on_the_other() -> None:
    # All that is evidence is worth 1, the rest little.
    answers = answers_of(*[RIGHT] * 12, q_values=[(1.0, 0.9, 0.1)] * 12)
    found = stop_value(answers)
    assert found is not None
    assert 0.1 <= found.min_q < 0.9
    assert (found.calibrated_on, found.checked_on, found.picks) == (6, 6, 2.0)
    assert (found.fact_recall, found.fact_recall_without) == (1.0, 1.0)


def test_figures_of_the_stop_value_are_of_questions_that_it_was_not_calibrated_on() -> None:
    order = np.random.default_rng(0).permutation(12).tolist()
    first = set(order[::2])
    # In one half the third pick is worthless, in the other it is evidence of little value.
    picks = [RIGHT if i in first else LATE for i in range(12)]
    found = stop_value(answers_of(*picks, q_values=[(1.0, 0.9, 0.1)] * 12))
    assert found is not None
    assert (found.picks, found.fact_recall, found.fact_recall_without) == (2.0, 0.0, 1.0)


def test_too_few_questions_or_no_q_values_give_no_stop_value() -> None:
    assert stop_value(answers_of(*[RIGHT] * 9, q_values=[(1.0, 0.9, 0.1)] * 9)) is None
    assert stop_value(answers_of(*[RIGHT] * 20)) is None


# The page


def test_the_page_tells_who_is_better_and_shows_what_was_won_and_lost() -> None:
    ours = answers_of(*[RIGHT] * 18, HALF, WRONG, q_values=[(1.0, 0.9, 0.1)] * 20)
    other = answers_of(*[WRONG] * 16, *[RIGHT] * 4, name="bm25")
    said = page.comparison([ours, answers_of(*[WRONG] * 20, name="random"), other])
    assert re.search(r"^\| qrag +\| 0\.900 \(0\.\d\d to 0\.\d\d\) +\| 0\.900", said, re.MULTILINE)
    assert "qrag: better than bm25: fact recall +0.700 (+0." in said
    assert ", exact +0.700 (+0." in said
    assert "won 16 of 20" in said
    assert "lost 2 of 20" in said
    assert said.count("not found by bm25: Mary took the football. / Mary went to the kitchen.") == 3
    assert said.count("not found by qrag: ") == 2
    assert "suggested k: 2 (fact recall by k: 1: 0.000, 2: 0.900, 3: 0.900)" in said
    assert re.search(r"suggested min_q: 0\.\d{3} \(calibrated on 10 questions; on the other 10, 2\.0 picks find", said)


@pytest.mark.parametrize(
    ("trained", "start", "baseline", "words"),
    [
        ([*[RIGHT] * 19, HALF], [WRONG] * 20, [WRONG] * 20, "Training on your questions pays. More questions"),
        ([RIGHT] * 20, [LATE] * 20, [LATE] * 20, "Training on your questions pays.\n"),
        ([WRONG] * 20, [WRONG] * 20, [RIGHT] * 20, "Training on your questions does not pay"),
        ([RIGHT] * 20, [WRONG] * 20, [RIGHT] * 20, "cannot be told by so few questions"),
    ],
)
def test_training_pays_if_it_beats_its_start_and_the_best_baseline(
    trained: Any, start: Any, baseline: Any, words: str
) -> None:
    before, best = answers_of(*start), answers_of(*baseline, name="bm25")
    points = [
        Point(share, int(10 * share), 20, 60.0, answers_of(*picks, name=f"trained on {share:.0%}"))
        for share, picks in ((0.1, start), (0.3, start), (1.0, trained))
    ]
    said = page.curve(before, [before, best], points)
    assert words in said
    assert re.search(r"^\| 0 \(qrag\) ", said, re.MULTILINE)
    assert re.search(r"^\| 10 \(100%\) +\| 20 +\| 1\.0 +\|", said, re.MULTILINE)


def test_what_finds_all_by_itself_needs_no_training() -> None:
    ours, start, bm25 = (
        answers_of(*[RIGHT] * 20),
        answers_of(*[WRONG] * 20, name="start"),
        answers_of(*[LATE] * 20, name="bm25"),
    )
    points = [Point(share, 10, 20, 60.0, answers_of(*[RIGHT] * 20, name="trained")) for share in (0.1, 0.3, 1.0)]
    said = page.curve(start, [ours, bm25], points)
    assert said.endswith("Training is not needed: qrag finds all of it as it is.\n")
    assert "trained: neither better nor worse by these questions than qrag" in said


def test_the_page_names_the_mode() -> None:
    asked = [story(0), story(1, mode="corpus")]
    shown = [page.opening(Path("my.jsonl"), 2, [sample], 3) for sample in asked]
    assert "3 picks, chunks in their order (loose passages: --mode corpus)" in shown[0]
    assert "3 picks, loose passages\n" in shown[1]


# What is asked


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "my.jsonl", 30, seed=1)


def test_a_tenth_is_what_the_trainer_does_not_train_on(questions: Path) -> None:
    recipe = parse_recipe({"data": [{"source": str(questions)}]})
    (training,), (validation,) = open_tasks(recipe, None, Path(), {})
    source = JsonLines(questions)
    asked, others = _parts(source, 0.1, None)
    random = np.random.default_rng(0)
    assert asked == [source.sample(int(number), random) for number in validation.numbers]
    assert others == [source.sample(int(number), random) for number in training.numbers]
    assert 0 < len(asked) < len(others)


def test_questions_can_be_fewer_or_all_and_need_evidence(questions: Path) -> None:
    without = write_questions(questions.parent / "no.jsonl", 5, seed=2, supporting=None).read_text()
    questions.write_text(questions.read_text() + without)
    asked, others = _parts(JsonLines(questions), 1, None)
    assert (len(asked), others) == (30, [])
    few, _ = _parts(JsonLines(questions), 1, 7)
    assert len(few) == 7
    assert set(few) < set(asked)


# The command


@pytest.fixture
def tiny_minilm(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Baselines and training take the tiny encoder."""
    monkeypatch.setattr(default_model, "minilm_folder", lambda: tiny_encoder)


@pytest.mark.usefixtures("tiny_minilm")
def test_figures_are_those_of_the_retriever(
    questions: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = questions.parent / "figures.json"
    arguments = ["--data", str(questions), "--model", str(model_folder), "--held-out", "1", "--json", str(out)]
    assert main(["eval", *arguments, "--k", "3"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith(
        f"{questions}: 30 questions, 30 of them asked; 8 chunks and 2.0 pieces of evidence each, 3"
    )
    figures = json.loads(out.read_text())
    assert [row["method"] for row in figures["rows"]] == ["qrag", "bm25", "dense-minilm", "multi-step-minilm"]
    model = QRAGModel.from_pretrained(model_folder)
    complete = []
    for line in map(json.loads, questions.read_text().splitlines()):
        selector = MultiStepSelector(ChunkIndex.from_texts(line["chunks"], model=model), k=3)
        picks = {step.chunk_id for step in selector.select(line["question"]).steps}
        complete.append(set(line["supporting"]) <= picks)
    ours = figures["rows"][0]
    assert ours["fact_recall"] == pytest.approx(np.mean(complete)) == pytest.approx(figures["recall_by_k"][-1])
    assert ours["fact_recall_low"] <= ours["fact_recall"] <= ours["fact_recall_high"]
    best = max(figures["rows"][1:], key=lambda row: row["fact_recall"])
    difference = figures["differences"]["fact_recall"]["difference"]
    assert difference == pytest.approx(ours["fact_recall"] - best["fact_recall"])
    assert len(figures["won"]) - len(figures["lost"]) == pytest.approx(30 * difference)
    assert figures["min_q"]["calibrated_on"] == figures["min_q"]["checked_on"] == 15
    assert figures["curve"] == []


@pytest.mark.usefixtures("tiny_minilm")
def test_the_questions_of_the_example_can_be_asked(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(TOWN), "--mode", "corpus", "--model", str(model_folder), "--held-out", "1"]
    assert main(["eval", *arguments]) == 0
    said = capsys.readouterr().out
    assert "50 questions, 50 of them asked; 18 chunks and 2.0 pieces of evidence each, 4 picks" in said
    assert "(calibrated on 25 questions; on the other 25, " in said


@pytest.mark.usefixtures("tiny_minilm")
def test_the_curve_trains_on_what_is_not_asked(
    questions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[tuple[str, list[str]]] = []
    fingerprints: set[str] = set()
    train = curve_module._trained

    def noted(recipe: Any) -> QRAGModel:
        source = Path(recipe.data[0].source)
        trained_on.append((recipe.model.encoder, [json.loads(line)["id"] for line in source.read_text().splitlines()]))
        trained = train(recipe)
        fingerprints.add(trained.fingerprint())
        return trained

    monkeypatch.setattr(curve_module, "_trained", noted)
    monkeypatch.setattr(curve_module, "_FEWEST_PQN", 2)
    out = questions.parent / "figures.json"
    arguments = ["--data", str(questions), "--curve", "--budget-minutes", "0.001", "--json", str(out)]
    assert main(["eval", *arguments, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    asked, others = _parts(JsonLines(questions), 0.3, None)
    ids = [set(own) for _, own in trained_on]
    assert ids[0] < ids[1] < ids[2] == {sample.id for sample in others}
    assert not ids[2] & {sample.id for sample in asked}
    assert {encoder for encoder, _ in trained_on} == {"all-MiniLM-L6-v2"}
    points = json.loads(out.read_text())["curve"]
    assert [(point["share"], point["questions"]) for point in points] == [
        (0.1, len(ids[0])), (0.3, len(ids[1])), (1.0, len(others)),
    ]  # fmt: skip
    assert {point["samples"] for point in points} == {len(asked)}
    assert re.search(r"^\| 0 \(untrained\) ", said, re.MULTILINE)
    assert re.search(rf"^\| {len(others)} \(100%\) +\| 8 ", said, re.MULTILINE)
    assert "Training on your questions" in said or "Whether training pays" in said
    assert len(fingerprints) == 3, "what is measured has been trained, however little its validation tells"


def test_training_starts_from_the_model_that_is_named(
    questions: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = QRAGModel.from_pretrained(model_folder)
    starts = set()

    def untrained(recipe: Any) -> QRAGModel:
        starts.add(QRAGModel.from_pretrained(recipe.model.encoder).fingerprint())
        return model

    monkeypatch.setattr(curve_module, "_trained", untrained)
    monkeypatch.setattr(curve_module, "_updates_within", lambda seconds, recipe: (7, 0.1))
    asked, others = _parts(JsonLines(questions), 0.3, None)
    points = list(learning_curve(model, others, asked, 3, 1.0))
    assert starts == {model.fingerprint()}
    assert [point.num_updates for point in points] == [28] * 3


def test_the_budget_decides_the_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, recipe: Any) -> None:
            self.stages = ["warm_start", "pqn"]

    monkeypatch.setattr(curve_module, "Trainer", Fake)
    monkeypatch.setattr(curve_module, "update_seconds", lambda trainer, stage: (9.0, 1.0 if stage == "pqn" else 2.0))
    recipe: Any = None
    found = [curve_module._updates_within(seconds, recipe)[0] for seconds in (1, 100, 200, 1e9)]
    # Three updates of 2 s prepare for one of 1 s, and seven tenths of the time are for updates.
    assert found == [5, 10, 20, 150]


def test_too_few_questions_to_train_on_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 questions are left for training, 3 are needed"):
        list(learning_curve(None, [story(0), story(1)], [story(2)], 3, 1.0))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Stopped:
        def __init__(self, recipe: Any) -> None: ...

        def fit(self) -> None:
            raise Interrupted(number, Path("x"))

    monkeypatch.setattr(curve_module, "Trainer", Stopped)
    recipe: Any = None
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as raised:
        curve_module._trained(recipe)
    if number == signal.SIGTERM:
        assert raised.value.args == (128 + signal.SIGTERM,)


@pytest.mark.usefixtures("tiny_minilm")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "none.jsonl"], "none.jsonl is missing"),
        (["--data", "answers.jsonl", "--held-out", "1"], "no question to ask: of 5, 5 are held out, none of them with"),
        (["--data", "one.jsonl"], "no question to ask: of 1, 0 are held out"),
        (["--data", "two.jsonl", "--curve", "--held-out", "0.5"], "1 questions are left for training, 3 are needed"),
        (["--data", "one.jsonl", "--json", "no/such.json"], "there is no folder no to write such.json to"),
        (["--data", "bad.jsonl"], "bad.jsonl, line 2: unknown key 'facts'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "answers.jsonl", 5, seed=1, supporting=None)
    write_questions(tmp_path / "one.jsonl", 1, seed=1)
    write_questions(tmp_path / "two.jsonl", 2, seed=1)
    (tmp_path / "bad.jsonl").write_text((tmp_path / "one.jsonl").read_text() + '{"facts": 1}\n')
    assert main(["eval", *arguments, "--model", str(model_folder)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("qrag: ")
    assert words in line


def test_without_the_extra_it_is_named(
    questions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    assert main(["eval", "--data", str(questions)]) == 1
    assert "bm25s" in capsys.readouterr().err

"""qrag-bench: its figures, its reader, its report, and the command line from data folder to table."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, default_model
from qrag_retriever.benchmarks.suite.cli import main, measure
from qrag_retriever.benchmarks.suite.figures import (
    Outcomes,
    difference,
    interval,
    num_picks,
    p_value,
    paired_interval,
    row_of,
    scores_of,
    share_interval,
)
from qrag_retriever.benchmarks.suite.methods import (
    BM25,
    Found,
    MultiStep,
    Random,
)
from qrag_retriever.benchmarks.suite.questions import QuestionSet, open_questions
from qrag_retriever.benchmarks.suite.reading import Reader
from qrag_retriever.benchmarks.suite.report import (
    brief_table,
    growth,
    growth_table,
    plot,
    recall_table,
    results_table,
    versions,
)
from qrag_retriever.errors import RewardError
from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards.asking import ask_once_more
from tests.conftest import QUESTION, STORY
from tests.test_datasets import put, put_books, wiki_line
from tests.test_suite_methods import Scripted
from tests.test_suite_stress import put_moves
from tests.tiny_pair import public_model, story, tiny_pair
from tests.toy_model import ToyModel

# -- figures -----------------------------------------------------------------------------------------------------------


def test_picks_are_scored_as_by_hand() -> None:
    sample = story(supporting=(1, 4))
    assert num_picks(sample, 3) == 3
    names = "fact_recall", "recall_at_k", "fact_f1", "exact", "hit_at_1"
    for picks, expected in {
        (4, 0, 1): (1, 1, 0.5, 0, 1),
        (4, 1, 0): (1, 1, 1, 1, 1),
        (0, 4, 5): (0, 0.5, 0.5, 0, 0),
        (0, 2, 5): (0, 0, 0, 0, 0),
    }.items():
        assert scores_of(sample, Found(picks, 0.0), 3) == dict(zip(names, expected, strict=True))


def test_more_facts_than_picks_allowed_count_for_f1_and_exact_alone() -> None:
    sample = story(supporting=(0, 1, 2, 3))
    assert num_picks(sample, 2) == 4
    assert scores_of(sample, Found((3, 1, 0, 2), 0.0), 2) == {
        "fact_recall": 0.0, "recall_at_k": 0.5, "fact_f1": 1.0, "exact": 1.0, "hit_at_1": 1.0,
    }  # fmt: skip
    # Those beyond the limit do not count for a search that stops by itself, either.
    assert scores_of(sample, Found((3, 1, 0, 2), 0.0, (4, 3, 2, -1)), 2, min_q=0)["auto_picks"] == 2


def test_the_stop_value_ends_the_picks_before_the_first_that_is_not_above_it() -> None:
    sample, found = story(supporting=(1, 4)), Found((4, 0, 1), 0.0, (0.9, 0.7, 0.8))
    automatic = {min_q: scores_of(sample, found, 3, min_q) for min_q in (1.0, 0.8, 0.7, 0.6)}
    assert [scores["auto_picks"] for scores in automatic.values()] == [0, 1, 1, 3]
    assert [scores["auto_fact_recall"] for scores in automatic.values()] == [0, 0, 0, 1]
    assert [scores["auto_fact_f1"] for scores in automatic.values()] == pytest.approx([0, 2 / 3, 2 / 3, 4 / 5])
    assert "auto_picks" not in scores_of(sample, Found((4, 0, 1), 0.0), 3, 0.5), "a method without Q-values"
    assert "auto_picks" not in scores_of(sample, found, 3), "a model without a stop value"


def questions_of(*samples: Sample, step_limit: int = 4) -> QuestionSet:
    source = SimpleNamespace(sample=lambda number, random: samples[number])
    return QuestionSet("made-up", "-", source, range(len(samples)), step_limit, 0)


@pytest.mark.parametrize(
    "beam_width",
    [1, 3],
)
def test_figures_at_the_stop_value_are_those_of_a_search_that_stops(beam_width: int) -> None:
    samples = [story(number, question=f"Who came {number}?") for number in range(8)]
    index = ChunkIndex.from_texts(STORY, model=ToyModel())
    picks = []
    for min_q in (2.0, 6.0, 9.0, 30.0):
        model = ToyModel()
        model.config = model.config.replaced(min_q={"document": min_q})
        rows, _, _ = measure(questions_of(*samples), [MultiStep("qrag", model, "toy", beam_width)])
        selector = MultiStepSelector(index, k=4, min_q=min_q, beam_width=beam_width)
        kept = [{step.chunk_id for step in selector.select(sample.question).steps} for sample in samples]
        picks.append(np.mean(list(map(len, kept))))
        # A row may do without these figures, but not have others.
        assert rows[0].get("auto_picks") in (None, picks[-1])
        assert rows[0].get("auto_fact_recall") in (None, np.mean([{0, 3} <= ids for ids in kept]))
    assert picks[0] > picks[1] > picks[2] > picks[3] == 0


def test_the_interval_is_near_the_normal_approximation_on_a_large_sample() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=2_000)
    error = values.std() / np.sqrt(len(values))
    low, high = interval(values.tolist())
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
    assert interval([0.5] * 9) == (0.5, 0.5)
    assert interval([0.0, 0.5] * 9) == interval([0.0, 0.5] * 9), "the same at every run"


def test_the_interval_of_a_share_leaves_doubt_where_all_is_right() -> None:
    assert share_interval([1.0] * 50) == pytest.approx((0.9287, 1.0), abs=1e-4)
    assert share_interval([0.0] * 50) == pytest.approx((0.0, 0.0713), abs=1e-4)
    assert share_interval([1.0] * 15 + [0.0] * 5) == pytest.approx((0.5313, 0.8881), abs=1e-4), "by R's binom"
    found = Outcomes()
    for number in range(5):
        found.add(story(number), Found((0,), 0.1), {"fact_recall": 1.0, "auto_picks": 1.0 + number % 2})
    row = row_of(found)
    assert row["fact_recall_low"] < 1.0 < row["auto_picks_high"], "picks are no share"


def test_few_differences_leave_doubt() -> None:
    for wins, is_sure in {1: False, 3: False, 5: False, 6: True, 40: True}.items():
        assert (p_value([1.0] * wins) < 0.05) is is_sure
        low, high = paired_interval([1.0] * wins)
        assert (low > 0 and high <= 1) or not is_sure
    assert p_value([0.0] * 9) == p_value([]) == 1.0
    assert 0 < p_value([1.0] * 400) < 1e-4
    assert p_value([1.0] * 13) == pytest.approx(2 / 2**13, abs=2e-4)
    assert p_value([1.0, 1.0, -0.5]) == 4 / 8
    assert paired_interval([0.0] * 98) == pytest.approx((-0.0196, 0.0196), abs=1e-4)


def test_no_difference_is_found_too_often_where_there_is_none() -> None:
    random = np.random.default_rng(5)
    for count in (5, 8, 20):
        found = [p_value(random.choice([-1.0, 0.0, 0.0, 1.0], count).tolist()) < 0.05 for _ in range(200)]
        assert np.mean(found) <= 0.08


def outcomes(**recall: float) -> Outcomes:
    found = Outcomes()
    for sample_id, value in recall.items():
        found.add(Sample(sample_id, "?", ("a",), (0,)), Found((0,), 0.1, llm_calls=3), {"fact_recall": value})
    return found


def test_differences_are_between_the_same_questions_and_not_the_same_places() -> None:
    ours, other = outcomes(a=1, b=0, c=1, d=1, e=1), outcomes(f=1, d=0, c=1, b=0, a=0)
    found = difference(ours, other, "fact_recall")
    assert (found["samples"], found["difference"]) == (4, 0.5), "a and d are won, b and c are the same"
    assert found["low"] < 0.5 < found["high"]
    shifted = difference(outcomes(a=0.9, b=0.3, c=0.6), outcomes(c=0.5, a=0.8, b=0.2), "fact_recall")
    assert shifted["difference"] == pytest.approx(0.1)
    assert shifted["p"] == 0.25, "of three, all of one sign"


def test_a_row_has_means_intervals_and_times() -> None:
    found = Outcomes()
    for i, seconds in enumerate([0.1, 0.3, 0.2, 9.0]):
        scores = {"fact_recall": float(i < 3), **({"answer_em": 0.5} if i else {})}
        found.add(story(i), Found((0,), seconds, llm_calls=i), scores)
    row = row_of(found)
    assert row["fact_recall"] == 0.75
    assert (row["fact_recall_low"], row["fact_recall_high"]) == share_interval([1, 1, 1, 0])
    assert row["answer_em"] == 0.5, "over the questions that have an answer"
    assert row["seconds_per_query"] == 0.3, "the first one loads things"
    assert row["seconds_p95"] == pytest.approx(0.3 + 0.9 * 8.7)
    assert row["llm_calls"] == 1.5


class Failing:
    """Answers its own number of questions, then fails."""

    model, embed_seconds, llm_calls = "", 0.0, 0

    def __init__(self, name: str, answers: int, error: BaseException) -> None:
        self.name, self._answers, self._error = name, answers, error

    def find(self, sample: Sample, k: int) -> Found:
        if not self._answers:
            raise self._error
        self._answers -= 1
        return Found(tuple(range(k)), 0.1, llm_calls=10)


@pytest.mark.parametrize("error", [RewardError("rate limit"), KeyboardInterrupt()])
def test_what_was_measured_before_a_failure_is_kept(error: BaseException) -> None:
    questions = questions_of(*map(story, range(5)))
    mistakes: list[dict[str, Any]] = []
    methods = [Failing("ours", 5, error), Failing("agent", 3, error), Random()]
    rows, differences, stopped = measure(questions, methods, mistakes=mistakes)
    assert stopped is error
    assert [row["samples"] for row in rows] == [3] * 3
    assert [row["llm_calls"] for row in rows] == [10, 10, 0]
    assert len(mistakes) <= 3
    assert {mistake["id"] for mistake in mistakes} <= {story(number).id for number in range(3)}
    assert [found["samples"] for found in differences] == [3] * 4
    assert measure(questions, [Random(), Failing("agent", 0, error)]) == ([], [], error)


# -- the reader --------------------------------------------------------------------------------------------------------


def test_the_reader_scores_answers_as_squad_does() -> None:
    sample = story(answers=(("the old garden", "Eden"),))
    for answer, expected in {
        "Old Garden.": (1, 1),
        "eden": (1, 1),
        "an old red garden": (0, 0.8),
        "kitchen": (0, 0),
    }.items():
        scores = Reader(Scripted(SimpleNamespace(content=answer))).scores(sample, (0,))
        assert scores == {"answer_em": expected[0], "answer_f1": pytest.approx(expected[1])}
    with pytest.raises(RewardError, match="the language model answered without text: None"):
        Reader(Scripted(None, None, None)).scores(sample, (0,))


def test_a_language_model_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrag_retriever.training.rewards.asking.time.sleep", lambda seconds: None)
    calls: list[str] = []

    def ask(failures: int) -> Any:
        def invoke(prompt: str) -> str:
            calls.append(prompt)
            if len(calls) <= failures:
                raise TimeoutError("busy")
            return "fine"

        return invoke

    assert ask_once_more(ask(2), "What?") == "fine"
    assert calls == ["What?"] * 3
    calls.clear()
    with pytest.raises(RewardError, match="the language model failed: TimeoutError"):
        ask_once_more(ask(3), "What?")
    assert len(calls) == 3


def test_the_reader_sees_passages_in_document_order_in_document_mode() -> None:
    for mode, expected in {"document": (1, 4, 7), "corpus": (7, 1, 4)}.items():
        llm = Scripted("x")
        Reader(llm).scores(story(answers=(("x",),), mode=mode), (7, 1, 4))
        assert QUESTION in llm.prompts[0]
        places = {i: llm.prompts[0].find(text) for i, text in enumerate(STORY) if text in llm.prompts[0]}
        assert tuple(sorted(places, key=places.get)) == expected


def test_the_reader_leaves_out_samples_without_answers() -> None:
    llm = Scripted()
    assert Reader(llm).scores(story(answers=None), (0, 1)) == {}
    assert llm.prompts == []


# -- the report --------------------------------------------------------------------------------------------------------


def row(
    benchmark: str = "b", method: str = "qrag", length: str = "4k", recall: float = 0.5, **more: Any
) -> dict[str, Any]:
    figures = {"fact_recall": recall, "fact_recall_low": recall - 0.1, "fact_recall_high": recall + 0.2}
    return {"benchmark": benchmark, "method": method, "length": length, **figures, **more}


def test_columns_without_values_are_left_out_of_the_table() -> None:
    rows = [row(seconds_per_query=0.0123, llm_calls=0.0), row("c", "agent", answer_em=0.25, llm_calls=0.0)]
    head, _, first, second = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in results_table(rows).split("\n")
    )
    assert head == ["benchmark", "length", "method", "fact recall", "answer EM", "median ms/query"]
    assert first == ["b", "4k", "qrag", "0.500", "", "12.3"]
    assert second == ["c", "4k", "agent", "0.500", "0.250", ""]
    rows[1]["llm_calls"] = 3.0
    assert "LLM calls" in results_table(rows)


def test_fact_recall_side_by_side() -> None:
    rows = [
        {"benchmark": "a", "length": "4k", "method": "qrag", "samples": 7, "fact_recall": 0.9},
        {"benchmark": "a", "length": "4k", "method": "bm25", "samples": 7, "fact_recall": 0.25},
        {"benchmark": "b", "length": "-", "method": "bm25", "samples": 3, "fact_recall": 0.5},
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in recall_table(rows).splitlines()]
    assert lines[0] == ["fact recall", "length", "questions", "qrag", "bm25"]
    assert lines[2:] == [["a", "4k", "7", "**0.900**", "0.250"], ["b", "-", "3", "", "**0.500**"]]


def test_fact_recall_at_a_glance() -> None:
    found = {
        ("a", "4k"): {"qrag": 0.9, "bm25": 0.25},
        ("a", "128k"): {"qrag": 0.8},
        ("needles-1", "4k"): {"qrag": 1.0, "bm25": 1.0, "dense": 0.1},
        ("needles-2", "4k"): {"qrag": 0.5, "bm25": 1.0},
        ("needles-2", "1M"): {"bm25": 0.0},
    }
    rows = [
        {"benchmark": benchmark, "length": length, "method": method, "samples": 7, "fact_recall": recall}
        for (benchmark, length), own in found.items()
        for method, recall in own.items()
    ]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in brief_table(rows, ["needles-"]).splitlines()
    ]
    assert brief_table(rows + rows, ["needles-"]) == brief_table(rows, ["needles-"])  # of two runs
    assert lines[0] == ["fact recall", "length", "qrag", "bm25", "dense"]
    # A mean over one of the two would not be of the same questions.
    assert lines[2:] == [["a", "4k", "**0.900**", "0.250", ""], ["needles (2 tasks)", "4k", "0.750", "**1.000**", ""]]


def test_a_score_of_zero_is_shown() -> None:
    assert "| answer EM |" in results_table([row(answer_em=0.0), row(method="bm25", answer_em=0.0)])


def test_the_exponent_of_a_power_law_is_found() -> None:
    lengths = {"1k": 50, "4k": 160, "32k": 1200}
    rows = [
        row("b", method, length, chunks=chunks, seconds_per_query=2e-6 * chunks**power)
        for method, power in {"linear": 1.0, "worse": 1.5}.items()
        for length, chunks in lengths.items()
    ]
    rows += [row("two", "linear", length, chunks=lengths[length], seconds_per_query=1.0) for length in ("1k", "4k")]
    fitted = growth(rows)
    assert [(found["benchmark"], found["method"]) for found in fitted] == [("b", "linear"), ("b", "worse")]
    assert [found["exponent"] for found in fitted] == pytest.approx([1.0, 1.5])
    assert "| b         | worse  | 1.50" in growth_table(fitted)


@pytest.mark.parametrize("count", [1, 3])
def test_the_legend_of_a_plot_fits(tmp_path: Path, count: int) -> None:
    """Nothing is drawn on the picture's edge, where what does not fit is cut."""
    from matplotlib.image import imread

    methods = ["qrag", "random", "bm25", "bm25-iterative", "dense-minilm", "dense-action", "multi-step-minilm"]
    rows = [row(f"benchmark-{i}", method, "-", 0.5) for i in range(count) for method in methods]
    plot(rows, tmp_path / "recall.png")
    pixels = imread(tmp_path / "recall.png")[..., :3]
    assert (pixels[:, :3] == 1).all()
    assert (pixels[:, -3:] == 1).all()


@pytest.mark.parametrize("lengths", [["-"], ["1k", "4k", "32k"]])
def test_the_plot_shows_every_method(tmp_path: Path, lengths: list[str]) -> None:
    from matplotlib.image import imread

    path = tmp_path / "recall.png"
    rows = [
        row(name, method, length, 0.4 + 0.1 * i)
        for name in ("one", "two", "three", "four", "five")
        for i, method in enumerate(["qrag", "bm25"])
        for length in lengths
        if (name == "two") == (method == "bm25")  # neither is in every picture
    ]
    plot(rows, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = (imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two
        assert (pixels == colour).all(axis=1).sum() > 50
    assert (pixels == 255).all(axis=1).mean() > 0.5


def test_versions_are_of_what_is_installed() -> None:
    import sentence_transformers

    found = versions()
    assert found["numpy"] == np.__version__
    assert found["sentence-transformers"] == sentence_transformers.__version__
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


# -- the command line --------------------------------------------------------------------------------------------------

KEYS = (
    "benchmark", "length", "method", "model", "samples", "seed", "fact_recall", "fact_f1", "exact", "seconds_per_query",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A data folder with stories, books and wiki questions; beside the data a model, and LLMs to import."""
    folder = tmp_path_factory.mktemp("data")
    put_books(folder, "test", 5, num_sentences=300)
    put_moves(folder, 12)
    lines = [wiki_line(i, [f"A {i}", f"B {i}"], setting="distractor") for i in range(200, 210)]
    put(folder, "hotpotqa/hotpotqa_dev.jsonl.gz", lines)
    public_model(tiny_pair(tiny_encoder, {"min_q": {"document": 0.0}})).save_pretrained(folder / "tiny")
    put(
        folder,
        "suite_llms.py",
        "import re\n"
        "class Answers:\n"
        "    def invoke(self, prompt):\n"
        "        number = re.search(r'Question (\\d+)', prompt)[1]\n"
        "        return f'Answer {number}' if prompt.count('So it is.') == 2 else 'unknown'\n"  # of two passages
        "    def batch(self, prompts):\n"
        "        return list(map(self.invoke, prompts))\n"
        "class Mute(Answers):\n"
        "    def invoke(self, prompt):\n"
        "        return None\n"
        "def broken():\n"
        "    return 42\n",
    )
    return folder


def arguments(data: Path, *more: str) -> list[str]:
    return [*more, "--data", str(data), "--model", str(data / "tiny"), "--device", "cpu"]


def test_a_run_measures_all_methods_on_the_same_questions(
    data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(default_model, "minilm_folder", lambda: tiny_encoder)
    files = ["--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "recall.png")]
    options = ["babilong-qa1", "hotpotqa", "--lengths", "1k,4k,32k", "--samples", "3", "--seed", "2", *files]
    assert main(arguments(data, *options, "--baseline", "all")) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["versions"]["numpy"] == np.__version__
    sets = [("babilong-qa1", "1k"), ("babilong-qa1", "4k"), ("babilong-qa1", "32k"), ("hotpotqa", "-")]
    names = ["qrag", "random", "bm25", "bm25-iterative", "dense-minilm", "dense-action", "multi-step-minilm"]
    rows = {(found["benchmark"], found["length"], found["method"]): found for found in written["rows"]}
    assert list(rows) == [(*where, name) for where in sets for name in names]
    for (_, length, name), found in rows.items():
        assert set(KEYS) <= set(found)
        assert (found["samples"], found["seed"], found["step_limit"]) == (3, 2, 2)
        assert found["model"] == {"qrag": "tiny", "dense-action": "tiny"}.get(name, found["model"])
        assert found["chunks"] == {"1k": 50, "4k": 160, "32k": 1200, "-": 4}[length]
        assert ("auto_picks" in found) == (name == "qrag" and length != "-"), "calibrated for documents alone"
    model = QRAGModel.from_pretrained(data / "tiny", device="cpu")
    for benchmark, length in sets:
        hits = []
        for sample in open_questions(benchmark, length, data, 3, seed=2):
            index = ChunkIndex.from_texts(list(sample.chunks), model=model, mode=sample.mode)
            steps = MultiStepSelector(index, k=2).select(sample.question).steps
            picks = [{step.chunk_id for step in steps}, *(own.find(sample, 2).chunk_ids for own in (Random(), BM25()))]
            hits.append([set(sample.supporting or ()) <= set(ids) for ids in picks])
        found = [rows[benchmark, length, name]["fact_recall"] for name in ("qrag", "random", "bm25")]
        assert found == np.mean(hits, axis=0).tolist()
    for found in written["differences"]:
        ours, other = (rows[found["benchmark"], found["length"], name] for name in ("qrag", found["minus"]))
        assert found["difference"] == pytest.approx(ours[found["score"]] - other[found["score"]])
    assert len(written["differences"]) == len(sets) * 6 * 2
    assert [(found["benchmark"], found["method"]) for found in written["growth"]] == [
        ("babilong-qa1", n) for n in names
    ]
    assert (tmp_path / "recall.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert shown.count("multi-step-minilm") == len(sets) + 2 * len(sets) + 2, (
        "in results, recall, differences and growth"
    )


def test_an_encoder_warns_of_long_chunks_once_a_run(
    data: Path, tmp_path: Path, tiny_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_pair(tiny_encoder, {"min_q": {"document": 0.0}, "max_chunk_tokens": 5})
    public_model(model).save_pretrained(tmp_path / "short")
    options = ["--data", str(data), "--model", str(tmp_path / "short"), "--device", "cpu", "--samples", "4"]
    for _ in range(2):  # runs, each with four questions
        caplog.clear()
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["hotpotqa", *options, "--baseline", "none"]) == 0
        assert sum("longer than 5 tokens" in record.getMessage() for record in caplog.records) == 1


def test_mistakes_are_the_questions_whose_evidence_was_not_found(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mistakes.jsonl"
    written = ["--json", str(tmp_path / "figures.json"), "--mistakes", str(path)]
    assert main(arguments(data, "babilong-qa1", "hotpotqa", "--lengths", "1k", "--samples", "8", *written)) == 0
    rows = {row["benchmark"]: row for row in json.loads((tmp_path / "figures.json").read_text())["rows"]}
    mistakes = list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    assert mistakes, "the untrained tiny model must miss something"
    for benchmark, row in rows.items():
        own = [mistake for mistake in mistakes if mistake["benchmark"] == benchmark]
        assert len(own) == round((1 - row["fact_recall"]) * row["samples"])
    samples = {sample.id: sample for name in rows for sample in open_questions(name, rows[name]["length"], data, 8)}
    for mistake in mistakes:
        sample, picks = samples[mistake["id"]], mistake["picks"]
        missing = {fact["chunk_id"] for fact in mistake["missing"]}
        assert missing == set(sample.supporting or ()) - {pick["chunk_id"] for pick in picks}
        assert missing
        assert len(picks) == 2
        for pick in picks:
            assert pick["text"] == sample.chunks[pick["chunk_id"]]
            assert pick["is_evidence"] == (pick["chunk_id"] in (sample.supporting or ()))
            assert isinstance(pick["q_value"], float)


def test_a_language_model_of_the_users_own_reads_and_searches(
    data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(default_model, "minilm_folder", lambda: tiny_encoder)
    monkeypatch.syspath_prepend(data)
    path = tmp_path / "figures.json"
    options = [
        "hotpotqa",
        "--samples",
        "5",
        "--baseline",
        "llm-agent",
        "--json",
        str(path),
        "--reader",
        "suite_llms:Answers",
    ]
    for llm in ("suite_llms:Answers", "stand-in:0"):
        assert main(arguments(data, *options, "--llm", llm)) == 0
        ours, agents = json.loads(path.read_text())["rows"]
        assert (ours["answer_em"], agents["answer_f1"]) == (1.0, 1.0)
        assert (ours["llm_calls"], agents["llm_calls"]) == (0, 1), "two picks, one query written"
        assert "answer EM" in capsys.readouterr().out
    assert main(arguments(data, *options, "--llm", "suite_llms:Mute")) == 1
    assert "answered without text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["musique"], "lacks musique/musique_dev"),
        (["babylong"], "there is no benchmark 'babylong'; there are babilong-qa1, "),
        (["hotpotqa", "--lengths", "5k"], "there is no length '5k'; there are 1k, 4k, 32k, 128k, 1M, 10M, -"),
        (["ruler", "--lengths", "1k"], "none of ruler-qa-1, ruler-qa-2 has a length of 1k"),
        (["hotpotqa", "--baseline", "llm-agent"], "llm-agent needs a language model"),
        (["hotpotqa", "--llm", "no_such_module:make"], "the language model 'no_such_module:make' cannot be imported"),
        (["hotpotqa", "--reader", "suite_llms:absent"], "the language model 'suite_llms:absent' cannot be imported"),
        (
            ["hotpotqa", "--reader", "suite_llms"],
            "a callable that returns a chat model; got 'suite_llms'",
        ),
        (["hotpotqa", "--model", "{data}/books"], "is not a model folder"),
        (["hotpotqa", "--reader", "suite_llms:broken"], "llm must be a LangChain chat model"),
    ],
)
def test_what_is_wrong_is_said_and_the_exit_code_is_1(
    data: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(data)
    given = [*arguments(data)[:-2], *(option.format(data=data) for option in options)]
    assert main(given) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("qrag-bench: ")
    assert message in shown.err
    assert shown.out == ""


def test_a_family_of_benchmarks_is_measured_whole(data: Path, tmp_path: Path) -> None:
    put_books(tmp_path, "test", 5)
    put_moves(tmp_path, 3)
    for task in range(2, 6):
        text = (tmp_path / "babi/en/qa1_some-task_test.txt").read_text()
        put(tmp_path, f"babi/en/qa{task}_some-task_test.txt", text)
    path = tmp_path / "figures.json"
    with contextlib.redirect_stdout(io.StringIO()):
        code = main([*arguments(data, "babilong", "--lengths", "1k", "--json", str(path)), "--data", str(tmp_path)])
    assert code == 0
    rows = json.loads(path.read_text())["rows"]
    assert [found["benchmark"] for found in rows] == [f"babilong-qa{task}" for task in range(1, 6)]
    assert {found["samples"] for found in rows} == {3}

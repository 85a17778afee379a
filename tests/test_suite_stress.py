"""The benchmarks of qrag-bench: which questions are asked, and that each has the answer and evidence it claims."""

from __future__ import annotations

import importlib.metadata
import re
import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever.benchmarks.suite import questions, stress
from qrag_retriever.benchmarks.suite.questions import BENCHMARKS, open_questions
from qrag_retriever.benchmarks.suite.stress import TemporalQuestions, TextNoise
from qrag_retriever.errors import DataError
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets import LENGTHS
from tests import test_datasets
from tests.test_datasets import check, put, put_books, rng, squad, wiki_line

everything = test_datasets.everything
KINDS = ("before", "after", "ordinal", "quarter")
VERBS = ("went", "moved", "journeyed", "travelled", "went back")


def move_stories(count: int, num_statements: int = 10) -> str:
    """Stories in bAbI's format: people change rooms and take things, and one of them is asked for at the end."""
    random, lines = rng(11), []
    for _ in range(count):
        places: dict[str, tuple[str, int]] = {}
        for i in range(1, num_statements + 1):
            person = str(random.choice(["Mary", "John", "Daniel"]))
            if i % 6 == 0:
                lines.append(f"{i} {person} took the football.")
                continue
            room = str(random.choice(["kitchen", "garden", "office", "hallway", "bathroom", "bedroom"]))
            lines.append(f"{i} {person} {random.choice(VERBS)} to the {room}.")
            places[person] = room, i
        person, (room, fact) = next(iter(places.items()))
        lines.append(f"{num_statements + 1} Where is {person}? \t{room}\t{fact}")
    return "\n".join(lines) + "\n"


def put_moves(folder: Path, count: int, **options: Any) -> None:
    put(folder, "babi/en/qa1_some-task_test.txt", move_stories(count, **options))


class Rain:
    """Noise without books."""

    def draw(self, num_sentences: int, random: np.random.Generator, era: int = 0) -> list[str]:
        return [f"Rain fell on day {i}." for i in random.permutation(num_sentences)]


# -- questions ---------------------------------------------------------------------------------------------------------


def test_every_benchmark_gives_whole_samples(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_moves(everything, 10)
    lines = [wiki_line(i, [f"A {i}", f"B {i}"], setting="fullwiki" if i % 2 else "distractor") for i in range(200, 220)]
    put(everything, "hotpotqa/hotpotqa_dev.jsonl.gz", lines)
    # 200 tokens a text: the hand-made pools hold only so many.
    monkeypatch.setattr(questions, "_minilm_tokens", lambda: lambda text: [0] * 200)
    assert {name.partition("-")[0] for name in BENCHMARKS} == {
        "babilong", "niah", "ruler", "hotpotqa", "musique", "2wiki", "stress",
    }  # fmt: skip
    for name, benchmark in BENCHMARKS.items():
        length = benchmark.lengths[0]
        asked = open_questions(name, length, everything, num_samples=3)
        samples = list(asked)
        assert len(samples) == len(asked) == 3
        assert len({sample.id for sample in samples}) == 3
        for sample in samples:
            check(sample)
            if name.startswith(("babilong", "stress")):
                assert len(sample.chunks) == LENGTHS[length]
        # RULER's needles and the stress tests leave one pick more than is needed.
        if name.startswith(("niah", "stress-before", "stress-after", "stress-ordinal", "stress-quarter")):
            assert {len(sample.supporting or ()) for sample in samples} == {asked.step_limit - 1}


def test_questions_of_fewer_samples_are_nested_and_the_same_at_every_length(tmp_path: Path) -> None:
    put_books(tmp_path, "test", 5)
    put_moves(tmp_path, 40)
    for name in ("babilong-qa1", "stress-before"):
        few, more = (list(open_questions(name, "1k", tmp_path, count)) for count in (5, 25))
        assert few == more[:5], "with the same noise too"
        longer = list(open_questions(name, "4k", tmp_path, 5))
        assert [(sample.id, sample.question, sample.answers) for sample in longer] == [
            (sample.id, sample.question, sample.answers) for sample in few
        ]
        for short, long in zip(few, longer, strict=True):
            assert (len(short.chunks), len(long.chunks)) == (50, 160)
            evidence = [[sample.chunks[i] for i in sample.supporting or ()] for sample in (short, long)]
            assert evidence[0] == evidence[1]


def test_the_seed_decides_which_questions_and_what_noise(tmp_path: Path) -> None:
    put_books(tmp_path, "test", 5)
    put_moves(tmp_path, 40)
    first, again, other = (open_questions("babilong-qa1", "1k", tmp_path, 20, seed=seed) for seed in (3, 3, 4))
    assert list(first) == list(again)
    assert list(first) == list(first), "a second pass draws the same"
    assert set(first.numbers) != set(other.numbers)
    noise = [{sample.id: sample.chunks for sample in asked} for asked in (first, other)]
    shared = noise[0].keys() & noise[1].keys()
    assert shared
    assert all(noise[0][name] != noise[1][name] for name in shared)


def test_the_default_number_of_questions_falls_with_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_books(tmp_path, "test", 2)
    put_moves(tmp_path, 520)
    monkeypatch.setattr(questions, "_minilm_tokens", lambda: str.split)
    for name, expected in {
        "babilong-qa1": {"1k": 500, "128k": 500, "1M": 200, "10M": 100},
        "stress-after": {"4k": 500, "1M": 200, "10M": 100},
        "niah-single-1": {"4k": 500, "32k": 500, "128k": 100, "1M": 20},
    }.items():
        found = {length: len(open_questions(name, length, tmp_path)) for length in expected}
        assert found == expected
    assert len(open_questions("babilong-qa1", "1M", tmp_path, 510)) == 510, "as many as are asked for"
    assert len(open_questions("babilong-qa1", "1M", tmp_path, 9_999)) == 520, "but not more than there are"


def test_an_unknown_benchmark_or_length_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no benchmark 'hotpot-qa'; did you mean 'hotpotqa'\?; there are .*musique"):
        open_questions("hotpot-qa", "-", tmp_path)
    with pytest.raises(ValueError, match="ruler-qa-1 has the lengths 4k, 32k, got '1M'"):
        open_questions("ruler-qa-1", "1M", tmp_path)
    with pytest.raises(ValueError, match="musique has the lengths -, got '4k'"):
        open_questions("musique", "4k", tmp_path)
    with pytest.raises(DataError, match="nowhere is missing"):
        open_questions("musique", "-", tmp_path / "nowhere")


def test_a_benchmark_of_native_length_is_what_its_file_has(tmp_path: Path) -> None:
    lines = [wiki_line(i, [f"A {i}", f"B {i}"], setting="fullwiki" if i % 3 else "distractor") for i in range(30)]
    put(tmp_path, "hotpotqa/hotpotqa_dev.jsonl.gz", lines)
    near, full = (open_questions(name, "-", tmp_path) for name in ("hotpotqa", "hotpotqa-fullwiki"))
    assert {sample.id for sample in near} == {f"id{i}" for i in range(0, 30, 3)}
    assert {sample.id for sample in full} == {f"id{i}" for i in range(30) if i % 3}
    assert (near.length, near.step_limit, any(map(near.is_longer, near))) == ("-", 2, False)
    for sample in near:
        number = sample.id.removeprefix("id")
        assert [sample.chunks[i].partition(".")[0] for i in sample.supporting or ()] == [f"A {number}", f"B {number}"]
        assert (sample.mode, len(sample.chunks)) == ("corpus", 4)


def test_stories_longer_than_the_length_are_counted(tmp_path: Path) -> None:
    put_books(tmp_path, "test", 5)
    put(tmp_path, "babi/en/qa1_some-task_test.txt", move_stories(3) + move_stories(2, num_statements=70))
    short, long = (open_questions("babilong-qa1", length, tmp_path) for length in ("1k", "4k"))
    assert [sum(map(questions.is_longer, questions)) for questions in (short, long)] == [2, 0]
    assert Counter(len(sample.chunks) for sample in short) == {50: 3, 70: 2}


@pytest.mark.parametrize("num_samples", [0, -1])
def test_a_number_of_questions_below_one_is_refused(tmp_path: Path, num_samples: int) -> None:
    put_books(tmp_path, "test", 2)
    put_moves(tmp_path, 5)
    with pytest.raises(ValueError, match="at least 1"):
        open_questions("babilong-qa1", "1k", tmp_path, num_samples)


# -- temporal questions ------------------------------------------------------------------------------------------------


def right_answers(sample: Sample) -> list[tuple[str, tuple[int, ...]]]:
    """Everything that a reader of the chunks could answer, with the chunks that say so."""
    words = sample.question.removesuffix("?").split()
    own: list[tuple[int, str]] = []
    for i, chunk in enumerate(sample.chunks):
        person, _, rest = chunk.partition(" ")
        verb, arrow, room = rest.partition(" to the ")
        if person == words[2] and verb in VERBS and arrow:
            own.append((i, room.removesuffix(".")))
    if words[1] == "was":  # Where was Mary before the kitchen
        pairs = [(own[n], own[n + 1]) for n in range(len(own) - 1)]
        if words[3] == "before":
            return [(early[1], (early[0], late[0])) for early, late in pairs if late[1] == words[-1]]
        return [(late[1], (early[0], late[0])) for early, late in pairs if early[1] == words[-1]]
    if words[-1] == "time":  # Where did Mary go the second time
        place, room = own[["first", "second", "third", "fourth"].index(words[-2])]
        return [(room, (place,))]
    # Where did Mary go in the first quarter of the text
    quarter = ["first", "second", "third", "last"].index(words[6])
    low, high = len(sample.chunks) * quarter / 4, len(sample.chunks) * (quarter + 1) / 4
    return [(room, (place,)) for place, room in own if low <= place < high]


@pytest.mark.parametrize("kind", KINDS)
def test_a_temporal_question_has_one_answer_and_its_evidence_proves_it(tmp_path: Path, kind: str) -> None:
    put_moves(tmp_path, 20)
    source = TemporalQuestions(tmp_path, kind, 97, Rain())
    lines = move_stories(20).split("\n")
    asked = set()
    for number in range(len(source)):
        for seed in range(5):
            sample = source.sample(number, rng(seed))
            check(sample)
            assert right_answers(sample) == [((sample.answers or ())[0][0], sample.supporting)]
            assert len(sample.chunks) == 97
            statements = [chunk for chunk in sample.chunks if not chunk.startswith("Rain fell")]
            assert statements == [line.split(" ", 1)[1] for line in lines[11 * number : 11 * number + 10]]
            assert sample == source.sample(number, rng(seed))
            asked.add((number, sample.question))
    assert len(asked) > 2 * len(source), "the generator decides what is asked"
    assert source.name == f"stress-{kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_real_story_leaves_something_to_ask(shared: Path, kind: str) -> None:
    source = TemporalQuestions(shared / "data", kind, 50, Rain())
    for number in range(len(source)):
        sample = source.sample(number, rng(number))
        assert right_answers(sample) == [((sample.answers or ())[0][0], sample.supporting)]


def test_a_temporal_question_keeps_all_of_a_story_that_is_longer_than_the_text(tmp_path: Path) -> None:
    put_moves(tmp_path, 3)
    sample = TemporalQuestions(tmp_path, "after", 4, Rain()).sample(0, rng())
    assert list(sample.chunks) == [line.split(" ", 1)[1] for line in move_stories(1).split("\n")[:10]]
    assert right_answers(sample) == [((sample.answers or ())[0][0], sample.supporting)]


def test_a_story_with_nothing_to_ask_is_named(tmp_path: Path) -> None:
    # One move each, and Mary comes twice to the room that she could be asked about.
    story = "1 John went to the garden.\n2 Mary moved to the office.\n3 Mary went back to the office.\n"
    put(tmp_path, "babi/en/qa1_some-task_test.txt", story + "4 Where is John? \tgarden\t1\n")
    for kind in ("before", "after"):
        with pytest.raises(DataError, match=f"story 0 .* has nothing to ask for stress-{kind}"):
            TemporalQuestions(tmp_path, kind, 20, Rain()).sample(0, rng())
    assert TemporalQuestions(tmp_path, "ordinal", 20, Rain()).sample(0, rng()).answers


# -- noise that no training has shown ----------------------------------------------------------------------------------


def test_text_noise_repeats_a_sentence_only_after_all_were_used() -> None:
    sentences = [f"Sentence {i}." for i in range(120)]
    noise = TextNoise(sentences)
    drawn = noise.draw(300, rng(5))
    assert len(drawn) == 300
    assert sorted(drawn[:120]) == sorted(drawn[120:240]) == sorted(sentences)
    assert len(set(drawn[240:])) == 60
    assert drawn[:120] != drawn[120:240]
    numbers = [int(sentence.split()[1].strip(".")) for sentence in drawn[:120]]
    follows = sum(after == before + 1 for before, after in pairwise(numbers))
    assert follows >= 116, "in runs of up to 50 sentences, at most four of them"
    assert noise.draw(300, rng(5)) == drawn
    assert noise.draw(7, rng(5)) == drawn[:7]


def plain(text: str) -> str:
    return " ".join(text.split())


def licence_files() -> list[Path]:
    wanted = re.compile(r"(licen[cs]e|copying|notice)(\.[A-Za-z0-9_]+)?$", re.IGNORECASE)
    folders = {Path(str(package.locate_file(""))) for package in importlib.metadata.distributions()}
    return [path for folder in folders for path in folder.rglob("*") if wanted.match(path.name) and path.is_file()]


@pytest.mark.parametrize("domain", ["licences", "python-docs", "squad", "essays"])
def test_other_noise_is_of_its_domain(tmp_path: Path, domain: str) -> None:
    story = "1 Mary took the football there.\n2 Mary went back to the office.\n3 Where is the football? \toffice\t1 2\n"
    put(tmp_path, "babi/en/qa2_some-task_test.txt", story)
    put(tmp_path, "squad/squad_v2_dev_half.json.gz", squad(("Normans", 9), ("Oxygen", 9)))
    put(tmp_path, "essays/paul_graham/one.txt", "Startups are  hard to\nfund. Is it? Ideas are easy to have.\n\n" * 2)
    put(tmp_path, "essays/paul_graham/two.txt", f"Taste can be taught. It is {'very ' * 300}long.")
    (sample,) = open_questions(f"stress-qa2-{domain}", "4k", tmp_path)
    assert len(sample.chunks) == 160
    facts = [sample.chunks[i] for i in sample.supporting or ()]
    assert facts == ["Mary took the football there.", "Mary went back to the office."]
    noise = [chunk for i, chunk in enumerate(sample.chunks) if i not in (sample.supporting or ())]
    assert all(10 <= len(chunk) <= 1000 for chunk in noise)
    if domain == "squad":
        assert set(noise) == {f"{title} says {i}." for title in ("Normans", "Oxygen") for i in range(9)}
    elif domain == "essays":
        assert set(noise) == {"Startups are hard to fund.", "Ideas are easy to have.", "Taste can be taught."}
    else:
        files = licence_files() if domain == "licences" else Path(sysconfig.get_paths()["stdlib"]).glob("*.py")
        texts = {plain(path.read_text("utf-8", "replace")) for path in files}
        # A source file has backslashes of a documentation string twice.
        missing = {chunk for chunk in noise if "\\" not in chunk and not any(chunk in text for text in texts)}
        assert missing == set()
        assert len(set(noise)) > 60


def test_noise_of_licences_repeats_no_sentence_before_all_were_used(tmp_path: Path) -> None:
    put(tmp_path, "babi/en/qa2_some-task_test.txt", move_stories(1))
    (sample,) = open_questions("stress-qa2-licences", "4k", tmp_path)
    # Statements of the story may well come twice.
    most_common = Counter(chunk for chunk in sample.chunks if " to the " not in chunk).most_common(1)
    assert most_common[0][1] == 1, most_common


@pytest.mark.parametrize("domain", ["squad", "essays"])
def test_missing_texts_of_other_noise_are_named(tmp_path: Path, domain: str) -> None:
    with pytest.raises(DataError, match=f"lacks {domain}/"):
        open_questions(f"stress-qa2-{domain}", "1k", tmp_path)


def test_texts_without_a_sentence_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "babi/en/qa2_some-task_test.txt", move_stories(1))
    put(tmp_path, "essays/paul_graham/one.txt", "Ok.\n")
    draw, calls = stress.SentencePool.draw, [0]

    def impatient(self: Any, *arguments: Any) -> list[str]:
        calls[0] += 1
        if calls[0] > 1_000:
            raise TimeoutError("a thousand draws without a sentence")
        return draw(self, *arguments)

    monkeypatch.setattr(stress.SentencePool, "draw", impatient)
    with pytest.raises(DataError):
        list(open_questions("stress-qa2-essays", "1k", tmp_path))

"""Loaders of public formats: hand-made files in the original formats, and the real data where it is."""

from __future__ import annotations

import gzip
import hashlib
import json
import random as global_random
import re
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever.errors import DataError
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets import (
    SOURCES,
    TRAINING_ONLY,
    BabiLong,
    BookNoise,
    Niah,
    Squad,
    TwoWikiOpen,
    niah,
    open_source,
)
from qrag_retriever.training.datasets import babi as babi_module
from qrag_retriever.training.datasets import books as books_module
from qrag_retriever.training.datasets.babi import LENGTHS, read_stories
from qrag_retriever.training.datasets.niah import NOISE_LINE, TASKS
from qrag_retriever.training.datasets.splits import cut_of, linked_groups
from qrag_retriever.training.datasets.wiki import read_wiki

SPLITS = ("train", "validation", "test")
STORY = """\
1 Mary took the football.
2 Mary went to the hall.
3 Where is the football? \thall\t1 2
4 John left.
5 Mary went to the attic.
6 Where is Mary? \tattic,top\t5
"""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def put(folder: Path, name: str, content: Any) -> Path:
    """Write a file: text as it is, a list as JSON lines, a dict as JSON; packed if its name says so."""
    if isinstance(content, list):
        content = "".join(json.dumps(line) + "\n" for line in content)
    text = content if isinstance(content, str) else json.dumps(content)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def put_books(folder: Path, part: str = "train", num_books: int = 20, num_sentences: int = 60) -> None:
    """Write books of four sentences a paragraph that say where they are from."""
    for book in range(num_books):
        lines = [f"Here book {part} {book:02} tells line {i}." for i in range(num_sentences)]
        paragraphs = [" ".join(lines[i : i + 4]) for i in range(0, num_sentences, 4)]
        put(folder, f"books/{part}/book{book:02}.txt.gz", "\n".join(paragraphs) + "\n")


def origin(sentence: str) -> tuple[int, int]:
    """The book and the line of a sentence of `put_books`."""
    found = re.fullmatch(r"Here book \w+ (\d+) tells line (\d+)\.", sentence)
    assert found, sentence
    return int(found[1]), int(found[2])


def story(number: int) -> str:
    place = f"room {number}"
    return f"1 Mary went to {place}.\n2 John slept.\n3 Where is Mary? \t{place}\t1\n"


def put_babi(folder: Path, stories: Iterable[int], tested: Iterable[int] = (), size: str = "en-10k") -> None:
    put(folder, f"babi/{size}/qa1_single-supporting-fact_train.txt", "".join(map(story, stories)))
    if tested:
        put(folder, "babi/en/qa1_single-supporting-fact_test.txt", "".join(map(story, tested)))


def wiki_line(number: int, gold: list[str], **more: Any) -> dict[str, Any]:
    titles = [f"Other {number}", *gold, f"Another {number}"]
    return {
        "_id": f"id{number}",
        "type": "bridge" if number % 2 else "comparison",
        "question": f"Question {number}?",
        "answer": f"answer {number}",
        "supporting_facts": [[title, sentence] for title in reversed(gold) for sentence in (0, 1)],
        "context": [[title, [f"{title} is it.", " So it is. ", "", "Yes."]] for title in titles],
        **more,
    }


def musique_line(number: int, gold: list[str], **more: Any) -> dict[str, Any]:
    titles = [*gold, f"Other {number}"]
    return {
        "id": f"2hop__{number}",
        "paragraphs": [
            {"idx": i, "title": title, "paragraph_text": f"{title} is {i}.", "is_supporting": title in gold}
            for i, title in enumerate(titles)
        ],
        "question": f"Question {number}?",
        "question_decomposition": [],
        "answer": "one",
        "answer_aliases": ["1", "one"],
        "answerable": True,
        **more,
    }


def squad(*articles: tuple[str, int], version: int = 2) -> dict[str, Any]:
    def question(title: str, i: int, impossible: bool) -> dict[str, Any]:
        answers = [] if impossible else [{"text": f"{i}", "answer_start": 0}, {"text": f"no {i}", "answer_start": 0}]
        asked = {"id": f"{title}-{i}-{impossible}", "question": f"{title} {i}?", "answers": [*answers, *answers]}
        return {**asked, "is_impossible": impossible} if version == 2 else asked

    return {
        "data": [
            {
                "title": title,
                "paragraphs": [
                    {
                        "context": f"{title} says {i}.",
                        "qas": [question(title, i, False), *([question(title, i, True)] if version == 2 else [])],
                    }
                    for i in range(count)
                ],
            }
            for title, count in articles
        ]
    }


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """A small data folder with every file that there is."""
    put_books(tmp_path)
    put_books(tmp_path, "test", 5)
    for task in range(1, 6):
        name = f"qa{task}_some-task"
        put(tmp_path, f"babi/en-10k/{name}_train.txt", "".join(map(story, range(100))))
        put(tmp_path, f"babi/en/{name}_test.txt", "".join(map(story, range(1000, 1010))))
    for name in ("hotpotqa", "2wiki"):
        put(
            tmp_path,
            f"{name}/{name}_train.jsonl.gz",
            [wiki_line(i, [f"A {i}", f"B {i}"], setting="distractor") for i in range(99)],
        )
        put(
            tmp_path,
            f"{name}/{name}_dev.jsonl.gz",
            [wiki_line(i, [f"A {i}", f"B {i}"], setting="distractor") for i in range(200, 210)],
        )
    corpus = [{"title": f"{letter} {i}", "text": "It is."} for i in range(300, 310) for letter in "AB"]
    put(tmp_path, "2wiki/2wiki_corpus_6119.jsonl.gz", corpus)
    questions = [wiki_line(i, [f"B {i}", f"A {i}"]) for i in range(300, 310)]
    put(tmp_path, "2wiki/2wiki_corpus_questions_dev.jsonl.gz", questions)
    put(tmp_path, "musique/musique_train.jsonl.gz", [musique_line(i, [f"A {i}", f"B {i}"]) for i in range(99)])
    put(tmp_path, "musique/musique_dev.jsonl.gz", [musique_line(i, [f"A {i}", f"B {i}"]) for i in range(200, 210)])
    put(tmp_path, "squad/squad_v2_dev_half.json.gz", squad(("Test", 15), ("Exam", 15)))
    articles = [(f"Article {i}", 5) for i in range(40)]
    put(tmp_path, "squad/xquad_en_squad_v1_dev_subset.json.gz", squad(("Test", 5), *articles, version=1))
    put(tmp_path, "essays/paul_graham/one.txt", "What  is an\nessay? " * 30)
    put(tmp_path, "essays/paul_graham/two.txt", "It is text. " * 30)
    return tmp_path


def check(sample: Sample) -> None:
    """A sample is as its docstring says."""
    assert isinstance(sample.chunks, tuple)
    assert all(isinstance(chunk, str) and chunk.strip() for chunk in sample.chunks)
    supporting = sample.supporting or ()
    assert supporting
    assert all(type(chunk_id) is int for chunk_id in supporting)
    assert supporting == tuple(sorted(set(supporting)))
    assert set(supporting) <= set(range(len(sample.chunks)))
    assert sample.answers
    assert all(isinstance(part, tuple) and part and all(alias.strip() for alias in part) for part in sample.answers)
    assert sample.question.strip()
    assert sample.mode in {"document", "corpus"}


# -- all sources -------------------------------------------------------------------------------------------------------


# Those that can test a model; the others make up training questions, and have tests of their own.
TESTED = [name for name in SOURCES if name not in (*TRAINING_ONLY, "books-cloze", "relations-made")]


def test_every_source_opens_and_its_samples_are_whole(everything: Path) -> None:
    for name in TESTED:
        for split in ("test",) if name == "2wiki-open" else SPLITS:
            options = {"num_chunks": 20} if name.startswith(("babilong", "niah", "ruler")) else {}
            source = open_source(name, everything, split, **options)
            assert (source.name, source.split) == (name, split)
            ids = set()
            for number in range(len(source))[:25]:
                sample = source.sample(number, rng(number))
                check(sample)
                assert not options or len(sample.chunks) == 20
                ids.add(sample.id)
            assert len(ids) == len(range(len(source))[:25])


def test_samples_depend_on_number_generator_and_era_alone(everything: Path) -> None:
    states = global_random.getstate(), np.random.get_state()[1].tolist()
    for name in TESTED:
        sources = [open_source(name, everything, "test") for _ in range(2)]
        later = [source.sample(3, rng(5), era=2) for source in sources]
        again = [source.sample(3, rng(5)) for source in reversed(sources)]
        assert again[0] == again[1]
        assert later[0] == later[1]
        made_up = not name.startswith(("hotpotqa", "musique", "2wiki"))
        assert (sources[0].sample(3, rng(6)) != again[0]) == made_up
        if not made_up:
            generator = rng()
            sources[0].sample(0, generator)
            assert generator.integers(2**60) == rng().integers(2**60)
    assert states == (global_random.getstate(), np.random.get_state()[1].tolist())


def test_step_limits() -> None:
    assert {name: TASKS[name].num_gold + 1 for name in TASKS} == {
        "niah-single-1": 2,
        "niah-single-2": 2,
        "niah-single-3": 2,
        "niah-multikey-1": 2,
        "niah-multikey-2": 2,
        "niah-multikey-3": 2,
        "niah-multivalue": 5,
        "niah-multiquery": 5,
    }


def test_sources_know_their_step_limit(everything: Path) -> None:
    limits = {name: open_source(name, everything, "test").default_step_limit for name in TESTED if name not in TASKS}
    assert limits == {
        **{"babilong-qa1": 2, "babilong-qa2": 4, "babilong-qa3": 6, "babilong-qa4": 2, "babilong-qa5": 3},
        **{"ruler-qa-1": 2, "ruler-qa-2": 2, "hotpotqa": 2, "musique": 5, "2wiki": 4, "2wiki-open": 10},
    }
    assert open_source("niah-multiquery", everything).default_step_limit == 5


def test_unknown_names_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no source 'niah_single_1'; did you mean 'niah-single-1'"):
        open_source("niah_single_1", tmp_path)
    for name in SOURCES:
        with pytest.raises(ValueError, match=r"split must be one of .*, got 'dev'"):
            open_source(name, tmp_path, "dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split must be one of test, got 'train'"):
        open_source("2wiki-open", tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "split", "lacking"),
    [
        ("babilong-qa3", "test", "babi/en/qa3_*_test.txt or babi/en-10k/qa3_*_test.txt"),
        ("babilong-qa3", "train", "babi/en-10k/qa3_*_train.txt or babi/en-10k/qa3_*_train.partial.txt or babi/en/"),
        ("niah-single-2", "test", "essays/paul_graham/*.txt"),
        ("niah-single-2", "train", "books/train/*.txt.gz"),
        ("hotpotqa", "train", "hotpotqa/hotpotqa_train.jsonl.gz"),
        ("hotpotqa", "test", "hotpotqa/hotpotqa_dev.jsonl.gz"),
        ("ruler-qa-2", "test", "hotpotqa/hotpotqa_dev.jsonl.gz"),
        ("2wiki", "validation", "2wiki/2wiki_train.jsonl.gz"),
        ("2wiki-open", "test", "2wiki/2wiki_corpus_6119.jsonl.gz"),
        ("musique", "test", "musique/musique_dev.jsonl.gz"),
        ("ruler-qa-1", "test", "squad/squad_v2_dev_half.json.gz"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str, split: Any, lacking: str) -> None:
    options = {"num_chunks": None} if name.startswith("babi") else {}
    with pytest.raises(DataError) as caught:
        open_source(name, tmp_path, split, **options)
    assert f"{tmp_path} lacks {lacking}" in str(caught.value)
    with pytest.raises(DataError, match=r"the data folder .*nowhere is missing"):
        open_source(name, tmp_path / "nowhere", split, **options)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = put(tmp_path, "musique/musique_dev.jsonl.gz", [musique_line(0, ["A"])])
    for raw in (path.read_bytes()[:-9], b"no gzip", gzip.compress(b"\xff")):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"musique_dev\.jsonl\.gz (cannot be read|is not valid UTF-8)"):
            open_source("musique", tmp_path, "test")


def test_plain_files_are_read_too(tmp_path: Path) -> None:
    put(tmp_path, "hotpotqa/hotpotqa_dev.jsonl", [wiki_line(0, ["A"])])
    put(tmp_path, "musique/musique_dev.jsonl", [musique_line(0, ["A"])])
    assert len(open_source("hotpotqa", tmp_path, "test")) == len(open_source("musique", tmp_path, "test")) == 1


# -- books -------------------------------------------------------------------------------------------------------------


def test_every_tenth_book_is_for_validation(tmp_path: Path) -> None:
    put_books(tmp_path, num_books=23)
    put_books(tmp_path, "test", 3)
    books = {split: BookNoise(tmp_path, split).books for split in SPLITS}
    assert books["validation"] == ("book09.txt.gz", "book19.txt.gz")
    assert len(books["train"]) == 21
    assert not set(books["train"]) & set(books["validation"])
    assert BookNoise(tmp_path, "test", window=None).sentences()[0] == "Here book test 00 tells line 0."


def test_too_few_books_leave_none_for_validation(tmp_path: Path) -> None:
    put_books(tmp_path, num_books=9)
    assert len(BookNoise(tmp_path, "train").books) == 9
    with pytest.raises(DataError, match="fewer than 10 books"):
        BookNoise(tmp_path, "validation")


@pytest.mark.parametrize(("window", "stretch", "run"), [(200, 25, 7), (None, 25, 7), (37, 500, 50), (1000, 60, 1)])
def test_noise_is_runs_of_consecutive_sentences(tmp_path: Path, window: int | None, stretch: int, run: int) -> None:
    put_books(tmp_path)
    noise = BookNoise(tmp_path, window=window, stretch=stretch, run=run)
    pool = noise.sentences()
    assert len(pool) == (18 * 60 if window is None else window)
    assert len(set(pool)) == len(pool)
    for seed in range(20):
        count = int(rng(seed).integers(1, len(pool) + 1))
        drawn = noise.draw(count, rng(seed))
        assert len(drawn) == len(set(drawn)) == count
        assert set(drawn) <= set(pool)
        places = [origin(sentence) for sentence in drawn]
        breaks = sum(after != (book, line + 1) for (book, line), after in pairwise(places))
        num_pieces = len(pool) // min(stretch, 60) + 20
        assert breaks <= count // run + 2 * num_pieces
    assert sorted(noise.draw(len(pool), rng())) == sorted(pool)


def test_runs_are_long_and_begin_anywhere(tmp_path: Path) -> None:
    put_books(tmp_path, num_books=3, num_sentences=200)
    noise = BookNoise(tmp_path, window=None, run=10)
    starts, lengths = set(), []
    for seed in range(50):
        places = [origin(sentence) for sentence in noise.draw(40, rng(seed))]
        run_starts = [0, *(i for i in range(1, 40) if places[i] != (places[i - 1][0], places[i - 1][1] + 1)), 40]
        lengths += np.diff(run_starts).tolist()
        starts |= {places[i][1] % 10 for i in run_starts[:-1]}
    assert starts == set(range(10))
    assert np.mean(lengths) > 8


def test_too_much_noise_is_refused(tmp_path: Path) -> None:
    put_books(tmp_path)
    with pytest.raises(ValueError, match="101 sentences of noise asked for, but there are 100"):
        BookNoise(tmp_path, window=100).draw(101, rng())
    with pytest.raises(ValueError, match="there are 1080"):
        BookNoise(tmp_path, window=5000).draw(1081, rng())


def test_an_era_has_a_window_of_its_own(tmp_path: Path) -> None:
    put_books(tmp_path)
    noise, same = (BookNoise(tmp_path, window=100, stretch=20, seed=3) for _ in range(2))
    windows = [noise.sentences(era) for era in range(3)]
    assert [same.sentences(era) for era in (2, 1, 0)] == windows[::-1]
    assert len({tuple(window) for window in windows}) == 3
    assert BookNoise(tmp_path, window=100, stretch=20, seed=4).sentences() != windows[0]
    assert len({origin(sentence)[0] for sentence in windows[0]}) >= 5
    assert set(noise.draw(50, rng(), era=1)) <= set(windows[1])


def test_only_the_books_of_the_window_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_books(tmp_path)
    read = []
    monkeypatch.setattr(
        books_module, "read_text", lambda path, real=books_module.read_text: read.append(path) or real(path)
    )
    noise = BookNoise(tmp_path, window=60, stretch=20)
    assert not read
    noise.draw(30, rng())
    noise.draw(30, rng(1))
    assert 3 <= len(read) <= 4
    noise.sentences(1)
    assert len(read) == len(set(read)) <= 8


# -- bAbI --------------------------------------------------------------------------------------------------------------


def test_a_story_is_read(tmp_path: Path) -> None:
    first, second = read_stories(put(tmp_path, "story.txt", STORY + story(1)))
    assert first.statements == (
        "Mary took the football.",
        "Mary went to the hall.",
        "John left.",
        "Mary went to the attic.",
    )
    where, who = first.questions
    assert (where.text, where.answers, where.supporting, where.num_statements) == (
        "Where is the football?",
        ("hall",),
        (0, 1),
        2,
    )
    assert (who.line, who.answers, who.supporting, who.num_statements) == (6, ("attic", "top"), (3,), 4)
    assert second.questions[0].line == 9


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "expected 'ID text', got str ''"),
        ("2 Mary left.\n", 1, "ID: expected 1, got str '2'"),
        ("1 A.\n3 B.\n", 2, "ID: expected 2, or 1 for the start of a story, got str '3'"),
        ("1 A.\n\n", 2, "expected 'ID text'"),
        ("1 A.\nB.\n", 2, "expected 'ID text'"),
        ("1 A.\n2 Who?\tA\n", 2, "expected 'question<TAB>answer<TAB>supporting IDs'"),
        ("1 A.\n2 Who?\t\t1\n", 2, "expected 'question<TAB>answer<TAB>supporting IDs'"),
        ("1 A.\n2 Who?\tA\t3\n", 2, "supporting ID: expected the ID of an earlier statement of the story, got str '3'"),
        ("1 A.\n2 Who?\tA\t1\n3 Who?\tA\t2\n", 3, "supporting ID"),
        ("1 A.\n2 Who?\tA\tx\n", 2, "supporting ID"),
        ("1 A.\n2 Who?\ta,,b\t1\n", 2, "parts between commas"),
    ],
)
def test_a_bad_line_of_a_story_is_named(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = put(tmp_path, "story.txt", text)
    with pytest.raises(DataError) as caught:
        read_stories(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert reason in str(caught.value)


def test_facts_keep_their_order_among_noise(tmp_path: Path) -> None:
    put_books(tmp_path, "test", 4)
    put(tmp_path, "babi/en/qa2_two-supporting-facts_test.txt", STORY)
    noise = BookNoise(tmp_path, "test", window=None)
    source = BabiLong(tmp_path, 2, "test", num_chunks=30, noise=noise)
    places = []
    for seed in range(30):
        sample = source.sample(1, rng(seed))
        facts = [i for i, chunk in enumerate(sample.chunks) if not chunk.startswith("Here book")]
        assert [sample.chunks[i] for i in facts] == list(source._questions[1][0].statements)
        assert len(sample.chunks) == 30
        assert sample.supporting == (facts[3],)
        assert sample.answers == (("attic",), ("top",))
        assert (sample.question, sample.mode) == ("Where is Mary?", "document")
        places += facts
        hidden = [origin(chunk) for chunk in sample.chunks if chunk.startswith("Here book")]
        assert len(set(hidden)) == 26
    assert min(places) < 3
    assert max(places) > 26
    sample = source.sample(0, rng())
    assert [sample.chunks[i] for i in sample.supporting or ()] == ["Mary took the football.", "Mary went to the hall."]


def test_long_stories_make_longer_documents(tmp_path: Path) -> None:
    put_books(tmp_path, "test", 4)
    put(tmp_path, "babi/en/qa1_single-supporting-fact_test.txt", STORY)
    source = BabiLong(tmp_path, 1, "test", num_chunks=3)
    assert [len(source.sample(i, rng()).chunks) for i in range(2)] == [3, 4]
    exact = BabiLong(tmp_path, 1, "test", num_chunks=2)
    assert exact.sample(0, rng()).chunks == ("Mary took the football.", "Mary went to the hall.")


def test_bare_stories_need_no_books(tmp_path: Path) -> None:
    put(tmp_path, "babi/en/qa1_single-supporting-fact_test.txt", STORY)
    source = BabiLong(tmp_path, 1, "test", num_chunks=None)
    generator = rng()
    assert source.sample(1, generator).chunks == source._questions[1][0].statements
    assert source.sample(1, generator).supporting == (3,)
    assert generator.integers(2**60) == rng().integers(2**60)


WORLD = [
    "Mary went to the {a}.", "John took the {b} there.", "Mary moved to the {c}.", "John journeyed to the {a}.",
]  # fmt: skip
ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")


def put_world(folder: Path, part: str, worlds: list[dict[str, str]]) -> None:
    lines = []
    for world in worlds:
        lines += [f"{i} {line.format(**world)}" for i, line in enumerate(WORLD, 1)]
        lines += [f"5 Where is Mary?\t{world['c']}\t3", f"6 Where was the {world['b']}?\t{world['a']},Mary\t2 4"]
    put(folder, f"babi/en/qa1_single-supporting-fact_{part}.txt", "\n".join(lines) + "\n")


def test_renaming_exchanges_names_of_a_kind_alike_in_story_question_and_answers(tmp_path: Path) -> None:
    put_world(tmp_path, "train", [{"a": room, "b": "milk", "c": "office"} for room in ROOMS[:4]])
    plain, renamed = (
        BabiLong(tmp_path, 1, num_chunks=None, validation_share=0, rename=rename) for rename in (False, True)
    )
    generator, seen = rng(), set()
    for number in range(len(plain)):
        for _ in range(30):
            before, after = plain.sample(number, generator), renamed.sample(number, generator)
            texts = [(before.question, after.question), *zip(before.chunks, after.chunks, strict=True)]
            texts += [(old, new) for (old,), (new,) in zip(before.answers or (), after.answers or (), strict=True)]
            words = {pair for old, new in texts for pair in zip(_words(old), _words(new), strict=True)}
            new_names = dict(words)
            assert len(words) == len(new_names) == len(set(new_names.values()))  # one to one, in the whole sample
            for old, new in words:
                kind = next((kind for kind in (("Mary", "John"), ROOMS, ("milk",)) if old in kind), (old,))
                assert new in kind
            assert (after.id, after.supporting) == (before.id, before.supporting)
            seen.add(new_names["Mary"])
    assert seen == {"Mary", "John"}
    assert BabiLong(tmp_path, 1, num_chunks=None, validation_share=0, rename=True).sample(0, rng()) == renamed.sample(
        0, rng()
    )


def _words(text: str) -> list[str]:
    return text.replace(".", " .").replace("?", " ?").split()


def test_renaming_makes_no_story_of_validation_or_test(tmp_path: Path) -> None:
    # Whatever the rooms are called, it is a story of the test file but for the one way to name them in training.
    worlds = [{"a": a, "b": "milk", "c": c} for a in ROOMS for c in ROOMS if a != c]
    put_world(tmp_path, "train", worlds[:20])
    put_world(tmp_path, "test", worlds[20:])
    source = BabiLong(tmp_path, 1, num_chunks=None, validation_share=0.3, rename=True)
    test, validation = (BabiLong(tmp_path, 1, split, num_chunks=None, validation_share=0.3) for split in SPLITS[:0:-1])
    forbidden = {"\n".join(story.statements) for other in (test, validation) for story, _ in other._questions}
    generator = rng()
    drawn = {"\n".join(source.sample(i, generator).chunks) for i in range(len(source)) for _ in range(60)}
    assert not drawn & forbidden
    own = {"\n".join(story.statements) for story, _ in source._questions}
    assert len(drawn) > len(own)
    assert test.sample(0, rng()) == BabiLong(tmp_path, 1, "test", num_chunks=None, rename=True).sample(0, rng())


@pytest.mark.parametrize("name", ["hotpotqa", "musique"])
def test_paragraphs_of_other_questions_are_mixed_in_for_training_only(tmp_path: Path, name: str) -> None:
    line = wiki_line if name == "hotpotqa" else musique_line
    ends = ("train", "dev")
    for place, end in enumerate(ends):
        lines = [line(i, [f"A{i}", f"B{i}"]) for i in range(100 * place, 100 * place + 30)]
        put(tmp_path, f"{name}/{name}_{end}.jsonl", lines)
    plain, mixed = (open_source(name, tmp_path, num_mixed=number) for number in (0, 5))
    generator = rng()
    added = set()
    for number in range(len(plain)):
        before, after = plain.sample(number, generator), mixed.sample(number, generator)
        assert after.chunks[: len(before.chunks)] == before.chunks
        assert after.supporting == before.supporting
        extra = after.chunks[len(before.chunks) :]
        assert len(set(extra)) == 5
        assert not set(extra) & set(before.chunks)
        added.update(extra)
    known = {chunk for number in range(len(plain)) for chunk in plain.sample(number, generator).chunks}
    assert added <= known
    assert len(added) > 0.5 * len(known)
    for split in ("validation", "test"):
        assert open_source(name, tmp_path, split, num_mixed=5).sample(0, rng()) == open_source(
            name, tmp_path, split
        ).sample(0, rng())
    with pytest.raises(ValueError, match="num_mixed must be at least 0"):
        open_source(name, tmp_path, num_mixed=-1)


def test_needle_haystacks_of_an_era_are_drawn_from_the_same_sentences(tmp_path: Path) -> None:
    source, generator = Niah("niah-multikey-3", tmp_path, num_chunks=1000), rng()
    samples = [source.sample(i, generator) for i in range(30)]
    assert len({tuple(sample.chunks) for sample in samples}) == 30
    distinct = {chunk for sample in samples for chunk in sample.chunks}
    assert 3_900 < len(distinct) <= 4_000 + 30
    other = {chunk for i in range(30) for chunk in source.sample(i, generator, era=1).chunks}
    assert len(other & distinct) == 0
    # Back in the first era they are the same again, but for the needle that is asked for.
    assert len(set(source.sample(0, generator).chunks) - distinct) == 1


def test_validation_is_cut_by_story(tmp_path: Path) -> None:
    put_babi(tmp_path, range(300), tested=range(290, 310))
    texts = {
        split: {question[0].text for question in BabiLong(tmp_path, 1, split, num_chunks=None)._questions}
        for split in SPLITS
    }
    assert not texts["train"] & texts["validation"]
    assert not texts["test"] & (texts["train"] | texts["validation"])
    assert len(texts["train"]) + len(texts["validation"]) == 290
    assert 10 < len(texts["validation"]) < 60
    assert BabiLong(tmp_path, 1, "train", num_chunks=None).dropped == {"story in the test file": 10}
    put_babi(tmp_path, range(600))
    more = {question[0].text for question in BabiLong(tmp_path, 1, "validation", num_chunks=None)._questions}
    assert texts["validation"] < more  # what is added moves nothing
    assert len(BabiLong(tmp_path, 1, "train", num_chunks=None, validation_share=0)) == 600 - 20


def test_one_story_with_two_questions_is_one_story(tmp_path: Path) -> None:
    """QA4 asks different things about the same two statements."""
    facts = "1 The hall is west of the attic.\n2 The attic is west of the den.\n"
    put(
        tmp_path,
        "babi/en-10k/qa4_two-arg-relations_train.txt",
        facts + "3 What is west of the den?\tattic\t2\n" + story(1) * 9,
    )
    put(tmp_path, "babi/en/qa4_two-arg-relations_test.txt", facts + "3 What is west of the attic?\thall\t1\n")
    source = BabiLong(tmp_path, 4, "train", num_chunks=None, validation_share=0)
    assert source.dropped == {"story in the test file": 1}
    assert len(source) == 9


def test_the_larger_train_file_is_read(tmp_path: Path) -> None:
    put(tmp_path, "babi/en/qa3_three-supporting-facts_train.txt", story(1))
    assert BabiLong(tmp_path, 3, num_chunks=None, validation_share=0).sample(0, rng()).id == "babilong-qa3-en-train-3"
    put(tmp_path, "babi/en-10k/qa3_three-supporting-facts_train.partial.txt", story(2))
    sample = BabiLong(tmp_path, 3, num_chunks=None, validation_share=0).sample(0, rng())
    assert (sample.id, sample.answers) == ("babilong-qa3-en-10k-train.partial-3", (("room 2",),))
    put(tmp_path, "babi/en-10k/qa3_three-supporting-facts_train.txt", story(3))
    assert BabiLong(tmp_path, 3, num_chunks=None, validation_share=0).sample(0, rng()).answers == (("room 3",),)


def test_babilong_checks_its_settings(tmp_path: Path) -> None:
    for setting, reason in (({"task": 6}, "task must be"), ({"validation_share": 1}, "validation_share must be")):
        with pytest.raises(ValueError, match=reason):
            BabiLong(tmp_path, **{"task": 1, **setting})  # type: ignore[arg-type]
    put(tmp_path, "babi/en/qa1_single-supporting-fact_test.txt", "1 Mary left.\n")
    with pytest.raises(DataError, match="no question is left"):
        BabiLong(tmp_path, 1, "test", num_chunks=None)
    assert LENGTHS == {"1k": 50, "4k": 160, "32k": 1200, "128k": 4600, "1M": 40000, "10M": 400000}


def test_an_era_can_keep_to_a_small_window_of_noise(everything: Path) -> None:
    """So that few chunks are embedded in it; stories and needles share the sentences of books."""
    sources = [
        *(open_source(f"babilong-qa{task}", everything, num_chunks=30, noise_window=40) for task in (1, 2)),
        open_source("niah-single-2", everything, "train", num_chunks=30, noise_window=40),
    ]
    windows = [set(source.noise.sentences(3)) for source in sources[:2]]  # type: ignore[attr-defined]
    windows.append(set(sources[2]._noise.sentences(3)))  # type: ignore[attr-defined]
    assert windows[0] == windows[1] == windows[2]
    assert len(windows[0]) <= 40
    assert len({origin(sentence)[0] for sentence in windows[0]}) >= 4
    needles = Niah("niah-multikey-2", everything, "train", num_chunks=10, noise_window=12)
    drawn = {text for i in range(20) for text in needles.sample(i, rng(i), era=1).chunks}
    assert len(drawn) <= 12 + 20, "and a needle that is asked for in each"
    assert not drawn & set(needles.sample(99, rng(99), era=2).chunks)
    with pytest.raises(ValueError, match="documents of 30 sentences need a noise_window of as many, got 20"):
        BabiLong(everything, 1, num_chunks=30, noise_window=20)
    for wrong in (
        lambda: BabiLong(everything, 1, noise_window=0),
        lambda: Niah("niah-multikey-2", everything, "train", noise_window=0),
    ):
        with pytest.raises(ValueError, match="noise_window must be at least 1"):
            wrong()
    # What a validation measures must not hang on a few sentences.
    assert BabiLong(everything, 1, "validation", num_chunks=30, noise_window=40).noise.window > 40  # type: ignore[union-attr]


def test_noise_can_mention_what_the_story_is_about(everything: Path) -> None:
    lines = [f"Mary saw house {i}. The milk of farm {i} was sour. Nobody came." for i in range(30)]
    put(everything, "books/train/zz mentions.txt.gz", "\n".join(lines) + "\n")
    plain = BabiLong(everything, 1, num_chunks=30, noise_window=40)
    hard = BabiLong(everything, 1, num_chunks=30, noise_window=40, hard_noise=6)

    def about(sample: Sample) -> list[int]:
        story = {chunk for fact in sample.supporting or () for chunk in (sample.chunks[fact],)}
        return [
            place for place, text in enumerate(sample.chunks)
            if re.fullmatch(r"Mary saw house \d+\.", text) and text not in story
        ]  # fmt: skip

    asked = [number for number in range(len(hard)) if "Mary" in hard.sample(number, rng(0)).question]
    places = set()
    for number in asked:
        before, after = plain.sample(number, rng(number)), hard.sample(number, rng(number))
        assert (after.question, len(after.chunks)) == (before.question, len(before.chunks))
        assert [after.chunks[i] for i in after.supporting or ()] == [before.chunks[i] for i in before.supporting or ()]
        assert len(about(after)) == 6
        assert len({after.chunks[place] for place in about(after)}) == 6
        places |= {place > (after.supporting or ())[-1] for place in about(after)}
        assert hard.sample(number, rng(number)) == after, "the same at every draw"
    assert places == {True, False}, "before and after the evidence"
    eras = [
        {
            hard.sample(asked[0], rng(i), era).chunks[p]
            for i in range(40)
            for p in about(hard.sample(asked[0], rng(i), era))
        }
        for era in (0, 1)
    ]
    assert eras[0] != eras[1]
    assert max(map(len, eras)) <= 12, "so that few are embedded in an era"
    validation = BabiLong(everything, 1, "validation", num_chunks=30, hard_noise=6)
    assert validation.sample(0, rng()) == BabiLong(everything, 1, "validation", num_chunks=30).sample(0, rng())
    with pytest.raises(ValueError, match="hard_noise must be at least 0, got -1"):
        BabiLong(everything, 1, hard_noise=-1)


def test_books_are_split_once_for_all_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_books(tmp_path)
    read = []
    monkeypatch.setattr(
        books_module, "read_text", lambda path, real=books_module.read_text: read.append(path) or real(path)
    )
    first, second = (BookNoise(tmp_path, window=None) for _ in range(2))
    assert first.sentences() == second.sentences()
    assert len(read) == len(set(read)) == len(first.books)


def test_noise_is_as_large_as_the_document(everything: Path) -> None:
    assert BabiLong(everything, 1, num_chunks=4600).noise.window == 4600  # type: ignore[union-attr]
    assert BabiLong(everything, 1).noise.window == 4000  # type: ignore[union-attr]
    assert BabiLong(everything, 1, "test", num_chunks=40_000).noise.window == 40_000  # type: ignore[union-attr]


# -- Wikipedia ---------------------------------------------------------------------------------------------------------


def test_a_paragraph_is_its_title_and_sentences(tmp_path: Path) -> None:
    put(tmp_path, "hotpotqa/hotpotqa_dev.jsonl.gz", [wiki_line(7, ["Gold", "Silver"])])
    sample = open_source("hotpotqa", tmp_path, "test").sample(0, rng())
    assert sample.chunks[1] == "Gold. Gold is it. So it is. Yes."
    assert sample == Sample("id7", "Question 7?", sample.chunks, (1, 2), (("answer 7",),), "corpus")


def test_gold_titles_that_are_not_there_are_dropped(tmp_path: Path) -> None:
    lost = {**wiki_line(2, ["Gold"]), "supporting_facts": [["Gold", 0], ["Lead", 0]]}
    put(tmp_path, "2wiki/2wiki_dev.jsonl.gz", [wiki_line(1, ["Gold"]), lost])
    source = open_source("2wiki", tmp_path, "test")
    assert (len(source), source.dropped) == (1, {"gold title not in the context": 1})  # type: ignore[attr-defined]


def test_of_two_paragraphs_with_one_title_the_first_is_gold(tmp_path: Path) -> None:
    line = wiki_line(1, ["Gold"])
    put(tmp_path, "2wiki/2wiki_dev.jsonl.gz", [{**line, "context": [*line["context"], ["Gold", ["Other gold."]]]}])
    assert open_source("2wiki", tmp_path, "test").sample(0, rng()).supporting == (1,)


def test_linked_groups_are_named_by_their_smallest_member() -> None:
    assert linked_groups([["d", "c"], ["x"], ["b", "d"], ["x", "y"], ["a", "b"], ["z"]]) == [
        "a",
        "x",
        "a",
        "x",
        "a",
        "z",
    ]
    chain = [[f"{i:05}", f"{i + 1:05}"] for i in range(3000)]
    assert set(linked_groups(chain)) == set(linked_groups(chain[::-1])) == {"00000"}


@pytest.mark.parametrize("name", ["hotpotqa", "musique"])
def test_no_gold_title_is_on_both_sides(tmp_path: Path, name: str) -> None:
    line = wiki_line if name == "hotpotqa" else musique_line
    pairs = [[f"T {i}", f"T {i + 1}"] for i in range(400) if i % 5 != 4]  # chains of five titles
    put(tmp_path, f"{name}/{name}_train.jsonl.gz", [line(i, gold) for i, gold in enumerate(pairs)])
    put(tmp_path, f"{name}/{name}_dev.jsonl.gz", [line(1000, ["T 0", "T 900"])])
    gold = {}
    for split in SPLITS:
        samples = open_source(name, tmp_path, split).samples  # type: ignore[attr-defined]
        gold[split] = {sample.chunks[i].partition(".")[0] for sample in samples for i in sample.supporting}
    assert not gold["train"] & gold["validation"]
    assert not gold["test"] & (gold["train"] | gold["validation"])
    assert gold["train"]
    assert gold["validation"]
    source = open_source(name, tmp_path)
    assert source.dropped["gold title in a test file"] == 1  # type: ignore[attr-defined]
    assert len(source) + len(open_source(name, tmp_path, "validation")) == len(pairs) - 1


def test_kinds_and_settings_are_filters_behind_the_cut(tmp_path: Path) -> None:
    lines = [wiki_line(i, [f"A {i}"], setting="fullwiki" if i % 3 else "distractor") for i in range(200)]
    put(tmp_path, "hotpotqa/hotpotqa_train.jsonl.gz", lines)
    every = {sample.id for sample in open_source("hotpotqa", tmp_path).samples}  # type: ignore[attr-defined]
    some = {s.id for s in open_source("hotpotqa", tmp_path, kinds=["bridge"], setting="fullwiki").samples}  # type: ignore[attr-defined]
    assert some == {line["_id"] for line in lines if line["type"] == "bridge" and line["setting"] == "fullwiki"} & every
    with pytest.raises(ValueError, match="got 'bridges'; did you mean 'bridge'"):
        open_source("hotpotqa", tmp_path, kinds=["bridges"])
    with pytest.raises(TypeError, match="got the string 'bridge'"):
        open_source("hotpotqa", tmp_path, kinds="bridge")
    with pytest.raises(ValueError, match="setting must be"):
        open_source("2wiki", tmp_path, setting="distractor")


WIKI_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no id": (lambda line: line.pop("_id"), "the key '_id' is missing"),
    "no question": (lambda line: line.update(question=" "), "question: expected a string that is not blank"),
    "answer": (lambda line: line.update(answer=3), "answer: expected a string, got int 3"),
    "no facts": (lambda line: line.update(supporting_facts=[]), "supporting_facts: expected a list with something"),
    "fact": (lambda line: line.update(supporting_facts=[["A", "0"]]), "supporting_facts[0]: expected [title, sentence"),
    "fact text": (lambda line: line.update(supporting_facts=["A"]), "supporting_facts[0]: expected [title, sentence"),
    "context": (lambda line: line["context"].append(["A"]), "context[4]: expected [title, [sentences]]"),
    "sentence": (lambda line: line["context"].append(["A", [1]]), "context[4][1]: expected a list of strings"),
    "id twice": (lambda line: line.update(_id="id0"), "the id 'id0' occurs twice"),
}


@pytest.mark.parametrize("fault", WIKI_FAULTS)
def test_a_bad_line_of_a_wiki_file_is_named(tmp_path: Path, fault: str) -> None:
    change, reason = WIKI_FAULTS[fault]
    line = wiki_line(1, ["A", "B"])
    change(line)
    path = put(tmp_path, "hotpotqa/hotpotqa_dev.jsonl.gz", [wiki_line(0, ["A", "B"]), line])
    with pytest.raises(DataError) as caught:
        open_source("hotpotqa", tmp_path, "test")
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert reason in str(caught.value)


def test_the_open_corpus_is_shared(everything: Path) -> None:
    source = TwoWikiOpen(everything)
    first, second = source.sample(0, rng()), source.sample(1, rng())
    assert first.chunks is second.chunks
    assert first.chunks[0] == "A 300. It is."
    assert (first.supporting, second.supporting, first.mode) == ((0, 1), (2, 3), "corpus")
    put(everything, "2wiki/2wiki_corpus_6119.jsonl.gz", [{"title": "A", "text": "a"}, {"title": "A", "text": "b"}])
    with pytest.raises(DataError, match=r"line 2: the title 'A' occurs twice"):
        TwoWikiOpen(everything)


def test_musique_aliases_are_answers(tmp_path: Path) -> None:
    put(
        tmp_path,
        "musique/musique_dev.jsonl.gz",
        [musique_line(3, ["A", "B"]), musique_line(4, ["A"], answerable=False)],
    )
    source = open_source("musique", tmp_path, "test")
    sample = source.sample(0, rng())
    assert sample.chunks == ("A. A is 0.", "B. B is 1.", "Other 3. Other 3 is 2.")
    assert (sample.supporting, sample.answers, sample.mode) == ((0, 1), (("one", "1"),), "corpus")
    assert (len(source), source.dropped) == (1, {"not answerable": 1})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda line: line["paragraphs"].append(3), "paragraphs[2]: expected a JSON object, got int 3"),
        (lambda line: line["paragraphs"][0].pop("title"), "the key 'title' is missing"),
        (
            lambda line: line["paragraphs"][0].update(is_supporting=1),
            "is_supporting: expected true or false, got int 1",
        ),
        (lambda line: line["paragraphs"][0].update(is_supporting=False), "no paragraph is supporting"),
        (lambda line: line.update(answer_aliases="one"), "answer_aliases: expected a list of strings"),
        (lambda line: line.update(answer_aliases=[1]), "answer_aliases[0]: expected a string"),
    ],
)
def test_a_bad_line_of_musique_is_named(tmp_path: Path, change: Callable[[Any], Any], reason: str) -> None:
    line = musique_line(1, ["A"])
    change(line)
    path = put(tmp_path, "musique/musique_dev.jsonl.gz", [line])
    with pytest.raises(DataError) as caught:
        open_source("musique", tmp_path, "test")
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert reason in str(caught.value)


# -- RULER: questions over passages ------------------------------------------------------------------------------------


def test_squad_fills_up_with_the_same_article_first(everything: Path) -> None:
    source = Squad(everything, num_chunks=20)
    assert len(source) == 30  # unanswerable questions are left out
    assert source.pool == tuple(sorted(f"{title} says {i}." for title in ("Test", "Exam") for i in range(15)))
    golds = set()
    for number in range(30):
        sample = source.sample(number, rng(number))
        check(sample)
        title, i = sample.question.removesuffix("?").split()
        assert [sample.chunks[i] for i in sample.supporting or ()] == [f"{title} says {i}."]
        assert sample.answers == ((i, f"no {i}"),)
        assert sum(chunk.startswith(title) for chunk in sample.chunks) == 15
        assert len(set(sample.chunks)) == len(sample.chunks) == 20
        golds.add(sample.supporting)
    assert len(golds) > 10  # shuffled
    few = Squad(everything, num_chunks=4).sample(0, rng())
    assert len(few.chunks) == 4
    assert all(chunk.startswith("Test") for chunk in few.chunks)
    assert Squad(everything, num_chunks=1).sample(0, rng()).chunks == ("Test says 0.",)
    assert len(set(Squad(everything, num_chunks=30).sample(0, rng()).chunks)) == 30


def test_squad_trains_on_other_articles_only(everything: Path) -> None:
    copied = squad(("Other name", 1), ("Free", 2), ("Test", 1), version=1)
    copied["data"][0]["paragraphs"][0]["context"] = " Exam says  3. "
    copied["data"][2]["paragraphs"][0]["context"] = "A new paragraph of a known article."
    put(everything, "squad/xquad_en_squad_v1_dev_subset.json.gz", copied)
    source = Squad(everything, "train", num_chunks=2, validation_share=0)
    assert source.pool == ("Free says 0.", "Free says 1.")
    assert source.dropped == {"article in the test file": 2}
    (everything / "squad/squad_v2_dev_half.json.gz").unlink()
    with pytest.raises(DataError, match="squad_v2_dev_half"):
        Squad(everything, "train", num_chunks=2)


def test_squad_is_cut_by_article(everything: Path) -> None:
    pools = {split: set(Squad(everything, split).pool) for split in SPLITS}
    assert not pools["train"] & pools["validation"]
    assert not pools["test"] & (pools["train"] | pools["validation"])
    articles = {split: {text.partition(" says")[0] for text in pools[split]} for split in SPLITS}
    assert not articles["train"] & articles["validation"]
    assert len(articles["train"]) + len(articles["validation"]) == 40


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "file: expected a JSON object"),
        ("{", "is not JSON"),
        ({"data": [3]}, "data[0]: expected a JSON object, got int 3"),
        ({"data": [{"title": "A", "paragraphs": [{"context": "C"}]}]}, "data[0].paragraphs[0].qas: expected a list"),
        ({"data": [{"title": "A", "paragraphs": [{"context": "C", "qas": ["q"]}]}]}, "qas: expected a JSON object"),
        (
            {
                "data": [
                    {
                        "title": "A",
                        "paragraphs": [{"context": "C", "qas": [{"id": "1", "question": "q", "answers": []}]}],
                    }
                ]
            },
            "answers: expected a list with something in it",
        ),
    ],
)
def test_a_bad_squad_file_is_named(tmp_path: Path, content: Any, reason: str) -> None:
    path = put(tmp_path, "squad/squad_v2_dev_half.json", content)
    with pytest.raises(DataError) as caught:
        Squad(tmp_path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_ruler_hotpot_adds_random_paragraphs(everything: Path) -> None:
    bare = open_source("hotpotqa", everything, "test")
    source = open_source("ruler-qa-2", everything, "test", num_chunks=12)
    for number in range(len(source)):
        plain, sample = bare.sample(number, rng()), source.sample(number, rng(number))
        assert set(plain.chunks) < set(sample.chunks)
        assert len(set(sample.chunks)) == len(sample.chunks) == 12
        assert {sample.chunks[i] for i in sample.supporting or ()} == {plain.chunks[i] for i in plain.supporting or ()}
    assert source.sample(0, rng(1)).chunks != source.sample(0, rng(2)).chunks
    with pytest.raises(ValueError, match="at least 2, the gold passages"):
        open_source("ruler-qa-2", everything, "test", num_chunks=1)
    with pytest.raises(ValueError, match="500 passages asked for, but there are 40"):
        open_source("ruler-qa-2", everything, "test", num_chunks=500)


def test_lengths_in_tokens(everything: Path) -> None:
    source = open_source("ruler-qa-1", everything, "test", num_tokens=60, count_tokens=str.split)
    assert source.num_chunks == 20  # type: ignore[attr-defined]  # three words a passage
    for name in TASKS:
        for split in ("train", "test"):
            source = open_source(name, everything, split, num_tokens=500, count_tokens=str.split)
            lengths = [sum(len(chunk.split()) for chunk in source.sample(i, rng(i)).chunks) for i in range(20)]
            assert 440 < np.mean(lengths) < 600, name
    long = Niah("niah-single-2", everything, "train", num_tokens=50_000, count_tokens=str.split)
    assert long.num_chunks > 4000
    assert long._noise.window == long.num_chunks  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="num_tokens needs count_tokens"):
        open_source("niah-single-1", everything, num_tokens=100)
    with pytest.raises(ValueError, match="both given"):
        open_source("niah-single-1", everything, num_tokens=100, num_chunks=4, count_tokens=str.split)


# -- RULER: needles ----------------------------------------------------------------------------------------------------

KEY = {
    "words": r"[\w' .-]+?-[\w' .-]+",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}
VALUE = {"numbers": r"[1-9]\d{6}", "uuids": KEY["uuids"]}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_needles_are_as_ruler_describes_them(everything: Path, name: str, split: Any) -> None:
    task = TASKS[name]
    source = Niah(name, everything, split, num_chunks=60, num_questions=40)
    needle = re.compile(
        rf"One of the special magic {task.value_type} for ({KEY[task.key_type]}) is: ({VALUE[task.value_type]})\."
    )
    for number in range(len(source)):
        sample = source.sample(number, rng(number))
        check(sample)
        assert len(sample.chunks) == 60
        assert sample.mode == "document"
        found = {i: match.groups() for i, chunk in enumerate(sample.chunks) if (match := needle.fullmatch(chunk))}
        assert len(found) == (60 if task.haystack == "needle" else task.num_needles)
        gold = [found[i] for i in sample.supporting or ()]
        assert len(gold) == task.num_gold
        keys = list(dict.fromkeys(key for key, _ in gold))
        assert {value for _, value in gold} == {part[0] for part in sample.answers or ()}
        assert len(sample.answers or ()) == task.num_gold
        assert all(key in sample.question for key in keys)
        assert not any(found[i][0] in keys for i in set(found) - set(sample.supporting or ()))


def test_the_question_is_worded_as_ruler_words_it(everything: Path) -> None:
    def question(name: str) -> tuple[str, list[str]]:
        sample = Niah(name, everything, num_chunks=60).sample(0, rng())
        values = dict(re.findall(r"for (.+) is: (.+)\.", " \n".join(sample.chunks)))
        keys = {value: key for key, value in values.items()}
        return sample.question, [keys.get(part[0], "") for part in sample.answers or ()]

    asked, keys = question("niah-single-1")
    assert asked == f"What is the special magic number for {keys[0]} mentioned in the provided text?"
    asked, keys = question("niah-multikey-3")
    assert asked == f"What is the special magic uuid for {keys[0]} mentioned in the provided text?"
    asked, keys = question("niah-multivalue")
    key = max(keys)
    assert asked == f"What are all the special magic numbers for {key} mentioned in the provided text?"
    asked, keys = question("niah-multiquery")
    query = f"{keys[0]}, {keys[1]}, {keys[2]}, and {keys[3]}"
    assert asked == f"What are all the special magic numbers for {query} mentioned in the provided text?"


def test_haystacks(everything: Path) -> None:
    def hay(name: str, split: Any, number: int = 0, num_chunks: int = 43) -> list[str]:
        sample = Niah(name, everything, split, num_chunks=num_chunks).sample(number, rng(number))
        return [chunk for chunk in sample.chunks if not chunk.startswith("One of the special magic")]

    assert hay("niah-single-1", "test") == [NOISE_LINE[i % 5] for i in range(42)]
    places = {Niah("niah-single-1", everything, num_chunks=41).sample(i, rng(i)).supporting for i in range(300)}
    assert places == {(i,) for i in range(0, 40, 5)}  # between lines of five sentences
    essay = ["What is an essay?"] * 30 + ["It is text."] * 30
    assert hay("niah-single-2", "test") == essay[:42]
    assert hay("niah-single-3", "test", num_chunks=131) == (essay * 3)[:130]
    training = hay("niah-single-2", "train")
    assert len({origin(sentence) for sentence in training}) == 42
    held_out = {origin(sentence)[0] for i in range(20) for sentence in hay("niah-multikey-1", "validation", i)}
    assert held_out == {9, 19}
    assert not held_out & {origin(sentence)[0] for i in range(20) for sentence in hay("niah-single-2", "train", i)}
    ends = {Niah("niah-single-2", everything, num_chunks=61).sample(i, rng(i)).supporting for i in range(400)}
    assert ends == {(60 * int(depth) // 100,) for depth in np.linspace(0, 100, 40).round()}


def test_splits_draw_from_streams_of_their_own(everything: Path) -> None:
    drawn = {
        split: [Niah("niah-single-1", everything, split).sample(i, rng(7)).answers for i in range(50)]
        for split in SPLITS
    }
    assert len({answers for split in SPLITS for answers in drawn[split]}) == 150


def test_a_haystack_must_hold_its_needles(everything: Path) -> None:
    with pytest.raises(ValueError, match="niah-multiquery hides 4 needles; 4 sentences are too few"):
        Niah("niah-multiquery", everything, num_chunks=4)
    assert len(Niah("niah-multiquery", everything, num_chunks=5).sample(0, rng()).chunks) == 5
    with pytest.raises(ValueError, match="did you mean 'niah-multiquery'"):
        Niah("niah-multiqueries", everything)


def test_no_distractor_has_the_key_that_is_asked_for(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Niah("niah-multikey-2", everything, num_chunks=60)
    monkeypatch.setattr(niah, "_words", lambda: (["red", "blue"], ["sea", "sky", "sun"]))
    for number in range(30):
        sample = source.sample(number, rng(number))
        key = sample.question.split()[7]
        assert [i for i, chunk in enumerate(sample.chunks) if f" for {key} is:" in chunk] == list(
            sample.supporting or ()
        )


def test_missing_word_lists_are_named(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    niah._words.cache_clear()
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    with pytest.raises(ImportError, match=r"'wonderwords'.*pip install"):
        Niah("niah-single-1", everything)
    Niah("niah-multikey-3", everything).sample(0, rng())


# -- the real data -----------------------------------------------------------------------------------------------------


def digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def check_disjoint(hashes: dict[str, set[str]]) -> None:
    assert all(hashes[split] for split in SPLITS)
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not hashes[one] & hashes[other], (one, other)


@pytest.mark.parametrize("task", range(1, 6))
def test_no_story_is_in_two_splits(shared: Path, task: int) -> None:
    sources = {split: BabiLong(shared / "data", task, split, num_chunks=None) for split in SPLITS}
    longest = {split: [story for story, _ in source._questions] for split, source in sources.items()}
    check_disjoint({split: {digest(*story.statements) for story in stories} for split, stories in longest.items()})
    dropped = sources["train"].dropped["story in the test file"]
    assert dropped == (2682 if task == 4 else 0)
    expected = {1: 10_000, 2: 10_000, 3: 1_925, 4: 10_000 - 2682, 5: 10_000}[task]
    assert len(sources["train"]) + len(sources["validation"]) == expected
    assert len(sources["test"]) == 500


@pytest.mark.parametrize("name", ["hotpotqa", "2wiki", "musique", "ruler-qa-1", "ruler-qa-2"])
def test_no_gold_passage_is_in_two_splits(shared: Path, name: str) -> None:
    hashes = {}
    for split in SPLITS:
        source = open_source(name, shared / "data", split)
        samples = [source.sample(i, rng(i)) for i in range(len(source))]
        hashes[split] = {digest(sample.chunks[i]) for sample in samples for i in sample.supporting or ()}
    check_disjoint(hashes)


def test_evidence_of_the_tests_is_evidence_in_no_training(shared: Path) -> None:
    """Whatever the data set; and hardly any of it stands among the wrong candidates."""
    tested: set[str] = set()
    trained: set[str] = set()
    seen: set[str] = set()
    for name in ("hotpotqa", "musique", "2wiki"):
        for split in ("train", "test"):
            source = open_source(name, shared / "data", split)
            for number in range(len(source)):
                sample = source.sample(number, rng(number))
                gold = {sample.chunks[place] for place in sample.supporting or ()}
                tested |= gold if split == "test" else set()
                trained |= gold if split == "train" else set()
                seen |= set(sample.chunks) if split == "train" else set()
    assert len(tested) > 1000
    assert not tested & trained
    assert len(tested & seen) < 0.01 * len(tested)


def test_2wiki_trains_on_nothing_that_the_open_questions_need(shared: Path) -> None:
    records = {
        part: {
            record.id: set(record.gold_titles)
            for record in read_wiki(shared / f"data/2wiki/2wiki_{part}.jsonl.gz", False)
        }
        for part in ("train", "corpus_questions_dev")
    }
    tested = set().union(*records["corpus_questions_dev"].values())
    for split in ("train", "validation"):
        source = open_source("2wiki", shared / "data", split)
        assert not tested & {
            title for i in range(len(source)) for title in records["train"][source.sample(i, rng()).id]
        }


def test_no_book_is_in_two_splits(shared: Path) -> None:
    hashes = {}
    for split in SPLITS:
        part = "test" if split == "test" else "train"
        paths = [shared / "data/books" / part / name for name in BookNoise(shared / "data", split).books]
        hashes[split] = {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    check_disjoint(hashes)
    assert {split: len(books) for split, books in hashes.items()} == {"train": 38, "validation": 4, "test": 126}


def test_counts_of_the_real_data(shared: Path) -> None:
    counts = {
        name: [len(open_source(name, shared / "data", split)) for split in SPLITS]
        for name in ("hotpotqa", "2wiki", "musique", "ruler-qa-1", "ruler-qa-2")
    }
    tests = {"hotpotqa": 358, "2wiki": 115, "musique": 140, "ruler-qa-1": 2910, "ruler-qa-2": 262}
    assert {name: lengths[2] for name, lengths in counts.items()} == tests
    # What is in the train files, less what touches a gold title, or an article, of a test question.
    trains = {
        "hotpotqa": 532 - 8,
        "2wiki": 333 - 23,
        "musique": 67 - 4,
        "ruler-qa-1": 1190 - 352,
        "ruler-qa-2": 532 - 8,
    }
    assert {name: lengths[0] + lengths[1] for name, lengths in counts.items()} == trains
    assert all(lengths[1] >= 5 for lengths in counts.values())
    open_questions = open_source("2wiki-open", shared / "data", "test")
    assert len(open_questions) == 236
    assert len(open_questions.sample(0, rng()).chunks) == 6119


def test_a_real_babilong_sample(shared: Path) -> None:
    source = BabiLong(shared / "data", 2, "validation", noise=BookNoise(shared / "data", "validation", window=500))
    for number in range(20):
        sample = source.sample(number, rng(number))
        check(sample)
        statements = set(source._questions[number][0].statements)
        assert len(sample.chunks) == 160
        assert all(sample.chunks[i] in statements for i in sample.supporting or ())
        assert sum(chunk in statements for chunk in sample.chunks) == source._questions[number][1].num_statements


def test_hashes_decide_the_cut() -> None:
    """The cut is part of what results mean: it must not move between releases."""
    assert [cut_of(f"story {i}", 0.1) for i in range(12)].count("validation") == sum(
        int.from_bytes(hashlib.blake2b(f"story {i}".encode(), digest_size=8).digest(), "big") < 0.1 * 2**64
        for i in range(12)
    )
    share = np.mean([cut_of(str(i), 0.25) == "validation" for i in range(4000)])
    assert 0.22 < share < 0.28
    assert babi_module.STEP_LIMITS == {1: 2, 2: 4, 3: 6, 4: 2, 5: 3}

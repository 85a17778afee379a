"""Questions over Wikipedia paragraphs: HotpotQA, 2WikiMultihopQA, 2Wiki over an open corpus, RULER's qa_2."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qrag_retriever.json_lines import Place, checked_text, list_of, nearest, text_of
from qrag_retriever.sentences import CountTokens
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.passages import (
    FixedQuestions,
    PooledQuestion,
    PooledQuestions,
    TitledSample,
    check_new_id,
    select_split,
)
from qrag_retriever.training.datasets.reading import find_file, passage, read_records, supporting_titles
from qrag_retriever.training.datasets.splits import Split, check_share, check_split

WikiName = Literal["hotpotqa", "2wiki"]
Setting = Literal["distractor", "fullwiki"]
_STEP_LIMITS: dict[WikiName, int] = {"hotpotqa": 2, "2wiki": 4}
_OPEN_STEP_LIMIT = 10
_TEST_FILES: dict[WikiName, tuple[str, ...]] = {
    "hotpotqa": ("hotpotqa/hotpotqa_dev",),
    "2wiki": ("2wiki/2wiki_dev", "2wiki/2wiki_corpus_questions_dev"),
}
_NO_GOLD = "gold title not in the context"


@dataclass(frozen=True, slots=True)
class WikiRecord:
    """A question as the file has it; ``paragraphs`` are (title, chunk) pairs, empty where the corpus is the context."""

    id: str
    question: str
    answer: str
    kind: str
    setting: str | None
    gold_titles: tuple[str, ...]
    paragraphs: tuple[tuple[str, str], ...]

    def sample(self, chunks: tuple[str, ...], ids_of_titles: dict[str, int]) -> Sample:
        """Return the question over some passages."""
        supporting = sorted({ids_of_titles[title] for title in self.gold_titles})
        return Sample(self.id, self.question, chunks, tuple(supporting), ((self.answer,),), "corpus")


def read_wiki(path: Path, with_context: bool = True) -> Iterator[WikiRecord]:
    """Yield the questions of a file in HotpotQA's format, one in each line.

    Raises:
        DataError: If a line is not in that format, or an id occurs twice.
    """
    seen: set[str] = set()
    for place, record in read_records(path):
        question_id = text_of(record, "_id", place)
        check_new_id(question_id, seen, place)
        yield WikiRecord(
            question_id,
            text_of(record, "question", place),
            text_of(record, "answer", place),
            text_of(record, "type", place),
            text_of(record, "setting", place) if "setting" in record else None,
            tuple(supporting_titles(list_of(record, "supporting_facts", place), place)),
            _paragraphs(list_of(record, "context", place), place) if with_context else (),
        )


def _paragraphs(context: list[Any], place: Place) -> tuple[tuple[str, str], ...]:
    paragraphs = []
    for i, entry in enumerate(context):
        what = f"context[{i}]"
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], list):
            raise place.expected(what, "[title, [sentences]]", entry)
        title = checked_text(entry[0], f"{what}[0]", place)
        if not all(isinstance(sentence, str) for sentence in entry[1]):
            raise place.expected(f"{what}[1]", "a list of strings", entry[1])
        sentences = [sentence.strip() for sentence in entry[1]]
        paragraphs.append((title, passage(title, " ".join(filter(None, sentences)))))
    return tuple(paragraphs)


class WikiQuestions(FixedQuestions):
    """HotpotQA or 2WikiMultihopQA: about ten paragraphs a question, those of the supporting facts to be found.

    The file named train is cut into train and validation so that no gold title is on both sides, and questions with a
    gold title of a test question are dropped; the file named dev is for testing only.

    Attributes:
        test_titles: Gold titles of the test questions that there are; empty in the test split.
        validation_titles: In the train split, gold titles of the validation questions.
    """

    def __init__(
        self,
        name: WikiName,
        folder: str | Path,
        split: Split = "train",
        *,
        setting: Setting | None = None,
        kinds: Collection[str] | None = None,
        num_mixed: int = 0,
        validation_share: float = 0.1,
    ) -> None:
        """Read the questions.

        Args:
            name: "hotpotqa" or "2wiki".
            folder: The data folder, with ``hotpotqa/`` or ``2wiki/``.
            split: "train", "validation" or "test".
            setting: How the other paragraphs were found; None for either. HotpotQA only.
            kinds: Values of ``type`` to keep, as in ["bridge"]; None for all.
            num_mixed: Paragraphs of other questions that are added at every draw; train split only.
            validation_share: Share of the train file that is for validation, about.

        Raises:
            DataError: If a file is missing, a line of it is not as the format has it, or no question is left.
        """
        if name not in get_args(WikiName):
            raise ValueError(f"name must be one of {', '.join(get_args(WikiName))}, got {name!r}")
        check_split(split)
        check_share(validation_share)
        if setting is not None and (name != "hotpotqa" or setting not in get_args(Setting)):
            raise ValueError(f"setting must be None, or for hotpotqa {' or '.join(get_args(Setting))}; got {setting!r}")
        records = list(read_wiki(wiki_file(folder, f"{name}/{name}_{'dev' if split == 'test' else 'train'}")))
        _check_kinds(kinds, {record.kind for record in records})
        dropped: dict[str, int] = {}
        self.test_titles = _test_titles(name, folder, split)
        titled = _titled(records, dropped)
        chosen = select_split(titled, split, self.test_titles, validation_share, dropped)
        self.validation_titles: set[str] = set()
        if split == "train":
            held_out = select_split(titled, "validation", self.test_titles, validation_share, {})
            self.validation_titles = {title for question in held_out for title in question.gold_titles}
        # Behind the cut, so that a question is on the same side whatever is filtered.
        wanted = {record.id for record in records if setting in {None, record.setting}}
        wanted &= {record.id for record in records if kinds is None or record.kind in kinds}
        samples = [question.sample for question in chosen if question.sample.id in wanted]
        super().__init__(name, split, samples, _STEP_LIMITS[name], dropped, num_mixed)


class TwoWikiOpen(FixedQuestions):
    """2Wiki questions over one corpus of passages; for testing only. All samples share the tuple of chunks."""

    def __init__(self, folder: str | Path, split: Split = "test") -> None:
        """Read the corpus and the questions.

        Args:
            folder: The data folder, with ``2wiki/``.
            split: "test".

        Raises:
            DataError: If a file is missing or a line of it is not as the format has it.
        """
        check_split(split, ["test"])
        ids_of_titles: dict[str, int] = {}
        chunks: list[str] = []
        for place, record in read_records(wiki_file(folder, "2wiki/2wiki_corpus_6119")):
            title = text_of(record, "title", place)
            if title in ids_of_titles:
                raise place.error(f"the title {title!r} occurs twice; titles name the passages")
            ids_of_titles[title] = len(chunks)
            chunks.append(passage(title, text_of(record, "text", place)))
        corpus = tuple(chunks)
        records = list(read_wiki(wiki_file(folder, "2wiki/2wiki_corpus_questions_dev"), with_context=False))
        known = [record for record in records if ids_of_titles.keys() >= set(record.gold_titles)]
        samples = [record.sample(corpus, ids_of_titles) for record in known]
        super().__init__("2wiki-open", split, samples, _OPEN_STEP_LIMIT, {_NO_GOLD: len(records) - len(known)})


class RulerHotpot(PooledQuestions):
    """RULER's qa_2: a HotpotQA question's paragraphs and random ones of the pool, shuffled."""

    def __init__(
        self,
        folder: str | Path,
        split: Split = "test",
        *,
        num_chunks: int | None = None,
        num_tokens: int | None = None,
        count_tokens: CountTokens | None = None,
        validation_share: float = 0.1,
    ) -> None:
        """Read the questions of the distractor setting; the pool are the paragraphs of the split.

        Args:
            folder: The data folder, with ``hotpotqa/``.
            split: "train", "validation" or "test".
            num_chunks: Passages of a sample; 20 if no length is given.
            num_tokens: The length in tokens instead, met on average.
            count_tokens: Turns a text into its tokens; needed for ``num_tokens``.
            validation_share: Share of the train file that is for validation, about.

        Raises:
            DataError: If a file is missing or a line of it is not as the format has it.
            ValueError: If the pool is smaller than a sample.
        """
        source = WikiQuestions("hotpotqa", folder, split, setting="distractor", validation_share=validation_share)
        super().__init__(
            "ruler-qa-2",
            split,
            [_pooled(sample) for sample in source.samples],
            num_chunks=num_chunks,
            num_tokens=num_tokens,
            count_tokens=count_tokens,
            default_num_chunks=20,
            dropped=source.dropped,
        )


def _pooled(sample: Sample) -> PooledQuestion:
    supporting = sample.supporting or ()
    gold = tuple(sample.chunks[i] for i in supporting)
    near = tuple(chunk for i, chunk in enumerate(sample.chunks) if i not in supporting)
    return PooledQuestion(sample.id, sample.question, gold, near, sample.answers or ())


def _titled(records: list[WikiRecord], dropped: dict[str, int]) -> list[TitledSample]:
    found = []
    for record in records:
        # Two paragraphs may have one title; the first of them is the one that the question was made from.
        ids_of_titles = {title: i for i, (title, _) in reversed(list(enumerate(record.paragraphs)))}
        if ids_of_titles.keys() >= set(record.gold_titles):
            chunks = tuple(chunk for _, chunk in record.paragraphs)
            found.append(TitledSample(record.sample(chunks, ids_of_titles), record.gold_titles))
    dropped[_NO_GOLD] = len(records) - len(found)
    return found


def wiki_file(folder: str | Path, stem: str) -> Path:
    """Return a file in HotpotQA's format, packed or not; DataError if there is none."""
    return find_file(folder, f"{stem}.jsonl.gz", f"{stem}.jsonl")


def _test_titles(name: WikiName, folder: str | Path, split: Split) -> set[str]:
    """Return the gold titles of the test files that there are; train data does without them."""
    if split == "test":
        return set()
    stems = _TEST_FILES[name]
    paths = [path for stem in stems for end in (".jsonl.gz", ".jsonl") if (path := Path(folder, stem + end)).is_file()]
    return {title for path in paths for record in read_wiki(path, with_context=False) for title in record.gold_titles}


def _check_kinds(kinds: Collection[str] | None, known: set[str]) -> None:
    if isinstance(kinds, str):
        raise TypeError(f"kinds must be a list of kinds, got the string {kinds!r}; use [{kinds!r}]")
    for kind in kinds or ():
        if kind not in known:
            raise ValueError(f"kinds must be some of {', '.join(sorted(known))}, got {kind!r}{nearest(kind, known)}")

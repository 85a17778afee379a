"""MuSiQue: questions of two to four hops over twenty paragraphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qrag_retriever.json_lines import Place, checked_text, list_of, text_of
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.passages import FixedQuestions, TitledSample, check_new_id, select_split
from qrag_retriever.training.datasets.reading import find_file, object_at, passage, read_records
from qrag_retriever.training.datasets.splits import Split, check_share, check_split

_STEP_LIMIT = 5
_NOT_ANSWERABLE = "not answerable"


class MuSiQue(FixedQuestions):
    """MuSiQue-Ans: the paragraphs marked as supporting are to be found.

    The file named train is cut into train and validation so that no gold title is on both sides, and questions with a
    gold title of a test question are dropped; the file named dev is for testing only.

    Attributes:
        test_titles: Gold titles of the test questions that there are; empty in the test split.
        validation_titles: In the train split, gold titles of the validation questions.
    """

    def __init__(
        self, folder: str | Path, split: Split = "train", *, num_mixed: int = 0, validation_share: float = 0.1
    ) -> None:
        """Read the questions.

        Args:
            folder: The data folder, with ``musique/``.
            split: "train", "validation" or "test".
            num_mixed: Paragraphs of other questions that are added at every draw; train split only.
            validation_share: Share of the train file that is for validation, about.

        Raises:
            DataError: If a file is missing, a line of it is not as the format has it, or no question is left.
        """
        check_split(split)
        check_share(validation_share)
        dropped: dict[str, int] = {}
        questions = _read(find_file(folder, *self.files(split)), dropped)
        self.test_titles: set[str] = set()
        if split != "test":
            for path in (Path(folder, name) for name in self.files("test")):
                if path.is_file():
                    self.test_titles |= {title for question in _read(path, {}) for title in question.gold_titles}
        chosen = select_split(questions, split, self.test_titles, validation_share, dropped)
        self.validation_titles: set[str] = set()
        if split == "train":
            held_out = select_split(questions, "validation", self.test_titles, validation_share, {})
            self.validation_titles = {title for question in held_out for title in question.gold_titles}
        samples = [question.sample for question in chosen]
        super().__init__("musique", split, samples, _STEP_LIMIT, dropped, num_mixed)

    @staticmethod
    def files(split: Split) -> tuple[str, str]:
        """Return what the file of a split may be called, below the data folder."""
        part = "dev" if split == "test" else "train"
        return f"musique/musique_{part}.jsonl.gz", f"musique/musique_{part}.jsonl"


def _read(path: Path, dropped: dict[str, int]) -> list[TitledSample]:
    dropped[_NOT_ANSWERABLE] = 0
    seen: set[str] = set()
    questions = []
    for place, record in read_records(path):
        if record.get("answerable") is False:  # MuSiQue-Full has these
            dropped[_NOT_ANSWERABLE] += 1
            continue
        check_new_id(text_of(record, "id", place), seen, place)
        questions.append(_question(record, place))
    return questions


def _question(record: dict[str, Any], place: Place) -> TitledSample:
    chunks, supporting, titles = [], [], []
    for i, entry in enumerate(list_of(record, "paragraphs", place)):
        paragraph = object_at(entry, f"paragraphs[{i}]", place)
        title = text_of(paragraph, "title", place)
        chunks.append(passage(title, text_of(paragraph, "paragraph_text", place)))
        if not isinstance(paragraph.get("is_supporting"), bool):
            raise place.expected(f"paragraphs[{i}].is_supporting", "true or false", paragraph.get("is_supporting"))
        if paragraph["is_supporting"]:
            supporting.append(i)
            titles.append(title)
    if not supporting:
        raise place.error("no paragraph is supporting; expected at least one")
    aliases = record.get("answer_aliases", [])
    if not isinstance(aliases, list):
        raise place.expected("answer_aliases", "a list of strings", aliases)
    answers = [text_of(record, "answer", place)]
    answers += [checked_text(alias, f"answer_aliases[{i}]", place) for i, alias in enumerate(aliases)]
    sample = Sample(
        text_of(record, "id", place),
        text_of(record, "question", place),
        tuple(chunks),
        tuple(supporting),
        (tuple(dict.fromkeys(answers)),),
        "corpus",
    )
    return TitledSample(sample, tuple(dict.fromkeys(titles)))

"""bAbI stories, bare or hidden among sentences of books (BabiLong)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.json_lines import Place
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.books import Noise, book_files, default_noise
from qrag_retriever.training.datasets.carrying import questions_before
from qrag_retriever.training.datasets.lookalikes import Lookalikes
from qrag_retriever.training.datasets.reading import find_file, read_text
from qrag_retriever.training.datasets.renaming import WORDS, Rename, Renaming
from qrag_retriever.training.datasets.splits import Split, check_filled, check_share, check_split, cut_of

# Length in tokens, as benchmarks name it -> sentences of a document.
LENGTHS = {"1k": 50, "4k": 160, "32k": 1_200, "128k": 4_600, "1M": 40_000, "10M": 400_000}
STEP_LIMITS = {1: 2, 2: 4, 3: 6, 4: 2, 5: 3}
# The names of the task files are all that tells the tasks of one folder apart.
_TASK_FILE = "qa{task}_*_{part}.txt"


@dataclass(frozen=True, slots=True)
class Question:
    """A question within a story.

    Attributes:
        line: Its number in the story's file, from 1.
        text: What is asked.
        answers: The parts of the answer.
        supporting: Indices into the story's statements, ascending.
        num_statements: How many statements of the story come before it.
    """

    line: int
    text: str
    answers: tuple[str, ...]
    supporting: tuple[int, ...]
    num_statements: int


@dataclass(frozen=True, slots=True)
class Story:
    """A story: what is stated, in order, and what is asked in between."""

    statements: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        """What identifies the story; its questions are no part of it."""
        return "\n".join(self.statements)


def read_stories(path: Path) -> list[Story]:
    """Read a file of the bAbI tasks.

    Each line is ``ID statement`` or ``ID question<TAB>answer<TAB>supporting IDs``; IDs count from 1 in each story.

    Raises:
        DataError: If a line is anything else, or a supporting ID is not that of an earlier statement of the story.
    """
    stories: list[Story] = []
    statements: dict[int, str] = {}  # by ID
    questions: list[Question] = []
    last_id = 0
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        place = Place(path, number)
        line_id, text = _numbered(line.rstrip("\r"), last_id, place)
        if line_id == 1 and last_id:
            stories.append(Story(tuple(statements.values()), tuple(questions)))
            statements, questions = {}, []
        if "\t" in text:
            questions.append(_question(text, statements, place))
        else:
            statements[line_id] = text.strip()
        last_id = line_id
    return [*stories, Story(tuple(statements.values()), tuple(questions))]


def _numbered(line: str, last_id: int, place: Place) -> tuple[int, str]:
    number, _, text = line.partition(" ")
    if not number.isdecimal() or not text.strip():
        raise place.expected("line", "'ID text'", line)
    if int(number) != last_id + 1 and (int(number) != 1 or not last_id):
        raise place.expected("ID", f"{last_id + 1}, or 1 for the start of a story" if last_id else "1", number)
    return int(number), text


def _question(text: str, statements: dict[int, str], place: Place) -> Question:
    fields = [field.strip() for field in text.split("\t")]
    if len(fields) != 3 or not all(fields):
        raise place.expected("question", "'question<TAB>answer<TAB>supporting IDs'", text)
    ranks = {line_id: rank for rank, line_id in enumerate(statements)}
    supporting = set()
    for number in fields[2].split():
        if not number.isdecimal() or int(number) not in ranks:
            raise place.expected("supporting ID", "the ID of an earlier statement of the story", number)
        supporting.add(ranks[int(number)])
    answers = tuple(part.strip() for part in fields[1].split(","))
    if not all(answers):
        raise place.expected("answer", "parts between commas that are not blank", fields[1])
    return Question(place.line or 0, fields[0], answers, tuple(sorted(supporting)), len(statements))


class BabiLong:
    """bAbI questions whose statements lie among sentences of books.

    The statements before the question keep their order, at random places among runs of consecutive sentences from
    random books. They are all kept: a story of more statements than ``num_chunks`` makes a longer document.
    Train stories that occur in the task's test file are dropped; validation is cut from the train stories by a hash
    of their statements, so that no story is on both sides.

    Attributes:
        name: "babilong-qa1" and so on.
        task: 1 to 5.
        split: "train", "validation" or "test".
        num_chunks: Sentences of a document, statements included; None for bare stories.
        noise: Where the other sentences come from; None for bare stories.
        dropped: How many stories were left out, by reason.
        default_step_limit: Picks that an episode or an evaluation should have.
    """

    def __init__(
        self,
        folder: str | Path,
        task: int,
        split: Split = "train",
        *,
        num_chunks: int | None = LENGTHS["4k"],
        noise: Noise | None = None,
        noise_window: int | None = None,
        rename: bool = False,
        made: bool = False,
        hard_noise: int = 0,
        validation_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Read the stories.

        Args:
            folder: The data folder; train stories are in ``babi/en-10k`` or else ``babi/en``.
            task: 1 to 5.
            split: "train", "validation" or "test".
            num_chunks: Sentences of a document, statements included (see `LENGTHS`); None for bare stories.
            noise: Where the other sentences come from; None for books of the split in the data folder.
            noise_window: Most sentences of those books that the documents of one era share, at least ``num_chunks``;
                None for thousands. The fewer, the fewer chunks there are to embed in an era. Train split only.
            rename: Whether people, rooms and things exchange their names at every draw, each kind among itself and
                alike in the whole story: many stories from one, none of them a story of validation or test. Train
                split only; the others stay as they are.
            made: Whether the stories are asked, in place of the file's questions, all that their statements answer at
                the same moments (task 3, train split only): six times the questions, and most of them about earlier
                rooms, which are rare in the file. Give the file's questions as another source beside it.
            hard_noise: So many of a document's other sentences, if the train books have them, mention somebody or
                something that the question (half of them) or its evidence names, as many sentences of a very long
                document do. Train split only.
            validation_share: Share of the train stories that is for validation.
            seed: Decides what the default noise of an era is.

        Raises:
            DataError: If a file is missing or a line of it is not as the format has it.
        """
        if task not in STEP_LIMITS:
            raise ValueError(f"task must be one of {', '.join(map(str, STEP_LIMITS))}, got {task!r}")
        check_split(split)
        check_share(validation_share)
        if made and task != 3:
            raise ValueError(f"questions can be made for task 3 only, not for task {task}")
        self.name = f"babilong-qa{task}"
        self.task, self.split, self.num_chunks = task, split, num_chunks
        self.default_step_limit = STEP_LIMITS[task]
        self.dropped: dict[str, int] = {}
        self.noise: Noise | None = None
        if num_chunks is not None:
            check_at_least_one(num_chunks=num_chunks)
            if noise_window is not None:
                check_at_least_one(noise_window=noise_window)
            own_window = noise_window if split == "train" else None
            self.noise = default_noise(folder, split, num_chunks, seed, own_window) if noise is None else noise
        if hard_noise < 0:
            raise ValueError(f"hard_noise must be at least 0, got {hard_noise}")
        self._hard_noise, self._lookalikes = hard_noise, None
        if hard_noise and num_chunks is not None and split == "train":
            self._lookalikes = Lookalikes(book_files(folder, split), WORDS, seed)
        self._elsewhere: set[str] = set()  # stories of validation and test
        self._path, stories = self._stories(folder, validation_share)
        self._renaming: Renaming | None = None
        if rename and split == "train":
            self._renaming = Renaming(statement for story in stories for statement in story.statements)
        self._made = made and split == "train"
        self._questions = [
            (story, question)
            for story in stories
            for question in (_made_questions(story) if self._made else story.questions)
        ]
        check_filled(len(self._questions), f"{self._path}, {split}")

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self._questions)

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Put a story among noise; see `SampleSource`. Bare stories draw nothing but new names."""
        story, question = self._questions[number]
        rename = self._rename(story, random)
        facts = tuple(map(rename, story.statements[: question.num_statements]))
        num_noise = 0 if self.num_chunks is None else max(0, self.num_chunks - len(facts))
        places = list(range(len(facts)))
        if num_noise and self.noise is not None:
            total = num_noise + len(facts)
            places = np.sort(random.choice(total, len(facts), replace=False, shuffle=False)).tolist()
            noise = self.noise.draw(num_noise, random, era)
            if self._lookalikes is not None:
                count, asked = min(self._hard_noise, num_noise), rename(question.text)
                hard = self._lookalikes.draw([asked], count - count // 2, random, era)
                evidence = [facts[fact] for fact in question.supporting]
                hard += self._lookalikes.draw(evidence, count, random, era)
                hard = list(dict.fromkeys(hard))[:count]
                for place, sentence in zip(random.permutation(num_noise).tolist(), hard, strict=False):
                    noise[place] = sentence
            chunks = _merged(facts, places, noise)
        else:
            chunks = facts
        own = f"made-{number}" if self._made else f"{self._path.stem.rpartition('_')[2]}-{question.line}"
        return Sample(
            f"{self.name}-{self._path.parent.name}-{own}",
            rename(question.text),
            chunks,
            tuple(places[fact] for fact in question.supporting),
            tuple((rename(answer),) for answer in question.answers),
        )

    def _rename(self, story: Story, random: np.random.Generator) -> Rename:
        """Draw new names for a story; it keeps its own if a story of validation or test would come out."""
        if self._renaming is None:
            return str
        rename = self._renaming.draw(random)
        return str if rename(story.text) in self._elsewhere else rename

    def _stories(self, folder: str | Path, validation_share: float) -> tuple[Path, list[Story]]:
        test_file = _TASK_FILE.format(task=self.task, part="test")
        test_files = f"babi/en/{test_file}", f"babi/en-10k/{test_file}"
        if self.split == "test":
            path = find_file(folder, *test_files)
            return path, read_stories(path)
        names = [_TASK_FILE.format(task=self.task, part=part) for part in ("train", "train.partial")]
        path = find_file(folder, *(f"babi/{size}/{name}" for size in ("en-10k", "en") for name in names))
        tested = {story.text for story in _stories_if_there(folder, *test_files)}
        stories = read_stories(path)
        kept = [story for story in stories if story.text not in tested]
        self.dropped["story in the test file"] = len(stories) - len(kept)
        own = [story for story in kept if cut_of(story.text, validation_share) == self.split]
        self._elsewhere = tested | ({story.text for story in kept} - {story.text for story in own})
        return path, own


def _made_questions(story: Story) -> list[Question]:
    """Ask a story all that its statements answer, at the moments at which the file asks something."""
    moments = {question.num_statements: question.line for question in story.questions}
    return [
        Question(line, asked.text, (asked.answer,), asked.supporting, num_statements)
        for num_statements, line in moments.items()
        for asked in questions_before(story.statements[:num_statements])
    ]


def _stories_if_there(folder: str | Path, *patterns: str) -> list[Story]:
    found = [path for pattern in patterns for path in sorted(Path(folder).glob(pattern))]
    return read_stories(found[0]) if found else []


def _merged(facts: tuple[str, ...], places: list[int], noise: list[str]) -> tuple[str, ...]:
    """Return the noise with the facts at their places in the result."""
    chunks: list[str] = []
    for i, (fact, place) in enumerate(zip(facts, places, strict=True)):
        chunks += noise[len(chunks) - i : place - i]
        chunks.append(fact)
    return (*chunks, *noise[len(chunks) - len(facts) :])

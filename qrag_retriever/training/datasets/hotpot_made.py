"""More bridge questions like HotpotQA's, made up from the paragraphs of its training questions.

A bridge question describes a thing by what one article says of it, and asks what another article says: "What government
position was held by the woman who portrayed Corliss Archer in the film Kiss and Tell?". Wherever one paragraph names
the title of another, a piece of the sentence that names it, with the name replaced by what the thing is, and a piece of
what the other paragraph says need the same two paragraphs as evidence. It is no good English, but an encoder can learn
from it that the second paragraph is the one that the first one names. So that words of the second paragraph do not give
it away, half of the questions have none ("when was the woman born?"), and things of the same kind are among the others.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.errors import DataError
from qrag_retriever.sentences import split_sentences
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.mentions import Mention, find_mentions, telling_names, what_it_is
from qrag_retriever.training.datasets.splits import Split, check_split
from qrag_retriever.training.datasets.training_paragraphs import plain_name, training_paragraphs

_STEP_LIMIT = 4
_WORDS_OF_FIRST, _WORDS_OF_SECOND = (9, 18), (6, 13)
_TITLE_SHARE = 0.75
# Questions that say nothing of the second paragraph but what its thing is.
_BLIND_SHARE = 0.5
_ASKED_OF_PEOPLE = (
    "when was {} born", "what year was {} born", "where was {} born", "what is {} known for", "where did {} grow up",
    "what does {} do", "when did {} die", "who is {} married to", "what nationality is {}", "how old is {}",
)  # fmt: skip
_ASKED_OF_THINGS = (
    "where is {}", "when was {} founded", "what year did {} begin", "who made {}", "in which country is {}",
    "what is {} named after", "how many people are in {}", "which city is {} in", "what is {} about", "who owns {}",
    "when was {} released", "who directed {}", "what is {} part of", "how large is {}",
)  # fmt: skip
_SAME_KIND = 3  # paragraphs of the second one's kind that are among the others


class HotpotMade:
    """Bridge questions made up from the paragraphs of HotpotQA's training questions; for training only.

    Paragraphs that are evidence for a question of validation or test take no part.

    Attributes:
        name: "hotpotqa-made".
        split: "train".
        num_chunks: Paragraphs of a sample.
        default_step_limit: Picks that an episode should have.
    """

    name = "hotpotqa-made"
    default_step_limit = _STEP_LIMIT

    def __init__(
        self,
        folder: str | Path,
        split: Split = "train",
        *,
        num_chunks: int = 30,
        num_questions: int = 20_000,
        validation_share: float = 0.1,
    ) -> None:
        """Find what links the paragraphs.

        Args:
            folder: The data folder, with ``hotpotqa/``.
            split: "train".
            num_chunks: Paragraphs of a sample.
            num_questions: How many questions to make up; there could be more.
            validation_share: That of the source "hotpotqa", whose validation this keeps away from.

        Raises:
            DataError: If a file is missing, a line of it is not as the format has it, or nothing is linked.
        """
        check_split(split, ["train"])
        check_at_least_one(num_chunks=num_chunks, num_questions=num_questions)
        if num_chunks < 2:
            raise ValueError(f"num_chunks must be at least 2, the evidence of a question; got {num_chunks}")
        self.split: Split = split
        self.num_chunks, self._num_questions = num_chunks, num_questions
        self._paragraphs = training_paragraphs("hotpotqa", folder, validation_share)
        texts = self._paragraphs.texts
        if num_chunks > len(texts):
            raise ValueError(f"{self.name}: {num_chunks} paragraphs asked for, but there are {len(texts)}")
        self._mentions = find_mentions(texts, telling_names(texts))
        if not self._mentions:
            raise DataError(f"{folder}: no paragraph in hotpotqa/ names another one to make up questions from")
        self._of_kind: dict[str, list[str]] = defaultdict(list)
        for title in texts:
            self._of_kind[self._kind(title)].append(title)

    def __len__(self) -> int:
        """Return ``num_questions``."""
        return self._num_questions

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        """Make up a question, the same for a number at every call, among other paragraphs; see `SampleSource`."""
        own = np.random.default_rng(number)
        mention = self._mentions[int(own.integers(len(self._mentions)))]
        question = self._question(mention, own)
        evidence = [mention.title, mention.named]
        kin = self._of_kind[self._kind(mention.named)]
        likely = [kin[i] for i in random.permutation(len(kin))[:_SAME_KIND]]
        chunks, supporting = self._paragraphs.among_others(evidence, self.num_chunks, random, era, likely)
        return Sample(f"{self.name}-{number}", question, chunks, supporting, None, "corpus")

    def _about(self, title: str) -> str:
        return self._paragraphs.texts[title].removeprefix(f"{title}. ")

    def _kind(self, title: str) -> str:
        """Return the last word of what a thing is: "actress"."""
        what = what_it_is(self._about(title))
        return what.split()[-1] if what else ""

    def _question(self, mention: Mention, random: np.random.Generator) -> str:
        name, other = plain_name(mention.title), plain_name(mention.named)
        about = self._about(mention.named)
        what = what_it_is(about)
        thing = f"{('the', 'which', 'what')[int(random.integers(3))]} {what or 'one'}"
        before, after = mention.before.split(), mention.after.split()
        room = int(random.integers(*_WORDS_OF_FIRST))
        # Some of the words before the name and some of those behind it.
        num_before = min(len(before), int(random.integers(room + 1)))
        first = " ".join([*before[len(before) - num_before :], thing, *after[: room - num_before]])
        if name not in first and random.random() < _TITLE_SHARE:
            first = f"{first} {name}" if random.random() < 0.5 else f"{name} {first}"
        second = (
            self._asked(about, what, random) if random.random() < _BLIND_SHARE else self._told(about, other, random)
        )
        both = (first, second) if random.random() < 0.5 else (second, first)
        return f"{' '.join(both).replace(other, 'it').strip(' .,;')}?"

    @staticmethod
    def _asked(about: str, what: str | None, random: np.random.Generator) -> str:
        """Ask for something that says nothing of the answer."""
        asked = _ASKED_OF_PEOPLE if "born" in about[:120] else _ASKED_OF_THINGS
        return asked[int(random.integers(len(asked)))].format(f"the {what}" if what else "it")

    @staticmethod
    def _told(about: str, other: str, random: np.random.Generator) -> str:
        """Cut a piece out of what is said of a thing."""
        sentences = split_sentences(about)
        # Its name is what must not be given away, nor a part of it.
        parts = set(other.split())
        sentence = sentences[int(random.integers(len(sentences)))].replace(other, "it")
        told = [word for word in sentence.split() if word.strip(".,;'") not in parts]
        start = int(random.integers(max(1, len(told) - _WORDS_OF_SECOND[0])))
        return " ".join(told[start : start + int(random.integers(*_WORDS_OF_SECOND))])

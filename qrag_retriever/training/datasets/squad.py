"""SQuAD paragraphs as RULER's qa_1 uses them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrag_retriever.json_lines import Place, list_of, text_of
from qrag_retriever.sentences import CountTokens
from qrag_retriever.training.datasets.passages import PooledQuestion, PooledQuestions
from qrag_retriever.training.datasets.reading import find_file, object_at, read_json
from qrag_retriever.training.datasets.splits import Split, check_share, check_split, cut_of

_TEST_NAMES = "squad/squad_v2_dev_half.json.gz", "squad/squad_v2_dev_half.json"
_TRAIN_NAMES = "squad/xquad_en_squad_v1_dev_subset.json.gz", "squad/xquad_en_squad_v1_dev_subset.json"
VALIDATION_SHARE = 0.2
_IN_TEST = "article in the test file"


@dataclass(frozen=True, slots=True)
class Article:
    """An article: its title, its paragraphs and the questions that they answer."""

    title: str
    paragraphs: tuple[str, ...]
    questions: tuple[PooledQuestion, ...]


class Squad(PooledQuestions):
    """RULER's qa_1: a question's SQuAD paragraph, the rest of its article, and random others, shuffled.

    Only answerable questions. The test split is the half of SQuAD v2 dev; train and validation are articles of XQuAD's
    subset of SQuAD v1 dev of which neither the title nor a paragraph is in that half, cut by article.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split = "test",
        *,
        num_chunks: int | None = None,
        num_tokens: int | None = None,
        count_tokens: CountTokens | None = None,
        validation_share: float = VALIDATION_SHARE,
    ) -> None:
        """Read the articles of a split; its pool are their paragraphs.

        Args:
            folder: The data folder, with ``squad/``; train and validation need the test file too, to keep clear of it.
            split: "train", "validation" or "test".
            num_chunks: Passages of a sample; 20 if no length is given.
            num_tokens: The length in tokens instead, met on average.
            count_tokens: Turns a text into its tokens; needed for ``num_tokens``.
            validation_share: Share of the articles that is for validation, about.

        Raises:
            DataError: If a file is missing or not as the format has it.
            ValueError: If the pool is smaller than a sample.
        """
        check_split(split)
        check_share(validation_share)
        dropped: dict[str, int] = {}
        articles = articles_of(folder, split, validation_share, dropped)
        super().__init__(
            "ruler-qa-1",
            split,
            _questions(articles),
            num_chunks=num_chunks,
            num_tokens=num_tokens,
            count_tokens=count_tokens,
            default_num_chunks=20,
            dropped=dropped,
        )


def articles_of(folder: str | Path, split: Split, validation_share: float, dropped: dict[str, int]) -> list[Article]:
    """Read the articles of a split; the questions that training must not have are counted in ``dropped``."""
    tested = read_articles(find_file(folder, *_TEST_NAMES))
    if split == "test":
        return tested
    found = read_articles(find_file(folder, *_TRAIN_NAMES))
    clear = _clear_of(found, tested)
    dropped[_IN_TEST] = len(_questions(found)) - len(_questions(clear))
    return [article for article in clear if cut_of(article.title, validation_share) == split]


def read_articles(path: Path) -> list[Article]:
    """Read a file in SQuAD's format; unanswerable questions are left out.

    Raises:
        DataError: If the file is not in that format.
    """
    place = Place(path)
    return [_article(entry, f"data[{i}]", place) for i, entry in enumerate(list_of(read_json(path), "data", place))]


def _questions(articles: list[Article]) -> list[PooledQuestion]:
    return [question for article in articles for question in article.questions]


def _clear_of(articles: list[Article], tested: list[Article]) -> list[Article]:
    """Return the articles of which neither the title nor a paragraph is in the test file."""
    titles = {article.title for article in tested}
    paragraphs = {_plain(text) for article in tested for text in article.paragraphs}
    return [
        article
        for article in articles
        if article.title not in titles and paragraphs.isdisjoint(map(_plain, article.paragraphs))
    ]


def _article(entry: Any, what: str, place: Place) -> Article:
    article = object_at(entry, what, place)
    title = text_of(article, "title", place)
    listed = [object_at(part, f"{what}.paragraphs", place) for part in list_of(article, "paragraphs", place)]
    texts = tuple(text_of(part, "context", place) for part in listed)
    questions = []
    for rank, part in enumerate(listed):
        if not isinstance(part.get("qas"), list):
            raise place.expected(f"{what}.paragraphs[{rank}].qas", "a list", part.get("qas"))
        for one in part["qas"]:
            asked = object_at(one, f"{what}.paragraphs[{rank}].qas", place)
            if not asked.get("is_impossible", False):
                questions.append(_question(asked, rank, texts, place))
    return Article(title, texts, tuple(questions))


def _question(asked: dict[str, Any], paragraph: int, paragraphs: tuple[str, ...], place: Place) -> PooledQuestion:
    answers = [
        text_of(object_at(answer, "answers", place), "text", place) for answer in list_of(asked, "answers", place)
    ]
    gold = paragraphs[paragraph]
    near = tuple(dict.fromkeys(text for text in paragraphs if text != gold))
    question_id, question = text_of(asked, "id", place), text_of(asked, "question", place)
    return PooledQuestion(question_id, question, (gold,), near, (tuple(dict.fromkeys(answers)),))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()

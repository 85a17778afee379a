"""Public benchmarks as sources of samples: one loader for each format, all in the layout of one data folder.

``babi/en*/``, ``books/{train,test}/``, ``hotpotqa/``, ``musique/``, ``2wiki/``, ``squad/``, ``essays/paul_graham/``: a
loader reads what is there and says which file it lacks. Files named dev or test are for testing only; validation is
cut from the training data by story, gold title, article or book.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from qrag_retriever.json_lines import nearest
from qrag_retriever.training.data import SampleSource
from qrag_retriever.training.datasets.babi import LENGTHS, BabiLong
from qrag_retriever.training.datasets.books import BookNoise
from qrag_retriever.training.datasets.cloze import BookCloze
from qrag_retriever.training.datasets.hotpot_made import HotpotMade
from qrag_retriever.training.datasets.musique import MuSiQue
from qrag_retriever.training.datasets.musique_made import MuSiQueMade
from qrag_retriever.training.datasets.niah import TASKS as NIAH_TASKS
from qrag_retriever.training.datasets.niah import Niah
from qrag_retriever.training.datasets.passages import FixedQuestions
from qrag_retriever.training.datasets.relations import MadeRelations
from qrag_retriever.training.datasets.renamed_passages import RenamedPassages
from qrag_retriever.training.datasets.splits import Split
from qrag_retriever.training.datasets.squad import Squad
from qrag_retriever.training.datasets.wiki import RulerHotpot, TwoWikiOpen, WikiQuestions
from qrag_retriever.training.datasets.wiki_made import TwoWikiMade

__all__ = [
    "LENGTHS",
    "SOURCES",
    "TRAINING_ONLY",
    "BabiLong",
    "BookCloze",
    "BookNoise",
    "DatasetSource",
    "HotpotMade",
    "MadeRelations",
    "MuSiQue",
    "MuSiQueMade",
    "Niah",
    "RenamedPassages",
    "RulerHotpot",
    "Split",
    "Squad",
    "TwoWikiMade",
    "TwoWikiOpen",
    "WikiQuestions",
    "open_source",
]

# Sources that make up questions for training, without a validation of their own.
TRAINING_ONLY = ("2wiki-made", "hotpotqa-made", "musique-made")


class DatasetSource(SampleSource, Protocol):
    """A source that knows how many picks its questions need.

    Attributes:
        split: "train", "validation" or "test".
        default_step_limit: Picks that an episode or an evaluation should have.
    """

    split: Split
    default_step_limit: int


@dataclass(frozen=True)
class _Loader:
    """Opens a source; the options are what its class takes by name alone.

    Attributes:
        made: The class.
        load: Makes one from folder, split and options; None: the class itself.
        renamable: Whether there is the option ``rename``: training questions under other names (`RenamedPassages`).
    """

    made: type[Any]
    load: Callable[..., Any] | None = None
    renamable: bool = False

    @property
    def options(self) -> list[str]:
        parameters = inspect.signature(self.made).parameters.values()
        return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY] + ["rename"] * self.renamable

    def __call__(self, folder: str | Path, split: Split, **options: Any) -> DatasetSource:
        rename = self.renamable and options.pop("rename", False)
        source: DatasetSource = (self.load or self.made)(folder, split, **options)
        return RenamedPassages(cast("FixedQuestions", source)) if rename and split == "train" else source


def _babilong(task: int) -> Callable[..., BabiLong]:
    return lambda folder, split, **options: BabiLong(folder, task, split, **options)


# Name -> a loader that takes the folder, the split and options.
SOURCES: dict[str, _Loader] = {
    **{f"babilong-qa{task}": _Loader(BabiLong, _babilong(task)) for task in range(1, 6)},
    **{name: _Loader(Niah, partial(Niah, name)) for name in NIAH_TASKS},
    "ruler-qa-1": _Loader(Squad),
    "ruler-qa-2": _Loader(RulerHotpot),
    "hotpotqa": _Loader(WikiQuestions, partial(WikiQuestions, "hotpotqa"), renamable=True),
    "musique": _Loader(MuSiQue, renamable=True),
    "2wiki": _Loader(WikiQuestions, partial(WikiQuestions, "2wiki"), renamable=True),
    "2wiki-open": _Loader(TwoWikiOpen),
    "2wiki-made": _Loader(TwoWikiMade),
    "hotpotqa-made": _Loader(HotpotMade),
    "musique-made": _Loader(MuSiQueMade),
    "books-cloze": _Loader(BookCloze),
    "relations-made": _Loader(MadeRelations, lambda _folder, split, **options: MadeRelations(split, **options)),
}


def open_source(name: str, folder: str | Path, split: Split = "train", **options: Any) -> DatasetSource:
    """Open a benchmark by name.

    Args:
        name: A key of `SOURCES`.
        folder: The data folder.
        split: "train", "validation" or "test"; "2wiki-open" has a test split only, "2wiki-made",
            "hotpotqa-made" and "musique-made" a train split, "books-cloze" and "relations-made" no test split.
        options: What the class of the source takes besides: `BabiLong` (babilong-*), `Niah` (niah-*), `Squad`
            (ruler-qa-1), `RulerHotpot` (ruler-qa-2), `WikiQuestions` (hotpotqa, 2wiki), `MuSiQue`, `TwoWikiOpen`,
            `TwoWikiMade`, `HotpotMade`, `MuSiQueMade`, `BookCloze`, `MadeRelations`. "hotpotqa", "musique" and "2wiki"
            take ``rename`` besides: training questions under other names (`RenamedPassages`).

    Raises:
        ValueError: If the name is not known, or an option has a value that it cannot have.
        TypeError: If the source has no such option.
        DataError: If a file is missing or not as its format has it.
    """
    if name not in SOURCES:
        raise ValueError(f"there is no source {name!r}{nearest(name, SOURCES)}; there are {', '.join(SOURCES)}")
    known = SOURCES[name].options
    for option in options:
        if option not in known:
            raise TypeError(
                f"{name} has no option {option!r}{nearest(option, known)}; there are {', '.join(known) or 'none'}"
            )
    return SOURCES[name](folder, split, **options)

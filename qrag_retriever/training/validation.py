"""Validation: how well the pair retrieves for questions that it is not trained on, in all and by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qrag_retriever.config import Mode
from qrag_retriever.training.data import Sample
from qrag_retriever.training.evaluation import (
    Picks,
    best_min_q,
    calibration,
    figures_of,
    greedy_picks,
    returns_of,
)
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.rewards import Reward, SupportingFactsReward
from qrag_retriever.training.sampling import Task, fixed_episodes

_BY_SOURCE = ("fact_recall", "exact")


@dataclass(frozen=True)
class Measurement:
    """What a validation found.

    Attributes:
        figures: Calibration, mean return and, where evidence is annotated, the figures of `Figures`; where there are
            several sources, fact recall and exact of each as ``fact_recall/<source>``.
        score: What the best model is chosen by: the mean of fact recall and exact, or the return where the reward does
            not go by annotated facts.
        picks: What was picked for each question.
    """

    figures: Mapping[str, float]
    score: float
    picks: Sequence[Picks]

    @property
    def min_q(self) -> dict[Mode, float]:
        """The best stop value of each mode that has questions with annotated facts."""
        modes = {one.sample.mode for one in self.picks if one.sample.supporting is not None}
        return {mode: best_min_q([one for one in self.picks if one.sample.mode == mode]) for mode in sorted(modes)}

    def __str__(self) -> str:
        """Lay out the figures for a reader."""
        figures = self.figures
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if "/" not in name)
        own = []
        for source in (name.partition("/")[2] for name in figures if name.startswith(f"{_BY_SOURCE[0]}/")):
            values = (figures[f"{kind}/{source}"] for kind in _BY_SOURCE)
            own.append(f"{source} " + " / ".join(f"{value:.2f}" for value in values))
        return f"{shown}\n  {' / '.join(_BY_SOURCE)}: {', '.join(own)}" if own else shown


class Validation:
    """Measures the pair on the same questions over the same documents every time.

    Attributes:
        episodes: Each question's sample and how many picks it gets.
    """

    def __init__(self, tasks: Sequence[Task], num_samples: int, seed: int, reward: Reward, gamma: float) -> None:
        """Choose the questions.

        Args:
            tasks: Where from; none: nothing is measured.
            num_samples: Questions in all, the same number from each task.
            seed: Decides which questions, and what their documents are filled up with.
            reward: Judges the picks; questions that it cannot judge are left out.
            gamma: Discount, per pick.
        """
        by_task = fixed_episodes(tasks, num_samples, seed, reward)
        self.episodes: list[tuple[Sample, int]] = [episode for own in by_task for episode in own]
        names = _unique([task.source.name for task in tasks])
        self._sources = [name for name, own in zip(names, by_task, strict=True) for _ in own]
        self._reward, self._gamma = reward, gamma

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self.episodes)

    def measure(self, pair: TrainedPair) -> Measurement:
        """Pick greedily for all questions."""
        picks = greedy_picks(pair, self.episodes)
        returns = returns_of(self._reward, picks, self._gamma)
        figures = {**calibration(picks, returns), "return": float(np.mean([own[0] for own in returns]))}
        if any(one.sample.supporting for one in picks):
            figures.update(figures_of(picks).to_dict())
            figures.update(self._by_source(picks))
        by_facts = isinstance(self._reward, SupportingFactsReward) and "exact" in figures
        score = (figures["fact_recall"] + figures["exact"]) / 2 if by_facts else figures["return"]
        return Measurement(figures, score, picks)

    def _by_source(self, picks: Sequence[Picks]) -> dict[str, float]:
        names = list(dict.fromkeys(self._sources))
        if len(names) == 1:
            return {}
        figures: dict[str, float] = {}
        for name in names:
            own = [one for one, source in zip(picks, self._sources, strict=True) if source == name]
            if any(one.sample.supporting for one in own):
                found = figures_of(own).to_dict()
                figures.update({f"{kind}/{name}": found[kind] for kind in _BY_SOURCE})
        return figures


def _unique(names: Sequence[str]) -> list[str]:
    """Number the names that come again: one source may be there with several options."""
    return [name if name not in names[:i] else f"{name}-{names[: i + 1].count(name)}" for i, name in enumerate(names)]

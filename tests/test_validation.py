"""Validation: figures in all and by source, the score that chooses the best model, stop values by mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever.training.data import Sample
from qrag_retriever.training.evaluation import best_min_q, figures_of, greedy_picks
from qrag_retriever.training.rewards import AnswerContainedReward, SupportingFactsReward
from qrag_retriever.training.sampling import Task
from qrag_retriever.training.validation import Validation
from tests.conftest import STORY
from tests.tiny_pair import tiny_pair

QUESTIONS = ["Where is the apple?", "Where is John?", "What did nobody hear?", "Who wrote a letter?", "Rain?"]


class Stories:
    """A source of one story, asked for facts that the number tells."""

    def __init__(self, name: str, mode: Any = "document", annotated: bool = True) -> None:
        self.name, self._mode, self._annotated = name, mode, annotated

    def __len__(self) -> int:
        return len(QUESTIONS)

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        facts = tuple(int(fact) for fact in np.sort(random.choice(len(STORY), 2, replace=False)))
        answers = (("garden",),)
        return Sample(
            f"{self.name}-{number}",
            QUESTIONS[number],
            tuple(STORY),
            facts if self._annotated else None,
            answers,
            self._mode,
        )


def validation(*sources: Stories, reward: Any = None) -> Validation:
    tasks = [Task(source, np.arange(len(source)), step_limit=8) for source in sources]
    return Validation(tasks, 5 * len(tasks), 1, reward or SupportingFactsReward(), 0.99)


def test_figures_of_each_source_beside_those_of_all(tiny_encoder: Path) -> None:
    pair = tiny_pair(tiny_encoder)
    found = validation(Stories("one"), Stories("two", "corpus")).measure(pair)
    picks = greedy_picks(pair, validation(Stories("one"), Stories("two", "corpus")).episodes)
    assert found.figures["fact_recall"] == figures_of(picks).fact_recall
    for name, own in (("one", picks[:5]), ("two", picks[5:])):
        assert found.figures[f"fact_recall/{name}"] == figures_of(own).fact_recall
        assert found.figures[f"exact/{name}"] == figures_of(own).exact
    assert figures_of(picks[:5]) != figures_of(picks[5:]), "the test must tell them apart"
    assert f"one {found.figures['fact_recall/one']:.2f} / {found.figures['exact/one']:.2f}, two " in str(found)


def test_one_source_needs_no_figures_of_its_own(tiny_encoder: Path) -> None:
    found = validation(Stories("one")).measure(tiny_pair(tiny_encoder))
    assert not [name for name in found.figures if "/" in name]
    assert "\n" not in str(found)


def test_a_source_without_annotated_facts_has_none(tiny_encoder: Path) -> None:
    sources = Stories("one"), Stories("answers", annotated=False)
    found = validation(*sources, reward=AnswerContainedReward()).measure(tiny_pair(tiny_encoder))
    assert "fact_recall/one" in found.figures
    assert "fact_recall/answers" not in found.figures


def test_the_score_follows_the_reward(tiny_encoder: Path) -> None:
    pair = tiny_pair(tiny_encoder)
    by_facts = validation(Stories("one")).measure(pair)
    assert by_facts.score == (by_facts.figures["fact_recall"] + by_facts.figures["exact"]) / 2
    by_answer = validation(Stories("one"), reward=AnswerContainedReward()).measure(pair)
    assert by_answer.score == by_answer.figures["return"] != by_facts.score


def test_stop_values_of_the_modes_that_have_facts(tiny_encoder: Path) -> None:
    found = validation(Stories("one"), Stories("two", "corpus")).measure(tiny_pair(tiny_encoder))
    assert found.min_q == {"corpus": best_min_q(found.picks[5:]), "document": best_min_q(found.picks[:5])}
    unknown = validation(Stories("a", annotated=False), reward=AnswerContainedReward()).measure(tiny_pair(tiny_encoder))
    assert unknown.min_q == {}


def test_a_source_that_comes_twice_is_told_apart(tiny_encoder: Path) -> None:
    figures = validation(Stories("one"), Stories("one", "corpus")).measure(tiny_pair(tiny_encoder)).figures
    assert {"fact_recall/one", "fact_recall/one-2"} <= set(figures)


def test_without_tasks_there_is_nothing_to_measure() -> None:
    assert len(Validation([], 10, 1, SupportingFactsReward(), 0.99)) == 0


@pytest.mark.parametrize("wanted", [1, 7])
def test_questions_are_shared_out_among_sources(wanted: int) -> None:
    tasks = [Task(Stories(name), np.arange(5), step_limit=2) for name in "ab"]
    assert len(Validation(tasks, wanted, 1, SupportingFactsReward(), 0.99)) == wanted

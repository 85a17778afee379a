"""States whose best picks are known, because the facts are: what the warm start imitates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrag_retriever.state import RetrievalState
from qrag_retriever.training.data import Sample
from qrag_retriever.training.recipe import WarmStartSettings


@dataclass(frozen=True)
class LabelledState:
    """A state whose best picks are known.

    Attributes:
        sample: The question and its document.
        picked: Chunk ids in the order of picking.
        right_return: What the best continuation earns after a right pick now (a missing fact), in reward units.
        other_return: The same after any other pick.
    """

    sample: Sample
    picked: tuple[int, ...]
    right_return: float
    other_return: float

    @property
    def missing(self) -> list[int]:
        """The facts that have not been picked."""
        return [fact for fact in self.sample.supporting or () if fact not in self.picked]

    @property
    def state(self) -> RetrievalState:
        """What the state encoder sees."""
        return RetrievalState(self.sample.question, self.picked, tuple(self.sample.chunks[c] for c in self.picked))


def sample_picks(
    sample: Sample,
    step_limit: int,
    mistakes: Sequence[int],
    settings: WarmStartSettings,
    random: np.random.Generator,
    likely_facts: Sequence[int] = (),
) -> tuple[int, ...]:
    """Draw what has been picked in a training state: some facts, some wrong chunks, at times everything.

    Args:
        sample: With annotated facts.
        step_limit: Picks of an episode; a state has at most one fewer.
        mistakes: Chunks without facts that score well, the likely mistakes.
        settings: Shares of complete states and of states with wrong picks.
        random: The state's own stream.
        likely_facts: The facts, those first that the first state rates highest. Evidence that can only be told once
            other evidence is known is then what is missing, as it will be in a search.
    """
    facts = list(sample.supporting or ())
    # Where there are no facts, the first state is complete already.
    complete = not facts or (len(facts) < step_limit and random.random() < settings.complete_share)
    num_found = len(facts) if complete else int(random.integers(min(len(facts), step_limit)))
    in_order = len(likely_facts) > 0 and random.random() < settings.hard_share
    found = list(likely_facts if in_order else random.permutation(facts))[:num_found]
    room = min(step_limit - 1 - num_found, len(sample.chunks) - len(facts))
    num_wrong = int(random.integers(1, room + 1)) if room > 0 and random.random() < settings.wrong_share else 0
    wrong: list[int] = []
    while len(wrong) < num_wrong:
        likely = len(mistakes) > 0 and random.random() < settings.hard_share
        chunk = int(random.choice(mistakes)) if likely else int(random.integers(len(sample.chunks)))
        if chunk not in wrong and chunk not in facts:
            wrong.append(chunk)
        elif likely and set(mistakes) <= set(wrong):
            mistakes = ()
    return tuple(int(chunk) for chunk in random.permutation([*found, *wrong]))

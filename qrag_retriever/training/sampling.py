"""Drawing training samples from weighted sources, and the fixed questions of a validation."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qrag_retriever.training.data import Sample, SampleSource
from qrag_retriever.training.rewards.base import Reward

_MOST_ATTEMPTS = 10_000
_STEPS_WITHOUT_FACTS = 4


@dataclass(frozen=True)
class Task:
    """A source with what the recipe says of it.

    Attributes:
        source: Where samples come from.
        numbers: The samples that may be drawn; all of the source's, or a part.
        weight: Relative to other tasks.
        step_limit: Picks of an episode; None: two more than a sample has facts, or 4.
        withhold_supporting: Whether the facts are kept from the training.
        era_questions: Questions that one era draws from, so that their chunks are embedded once in it; None: all.
    """

    source: SampleSource
    numbers: np.ndarray
    weight: float = 1.0
    step_limit: int | None = None
    withhold_supporting: bool = False
    era_questions: int | None = None

    def episode(self, number: int, random: np.random.Generator, era: int = 0) -> tuple[Sample, int]:
        """Return a sample and its step limit."""
        sample = self.source.sample(number, random, era)
        limit = self.step_limit
        if limit is None:
            limit = _STEPS_WITHOUT_FACTS if sample.supporting is None else len(sample.supporting) + 2
        if self.withhold_supporting:
            sample = dataclasses.replace(sample, supporting=None)
        return sample, limit


class Mixture:
    """Draws from several tasks in proportion to their weights, leaving out what the reward cannot judge.

    Some questions stay hard long after most are easy, and then are nearly all that is left to learn. So a draw may look
    at several questions and take the one that was hardest when it was last trained on.

    Source: prioritised replay (arXiv 1511.05952), here of questions and not of transitions.
    """

    def __init__(self, tasks: Sequence[Task], reward: Reward, hardest_of: int = 1, seed: int = 0) -> None:
        """Set up the draw.

        Args:
            tasks: At least one, none of them empty.
            reward: Says which samples it cannot judge.
            hardest_of: Questions that a draw looks at; a question that has not been trained on is the hardest.
            seed: With the era, decides which questions are drawn from in an era.

        Raises:
            ValueError: If a task has no samples.
        """
        for task in tasks:
            if not len(task.numbers):
                raise ValueError(f"{task.source.name} has no samples left to draw")
        self.tasks = tasks
        self._reward = reward
        self._shares = np.cumsum([task.weight for task in tasks]) / sum(task.weight for task in tasks)
        self.era = 0
        self._skipped: dict[tuple[str, str], str] = {}  # source and sample -> reason
        self._hardest_of, self._seed = hardest_of, seed
        # Of each task that keeps to some questions: the era, and their places.
        self._of_era: dict[int, tuple[int, np.ndarray]] = {}
        self._losses = [np.full(len(task.numbers), np.inf, np.float32) for task in tasks]
        # Where the losses of what was drawn are to be noted.
        self._places: dict[str, tuple[int, int]] = {}

    def draw(self, random: np.random.Generator) -> tuple[Sample, int]:
        """Draw one episode with a stream.

        Raises:
            ValueError: If the reward can judge none of the samples drawn.
        """
        reason: str | None = None
        for _ in range(_MOST_ATTEMPTS):
            drawn = int(np.searchsorted(self._shares, random.random(), side="right"))
            chosen = min(drawn, len(self.tasks) - 1)
            task, losses = self.tasks[chosen], self._losses[chosen]
            looked_at = self._looked_at(chosen, random)
            place = int(looked_at[losses[looked_at].argmax()])
            sample, limit = task.episode(int(task.numbers[place]), random, self.era)
            reason = self._reward.unusable(sample)
            if reason is None:
                self._places[sample.id] = chosen, place
                return sample, limit
            self._skipped[task.source.name, sample.id] = reason
        raise ValueError(f"the reward can judge none of {_MOST_ATTEMPTS} samples drawn; the last one because {reason}")

    def _looked_at(self, chosen: int, random: np.random.Generator) -> np.ndarray:
        """Draw the places of the questions that a draw takes the hardest of."""
        task = self.tasks[chosen]
        count = len(task.numbers)
        if task.era_questions is None or task.era_questions >= count:
            return random.integers(count, size=self._hardest_of)
        if chosen not in self._of_era or self._of_era[chosen][0] != self.era:
            era_random = np.random.default_rng([self._seed, chosen, self.era])
            self._of_era[chosen] = self.era, era_random.choice(count, task.era_questions, replace=False)
        own = self._of_era[chosen][1]
        places: np.ndarray = own[random.integers(len(own), size=self._hardest_of)]
        return places

    @property
    def skipped(self) -> Counter[str]:
        """How many different samples the reward could not judge, by reason."""
        return Counter(self._skipped.values())

    def skipped_samples(self) -> list[tuple[str, str, str]]:
        """Return source, id and reason of each sample that the reward could not judge."""
        return [(*sample, reason) for sample, reason in self._skipped.items()]

    def restore_skipped(self, skipped: Sequence[Sequence[str]]) -> None:
        """Go on from what `skipped_samples` returned."""
        self._skipped = {(source, sample_id): reason for source, sample_id, reason in skipped}

    def places_of(self, losses: Sequence[tuple[str, float]]) -> list[tuple[int, int, float]]:
        """Return task, place and loss of samples that were drawn here, by their ids."""
        return [(*self._places[sample_id], loss) for sample_id, loss in losses]

    def note(self, losses: Sequence[tuple[int, int, float]]) -> None:
        """Remember how hard questions were, as `places_of` has them; half of what was noted before stays."""
        for task, place, loss in losses:
            before = float(self._losses[task][place])
            self._losses[task][place] = loss if np.isinf(before) else (before + loss) / 2

    def state(self) -> tuple[list[np.ndarray], dict[str, tuple[int, int]]]:
        """Return what is remembered: the losses of each task, and where those of samples drawn here belong."""
        return [losses.copy() for losses in self._losses], dict(self._places)

    def restore(self, losses: Sequence[np.ndarray], places: Mapping[str, Sequence[int]]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: If the tasks have another number of questions.
        """
        for own, stored in zip(self._losses, losses, strict=True):
            if own.shape != stored.shape:
                raise ValueError(f"{len(stored)} questions have become {len(own)}")
            own[:] = stored
        self._places = {sample_id: (task, place) for sample_id, (task, place) in places.items()}


def fixed_episodes(
    tasks: Sequence[Task], num_samples: int, seed: int, reward: Reward | None = None
) -> list[list[tuple[Sample, int]]]:
    """Return the same questions over the same documents at every call, of each task about as many.

    Args:
        tasks: Where from; what the training must not see of a sample is seen here.
        num_samples: Questions in all; fewer if the tasks have fewer.
        seed: Decides which questions, and what their documents are filled up with.
        reward: Questions that it cannot judge are left out; None keeps all.
    """
    episodes: list[list[tuple[Sample, int]]] = []
    for place, task in enumerate(tasks):
        wanted = num_samples // len(tasks) + (place < num_samples % len(tasks))
        chosen: dict[int, tuple[Sample, int]] = {}
        for number in np.random.default_rng([seed, place]).permutation(task.numbers).tolist():
            if len(chosen) == wanted:
                break
            episode = task.episode(number, np.random.default_rng([seed, place, number]))
            if reward is None or reward.unusable(episode[0]) is None:
                chosen[number] = episode
        episodes.append([chosen[number] for number in sorted(chosen)])
    return episodes


def split_by_id(source: SampleSource, validation_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut a source into training and validation numbers by a hash of each question's text.

    The same question is on the same side whatever its place in the file, and so is one that occurs twice.
    """
    random = np.random.default_rng(0)
    held_out = np.array(
        [
            int.from_bytes(hashlib.sha256(source.sample(i, random).question.encode()).digest()[:4], "big")
            < validation_share * 2**32
            for i in range(len(source))
        ]
    )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)

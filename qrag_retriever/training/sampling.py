"""Drawing training samples from weighted sources, and the fixed questions of a validation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from qrag_retriever.training.data import Sample, SampleSource
from qrag_retriever.training.rewards.base import Reward, why_unusable

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
    """

    source: SampleSource
    numbers: np.ndarray
    weight: float = 1.0
    step_limit: int | None = None
    withhold_supporting: bool = False

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

    Attributes:
        tasks: What is drawn from.
        era: Counts how often the trainer has thrown away its chunk embeddings; see `SampleSource`.
    """

    def __init__(self, tasks: Sequence[Task], reward: Reward) -> None:
        """Set up the draw.

        Args:
            tasks: At least one, none of them empty.
            reward: Says which samples it cannot judge.

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

    def draw(self, random: np.random.Generator) -> tuple[Sample, int]:
        """Draw one episode with a stream.

        Raises:
            ValueError: If the reward can judge none of the samples drawn.
        """
        reason: str | None = None
        for _ in range(_MOST_ATTEMPTS):
            drawn = int(np.searchsorted(self._shares, random.random(), side="right"))
            task = self.tasks[min(drawn, len(self.tasks) - 1)]
            sample, limit = task.episode(int(random.choice(task.numbers)), random, self.era)
            reason = why_unusable(self._reward, sample)
            if reason is None:
                return sample, limit
            self._skipped[task.source.name, sample.id] = reason
        raise ValueError(
            f"the reward can judge none of the {len(self._skipped)} questions drawn; the last one because {reason}; "
            "give other questions, or another reward.kind"
        )

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
            if reward is None or why_unusable(reward, episode[0]) is None:
                chosen[number] = episode
        episodes.append([chosen[number] for number in sorted(chosen)])
    return episodes


def held_out(questions: np.ndarray, documents: np.ndarray, share: float) -> np.ndarray:
    """Choose questions for validation so that no document, and no question's text, is on both sides.

    Single passages may be, where lists of chunks overlap without being the same.

    Questions that are linked by a text or a document go together. Where that leaves nothing to choose, they are chosen
    by their text alone (all are about one document), or by their document (all ask the same). The order of the
    questions does not matter.

    Args:
        questions: Shape (N,), uint64: a hash of each question's text.
        documents: Shape (N,), uint64: a hash of each document, or of its chunks.
        share: Of the questions, about; whole groups are taken until it is reached.

    Returns:
        Shape (N,), bool.
    """
    texts, of_text = np.unique(questions, return_inverse=True)
    names, of_document = np.unique(documents, return_inverse=True)
    size = len(texts) + len(names)
    links = coo_array((np.ones(len(questions)), (of_text, len(texts) + of_document)), shape=(size, size))
    groups = connected_components(links, directed=False)[1][of_text]
    if groups.max(initial=0) == 0:
        groups, questions = (of_text, questions) if len(texts) > 1 else (of_document, documents)
    # The least of a group's hashes would be low for large groups, so it is hashed once more.
    least = np.full(groups.max(initial=0) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, groups, questions)
    sizes = np.bincount(groups, minlength=len(least))
    order = np.argsort(least * np.uint64(0x9E3779B97F4A7C15), kind="stable")
    before = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
    # Not the group that is most of the file.
    chosen = order[(before < share * len(questions)) & ((sizes[order] <= len(questions) / 2) | (share > 0.5))]
    return np.isin(groups, chosen)

"""The decision process: episodes of picking chunks, one or several side by side. No model, no tensor."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.state import RetrievalState
from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards.base import Outcome, Reward, judged

Draw = Callable[[int], tuple[Sample, int]]
"""Given an environment's number, returns the sample and the step limit of its next episode."""


class RetrievalEnv:
    """One episode of picking chunks for a question.

    Attributes:
        sample: The question and its chunks; there is none before the first `reset`.
        step_limit: Most picks of the episode.
        state: The question and the chunks picked so far; there is none before the first `reset`.

    Source: Q-RAG (arXiv 2511.07328), Section 3, the decision process.
    """

    sample: Sample
    state: RetrievalState

    def __init__(self, step_limit: int) -> None:
        """Make an environment without an episode; `reset` starts one.

        Args:
            step_limit: Most picks of an episode, unless `reset` says otherwise.

        Raises:
            ValueError: If the step limit is below 1.
        """
        check_at_least_one(step_limit=step_limit)
        self.step_limit = int(step_limit)

    def reset(self, sample: Sample, step_limit: int | None = None) -> RetrievalState:
        """Start an episode.

        Args:
            sample: The question and its chunks.
            step_limit: Most picks of this and the following episodes; None keeps what it was.

        Returns:
            The first state: the question, nothing picked.

        Raises:
            ValueError: If the sample has no chunks, or the step limit is below 1.
        """
        step_limit = self.step_limit if step_limit is None else step_limit
        check_at_least_one(step_limit=step_limit)
        if not sample.chunks:
            raise ValueError(f"sample {sample.id!r} has no chunks; an episode needs at least one to pick")
        self.sample, self.step_limit = sample, int(step_limit)
        self.state = RetrievalState(sample.question)
        return self.state

    @property
    def num_chunks(self) -> int:
        """Number of chunks of the sample, picked ones included."""
        return len(self.sample.chunks)

    @property
    def over(self) -> bool:
        """Whether the step limit is reached or no chunk is left."""
        return len(self.state.picked) >= min(self.step_limit, self.num_chunks)

    def available(self) -> npt.NDArray[np.bool_]:
        """Return which chunks can be picked, shape (num_chunks,)."""
        mask = np.ones(self.num_chunks, np.bool_)
        mask[list(self.state.picked)] = False
        return mask

    def outcome(self, chunk_id: int) -> Outcome:
        """Return what picking a chunk would lead to, without picking it.

        Raises:
            ValueError: If the chunk has been picked already, there is no such chunk, or the episode is over.
        """
        chunk_id = operator.index(chunk_id)
        if self.over:
            raise ValueError(
                f"the episode is over after {len(self.state.picked)} picks (step limit {self.step_limit}, "
                f"{self.num_chunks} chunks); reset() starts another"
            )
        if not 0 <= chunk_id < self.num_chunks:
            raise ValueError(f"there is no chunk {chunk_id}; ids go from 0 to {self.num_chunks - 1}")
        picked = self.state.append(chunk_id, self.sample.chunks[chunk_id]).picked
        return Outcome(self.sample, picked, last=len(picked) == min(self.step_limit, self.num_chunks))

    def step(self, chunk_id: int) -> Outcome:
        """Pick a chunk; errors as in `outcome`."""
        outcome = self.outcome(chunk_id)
        chunk_id = outcome.picked[-1]
        self.state = self.state.append(chunk_id, self.sample.chunks[chunk_id])
        return outcome


@dataclass(frozen=True, slots=True)
class Transition:
    """One pick in one environment.

    Attributes:
        state: The state in which the chunk was picked.
        chunk_id: The chunk.
        reward: What it earned.
        ended: Whether the episode ended with it: nothing is bootstrapped from the state after it.
        settled: Whether no later pick of the episode can earn anything more.
    """

    state: RetrievalState
    chunk_id: int
    reward: float
    ended: bool
    settled: bool


class VectorEnv:
    """Several environments that are stepped together, with a reward; an episode that ended is followed by a new one.

    Attributes:
        num_envs: Number of environments.
        envs: The environments; to be read only.
    """

    def __init__(self, reward: Reward, num_envs: int, draw: Draw, running: dict[str, Any] | None = None) -> None:
        """Start an episode in every environment.

        Args:
            reward: Judges the picks.
            num_envs: Number of environments.
            draw: Called with an environment's number for its next episode. It should leave out what the reward cannot
                judge, see `Reward.unusable`.
            running: What `to_dict` returned: goes on with these episodes, and draws none to begin with, so that the
                random numbers behind ``draw`` stay where a checkpoint has them.

        Raises:
            ValueError: If ``num_envs`` is below 1; otherwise as in `RetrievalEnv.reset` and `restore`.
        """
        check_at_least_one(num_envs=num_envs)
        self.reward = reward
        self.num_envs = num_envs
        self._draw = draw
        self.envs: list[RetrievalEnv]
        if running is None:
            self.envs = [self._fresh(number) for number in range(num_envs)]
        else:
            self.restore(running)

    @property
    def states(self) -> list[RetrievalState]:
        """The state of each environment."""
        return [env.state for env in self.envs]

    @property
    def samples(self) -> list[Sample]:
        """The sample of each environment's running episode; a step may replace it."""
        return [env.sample for env in self.envs]

    def step(self, chunk_ids: Sequence[int]) -> list[Transition]:
        """Pick one chunk in each environment.

        Where an episode ended (step limit, no chunk left, or by the reward) the next one is drawn, so afterwards
        `states` are the states to pick in. If anything raises (a bad pick, the reward, ``draw``), no environment has
        moved.

        Args:
            chunk_ids: One for each environment.

        Returns:
            What happened in each environment, in the episode that the pick belonged to.

        Raises:
            ValueError: If their number is wrong, one has been picked already, or there is no such chunk.
        """
        if len(chunk_ids) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} chunk ids, one for each environment, got {len(chunk_ids)}")
        transitions = self.peek(list(enumerate(chunk_ids)))
        fresh = {number: self._fresh(number) for number, transition in enumerate(transitions) if transition.ended}
        for number, transition in enumerate(transitions):
            if number in fresh:
                self.envs[number] = fresh[number]
            else:
                self.envs[number].step(transition.chunk_id)
        return transitions

    def peek(self, picks: Sequence[tuple[int, int]]) -> list[Transition]:
        """Return what picks would lead to, without making them.

        Args:
            picks: An environment's number and a chunk id each.

        Raises:
            ValueError: If a chunk has been picked already, or there is no such chunk.
            RewardError: If the reward fails, or does not answer as it must.
        """
        outcomes = [self.envs[number].outcome(chunk_id) for number, chunk_id in picks]
        feedback = judged(self.reward, outcomes)
        return [
            Transition(
                self.envs[number].state, outcome.picked[-1], given.reward, outcome.last or given.ends, given.settled
            )
            for (number, _), outcome, given in zip(picks, outcomes, feedback, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the running episodes, samples included, in types that JSON has."""
        return {
            "episodes": [
                {
                    "sample": {
                        field.name: _lists(getattr(env.sample, field.name)) for field in dataclasses.fields(Sample)
                    },
                    "step_limit": env.step_limit,
                    "picked": list(env.state.picked),
                }
                for env in self.envs
            ]
        }

    def restore(self, running: dict[str, Any]) -> None:
        """Go on with the episodes that `to_dict` returned; the present ones are dropped.

        Raises:
            ValueError: If they are not as many as there are environments, or are damaged; then nothing has changed.
        """
        try:
            envs = [_restored(episode) for episode in running["episodes"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the episodes that to_dict() returned: {type(error).__name__}: {error}") from error
        if len(envs) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} episodes, one for each environment, got {len(envs)}")
        self.envs = envs

    def _fresh(self, number: int) -> RetrievalEnv:
        sample, step_limit = self._draw(number)
        env = RetrievalEnv(step_limit)
        env.reset(sample)
        return env


def _restored(episode: dict[str, Any]) -> RetrievalEnv:
    env = RetrievalEnv(episode["step_limit"])
    env.reset(Sample(**{name: _tuples(value) for name, value in episode["sample"].items()}))
    for chunk_id in episode["picked"]:
        env.step(chunk_id)
    if env.over:
        raise ValueError(f"the episode with sample {env.sample.id!r} is over")
    return env


def _lists(value: Any) -> Any:
    return [_lists(inner) for inner in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value

"""Rollouts: all environments pick in lockstep, and what they saw and earned is kept for one update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qrag_retriever.errors import DivergedError
from qrag_retriever.state import RetrievalState
from qrag_retriever.training.batches import Candidates, candidates_of, rendered, score
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import Sample
from qrag_retriever.training.environment import Transition, VectorEnv
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.timing import Stopwatch


@dataclass(frozen=True)
class Visit:
    """One state that an environment was in, the pick it made there and what came of it.

    Attributes:
        sample: Question and document.
        state: The state in which the pick was made.
        chunk_id: The pick.
        rows: Cache rows of the document's chunks.
        reward: What the pick earned.
        ended: Whether the episode ended with it.
        settled: Whether nothing more could be earned afterwards.
    """

    sample: Sample
    state: RetrievalState
    chunk_id: int
    rows: np.ndarray
    reward: float
    ended: bool
    settled: bool

    @property
    def next_state(self) -> RetrievalState:
        """The state after the pick."""
        return self.state.append(self.chunk_id, self.sample.chunks[self.chunk_id])


@dataclass(frozen=True)
class Rollout:
    """What E environments did in S steps; lists are step-major: all environments' first step, then the second.

    Attributes:
        visits: E x S visits.
        candidates: What each of them could pick from.
        embeddings: Shape (E * S, D): state embeddings by the live encoder; with gradients if they were asked for.
        scores: Shape (E * S, N): Q-values of all candidates when the pick was made.
        num_envs: E.
        alternatives: What other picks would have led to, as if they had been made, each with the row of the visit
            whose state they belong to.
    """

    visits: list[Visit]
    candidates: Candidates
    embeddings: torch.Tensor
    scores: np.ndarray
    num_envs: int
    alternatives: tuple[tuple[int, Visit], ...] = ()

    def by_env(self, values: Sequence[float]) -> torch.Tensor:
        """Lay out one number per visit as (num_envs, num_steps)."""
        return torch.tensor(values, dtype=torch.float32).view(-1, self.num_envs).T.contiguous()


def policy_pick(
    q_values: np.ndarray, available: np.ndarray, alpha: float, top_k: int, random: np.random.Generator
) -> int:
    """Sample a chunk from softmax(Q / alpha) over the best available ones.

    Args:
        q_values: Shape (N,), the sum of both heads.
        available: Shape (N,), bool, at least one True.
        alpha: Temperature, in reward units.
        top_k: How many of the best chunks are looked at.
        random: The environment's own stream.

    Source: Q-RAG (arXiv 2511.07328), Section 3, the training policy.
    """
    chunks = np.flatnonzero(available)
    if len(chunks) > top_k:
        chunks = chunks[np.argpartition(-q_values[chunks], top_k - 1)[:top_k]]
    # In order of chunk id, so that ties do not depend on how the best were found.
    chunks = np.sort(chunks)
    logits = (q_values[chunks] - q_values[chunks].max()).astype(np.float64) / alpha
    weights = np.exp(logits)
    return int(random.choice(chunks, p=weights / weights.sum()))


def collect(
    envs: VectorEnv,
    pair: TrainedPair,
    cache: ChunkCache,
    streams: Sequence[np.random.Generator],
    num_steps: int,
    alpha: float,
    top_k: int,
    with_gradients: bool,
    watch: Stopwatch,
    num_alternatives: int = 0,
) -> Rollout:
    """Let every environment make ``num_steps`` picks.

    Args:
        envs: The environments, in whatever state the last rollout left them.
        pair: The live encoders.
        cache: Chunk embeddings of this era.
        streams: One stream per environment, for its picks.
        num_steps: Picks per environment.
        alpha: Temperature of the policy.
        top_k: Chunks that the policy looks at.
        with_gradients: Whether the state embeddings keep their graph for the update.
        watch: Says where the time goes.
        num_alternatives: For so many of each state's best other chunks, find out what picking them would lead to.

    Raises:
        DivergedError: If Q-values are not finite.
    """
    visits: list[Visit] = []
    alternatives: list[tuple[int, Visit]] = []
    parts: list[Candidates] = []
    embeddings: list[torch.Tensor] = []
    scores: list[np.ndarray] = []
    for _ in range(num_steps):
        running = [(env.sample, env.state) for env in envs.envs]
        with watch("chunks"):
            rows = cache.rows_of([sample.chunks for sample, _ in running])
        with watch("states"), torch.set_grad_enabled(with_gradients):
            embedded = pair.embed_states([rendered(pair.config, state, sample.mode) for sample, state in running])
        with watch("scores"):
            candidates = candidates_of(
                pair.config,
                [(own, sample.mode) for own, (sample, _) in zip(rows, running, strict=True)],
                [state.picked for _, state in running],
            )
            values = score(embedded.detach(), cache.table, candidates).sum(-1).cpu().numpy()
            if not np.isfinite(values).all():
                raise DivergedError("Q-values are no numbers any more")
            chosen = [
                policy_pick(values[e], candidates.available[e], alpha, top_k, stream)
                for e, stream in enumerate(streams)
            ]
        with watch("reward"):
            if num_alternatives:
                found = _alternatives(envs, values, candidates.available, chosen, rows, num_alternatives)
                alternatives.extend((len(visits) + e, visit) for e, visit in found)
            transitions = envs.step(chosen)
        visits.extend(
            _visit(*of_env) for of_env in zip([sample for sample, _ in running], transitions, rows, strict=True)
        )
        parts.append(candidates)
        scores.append(values)
        embeddings.append(embedded)
    longest = max(part.rows.shape[1] for part in parts)
    stacked = (
        _stacked([getattr(part, name) for part in parts], longest) for name in ("rows", "positions", "available")
    )
    return Rollout(
        visits,
        Candidates(*stacked),
        torch.cat(embeddings),
        _stacked(scores, longest),
        len(streams),
        tuple(alternatives),
    )


def _visit(sample: Sample, transition: Transition, rows: np.ndarray) -> Visit:
    outcome = (transition.reward, transition.ended, transition.settled)
    return Visit(sample, transition.state, transition.chunk_id, rows, *outcome)


def _alternatives(
    envs: VectorEnv, values: np.ndarray, available: np.ndarray, chosen: Sequence[int], rows: Sequence[np.ndarray],
    count: int,
) -> list[tuple[int, Visit]]:  # fmt: skip
    """Return what the best chunks beside each environment's pick would lead to, with the environment's number."""
    picks = [
        (e, chunk) for e in range(envs.num_envs) for chunk in best_others(values[e], available[e], chosen[e], count)
    ]
    outcomes = envs.peek(picks) if picks else []
    return [(e, _visit(envs.envs[e].sample, would, rows[e])) for (e, _), would in zip(picks, outcomes, strict=True)]


def best_others(q_values: np.ndarray, available: np.ndarray, chosen: int, count: int) -> list[int]:
    """Return the best available chunks beside the pick, the best first, ties by the lower id.

    Args:
        q_values: Shape (N,).
        available: Shape (N,), bool.
        chosen: The pick.
        count: How many at most.
    """
    chunks = np.flatnonzero(available)
    chunks = chunks[chunks != chosen]
    found: list[int] = chunks[np.lexsort((chunks, -q_values[chunks]))[:count]].tolist()
    return found


def _stacked(arrays: Sequence[np.ndarray], longest: int) -> np.ndarray:
    """Put the arrays of all steps below each other, padded to the longest document."""
    return np.concatenate([np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays])

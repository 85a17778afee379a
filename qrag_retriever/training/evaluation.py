"""How well a pair retrieves: greedy picks for many questions in lockstep, and the figures of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from qrag_retriever.errors import DivergedError
from qrag_retriever.state import RetrievalState
from qrag_retriever.training.batches import candidates_of, rendered, score
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import Sample
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.rewards.base import Outcome, Reward, judged

_QUESTIONS_AT_ONCE = 64


@dataclass(frozen=True)
class Picks:
    """What was picked for one question.

    Attributes:
        sample: The question.
        chunk_ids: In the order of picking.
        q_values: Of each pick at its hop.
    """

    sample: Sample
    chunk_ids: tuple[int, ...]
    q_values: tuple[float, ...]


@dataclass(frozen=True)
class Figures:
    """Means over questions with annotated facts, shares from 0 to 1.

    Attributes:
        num_samples: Questions.
        fact_recall: All facts among the picks ("Fact EM" in the paper).
        recall_at_k: Mean share of facts among the picks.
        exact: All facts found within as many picks as there are facts.
        fact_f1: Mean F1 of the first as many picks as there are facts.
    """

    num_samples: int
    fact_recall: float
    recall_at_k: float
    exact: float
    fact_f1: float

    def to_dict(self) -> dict[str, float]:
        """Return name and value of each figure."""
        return {name: float(getattr(self, name)) for name in ("fact_recall", "recall_at_k", "exact", "fact_f1")}


def greedy_picks(
    pair: TrainedPair, episodes: Sequence[tuple[Sample, int]], cache: ChunkCache | None = None, progress: bool = False
) -> list[Picks]:
    """Pick the best chunk, step by step, for many questions at once.

    The picks are those of a `MultiStepSelector` over one index per question.

    Args:
        pair: Its live encoders are used.
        episodes: Samples and how many picks to make for each.
        cache: Embeddings of chunks by the live action encoder as it is now; None embeds all chunks.
        progress: Whether to show a bar on a terminal.

    Raises:
        DivergedError: If Q-values are not finite.
    """
    cache = ChunkCache(pair.embed_chunks, pair.config.dim, pair.device) if cache is None else cache
    found: list[Picks] = []
    starts = range(0, len(episodes), _QUESTIONS_AT_ONCE)
    for start in tqdm(starts, desc="evaluate", leave=False, disable=None if progress else True):
        found.extend(_picks_of(pair, cache, episodes[start : start + _QUESTIONS_AT_ONCE]))
    return found


@torch.no_grad()
def _picks_of(pair: TrainedPair, cache: ChunkCache, episodes: Sequence[tuple[Sample, int]]) -> list[Picks]:
    rows = cache.rows_of([sample.chunks for sample, _ in episodes])
    states = [RetrievalState(sample.question) for sample, _ in episodes]
    values: list[list[float]] = [[] for _ in episodes]
    for hop in range(max(limit for _, limit in episodes)):
        open_ones = [i for i, (sample, limit) in enumerate(episodes) if hop < min(limit, len(sample.chunks))]
        if not open_ones:
            break
        samples = [episodes[i][0] for i in open_ones]
        inputs = [rendered(pair.config, states[i], s.mode) for i, s in zip(open_ones, samples, strict=True)]
        candidates = candidates_of(
            pair.config,
            [(rows[i], sample.mode) for i, sample in zip(open_ones, samples, strict=True)],
            [states[i].picked for i in open_ones],
        )
        q_values = score(pair.embed_states(inputs), cache.table, candidates).sum(-1).cpu().numpy()
        if not np.isfinite(q_values[candidates.available]).all():
            raise DivergedError("Q-values are no numbers any more")
        q_values[~candidates.available] = -np.inf
        for row, (i, sample) in enumerate(zip(open_ones, samples, strict=True)):
            best = int(q_values[row].argmax())
            states[i] = states[i].append(best, sample.chunks[best])
            values[i].append(float(q_values[row, best]))
    return [Picks(sample, states[i].picked, tuple(values[i])) for i, (sample, _) in enumerate(episodes)]


def figures_of(picks: Sequence[Picks]) -> Figures:
    """Compute the figures of questions with annotated facts.

    Raises:
        ValueError: If no question has annotated facts.
    """
    rows = [row for row in map(_row, picks) if row is not None]
    if not rows:
        raise ValueError("no question has annotated facts; evaluate by the reward instead")
    return Figures(len(rows), *(float(mean) for mean in np.mean(rows, axis=0)))


def _row(picks: Picks) -> tuple[float, float, float, float] | None:
    if not picks.sample.supporting:
        return None  # not known, or nothing to find
    facts = set(picks.sample.supporting)
    first = facts & set(picks.chunk_ids[: len(facts)])
    found = facts & set(picks.chunk_ids)
    # As many picks as facts: precision and recall are one number, and so is their F1.
    return float(found == facts), len(found) / len(facts), float(first == facts), len(first) / len(facts)


def returns_of(reward: Reward, picks: Sequence[Picks], gamma: float) -> list[list[float]]:
    """Return what each pick's episode went on to earn from there, discounted, for every question.

    Raises:
        RewardError: If the reward fails.
    """
    outcomes = [
        Outcome(p.sample, p.chunk_ids[: step + 1], step + 1 == len(p.chunk_ids))
        for p in picks
        for step in range(len(p.chunk_ids))
    ]
    feedback = iter(judged(reward, outcomes))
    returns = []
    for one in picks:
        later, own = 0.0, []
        for found in reversed([next(feedback) for _ in one.chunk_ids]):
            later = found.reward + (0.0 if found.ends else gamma * later)
            own.append(later)
        returns.append(own[::-1])
    return returns


def calibration(picks: Sequence[Picks], returns: Sequence[Sequence[float]]) -> dict[str, float]:
    """Compare predicted Q-values with the returns that followed: mean of both, and mean absolute difference."""
    predicted = np.concatenate([one.q_values for one in picks])
    realised = np.concatenate([np.asarray(own) for own in returns])
    return {
        "predicted_q": float(predicted.mean()),
        "realised_return": float(realised.mean()),
        "calibration_error": float(np.abs(predicted - realised).mean()),
    }


def best_min_q(picks: Sequence[Picks], most_lost: float = 0.01) -> float:
    """Find the stop value for which the facts' mean F1 is best when picking stops at the first Q not above it.

    Args:
        picks: Of questions whose evidence is known; others have no say.
        most_lost: Fact recall that stopping may cost, as a share of the questions, but at least one question unless
            it is 0. Evidence that is never picked cannot be used, while a pick too many costs a reader a few lines.

    Raises:
        ValueError: If no question has annotated facts.
    """
    known = [one for one in picks if one.sample.supporting is not None and one.chunk_ids]
    if not known:
        raise ValueError("no question has annotated facts to calibrate min_q with")
    longest = max(len(one.chunk_ids) for one in known)
    # A stop happens where the running minimum falls to min_q.
    lowest = np.full((len(known), longest), -np.inf)
    f1, all_found = np.zeros((len(known), longest + 1)), np.zeros((len(known), longest + 1))
    for i, one in enumerate(known):
        facts = set(one.sample.supporting or ())
        f1[i, 0] = all_found[i, 0] = float(not facts)  # nothing to find, and nothing picked
        lowest[i, : len(one.q_values)] = np.minimum.accumulate(one.q_values)
        for count in range(1, len(one.chunk_ids) + 1):
            found = len(facts & set(one.chunk_ids[:count]))
            f1[i, count] = 2 * found / (count + len(facts))
            all_found[i, count] = float(found == len(facts))
    values = np.unique(lowest[np.isfinite(lowest)])
    candidates = np.concatenate([[values[0] - 1.0], (values[1:] + values[:-1]) / 2])
    if len(candidates) > 2000:
        candidates = candidates[:: len(candidates) // 2000]
    rows = np.arange(len(known))
    counts = [(lowest > candidate).sum(1) for candidate in candidates]
    recalls = np.array([all_found[rows, count].mean() for count in counts])
    # Rounded, so that equal means of other sums are equal.
    scores = np.round([f1[rows, count].mean() for count in counts], 9)
    # Of fewer than a hundred questions, a share of 0.01 would be none, and one question would decide.
    allowed = max(most_lost, 1 / len(known)) if most_lost else 0.0
    # The first candidate stops nowhere.
    scores[recalls < recalls[0] - allowed - 1e-9] = -np.inf
    # The highest of equally good values: fewer picks for the same F1.
    return float(candidates[len(scores) - 1 - int(np.argmax(scores[::-1]))])

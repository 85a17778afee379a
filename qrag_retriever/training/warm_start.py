"""Warm start: imitation of the best pick in sampled states, from annotated facts, calibrated from the beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from qrag_retriever.config import Mode
from qrag_retriever.q_values import batched_head_q_values
from qrag_retriever.training.batches import (
    Candidates,
    candidates_of,
    confused,
    hardest,
    rendered,
    rows_among,
    score,
    with_fresh,
    with_in_batch_negatives,
)
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.data import Sample
from qrag_retriever.training.imitation import listwise_losses, value_loss
from qrag_retriever.training.labelled_states import LabelledState, sample_picks
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.recipe import WarmStartSettings
from qrag_retriever.training.rewards import SupportingFactsReward
from qrag_retriever.training.timing import Stopwatch

Draw = Callable[[np.random.Generator], tuple[Sample, int]]

# Wrong picks and hard negatives come from this many of the best-scored chunks that are no facts.
_HARDEST = 16
# Of English prose in the word pieces of BERT; only shares out work.
_CHARACTERS_PER_TOKEN = 4.2


class WarmStart:
    """Makes the loss of one warm-start update.

    Source: Q-RAG (arXiv 2511.07328) trains by PQN alone; imitation before and beside it follows DQfD
    (arXiv 1704.03732).
    """

    def __init__(
        self, pair: TrainedPair, cache: ChunkCache, reward: SupportingFactsReward, draw: Draw,
        settings: WarmStartSettings, gamma: float, log_temperature: torch.Tensor, twin_heads: bool = True,
    ) -> None:  # fmt: skip
        """Set up the stage.

        Args:
            pair: What is trained.
            cache: Chunk embeddings of this era.
            reward: Decides what returns are.
            draw: Draws a sample and its step limit with a stream.
            settings: See the recipe.
            gamma: Discount, per pick.
            log_temperature: Scalar, learned: the logarithm of what divides Q-values in the cross-entropy.
            twin_heads: Whether each Q-head is fitted by itself.
        """
        self._pair, self._cache, self._reward, self._draw = pair, cache, reward, draw
        self._settings, self._gamma, self._twin_heads = settings, gamma, twin_heads
        self._log_temperature = log_temperature

    def loss(
        self, streams: Sequence[np.random.Generator], watch: Stopwatch | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Draw samples and states and return loss and figures.

        Args:
            streams: One for each sample.
            watch: Says where the time goes.
        """
        watch = watch or Stopwatch()
        with watch("draw"):
            drawn = [self._draw(stream) for stream in streams]
        with watch("chunks"):
            everything = self._everything_fresh([sample for sample, _ in drawn])
            rows = self._cache.rows_of([sample.chunks for sample, _ in drawn])
        with watch("scores"):
            mistakes, first_scores = self._likely_mistakes([sample for sample, _ in drawn], rows)
        likely_facts = [
            _best_first(sample.supporting or (), own) for (sample, _), own in zip(drawn, first_scores, strict=True)
        ]
        states: list[LabelledState] = []
        document_of: list[int] = []
        for number, ((sample, step_limit), stream) in enumerate(zip(drawn, streams, strict=True)):
            for _ in range(self._settings.states_per_sample):
                picks = sample_picks(sample, step_limit, mistakes[number], self._settings, stream, likely_facts[number])
                states.append(self._labelled(sample, step_limit, picks))
                document_of.append(number)
        documents = [(rows[number], drawn[number][0].mode) for number in document_of]
        candidates = self._candidates(documents, [state.picked for state in states])
        right = np.zeros_like(candidates.available)
        for i, state in enumerate(states):
            right[i, state.missing] = True
        scores = first_scores[document_of]
        most = self._settings.max_candidates
        own_streams = [streams[number] for number in document_of]
        candidates, right, scores = hardest(candidates, right, scores, most, own_streams)
        if everything is None:
            fresh_rows = self._fresh_rows(candidates, right, scores)
            with watch("chunks"):
                everything = fresh_rows, self._pair.embed_chunks([self._cache.texts[row] for row in fresh_rows])
                self._cache.store(*everything)
        # Hundreds of passages of other questions would drown the own ones in the mean of the value term.
        valued = candidates.available & rows_among(candidates.rows, [own for own, _ in documents])
        with watch("states"):
            embeddings = self._pair.embed_states(
                [rendered(self._pair.config, labelled.state, labelled.sample.mode) for labelled in states]
            )
        with watch("scores"):
            return self._loss_of(states, embeddings, candidates, right, valued, *everything)

    def _candidates(self, documents: Sequence[tuple[np.ndarray, Mode]], picked: Sequence[Sequence[int]]) -> Candidates:
        candidates = candidates_of(self._pair.config, documents, picked)
        return with_in_batch_negatives(candidates, documents) if self._settings.in_batch_negatives else candidates

    def _everything_fresh(self, samples: Sequence[Sample]) -> tuple[np.ndarray, torch.Tensor] | None:
        """Embed all chunks of an update with gradients, if they are few enough: cache rows and embeddings."""
        texts = list(dict.fromkeys(text for sample in samples for text in sample.chunks))
        if sum(map(self._tokens, texts)) > self._settings.fresh_tokens:
            return None
        embeddings = self._pair.embed_chunks(texts)
        return self._cache.put(texts, embeddings), embeddings

    def _loss_of(
        self, states: Sequence[LabelledState], embeddings: torch.Tensor, candidates: Candidates, right: np.ndarray,
        valued: np.ndarray, fresh_rows: np.ndarray, fresh: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:  # fmt: skip
        chunks = with_fresh(self._cache.table, candidates.rows, fresh_rows, fresh)
        head_values = batched_head_q_values(embeddings, chunks, candidates.positions)
        device = head_values.device
        available, rights = (torch.from_numpy(mask).to(device) for mask in (candidates.available, right))
        labels = torch.tensor([[state.right_return, state.other_return] for state in states], device=device)
        q_values = head_values.sum(-1)
        losses = listwise_losses(q_values, available, rights, self._log_temperature.exp())
        # By all states, so that the mean over processes is the mean over everything.
        imitation = losses.sum() / len(states)
        own = torch.from_numpy(valued).to(device)
        values = value_loss(head_values, own, rights, labels, self._twin_heads)
        best = q_values.detach().masked_fill(~available, -torch.inf).argmax(1, keepdim=True)
        counted = rights.any(1)
        figures = {
            "imitation": float(imitation.detach()),
            "value_error": float(values.detach()),
            "temperature": float(self._log_temperature.detach().exp()),
            "right_pick": float(rights.gather(1, best)[counted].float().mean()) if bool(counted.any()) else 1.0,
            "fresh_chunks": float(len(fresh_rows)),
        }
        return imitation + self._settings.value_weight * values, figures

    def _labelled(self, sample: Sample, step_limit: int, picks: tuple[int, ...]) -> LabelledState:
        facts = sample.supporting or ()
        missing = sum(fact not in picks for fact in facts)
        best = self._reward.optimal_return
        return LabelledState(
            sample,
            picks,
            best(len(facts), len(picks), missing, step_limit, self._gamma),
            self._gamma * best(len(facts), len(picks) + 1, missing, step_limit, self._gamma),
        )

    def _likely_mistakes(
        self, samples: Sequence[Sample], rows: Sequence[np.ndarray]
    ) -> tuple[list[list[int]], np.ndarray]:
        """Return for each sample the non-facts that score best in the first state, and all scores of that state."""
        documents = [(own, sample.mode) for own, sample in zip(rows, samples, strict=True)]
        candidates = self._candidates(documents, [()] * len(rows))
        with torch.no_grad():
            first = self._pair.embed_states([(sample.question, ()) for sample in samples])
        scores = score(first, self._cache.table, candidates).sum(-1).cpu().numpy()
        scores[~candidates.available] = -np.inf
        mistakes = []
        for i, sample in enumerate(samples):
            facts = set(sample.supporting or ())
            count = min(_HARDEST + len(facts), len(sample.chunks))
            best = np.argpartition(-scores[i, : len(sample.chunks)], count - 1)[:count]
            mistakes.append([int(chunk) for chunk in best if int(chunk) not in facts])
        return mistakes, scores

    def _fresh_rows(self, candidates: Candidates, right: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Choose the chunks that get gradients: right ones first, then those that the states confuse with them most.

        A chunk's gradient in the cross-entropy is as large as the probability that all states together give it; the
        first state's scores tell that well enough.
        """
        rights = np.unique(candidates.rows[right])
        others, mass = confused(candidates, right, scores, float(self._log_temperature.detach().exp()))
        costs = np.array([self._tokens(self._cache.texts[row]) for row in others])
        # What a chunk costs is its length: many short mistakes are worth more than one long.
        order = np.lexsort((others, -mass / costs))
        order = order[np.isin(others[order], rights, invert=True)]
        room = self._settings.fresh_tokens - sum(self._tokens(self._cache.texts[row]) for row in rights)
        fits = np.cumsum(costs[order]) <= room
        # Several processes expect that each has a gradient for every weight.
        fits[:1] |= not len(rights)
        return np.concatenate([rights, others[order[fits]]])

    def _tokens(self, text: str) -> float:
        """Estimate the tokens of a chunk as an action, special tokens included, without tokenising it."""
        return min(len(text) / _CHARACTERS_PER_TOKEN, self._pair.action_encoder.content_limit) + 2


def _best_first(chunk_ids: Sequence[int], scores: np.ndarray) -> list[int]:
    return sorted(chunk_ids, key=lambda chunk: -float(scores[chunk]))

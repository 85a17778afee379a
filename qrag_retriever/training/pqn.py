"""PQN: soft Q-learning from parallel environments with lambda-returns and no replay buffer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from qrag_retriever.q_values import batched_head_q_values
from qrag_retriever.training.batches import Candidates, candidates_of, confused, hardest, rendered, score, with_fresh
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.environment import VectorEnv
from qrag_retriever.training.imitation import listwise_losses
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.recipe import PQNSettings
from qrag_retriever.training.returns import hard_value, lambda_returns, soft_value
from qrag_retriever.training.rewards import Reward
from qrag_retriever.training.rollout import Rollout, Visit, collect
from qrag_retriever.training.timing import Stopwatch


class PQNLearner:
    """Acts, values states and makes the loss of one update.

    Source: Q-RAG (arXiv 2511.07328), Section 3 and Appendix F; PQN (arXiv 2407.04811).
    """

    def __init__(
        self, pair: TrainedPair, cache: ChunkCache, target_cache: ChunkCache | None, reward: Reward,
        settings: PQNSettings, log_temperature: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Set up the learner.

        Args:
            pair: What is trained, and its targets.
            cache: Chunk embeddings by the live action encoder.
            target_cache: Chunk embeddings by the target action encoder; None: values look at ``cache``.
            reward: Tells the most that an episode can earn.
            settings: See the recipe.
            log_temperature: Logarithm of what divides Q-values in the imitation term; None: no imitation.
        """
        self._pair, self._cache, self._target_cache = pair, cache, target_cache
        self._reward, self._settings, self._log_temperature = reward, settings, log_temperature

    def loss(
        self,
        envs: VectorEnv,
        streams: Sequence[np.random.Generator],
        alpha: float,
        imitation_weight: float,
        watch: Stopwatch,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Collect one rollout and return its loss and figures.

        Args:
            envs: The environments.
            streams: One per environment.
            alpha: Temperature of policy and soft values, in reward units.
            imitation_weight: Of the cross-entropy to annotated facts.
            watch: Says where the time goes.
        """
        settings = self._settings
        # With dropout the gradient pass is another than the rollout's.
        reuse = settings.reuse_states and not self._pair.dropout
        rollout = collect(
            envs, self._pair, self._cache, streams, settings.num_steps, alpha, settings.top_k, reuse, watch,
            settings.num_alternatives,
        )  # fmt: skip
        with watch("targets"):
            targets, values = self.targets(rollout, alpha)
            others = self._one_step_targets([visit for _, visit in rollout.alternatives], alpha)
        with watch("states"):
            embeddings = rollout.embeddings
            if not reuse:
                inputs = [rendered(self._pair.config, visit.state, visit.sample.mode) for visit in rollout.visits]
                embeddings = self._pair.embed_states(inputs)
        with watch("picked chunks"):
            loss, figures = self._loss_of(rollout, embeddings, targets, others, imitation_weight)
        return loss, {**figures, "v": float(values.mean())}

    def targets(self, rollout: Rollout, alpha: float) -> tuple[torch.Tensor, np.ndarray]:
        """Return the lambda-returns of a rollout, and V of the states after its picks (0 where none is bootstrapped).

        Both are of shape (E * S,), step-major like the visits, and without gradient.
        """
        settings = self._settings
        values = self._next_values(rollout.visits, alpha)
        returns = lambda_returns(
            rollout.by_env([visit.reward for visit in rollout.visits]),
            rollout.by_env(values.tolist()),
            rollout.by_env([float(not visit.ended) for visit in rollout.visits]),
            settings.gamma,
            settings.lam,
        )
        return self._clipped(returns.T.reshape(-1), rollout.visits), values

    def _one_step_targets(self, visits: Sequence[Visit], alpha: float) -> torch.Tensor:
        """Return reward plus discounted value of the state after it: shape (len(visits),)."""
        values = torch.from_numpy(self._next_values(visits, alpha))
        return self._clipped(torch.tensor([visit.reward for visit in visits]) + self._settings.gamma * values, visits)

    def _clipped(self, targets: torch.Tensor, visits: Sequence[Visit]) -> torch.Tensor:
        if self._settings.clip_values:
            targets = torch.minimum(targets.clamp(min=0.0), torch.tensor(self._most(visits)))
        return targets.to(self._pair.device)

    def _most(self, visits: Sequence[Visit]) -> list[float]:
        return [self._reward.most(visit.sample) for visit in visits]

    def _next_values(self, visits: Sequence[Visit], alpha: float) -> np.ndarray:
        """Return V of the state after each visit; 0 where nothing is bootstrapped."""
        settings = self._settings
        values = np.zeros(len(visits), np.float32)
        open_rows = [
            row
            for row, visit in enumerate(visits)
            if not visit.ended and not (visit.settled and settings.zero_when_settled)
        ]
        if not open_rows:
            return values
        chosen = [visits[row] for row in open_rows]
        config = self._pair.config
        cache = self._cache if self._target_cache is None else self._target_cache
        # The target encoder has embeddings, and so rows, of its own.
        rows = [visit.rows for visit in chosen]
        if self._target_cache is not None:
            rows = cache.rows_of([visit.sample.chunks for visit in chosen])
        with torch.no_grad():
            embedded = self._pair.embed_states(
                [rendered(config, visit.next_state, visit.sample.mode) for visit in chosen], target=True
            )
        candidates = candidates_of(
            config,
            [(own, visit.sample.mode) for own, visit in zip(rows, chosen, strict=True)],
            [visit.next_state.picked for visit in chosen],
        )
        found = self.state_values(score(embedded, cache.table, candidates), candidates, alpha).cpu().numpy()
        if settings.clip_values:
            found = np.clip(found, 0.0, self._most(chosen))
        values[open_rows] = found
        return values

    def state_values(self, head_values: torch.Tensor, candidates: Candidates, alpha: float) -> torch.Tensor:
        """Return V of B states from their Q-values (B, N, 2): shape (B,)."""
        settings = self._settings
        available = torch.from_numpy(candidates.available).to(head_values.device)
        if settings.value == "hard":
            # The maximum of the sum and not the sum of the heads' maxima: heads that differ would add up too much.
            return hard_value(head_values.sum(-1), available)
        if not settings.twin_heads:
            return soft_value(head_values.sum(-1), available, alpha, settings.top_k)
        first, second = (soft_value(head_values[..., h], available, alpha / 2, settings.top_k) for h in (0, 1))
        return first + second

    def _loss_of(
        self, rollout: Rollout, embeddings: torch.Tensor, targets: torch.Tensor, others: torch.Tensor,
        imitation_weight: float,
    ) -> tuple[torch.Tensor, dict[str, float]]:  # fmt: skip
        temperature = None
        if imitation_weight > 0 and self._log_temperature is not None:
            temperature = self._log_temperature.exp()
        judged = [*enumerate(rollout.visits), *rollout.alternatives]
        place = np.array([row for row, _ in judged])
        picks = np.array([visit.chunk_id for _, visit in judged])
        right = self._right(rollout)
        picked_rows = rollout.candidates.rows[place, picks]
        fresh_rows = np.unique(picked_rows)
        if temperature is not None:
            extra = self._imitated_rows(rollout, right, fresh_rows, float(temperature.detach()))
            fresh_rows = np.concatenate([fresh_rows, extra[: self._settings.fresh_chunks]])
        fresh = self._pair.embed_chunks([self._cache.texts[row] for row in fresh_rows])
        picked_chunks = with_fresh(self._cache.table, picked_rows[:, None], fresh_rows, fresh)
        positions = rollout.candidates.positions[place, picks][:, None]
        states = torch.nn.functional.embedding(torch.from_numpy(place).to(embeddings.device), embeddings)
        heads = batched_head_q_values(states, picked_chunks, positions)[:, 0]  # (E * S + A, 2)
        loss, figures = self._temporal_difference(rollout, heads, targets, others)
        if temperature is not None:
            imitation = self._imitation(rollout, embeddings, right, fresh_rows, fresh, temperature)
            figures["imitation"] = float(imitation.detach())
            loss = loss + imitation_weight * imitation
        self._cache.store(fresh_rows, fresh)
        return loss, figures

    def _temporal_difference(
        self, rollout: Rollout, heads: torch.Tensor, targets: torch.Tensor, others: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of the picks and of the alternatives to them, in this order in ``heads``, and figures."""
        visits = rollout.visits
        heads, other_heads = heads[: len(visits)], heads[len(visits) :]
        loss = temporal_difference_loss(heads, targets, self._settings.twin_heads)
        predicted = heads.detach().sum(-1)
        figures = {
            "td_loss": float(loss.detach()),
            "q": float(predicted.mean()),
            "return": float(targets.mean()),
            "most": float(np.mean(self._most(visits))),
            "td_error": float((predicted - targets).abs().mean()),
            "reward": float(np.mean([visit.reward for visit in visits])),
        }
        if rollout.alternatives:
            figures["other_error"] = float((other_heads.detach().sum(-1) - others).abs().mean())
            loss = loss + temporal_difference_loss(other_heads, others, self._settings.twin_heads)
        return loss, figures

    def _imitation(
        self, rollout: Rollout, embeddings: torch.Tensor, right: np.ndarray, fresh_rows: np.ndarray,
        fresh: torch.Tensor, temperature: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Return the cross-entropy to the facts that were missing, over the hardest candidates: a scalar."""
        candidates, right, _ = hardest(rollout.candidates, right, rollout.scores, self._settings.max_candidates)
        chunks = with_fresh(self._cache.table, candidates.rows, fresh_rows, fresh)
        q_values = batched_head_q_values(embeddings, chunks, candidates.positions).sum(-1)
        available, rights = (torch.from_numpy(mask).to(q_values.device) for mask in (candidates.available, right))
        return listwise_losses(q_values, available, rights, temperature).sum() / len(rollout.visits)

    def _imitated_rows(self, rollout: Rollout, right: np.ndarray, known: np.ndarray, temperature: float) -> np.ndarray:
        """Return the chunks that get gradients in the imitation beside the picks: right ones, then likely mistakes.

        Without the mistakes, nothing but the states would learn to tell them from what is right.
        """
        rights = np.unique(rollout.candidates.rows[right])
        others, mass = confused(rollout.candidates, right, rollout.scores, temperature)
        rows = np.concatenate([rights, others[np.lexsort((others, -mass))]])
        _, first = np.unique(rows, return_index=True)
        rows = rows[np.sort(first)]
        return rows[np.isin(rows, known, invert=True)]

    def _right(self, rollout: Rollout) -> np.ndarray:
        """Mark the facts that were missing in each state of a rollout: shape (E * S, N)."""
        right = np.zeros_like(rollout.candidates.available)
        for row, visit in enumerate(rollout.visits):
            right[row, list(visit.sample.supporting or ())] = True
        missing: np.ndarray = right & rollout.candidates.available
        return missing


def temporal_difference_loss(heads: torch.Tensor, targets: torch.Tensor, twin_heads: bool = True) -> torch.Tensor:
    """Mean of (2 Q1 - G)^2 / 2 + (2 Q2 - G)^2 / 2: each head estimates half of the return.

    Args:
        heads: Shape (B, 2): Q-values of the picks by each head.
        targets: Shape (B,): returns G, in reward units.
        twin_heads: False: only the sum of the heads is fitted, (Q1 + Q2 - G)^2.

    Source: Q-RAG (arXiv 2511.07328), Appendix F.
    """
    if not twin_heads:
        return (heads.sum(-1) - targets).square().mean()
    return (2 * heads - targets.unsqueeze(-1)).square().mean()

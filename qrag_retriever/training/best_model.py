"""The model that is best on validation: measured, told, kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from qrag_retriever.config import Mode
from qrag_retriever.model import QRAGModel
from qrag_retriever.training.health import fallen
from qrag_retriever.training.logs import RunLog
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.run_state import RunState
from qrag_retriever.training.sampling import Task
from qrag_retriever.training.stages import Stage
from qrag_retriever.training.starting_point import merged_copy
from qrag_retriever.training.validation import Validation


class BestModel:
    """Measures the pair as it is and keeps it where it is the best so far; in one process of a run."""

    def __init__(
        self,
        folder: Path,
        pair: TrainedPair,
        validation: Validation,
        state: RunState,
        tasks: Sequence[Task],
        keep: Literal["best", "last"] = "best",
    ) -> None:
        """Measure nothing yet.

        Args:
            folder: Where the model is kept.
            pair: What is trained.
            validation: What it is measured on.
            state: Gets the figures of every validation, and which of them was the best.
            tasks: Of training; where there is no validation, they tell how many picks the model should make.
            keep: "last": the model of every validation takes the place of the one before, whatever its figures.
        """
        self._folder, self._pair, self._validation, self._state = folder, pair, validation, state
        self._tasks, self._keep = tasks, keep

    def measure(self, stage: Stage, log: RunLog) -> None:
        """Measure on validation; keep the model if it is the best so far."""
        found = self._validation.measure(self._pair)
        state = self._state
        log.validation(state.step, stage.name, found.figures)
        entry = {"score": found.score, "step": state.step, "stage": stage.name}
        state.history.append({**entry, **found.figures})
        is_best = found.score > state.best["score"]
        if is_best or self._keep == "last":
            state.best = {**entry, "figures": dict(found.figures)}
            self.save(found.min_q)
        kept = " (best so far)" if is_best else ""
        log.say(f"{stage.name} {state.step}: {found}{kept if self._keep == 'best' else ' (kept)'}")
        # What a warm start loses on the way, its own next updates can bring back.
        if stage.name == "pqn":
            begun = next(place for place, old in enumerate(state.history) if old["stage"] == "pqn")
            # The score that PQN began with is the warm start's last one.
            for warning in fallen([old["score"] for old in state.history[max(0, begun - 1) :]]):
                log.say(warning)

    def save(self, min_q: Mapping[Mode, float]) -> None:
        """Write the pair as it is, with its stop values."""
        known = [limit for _, limit in self._validation.episodes]
        known = known or [task.step_limit for task in self._tasks if task.step_limit is not None]
        config = self._pair.config.replaced(min_q=dict(min_q), step_limit=max(known) if known else None)
        encoders = (self._pair.state_encoder, self._pair.action_encoder)
        state, action = (merged_copy(encoder.model) for encoder in encoders)
        QRAGModel(config, lambda: (state, action), device="cpu").save_pretrained(self._folder)

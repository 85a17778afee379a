"""Signs that training is about to collapse, or has, and what to do about each.

The signs that warn: values beyond what the reward can pay, a loss that becomes noise, and validation that drops while
the loss looks well. The thresholds are rules of thumb; over tau and alpha (training/README.md) it is the third that
tells the settings that lose most, while the variance of the loss tells nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qrag_retriever.errors import DivergedError

_WINDOW = 20
_OVERESTIMATED = 1.1
_NOISIER = 10.0
_DROPPED = 0.1
# A loss this many times the square of the largest return is no noise.
_EXPLODED = 1000.0


class Health:
    """Watches the figures of a PQN stage; every sign is reported once."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._excess: deque[float] = deque(maxlen=_WINDOW)
        self._first_variance: float | None = None
        self._reported: set[str] = set()

    def update(self, figures: Mapping[str, float]) -> list[str]:
        """Take the figures of an update; return warnings, usually none.

        Args:
            figures: With "td_loss", "q" (mean Q-value of the picks) and "most" (mean of the largest possible returns).
        """
        self._losses.append(figures["td_loss"])
        self._excess.append(figures["q"] - _OVERESTIMATED * figures["most"])
        if len(self._losses) < _WINDOW:
            return []
        found = []
        if np.mean(self._excess) > 0:
            found.append(
                self._once(
                    "values",
                    "Q-values are above the largest return that the reward can pay; values feed on themselves. "
                    "Set pqn.clip_values = true and pqn.zero_when_settled = true, use pqn.value = 'hard' or a smaller "
                    "pqn.alpha, or a smaller pqn.tau",
                )
            )
        variance = float(np.var(self._losses))
        if self._first_variance is None:
            self._first_variance = variance
        elif variance > _NOISIER * max(self._first_variance, 1e-8):
            found.append(
                self._once(
                    "loss",
                    f"the loss has become more than {_NOISIER:.0f} times as noisy as at the beginning. Use a smaller "
                    "pqn.tau (targets that move more slowly), a smaller pqn.learning_rate, or more environments",
                )
            )
        return [warning for warning in found if warning]

    def _once(self, sign: str, advice: str) -> str:
        if sign in self._reported:
            return ""
        self._reported.add(sign)
        return f"warning: {advice}."


def fallen(scores: Sequence[float]) -> list[str]:
    """Return a warning if the last of a stage's validation scores is the first that has fallen far below the best.

    A run that was resumed warns as if it had not been: the scores are in its checkpoint.
    """
    best = np.maximum.accumulate(scores)
    has_fallen = np.flatnonzero(np.asarray(scores) < best - _DROPPED)
    if len(has_fallen) == 0 or has_fallen[0] < len(scores) - 1:
        return []
    advice = (
        f"validation has fallen from {best[-1]:.3f} to {scores[-1]:.3f}. The best model so far is kept; keep "
        "pqn.imitation_weight on for longer, or use a smaller pqn.learning_rate, pqn.alpha or pqn.tau"
    )
    return [f"warning: {advice}."]


class LossGuard:
    """Ends a stage whose loss or gradient is not finite any more, or has exploded."""

    def __init__(self, most: float) -> None:
        """Set the limit.

        Args:
            most: The largest return of an episode, in reward units.
        """
        self._limit = _EXPLODED * max(1.0, most) ** 2

    def check_loss(self, loss: float, stage: str) -> None:
        """Raise `DivergedError` unless the loss of an update is of a size that a loss can have."""
        if not math.isfinite(loss) or abs(loss) > self._limit:
            raise DivergedError(f"the loss of {stage} is {loss:.4g}")

    def check_gradient(self, norm: float, stage: str) -> None:
        """Raise `DivergedError` unless the norm of a gradient is finite."""
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient of {stage} is not finite")


def diverged(what: str, kept: Path | None, at_once: bool = False) -> str:
    """Say that training has stopped, what is left, and what to try.

    Args:
        what: What was seen, and when.
        kept: Folder of the best model so far; None: there is none yet.
        at_once: Whether nothing has been learned yet, so that no learning rate can be the reason.
    """
    left = "" if kept is None else f", the best model so far is in {kept}"
    if at_once:
        advice = (
            "The first update is too early for a wrong learning rate: leave out model.output_scale, so that it is "
            "chosen by the data, or set warm_start.start_temperature to its default"
        )
    else:
        advice = "Try a smaller learning rate, pqn.clip_values = true or a smaller pqn.tau"
    return f"{what}; training has stopped{left}. {advice}; run.dtype = 'float32' rules out rounding"

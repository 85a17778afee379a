"""What changes over a training run, as functions of the number of updates done."""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["linear", "cosine"]


def learning_rate_factor(
    update: int, warmup: int, total: int, kind: ScheduleKind = "linear", ratio: float = 0.0
) -> float:
    """Return the share of the peak learning rate that the next update has.

    ``update / warmup`` in the warm-up, so the first update moves nothing and the one after the warm-up has the peak.
    Then with ``x = (update - warmup) / (total - warmup)``:

    - linear: ``1 - (1 - ratio) x``
    - cosine: ``ratio + (1 - ratio) cos(pi / 2 x)``, a quarter wave: slow at first, steepest at the end

    From ``total`` on it stays at ``ratio``.

    Args:
        update: Updates done so far, from 0.
        warmup: Updates until the peak; 0 starts at it.
        total: Updates of the whole run.
        kind: "linear" or "cosine".
        ratio: Share that is left at the end, from 0 to 1.

    Raises:
        ValueError: If a number is out of range, or the warm-up is longer than the run.

    Source: the schedules of the paper's code (Q-RAG, arXiv 2511.07328). One departure: its linear warm-up rises to
    ``1 - ratio`` only and then jumps to 1, where this one rises to 1; the two are equal for ratio 0.
    """
    _check_updates(update, warmup, total)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be from 0 to 1, got {ratio}")
    if kind not in ("linear", "cosine"):
        raise ValueError(f"kind must be 'linear' or 'cosine', got {kind!r}")
    if update < warmup:
        return update / warmup
    share_done = _share_done(update, warmup, total)
    if share_done == 1.0:
        return ratio  # the cosine of a rounded pi / 2 is not 0
    left = 1 - share_done if kind == "linear" else math.cos(math.pi / 2 * share_done)
    return ratio + (1 - ratio) * left


def temperature(update: int, warmup: int, total: int, start: float, end_share: float = 0.1) -> float:
    """Return the temperature alpha after some updates: ``start`` in the warm-up, then linearly to a share of it.

    Args:
        update: Updates done so far, from 0.
        warmup: Updates during which it is constant.
        total: Updates of the whole run; from there on it stays at ``start * end_share``.
        start: Temperature at first, above 0, in reward units.
        end_share: Share that is left at the end, above 0 and at most 1.

    Raises:
        ValueError: If a number is out of range, or the warm-up is longer than the run.

    Source: Q-RAG (arXiv 2511.07328), which lowers the temperature over the run. A departure from its code, where alpha
    follows the learning rate: it drops to ``start / warmup`` with the first update, climbs back, and ends at 0, by
    which the policy's Q-values are then divided.
    """
    _check_updates(update, warmup, total)
    if not (start > 0 and math.isfinite(start)):
        raise ValueError(f"start must be a finite number above 0, got {start}")
    if not 0 < end_share <= 1:
        raise ValueError(f"end_share must be above 0 and at most 1, got {end_share}")
    if update < warmup:
        return start
    return start * (1 - (1 - end_share) * _share_done(update, warmup, total))


def imitation_weight(update: int, start: float, fade_updates: int | None) -> float:
    """Return the weight of the imitation loss beside the PQN loss: from ``start`` linearly to 0.

    Args:
        update: Updates done so far, from 0.
        start: Weight at first, at least 0.
        fade_updates: Updates after which it is 0; None keeps the weight, 0 is without imitation.

    Raises:
        ValueError: If a number is negative.

    Source: demonstrations beside reinforcement learning as in DQfD (arXiv 1704.03732).
    """
    if update < 0 or not (start >= 0 and math.isfinite(start)) or (fade_updates is not None and fade_updates < 0):
        raise ValueError(f"update, start and fade_updates must be at least 0, got {update}, {start} and {fade_updates}")
    if fade_updates is None:
        return start
    return start * max(0.0, 1 - update / fade_updates) if fade_updates else 0.0


def _check_updates(update: int, warmup: int, total: int) -> None:
    if update < 0 or warmup < 0:
        raise ValueError(f"update and warmup must be at least 0, got {update} and {warmup}")
    if warmup > total:
        raise ValueError(f"a warm-up of {warmup} updates does not fit into a run of {total}; shorten it")


def _share_done(update: int, warmup: int, total: int) -> float:
    """Share of the time after the warm-up that has passed, from 0 to 1."""
    return min(1.0, (update - warmup) / (total - warmup)) if total > warmup else 1.0

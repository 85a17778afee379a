"""What both frameworks' traces tell of a hop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qrag_retriever.steps import Step, StopReason

HOP_NAME = "qrag_hop"


def hop_record(kept: Sequence[tuple[Step, ...]], stop_reason: StopReason | None) -> dict[str, Any]:
    """Describe what a hop picked, in plain values; arguments as in `HopListener.ended`.

    Returns:
        ``picks``: for each sequence that goes on, best first, its new pick (``chunk_id``, ``id``, ``q_value``,
        ``position``, ``position_gain``) and ``earlier``, the chunk ids that it had picked before. ``stop_reason`` if
        the search stopped in this hop.
    """
    picks = [
        {
            "chunk_id": steps[-1].chunk_id,
            "id": steps[-1].id,
            "q_value": steps[-1].q_value,
            "position": steps[-1].position,
            "position_gain": steps[-1].position_gain,
            "earlier": [step.chunk_id for step in steps[:-1]],
        }
        for steps in kept
    ]
    return {"picks": picks} if stop_reason is None else {"picks": picks, "stop_reason": stop_reason}

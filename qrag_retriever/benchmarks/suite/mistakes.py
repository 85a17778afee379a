"""The questions whose evidence our retriever did not find, to be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrag_retriever._files import write_whole_file
from qrag_retriever.benchmarks.suite.methods import Found
from qrag_retriever.training.data import Sample


def mistake_of(sample: Sample, found: Found, step_limit: int) -> dict[str, Any] | None:
    """Describe what was picked where some evidence is missing; None if all was found.

    Args:
        sample: The question, with its evidence.
        found: The picks of a method that has Q-values.
        step_limit: The picks that count.
    """
    facts, picks = sample.supporting or (), found.chunk_ids[:step_limit]
    missing = [fact for fact in facts if fact not in picks]
    if not missing:
        return None
    q_values = found.q_values or (None,) * len(picks)
    return {
        "id": sample.id,
        "question": sample.question,
        "missing": [{"chunk_id": fact, "text": sample.chunks[fact]} for fact in missing],
        "picks": [
            {"chunk_id": chunk, "q_value": q_value, "is_evidence": chunk in facts, "text": sample.chunks[chunk]}
            for chunk, q_value in zip(picks, q_values, strict=False)
        ],
    }


def write_mistakes(mistakes: Sequence[dict[str, Any]], path: Path) -> None:
    """Write JSON lines, whole or not at all."""
    write_whole_file(path, "".join(json.dumps(mistake, ensure_ascii=False) + "\n" for mistake in mistakes))

"""What to say of a setting that there is not: what it is called here, or the nearest name."""

from __future__ import annotations

from collections.abc import Sequence

from qrag_retriever.json_lines import nearest

# Of the retrievers that people come from.
_ELSEWHERE = {
    "top_k": "k",
    "filter": "filters",
    "search_kwargs": "k and filters",
    "score_threshold": "min_q",
    "similarity_cutoff": "min_q",
}


def name_here(name: str, known: Sequence[str]) -> str:
    """Return a hint at what a setting is called here, to append to an error message; may be empty.

    Args:
        name: That is not known.
        known: The settings there are.
    """
    return f"; here it is {_ELSEWHERE[name]}" if name in _ELSEWHERE else nearest(name, known)

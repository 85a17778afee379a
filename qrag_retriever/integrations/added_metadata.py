"""What search results have in their metadata beside the user's own, and how it is told from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PREFIX = "qrag_"


def free_key(key: str, own: Mapping[str, Any]) -> str:
    """Return the key for a score or a hop: another one where the user's own metadata has it already."""
    return f"{_PREFIX}{key}" if key in own else key


def without_added(metadata: Mapping[str, Any], score_key: str | None, hop_key: str | None) -> dict[str, Any]:
    """Return the user's own metadata of a search result, so that it can be edited and put back.

    The hop, a whole number, tells that it is one: without a key for it, metadata is returned as it is.
    """
    own = dict(metadata)
    if hop_key is None or type(own.get(_where(hop_key, own))) is not int:
        return own
    for key in (hop_key, score_key):
        if key is not None:
            own.pop(_where(key, own), None)
    return own


def _where(key: str, metadata: Mapping[str, Any]) -> str:
    return _PREFIX + key if _PREFIX + key in metadata else key

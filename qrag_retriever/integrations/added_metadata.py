"""What search results have in their metadata beside the user's own, and how it is told from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PREFIX = "qrag_"


def free_key(key: str, own: Mapping[str, Any]) -> str:
    """Return the key for a score or a hop: another one where the user's own metadata has it already."""
    while key in own:
        key = _PREFIX + key
    return key


@dataclass(frozen=True)
class AddedKeys:
    """Where a search puts its score and its hop; None: nowhere."""

    score: str | None = None
    hop: str | None = None

    def without(self, metadata: Mapping[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the user's own metadata of a search result, so that it can be edited and put back.

        The hop, a whole number, tells that it is one: without a key for it, metadata is returned as it is.

        Args:
            metadata: Of something that may come from a search.
            own: What the index has for the same id; None if it has nothing: then a score is what is a float.
        """
        kept = dict(metadata)
        if self.hop is None:
            return kept
        hop = free_key(self.hop, {} if own is None else own)
        if type(kept.get(hop)) is not int:
            return kept
        del kept[hop]
        if self.score is not None and own is not None:
            kept.pop(free_key(self.score, own), None)
        elif self.score is not None:
            places = (name for name in (_PREFIX + self.score, self.score) if type(kept.get(name)) is float)
            kept.pop(next(places, ""), None)
        return kept

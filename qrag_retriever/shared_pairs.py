"""Encoders of the default model that all its users in a process share: one load, one copy in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_LOADED: WeakValueDictionary[tuple[str, str], SentenceTransformer] = WeakValueDictionary()
_LOCK = threading.Lock()


def shared_pair(
    device: str, load: Callable[[], tuple[SentenceTransformer, SentenceTransformer]]
) -> tuple[SentenceTransformer, SentenceTransformer]:
    """Return the pair that is in use on a device, or load it there; it lives as long as somebody uses it.

    Args:
        device: As torch names it.
        load: Reads the state encoder and the action encoder.
    """
    with _LOCK:
        state, action = (_LOADED.get((device, side)) for side in ("state", "action"))
        if state is None or action is None:
            state, action = (encoder.to(device) for encoder in load())
            _LOADED[device, "state"], _LOADED[device, "action"] = state, action
        return state, action

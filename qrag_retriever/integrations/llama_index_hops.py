"""The hops of a retrieval as LlamaIndex spans and events."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.dispatcher import active_instrument_tags
from llama_index_instrumentation.event_handlers import NullEventHandler
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import NullSpanHandler

from qrag_retriever.integrations.hop_record import HOP_NAME, hop_record
from qrag_retriever.steps import HopListener, Step, StopReason

_dispatcher = get_dispatcher(__name__)


class QRAGHopEvent(BaseEvent):
    """One hop of a retrieval, sent when it has ended.

    Attributes:
        query_str: The question.
        hop: From 1.
        picks: For each sequence of picks that goes on, the best first (one, if ``beam_width`` is 1): its new pick
            (``chunk_id``, ``id``, ``q_value``, ``position``, ``position_gain``) and ``earlier``, the chunk ids of the
            picks before it. Empty if the search stopped in this hop.
        stop_reason: Why it stopped; None while it goes on.
        settings: ``qrag_model`` (of the model's fingerprint, 12 digits), ``qrag_k``, ``qrag_min_q``,
            ``qrag_beam_width``, ``qrag_mode``.
    """

    query_str: str
    hop: int
    picks: list[dict[str, Any]]
    stop_reason: str | None
    settings: dict[str, Any]

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex's handlers tell events apart."""
        return "QRAGHopEvent"


class LlamaIndexHops:
    """Shows each hop as a span, with an event, below the span in which it was made."""

    def __init__(self, query: str, settings: dict[str, Any]) -> None:
        """Show the hops of one retrieval; to be made in its own context."""
        self._query = query
        self._settings = settings
        # The hops may run in the thread, and so in the context, of another search of a batch.
        self._parent_id = active_span_id.get()
        self._tags = active_instrument_tags.get()
        self._span_id = ""

    def started(self, hop: int) -> None:
        """Enter a span."""
        self._span_id = f"{HOP_NAME}-{uuid.uuid4()}"
        _dispatcher.span_enter(
            id_=self._span_id, bound_args=self._arguments(hop), parent_id=self._parent_id, tags=self._tags
        )

    def ended(self, hop: int, kept: Sequence[tuple[Step, ...]], stop_reason: StopReason | None) -> None:
        """Send the event and leave the span."""
        record = hop_record(kept, stop_reason)
        event = QRAGHopEvent(
            query_str=self._query,
            hop=hop,
            picks=record["picks"],
            stop_reason=stop_reason,
            settings=self._settings,
            span_id=self._span_id,
            tags=dict(self._tags),
        )
        _dispatcher.event(event)
        _dispatcher.span_exit(id_=self._span_id, bound_args=self._arguments(hop), result=record)

    def failed(self, hop: int, error: BaseException) -> None:
        """Drop the span."""
        _dispatcher.span_drop(id_=self._span_id, bound_args=self._arguments(hop), err=error)

    def _arguments(self, hop: int) -> inspect.BoundArguments:
        return _HOP.bind(query_str=self._query, hop=hop)


def hop_listener(query: str, settings: Callable[[], dict[str, Any]]) -> HopListener | None:
    """Return a listener for a retrieval's hops; None if nobody would hear of them.

    Args:
        query: The question.
        settings: Returns the settings for the events; called only if somebody hears of them.
    """
    return LlamaIndexHops(query, settings()) if _somebody_listens() else None


def _somebody_listens() -> bool:
    dispatcher = _dispatcher
    while True:
        if any(not isinstance(handler, NullEventHandler) for handler in dispatcher.event_handlers):
            return True
        if any(not isinstance(handler, NullSpanHandler) for handler in dispatcher.span_handlers):
            return True
        if not dispatcher.propagate:
            return False
        dispatcher = dispatcher.parent


def _signature_of_a_hop(query_str: str, hop: int) -> None:
    """Stand for a hop where LlamaIndex's spans want the arguments of a call."""


_HOP = inspect.signature(_signature_of_a_hop)

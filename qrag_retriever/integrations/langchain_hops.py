"""The hops of a LangChain retriever run as its child runs."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.callbacks.manager import CallbackManagerForChainRun, CallbackManagerForRetrieverRun

from qrag_retriever.integrations.hop_record import HOP_NAME, hop_record
from qrag_retriever.steps import HopListener, Step, StopReason


class LangChainHops:
    """Shows each hop as a chain run below the retriever's: in LangSmith, other tracers and ``astream_events``."""

    def __init__(self, run_manager: CallbackManagerForRetrieverRun, query: str) -> None:
        """Show the hops of one retriever run."""
        self._run_manager = run_manager
        self._query = query
        self._run: CallbackManagerForChainRun | None = None

    def started(self, hop: int) -> None:
        """Begin a run."""
        inputs = {"query": self._query, "hop": hop}
        self._run = self._run_manager.get_child(f"hop:{hop}").on_chain_start(None, inputs, name=HOP_NAME)

    def ended(self, hop: int, kept: Sequence[tuple[Step, ...]], stop_reason: StopReason | None) -> None:
        """End it with what was picked."""
        if self._run is not None:
            self._run.on_chain_end(hop_record(kept, stop_reason))

    def failed(self, hop: int, error: BaseException) -> None:
        """End it with an error."""
        if self._run is not None:
            self._run.on_chain_error(error)


def hop_listener(run_manager: CallbackManagerForRetrieverRun, query: str) -> HopListener | None:
    """Return a listener for a run's hops; None if nobody would hear of them."""
    if all(handler.ignore_chain for handler in run_manager.inheritable_handlers):
        return None
    return LangChainHops(run_manager, query)

"""How additions and deletions go to an engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from qrag_retriever.backing import StoredBacking
from qrag_retriever.engines.base import Engine, EngineSettings
from qrag_retriever.engines.source import EngineSource
from qrag_retriever.errors import EngineError
from qrag_retriever.layout import Layout
from qrag_retriever.view import IndexView


class EngineBacking(StoredBacking):
    """An index that is kept and searched by an engine."""

    error = EngineError
    settings: EngineSettings

    def __init__(self, engine: Engine, settings: EngineSettings) -> None:
        """Bind to an engine as it was read."""
        super().__init__(engine, settings)
        self._engine = engine

    @property
    def location(self) -> str:
        """Where the index is kept."""
        return self._engine.location

    def _read(self) -> tuple[EngineSettings, Layout, EngineSource]:
        found = self._engine.read()
        if found is None:
            raise EngineError(f"the index {self.location} is no longer there")
        settings, layout = found
        return settings, layout, EngineSource(self._engine, settings.version, layout.rows)

    def _successor(
        self, view: IndexView, layout: Layout, pinned: Any, vectors: np.ndarray, origin: np.ndarray
    ) -> IndexView:
        return IndexView(view.geometry, layout, EngineSource(self._engine, self.settings.version, layout.rows))

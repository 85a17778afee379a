"""Opening an index on an engine, or creating an empty one."""

from __future__ import annotations

import time

from qrag_retriever.checks import check_at_least_one
from qrag_retriever.config import Mode
from qrag_retriever.engines.backing import EngineBacking
from qrag_retriever.engines.base import Engine, EngineSettings
from qrag_retriever.engines.source import EngineSource
from qrag_retriever.errors import EngineError, IndexFolderError
from qrag_retriever.index_model import IndexModel, ModelLike, check_dim, resolve_model
from qrag_retriever.layout import Layout
from qrag_retriever.view import IndexView, make_geometry


def open_engine(
    engine: Engine, model: ModelLike, mode: Mode | None, dim: int | None, device: str | None
) -> tuple[EngineBacking, IndexView, IndexModel]:
    """Open what an engine holds, or create an empty index; arguments and errors as in `ChunkIndex.on_pgvector`."""
    found = engine.read()
    if found is None:
        held = IndexModel(None if model is None and dim is not None else resolve_model(model, device), device=device)
        settings, layout = _new_settings(held, mode, dim), Layout.initial([])
        held = IndexModel(held.at_hand, settings.model, *held.options)
    else:
        settings, layout = found
        held = _held_model(engine, settings, model, device)
        for name, given, stored in (("mode", mode, settings.mode), ("dim", dim, settings.dim)):
            if given is not None and given != stored:
                raise ValueError(f"the index {engine.location} has {name} {stored!r}, not {given!r}; leave it out")
    geometry = make_geometry(settings.dim, settings.mode, held.config)
    if geometry.placed == "absolute":
        raise ValueError(
            "absolute positions give every chunk its own rotation, which engines cannot search; "
            "use a model with relative positions, mode='corpus', or an index in memory"
        )
    view = IndexView(geometry, layout, EngineSource(engine, settings.version, layout.rows))
    if found is None and not engine.create(settings):
        return open_engine(engine, model, mode, dim, device)  # another process's, which has made it since
    return EngineBacking(engine, settings), view, held


def _new_settings(held: IndexModel, mode: Mode | None, dim: int | None) -> EngineSettings:
    config = held.config
    if dim is not None:
        check_at_least_one(dim=dim)
        check_dim(dim, config)
    now = time.time_ns() // 1000
    return EngineSettings(config.dim if config else dim or 0, mode or "document", held.describe(), now, now)


def _held_model(engine: Engine, settings: EngineSettings, model: ModelLike, device: str | None) -> IndexModel:
    try:
        held = IndexModel(stored=settings.model, device=device)
    except IndexFolderError as error:
        raise EngineError(f"the index {engine.location} was {error}") from error
    if model is not None:
        held.use(resolve_model(model, device), settings.dim)
    return held

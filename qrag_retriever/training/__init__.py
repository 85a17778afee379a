"""Training by reinforcement learning: recipes, data, rewards and the trainer behind ``qrag-train``.

Needs the ``train`` extra; importing this package without it says how to install it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qrag_retriever._extras import require_extra

require_extra("tensorboard", "train")

if TYPE_CHECKING:
    from qrag_retriever.training.recipe import Recipe, read_recipe
    from qrag_retriever.training.trainer import Trainer

__all__ = ["Recipe", "Trainer", "read_recipe"]

_MODULE_OF = {"Recipe": "recipe", "read_recipe": "recipe", "Trainer": "trainer"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)

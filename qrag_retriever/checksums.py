"""Checksums of files, in the format of ``sha256sum``, that tell what was written from what was damaged since."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from qrag_retriever.errors import ModelFolderError

CHECKSUMS_NAME = "SHA256SUMS"
# What a model is read from: everything but its card, hidden files, and code, which is never fetched.
DATA_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_BLOCK = 1 << 20


def checksum_lines(folder: Path, paths: Iterable[Path]) -> str:
    """Return a line for each file, named relative to the folder."""
    return "".join(f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)


def write_checksums(folder: Path) -> None:
    """Write down the checksums of a model folder's files, replacing those that it has."""
    content = checksum_lines(folder, (folder / name for name in sorted(_data_files(folder))))
    (folder / CHECKSUMS_NAME).write_bytes(content.encode())


def verify_checksums(folder: Path, only: str | None = None) -> None:
    """Compare a model folder with the checksums in it; a folder without them passes.

    Args:
        folder: Of the model.
        only: One file's name; None for all files of the folder, of which none may be missing or added.

    Raises:
        ModelFolderError: If a file is not what was written; says how to accept a change that is meant.
    """
    path = folder / CHECKSUMS_NAME
    if not path.is_file():
        return
    listed = _listed(path)
    names = {only} if only is not None else _data_files(folder) | listed.keys()
    for name in sorted(names):
        if name not in listed:
            raise _changed(folder, f"{name} is not in {CHECKSUMS_NAME}")
        if not (folder / name).is_file():
            raise _changed(folder, f"{name} is missing")
        if _digest(folder / name) != listed[name]:
            raise _changed(folder, f"the checksum of {name} does not match")


def _listed(path: Path) -> dict[str, str]:
    try:
        found = [_LINE.fullmatch(line) for line in path.read_bytes().decode("utf-8").rstrip("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise _changed(path.parent, f"{path.name} is not text: {error}") from error
    listed = {line[2]: line[1] for line in found if line is not None}
    # A name that leads elsewhere is none that was written here.
    if not listed or len(listed) < len(found) or any(".." in name.split("/") for name in listed):
        raise _changed(path.parent, f"{path.name} is not a list of checksums")
    return listed


def _data_files(folder: Path) -> set[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix in DATA_SUFFIXES and path.is_file())
    return {name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _changed(folder: Path, reason: str) -> ModelFolderError:
    return ModelFolderError(
        f"the model in {folder} is not what was saved there: {reason}. Restore it; or, if the change is meant, delete "
        f"{CHECKSUMS_NAME}, and the folder is taken as it is"
    )

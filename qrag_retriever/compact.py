"""The compact form of a model folder: one safetensors file in bfloat16, equal tensors once.

Layout: ``model.safetensors`` and ``encoder/`` (a sentence-transformers folder without weights and card). A tensor's key
is ``<role>/<weights file within the encoder's folder>::<name>``; the header's "shared" entry maps keys whose data equal
another's to that other key.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from qrag_retriever.errors import ModelFolderError

WEIGHTS_NAME = "model.safetensors"
SKELETON_NAME = "encoder"
ROLES = ("state_encoder", "action_encoder")


def is_compact(folder: Path) -> bool:
    """Tell whether a model folder is in compact form."""
    return (folder / WEIGHTS_NAME).is_file() and (folder / SKELETON_NAME).is_dir()


def compress(full: Path, compact: Path) -> None:
    """Turn the two encoder folders below ``full`` into compact form below ``compact``.

    Raises:
        ValueError: If the two encoders differ in more than their weights.
    """
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    seen: dict[str, str] = {}
    for role in ROLES:
        for path in sorted((full / role).rglob("*.safetensors")):
            for name, tensor in load_file(path).items():
                key = f"{role}/{path.relative_to(full / role).as_posix()}::{name}"
                stored = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
                digest = _digest(stored)
                if digest in seen:
                    shared[key] = seen[digest]
                else:
                    seen[digest] = key
                    tensors[key] = stored.contiguous()
    state, action = (_skeleton(full / role) for role in ROLES)
    if state != action:
        raise ValueError("a compact folder needs two encoders of one architecture and tokeniser; save it in full")
    shutil.copytree(
        full / ROLES[0], compact / SKELETON_NAME, ignore=shutil.ignore_patterns("*.safetensors", "README.md")
    )
    save_file(tensors, compact / WEIGHTS_NAME, metadata={"shared": json.dumps(shared)})


def expand(compact: Path, full: Path) -> None:
    """Write the two encoder folders of a compact model, in float32, below ``full``.

    Raises:
        ModelFolderError: If the weights file is damaged or names files outside the encoders' folders.
    """
    files: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    try:
        with safe_open(compact / WEIGHTS_NAME, framework="pt") as weights:
            shared = json.loads((weights.metadata() or {}).get("shared", "{}"))
            sources = {key: key for key in weights.keys()} | shared  # noqa: SIM118  # not a mapping
            for key, source in sources.items():
                tensor = weights.get_tensor(source)
                stored = tensor.float() if tensor.is_floating_point() else tensor
                files.setdefault(_file_of(key), {})[key.partition("::")[2]] = stored
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise ModelFolderError(f"{compact / WEIGHTS_NAME} cannot be read: {error}") from error
    for role in ROLES:
        shutil.copytree(compact / SKELETON_NAME, full / role)
    for (role, file), tensors in files.items():
        # The header says who wrote the tensors; transformers refuses files without it.
        save_file(tensors, full / role / file, metadata={"format": "pt"})


def _file_of(key: str) -> tuple[str, str]:
    role, _, rest = key.partition("/")
    file = PurePosixPath(rest.partition("::")[0])
    if role not in ROLES or file.is_absolute() or ".." in file.parts or file.suffix != ".safetensors":
        raise ValueError(f"unexpected tensor name {key!r}")
    return role, str(file)


def _digest(tensor: torch.Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + raw).hexdigest()


def _skeleton(folder: Path) -> str:
    """Digest everything of an encoder folder but weights and model card."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".safetensors" and path.name != "README.md":
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()

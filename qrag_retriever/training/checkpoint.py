"""Checkpoints of a training run: numbered folders that appear whole; the newest is the one to go on from.

Tensors are in safetensors files and everything else is JSON, so that reading one executes nothing. Checksums stand
beside them, in the format of ``sha256sum``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qrag_retriever._files import sync
from qrag_retriever.checksums import checksum_lines
from qrag_retriever.errors import CheckpointError
from qrag_retriever.training.processes import Processes

_FOLDER = "checkpoints"
_FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        shared: What all processes have in common, in JSON types.
        tensors: Weights, targets and optimiser state, by name.
        own: This process's streams and episodes, in JSON types.
        own_tensors: This process's chunk embeddings.
    """

    shared: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    own: dict[str, Any]
    own_tensors: dict[str, torch.Tensor]


def newest_checkpoint(output: Path) -> Path | None:
    """Return the folder of the newest complete checkpoint of a run, None if there is none."""
    folder = output / _FOLDER
    if not folder.is_dir():
        return None
    complete = [path for path in folder.iterdir() if path.name.isdecimal()]
    return max(complete, key=lambda path: int(path.name), default=None)


def write_checkpoint(output: Path, update: int, checkpoint: Checkpoint, processes: Processes) -> Path:
    """Write a checkpoint; every process calls this. Older ones stay: its weights may turn out to be no good.

    The folder gets its number by one rename, after everything in it is on the disk; a process that dies before leaves
    the last checkpoint as it was.

    Args:
        output: Folder of the run.
        update: Updates done, over all stages.
        checkpoint: What to keep; only the first process's ``shared`` and ``tensors`` are written.
        processes: The processes of the run.

    Raises:
        OSError: If the disk is full or read-only; the last checkpoint stands.
    """
    target = output / _FOLDER / f"{update:08d}"
    draft = target.with_name(f".{target.name}.draft")
    try:
        if processes.is_first:
            if draft.exists():
                shutil.rmtree(draft)
            draft.mkdir(parents=True)
        processes.wait()
        if processes.is_first:
            _write(draft, "shared", {**checkpoint.shared, "format": _FORMAT}, checkpoint.tensors)
        _write(draft, f"process-{processes.rank}", checkpoint.own, checkpoint.own_tensors)
        processes.wait()
        if processes.is_first:
            sync(draft)
            if target.exists():
                # The same number of updates: the same content.
                shutil.rmtree(draft)
            else:
                os.replace(draft, target)
            sync(target.parent)
    except OSError:
        if processes.is_first:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    return target


def read_checkpoint(folder: Path, processes: Processes) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: If a file is missing or damaged, or it was written by another number of processes or a newer
            release.
    """
    shared, tensors = _read(folder, "shared")
    if shared.get("num_processes") != processes.size:
        raise CheckpointError(
            f"{folder} was written by {shared.get('num_processes')} processes, now there are {processes.size}; "
            "resume with the same number"
        )
    return Checkpoint(shared, tensors, *_read(folder, f"process-{processes.rank}"))


def _write(folder: Path, name: str, content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    tensor_file, json_file = folder / f"{name}.safetensors", folder / f"{name}.json"
    try:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, tensor_file)
    except SafetensorError as error:
        raise OSError(f"cannot write {tensor_file}: {error}") from error
    json_file.write_text(json.dumps(content), encoding="utf-8")
    checksum_file = folder / f"{name}.sha256"
    checksum_file.write_text(checksum_lines(folder, (tensor_file, json_file)), encoding="utf-8")
    for path in (tensor_file, json_file, checksum_file):
        sync(path)


def _read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    tensor_file, json_file = folder / f"{name}.safetensors", folder / f"{name}.json"
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
        if name == "shared" and content["format"] != _FORMAT:
            raise CheckpointError(
                f"{folder} has format {content['format']}, this release reads {_FORMAT}; "
                "resume with the release that wrote it, or name another run.output"
            )
        if (folder / f"{name}.sha256").read_text(encoding="utf-8") != checksum_lines(folder, (tensor_file, json_file)):
            raise ValueError("its checksums differ")
        return content, load_file(tensor_file)
    except CheckpointError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} is damaged ({name}): {error}; remove it, and --resume begins anew"
        ) from error


def drop_older(output: Path) -> None:
    """Remove all checkpoints of a run but the newest, and drafts that a kill left behind."""
    newest = newest_checkpoint(output)
    if newest is None:
        return
    for path in newest.parent.iterdir():
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def drop_newest(output: Path, update: int) -> None:
    """Remove the newest checkpoint if it is of this update and there is one before it to go on from."""
    newest = newest_checkpoint(output)
    if newest is None or int(newest.name) != update:
        return
    if any(path.name.isdecimal() and path != newest for path in newest.parent.iterdir()):
        shutil.rmtree(newest, ignore_errors=True)

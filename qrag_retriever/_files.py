"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def check_place(target: Path, may_replace: Callable[[Path], bool]) -> bool:
    """Return whether there is something at a place that a folder is to be written to.

    Raises:
        FileExistsError: If it is not empty and may not be replaced.
    """
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not may_replace(target):
        raise FileExistsError(f"{target} exists and holds something else; choose another path or empty it first")
    return occupied


@contextmanager
def whole_folder(target: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Write a folder beside its place and move it there when it is complete.

    Args:
        target: Where the folder shall stand; its parents are made.
        may_replace: Tells whether an existing, non-empty target is one of ours and may be replaced.

    Yields:
        An empty folder to write to; gone again if the block raises.

    Raises:
        FileExistsError: If the target exists, is not empty and may not be replaced.
    """
    occupied = check_place(target, may_replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        # mkdtemp's folder is for the owner only; the finished one follows the user's umask.
        mask = os.umask(0)
        os.umask(mask)
        draft.chmod(0o777 & ~mask)
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~mask)
                sync(path)
        sync(draft)
        if occupied:
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            os.replace(target, retired / target.name)
            os.replace(draft, target)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            if target.exists():
                target.rmdir()  # empty; not every system replaces a folder
            os.replace(draft, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def check_can_write(target: Path) -> None:
    """Find out before the work whether its result can be written to a file.

    Raises:
        ValueError: If there is no folder for it, or it is a folder itself.
        OSError: If the folder takes no files.
    """
    place = target.resolve()  # where a link leads
    if not place.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} to write {target.name} to")
    if place.is_dir():
        raise ValueError(f"{target} is a folder; name a file to write to")
    if not place.exists() or place.is_file():
        try:
            with tempfile.TemporaryFile(dir=place.parent):
                pass
        except OSError as error:
            raise type(error)(f"{target} cannot be written: {error.strerror}") from error


def write_whole_file(target: Path, content: str) -> None:
    """Write a text file beside its place and move it there when it is on the disk; links and devices are followed."""
    target = target.resolve()
    if target.exists() and not target.is_file():
        target.write_text(content, encoding="utf-8")
        return
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        draft.write_text(content, encoding="utf-8")
        sync(draft)
        os.replace(draft, target)
        sync(target.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file or a folder entry to the disk; folders only where the system has that."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Damage at random places: a byte flipped, some overwritten, the end cut off, a part taken out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return data with one damage; never equal to what it was, unless there was nothing to damage."""
    if not data:
        return b"\0"
    place = rng.randrange(len(data))
    kind = rng.choice(["flip", "flip", "flip", "cut", "overwrite", "remove"])
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if kind == "cut":
        return data[:place]
    end = min(len(data), place + rng.randrange(1, 65))
    if kind == "remove":
        return data[:place] + data[end:]
    filler = rng.randbytes(end - place)
    return data[:place] + (filler if filler != data[place:end] else bytes(one ^ 0xFF for one in filler)) + data[end:]


def damages(folder: Path, count: int, seed: str) -> Iterator[str]:
    """Damage one file of a folder after another, each kind of file as often; put each back when the caller goes on.

    Yields:
        The file's name and the number of the damage, to name it in a failure.
    """
    rng = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        yield f"{path.relative_to(folder)}, damage {number} of {seed!r}"
        path.write_bytes(whole)

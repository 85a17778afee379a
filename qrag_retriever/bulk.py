"""Embedding of many chunks: every text once, in blocks, by several processes, kept in a cache as they come."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from qrag_retriever.embedding_cache import EmbeddingCache, key_of

# Texts of a block: what a kill can cost, and what a process takes at a time.
_BLOCK = 1024
# Below this many texts, starting processes (some seconds each) takes longer than they save.
_WORTH_WORKERS = 4 * _BLOCK
_PROGRESS_AFTER = 2.0

Workers = int | Sequence[str] | None
"""How many processes embed chunks on the processor, or the devices of one process each; None: this process does."""


class Embedder(Protocol):
    """What embeds chunks and can be sent to another process."""

    def prepare(self, texts: Sequence[str]) -> None:
        """Get ready to embed these texts, here or in other processes."""

    def embed_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embed texts, (M, D) float32; also return which had to be cut: (M,), bool."""

    def moved(self, device: str) -> Embedder:
        """Return the same embedder for another device."""


def worker_devices(workers: Workers) -> tuple[str, ...]:
    """Return the device of each worker process; empty: no processes.

    Raises:
        ValueError: If the number is below 1, or no device is named.
        TypeError: If it is neither a number nor devices' names.
    """
    if workers is None:
        return ()
    if isinstance(workers, bool) or not isinstance(workers, (int, list, tuple)):
        raise TypeError(f"expected workers as a number or a list of devices, got {workers!r}")
    devices = ("cpu",) * workers if isinstance(workers, int) else tuple(workers)
    if not devices or not all(isinstance(device, str) for device in devices):
        raise ValueError(f"expected at least one worker, or names of devices, got {workers!r}")
    return devices


def embed_texts(
    embedder: Embedder,
    identity: str,
    texts: Sequence[str],
    dim: int,
    cache: EmbeddingCache | None,
    devices: Sequence[str],
    show_progress: bool | None,
) -> tuple[np.ndarray, int]:
    """Embed texts, of which the cache may know some.

    Args:
        embedder: Embeds what is not known.
        identity: Of the embedder: what its embeddings depend on besides the text.
        texts: N of them; equal ones are embedded once.
        dim: D.
        cache: Known embeddings; block by block the new ones are added, so that a run that was killed goes on there.
        devices: Of the worker processes, if there is enough to do for them; empty: none.
        show_progress: None shows a bar, with the time left, on a terminal when it takes more than two seconds.

    Returns:
        Shape (N, D), float32, and how many texts had to be cut.

    Raises:
        RuntimeError: If a worker process dies.
    """
    unique = list(dict.fromkeys(texts))
    embeddings = np.empty((len(unique), dim), np.float32)
    missing = np.arange(len(unique))
    is_cut = np.zeros(len(unique), np.bool_)
    keys = [] if cache is None else [key_of(identity, text) for text in unique]
    if cache is not None:
        known, vectors, cut = cache.read(keys, dim)
        embeddings[known], is_cut[known] = vectors, cut
        missing = np.setdiff1d(missing, known)
    # Texts of one length make a batch without padding; the longest first, so that the time left is never too short.
    missing = missing[np.argsort([-len(unique[place]) for place in missing], kind="stable")]
    blocks = [missing[first : first + _BLOCK] for first in range(0, len(missing), _BLOCK)]
    hidden = not show_progress if show_progress is not None else None
    delay = 0.0 if show_progress else _PROGRESS_AFTER
    progress = tqdm(total=len(missing), desc="encode", unit="text", disable=hidden, delay=delay, leave=False)
    devices = devices if len(missing) >= _WORTH_WORKERS else ()
    embedder.prepare([unique[place] for place in missing])
    with progress, _embedded(embedder, [[unique[place] for place in block] for block in blocks], devices) as results:
        for block, (vectors, cut) in zip(blocks, results, strict=True):
            embeddings[block], is_cut[block] = vectors, cut
            if cache is not None:
                cache.write([keys[place] for place in block], vectors, cut)
            progress.update(len(block))
    if len(unique) == len(texts):
        return embeddings, int(is_cut.sum())
    place_of = {text: place for place, text in enumerate(unique)}
    places = [place_of[text] for text in texts]
    return embeddings[places], int(is_cut[places].sum())


@contextmanager
def _embedded(
    embedder: Embedder, blocks: Sequence[list[str]], devices: Sequence[str]
) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Embed blocks, in their order, here or in processes of their own."""
    if not devices:
        yield map(embedder.embed_block, blocks)
        return
    # Not forked: torch's threads and CUDA do not survive it.
    context = multiprocessing.get_context("spawn")
    free: Any = context.Queue()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _start_worker, (embedder, free, len(devices)))
    try:
        yield pool.map(_work, blocks)
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a process that embeds chunks has died ({error}); is there memory for {len(devices)} of them? "
            'A script must embed within if __name__ == "__main__":'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    embedder: Embedder


def _start_worker(embedder: Embedder, free: Any, num_workers: int) -> None:
    import torch

    device = free.get()
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers))
    _Worker.embedder = embedder.moved(device)


def _work(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return _Worker.embedder.embed_block(texts)

"""A document as long as the longest of the benchmarks: 400,000 chunks of random embeddings."""

from __future__ import annotations

import functools

import numpy as np

from qrag_retriever import ChunkIndex, QRAGModel

NUM_CHUNKS = 400_000


@functools.cache
def long_index(model: QRAGModel) -> ChunkIndex:
    """The index; states are embedded by the model."""
    embeddings = np.random.default_rng(1).normal(size=(NUM_CHUNKS, model.config.dim)).astype(np.float32)
    texts = [f"Sentence {number} of a very long book." for number in range(NUM_CHUNKS)]
    return ChunkIndex.from_embeddings(embeddings, texts, model=model, scan="float32")

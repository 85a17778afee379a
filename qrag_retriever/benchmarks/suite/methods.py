"""What is compared: our retriever, and what a user would pick instead, all on the same chunks."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qrag_retriever._extras import require_extra
from qrag_retriever.benchmarks.suite.embeddings import TextEmbeddings
from qrag_retriever.default_model import MINILM, local_name
from qrag_retriever.index import ChunkIndex
from qrag_retriever.model import QRAGModel
from qrag_retriever.pair import embedding_dimension
from qrag_retriever.selector import MultiStepSelector
from qrag_retriever.training.data import Sample


@dataclass(frozen=True)
class Found:
    """What a method picked for one question.

    Attributes:
        chunk_ids: In the order of picking.
        seconds: Of the search, chunks embedded or indexed already.
        q_values: Of each pick at its hop; None if the method has none.
        llm_calls: Calls of a language model.
    """

    chunk_ids: tuple[int, ...]
    seconds: float
    q_values: tuple[float, ...] | None = None
    llm_calls: int = 0


class Method(Protocol):
    """A way to find evidence.

    Attributes:
        name: In tables.
        model: What it embeds with; "" if it does not.
    """

    name: str
    model: str

    def find(self, sample: Sample, k: int) -> Found:
        """Pick k chunks (all, if there are fewer) for a sample's question."""
        ...

    @property
    def embed_seconds(self) -> float:
        """Seconds spent on embedding or indexing chunks so far."""
        ...


class MultiStep:
    """A pair of encoders that picks chunk after chunk: ours if it is trained, "multi-step dense" if it is not."""

    def __init__(self, name: str, model: QRAGModel, model_name: str, beam_width: int = 1, corpus: bool = False) -> None:
        """Take a model.

        Args:
            name: In tables.
            model: The pair.
            model_name: In tables.
            beam_width: Sequences of picks to keep at every hop.
            corpus: Whether to search in corpus mode whatever the sample's mode.
        """
        self.name, self.model = name, model_name
        self._pair, self._beam_width, self._corpus = model, beam_width, corpus
        self._texts = TextEmbeddings(
            lambda texts: model.encode_chunks(texts, show_progress=len(texts) > 5000), model.config.dim
        )
        self._index: tuple[tuple[str, ...], ChunkIndex] | None = None

    @property
    def embed_seconds(self) -> float:
        """Seconds spent on embedding chunks so far."""
        return self._texts.seconds

    def min_q(self, sample: Sample) -> float | None:
        """Return the model's stop value for a sample's mode.

        None if it has none, and for beams: only a greedy search that stops early picks what one that does not picks
        first.
        """
        return self._pair.config.min_q.get(self._mode(sample)) if self._beam_width == 1 else None

    def find(self, sample: Sample, k: int) -> Found:
        """Pick k chunks, one by one."""
        index = self._index_of(sample)
        _ = index.view.scan  # made when it is first needed, else
        selector = MultiStepSelector(index, k=k, beam_width=self._beam_width)
        start = time.perf_counter()
        steps = selector.select(sample.question).steps
        seconds = time.perf_counter() - start
        return Found(tuple(step.chunk_id for step in steps), seconds, tuple(step.q_value for step in steps))

    def _mode(self, sample: Sample) -> Any:
        return "corpus" if self._corpus else sample.mode

    def _index_of(self, sample: Sample) -> ChunkIndex:
        # Questions over one corpus share the tuple of its chunks.
        if self._index is None or self._index[0] is not sample.chunks:
            embeddings = self._texts.of(sample.chunks)
            index = ChunkIndex.from_embeddings(
                embeddings, list(sample.chunks), model=self._pair, mode=self._mode(sample)
            )
            self._index = sample.chunks, index
        return self._index[1]


class SingleStepDense:
    """The k chunks of the highest cosine with the question, by one encoder."""

    def __init__(self, name: str, encoder: Any, model_name: str) -> None:
        """Take a sentence-transformers model."""
        self.name, self.model = name, model_name
        self._encoder = encoder
        self._texts = TextEmbeddings(self._encoded, embedding_dimension(encoder))
        self._matrix: tuple[tuple[str, ...], np.ndarray] | None = None

    @property
    def embed_seconds(self) -> float:
        """Seconds spent on embedding chunks so far."""
        return self._texts.seconds

    def find(self, sample: Sample, k: int) -> Found:
        """Pick the nearest chunks."""
        matrix = self.matrix(sample)
        start = time.perf_counter()
        best = top(matrix @ self.embed(sample.question), k)
        return Found(best, time.perf_counter() - start)

    def matrix(self, sample: Sample) -> np.ndarray:
        """Return the embeddings of a sample's chunks, (N, D), normalised."""
        if self._matrix is None or self._matrix[0] is not sample.chunks:
            self._matrix = sample.chunks, self._texts.of(sample.chunks)
        return self._matrix[1]

    def embed(self, query: str) -> np.ndarray:
        """Embed a query, (D,), normalised."""
        (embedded,) = self._encoder.encode_query([query], normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(embedded)

    def _encoded(self, texts: list[str]) -> np.ndarray:
        embedded: np.ndarray = self._encoder.encode_document(
            texts, normalize_embeddings=True, show_progress_bar=len(texts) > 5000 and sys.stderr.isatty()
        )
        return embedded


class BM25:
    """Keyword search by bm25s; ``iterative`` asks again after every pick, with the picked text added to the query."""

    model = ""

    def __init__(self, iterative: bool = False) -> None:
        """Prepare.

        Raises:
            ImportError: If bm25s is not installed.
        """
        self.name = "bm25-iterative" if iterative else "bm25"
        self._bm25s: Any = require_extra("bm25s", "bench")
        self._iterative = iterative
        self._seconds = 0.0
        self._index: tuple[tuple[str, ...], Any] | None = None

    @property
    def embed_seconds(self) -> float:
        """Seconds spent on indexing so far."""
        return self._seconds

    def find(self, sample: Sample, k: int) -> Found:
        """Pick the best-scored chunks."""
        index = self._index_of(sample)
        # Statements of the same words have the same score, and the earlier ones are seldom the evidence.
        ranks = chance(sample).permutation(len(sample.chunks))
        start = time.perf_counter()
        if not self._iterative:
            picked = top(self._scores(index, sample.question, len(sample.chunks)), k, ranks)
        else:
            chosen: list[int] = []
            for _ in range(min(k, len(sample.chunks))):
                query = " ".join([sample.question, *(sample.chunks[i] for i in chosen)])
                scores = self._scores(index, query, len(sample.chunks))
                scores[chosen] = -np.inf
                chosen += top(scores, 1, ranks)
            picked = tuple(chosen)
        return Found(picked, time.perf_counter() - start)

    def _scores(self, index: Any, query: str, num_chunks: int) -> np.ndarray:
        (words,) = self._tokens([query])
        if index is None or not any(word in index.vocab_dict for word in words):
            return np.zeros(num_chunks, np.float32)
        return np.array(index.get_scores(words))

    def _index_of(self, sample: Sample) -> Any:
        if self._index is None or self._index[0] is not sample.chunks:
            start = time.perf_counter()
            words = self._tokens(list(sample.chunks))
            index = None
            if any(words):  # chunks of nothing but stop words leave no vocabulary
                index = self._bm25s.BM25()
                index.index(words, show_progress=False)
            self._index = sample.chunks, index
            self._seconds += time.perf_counter() - start
        return self._index[1]

    def _tokens(self, texts: list[str]) -> list[list[str]]:
        found: list[list[str]] = self._bm25s.tokenize(texts, return_ids=False, show_progress=False)
        return found


class Random:
    """Chunks by chance: the floor."""

    name, model, embed_seconds = "random", "", 0.0

    def find(self, sample: Sample, k: int) -> Found:
        """Pick chunks without looking at them."""
        random = chance(sample)
        start = time.perf_counter()
        picked = random.choice(len(sample.chunks), min(k, len(sample.chunks)), replace=False)
        return Found(tuple(picked.tolist()), time.perf_counter() - start)


def chance(sample: Sample) -> np.random.Generator:
    """Return random numbers of a question's own, the same at every run."""
    return np.random.default_rng(zlib.crc32(sample.id.encode()))


def top(scores: np.ndarray, k: int, ranks: np.ndarray | None = None) -> tuple[int, ...]:
    """Return the k places of the highest scores, best first.

    Args:
        scores: Shape (N,).
        k: N at most counts.
        ranks: Shape (N,): of equal scores the one of lower rank; None: the earlier.
    """
    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    places = np.flatnonzero(scores >= threshold)
    order = np.lexsort((places if ranks is None else ranks[places], -scores[places]))[:k]
    return tuple(places[order].tolist())


class Baselines:
    """Makes baselines by name; encoders are loaded once."""

    NAMES = (
        "random", "bm25", "bm25-iterative", "dense-minilm", "dense-action", "multi-step-minilm", "llm-agent",
    )  # fmt: skip

    def __init__(self, model: QRAGModel, model_name: str, llm: Any, device: str | None) -> None:
        """Take what baselines need: our model for "dense-action", a language model for "llm-agent"."""
        self._model, self._model_name, self._llm, self._device = model, model_name, llm, device

    def make(self, name: str) -> Method:
        """Make one.

        Raises:
            ValueError: If the name is not known, or "llm-agent" has no language model.
            ImportError: If a package is missing.
        """
        if name == "random":
            return Random()
        if name in ("bm25", "bm25-iterative"):
            return BM25(iterative=name == "bm25-iterative")
        if name == "dense-minilm":
            return SingleStepDense(name, self._minilm, MINILM)
        if name == "dense-action":
            return SingleStepDense(name, self._model.action_encoder.model, self._model_name)
        if name == "multi-step-minilm":
            pair = QRAGModel.from_encoder(MINILM, device=self._device)
            return MultiStep(name, pair, MINILM, corpus=True)
        if name == "llm-agent":
            from qrag_retriever.benchmarks.suite.agent import LLMAgent

            if self._llm is None:
                raise ValueError(
                    "llm-agent needs a language model: --llm package.module:callable, or --llm stand-in:SECONDS"
                )
            return LLMAgent(SingleStepDense(name, self._minilm, MINILM), self._llm)
        raise ValueError(f"there is no baseline {name!r}; there are {', '.join(self.NAMES)}")

    @cached_property
    def _minilm(self) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(local_name(MINILM), device=self._device)


def model_label(name: str | Path | None) -> str:
    """Return how a model is called in tables."""
    if name is None:
        return "default"
    # Every run leaves its model in a folder of the same name.
    parts = Path(name).parts
    return "/".join(parts[-2:]) if parts[-1:] == ("model",) else parts[-1]


def names_of(chosen: Sequence[str]) -> list[str]:
    """Resolve what the command line says about baselines: names, "all" (without the agent) or "none"."""
    names: list[str] = []
    for name in chosen:
        if name == "all":
            names += [known for known in Baselines.NAMES if known != "llm-agent"]
        elif name != "none":
            names.append(name)
    return list(dict.fromkeys(names))

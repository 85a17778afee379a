"""Backends that embed chunks, side by side: ``python -m qrag_retriever.benchmarks.encoding [--model M] [--data D]``.

Chunks of common words, of half to one and a half times ``--tokens``, are embedded by every backend that is installed,
in turn, round after round within one run; rates are medians. Every embedding is compared with that of torch in float32
(1 - cosine). With ``--data``, JSON lines with evidence or a folder with ``babi/``, the same questions are asked over
chunks embedded by each: the share whose evidence is all among the picks, and the share with the same picks as torch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel
from qrag_retriever.backends.choice import deviation
from qrag_retriever.backends.kinds import Backend, has_packages
from qrag_retriever.benchmarks.concurrency import WORDS
from qrag_retriever.benchmarks.timing import side_by_side, table, threads
from qrag_retriever.config import Mode
from qrag_retriever.devices import computes_bfloat16
from qrag_retriever.training.data import JsonLines, Sample, SampleSource
from qrag_retriever.training.datasets import BabiLong

BFLOAT16 = "torch, bfloat16"
NAMES = ("torch", BFLOAT16, "onnx", "openvino", "onnx-int8")
Rows = list[dict[str, Any]]


def made_up_chunks(count: int, tokens: int, seed: int = 0) -> list[str]:
    """Return texts of common words, of half to one and a half times so many tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(max(1, tokens // 2), tokens + tokens // 2 + 1, count)
    return [" ".join(random.choice(WORDS, length)) for length in lengths]


def installed() -> list[str]:
    """Return the backends that can be measured here; bfloat16 where the processor computes it."""
    return [name for name in NAMES if (computes_bfloat16("cpu") if name == BFLOAT16 else has_packages(_backend(name)))]


def _backend(name: str) -> Backend:
    return "torch" if name == BFLOAT16 else cast(Backend, name)


def make_models(model: str | None, names: Sequence[str], folder: Path) -> dict[str, tuple[QRAGModel, float]]:
    """Load the model for each backend, and return it with the seconds until its first chunk was embedded.

    They share the exports in a folder, so that only the first of those that need one takes the time that it takes.
    """
    made = {}
    for name in names:
        dtype: Any = "bfloat16" if name == BFLOAT16 else "float32"
        one = QRAGModel.from_pretrained(
            model, device="cpu", dtype=dtype, backend=_backend(name), cache=folder / "embeddings.sqlite"
        )
        one.action_encoder.encode(["word"])
        start = time.perf_counter()
        one.embed_block(["word"])
        made[name] = (one, time.perf_counter() - start)
    return made


def read_questions(place: Path, most: int, mode: Mode = "corpus") -> list[tuple[Sample, int]]:
    """Read questions with annotated evidence, each with the number of picks it gets.

    Args:
        place: JSON lines, or a folder with ``babi/``, of which the bare stories of task 2 are asked.
        most: Questions to read.
        mode: Of JSON lines.
    """
    source: SampleSource = (
        BabiLong(place, 2, "test", num_chunks=None) if place.is_dir() else JsonLines(place, mode=mode)
    )
    random = np.random.default_rng(0)
    samples = [source.sample(number, random) for number in range(min(most, len(source)))]
    limit = getattr(source, "default_step_limit", None)
    return [(sample, limit or len(sample.supporting) + 1) for sample in samples if sample.supporting]


def picks_of(model: QRAGModel, questions: Sequence[tuple[Sample, int]]) -> list[list[int]]:
    """Embed each question's chunks, past the cache, and pick greedily."""
    picks = []
    for sample, limit in questions:
        embeddings, _ = model.embed_block(sample.chunks)
        index = ChunkIndex.from_embeddings(embeddings, sample.chunks, model=model, mode=sample.mode)
        picks.append([step.chunk_id for step in MultiStepSelector(index, k=limit).select(sample.question).steps])
    return picks


def measure(options: argparse.Namespace) -> Rows:
    """Measure all backends; a row for each."""
    texts = made_up_chunks(options.chunks, options.tokens)
    questions = [] if options.data is None else read_questions(options.data, options.questions, options.mode)
    names = ["torch", *(name for name in options.backends or installed() if name != "torch")]
    with tempfile.TemporaryDirectory() as folder, threads(options.threads):
        made = make_models(options.model, names, Path(folder))
        embed = {name: partial(model.embed_block, texts) for name, (model, _) in made.items()}
        embeddings = {name: call()[0] for name, call in embed.items()}
        timings = side_by_side(embed, options.rounds)
        picks = {name: picks_of(model, questions) for name, (model, _) in made.items()}
    rows = []
    for name, (_, seconds) in made.items():
        error = deviation(embeddings[name], embeddings["torch"])
        row: dict[str, Any] = {
            "backend": name,
            "first_s": seconds,
            "chunks_per_s": 1e3 * len(texts) / timings[name].wall,
            "chunks_per_cpu_s": 1e3 * len(texts) / timings[name].cpu,
            "gain": timings["torch"].wall / timings[name].wall,
            "cosine_error_mean": float(error.mean()),
            "cosine_error_max": float(error.max()),
        }
        if questions:
            facts = [set(sample.supporting or ()) for sample, _ in questions]
            found = [wanted <= set(own) for wanted, own in zip(facts, picks[name], strict=True)]
            same = [own == other for own, other in zip(picks[name], picks["torch"], strict=True)]
            row |= {"fact_recall": float(np.mean(found)), "same_picks": float(np.mean(same))}
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m qrag_retriever.benchmarks.encoding", description=__doc__)
    parser.add_argument("--model", help="model folder or hub id (default: the one of the package)")
    parser.add_argument("--backends", nargs="+", choices=NAMES, help="default: all that are installed")
    parser.add_argument("--chunks", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=25, help="of a chunk, on average")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="JSON lines with evidence, or a folder with babi/")
    parser.add_argument("--mode", choices=get_args(Mode), default="corpus", help="of JSON lines")
    parser.add_argument("--questions", type=int, default=40, help="most questions of --data")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args(argv)
    rows = measure(options)
    print(table(list(rows[0]), [[f"{v:.3g}" if isinstance(v, float) else v for v in row.values()] for row in rows]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

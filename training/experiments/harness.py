"""What the experiments share: run a recipe, measure a model on test questions, draw lines with their spread."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

mpl.use("Agg")
import matplotlib.pyplot as plt

from qrag_retriever import QRAGModel
from qrag_retriever.devices import choose_dtype
from qrag_retriever.training.chunk_cache import ChunkCache
from qrag_retriever.training.datasets import LENGTHS, BabiLong, BookNoise
from qrag_retriever.training.datasets.babi import STEP_LIMITS
from qrag_retriever.training.datasets.books import default_noise
from qrag_retriever.training.evaluation import Picks, figures_of, greedy_picks
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.recipe import parse_recipe
from qrag_retriever.training.run_folder import RunFolder
from qrag_retriever.training.trainer import Trainer

RECIPES = Path(__file__).parents[1]
MODEL = {"encoder": "all-MiniLM-L6-v2", "num_layers": 3, "max_chunk_tokens": 64, "max_chunk_tokens_in_state": 64}


def options(description: str | None, **defaults: Any) -> argparse.Namespace:
    """Read the command line that all experiments share, and numbers of their own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder with babi/ and books/")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs, figures (JSON) and plots (PNG)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def run(settings: Mapping[str, Any], data: Path, output: Path, recipe_folder: Path = Path()) -> dict[str, Any]:
    """Carry out a recipe, unless that is done already; go on with it where it was interrupted.

    Raises:
        CheckpointError: If what is in the folder is of a recipe with other settings.
    """
    recipe = parse_recipe({**settings, "run": {**settings.get("run", {}), "output": str(output)}})
    Trainer(recipe, data, recipe_folder).fit(resume=True)
    folder = RunFolder(output)
    return {**folder.read_report(), "model": str(folder.model)}


def log_of(output: Path, stage: str) -> list[dict[str, Any]]:
    """Return the logged figures of a stage."""
    lines = map(json.loads, (output / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["stage"] == stage]


def noise_of_test(data: Path) -> BookNoise:
    """Return sentences of the test books, enough for documents of 128k tokens."""
    return default_noise(data, "test", LENGTHS["128k"])


def questions(data: Path, task: int, length: str, noise: BookNoise, num_samples: int, split: str = "test") -> list[Any]:
    """Return the first questions of a bAbI test file in documents of a length, the same at every call."""
    source = BabiLong(data, task, split, num_chunks=LENGTHS[length], noise=noise)
    count = min(num_samples, len(source))
    return [(source.sample(i, np.random.default_rng([7, i])), STEP_LIMITS[task]) for i in range(count)]


class Measured:
    """A model and the embeddings of the noise that its measurements share."""

    def __init__(self, model: str | TrainedPair) -> None:
        """Take a pair, or load a model folder."""
        if isinstance(model, str):
            loaded = QRAGModel.from_pretrained(model)
            model = TrainedPair(
                loaded.config, loaded.state_encoder, loaded.action_encoder, targets="none",
                compute_dtype=choose_dtype("auto", loaded.device),
            )  # fmt: skip
        self.pair = model
        self._cache = ChunkCache(model.embed_chunks, model.config.dim, model.device)

    def picks(self, episodes: Sequence[Any]) -> list[Picks]:
        """Pick greedily."""
        with torch.no_grad():
            return greedy_picks(self.pair, episodes, self._cache)

    def figures(self, episodes: Sequence[Any]) -> dict[str, float]:
        """Return the figures of greedy picking."""
        return figures_of(self.picks(episodes)).to_dict()


def mean_and_spread(values: Sequence[float]) -> str:
    """Write a mean and the standard deviation over seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def paired(one: Sequence[Sequence[bool]], other: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """Return the mean difference and its 95% interval; shapes (seeds, questions), both are drawn anew."""
    values, random = np.subtract(np.array(one, float), np.array(other, float)), np.random.default_rng(0)
    means = []
    for _ in range(2000):
        seeds = random.integers(len(values), size=len(values))
        drawn = random.integers(values.shape[1], size=values.shape[1])
        means.append(values[seeds][:, drawn].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def save(output: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write figures as JSON and print them as a Markdown table."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(list(rows), indent=2) + "\n", encoding="utf-8")
    header = list(rows[0])
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def new_plot(title: str, x: str, y: str) -> tuple[Any, Any]:
    """Start a plot."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def save_plot(figure: Any, output: Path, name: str) -> None:
    """Write a plot as PNG."""
    figure.savefig(output / f"{name}.png", dpi=120)
    plt.close(figure)

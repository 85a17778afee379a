"""Speed of PQN training: ``python -m qrag_retriever.benchmarks.training --data DIR [--json FILE]``.

Ours against a plain mode that does what the paper's code does: every chunk of every document embedded with both
networks at every rollout, float32, batches padded to powers of two, word embeddings trained. Both train the same task
(BabiLong QA2, documents of 100 chunks) by the same rules from the same warm start; runs take turns. A rollout is one
episode of 4 picks in every environment, followed by one optimiser step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever.benchmarks.timing import table
from qrag_retriever.default_model import MINILM
from qrag_retriever.training.recipe import Recipe, parse_recipe
from qrag_retriever.training.run_folder import RunFolder
from qrag_retriever.training.trainer import Trainer

NUM_HOPS = 4
MODES = ("ours", "plain")
# In our mode chunks are embedded anew after this many updates; a timed run has just as many, so it pays once.
REFRESH_UPDATES = 50
# Sentences of books that documents share between two refreshes; the plain mode embeds them for every document.
NOISE_WINDOW = 100
# The plain mode's time does not vary from update to update, but for the first, which is left out.
PLAIN_UPDATES = 4

Settings = dict[str, Any]
Rows = list[dict[str, Any]]


def recipe_of(mode: str, start: str, num_envs: int, num_updates: int, output: Path, seed: int) -> Recipe:
    """Return the recipe of one run.

    Args:
        mode: "ours" or "plain".
        start: Encoder or model folder to start from.
        num_envs: Environments.
        num_updates: Of PQN.
        output: Folder of the run.
        seed: Of the run.
    """
    model: Settings = {"encoder": start, "max_chunk_tokens": 32, "max_chunk_tokens_in_state": 32}
    # Reinforcement alone, and by the same rules in both: what differs is how it is computed.
    pqn: Settings = {
        "num_envs": num_envs,
        "num_steps": NUM_HOPS,
        "num_updates": num_updates,
        "warmup_updates": 0,
        "imitation_weight": 0.0,
    }
    run: Settings = {"output": str(output), "seed": seed, "refresh_updates": REFRESH_UPDATES}
    if mode == "plain":
        model["frozen"] = "none"
        pqn.update(target_chunks="encoder", reuse_states=False)
        run.update(dtype="float32", plain_batches=True, refresh_updates=1)
    return parse_recipe(
        {
            "model": model,
            "data": [
                {
                    "source": "babilong-qa2",
                    "options": {"num_chunks": 100, "noise_window": NOISE_WINDOW},
                    "step_limit": NUM_HOPS,
                }
            ],
            "warm_start": {"num_updates": 0},
            "pqn": pqn,
            "run": {**run, "evaluate_updates": 10**6, "tensorboard": False, "validation_samples": 200},
        }
    )


def measure_speed(data: Path, start: str, num_envs: int, rounds: int) -> Rows:
    """Time both modes in turn: transitions per second of whole updates, our refresh of chunk embeddings included."""
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    shares: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for mode in MODES:
            num_updates = REFRESH_UPDATES if mode == "ours" else PLAIN_UPDATES + 1
            lines = _log_of(data, recipe_of, mode, start, num_envs, num_updates)
            if mode == "plain":
                lines = lines[1:]
            seconds = sum(1.0 / line["updates_per_second"] for line in lines)
            rates[mode].append(num_envs * NUM_HOPS * len(lines) / seconds)
            shares[mode] = {
                name.removeprefix("time/"): float(np.mean([line.get(name, 0.0) for line in lines]))
                for name in sorted({key for line in lines for key in line if key.startswith("time/")})
            }
    medians = {mode: float(np.median(values)) for mode, values in rates.items()}
    return [
        {
            "mode": mode,
            "environments": num_envs,
            "transitions_per_second": round(medians[mode], 1),
            "times_plain": round(medians[mode] / medians["plain"], 1),
            "lowest": round(min(rates[mode]), 1),
            "highest": round(max(rates[mode]), 1),
            "where": ", ".join(f"{name} {share:.0%}" for name, share in shares[mode].items()),
        }
        for mode in MODES
    ]


def measure_recall(data: Path, start: str, num_envs: int, num_updates: int, seeds: Sequence[int]) -> Rows:
    """Train both modes on equally many transitions and compare fact recall on the same 200 validation questions."""
    rows: Rows = []
    for mode in MODES:
        finals = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as scratch:
                Trainer(recipe_of(mode, start, num_envs, num_updates, Path(scratch) / "run", seed), data).fit()
                history = json.loads((Path(scratch) / "run" / "report.json").read_text(encoding="utf-8"))["validation"]
                finals.append((history[0]["fact_recall"], history[-1]["fact_recall"], history[-1]["exact"]))
        before, after, exact = np.array(finals).T
        rows.append(
            {
                "mode": mode,
                "environments": num_envs,
                "transitions": num_envs * NUM_HOPS * num_updates,
                "seeds": len(seeds),
                "recall_before": round(float(before.mean()), 4),
                "recall_after": round(float(after.mean()), 4),
                "spread": round(float(after.std()), 4),
                "exact_after": round(float(exact.mean()), 4),
            }
        )
    return rows


def warm_started(data: Path, num_updates: int, output: Path) -> str:
    """Train the pair that both modes start from; returns its folder."""
    recipe = recipe_of("ours", MINILM, 4, 0, output, seed=0)
    settings = recipe.model_dump()
    settings["warm_start"]["num_updates"] = num_updates
    Trainer(parse_recipe(settings), data).fit()
    return str(RunFolder(output).model)


def _log_of(data: Path, recipe: Any, mode: str, start: str, num_envs: int, num_updates: int) -> Rows:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        trainer = Trainer(recipe(mode, start, num_envs, num_updates, output, 1), data)
        trainer.validation.episodes.clear()  # none of the time is validation's
        trainer.fit()
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["stage"] == "pqn"]


def show(rows: Rows) -> None:
    """Print rows as a table."""
    header = list(rows[0])
    print(table(header, [[str(row[name]) for name in header] for row in rows]), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder with babi/ and books/")
    parser.add_argument("--environments", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each mode, in turn")
    parser.add_argument("--warm-start-updates", type=int, default=60, help="of the pair that all runs start from")
    parser.add_argument("--recall-updates", type=int, default=60, help="PQN updates before recall; 0: no recall")
    parser.add_argument("--recall-environments", type=int, default=4, help="environments of these updates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        start = warm_started(options.data, options.warm_start_updates, Path(scratch) / "start")
        speed = [
            row for envs in options.environments for row in measure_speed(options.data, start, envs, options.rounds)
        ]
        show(speed)
        recall: Rows = []
        if options.recall_updates:
            recall = measure_recall(
                options.data, start, options.recall_environments, options.recall_updates, options.seeds
            )
            show(recall)
    if options.json:
        options.json.write_text(json.dumps({"speed": speed, "recall": recall}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

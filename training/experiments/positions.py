"""Ablate the positions of chunks: none, absolute, relative, at 1k to 128k tokens; trained as the recipe has it.

python training/experiments/positions.py --data DATA --output runs/positions --task 2
"""

from __future__ import annotations

import numpy as np
from harness import RECIPES, Measured, new_plot, noise_of_test, options, questions, run, save, save_plot

from qrag_retriever.training.recipe import read_recipe


def main() -> None:
    chosen = options(__doc__, task=2, lengths="1k,4k,32k,128k", num_samples=200, updates=300)
    lengths = chosen.lengths.split(",")
    settings = read_recipe(RECIPES / f"babilong-qa{chosen.task}.toml").model_dump()
    noise = noise_of_test(chosen.data)
    rows = []
    for kind in ("none", "absolute", "relative"):
        for seed in chosen.seeds:
            own = {
                **settings,
                "model": {**settings["model"], "positions": kind},
                "warm_start": {**settings["warm_start"], "num_updates": chosen.updates},
                "pqn": {**settings["pqn"], "num_updates": 0},
                "run": {**settings["run"], "seed": seed, "evaluate_updates": 100},
            }
            measured = Measured(run(own, chosen.data, chosen.output / f"{kind}-{seed}")["model"])
            for length in lengths:
                episodes = questions(chosen.data, chosen.task, length, noise, chosen.num_samples)
                rows.append({"positions": kind, "seed": seed, "length": length, **measured.figures(episodes)})
            save(chosen.output, "positions", rows)
    figure, axes = new_plot(f"BabiLong QA{chosen.task}, positions ablated", "context length in tokens", "exact")
    for kind in ("none", "absolute", "relative"):
        values = np.array(
            [[r["exact"] for r in rows if r["positions"] == kind and r["length"] == length] for length in lengths]
        )
        axes.errorbar(lengths, values.mean(1), yerr=values.std(1), marker="o", capsize=3, label=kind)
    axes.legend()
    save_plot(figure, chosen.output, "positions")


if __name__ == "__main__":
    main()

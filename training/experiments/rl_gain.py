"""Does PQN earn its place? From a warm start that has stopped improving, does it still raise exact retrieval?

The warm start of a recipe runs until validation has not improved for 100 updates; then PQN. Both models are measured on
the same test questions; differences are paired, with 95% bootstrap intervals over questions and seeds. No imitation is
kept on during PQN, so that what is gained is gained by reinforcement.

    python training/experiments/rl_gain.py --data DATA --output runs/rl-gain --task 3
"""

from __future__ import annotations

import numpy as np
from harness import RECIPES, Measured, noise_of_test, options, questions, run, save

from qrag_retriever.training.recipe import read_recipe


def main() -> None:
    chosen = options(__doc__, task=3, lengths="4k,128k", num_samples=500, warm_updates=1500, patience=100)
    settings = read_recipe(RECIPES / f"babilong-qa{chosen.task}.toml").model_dump()
    noise = noise_of_test(chosen.data)
    rows, differences = [], {length: [] for length in chosen.lengths.split(",")}
    for seed in chosen.seeds:
        common = {**settings["run"], "seed": seed}
        warm = run(
            {**settings, "pqn": {**settings["pqn"], "num_updates": 0}, "run": common,
             "warm_start": {**settings["warm_start"], "num_updates": chosen.warm_updates,
                            "patience_updates": chosen.patience}},
            chosen.data, chosen.output / f"warm-{seed}",
        )  # fmt: skip
        after = run(
            {**settings, "model": {**settings["model"], "encoder": warm["model"]}, "run": common,
             "warm_start": {**settings["warm_start"], "num_updates": 0},
             "pqn": {**settings["pqn"], "imitation_weight": 0.0}},
            chosen.data, chosen.output / f"pqn-{seed}",
        )  # fmt: skip
        models = [Measured(report["model"]) for report in (warm, after)]
        for length, found in differences.items():
            episodes = questions(chosen.data, chosen.task, length, noise, chosen.num_samples)
            exact = []
            for stage, measured in zip(("warm start", "PQN"), models, strict=True):
                picks = measured.picks(episodes)
                exact.append([set(p.chunk_ids[: len(p.sample.supporting)]) >= set(p.sample.supporting) for p in picks])
                rows.append({"seed": seed, "length": length, "stage": stage, **measured.figures(episodes)})
            found.append(np.subtract(*np.array(exact[::-1], float)))
        save(chosen.output, "rl_gain", rows)
    for length, found in differences.items():
        values, random = np.array(found), np.random.default_rng(0)  # (seeds, questions)
        means = []
        for _ in range(2000):
            seeds = random.integers(len(values), size=len(values))
            drawn = random.integers(values.shape[1], size=values.shape[1])
            means.append(values[seeds][:, drawn].mean())
        low, high = np.percentile(means, [2.5, 97.5])
        print(f"{length}: exact changes by {values.mean():+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()

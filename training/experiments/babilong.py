"""Train BabiLong QA1, QA2 or QA3 by its recipe with several seeds and measure all of bAbI's test questions.

python training/experiments/babilong.py --task 2 --data DATA --output runs/qa2
"""

from __future__ import annotations

from harness import RECIPES, Measured, mean_and_spread, noise_of_test, options, questions, run, save

from qrag_retriever.training.recipe import read_recipe


def main() -> None:
    chosen = options(__doc__, task=2, lengths="4k", num_samples=500)
    settings = read_recipe(RECIPES / f"babilong-qa{chosen.task}.toml").model_dump()
    noise = noise_of_test(chosen.data)
    rows = []
    lengths = chosen.lengths.split(",")
    for seed in chosen.seeds:
        report = run(
            {**settings, "run": {**settings["run"], "seed": seed}}, chosen.data, chosen.output / f"seed-{seed}"
        )
        # Both: other work on the machine makes a run wait, but hardly costs it processor time (of all cores together).
        minutes = {"minutes": report["seconds"] / 60, "processor_minutes": report["processor_seconds"] / 60}
        measured = Measured(report["model"])
        for length in lengths:
            episodes = questions(chosen.data, chosen.task, length, noise, chosen.num_samples)
            rows.append({"seed": seed, "length": length, **minutes, **measured.figures(episodes)})
        save(chosen.output, "figures", rows)
    for length in lengths:
        for name in ("fact_recall", "exact"):
            print(length, name, mean_and_spread([float(row[name]) for row in rows if row["length"] == length]))


if __name__ == "__main__":
    main()

"""Overfit one BabiLong QA3 question by PQN alone: does the reinforcement learning work at all?

No warm start and no imitation; each fact pays a little when it is found. Plots the loss, and the mean Q-value of the
picks against the mean target.

    python training/experiments/overfit_one.py --data DATA --output runs/overfit
"""

from __future__ import annotations

import json

import numpy as np
from harness import MODEL, STEP_LIMITS, log_of, new_plot, options, run, save, save_plot

from qrag_retriever.training.datasets import LENGTHS, BabiLong


def main() -> None:
    chosen = options(__doc__, updates=150)
    chosen.output.mkdir(parents=True, exist_ok=True)
    sample = BabiLong(chosen.data, 3, "train", num_chunks=LENGTHS["4k"]).sample(0, np.random.default_rng(0))
    line = {
        "id": sample.id, "question": sample.question, "chunks": sample.chunks, "supporting": sample.supporting,
        "answers": sample.answers,
    }  # fmt: skip
    (chosen.output / "one.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    one = {"source": "one.jsonl", "step_limit": STEP_LIMITS[3]}
    rows = []
    figure, axes = new_plot("One QA3 question, PQN alone", "update", "mean over the picks")
    for seed in chosen.seeds:
        settings = {
            "model": MODEL,
            "data": [one],
            "validation": [one],
            "reward": {"per_fact_reward": 0.25},
            "warm_start": {"num_updates": 0},
            "pqn": {
                "num_updates": chosen.updates, "num_envs": 8, "num_steps": STEP_LIMITS[3], "imitation_weight": 0.0,
                "alpha": 0.05, "lam": 0.8, "learning_rate": 2e-4,
            },
            "run": {"seed": seed, "evaluate_updates": 25, "tensorboard": False},
        }  # fmt: skip
        output = chosen.output / f"seed-{seed}"
        report = run(settings, chosen.data, output, chosen.output)
        log = log_of(output, "pqn")
        updates = [line["step"] for line in log]
        axes.plot(updates, [line["q"] for line in log], color="C0", alpha=0.7, label="Q" if not rows else None)
        axes.plot(
            updates, [line["return"] for line in log], color="C1", alpha=0.7, label="target" if not rows else None
        )
        axes.plot(updates, [line["td_loss"] for line in log], color="C2", alpha=0.7, label="loss" if not rows else None)
        solved = [entry["step"] for entry in report["validation"] if entry["exact"] == 1.0]
        last = report["validation"][-1]
        rows.append({"seed": seed, "first_solved_at": min(solved, default=None), "exact_at_end": last["exact"],
                     "predicted_q": last["predicted_q"], "realised_return": last["realised_return"]})  # fmt: skip
    axes.legend()
    save_plot(figure, chosen.output, "overfit_one")
    save(chosen.output, "overfit_one", rows)


if __name__ == "__main__":
    main()

"""Ablate the parts of PQN, and map where it collapses, all from one warm start.

    python training/experiments/ablations.py --data DATA --output runs/ablations           # the parts
    python training/experiments/ablations.py --data DATA --output runs/collapse --map 1    # tau x alpha

Every run starts from the same short warm start (so that there is something to gain and something to lose) and is
measured on the same validation questions before and after.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import MODEL, log_of, mean_and_spread, new_plot, options, run, save, save_plot

from qrag_retriever.errors import DivergedError

DATA = [{"source": "babilong-qa2", "options": {"num_chunks": 160}}]
PARTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no imitation": {"pqn": {"imitation_weight": 0.0}},
    "soft maximum": {"pqn": {"value": "soft"}},
    "soft maximum, no imitation": {"pqn": {"value": "soft", "imitation_weight": 0.0}},
    "textbook (soft, unclipped, not zeroed, no imitation)": {
        "pqn": {"value": "soft", "clip_values": False, "zero_when_settled": False, "imitation_weight": 0.0}
    },
    "lambda 0": {"pqn": {"lam": 0.0}},
    "lambda 1": {"pqn": {"lam": 1.0}},
    "no targets": {"pqn": {"targets": False}},
    "one head": {"pqn": {"twin_heads": False}},
    "no penalty": {"reward": {"penalize_extra_steps": False}},
    "unclipped": {"pqn": {"clip_values": False}},
}
TAUS = (0.005, 0.02, 0.1, 0.5, 1.0)
ALPHAS = (0.005, 0.02, 0.1, 0.4)


def main() -> None:
    chosen = options(__doc__, warm_updates=100, updates=60, map=0)
    warm = run(
        {"model": MODEL, "data": DATA, "warm_start": {"num_updates": chosen.warm_updates}, "pqn": {"num_updates": 0},
         "run": {"seed": 1, "evaluate_updates": 100, "tensorboard": False}},
        chosen.data, chosen.output / "warm-start",
    )  # fmt: skip
    (collapse_map if chosen.map else parts)(chosen, warm["model"])


def train(chosen: Any, start: str, name: str, seed: int, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    pqn = {"num_updates": chosen.updates, "num_envs": 16, "num_steps": 4, "warmup_updates": 5, **changes.get("pqn", {})}
    settings = {
        "model": {**MODEL, "encoder": start},
        "data": DATA,
        "reward": changes.get("reward", {}),
        "warm_start": {"num_updates": 0},
        "pqn": pqn,
        "run": {"seed": seed, "evaluate_updates": chosen.updates, "tensorboard": False},
    }
    output = chosen.output / f"{name}-{seed}"
    return run(settings, chosen.data, output), log_of(output, "pqn")


def parts(chosen: Any, start: str) -> None:
    rows, after = [], {}
    for name, changes in PARTS.items():
        reports = [train(chosen, start, name.replace(" ", "-"), seed, **changes)[0] for seed in chosen.seeds]
        first, last = [[report["validation"][place] for report in reports] for place in (0, -1)]
        rows.append(
            {
                "variant": name,
                "recall_before": float(np.mean([f["fact_recall"] for f in first])),
                "recall_after": mean_and_spread([f["fact_recall"] for f in last]),
                "exact_before": float(np.mean([f["exact"] for f in first])),
                "exact_after": mean_and_spread([f["exact"] for f in last]),
                "predicted_q": mean_and_spread([f["predicted_q"] for f in last]),
                "realised_return": mean_and_spread([f["realised_return"] for f in last]),
            }
        )
        after[name] = [[f[figure] for f in last] for figure in ("fact_recall", "exact")]
        save(chosen.output, "parts", rows)
    figure, axes = new_plot(f"after {chosen.updates} updates of PQN", "share of validation questions", "")
    values = np.array(list(after.values()))  # (variants, figures, seeds)
    for number, (label, column) in enumerate((("fact recall", "recall_before"), ("exact", "exact_before"))):
        mean, spread = values[:, number].mean(1), values[:, number].std(1)
        axes.errorbar(mean, range(len(after)), xerr=spread, fmt="o", color=f"C{number}", capsize=3, label=label)
        axes.axvline(rows[0][column], color=f"C{number}", linestyle="--", label=f"{label} before")
    axes.set(yticks=range(len(after)), yticklabels=[name.partition(" (")[0] for name in after])
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save_plot(figure, chosen.output, "parts")


def collapse_map(chosen: Any, start: str) -> None:
    """Train the textbook variant over tau x alpha: where does the loss become noise and the recall fall?"""
    recall, variance = np.zeros((len(TAUS), len(ALPHAS))), np.zeros((len(TAUS), len(ALPHAS)))
    rows = []
    textbook = PARTS["textbook (soft, unclipped, not zeroed, no imitation)"]["pqn"]
    for i, tau in enumerate(TAUS):
        for j, alpha in enumerate(ALPHAS):
            seed = chosen.seeds[0]
            pqn = {**textbook, "tau": tau, "alpha": alpha}
            try:
                report, log = train(chosen, start, f"tau-{tau}-alpha-{alpha}", seed, pqn=pqn)
            except DivergedError:
                recall[i, j], variance[i, j], q = 0.0, np.nan, np.nan
            else:
                recall[i, j] = report["validation"][-1]["fact_recall"]
                variance[i, j] = float(np.var([line["td_loss"] for line in log[len(log) // 2 :]]))
                q = float(np.mean([line["q"] for line in log[-10:]]))
            rows.append({"tau": tau, "alpha": alpha, "recall": recall[i, j], "loss_variance": variance[i, j], "q": q})
            save(chosen.output, "collapse", rows)
    for name, values in (("recall", recall), ("loss_variance", np.log10(variance))):
        figure, axes = new_plot(f"{'log10 ' if name != 'recall' else ''}{name}, textbook PQN", "alpha", "tau")
        image = axes.imshow(values, origin="lower", aspect="auto")
        axes.set(xticks=range(len(ALPHAS)), xticklabels=ALPHAS, yticks=range(len(TAUS)), yticklabels=TAUS)
        axes.grid(False)
        figure.colorbar(image)
        save_plot(figure, chosen.output, f"collapse_{name}")


if __name__ == "__main__":
    main()

"""Does PQN earn its place? From the end of a warm start, does it do more for exact retrieval than more warm start?

The warm start of a recipe runs to its end, or until validation has not improved for ``--patience`` updates. From its
last model go two branches of equally many updates with the same learning rates: the warm start goes on, or PQN takes
over. The last model of each is measured, not the best, so that nothing is won by choosing; all on the same test
questions. Differences are paired, with 95% bootstrap intervals over questions and seeds. PQN has no imitation beside
it, so that what is gained is gained by reinforcement (``--imitation`` keeps some on; ``--num-envs``, ``--alpha``,
``--num-alternatives`` and ``--fresh-chunks`` are the recipe's unless given). ``--num-chunks`` gives both branches
documents of another length.

    python training/experiments/rl_gain.py --data DATA --output runs/rl-gain --task 3
"""

from __future__ import annotations

from typing import Any

from harness import RECIPES, Measured, noise_of_test, options, paired, questions, run, save

from qrag_retriever.training.recipe import read_recipe

STAGES = ("warm start", "more warm start", "PQN")


def main() -> None:
    chosen = options(
        __doc__, task=3, lengths="4k,128k", num_samples=500, warm_updates=0, patience=100, updates=100,
        learning_rate=1e-4, imitation=0.0, num_envs=0, alpha=0.0, num_alternatives=0, fresh_chunks=0, num_chunks=0,
    )  # fmt: skip
    settings = read_recipe(RECIPES / f"babilong-qa{chosen.task}.toml").model_dump()
    noise = noise_of_test(chosen.data)
    rows: list[dict[str, Any]] = []
    exact: dict[tuple[str, str], list[list[bool]]] = {}
    for seed in chosen.seeds:
        models = [Measured(report["model"]) for report in branches(chosen, settings, seed)]
        for length in chosen.lengths.split(","):
            episodes = questions(chosen.data, chosen.task, length, noise, chosen.num_samples)
            for stage, measured in zip(STAGES, models, strict=True):
                picks = measured.picks(episodes)
                found = [set(p.chunk_ids[: len(p.sample.supporting)]) >= set(p.sample.supporting) for p in picks]
                exact.setdefault((length, stage), []).append(found)
                rows.append({"seed": seed, "length": length, "stage": stage, **measured.figures(episodes)})
        save(chosen.output, "rl_gain", rows)
    for length in chosen.lengths.split(","):
        for stage, than in (("PQN", "warm start"), ("more warm start", "warm start"), ("PQN", "more warm start")):
            change, low, high = paired(exact[length, stage], exact[length, than])
            print(f"{length}: exact of {stage} minus {than}: {change:+.3f} [{low:+.3f}, {high:+.3f}]")


def branches(chosen: Any, settings: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Train the warm start and both ways to go on from it; return their reports."""
    common = {**settings["run"], "seed": seed, "keep": "last"}
    stages = {
        "warm_start": {
            **settings["warm_start"], "patience_updates": chosen.patience,
            "num_updates": chosen.warm_updates or settings["warm_start"]["num_updates"],
        },
        "pqn": {**settings["pqn"], "num_updates": 0},
    }  # fmt: skip
    warm = run({**settings, **stages, "run": common}, chosen.data, chosen.output / f"warm-{seed}")
    schedule = {"num_updates": chosen.updates, "learning_rate": chosen.learning_rate, "warmup_updates": 5}
    nothing = {"num_updates": 0}
    own = {
        name: value
        for name in ("num_envs", "alpha", "num_alternatives", "fresh_chunks")
        if (value := getattr(chosen, name))
    }
    ways = {
        "more": ({**settings["warm_start"], **schedule}, {**settings["pqn"], **nothing}),
        "pqn": (
            {**settings["warm_start"], **nothing},
            {**settings["pqn"], **schedule, **own, "imitation_weight": chosen.imitation},
        ),
    }
    data = [_of_length(source, chosen.num_chunks) for source in settings["data"]]
    reports = [warm]
    for name, (warm_start, pqn) in ways.items():
        model = {**settings["model"], "encoder": warm["model"]}
        branch = {**settings, "model": model, "data": data, "run": common, "warm_start": warm_start, "pqn": pqn}
        reports.append(run(branch, chosen.data, chosen.output / f"{name}-{seed}"))
    return reports


def _of_length(source: dict[str, Any], num_chunks: int) -> dict[str, Any]:
    length = {"num_chunks": num_chunks, "noise_window": num_chunks} if num_chunks else {}
    return {**source, "options": {**source["options"], **length}}


if __name__ == "__main__":
    main()

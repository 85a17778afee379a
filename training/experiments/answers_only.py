"""Train where only answers are known: no annotated evidence, no warm start, PQN from zero.

    python training/experiments/answers_only.py --data DATA --output runs/answers --task babi
    python training/experiments/answers_only.py --data DATA --output runs/answers --task hotpotqa

babi: BabiLong QA1 at 1k tokens, the reward is a chat model's answer from the picks (`BabiReader`). hotpotqa: bridge
questions, the reward is the answer being contained in what was picked.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from babi_reader import BabiReader
from harness import (
    MODEL,
    Measured,
    mean_and_spread,
    new_plot,
    noise_of_test,
    options,
    paired,
    questions,
    save,
    save_plot,
)

from qrag_retriever.training.datasets import LENGTHS, open_source
from qrag_retriever.training.evaluation import returns_of
from qrag_retriever.training.recipe import parse_recipe
from qrag_retriever.training.rewards import AnswerContainedReward, LLMAnswerReward, Outcome, false_positive_rate
from qrag_retriever.training.run_folder import RunFolder
from qrag_retriever.training.trainer import Trainer

PQN = {"imitation_weight": 0.0, "value": "hard", "lam": 0.8, "alpha": 0.05, "alpha_end_share": 0.3}


def babi(chosen: Any) -> tuple[dict[str, Any], Any]:
    """Fact recall in two picks, untrained and trained, on the test questions."""
    episodes = questions(chosen.data, 1, "1k", noise_of_test(chosen.data), 500)
    settings = {
        "model": MODEL,
        "data": [{"source": "babilong-qa1", "options": {"num_chunks": LENGTHS["1k"]}, "withhold_supporting": True}],
        "warm_start": {"num_updates": 0},
        "pqn": {**PQN, "num_updates": chosen.updates or 300, "num_envs": 48, "num_steps": 2, "learning_rate": 2e-4},
    }

    def found(measured: Measured) -> dict[str, list[bool]]:
        return {"fact recall": [set(one.sample.supporting) <= set(one.chunk_ids) for one in measured.picks(episodes)]}

    return settings, (lambda: LLMAnswerReward(BabiReader()), found)


def hotpotqa(chosen: Any) -> tuple[dict[str, Any], Any]:
    """Share of dev questions with a paragraph that has the answer among two picks, and with the annotated one."""
    reward = AnswerContainedReward(penalize_extra_steps=False)
    source = open_source("hotpotqa", chosen.data, "test", kinds=["bridge"])
    random = np.random.default_rng(0)
    samples = [source.sample(i, random) for i in range(len(source))]
    usable = [sample for sample in samples if reward.unusable(sample) is None]
    skipped = Counter(reason for reason in map(reward.unusable, samples) if reason)
    print(f"{len(usable)} bridge questions are measured; skipped: {dict(skipped)}")
    fooled = false_positive_rate(usable)
    print(f"false positives of the reward: {fooled.rate:.3f} of the questions, {fooled.chunk_rate:.4f} of the chunks")
    settings = {
        "model": {**MODEL, "num_layers": 6, "positions": "none", "max_chunk_tokens": 160,
                  "max_chunk_tokens_in_state": 96},
        "data": [
            {"source": "hotpotqa", "options": {"kinds": ["bridge"]}, "withhold_supporting": True, "step_limit": 2}
        ],
        "warm_start": {"num_updates": 0},
        "pqn": {**PQN, "num_updates": chosen.updates or 150, "num_envs": 24, "num_steps": 2, "learning_rate": 5e-5},
    }  # fmt: skip

    def answered(measured: Measured) -> dict[str, list[bool]]:
        picks = measured.picks([(sample, 2) for sample in usable])
        holders = [_evidence_with_answer(reward, one.sample) for one in picks]
        return {
            "a paragraph with the answer": [own[0] > 0 for own in returns_of(reward, picks, gamma=1.0)],
            "the annotated one": [bool(held & set(one.chunk_ids)) for held, one in zip(holders, picks, strict=True)],
        }

    return settings, (AnswerContainedReward, answered)


def _evidence_with_answer(reward: AnswerContainedReward, sample: Any) -> set[int]:
    """Return the annotated paragraphs that have the answer."""
    alone = [Outcome(sample, (chunk_id,), last=True) for chunk_id in sample.supporting]
    paid = [found.reward > 0 for found in reward.judge(alone)]
    return {chunk_id for chunk_id, is_paid in zip(sample.supporting, paid, strict=True) if is_paid}


def main() -> None:
    chosen = options(__doc__, task="babi", updates=0)
    settings, (make_reward, measure) = {"babi": babi, "hotpotqa": hotpotqa}[chosen.task](chosen)
    figure, axes = new_plot(f"{chosen.task}: answers only, PQN from zero", "update", "validation return")
    rows: list[dict[str, Any]] = []
    kept: dict[str, list[tuple[list[bool], list[bool]]]] = {}
    for seed in chosen.seeds:
        output = chosen.output / f"{chosen.task}-{seed}"
        run = {"seed": seed, "evaluate_updates": 25, "tensorboard": False, "output": str(output)}
        trainer = Trainer(parse_recipe({**settings, "run": run}), chosen.data, reward=make_reward())
        before = measure(Measured(trainer.pair))
        trainer.fit(resume=True)
        after = measure(Measured(str(RunFolder(output).model)))
        history = RunFolder(output).read_report()["validation"]
        axes.plot([entry["step"] for entry in history], [entry["return"] for entry in history], marker=".")
        for name in before:
            kept.setdefault(name, []).append((before[name], after[name]))
            untrained, trained = float(np.mean(before[name])), float(np.mean(after[name]))
            rows.append({"task": chosen.task, "figure": name, "seed": seed, "untrained": untrained, "trained": trained})
        save(chosen.output, f"answers_only_{chosen.task}", rows)
    save_plot(figure, chosen.output, f"answers_only_{chosen.task}")
    for name, pairs in kept.items():
        for way in ("untrained", "trained"):
            print(name, way, mean_and_spread([float(row[way]) for row in rows if row["figure"] == name]))
        mean, low, high = paired([after for _, after in pairs], [before for before, _ in pairs])
        print(f"{name}: trained less untrained {mean:+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()

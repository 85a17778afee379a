r"""What do chunks of one length and weights mixed with those of another encoder or pair give, without any training?

Of a trained pair, several shares of other weights and each kind of normalisation are measured: on the town of
examples/, which no recipe is trained on, and on validation of what the pair in the package is trained on.

    python training/experiments/blending.py --data DATA --output runs/blending --model runs/bundled-wiki/model
    python training/experiments/blending.py --data DATA --output runs/added-up --model runs/bundled-joint-1/model \
        --other runs/bundled-wiki/model --shares 0,0.5,0.7+0.5,0.8+0.35,0.8+0.6 --normalize own
    python training/experiments/blending.py --data DATA --output runs/averages --model runs/one/model \
        --other runs/two/model,runs/three/model --shares 0.5+0.5,0.4+0.3+0.3 --normalize own

A share is that of the other weights, or "own+other+other...": the encoder that all come from is the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from harness import RECIPES, Measured, options, save

from qrag_retriever.training.data import JsonLines, Sample
from qrag_retriever.training.datasets import open_source
from qrag_retriever.training.evaluation import figures_of
from qrag_retriever.training.networks import TrainedPair
from qrag_retriever.training.recipe import BlendSettings, ModelSettings
from qrag_retriever.training.starting_point import starting_point

TOWN = RECIPES.parent / "examples" / "town.jsonl"
# Source, split, options, picks, and the most questions.
SOURCES = (
    ("musique", "train", {}, 5, 100),  # tells what is learned only of pairs that are not trained on them
    ("hotpotqa", "validation", {}, 2, 100),
    ("2wiki", "validation", {}, 4, 100),
    ("ruler-qa-1", "validation", {}, 1, 50),
    ("babilong-qa1", "validation", {"num_chunks": 60}, 2, 100),
    ("babilong-qa2", "validation", {"num_chunks": 60}, 4, 100),
    ("babilong-qa3", "validation", {"num_chunks": 60}, 6, 100),
    ("relations-made", "validation", {}, 4, 100),
)
# So that Q-values of a pair of sums keep their size; None: the pair's own scale.
SCALES = {"own": None, "all": 1.6, "chunks": 0.624}


def episodes_of(data: Path, num_samples: int, long: int) -> dict[str, list[tuple[Sample, int]]]:
    """Draw the questions, the same at every call; with ``long`` also of stories in documents of so many sentences."""
    town = JsonLines(TOWN, mode="corpus")
    drawn = {"town": [(town.sample(i, np.random.default_rng(0)), 4) for i in range(min(num_samples, len(town)))]}
    in_long = [
        (name, split, {"num_chunks": long}, picks, most)
        for name, split, settings, picks, most in SOURCES
        if long and "num_chunks" in settings
    ]
    for name, split, settings, picks, most in (*SOURCES, *in_long):
        source = open_source(name, data, split, **settings)
        count = min(num_samples, most, len(source))
        drawn[f"{name}, {settings['num_chunks']} sentences" if "num_chunks" in settings else name] = [
            (source.sample(i, np.random.default_rng([7, i])), picks) for i in range(count)
        ]
    return drawn


def blends_of(share: str, others: list[str], plain: str) -> list[BlendSettings]:
    """Read a share of the command line."""
    if share == "0":
        return []
    if "+" not in share:
        return [BlendSettings(encoder=others[0], share=float(share))]
    own, *mixed_in = map(float, share.split("+"))
    if len(mixed_in) > len(others):
        raise SystemExit(f"{share!r} has shares of {len(mixed_in)} other pairs, --other names {len(others)}")
    # They are mixed in one after the other: the first one scales the pair's own weights.
    own_shares = [own] + [1.0] * (len(mixed_in) - 1)
    return [
        BlendSettings(encoder=other, share=part, own_share=own_share, base=plain)
        for other, part, own_share in zip(others, mixed_in, own_shares, strict=False)
    ]


def pair_of(model: str, blends: list[BlendSettings], normalize: str) -> TrainedPair:
    """Change a trained pair as a recipe's ``[model]`` would."""
    # Left out, it is the pair's own.
    chosen = {} if normalize == "own" else {"normalize": True if normalize == "all" else normalize}
    settings = ModelSettings(encoder=model, blend=blends, output_scale=SCALES[normalize], **chosen)
    start = starting_point(settings, "cpu")
    return TrainedPair(start.config, *start.encoders(), targets="none", compute_dtype=torch.float32)


def main() -> None:
    plain = "all-MiniLM-L6-v2"
    chosen = options(
        __doc__, model="runs/bundled-wiki/model", other=plain, plain=plain, shares="0,0.2,0.4",
        normalize="own,all,chunks", num_samples=100, long=0,
    )  # fmt: skip
    drawn = episodes_of(chosen.data, chosen.num_samples, chosen.long)
    rows = []
    for share in chosen.shares.split(","):
        blends = blends_of(share, chosen.other.split(","), chosen.plain)
        for normalize in chosen.normalize.split(","):
            measured = Measured(pair_of(chosen.model, blends, normalize))
            for name, episodes in drawn.items():
                figures = figures_of(measured.picks(episodes)).to_dict()
                rows.append({"share": share, "normalize": normalize, "source": name, **figures})
    save(chosen.output, "blending", rows)


if __name__ == "__main__":
    main()

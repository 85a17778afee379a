"""How often can relative positions not tell which of two events is the later one?

With a stride of 20, the paper's, positions divide each segment between picked chunks into 19 places; of two statements
that fall on the same place a model cannot know the later one, however well it is trained. For every test question an
imagined model that knows all else picks the facts in the order in which they can be known. At each hop it guesses among
the statements that only their order tells apart (the same person's moves, the same thing's takings) and that have the
position of the right one. The mean of its chances is the most that `exact` can reach.

    python training/experiments/position_ceiling.py --data DATA --output runs/ceiling
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
from harness import noise_of_test, options, questions, save

from qrag_retriever.positions import relative_runs
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets.carrying import HANDLING, MOVE

Hops = list[tuple[int, list[int]]]
Matches = dict[int, re.Match[str]]


def hops_of_qa1(sample: Sample) -> Hops:
    """The last move of the person asked about, against their other moves."""
    moves = _matches(MOVE, sample.chunks)
    (fact,) = sample.supporting or ()
    return [(fact, _like(moves, fact, "person"))]


def hops_of_qa2(sample: Sample) -> Hops:
    """The last handling of the thing against the others; the last move of who had it against their others."""
    moves, handled = _matches(MOVE, sample.chunks), _matches(HANDLING, sample.chunks)
    (event,) = (fact for fact in sample.supporting or () if fact in handled)
    (move,) = (fact for fact in sample.supporting or () if fact in moves)
    return [(event, _like(handled, event, "thing")), (move, _like(moves, move, "person"))]


def hops_of_qa3(sample: Sample) -> Hops:
    """As QA2, but of the moves first the one to the room asked about, and then the one before it, which answers."""
    moves, handled = _matches(MOVE, sample.chunks), _matches(HANDLING, sample.chunks)
    (event,) = (fact for fact in sample.supporting or () if fact in handled)
    answer, asked = (fact for fact in sample.supporting or () if fact in moves)
    return [
        (event, _like(handled, event, "thing")),
        (asked, _like(moves, asked, "person", "room")),
        (answer, _like(moves, answer, "person")),
    ]


HOPS: dict[int, Callable[[Sample], Hops]] = {1: hops_of_qa1, 2: hops_of_qa2, 3: hops_of_qa3}


def _matches(pattern: re.Pattern[str], chunks: Iterable[str]) -> Matches:
    found = ((i, pattern.fullmatch(chunk)) for i, chunk in enumerate(chunks))
    return {i: one for i, one in found if one is not None}


def _like(found: Matches, right: int, *groups: str) -> list[int]:
    """Return what agrees with the right one in some groups."""
    return [i for i, one in found.items() if all(one[group] == found[right][group] for group in groups)]


def chances(sample: Sample, hops: Hops, stride: int) -> list[float]:
    """Return for each hop the chance of a guess among the rivals that have the position of the right chunk."""
    picked: list[int] = []
    found = []
    for right, rivals in hops:
        positions = relative_runs(len(sample.chunks), sorted(picked), stride).expand()
        alike = sum(positions[i] == positions[right] for i in rivals if i not in (right, *picked))
        found.append(1.0 / (1 + alike))
        picked.append(right)
    return found


def main() -> None:
    chosen = options(__doc__, lengths="4k", num_samples=500, strides="20,40,80,160")
    noise = noise_of_test(chosen.data)
    rows = []
    for task, hops in HOPS.items():
        for length in chosen.lengths.split(","):
            samples = [sample for sample, _ in questions(chosen.data, task, length, noise, chosen.num_samples)]
            for stride in map(int, chosen.strides.split(",")):
                by_hop = [chances(sample, hops(sample), stride) for sample in samples]
                shown = ", ".join(f"{mean:.3f}" for mean in np.mean(by_hop, axis=0))
                exact = float(np.mean(np.prod(by_hop, axis=1)))
                about = {"task": f"QA{task}", "length": length, "stride": stride}
                rows.append({**about, "most_exact": exact, "by_hop": shown})
    save(chosen.output, "position_ceiling", rows)


if __name__ == "__main__":
    main()

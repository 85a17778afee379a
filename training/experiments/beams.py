"""Do beams find more than greedy picking, and by which value are they best ranked?

Widths and ranks of `MultiStepSelector` on validation of what the pair in the package is trained on; no training.

python training/experiments/beams.py --data DATA --output runs/beams
"""

from __future__ import annotations

from collections.abc import Sequence

from blending import episodes_of
from harness import options, save

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel
from qrag_retriever.paths import RankBy
from qrag_retriever.training.data import Sample
from qrag_retriever.training.evaluation import Picks, figures_of

RANKS: tuple[RankBy, ...] = ("max", "last", "mean")


def selectors(index: ChunkIndex, picks: int, widths: Sequence[int]) -> dict[tuple[int, str], MultiStepSelector]:
    """Return a greedy selector, and one for each width and rank."""
    found = {(1, ""): MultiStepSelector(index, picks)}
    for width in widths:
        for rank in RANKS:
            found[width, rank] = MultiStepSelector(index, picks, beam_width=width, rank_by=rank)
    return found


def main() -> None:
    chosen = options(__doc__, model="", widths="2,4,8", num_samples=50)
    model = QRAGModel.from_pretrained(chosen.model or None)
    widths = [int(width) for width in chosen.widths.split(",")]
    rows = []
    for name, episodes in episodes_of(chosen.data, chosen.num_samples).items():
        found: dict[tuple[int, str], list[Picks]] = {}
        for sample, picks in episodes:
            for key, selector in selectors(index_of(model, sample), picks, widths).items():
                steps = selector.select(sample.question).steps
                own = Picks(sample, tuple(s.chunk_id for s in steps), tuple(s.q_value for s in steps))
                found.setdefault(key, []).append(own)
        for (width, rank), own in found.items():
            rows.append({"source": name, "width": width, "rank": rank, **figures_of(own).to_dict()})
        save(chosen.output, "beams", rows)


def index_of(model: QRAGModel, sample: Sample) -> ChunkIndex:
    """Embed the chunks of a question."""
    chunks = list(sample.chunks)
    return ChunkIndex.from_embeddings(model.encode_chunks(chunks), chunks, model=model, mode=sample.mode)


if __name__ == "__main__":
    main()

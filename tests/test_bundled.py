"""The model in the package: it really retrieves, offline, for both frameworks, and is what its card says it is."""

from __future__ import annotations

import gc
import gzip
import json
import runpy
import weakref
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from qrag_retriever import QRAGModel, QRAGRetriever, shared_pairs
from qrag_retriever.checksums import CHECKSUMS_NAME, verify_checksums
from qrag_retriever.compact import expand
from qrag_retriever.config import QRAGConfig
from qrag_retriever.default_model import BUNDLED
from qrag_retriever.training.data import Sample
from qrag_retriever.training.datasets import LENGTHS, BabiLong, BookNoise

FIXTURES = Path(__file__).parent / "fixtures"
ALICE = Path(__file__).parents[1] / "examples" / "alice.txt"
NUM_QUESTIONS, NUM_PICKS = 40, 4
# What the bundled model must find here, as a share of the questions; see the figures in its card.
FLOOR = 0.9


@pytest.fixture(scope="module")
def model() -> QRAGModel:
    return QRAGModel.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """BabiLong QA2 at 1k tokens: 40 questions of bAbI's test file among sentences of a novel."""
    folder = tmp_path_factory.mktemp("data")
    book = folder / "books" / "test" / "alice.txt.gz"
    book.parent.mkdir(parents=True)
    paragraphs = ALICE.read_text(encoding="utf-8").split("\n\n")
    book.write_bytes(gzip.compress("\n".join(" ".join(text.split()) for text in paragraphs).encode()))
    source = BabiLong(FIXTURES, 2, "test", num_chunks=LENGTHS["1k"], noise=BookNoise(folder, "test"))
    assert len(source) == NUM_QUESTIONS
    return [source.sample(i, np.random.default_rng([0, i])) for i in range(NUM_QUESTIONS)]


def share_found(model: QRAGModel, questions: list[Sample]) -> float:
    found = []
    for one in questions:
        steps = QRAGRetriever.from_texts(one.chunks, model=model, k=NUM_PICKS).search(one.question).steps
        found.append(set(one.supporting or ()) <= {step.chunk_id for step in steps})
    return float(np.mean(found))


def test_finds_both_facts_of_questions_about_two(model: QRAGModel, questions: list[Sample]) -> None:
    assert share_found(model, questions) >= FLOOR


def test_the_floor_is_one_that_an_untrained_pair_does_not_reach(questions: list[Sample]) -> None:
    assert share_found(QRAGModel.from_encoder("all-MiniLM-L6-v2", device="cpu"), questions[:20]) < FLOOR - 0.3


def test_stops_by_itself(model: QRAGModel, questions: list[Sample]) -> None:
    """Before ten picks are made where two facts are asked for; there is a stop value for either mode."""
    assert set(model.config.min_q) == {"document", "corpus"}
    picks = [
        len(QRAGRetriever.from_texts(one.chunks, model=model, k=10, min_q="auto").search(one.question).steps)
        for one in questions[:10]
    ]
    assert 2 <= np.mean(picks) < 7


def test_is_the_default_and_says_so(model: QRAGModel) -> None:
    assert model.source is not None
    assert model.source.kind == "default"
    named = QRAGModel.from_pretrained(BUNDLED, device="cpu")
    assert named.fingerprint() == model.fingerprint()


def test_an_index_finds_its_model_again(tmp_path: Path) -> None:
    QRAGRetriever.from_texts(["Mary left.", "John came."]).save(tmp_path / "story.qrag")
    assert len(QRAGRetriever.load(tmp_path / "story.qrag", device="cpu").invoke("Who left?")) == 2


def test_it_is_loaded_once_for_all_who_do_not_name_a_model(
    tmp_path: Path, model: QRAGModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests of this process may have retrievers that are still alive.
    monkeypatch.setattr(shared_pairs, "_LOADED", WeakValueDictionary())
    first, second = (QRAGRetriever.from_texts([text], device="cpu") for text in ("one", "two"))
    first.save(tmp_path / "index")
    third = QRAGRetriever.load(tmp_path / "index", device="cpu")
    third.search("q")
    encoders = [(own.index.model.state_encoder.model, own.index.model.action_encoder.model) for own in (first, second)]
    encoders.append((third.index.model.state_encoder.model, third.index.model.action_encoder.model))
    assert encoders[0] == encoders[1] == encoders[2]
    # What belongs to one of them alone stays its own, and who asks for the model itself may train it.
    first.index.model.embed_with(cache=tmp_path / "cache.sqlite")
    assert second.index.model.cache is None
    assert QRAGModel.from_pretrained(device="cpu").state_encoder.model is not encoders[0][0]
    half = QRAGRetriever.load(tmp_path / "index", device="cpu", dtype="bfloat16")
    assert half.index.model.state_encoder.model is not encoders[0][0]
    assert next(encoders[0][0].parameters()).dtype == torch.float32
    left = weakref.ref(encoders[0][0])
    del first, second, third, half, encoders
    gc.collect()
    assert left() is None


def test_is_small_and_has_a_card_with_the_credit_that_its_data_ask_for() -> None:
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    assert size <= 70 * 10**6
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    for credit in ("CC BY-SA 4.0", "CC BY 4.0", "CC BY 3.0", "Apache-2.0", "HotpotQA", "SQuAD", "MuSiQue", "bAbI"):
        assert credit in card, credit


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_readme_shows_the_figures_of_the_card() -> None:
    readme = (BUNDLED.parents[1] / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- recall: made by training/bundle.py --figures -->\n", "<!-- recall: end -->"
    header, _, *lines = readme.partition(begin)[2].partition(end)[0].strip().splitlines()
    card = (BUNDLED / "README.md").read_text(encoding="utf-8").partition("| fact recall")[2].splitlines()
    in_card = {tuple(row[:2]): row[3:] for row in map(cells, card) if len(row) == len(cells(header)) + 1}
    assert len(lines) == 9
    for benchmark, length, *figures in map(cells, lines):
        if benchmark == "niah (8 tasks)":
            tasks = [row for (name, at), row in in_card.items() if (name[:5], at) == ("niah-", length)]
            for figure, *column in zip(figures, *tasks, strict=True):
                own = [float(cell.strip("*")) for cell in column if cell]
                assert figure.strip("*") == (f"{np.mean(own):.3f}" if len(own) == 8 else "")
        else:
            assert figures == in_card[benchmark, length]


def test_the_plot_over_lengths_compares_methods() -> None:
    over_length = runpy.run_path(str(BUNDLED.parents[1] / "training/bundle.py"))["over_length"]
    rows = [
        {"benchmark": benchmark, "method": method, "length": length}
        for benchmark, method, lengths in [
            ("stories", "qrag", "4k 1M"), ("stories", "bm25", "4k 1M"), ("stories", "random", "4k"),
            ("alone", "qrag", "4k 1M"), ("alone", "bm25", "4k"), ("passages", "qrag", "-"), ("passages", "bm25", "-"),
        ]
        for length in lengths.split()
    ]  # fmt: skip
    assert {(row["benchmark"], row["method"]) for row in over_length(rows)} == {
        ("stories", "qrag"),
        ("stories", "bm25"),
    }


def test_it_is_what_was_put_there() -> None:
    assert (BUNDLED / CHECKSUMS_NAME).is_file()
    verify_checksums(BUNDLED)


def test_its_encoders_are_sentence_transformers_models(tmp_path: Path, model: QRAGModel) -> None:
    """Of the layout that old releases read as well."""
    expand(BUNDLED, tmp_path)
    modules = json.loads((tmp_path / "action_encoder" / "modules.json").read_text(encoding="utf-8"))
    assert [module["type"].rpartition(".")[0] for module in modules] == ["sentence_transformers.models"] * 2
    encoder = SentenceTransformer(str(tmp_path / "action_encoder"), device="cpu")
    config = QRAGConfig.read(BUNDLED)
    assert config.normalize == "chunks"
    expected = encoder.encode(["Mary went to the kitchen."], normalize_embeddings=True) * config.output_scale
    np.testing.assert_allclose(model.encode_chunks(["Mary went to the kitchen."]), expected, atol=1e-5)

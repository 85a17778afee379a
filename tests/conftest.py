"""Fixtures: a tiny random encoder that is made on the spot, so that no test needs a download."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each of several processes with threads for all cores: they would mostly wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

from qrag_retriever import QRAGModel

STORY = [
    "Mary took the football.",
    "John went to the garden.",
    "Rain fell on the old village all day.",
    "Mary went to the kitchen.",
    "The captain wrote a letter to his brother.",
    "Mary went to the hallway.",
    "John picked up the apple there.",
    "The clock in the hall struck nine.",
    "Mary dropped the football.",
    "Sandra moved to the office.",
    "John dropped the apple.",
    "Nobody heard the door.",
]
QUESTION = "Where was the football before the kitchen?"
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer BERT of 32 dimensions."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_encoder")
    words = sorted({word.strip(".?").lower() for text in [*STORY, QUESTION] for word in text.split()})
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,?![]():-'")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + letter for letter in letters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        model_max_length=128,
    ).save_pretrained(folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tiny_encoder: Path) -> QRAGModel:
    """An untrained pair of the tiny encoder with relative positions."""
    return QRAGModel.from_encoder(tiny_encoder, positions="relative", output_scale=0.1, device="cpu")


@pytest.fixture(scope="session")
def corpus_model(tiny_encoder: Path) -> QRAGModel:
    """An untrained pair of the tiny encoder without positions."""
    return QRAGModel.from_encoder(tiny_encoder, positions="none", device="cpu")


@pytest.fixture(scope="session")
def model_folder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pair like ``model``."""
    folder = tmp_path_factory.mktemp("model") / "model"
    QRAGModel.from_encoder(tiny_encoder, positions="relative", output_scale=0.1).save_pretrained(folder)
    return folder


@pytest.fixture
def without_bars() -> Iterator[None]:
    """A command of its own process turns the bars of transformers off before it loads that; within tests it cannot."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A connection string of a real PostgreSQL with pgvector, made once for all tests."""
    pgserver = pytest.importorskip("pgserver", reason="pgserver has no wheel for this platform")
    # A short path: it holds a socket.
    with tempfile.TemporaryDirectory() as folder:
        server = pgserver.get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def shared() -> Path:
    """The folder of reference material beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("no reference material beside the repository")
    return SHARED


def pytest_addoption(parser: pytest.Parser) -> None:
    """Name the framework that the environment has, for one_framework.py."""
    parser.addoption("--framework", choices=["langchain", "llama_index", "both"], default="both")

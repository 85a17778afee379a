from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from qrag_retriever import QRAGModel
from qrag_retriever.encoders import Encoder, position_limit, shortened
from tests import architectures

TEXTS = ["rain fell.", "mary took the football to the kitchen", "", "a <s> b [SEP] c <eos> d", "x" * 40]


@pytest.fixture(scope="module", params=architectures.NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures.build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def plain(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def pair(folder: Path) -> QRAGModel:
    return QRAGModel.from_encoder(folder, device="cpu")


class TestEveryArchitecture:
    def test_without_picks_a_pair_is_dense_retrieval_with_its_encoder(
        self, plain: SentenceTransformer, pair: QRAGModel
    ) -> None:
        # The fourth text is left out: its special-token strings are plain characters here and not there.
        texts = [text for text in TEXTS if "<s>" not in text]
        names = plain.prompts or {}
        query, document = ("query" if names.get("query") else None), ("document" if names.get("document") else None)
        expected = plain.encode(texts, prompt_name=query)
        np.testing.assert_allclose(pair.encode_states(texts), expected, atol=1e-5)
        np.testing.assert_allclose(pair.encode_chunks(texts), plain.encode(texts, prompt_name=document), atol=1e-5)

    def test_special_tokens_stand_once_around_a_state(self, pair: QRAGModel) -> None:
        encoder = pair.state_encoder
        tokenizer = encoder.model.tokenizer
        tokens = encoder.tokenize([("a b", ["c [SEP] <eos> </s>", "d"])])[0]
        framed = tokenizer(pair.config.query_prompt + "a b")["input_ids"]
        separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        assert tokens.count(separator) == framed.count(separator) + 2
        assert tokens[-1] == framed[-1]
        if tokenizer.cls_token_id is not None and tokenizer.cls_token_id != separator:
            assert tokens.count(tokenizer.cls_token_id) == 1

    def test_batches_do_not_change_an_embedding(self, pair: QRAGModel) -> None:
        states = [(text, TEXTS[:count]) for count, text in enumerate(TEXTS)]
        together = pair.encode_states(states)
        alone = np.concatenate([pair.encode_states([state]) for state in states])
        np.testing.assert_allclose(together, alone, atol=1e-5)

    def test_the_position_table_limits_a_state(self, pair: QRAGModel) -> None:
        assert position_limit(pair.state_encoder.model) == 64
        long_state = ("where is it", ["word " * 30] * 5)
        tokens = pair.state_encoder.tokenize([long_state])[0]
        assert 55 < len(tokens) <= 64
        assert np.isfinite(pair.encode_states([long_state])).all()

    def test_num_layers_keeps_the_first_layers(self, folder: Path, plain: SentenceTransformer) -> None:
        short = QRAGModel.from_encoder(folder, num_layers=1, device="cpu")
        states = plain[0].auto_model(
            **{k: v for k, v in plain.tokenizer(["rain fell."], return_tensors="pt").items() if k != "token_type_ids"},
            output_hidden_states=True,
        )
        assert short.state_encoder.model[0].auto_model.config.num_hidden_layers == 1
        assert len(states.hidden_states) == 4
        assert not np.allclose(short.encode_chunks(["rain fell."]), plain.encode(["rain fell."]))

    def test_a_saved_pair_of_fewer_layers_loads_the_same(self, folder: Path, tmp_path: Path) -> None:
        short = QRAGModel.from_encoder(folder, num_layers=2, device="cpu")
        short.save_pretrained(tmp_path / "model")
        again = QRAGModel.from_pretrained(tmp_path / "model", device="cpu")
        np.testing.assert_allclose(again.encode_states(TEXTS), short.encode_states(TEXTS), atol=1e-6)
        assert again.config == short.config
        assert again.fingerprint() == short.fingerprint()

    def test_prompts_are_recorded(self, plain: SentenceTransformer, pair: QRAGModel) -> None:
        prompts = plain.prompts or {}
        assert pair.config.query_prompt == prompts.get("query", "")
        assert pair.config.document_prompt == prompts.get("document", "")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_shortening_fits_and_is_fair(lengths: list[int], limit: int) -> None:
    pieces = [list(range(length)) for length in lengths]
    kept = shortened(pieces, limit)
    assert sum(len(piece) for piece in kept) + len(kept) - 1 <= limit
    if sum(lengths) + len(lengths) - 1 <= limit:
        assert kept == pieces
    elif len(kept) > 1:
        assert kept[0] == pieces[0], "the query is shortened last"
        cut = [len(piece) for piece, full in zip(kept[1:], pieces[1:], strict=True) if len(piece) < len(full)]
        assert len(set(cut)) <= 1, "all chunks that are cut get the same share"
        assert all(len(piece) <= (cut[0] if cut else 10**9) for piece in kept[1:])


def test_too_many_chunks_are_counted_in_one_warning(model: QRAGModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="qrag_retriever.encoders"):
        model.encode_chunks(["word " * 200, "short", "word " * 300])
    ours = [record for record in caplog.records if record.name.startswith("qrag_retriever")]
    assert [record.getMessage()[:16] for record in ours] == ["2 of 3 chunks ar"]


def test_long_encodes_show_progress_when_asked(model: QRAGModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.encode_chunks(["rain fell."] * 20, show_progress=True)
    assert "encode" in capsys.readouterr().err
    model.encode_chunks(["rain fell."] * 20, show_progress=False)
    assert "encode" not in capsys.readouterr().err


def test_many_threads_may_encode_at_once(model: QRAGModel) -> None:
    texts = [f"chunk {i} " + "word " * (i % 17) for i in range(64)]
    expected = model.encode_chunks(texts)
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        results[number] = model.encode_chunks(texts)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results.values():
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_no_texts_give_an_empty_matrix(model: QRAGModel) -> None:
    assert model.encode_chunks([]).shape == (0, model.config.dim)
    assert model.encode_states([]).shape == (0, model.config.dim)


def test_an_encoder_without_a_transformer_is_refused(model: QRAGModel) -> None:
    class Bare:
        def eval(self) -> Bare:
            return self

        def __getitem__(self, place: int) -> object:
            return object()

    with pytest.raises(ValueError, match="starts with a transformer"):
        Encoder(Bare(), model.config)

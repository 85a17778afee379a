"""Bad input at the public entries: a clear error, and the object works as before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle
from pydantic import ValidationError

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, QRAGRetriever
from qrag_retriever.errors import (
    DuplicateIdError,
    IndexFolderError,
    ModelFolderError,
    ModelMismatchError,
    UnknownIdError,
)
from qrag_retriever.index_model import IndexModel
from qrag_retriever.records import Record
from tests.toy_model import DIM, ToyModel, embedding_of

STATE = embedding_of("a state")
EYE = np.eye(DIM, dtype=np.float32)
NAN = np.where(np.eye(4, DIM) == 1, np.nan, 0)

Call = Callable[[Any], Any]


def toy(count: int = 5) -> ChunkIndex:
    return ChunkIndex.from_texts([f"text {i}" for i in range(count)], None, [f"c{i}" for i in range(count)], ToyModel())


@pytest.fixture
def index() -> ChunkIndex:
    return toy()


@pytest.fixture
def retriever() -> QRAGRetriever:
    return QRAGRetriever(index=toy(), k=2)


# Making an index or a retriever

MAKING: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no texts": (lambda: ChunkIndex.from_texts([], model=ToyModel()), ValueError, "at least one chunk, got none"),
    "no texts, retriever": (lambda: QRAGRetriever.from_texts([], model=ToyModel()), ValueError, "at least one.*none"),
    "no documents": (lambda: QRAGRetriever.from_documents([], model=ToyModel()), ValueError, "at least one.*none"),
    "no nodes": (lambda: QRAGRetriever.from_defaults(nodes=[], model=ToyModel()), ValueError, "at least one.*none"),
    "nothing to retrieve from": (QRAGRetriever.from_defaults, ValueError, "exactly one of.*got none"),
    "one text": (lambda: ChunkIndex.from_texts("text", model=ToyModel()), TypeError, "sequence of texts.*str.*list"),
    "a text is a number": (lambda: ChunkIndex.from_texts(["a", 3], model=ToyModel()), TypeError, "text 1.*string.*int"),
    "a text is None": (lambda: QRAGRetriever.from_texts([None], model=ToyModel()), TypeError, "text 0.*NoneType"),
    "a text is half a character": (
        lambda: ChunkIndex.from_texts(["\ud800"], model=ToyModel()),
        ValueError,
        "surrogate",
    ),
    "documents are strings": (
        lambda: QRAGRetriever.from_documents(["a"], model=ToyModel()),
        TypeError,
        "document 0 is a str.*from_texts",
    ),
    "documents are one string": (
        lambda: QRAGRetriever.from_documents("text", model=ToyModel()),
        TypeError,
        "sequence of documents.*str",
    ),
    "ids twice": (
        lambda: ChunkIndex.from_texts(["a", "b"], ids=["x", "x"], model=ToyModel()),
        DuplicateIdError,
        "'x'.*twice",
    ),
    "ids are numbers": (
        lambda: ChunkIndex.from_texts(["a"], ids=[1], model=ToyModel()),
        TypeError,
        "id 0.*string.*int",
    ),
    "too few ids": (
        lambda: ChunkIndex.from_texts(["a", "b"], ids=["x"], model=ToyModel()),
        ValueError,
        "2 texts.*1 ids",
    ),
    "unknown mode": (
        lambda: ChunkIndex.from_texts(["a"], model=ToyModel(), mode="book"),
        ValueError,
        "'document' or 'corpus'.*'book'",
    ),
    "model of another kind": (lambda: ChunkIndex.from_texts(["a"], model=5), TypeError, "QRAGModel.*got int"),
    "index of another kind": (lambda: QRAGRetriever(index="index"), ValidationError, "ChunkIndex"),
    "embeddings of one dimension": (
        lambda: ChunkIndex.from_embeddings(np.ones(8)),
        ValueError,
        r"\(N, D\), got \(8,\)",
    ),
    "embeddings of three dimensions": (
        lambda: ChunkIndex.from_embeddings(np.ones((2, 2, 8))),
        ValueError,
        r"\(N, D\), got \(2, 2, 8\)",
    ),
    "embeddings of no components": (
        lambda: ChunkIndex.from_embeddings(np.ones((2, 0)), mode="corpus"),
        ValueError,
        r"\(N, D\), got \(2, 0\)",
    ),
    "embeddings with NaN": (lambda: ChunkIndex.from_embeddings(NAN), ValueError, "4 embeddings have NaN.*number 0"),
    "embeddings with inf": (lambda: ChunkIndex.from_embeddings(EYE / EYE[1]), ValueError, "NaN or infinite"),
    "embeddings that cannot be rotated": (
        lambda: ChunkIndex.from_embeddings(np.ones((2, 6))),
        ValueError,
        "divisible by 4, got 6",
    ),
    "more embeddings than texts": (lambda: ChunkIndex.from_embeddings(EYE, ["a"]), ValueError, "1 texts but 8 embed"),
    "more embeddings than ids": (lambda: ChunkIndex.from_embeddings(EYE, ids=["a"]), ValueError, "8 texts but 1 ids"),
    "embeddings of another dimension than the model's": (
        lambda: ChunkIndex.from_embeddings(np.ones((2, 16)), model=ToyModel()),
        ValueError,
        "dimension 16.*8",
    ),
    "unknown scan": (lambda: ChunkIndex.from_embeddings(EYE, scan="fast"), ValueError, "'mapped', got 'fast'"),
    "unknown scan of texts": (
        lambda: QRAGRetriever.from_texts(["a"], model=ToyModel(), scan="fast"),
        ValueError,
        "'mapped', got 'fast'",
    ),
    "unknown device": (lambda: ChunkIndex.from_embeddings(EYE, device="abacus"), ValueError, "device.*'abacus'"),
}


@pytest.mark.parametrize(("make", "error", "message"), MAKING.values(), ids=MAKING.keys())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nothing_is_made_of_bad_input(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("k", [0, -3, 1.5, "two", None])
def test_a_retriever_needs_a_sensible_k(k: Any) -> None:
    with pytest.raises(ValidationError, match=r"k\n"):
        QRAGRetriever(index=toy(), k=k)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"order": "best"}, "'retrieved' or 'document'"),
        ({"beam_width": 0}, "beam_width"),
        ({"min_q": "often"}, "min_q"),
        ({"min_q": "auto"}, "no calibrated min_q for document mode.*number or None"),
        ({"min_q": float("nan")}, "NaN"),
        ({"top": 4}, "no setting 'top'; there are k, similarity_top_k, min_q"),
        ({"beam_with": 4}, "no setting 'beam_with'; did you mean 'beam_width'"),
    ],
)
def test_a_retriever_names_a_bad_setting(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QRAGRetriever(index=toy(), **setting)


# Asking an index

ASKING: dict[str, tuple[Call, type[Exception], str]] = {
    "state of another dimension": (
        lambda i: i.top_k(np.ones(16), [], 1),
        ValueError,
        r"dimension 8, got shape \(1, 16\)",
    ),
    "states of another dimension": (
        lambda i: i.top_k(np.ones((2, 4)), [[], []], 1),
        ValueError,
        r"dimension 8, got shape \(2, 4\)",
    ),
    "states of three dimensions": (
        lambda i: i.top_k(np.ones((1, 1, 8)), [[]], 1),
        ValueError,
        r"dimension 8, got shape \(1, 1, 8\)",
    ),
    "a number for a state": (lambda i: i.top_k(np.float32(1), [], 1), ValueError, "dimension 8"),
    "state with NaN": (lambda i: i.top_k(STATE * np.nan, [], 1), ValueError, "NaN or infinite"),
    "state with inf": (lambda i: i.top_k(STATE + np.inf, [], 1), ValueError, "NaN or infinite"),
    "k of 0": (lambda i: i.top_k(STATE, [], 0), ValueError, "k must be at least 1, got 0"),
    "negative k": (lambda i: i.top_k(STATE, [], -1), ValueError, "k must be at least 1, got -1"),
    "k not whole": (lambda i: i.top_k(STATE, [], 1.5), TypeError, "k must be an integer, got 1.5"),
    "k a string": (lambda i: i.top_k(STATE, [], "2"), TypeError, "k must be an integer, got '2'"),
    "k None": (lambda i: i.top_k(STATE, [], None), TypeError, "k must be an integer, got None"),
    "pick beyond the end": (lambda i: i.top_k(STATE, [5], 1), ValueError, r"\[0, 5\), got \[5\]"),
    "negative pick": (lambda i: i.top_k(STATE, [-1], 1), ValueError, r"\[0, 5\), got \[-1\]"),
    "pick twice": (lambda i: i.top_k(STATE, [1, 1], 1), ValueError, r"distinct.*\[1, 1\]"),
    "picks of too few states": (lambda i: i.top_k(np.ones((2, 8)), [[1]], 1), ValueError, "2 states but 1 sequences"),
    "mask of another length": (
        lambda i: i.top_k(STATE, [], 1, np.ones(4, bool)),
        ValueError,
        r"mask of shape \(5,\), got bool of shape \(4,\)",
    ),
    "mask of numbers": (lambda i: i.top_k(STATE, [], 1, np.ones(5)), ValueError, "bool mask.*got float64"),
    "mask a list of the wrong length": (lambda i: i.top_k(STATE, [], 1, [True] * 4), ValueError, "mask"),
    "unknown id": (lambda i: i.delete(["nobody"]), UnknownIdError, r"unknown ids: \['nobody'\]"),
    "one id as a string": (lambda i: i.delete("c1"), TypeError, "sequence of ids.*'c1'.*list"),
    "unknown document": (lambda i: i.delete_document("nobody"), UnknownIdError, "'nobody'"),
    "adding an id twice": (
        lambda i: i.add_records([Record("x", "a"), Record("x", "b")]),
        DuplicateIdError,
        "'x'.*twice",
    ),
    "adding a number": (lambda i: i.add_records([Record("x", 5)]), TypeError, "text 0 must be a string, got int"),
    "adding half a character": (lambda i: i.add_records([Record("x", "\udc00")]), ValueError, "surrogate"),
}


@pytest.mark.parametrize(("ask", "error", "message"), ASKING.values(), ids=ASKING.keys())
def test_a_bad_request_leaves_the_index_as_it_was(
    index: ChunkIndex, ask: Call, error: type[Exception], message: str
) -> None:
    before = index.top_k(STATE, [1], 5)
    with pytest.raises(error, match=message):
        ask(index)
    assert index.ids == [f"c{i}" for i in range(5)]
    np.testing.assert_array_equal(index.top_k(STATE, [1], 5), before)


# Asking a retriever

BAD_QUERIES = {
    "empty": ("", ValueError, "query is empty"),
    "blank": (" \n\t", ValueError, "query is empty"),
    "None": (None, TypeError, "string, got NoneType"),
    "number": (5, TypeError, "string, got int"),
    "bytes": (b"what", TypeError, "string, got bytes"),
    "half a character": ("what \ud800", ValueError, "surrogate"),
}
ENTRIES: dict[str, Call] = {
    "search": lambda r: r.search,
    "search_many": lambda r: lambda query: r.search_many(["a good one", query]),
    "invoke": lambda r: r.invoke,
    "retrieve": lambda r: r.retrieve,
    "select": lambda r: MultiStepSelector(r.index).select,
}


# What is no string at all, LlamaIndex's own retrieve() refuses before it calls us.
ASKED = [
    pytest.param(entry, *bad, id=f"{name}: {what}")
    for name, entry in ENTRIES.items()
    for what, bad in BAD_QUERIES.items()
    if name != "retrieve" or isinstance(bad[0], str)
]


@pytest.mark.parametrize(("entry", "query", "error", "message"), ASKED)
def test_a_bad_query_is_an_error_of_its_own(
    retriever: QRAGRetriever, entry: Call, query: Any, error: type[Exception], message: str
) -> None:
    before = retriever.search("a good one").ids
    with pytest.raises(error, match=message):
        entry(retriever)(query)
    assert retriever.search("a good one").ids == before


REQUESTS: dict[str, tuple[Call, type[Exception], str]] = {
    "k of 0": (lambda r: r.search("q", k=0), ValueError, "k must be at least 1, got 0"),
    "k not whole": (lambda r: r.search("q", k=2.5), TypeError, "k must be an integer, got 2.5"),
    "k a string": (lambda r: r.search("q", k="2"), TypeError, "k must be an integer, got '2'"),
    "k a bool": (lambda r: r.search("q", k=True), TypeError, "k must be an integer, got True"),
    "k of invoke": (lambda r: r.invoke("q", k=-1), ValueError, "k must be at least 1, got -1"),
    "queries as one string": (lambda r: r.search_many("q"), TypeError, "sequence of queries.*list"),
    "unknown min_q": (lambda r: r.search("q", min_q="often"), ValueError, "'auto' or None, got 'often'"),
    "min_q without calibration": (lambda r: r.search("q", min_q="auto"), ValueError, "no calibrated min_q"),
    "filters of another kind": (lambda r: r.search("q", filters=5), TypeError, "MetadataFilters.*got int"),
    "HyDE of another dimension": (
        lambda r: r.retrieve(QueryBundle("q", embedding=[1.0] * 3)),
        ValueError,
        r"\(8,\), got \(3,\)",
    ),
    "HyDE with NaN": (lambda r: r.retrieve(QueryBundle("q", embedding=[float("nan")] * 8)), ValueError, "NaN"),
    "adding no string": (lambda r: r.add_texts([5]), TypeError, "text 0.*string.*int"),
    "adding one string": (lambda r: r.add_texts("text"), TypeError, "sequence of texts.*list"),
    "adding an id twice": (lambda r: r.add_texts(["a", "b"], ids=["x", "x"]), DuplicateIdError, "'x'"),
    "adding strings as documents": (lambda r: r.add_documents(["a"]), TypeError, "document 0 is a str.*from_texts"),
    "deleting nothing known": (lambda r: r.index.delete(["nobody"]), UnknownIdError, "nobody"),
    "deleting one string": (lambda r: r.delete("c1"), TypeError, "sequence of ids"),
    "deleting nothing": (lambda r: r.delete(), ValueError, "list of ids"),
    "deleting an unknown document": (lambda r: r.delete_ref_doc("nobody"), UnknownIdError, "nobody"),
}


@pytest.mark.parametrize(("ask", "error", "message"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_bad_request_leaves_the_retriever_as_it_was(
    retriever: QRAGRetriever, ask: Call, error: type[Exception], message: str
) -> None:
    before = retriever.search("a good one").ids
    with pytest.raises(error, match=message):
        ask(retriever)
    assert retriever.index.ids == [f"c{i}" for i in range(5)]
    assert retriever.search("a good one").ids == before


# Models

MODEL_CALLS: dict[str, tuple[Call, type[Exception], str]] = {
    "chunks as one string": (lambda m: m.encode_chunks("text"), TypeError, "sequence.*list"),
    "states as one string": (lambda m: m.encode_states("query"), TypeError, "sequence.*list"),
    "a chunk is a number": (lambda m: m.encode_chunks(["a", 5]), TypeError, "string.*int"),
    "a chunk is None": (lambda m: m.encode_chunks([None]), TypeError, "string.*NoneType"),
    "a query is a number": (lambda m: m.encode_states([("a", []), (5, [])]), TypeError, "string.*int"),
    "picks as one string": (lambda m: m.encode_states([("query", "chunk")]), TypeError, "sequence.*list"),
    "a pick is a number": (lambda m: m.encode_states([("query", [5])]), TypeError, "string.*int"),
    "a chunk is half a character": (lambda m: m.encode_chunks(["\ud800"]), ValueError, "surrogate"),
}


@pytest.mark.parametrize(("ask", "error", "message"), MODEL_CALLS.values(), ids=MODEL_CALLS.keys())
def test_bad_input_leaves_the_model_as_it_was(
    model: QRAGModel, ask: Call, error: type[Exception], message: str
) -> None:
    before = model.encode_chunks(["a text"])
    with pytest.raises(error, match=message):
        ask(model)
    np.testing.assert_array_equal(model.encode_chunks(["a text"]), before)


def test_nothing_to_encode_gives_nothing(model: QRAGModel) -> None:
    assert model.encode_chunks([]).shape == (0, 32)
    assert model.encode_states([]).shape == (0, 32)


def test_what_is_no_model_folder_says_so(tmp_path: Path, tiny_encoder: Path, model: QRAGModel) -> None:
    with pytest.raises(ModelFolderError, match=r"is not a model folder: it has no qrag_config\.json"):
        QRAGModel.from_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match=r"plain encoder.*from_encoder"):
        QRAGModel.from_pretrained(tiny_encoder)
    with pytest.raises(ModelFolderError, match="neither a folder nor a model"):
        QRAGModel.from_pretrained(tmp_path / "missing")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="positions"):
        QRAGModel.from_pretrained(tmp_path / "model", positions="sideways")
    (tmp_path / "model" / "qrag_config.json").write_text("{")
    with pytest.raises(ModelFolderError, match=r"qrag_config\.json cannot be read"):
        QRAGModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("compact", [False, True])
def test_truncated_weights_are_a_damaged_model_folder(tmp_path: Path, model: QRAGModel, compact: bool) -> None:
    model.save_pretrained(tmp_path / "model", compact=compact)
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ModelFolderError, match=str(tmp_path / "model")):
        QRAGModel.from_pretrained(tmp_path / "model", device="cpu").encode_chunks(["a"])


# Folders and what belongs together


@pytest.mark.parametrize("load", [ChunkIndex.load, QRAGRetriever.load, QRAGRetriever.from_persist_dir])
def test_foreign_and_truncated_index_folders_say_so(tmp_path: Path, load: Call) -> None:
    with pytest.raises(IndexFolderError, match=r"is not an index folder: it has no index\.sqlite"):
        load(tmp_path)
    with pytest.raises(IndexFolderError, match="is not an index folder"):
        load(tmp_path / "missing")
    toy().save(tmp_path / "index")
    (tmp_path / "index" / "vectors.f16").write_bytes(b"")
    with pytest.raises(IndexFolderError, match=r"is damaged.*cut short; restore it or build the index again"):
        load(tmp_path / "index")


@pytest.mark.parametrize("load", [ChunkIndex.load, QRAGRetriever.load])
def test_memory_limits_that_cannot_be_kept(tmp_path: Path, load: Call) -> None:
    index = toy()
    index.save(tmp_path / "index")
    for size in ("plenty", "-2GB", "", 0, -1):
        with pytest.raises(ValueError, match='memory_limit must be a positive number of bytes or a string like "2GB"'):
            load(tmp_path / "index", memory_limit=size)
    for size in (1.5e9, True, [1]):
        with pytest.raises(TypeError, match='memory_limit must be a number of bytes or a string like "2GB", got'):
            load(tmp_path / "index", memory_limit=size)
    said = rf"memory_limit is 100 bytes, but ids and order of {len(index)} chunks take about {180 * len(index):,}; set"
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "index", memory_limit="100 B")
    with pytest.raises(ValueError, match="a memory limit chooses the scan: leave scan at 'auto', got 'int8'"):
        load(tmp_path / "index", scan="int8", memory_limit="1GB")


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    QRAGRetriever(index=toy()).save(tmp_path / "index")
    with pytest.raises(ModelMismatchError, match=r"another model.*reindex=True"):
        QRAGRetriever.load(tmp_path / "index", model=ToyModel(seed=1))
    assert len(QRAGRetriever.load(tmp_path / "index", model=ToyModel()).search("q")) == 4


@pytest.mark.parametrize("error", [IndexFolderError, ModelFolderError, ModelMismatchError, DuplicateIdError])
def test_errors_are_value_errors_too(error: type[Exception]) -> None:
    assert issubclass(error, ValueError)


def test_an_unknown_id_is_a_key_error_with_a_readable_message(index: ChunkIndex) -> None:
    with pytest.raises(KeyError) as caught:
        index.delete(["nobody"])
    assert str(caught.value) == "unknown ids: ['nobody'] (1 in all); nothing was deleted"


def test_a_search_that_fails_in_the_encoder_leaves_everything_usable(retriever: QRAGRetriever) -> None:
    before = retriever.search("q").ids
    fine = retriever.index.model
    retriever.index._model = IndexModel(SimpleNamespace(config=fine.config))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        retriever.search("q")
    with pytest.raises(AttributeError):
        retriever.add_texts(["new"])
    retriever.index._model = IndexModel(fine)
    assert retriever.search("q").ids == before
    assert len(retriever.index) == 5


# Without the compiled extra


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "qrag_retriever.scan.kernels", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)


@pytest.mark.usefixtures("without_numba")
def test_a_missing_extra_names_the_line_that_installs_it() -> None:
    with pytest.raises(ImportError, match=r"'numba'.*pip install 'qrag-retriever\[fast\]'"):
        ChunkIndex.from_embeddings(EYE, scan="int8").top_k(STATE, [], 1)


@pytest.mark.usefixtures("without_numba")
def test_a_missing_extra_is_named_before_anything_is_embedded() -> None:
    with pytest.raises(ImportError, match=r"qrag-retriever\[fast\]"):
        ChunkIndex.from_texts(["a"], model=ToyModel(), scan="int8")


@pytest.mark.usefixtures("without_numba")
def test_a_missing_extra_is_not_needed_by_default() -> None:
    chunks = np.random.default_rng(0).standard_normal((3_000, DIM), np.float32)
    index = ChunkIndex.from_embeddings(chunks, mode="corpus")
    assert index.top_k(STATE, [], 1)[0].tolist() == [int((chunks @ STATE).argmax())]

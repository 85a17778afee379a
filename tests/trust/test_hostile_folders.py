"""Folders of models and indexes that somebody made to mislead: nothing runs, nothing outside of them is touched."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from qrag_retriever import QRAGModel
from qrag_retriever.checksums import CHECKSUMS_NAME
from qrag_retriever.config import CONFIG_NAME
from qrag_retriever.errors import IndexFolderError, ModelFolderError
from qrag_retriever.index import ChunkIndex
from qrag_retriever.model import ModelSource
from tests.conftest import STORY
from tests.index_folders import files_of, load, saved, set_settings, sql
from tests.trust.counts import time_limit
from tests.trust.test_hostile_input import anything, cases

GOLDEN = Path(__file__).parents[1] / "golden"
SECONDS = 60
HOSTILE_CODE = """
import pathlib
pathlib.Path(__file__).with_name("executed").write_text("code ran")
class Payload:
    @classmethod
    def load(cls, *arguments, **options):
        raise SystemExit("code ran")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a secret in it; nothing in it may be changed, and nothing that a payload makes may appear."""
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    # Code that a folder brings along could be imported from here.
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "payload.py").write_text(HOSTILE_CODE)
    yield tmp_path
    assert (tmp_path / "secret.json").read_text() == '{"secret": 1}'
    assert not list(tmp_path.rglob("executed*"))
    assert not list(tmp_path.rglob("evil*"))


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory, model: QRAGModel) -> Path:
    """A model folder in both forms, without the checksums that would give any change away."""
    folder = tmp_path_factory.mktemp("whole")
    for compact in (False, True):
        model.save_pretrained(folder / str(compact), compact=compact)
        (folder / str(compact) / CHECKSUMS_NAME).unlink()
    return folder


def embed(folder: Path) -> np.ndarray:
    with time_limit(SECONDS):
        return QRAGModel.from_pretrained(folder, device="cpu").encode_chunks(STORY[:1])


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(change(content)))


def modules(*changes: tuple[str, Any]) -> Callable[[Path], Any]:
    def damage(encoder: Path) -> None:
        change_json(encoder / "modules.json", lambda listed: [{**listed[0], **dict(changes)}, *listed[1:]])

    return damage


def settings_file(**changes: Any) -> Callable[[Path], Any]:
    return lambda encoder: change_json(encoder / "config.json", lambda content: {**content, **changes})


def header(content: Any, body: bytes = b"") -> bytes:
    raw = json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def weights(data: bytes) -> Callable[[Path], Any]:
    def damage(encoder: Path) -> None:
        # Of the compact form they lie one folder above.
        for path in (encoder / "model.safetensors", encoder.parent / "model.safetensors"):
            if path.exists():
                path.write_bytes(data)

    return damage


def own_code(encoder: Path) -> None:
    (encoder / "payload.py").write_text(HOSTILE_CODE)
    change_json(
        encoder / "config.json",
        lambda content: {
            **content,
            "model_type": "payload",
            "auto_map": {"AutoConfig": "payload.Payload", "AutoModel": "payload.Payload"},
        },
    )


def link(name: str, target: Callable[[Path], Path]) -> Callable[[Path], Any]:
    def damage(encoder: Path) -> None:
        (encoder / name).unlink(missing_ok=True)
        (encoder / name).symlink_to(target(encoder))

    return damage


HUGE = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
HOSTILE_ENCODERS: dict[str, Callable[[Path], Any]] = {
    "module of another package": modules(("type", "payload.Payload")),
    "module of the system": modules(("type", "os.system")),
    "module that is not there": modules(("type", "sentence_transformers.no_such_module.Gone")),
    "module that is a function": modules(("type", "sentence_transformers.util.import_from_string")),
    "module without a type": modules(("type", None)),
    "module elsewhere": modules(("path", "../../")),
    "module at an absolute place": modules(("path", "/etc")),
    "module at a number": modules(("path", 7)),
    "modules are no list": lambda encoder: (encoder / "modules.json").write_text('{"a": 1}'),
    "modules are numbers": lambda encoder: (encoder / "modules.json").write_text("[1]"),
    "modules are nested deeply": lambda encoder: (encoder / "modules.json").write_text("[" * 100_000),
    "no modules": lambda encoder: (encoder / "modules.json").write_text("[]"),
    "code of its own": own_code,
    "a billion layers": settings_file(num_hidden_layers=10**9),
    "layers below another key": settings_file(text_config={"num_hidden_layers": 10**9}),
    "a huge hidden size": settings_file(hidden_size=10**12),
    "a hidden size below zero": settings_file(hidden_size=-32),
    "heads that do not divide": settings_file(num_attention_heads=7),
    "a size that is text": settings_file(hidden_size="many"),
    "settings are a list": lambda encoder: (encoder / "config.json").write_text("[]"),
    "weights with a huge header": weights(struct.pack("<Q", 2**62) + b"{"),
    "weights with a huge tensor": weights(header({"embeddings.word_embeddings.weight": HUGE})),
    "weights that overlap": weights(
        header({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, b"\0" * 8)
    ),
    "weights of nothing": weights(header({})),
    "weights are a pickle": weights(pickle.dumps({"a": 1})),
    "a pickle beside them": lambda encoder: torch.save({}, encoder / "pytorch_model.bin"),
    "a link to a secret": link("config.json", lambda encoder: encoder.parents[1] / "secret.json"),
    "a link to the system": link("tokenizer.json", lambda _: Path("/etc/passwd")),
    "a link to a folder": link("more", lambda _: Path("/etc")),
    "a link to itself": link("tokenizer.json", lambda encoder: encoder / "tokenizer.json"),
    "tokenizer is no tokenizer": lambda encoder: (encoder / "tokenizer.json").write_text('{"model": {"type": "Evil"}}'),
}  # fmt: skip


@pytest.mark.parametrize("compact", [False, True], ids=["two folders", "compact"])
@pytest.mark.parametrize("damage", HOSTILE_ENCODERS.values(), ids=HOSTILE_ENCODERS.keys())
def test_a_hostile_model_folder_is_refused(
    place: Path, whole_model: Path, damage: Callable[[Path], Any], compact: bool
) -> None:
    folder = place / "model"
    shutil.copytree(whole_model / str(compact), folder)
    damage(folder / ("encoder" if compact else "action_encoder"))
    with pytest.raises(ModelFolderError, match="model"):
        embed(folder)


def test_code_of_a_tokenizer_does_not_run(place: Path, whole_model: Path) -> None:
    folder = place / "model"
    shutil.copytree(whole_model / "False", folder)
    expected = embed(folder)
    encoder = folder / "action_encoder"
    (encoder / "payload.py").write_text(HOSTILE_CODE)
    hostile = {"tokenizer_class": "Payload", "auto_map": {"AutoTokenizer": ["payload.Payload", "payload.Payload"]}}
    change_json(encoder / "tokenizer_config.json", lambda content: {**content, **hostile})
    np.testing.assert_array_equal(embed(folder), expected)


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "..\\evil", "state_encoder/../../evil", "state_encoder/a/../../../evil", ""]
)
def test_tensors_cannot_be_put_outside(place: Path, whole_model: Path, name: str) -> None:
    folder = place / "model"
    shutil.copytree(whole_model / "True", folder)
    for shared in ({}, {f"{name}.safetensors::b": "state_encoder/model.safetensors::a"}):
        tensors = {"state_encoder/model.safetensors::a" if shared else f"{name}.safetensors::a": torch.zeros(1)}
        save_file(tensors, folder / "model.safetensors", metadata={"shared": json.dumps(shared)})
        with pytest.raises(ModelFolderError, match="unexpected tensor name"):
            embed(folder)
    for shared_text in ("[1]", "7", "{", '{"a": 1}', '{"state_encoder/m.safetensors::a": null}'):
        save_file({}, folder / "model.safetensors", metadata={"shared": shared_text})
        with pytest.raises(ModelFolderError, match=str(folder)):
            embed(folder)


def test_the_hub_s_own_links_are_followed(place: Path, whole_model: Path) -> None:
    snapshot, blobs = place / "models--a--b" / "snapshots" / "0", place / "models--a--b" / "blobs"
    shutil.copytree(whole_model / "False", snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        shutil.move(path, blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert embed(snapshot).shape == (1, 32)
    (blobs / "0").unlink()
    (blobs / "0").symlink_to(place / "secret.json")
    with pytest.raises(ModelFolderError):
        embed(snapshot)


def test_a_plain_encoder_of_other_code_is_refused(place: Path, whole_model: Path) -> None:
    shutil.copytree(whole_model / "False" / "state_encoder", place / "encoder")
    modules(("type", "payload.Payload"))(place / "encoder")
    with pytest.raises(ModelFolderError, match=r"payload\.Payload.*trust_remote_code=True"):
        QRAGModel.from_encoder(place / "encoder", device="cpu")


@cases
@given(content=anything, name=st.sampled_from(["dim", "positions", "min_q", "pooling", "stride", "query_prompt", "x"]))
def test_any_configuration_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, whole_model: Path, content: Any, name: str
) -> None:
    folder = tmp_path_factory.mktemp("configuration", numbered=True)
    own = json.loads((whole_model / "False" / CONFIG_NAME).read_text())
    for value in (content, {**own, name: content}):
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            continue
        (folder / CONFIG_NAME).write_text(text)
        try:
            QRAGModel.from_pretrained(folder)
        except ModelFolderError as error:
            message = str(error)
        else:
            continue
        assert CONFIG_NAME in message


# Checkpoints of the paper's code


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["QRAG_TEST_PAYLOAD"],)


def torch_zip(path: Path, content: bytes) -> None:
    """Write a file as torch does, with a pickle of one's own in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model_last/data.pkl", content)
        archive.writestr("model_last/version", "3\n")
        archive.writestr("model_last/byteorder", "little")


PICKLES: dict[str, Callable[[Path], Any]] = {
    "plain": lambda path: path.write_bytes(pickle.dumps({"critic": Payload()})),
    "of torch": lambda path: torch.save({"critic": Payload()}, path),
    "of torch, old": lambda path: torch.save({"critic": Payload()}, path, _use_new_zipfile_serialization=False),
    "in an archive": lambda path: torch_zip(path, pickle.dumps({"critic": Payload()})),
    "below a tensor": lambda path: torch.save({"critic": {"a": torch.ones(1), "b": [Payload()]}}, path),
    "every protocol": lambda path: path.write_bytes(b"".join(pickle.dumps(Payload(), protocol=n) for n in range(6))),
    "a call by name": lambda path: path.write_bytes(b"cos\nsystem\n(S'mkdir $QRAG_TEST_PAYLOAD'\ntR."),
    "no dict": lambda path: torch.save([1, 2], path),
    "critic is no dict": lambda path: torch.save({"critic": 7}, path),
    "names are no text": lambda path: torch.save({"critic": {7: torch.ones(1)}}, path),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no weights"),
}


@pytest.mark.parametrize("write", PICKLES.values(), ids=PICKLES.keys())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_never_executed(place: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any]) -> None:
    monkeypatch.setenv("QRAG_TEST_PAYLOAD", str(place / "executed"))
    for name in ("checkpoint", "tiny_bert"):
        shutil.copytree(GOLDEN / name, place / name)
    assert embed(place / "checkpoint").shape[0] == 1
    write(place / "checkpoint" / "model_last.pt")
    with pytest.raises(ModelFolderError, match="checkpoint"):
        embed(place / "checkpoint")


def test_the_payload_would_be_executed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRAG_TEST_PAYLOAD", str(place / "made"))
    pickle.loads(pickle.dumps(Payload()))
    assert (place / "made").is_dir()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [executed]",
        "a: &a [*a]",
        "[" * 10_000,
        "algo: 7",
        "\xff",
        "",
        "algo: {model: {model_name: ../../../../etc, predictor: {input_dim: x}}}",
        "envs: {positions_processor: ${envs.positions_processor}}",
    ],
)
def test_settings_of_a_checkpoint_run_nothing(place: Path, text: str) -> None:
    shutil.copytree(GOLDEN / "checkpoint", place / "checkpoint")
    (place / "checkpoint" / "config.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ModelFolderError, match=r"config\.yaml"):
        embed(place / "checkpoint")


@pytest.mark.parametrize("value", ["0", "10000000000", "many", "[1]", "null"])
def test_the_number_of_layers_of_a_checkpoint_is_checked(place: Path, value: str) -> None:
    for name in ("checkpoint", "tiny_bert"):
        shutil.copytree(GOLDEN / name, place / name)
    path = place / "checkpoint" / "config.yaml"
    path.write_text(path.read_text().replace("num_layers: 2", f"num_layers: {value}"))
    with pytest.raises(ModelFolderError, match="num_layers"):
        embed(place / "checkpoint")


def test_the_encoder_of_a_checkpoint_runs_no_code(place: Path) -> None:
    for name in ("checkpoint", "tiny_bert"):
        shutil.copytree(GOLDEN / name, place / name)
    own_code(place / "tiny_bert")
    with pytest.raises(ModelFolderError, match="tiny_bert"):
        embed(place / "checkpoint")


# Index folders, with checksums that are right


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors_file": "../evil.f16"},
        {"vectors_file": "/tmp/evil.f16"},
        {"vectors_file": "vectors.f16\n"},
        {"vectors_file": None},
        {"dim": 0},
        {"dim": "8"},
        {"dim": 2**62},
        {"num_rows": -1},
        {"num_rows": 2**61},
        {"num_chunks": 7},
        {"mode": "sideways"},
        {"model": []},
        {"model": {}},
        {"retriever": 7},
        {"unknown": 1},
        {"version": "1"},
        {"generation": 1.5},
    ],
    ids=str,
)
def test_hostile_settings_of_an_index_are_refused(place: Path, changes: dict[str, Any]) -> None:
    saved(place / "index", 5)
    set_settings(place / "index", lambda values: values.update(changes))
    before = files_of(place / "index")
    with time_limit(SECONDS), pytest.raises(IndexFolderError, match=str(place / "index")):
        ChunkIndex.load(place / "index")
    assert files_of(place / "index") == before


@cases
@given(content=anything, name=st.sampled_from(["dim", "mode", "model", "retriever", "num_rows", "vectors_file", "x"]))
def test_any_settings_of_an_index_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: Any, name: str
) -> None:
    try:
        json.dumps(content).encode()
    except (TypeError, ValueError):
        return
    # One folder for all cases, with all its settings set each time.
    folder = tmp_path_factory.getbasetemp() / "settings" / "index"
    if not folder.exists():
        saved(folder, 2)
        set_settings(folder, lambda values: (folder.parent / "settings.json").write_text(json.dumps(values)))
    own = json.loads((folder.parent / "settings.json").read_text())
    set_settings(folder, lambda values: (values.clear(), values.update({**own, name: content})))
    try:
        index = ChunkIndex.load(folder)
        index.get(index.ids)
    except IndexFolderError:
        return
    assert len(index) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW more AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
        "CREATE TRIGGER t AFTER INSERT ON chunks BEGIN UPDATE records SET text = 'evil'; END",
        "CREATE TABLE more (a)",
        "ALTER TABLE deleted ADD COLUMN more AS (hex(id))",
        "DROP INDEX valid_ids",
    ],
)
def test_a_database_with_more_than_an_index_has_is_refused(place: Path, statement: str) -> None:
    saved(place / "index", 5)
    sql(statement)(place / "index")
    with time_limit(SECONDS), pytest.raises(IndexFolderError, match="tables are not those of an index"):
        load(place / "index")


def test_a_view_in_place_of_a_table_is_refused(place: Path) -> None:
    saved(place / "index", 5)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS value, x AS checksum FROM n"
    sql("DROP TABLE settings")(place / "index")
    sql(f"CREATE VIEW settings AS {endless} ORDER BY x")(place / "index")
    with time_limit(SECONDS), pytest.raises(IndexFolderError, match="tables are not those of an index"):
        load(place / "index")


@pytest.mark.parametrize(
    "options",
    [
        {"trust_remote_code": True},
        {"model_kwargs": {"trust_remote_code": True}},
        {"model_kwargs": {"weights_only": False, "use_safetensors": False}},
        {"cache_folder": "/tmp/evil"},
        {"modules": []},
        {"backend": "onnx"},
        {"token": "mine"},
    ],
    ids=str,
)
def test_an_index_cannot_ask_for_trust(place: Path, tiny_encoder: Path, options: dict[str, Any]) -> None:
    index = ChunkIndex.from_texts(STORY, model=QRAGModel.from_encoder(tiny_encoder, device="cpu"))
    index.save(place / "index")
    set_settings(place / "index", lambda values: values["model"]["source"].update(options=options))
    with pytest.raises(ModelFolderError, match=f"{next(iter(options))}, which is not taken from a file; pass model="):
        ChunkIndex.load(place / "index").model  # loads it  # noqa: B018


def test_what_an_index_may_not_ask_for_is_not_kept(tiny_encoder: Path) -> None:
    with_options = QRAGModel.from_encoder(tiny_encoder, device="cpu", model_kwargs={"attn_implementation": "eager"})
    assert with_options.source is None
    assert ModelSource("encoder", str(tiny_encoder), {"num_layers": 1}).load("cpu").config.dim == 32

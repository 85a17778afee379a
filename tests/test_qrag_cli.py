"""qrag: from files to an index, questions, what is in it, deletions; exit codes, pipes and terminals."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import qrag_retriever
from qrag_retriever import ChunkIndex, QRAGModel, QRAGRetriever
from qrag_retriever.cli.main import main
from qrag_retriever.default_model import BUNDLED
from qrag_retriever.embedding_cache import EmbeddingCache
from tests.conftest import QUESTION, STORY
from tests.qrag_files import pdf_of
from tests.training_runs import files_of

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a story as chunks and as a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.jsonl").write_text("".join(json.dumps(text) + "\n" for text in STORY))
    (tmp_path / "story.txt").write_text(" ".join(STORY))
    return tmp_path


@pytest.fixture
def story(folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The index of the story."""
    assert main(["index", "story.jsonl", "-o", "story.qrag", "--model", str(model_folder)]) == 0
    capsys.readouterr()
    return Path("story.qrag")


def said_of_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that is said of an error."""
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("qrag: ")
    return line


# index


def test_a_text_becomes_chunks_of_one_document(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["index", "story.txt", "-o", "out/story.qrag", "--model", str(model_folder), "--chunk-tokens", "14"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    index = ChunkIndex.load("out/story.qrag")
    assert re.fullmatch(rf"out/story\.qrag: {len(index)} chunks of 1 document, document mode, \d+\.\d s\n", said.out)
    assert said.err == ""
    assert index.ids == [f"story.txt:{number}" for number in range(1, len(index) + 1)]
    records = index.get(index.ids)
    assert " ".join(record.text for record in records) == " ".join(STORY)
    assert {record.document_id for record in records} == {"story.txt"}
    tokens = [len(index.model.action_encoder.token_ids(record.text)) for record in records]
    assert max(tokens) <= 14 < sum(tokens)


def test_files_of_many_kinds_become_documents_with_their_places(folder: Path, model_folder: Path) -> None:
    pdf_of(folder / "rain.pdf", ["Rain fell.", "John dropped the apple."])
    assert main(["index", ".", "-o", "all.qrag", "--model", str(model_folder)]) == 0
    index = ChunkIndex.load("all.qrag")
    assert index.mode == "corpus"
    found = {(r.metadata["source"], r.metadata.get("page")) for r in index.get(index.ids)}
    assert found == {("rain.pdf", 1), ("rain.pdf", 2), ("story.jsonl", None), ("story.txt", None)}


def test_what_was_embedded_is_kept_where_it_is_asked_for(
    story: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(model_folder), "--cache", "kept.sqlite"]
    assert main(["index", "story.txt", "-o", "new.qrag", *common, "--workers", "2"]) == 0
    count = len(EmbeddingCache("kept.sqlite"))
    assert count == len(ChunkIndex.load("new.qrag"))
    assert main(["index", "story.jsonl", "-o", "new.qrag", *common, "--append"]) == 0
    assert len(EmbeddingCache("kept.sqlite")) > count
    capsys.readouterr()
    assert main(["index", "story.txt", "-o", "other.qrag", "--cache", "story.txt"]) == 1
    assert "story.txt is no embedding cache" in said_of_error(capsys)


def test_the_mode_can_be_chosen_and_an_index_replaced(story: Path, model_folder: Path) -> None:
    arguments = ["index", "story.txt", "-o", "story.qrag", "--model", str(model_folder), "--mode", "corpus"]
    assert main(arguments) == 0
    index = ChunkIndex.load(story)
    assert index.mode == "corpus"
    assert index.ids[0] == "story.txt:1"


def test_a_foreign_place_is_refused_before_anything_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "foreign").mkdir()
    (folder / "foreign" / "letter.txt").write_text("dear")
    before = files_of(folder)
    for place in ("foreign", "story.txt"):
        assert main(["index", "story.jsonl", "-o", place, "--model", "/no/such/model"]) == 1
        assert said_of_error(capsys).startswith(f"qrag: {place} exists and holds something else")
    assert files_of(folder) == before


def test_a_bad_file_is_named_and_nothing_written_unless_it_is_to_be_skipped(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.txt").write_bytes(b"caf\xe9")
    (folder / "empty.md").write_text("")
    files = ["bad.txt", "story.txt", "empty.md"]
    arguments = ["index", *files, "-o", "some.qrag", "--model", str(model_folder)]
    before = files_of(folder)
    assert main(arguments) == 1
    assert capsys.readouterr().err.splitlines() == [
        "bad.txt: not valid UTF-8 at byte 3; save it as UTF-8",
        "empty.md: there is no text in it",
        "qrag: nothing was written (--skip-bad leaves bad files out): 2 files cannot be read",
    ]
    assert files_of(folder) == before
    assert main([*arguments, "--skip-bad"]) == 0
    said = capsys.readouterr()
    *left_out, advice = said.err.splitlines()
    assert [line.split(":")[1] for line in left_out] == [" bad.txt", " empty.md"]
    assert "make chunks smaller, with --chunk-tokens 16" in advice
    assert "of 1 document" in said.out
    assert main(["index", "bad.txt", "-o", "none.qrag", "--skip-bad"]) == 1
    assert said_of_error(capsys).startswith("qrag: nothing was written: bad.txt: ")
    assert not (folder / "none.qrag").exists()


def test_files_can_be_added_but_no_text_twice(
    story: Path, folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["index", "story.txt", "-o", "story.qrag", "--append"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert re.search(r"\d+ chunks? added or updated, \d+ chunks in all, document mode", said.out)
    assert "story.qrag is in document mode, as one text; where documents are loose, make it anew" in said.err
    index = ChunkIndex.load(story)
    assert set(index.view.layout.chunks_of_document) == {"story.jsonl", "story.txt"}
    assert main(arguments) == 1
    assert "story.txt is in" in said_of_error(capsys)
    # A line is an update of itself.
    lines = (folder / "story.jsonl").read_text().splitlines()
    (folder / "story.jsonl").write_text("\n".join([json.dumps("Mary flew."), *lines[1:], json.dumps("The end.")]))
    assert main(["index", "story.jsonl", "-o", "story.qrag", "--append", "--mode", "document"]) == 0
    records = ChunkIndex.load(story).get(["story.jsonl:1", "story.jsonl:13"])
    assert [record.text for record in records] == ["Mary flew.", "The end."]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--append", "--mode", "corpus"], "story.qrag is in document mode, got --mode corpus"),
        (["--append", "--model", "BUNDLED"], "was built by another model"),
        (["--chunk-tokens", "4000", "--append"], "the model reads 126 tokens of a chunk, got --chunk-tokens 4000"),
    ],
)
def test_what_does_not_fit_the_index_is_said_and_changes_nothing(
    story: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], words: str
) -> None:
    bundled = str(Path(qrag_retriever.__file__).parent / "bundled")
    before = ChunkIndex.load(story).ids
    given = [bundled if one == "BUNDLED" else one for one in arguments]
    assert main(["index", "story.txt", "-o", "story.qrag", *given]) == 1
    assert words in said_of_error(capsys)
    assert ChunkIndex.load(story).ids == before


def test_an_id_that_occurs_twice_is_said_before_anything_is_embedded(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("embedded")

    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text('{"text": "a", "id": "same"}\n')
    monkeypatch.setattr(QRAGModel, "encode_chunks", refuse)
    assert main(["index", "a.jsonl", "b.jsonl", "-o", "x.qrag", "--model", str(model_folder)]) == 1
    assert "'same' occurs twice" in said_of_error(capsys)


def test_nothing_can_be_added_to_what_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "story.txt", "-o", "none.qrag", "--append"]) == 1
    assert "none.qrag is no index to add to; leave --append out" in said_of_error(capsys)
    assert not (folder / "none.qrag").exists()


# ask


def test_json_is_what_the_retriever_finds(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--k", "3", "--beam-width", "2", "--min-q", "-100", "--filter", "source=story.jsonl", "--json"]
    assert main(["ask", "story.qrag", QUESTION, *options]) == 0
    said = capsys.readouterr()
    selection = QRAGRetriever.load(story, k=3, beam_width=2, min_q=-100.0).search(QUESTION)
    assert json.loads(said.out) == json.loads(json.dumps(selection.to_dict()))
    assert said.err == ""


def test_hops_are_shown_with_their_places(
    story: Path, folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pdf_of(folder / "rain.pdf", ["Rain fell.", " ".join(STORY)])
    assert main(["index", "rain.pdf", "-o", "rain.qrag", "--model", str(model_folder), "--chunk-tokens", "126"]) == 0
    capsys.readouterr()
    assert main(["ask", "rain.qrag", "Who dropped it?", "--filter", "page=2", "--k", "1"]) == 0
    first, hop, *text, why = capsys.readouterr().out.splitlines()
    assert first == "Who dropped it?"
    assert re.fullmatch(r"  1\. Q [+-]\d+\.\d{3}  rain\.pdf, page 2  \[rain\.pdf:2\]", hop)
    assert " ".join(line.strip() for line in text).startswith(f"{STORY[0]} {STORY[1]}")
    assert text[-1].endswith("...")
    assert why.strip() == "1 chunk, as many as asked for"
    assert main(["ask", "rain.qrag", "Who dropped it?", "--filter", "page=2", "--k", "1", "--full"]) == 0
    assert "..." not in capsys.readouterr().out


def test_a_search_that_stops_says_why(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "story.qrag", QUESTION, "--min-q", "1e6"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].strip() == "0 chunks; no other is worth it (min_q)"
    assert main(["ask", "story.qrag", QUESTION, "--k", "100"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].strip() == f"{len(STORY)} chunks; no other is left"
    assert main(["ask", "story.qrag", QUESTION, "--filter", "sorce=story.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].strip().startswith("0 chunks; no chunk passes the filter")


def test_filters_of_one_key_are_alternatives(story: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"text": text, "id": str(i), "metadata": {"n": i, "s": str(i)}} for i, text in enumerate(STORY)]
    (folder / "n.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["index", "n.jsonl", "-o", "story.qrag", "--append"]) == 0
    for given, expected in (
        (["n=1", "n=2"], {"1", "2"}),
        (["s=3"], {"3"}),
        (["n=4", "s=5"], set()),
        (["document_id=n.jsonl", "n=6"], {"6"}),
    ):
        capsys.readouterr()
        filters = [part for one in given for part in ("--filter", one)]
        assert main(["ask", "story.qrag", QUESTION, "--json", *filters]) == 0
        assert {step["id"] for step in json.loads(capsys.readouterr().out)["steps"]} == expected


def test_questions_come_from_a_file_or_from_the_standard_input(
    story: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "questions.txt").write_text("\ufeffWho came?\n\n  Who left?  \n", encoding="utf-8")
    assert main(["ask", "story.qrag", "--questions", "questions.txt", "--json"]) == 0
    assert [json.loads(line)["query"] for line in capsys.readouterr().out.splitlines()] == ["Who came?", "Who left?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who came\nback?\n"))
    assert main(["ask", "story.qrag", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["query"] == "Who came\nback?"
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who came?\nWho left?\n"))
    assert main(["ask", "story.qrag", "--questions", "-", "--json"]) == 0
    assert [json.loads(line)["query"] for line in capsys.readouterr().out.splitlines()] == ["Who came?", "Who left?"]
    assert main(["ask", "story.qrag", "-"]) == 1
    assert said_of_error(capsys) == "qrag: expected a question on the standard input, got nothing"


def test_a_page_of_the_hops_is_written(story: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "story.qrag", QUESTION, "--html", "hops.html", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["query"] == QUESTION
    assert told.err == "hops.html: the hops as a page, for any browser\n"
    assert QUESTION in (folder / "hops.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.qrag", "Who?"], "none.qrag is not an index folder"),
        (["story.qrag", "--questions", "none.txt"], "none.txt: No such file or directory"),
        (["story.qrag", "Who?", "--html", "no/such.html"], "there is no folder no to write such.html to"),
        (["story.qrag", " "], "query"),
        (["story.qrag", "Who?", "--min-q", "auto"], "min_q"),
        (["story.qrag", "--questions", "none.txt"], "none.txt"),
        (["story.qrag", "Who?", "--device", "quantum"], "expected a torch device"),
        (["story.qrag", "Who?", "--model", "/no/such/model"], "/no/such/model"),
        (
            ["story.qrag", "Who?", "--model", str(BUNDLED)],
            "; leave --model out, or make the index anew with qrag index",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    story: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], words: str
) -> None:
    assert main(["ask", *arguments]) == 1
    assert words in said_of_error(capsys)


def test_colours_are_for_terminals_alone(
    story: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(is_terminal: bool, **variables: str) -> str:
        with monkeypatch.context() as patch:
            patch.delenv("NO_COLOR", raising=False)
            patch.setenv("TERM", "xterm")
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(sys.stdout, "isatty", lambda: is_terminal)
            assert main(["show", "story.qrag"]) == 0
        return capsys.readouterr().out

    plain = shown(False)
    assert "\x1b" not in plain
    assert "\x1b[1mstory.qrag\x1b[0m" in shown(True)
    assert shown(True, NO_COLOR="1") == shown(True, TERM="dumb") == plain


# show


def test_an_index_is_shown(story: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "story.qrag"]) == 0
    name, *lines = capsys.readouterr().out.splitlines()
    assert name == "story.qrag"
    rows = {line[2:11].strip(): line[11:] for line in lines if line[2:11].strip()}
    assert rows["holds"] == f"{len(STORY)} chunks of 1 document"
    assert rows["mode"] == "document"
    fingerprint = QRAGModel.from_pretrained(model_folder).fingerprint()[:12]
    assert rows["model"] == f"{model_folder} (dimension 32, fingerprint {fingerprint})"
    assert re.fullmatch(r"\d\.\d MB", rows["on disk"])
    assert abs(time.time() - _seconds(rows["changed"])) < 3600
    assert lines[-1].strip() == f"story.jsonl: {len(STORY)} chunks"


def _seconds(shown: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(shown).timestamp()


def test_all_chunks_are_listed(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "story.qrag", "--chunks"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line]
    assert lines == [[str(i), f"story.jsonl:{i + 1}", text] for i, text in enumerate(STORY)]


def test_a_check_reads_everything(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sqlite3

    assert main(["show", "story.qrag", "--check"]) == 0
    assert "all texts and vectors match their checksums" in capsys.readouterr().out
    connection = sqlite3.connect(story / "index.sqlite")
    with connection:
        connection.execute("UPDATE records SET text = 'other' WHERE row = 3")
    connection.close()
    assert main(["show", "story.qrag"]) == 0
    capsys.readouterr()
    assert main(["show", "story.qrag", "--check"]) == 1
    assert "the checksum of the text of chunk 'story.jsonl:4' does not match" in capsys.readouterr().err


def test_models_are_named_by_where_they_came_from(folder: Path, capsys: pytest.CaptureFixture[str], model: Any) -> None:
    import numpy as np

    ChunkIndex.from_embeddings(np.eye(3, 4), ["a", "b", "c"]).save("bare.qrag")
    ChunkIndex.from_texts(["a"], model=model).save("untrained.qrag")
    ChunkIndex.from_texts(["a"], model=QRAGModel.from_encoder(model.action_encoder.model)).save("memory.qrag")
    for name, words in {
        "bare": "none: the index was built from embeddings",
        "untrained": "untrained pair of /",
        "memory": "one that was never saved (dimension 32",
    }.items():
        assert main(["show", f"{name}.qrag"]) == 0
        assert f"model    {words}" in capsys.readouterr().out


# delete


def test_chunks_and_documents_are_deleted_together_or_not_at_all(
    story: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", "story.txt", "-o", "story.qrag", "--append"]) == 0
    capsys.readouterr()
    before = ChunkIndex.load(story).ids
    for arguments in (["--id", "nobody"], ["--document", "nobody"]):
        assert main(["delete", "story.qrag", "--id", "story.jsonl:1", *arguments]) == 1
        assert "nobody" in said_of_error(capsys)
        assert ChunkIndex.load(story).ids == before
    arguments = ["--id", "story.jsonl:1", "story.jsonl:2", "--id", "story.jsonl:3", "--document", "story.txt"]
    assert main(["delete", "story.qrag", *arguments]) == 0
    left = [f"story.jsonl:{number}" for number in range(4, len(STORY) + 1)]
    assert capsys.readouterr().out == f"story.qrag: {len(before) - len(left)} chunks deleted, {len(left)} chunks left\n"
    assert ChunkIndex.load(story).ids == left


def test_deleted_texts_are_gone_from_the_disk_when_asked(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete", "story.qrag", "--id", "story.jsonl:1"]) == 0
    assert STORY[0].encode() in (story / "index.sqlite").read_bytes()
    assert main(["show", "story.qrag"]) == 0
    assert "1 chunk of it deleted or replaced (qrag delete --purge)" in capsys.readouterr().out
    assert main(["delete", "story.qrag", "--purge"]) == 0
    assert STORY[0].encode() not in b"".join(files_of(story).values())
    assert main(["show", "story.qrag"]) == 0
    assert "deleted" not in capsys.readouterr().out.partition("\n")[2]
    assert QRAGRetriever.load(story).search(QUESTION).steps


# The command itself


def test_the_command_is_installed() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'qrag = "{main.__module__}:{main.__name__}"' in project


@pytest.mark.parametrize("command", ["index", "ask", "show", "delete", "eval"])
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"examples:\n  qrag {command} " in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"qrag-retriever {qrag_retriever.__version__}\n"


def test_an_option_that_is_not_known_is_told_with_the_nearest_of_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["ask", "story.qrag", "Who?", "--min_q", "0.2"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: qrag ask ")
    assert "unrecognized arguments: --min_q 0.2; did you mean --min-q?" in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["index"],
        ["index", "story.txt"],
        ["index", "story.txt", "-o", "x", "--chunk-tokens", "0"],
        ["ask", "story.qrag"],
        ["ask", "story.qrag", "Who?", "--questions", "x"],
        ["ask", "story.qrag", "Who?", "--k", "0"],
        ["ask", "story.qrag", "Who?", "--min-q", "much"],
        ["ask", "story.qrag", "Who?", "--filter", "x"],
        ["ask", "story.qrag", "--questions", "x", "--html", "y"],
        ["delete", "story.qrag"],
        ["eval"],
        ["eval", "--data", "x", "--held-out", "2"],
        ["eval", "--data", "x", "--held-out", "1", "--curve"],
        ["eval", "--data", "x", "--budget-minutes", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: qrag" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_completion_script_knows_commands_options_and_files(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", shell])
    assert not left.value.code
    script = capsys.readouterr().out
    for word in ("index", "ask", "show", "delete", "eval", "beam-width"):
        assert word in script
    assert {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "/f/'"}[shell] in script


def test_completion_without_its_package_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", "bash"])
    assert left.value.code == 1
    assert "shtab" in said_of_error(capsys)


# Real processes


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


COMMAND = [sys.executable, "-m", "qrag_retriever.cli"]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return _finished([*COMMAND, *arguments], **variables)


def _finished(command: Sequence[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, check=False, capture_output=True, env=environment(**variables), timeout=120)


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["show", "story.qrag", "--check"]], ids=" ".join)
def test_what_needs_no_model_loads_no_torch(story: Path, arguments: Sequence[str]) -> None:
    code = (
        "import sys\nfrom qrag_retriever.cli.main import main\n"
        f"try:\n    main({list(arguments)})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'langchain_core', 'llama_index', 'faiss'}\n"
        "sys.exit(str(loaded) if (loaded := heavy & set(sys.modules)) else 0)"
    )
    done = _finished([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_errors_of_a_process_are_one_line_and_their_exit_codes_1_and_2(folder: Path) -> None:
    wrong, usage = run("show", "none.qrag"), run("show")
    assert (wrong.returncode, usage.returncode) == (1, 2)
    assert wrong.stdout == b""
    assert (
        wrong.stderr.decode() == f"qrag: {folder / 'none.qrag'} is not an index folder: there is nothing of that name\n"
    )


def test_ascii_terminals_get_escapes(folder: Path, model: QRAGModel) -> None:
    ChunkIndex.from_texts(["Le café fermé."], [{"source": "é.txt"}], ["ü"], model).save("french.qrag")
    done = run("show", "french.qrag", "--chunks", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert b"0\t\\xfc\tLe caf\\xe9 ferm\\xe9." in done.stdout
    assert done.stderr == b""


def test_json_stays_json_on_an_ascii_terminal(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "french.txt").write_text("Le café fermé.", encoding="utf-8")
    assert main(["index", "french.txt", "-o", "french.qrag", "--model", str(model_folder)]) == 0
    for encoding in ("ascii", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert main(["ask", "french.qrag", "Où?", "--json"]) == 0
        raw = stream.buffer.getvalue()  # type: ignore[attr-defined]
        assert json.loads(raw.decode(encoding))["steps"][0]["text"] == "Le café fermé."
        assert (b"\\u00e9" in raw) == (encoding == "ascii")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_closed_pipe_is_no_error(folder: Path, model: QRAGModel) -> None:
    texts = [f"{i} {STORY[i % len(STORY)]}" for i in range(3000)]
    ChunkIndex.from_embeddings(model.encode_chunks(["a"]).repeat(len(texts), 0), texts).save("long.qrag")
    with subprocess.Popen(
        [*COMMAND, "show", "long.qrag", "--chunks"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_is_exit_code_130() -> None:
    code = (
        # What runs in the background of a shell ignores Ctrl-C, and so do its children.
        "import signal, sys, time\nfrom qrag_retriever.cli.main import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Slow:\n    def read(self):\n        print('waiting', flush=True)\n        time.sleep(60)\n"
        "sys.stdin = Slow()\nsys.exit(main(['ask', 'story.qrag', '-']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == b""


def test_control_characters_of_a_document_do_not_reach_the_terminal(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"text": "esc \x1b[31mred\x07", "id": "x\ny\tz"}
    (folder / "c.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert main(["index", "c.jsonl", "-o", "c.qrag", "--model", str(model_folder)]) == 0
    capsys.readouterr()
    assert main(["show", "c.qrag", "--chunks"]) == 0
    shown_id = "x\N{SYMBOL FOR LINE FEED}y\N{SYMBOL FOR HORIZONTAL TABULATION}z"
    shown_text = "esc \N{SYMBOL FOR ESCAPE}[31mred\N{SYMBOL FOR BELL}"
    assert capsys.readouterr().out.splitlines()[-1] == f"0\t{shown_id}\t{shown_text}"
    for more in ([], ["--full"]):
        assert main(["ask", "c.qrag", "what?", *more]) == 0
        said = capsys.readouterr().out
        assert "\x1b[31m" not in said
        assert f"[{shown_id}]" in said


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_a_file_whose_name_is_not_unicode_is_named_and_can_be_left_out(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "good.txt").write_text("It rained.", encoding="utf-8")
    Path(os.fsdecode(b"caf\xe9.txt")).write_text("It snowed.", encoding="utf-8")
    assert main(["index", ".", "-o", "e.qrag", "--model", str(model_folder)]) == 1
    assert "caf\\udce9.txt: its name has a lone surrogate" in capsys.readouterr().err
    assert main(["index", ".", "-o", "e.qrag", "--skip-bad", "--model", str(model_folder)]) == 0
    assert "left out: caf\\udce9.txt" in capsys.readouterr().err

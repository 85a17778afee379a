"""Files of every kind: their text, their places, and what is said of a bad one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qrag_retriever.cli.files import READERS, Piece, find_files, read_file, records_of_file
from qrag_retriever.errors import DataError
from tests.qrag_files import docx_of, pdf_of


def texts_of(path: Path) -> list[str]:
    return [piece.text for piece in read_file(path)]


# What is found


def test_folders_are_read_at_any_depth_in_order_and_without_what_is_hidden_or_foreign(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.md", "a/.d.txt", ".e/f.txt", "g.exe", "h.PDF"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found, left_out = find_files([tmp_path, tmp_path / "a" / "c.md"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b.txt", "h.PDF", "a/c.md"]
    assert left_out == {".exe": 1}


def test_a_named_file_is_found_once_whatever_its_kind_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.exe"
    path.write_text("x")
    assert find_files([path, tmp_path / "." / "x.exe"]) == ([path], {})
    with pytest.raises(DataError, match=r"none\.txt is missing"):
        find_files([path, tmp_path / "none.txt"])
    with pytest.raises(DataError, match=r"no file of a known kind \(\.txt"):
        find_files([tmp_path])


# What is read


def test_plain_text_comes_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfOne caf\xc3\xa9.\r\nTwo.")
    assert read_file(tmp_path / "a.md") == [Piece("One café.\nTwo.")]


def test_a_pdf_has_a_piece_for_each_page_with_text(tmp_path: Path) -> None:
    path = pdf_of(tmp_path / "a.pdf", ["Mary took the football.", "", "Rain fell."])
    assert read_file(path) == [Piece("Mary took the football.", {"page": 1}), Piece("Rain fell.", {"page": 3})]


def test_a_word_document_is_read(tmp_path: Path) -> None:
    assert "\n".join(texts_of(docx_of(tmp_path / "a.docx", ["One.", "Two."]))).split() == ["One.", "Two."]


def test_a_page_of_the_web_is_read_as_one_sees_it_in_its_own_encoding(tmp_path: Path) -> None:
    page = "<html><head>%s<style>b {}</style></head><body><p>A <b>caf</b>é.</p><script>x()</script></body></html>"
    (tmp_path / "a.html").write_text(page % "", encoding="utf-8")
    (tmp_path / "b.htm").write_text(page % '<meta charset="iso-8859-1">', encoding="iso-8859-1")
    (tmp_path / "c.htm").write_text(page % "", encoding="iso-8859-1")
    for name in ("a.html", "b.htm", "c.htm"):
        assert [text.strip() for text in texts_of(tmp_path / name)] == ["A café."]


def test_a_line_of_json_is_a_chunk_with_its_own_id_and_metadata_or_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ["just text", {"text": "with more", "id": "m", "metadata": {"year": 3}}, {"text": "third"}]
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\r\n", encoding="utf-8")
    name = path.as_posix()
    assert read_file(path) == [
        Piece("just text", {}, f"{name}:1", is_chunk=True),
        Piece("with more", {"year": 3}, "m", is_chunk=True),
        Piece("third", {}, f"{name}:5", is_chunk=True),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("3", "line: expected a string, got int 3"),
        ('""', "line: expected a string that is not blank"),
        ("{}", "text: expected a string, got null"),
        ('{"text": "a", "txt": 1}', "unknown key 'txt'; expected text, id, metadata; did you mean 'text'?"),
        (
            '{"text": "a", "year": 3}',
            "unknown key 'year'; expected text, id, metadata; put what else is known of the chunk into 'metadata'",
        ),
        ('{"text": "a", "id": 7}', "id: expected a string, got int 7"),
        ('{"text": "a", "metadata": [1]}', "metadata: expected an object, got list"),
        ('{"text": "a", "metadata": {"b": NaN}}', "metadata['b'] is nan, which JSON does not have"),
        ('{"text": "a", "metadata": {"b": "\\ud800"}}', "metadata['b'] has a lone surrogate"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'"good"\n{line}\n')
    with pytest.raises(DataError) as raised:
        read_file(tmp_path / "a.jsonl")
    assert str(raised.value).startswith(f"{tmp_path / 'a.jsonl'}, line 2: {words}")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"caf\xe9", "not valid UTF-8 at byte 3; save it as UTF-8"),
        ("a.txt", b"a\0b", "it has NUL bytes, so it is no text"),
        ("a.md", b" \n", "there is no text in it"),
        ("a.pdf", b"no pdf", "not readable as pdf: Stream has ended unexpectedly (PdfStreamError)"),
        ("a.docx", b"no zip", "not readable as docx: File is not a zip file (BadZipFile)"),
        ("a.html", b"", "there is no text in it"),
        ("a.exe", b"x", ".exe is not of a known kind: .txt"),
        ("a", b"x", "a name without an ending is not of a known kind"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_file(tmp_path / name)
    assert str(raised.value).startswith(f"{tmp_path / name}: ")
    assert words in str(raised.value)


def test_a_parser_that_fails_without_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> list[Piece]:
        raise AssertionError

    monkeypatch.setitem(READERS, ".pdf", fail)
    with pytest.raises(DataError, match=r"a\.pdf: not readable as pdf: damaged \(AssertionError\)"):
        read_file(tmp_path / "a.pdf")


def test_half_a_character_is_named_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, ".pdf", lambda path: [Piece("a\ud800")])
    with pytest.raises(DataError, match=r"a\.pdf: its text has a lone surrogate at character 1"):
        read_file(tmp_path / "a.pdf")


def test_a_scanned_pdf_is_said_to_need_ocr(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="they need OCR first"):
        read_file(pdf_of(tmp_path / "a.pdf", [""]))


def test_a_missing_package_is_no_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(ImportError, match="pypdf"):
        read_file(pdf_of(tmp_path / "a.pdf", ["text"]))


# Chunks


def test_the_path_names_the_document_and_the_chunks_unless_a_line_names_others() -> None:
    pieces = [Piece("a b", {"page": 1}), Piece("c", {"page": 2})]
    records = records_of_file(Path("x/y.pdf"), pieces, str.split)
    assert [(record.id, record.text, record.metadata["page"]) for record in records] == [
        ("x/y.pdf:1", "a", 1), ("x/y.pdf:2", "b", 1), ("x/y.pdf:3", "c", 2),
    ]  # fmt: skip
    assert (
        {record.document_id for record in records} == {record.metadata["source"] for record in records} == {"x/y.pdf"}
    )
    (own,) = records_of_file(Path("z.jsonl"), [Piece("a b", {"document_id": 7}, "me", is_chunk=True)], str.split)
    assert (own.id, own.text, own.document_id) == ("me", "a b", "7")


def test_what_cannot_be_split_is_named() -> None:
    def split(text: str) -> list[str]:
        raise ValueError("too long")

    with pytest.raises(DataError, match=r"a\.txt: it cannot be split: too long"):
        records_of_file(Path("a.txt"), [Piece("a")], split)

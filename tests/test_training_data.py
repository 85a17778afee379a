"""JSON lines: what is read is what was written, and what is wrong is named by file, line and reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrag_retriever.errors import DataError
from qrag_retriever.sentences import locate, make_splitter, split_sentences
from qrag_retriever.training import data
from qrag_retriever.training.data import JsonLines, Sample

RANDOM = np.random.default_rng(0)
CHUNKS = {"id": "a", "question": "Where?", "chunks": ["In the hall.", "Out.", "Nowhere."], "supporting": [2, 0]}
DOCUMENT = {"question": "Who?", "document": "Ann came in. Bob sat down. Carl left early.", "supporting": [[13, 16]]}
in_a_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(folder: Path, *lines: Any) -> Path:
    """Write a file of dicts, texts or bytes, a line each."""
    path = folder / "mine.jsonl"
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def open_words(path: Path, chunk_words: int = 5) -> JsonLines:
    return JsonLines(path, chunk_tokens=chunk_words, count_tokens=str.split)


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def test_chunks_are_read_as_they_are(tmp_path: Path) -> None:
    source = JsonLines(write(tmp_path, {**CHUNKS, "answers": [["hall", "the hall"], ["nowhere"]]}))
    assert source.name == "mine"
    assert len(source) == 1
    assert source.sample(0, RANDOM) == Sample(
        "a", "Where?", ("In the hall.", "Out.", "Nowhere."), (0, 2), (("hall", "the hall"), ("nowhere",)), "document"
    )


def test_what_may_be_missing_is_none(tmp_path: Path) -> None:
    source = JsonLines(write(tmp_path, "", without(CHUNKS, "id", "supporting")), name="ours", mode="corpus")
    sample = source.sample(0, RANDOM)
    assert (source.name, sample.id, sample.mode) == ("ours", "mine.jsonl:2", "corpus")
    assert sample.supporting is None
    assert sample.answers is None
    assert open_words(write(tmp_path, without(DOCUMENT, "supporting"))).sample(0, RANDOM).supporting is None


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    lines = [json.dumps({**CHUNKS, "id": str(i)}).encode() for i in range(3)]
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n  \r\n" + lines[1] + b"\r\n" + lines[2])
    source = JsonLines(path)
    assert [source.sample(i, RANDOM).id for i in range(len(source))] == ["0", "1", "2"]


def test_a_document_is_split_by_sentences(tmp_path: Path) -> None:
    sample = open_words(write(tmp_path, DOCUMENT), 4).sample(0, RANDOM)
    assert sample.chunks == ("Ann came in.", "Bob sat down.", "Carl left early.")
    assert sample.supporting == (1,)


@pytest.mark.parametrize(
    ("spans", "supporting"),
    [
        ([[0, 12]], (0,)),
        ([[11, 13]], (0,)),  # the last of a sentence and the blank behind it
        ([[12, 14]], (1,)),
        ([[11, 14]], (0, 1)),
        ([[0, 43]], (0, 1, 2)),
        ([[27, 28], [0, 1]], (0, 2)),
    ],
)
def test_a_span_supports_every_chunk_that_it_overlaps(tmp_path: Path, spans: Any, supporting: Any) -> None:
    source = open_words(write(tmp_path, {**DOCUMENT, "supporting": spans}), 4)
    assert source.sample(0, RANDOM).supporting == supporting


def test_a_repeated_sentence_is_found_at_its_own_place(tmp_path: Path) -> None:
    document = "It rained. It snowed. It rained. It snowed."
    source = open_words(write(tmp_path, {**DOCUMENT, "document": document, "supporting": [[33, 42]]}), 2)
    assert source.sample(0, RANDOM).supporting == (3,)


def test_spans_count_characters_not_bytes(tmp_path: Path) -> None:
    document = "Ünïcödé 😀😀 is. Here it is."
    start = document.index("Here")
    source = open_words(write(tmp_path, {**DOCUMENT, "document": document, "supporting": [[start, start + 1]]}), 3)
    assert [source.sample(0, RANDOM).chunks[i] for i in source.sample(0, RANDOM).supporting or ()] == ["Here it is."]


def test_punctuation_that_the_splitter_loses_moves_no_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex 0.12's SentenceSplitter drops repeated punctuation where it cuts a long sentence."""
    monkeypatch.setattr(data, "make_splitter", lambda *_: lambda _: ["a, b;", "c", "a, b;", "d"])
    document = "a,, b;;;; c;; a, b;; d"
    for span, supporting in (
        ([7, 9], (0,)),
        ([9, 11], (1,)),
        ([14, 16], (2,)),
        ([19, 20], (2,)),
        ([2, 22], (0, 1, 2, 3)),
    ):
        source = JsonLines(write(tmp_path, {**DOCUMENT, "document": document, "supporting": [span]}))
        sample = source.sample(0, RANDOM)
        assert sample.chunks == ("a,, b;", "c", "a, b;", "d")  # as the document has them
        assert sample.supporting == supporting


def test_pieces_are_located_although_characters_are_lost() -> None:
    assert locate("a,, b. a, b.", ["a, b.", "a, b."]) == [(0, 6), (7, 12)]
    with pytest.raises(ValueError, match="does not come from the text"):
        locate("abc", ["abd"])


@in_a_tmp_path
@given(
    document=st.text(st.sampled_from("ab cd,.;!?\n\u3000é😀"), min_size=1, max_size=120).filter(str.strip),
    choose=st.data(),
    chunk_words=st.integers(1, 6),
)
def test_spans_and_chunks_agree(tmp_path: Path, document: str, choose: st.DataObject, chunk_words: int) -> None:
    start = choose.draw(st.sampled_from([i for i, character in enumerate(document) if not character.isspace()]))
    end = choose.draw(st.integers(start + 1, len(document)))
    sample = open_words(write(tmp_path, {**DOCUMENT, "document": document, "supporting": [[start, end]]}), chunk_words)
    chunks, supporting = sample.sample(0, RANDOM).chunks, sample.sample(0, RANDOM).supporting or ()
    bounds = locate(document, chunks)
    assert [document[first:last] for first, last in bounds] == list(chunks)
    overlapped = tuple(i for i, (first, last) in enumerate(bounds) if first < end and start < last)
    assert supporting == overlapped or (not overlapped and len(supporting) == 1)


@in_a_tmp_path
@given(
    records=st.lists(
        st.tuples(
            st.text(min_size=1, max_size=20).filter(str.strip),
            st.lists(st.text(min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=5),
            st.randoms(use_true_random=False),
        ),
        min_size=1,
        max_size=6,
    ),
    ascii_only=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n", "\n\n \n"]),
)
def test_what_is_written_is_read(tmp_path: Path, records: Any, ascii_only: bool, ending: str) -> None:
    expected = []
    for i, (question, chunks, choose) in enumerate(records):
        supporting = choose.sample(range(len(chunks)), choose.randint(1, len(chunks)))
        expected.append(Sample(f"q{i}", question, tuple(chunks), tuple(sorted(supporting)), ((question,),)))
    lines = [
        json.dumps(
            {
                "id": sample.id,
                "question": sample.question,
                "chunks": sample.chunks,
                "supporting": sample.supporting,
                "answers": sample.answers,
            },
            ensure_ascii=ascii_only,
        )
        for sample in expected
    ]
    path = tmp_path / "written.jsonl"
    path.write_bytes(ending.join(lines).encode())
    source = JsonLines(path)
    assert [source.sample(i, RANDOM) for i in reversed(range(len(source)))] == expected[::-1]


@in_a_tmp_path
@given(place=st.integers(0, 120), value=st.binary(max_size=3))
def test_damage_is_a_data_error_and_nothing_else(tmp_path: Path, place: int, value: bytes) -> None:
    raw = json.dumps({**CHUNKS, "answers": [["hall"]]}).encode()
    path = write(tmp_path, raw[:place] + value + raw[place + 1 :])
    try:
        source = JsonLines(path)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        for i in range(len(source)):
            sample = source.sample(i, RANDOM)
            assert all(0 <= chunk_id < len(sample.chunks) for chunk_id in sample.supporting or ())


BAD = {
    "not JSON": ('{"question": ', "not JSON", "expected JSON in each line"),
    "not an object": ("[1, 2]", "expected a JSON object", "got list [1, 2]"),
    "unknown key": ({**CHUNKS, "suporting": [1]}, "unknown key 'suporting'", "did you mean 'supporting'?"),
    "key twice": ('{"question": "a", "question": "b", "chunks": ["c"]}', "key 'question' occurs twice"),
    "no question": (without(CHUNKS, "question"), "the key 'question' is missing", "the line has 'id', 'chunks'"),
    "no chunks": (without(CHUNKS, "chunks"), "neither 'chunks' nor 'document'"),
    "both": ({**CHUNKS, "document": "a"}, "both 'chunks' and 'document'"),
    "empty chunks": ({**CHUNKS, "chunks": []}, "chunks: expected a list with something in it", "got list []"),
    "chunks a text": ({**CHUNKS, "chunks": "abc"}, "chunks: expected a list, got str 'abc'"),
    "chunk a number": ({**CHUNKS, "chunks": ["a", 2]}, "chunks[1]: expected a string, got int 2"),
    "chunk blank": ({**CHUNKS, "chunks": ["a", " "]}, "chunks[1]: expected a string that is not blank"),
    "question a number": ({**CHUNKS, "question": 1}, "question: expected a string, got int 1"),
    "question null": ({**CHUNKS, "question": None}, "question: expected a string, got null"),
    "question blank": ({**CHUNKS, "question": " \n"}, "question: expected a string that is not blank"),
    "id a number": ({**CHUNKS, "id": 3}, "id: expected a string, got int 3"),
    "id blank": ({**CHUNKS, "id": ""}, "id: expected a string that is not blank"),
    "surrogate": ('{"question": "\\ud800", "chunks": ["a"]}', "question has a lone surrogate at character 0"),
    "surrogate in a chunk": ('{"question": "q", "chunks": ["a", "b\\udfff"]}', "chunks[1] has a lone surrogate"),
    "index too high": ({**CHUNKS, "supporting": [3]}, "supporting[0]: expected an index from 0 to 2", "got int 3"),
    "index negative": ({**CHUNKS, "supporting": [-1]}, "supporting[0]", "got int -1"),
    "index repeated": ({**CHUNKS, "supporting": [0, 1, 0]}, "supporting[2]: expected every index once, got int 0"),
    "index a bool": ({**CHUNKS, "supporting": [True]}, "supporting[0]: expected an integer", "got bool True"),
    "index a float": ({**CHUNKS, "supporting": [1.0]}, "supporting[0]: expected an integer", "got float 1.0"),
    "index a text": ({**CHUNKS, "supporting": ["1"]}, "supporting[0]: expected an integer", "got str '1'"),
    "index huge": ('{"question": "q", "chunks": ["a"], "supporting": [' + "9" * 5000 + "]}", "line 2"),
    "supporting empty": (
        {**CHUNKS, "supporting": []},
        "supporting: expected a list with something",
        "leave the key out",
    ),
    "supporting null": ({**CHUNKS, "supporting": None}, "supporting: expected a list, got null"),
    "supporting a span": ({**CHUNKS, "supporting": [[0, 1]]}, "supporting[0]: expected an integer, the index"),
    "document blank": ({**DOCUMENT, "document": " "}, "document: expected a string that is not blank"),
    "span an index": ({**DOCUMENT, "supporting": [1]}, "supporting[0]: expected two integers [start, end]"),
    "span of three": ({**DOCUMENT, "supporting": [[1, 2, 3]]}, "supporting[0]: expected two integers"),
    "span of floats": ({**DOCUMENT, "supporting": [[0, 1.5]]}, "supporting[0]: expected two integers"),
    "span of bools": ({**DOCUMENT, "supporting": [[False, True]]}, "supporting[0]: expected two integers"),
    "span reversed": ({**DOCUMENT, "supporting": [[5, 2]]}, "0 <= start < end <= 43, the document's length", "[5, 2]"),
    "span empty": ({**DOCUMENT, "supporting": [[5, 5]]}, "0 <= start < end", "[5, 5]"),
    "span too long": ({**DOCUMENT, "supporting": [[5, 44]]}, "0 <= start < end <= 43", "[5, 44]"),
    "span negative": ({**DOCUMENT, "supporting": [[-1, 4]]}, "0 <= start < end", "[-1, 4]"),
    "span blank": ({**DOCUMENT, "supporting": [[12, 13]]}, "expected a span that is not blank"),
    "span repeated": ({**DOCUMENT, "supporting": [[0, 3], [0, 3]]}, "supporting[1]: expected every span once"),
    "spans empty": ({**DOCUMENT, "supporting": []}, "supporting: expected a list with something in it"),
    "answers a text": ({**CHUNKS, "answers": "hall"}, "answers: expected a list, got str 'hall'"),
    "answers flat": ({**CHUNKS, "answers": ["hall"]}, "answers[0]: expected a list, got str 'hall'"),
    "answers empty": ({**CHUNKS, "answers": []}, "answers: expected a list with something in it"),
    "no alias": ({**CHUNKS, "answers": [["a"], []]}, "answers[1]: expected a list with something in it"),
    "alias empty": ({**CHUNKS, "answers": [["a", ""]]}, "answers[0][1]: expected a string that is not blank"),
    "alias a number": ({**CHUNKS, "answers": [[1842]]}, "answers[0][0]: expected a string, got int 1842"),
    "not UTF-8": (b'{"question": "\xff"}', "not valid UTF-8 at byte 14"),
    "two objects": ("{} {}", "not JSON", "Extra data"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "gzip": (b"\x1f\x8b\x08\x00", "not valid UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named(tmp_path: Path, case: str) -> None:
    line, *reasons = BAD[case]
    path = write(tmp_path, {**CHUNKS, "id": "good"}, line)
    with pytest.raises(DataError) as caught:
        JsonLines(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert all(reason in message for reason in reasons), message
    assert len(message) < 500


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: the id 'a' is that of line 1 too"):
        JsonLines(write(tmp_path, CHUNKS, without(CHUNKS, "id"), CHUNKS))


def test_a_file_without_lines_is_an_error(tmp_path: Path) -> None:
    for raw in (b"", b"\xef\xbb\xbf", b" \n\r\n"):
        (tmp_path / "empty.jsonl").write_bytes(raw)
        with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
            JsonLines(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl is missing"):
        JsonLines(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        JsonLines(tmp_path)


def test_settings_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, CHUNKS)
    with pytest.raises(ValueError, match="mode must be one of document, corpus, got 'docs'"):
        JsonLines(path, mode="docs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1"):
        JsonLines(path, chunk_tokens=0)
    for number in (-1, 1):
        with pytest.raises(IndexError, match="questions 0 to 0"):
            JsonLines(path).sample(number, RANDOM)


def swapped(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], lines[2], lines[1]]) + b"\n")


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\n" + path.read_bytes()),
        Path.unlink,
    ],
)
def test_a_file_that_changed_gives_no_wrong_sample(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    path = write(tmp_path, *({**CHUNKS, "id": str(i)} for i in range(3)))
    source = JsonLines(path)
    change(path)
    with pytest.raises(DataError, match=r"line 2: the file was changed|is missing"):
        source.sample(1, RANDOM)


def test_lines_that_are_appended_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, CHUNKS, without(CHUNKS, "id"))
    source = JsonLines(path)
    before = [source.sample(i, RANDOM) for i in range(2)]
    path.write_bytes(path.read_bytes() + b"anything\n")
    assert [source.sample(i, RANDOM) for i in range(2)] == before


def test_only_places_are_kept(tmp_path: Path) -> None:
    """A file of long lines leaves five numbers a line behind."""
    source = JsonLines(write(tmp_path, *({**without(CHUNKS, "id"), "chunks": ["long " * 2000] * 3} for _ in range(50))))
    held = [value for value in vars(source).values() if isinstance(value, np.ndarray)]
    assert [(value.dtype, value.shape) for value in held] == [(np.int64, (3, 50)), (np.uint64, (2, 50))]
    assert not any(isinstance(value, (list, tuple, set)) for value in vars(source).values())
    assert source.sample(49, RANDOM).id == "mine.jsonl:50"


def test_hashes_tell_the_same_question_and_the_same_document(tmp_path: Path) -> None:
    lines = [
        {"question": question, **text}
        for question, text in (
            ("Who?", {"chunks": ["a b", "c"]}),
            ("Where?", {"chunks": ["a b", "c"]}),
            ("Who?", {"chunks": ["a", "b c"]}),
            ("When?", {"document": "A day. A night."}),
            ("Where?", {"document": "A day. A night."}),
        )
    ]
    questions, documents = JsonLines(write(tmp_path, *lines)).hashes()
    assert (questions[:, None] == questions).tolist() == [[a == b for b in "wxwyx"] for a in "wxwyx"]
    assert (documents[:, None] == documents).tolist() == [[a == b for b in "ssabb"] for a in "ssabb"]


def test_a_document_is_split_once(tmp_path: Path) -> None:
    counted = []

    def count(text: str) -> list[str]:
        counted.append(text)
        return text.split()

    source = JsonLines(write(tmp_path, DOCUMENT), chunk_tokens=4, count_tokens=count)
    assert not counted  # not while the file is checked
    first, calls = source.sample(0, RANDOM), len(counted)
    assert source.sample(0, RANDOM) == first
    assert len(counted) == calls > 0


def test_a_document_that_cannot_be_split_is_named(tmp_path: Path) -> None:
    source = JsonLines(write(tmp_path, DOCUMENT), chunk_tokens=1, count_tokens=lambda text: "ab" * len(text))
    with pytest.raises(DataError, match=r"line 1: the document cannot be split into 1 tokens"):
        source.sample(0, RANDOM)


def test_documents_are_split_by_default_without_a_download(tmp_path: Path) -> None:
    sample = JsonLines(write(tmp_path, DOCUMENT)).sample(0, RANDOM)
    assert sample.chunks == (DOCUMENT["document"],)
    assert sample.supporting == (0,)


def test_a_missing_splitter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_index.core.node_parser", None)
    with pytest.raises(ImportError, match="pip install llama-index-core"):
        JsonLines(write(tmp_path, DOCUMENT))
    JsonLines(write(tmp_path, CHUNKS))
    with pytest.raises(ImportError, match="pip install llama-index-core"):
        make_splitter(4)


def test_sentences_know_abbreviations() -> None:
    text = 'Mr. Smith met Dr. Brown at 5 p.m. in town. "Well," he said. * * * . Then it rained!'
    assert split_sentences(text) == [
        "Mr. Smith met Dr. Brown at 5 p.m. in town.",
        '"Well," he said.',
        "Then it rained!",
    ]

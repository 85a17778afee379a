from __future__ import annotations

import base64
import hashlib
import itertools
import json
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, Selection, Step
from qrag_retriever.hops.map_data import Packing
from qrag_retriever.hops.wording import clipped, signed, visible
from qrag_retriever.trace import Hop
from tests.conftest import QUESTION, STORY
from tests.long_document import NUM_CHUNKS, long_index

HOSTILE = (
    "</script><script>window.taken = 1</script>",
    "</style><img src=x onerror='window.taken = 2'>",
    '" onmouseover="window.taken = 3" x="',
    "{{ 7 * 7 }} {% raw %} ${7 * 7}",
    "<!-- <script> ]]> &lt;b&gt; &#60;",
    "NUL \x00 bell \x07 escape \x1b[31m",
    "\u202eright to left \u2066 unclosed \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
)
EMPTY_TAGS = {"meta", "link", "img", "br", "hr", "input", "path", "rect", "circle"}


class Page(HTMLParser):
    """A page taken apart: its elements in order, what they hold, and whether all were closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute of {tag} occurs twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY_TAGS:
            self._open.append(tag)
            self.content.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.content[self._open[-1]][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.elements if attribute in attributes]


@pytest.fixture(scope="module")
def index(model: QRAGModel) -> ChunkIndex:
    metadatas = [{"document_id": "odd" if i % 2 else "even", "number": i} for i in range(len(STORY))]
    return ChunkIndex.from_texts(STORY, metadatas, ids=[f"s{i}" for i in range(len(STORY))], model=model)


@pytest.fixture(scope="module")
def story(model: QRAGModel) -> Selection:
    return MultiStepSelector(ChunkIndex.from_texts(STORY, model=model), k=3).select(QUESTION)


@pytest.fixture(scope="module")
def hostile(model: QRAGModel) -> Selection:
    metadatas: list[Any] = [{text: [text, object()], 5: "\ud800"} for text in HOSTILE]
    index = ChunkIndex.from_texts(HOSTILE, metadatas, ids=list(HOSTILE), model=model)
    return MultiStepSelector(index, k=len(HOSTILE) - 1).select(" ".join(HOSTILE))


def page_of(selection: Selection, folder: Path) -> str:
    return selection.to_html(folder / "hops.html").read_text(encoding="utf-8")


def map_of(text: str) -> dict[str, Any]:
    scripts = Page(text).content["script"]
    found: dict[str, Any] = json.loads(scripts[0])
    return found


def values_of(hop: dict[str, Any], num_bytes: int) -> np.ndarray:
    """Q-values as the map shows them; NaN where a chunk cannot be picked."""
    codes = np.frombuffer(base64.b64decode(hop["codes"]), "<u2" if num_bytes == 2 else "u1").astype(float)
    values = hop["low"] + (codes - 1) / (256**num_bytes - 2) * (hop["high"] - hop["low"])
    return np.where(codes == 0, np.nan, values)


def test_it_says_what_was_picked_and_why(story: Selection, tmp_path: Path) -> None:
    text = page_of(story, tmp_path)
    page = Page(text)
    assert page.content["h1"] == [QUESTION]
    assert "It picked as many chunks as asked for (3)." in text
    for hop, step in enumerate(story.steps, start=1):
        assert f'id="hop-{hop}"' in text
        assert text.count(step.text) >= 1
        assert signed(step.q_value) in text
        assert f"<b>{signed(step.position_gain)}</b> at position {step.position}" in text
        trace = story._known_trace
        assert trace is not None
        values = trace.hop(hop - 1)
        runner_up = values.runner_up
        assert runner_up is not None
        margin = step.q_value - float(values.q_values[runner_up])
        assert f"<b>{signed(margin)}</b> over chunk {runner_up}" in text
        for place in trace.surroundings(step.chunk_id, 2):
            assert STORY[place] in text


def test_the_map_holds_the_q_values_and_the_picks(story: Selection, tmp_path: Path) -> None:
    data = map_of(page_of(story, tmp_path))
    trace = story._known_trace
    assert trace is not None
    assert (data["numChunks"], data["firstChunk"], data["width"], data["bytes"]) == (len(STORY), 0, 1, 2)
    for number, (hop, step) in enumerate(zip(data["hops"], story.steps, strict=True)):
        expected = np.where(trace.hop(number).available, trace.hop(number).q_values, np.nan)
        np.testing.assert_allclose(values_of(hop, 2), expected, atol=(hop["high"] - hop["low"]) / 60_000)
        assert hop["pick"] == {"place": step.chunk_id, "chunk": step.chunk_id, "q": step.q_value}
        assert [mark["chunk"] for mark in hop["earlier"]] == [s.chunk_id for s in story.steps[:number]]
        assert len(hop["segments"]) == len({0, *(mark["place"] for mark in hop["earlier"])})


@pytest.mark.parametrize("most_bytes", [10_000, 900, 300, 37])
def test_no_packing_loses_a_pick(most_bytes: int) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=1000).astype(np.float32)
    packing = Packing(1000, 2, most_bytes)
    for pick in (0, 517, 999):
        values[pick] = 9
        hop = Hop(values.copy(), np.arange(1000) != 3, (3,), pick, ())
        low, high = float(values.min()), 9.0
        packed = {"codes": packing.pack(hop, low, high), "low": low, "high": high}
        shown = values_of(packed, packing.dtype.itemsize)
        assert 2 * shown.size * packing.dtype.itemsize <= most_bytes + 4 * packing.dtype.itemsize or packing.width == 1
        highs = shown if packing.width == 1 else shown[len(shown) // 2 :]
        assert highs[pick // packing.width] == pytest.approx(9, abs=1e-6)
        values[pick] = 0


def test_400_000_chunks_stay_small(model: QRAGModel, tmp_path: Path) -> None:
    selection = MultiStepSelector(long_index(model), k=10).select(QUESTION)
    text = page_of(selection, tmp_path)
    data = map_of(text)
    assert len(text) < 4e6
    assert (data["numChunks"], data["width"], data["bytes"]) == (NUM_CHUNKS, 4, 1)
    for hop in data["hops"]:
        values = values_of(hop, 1)
        highs = values[len(values) // 2 :]
        assert highs[hop["pick"]["place"] // 4] >= hop["pick"]["q"] - (hop["high"] - hop["low"]) / 254


def test_hostile_text_stays_text(hostile: Selection, tmp_path: Path) -> None:
    text = page_of(hostile, tmp_path)
    page = Page(text)
    assert [attributes.get("type") for attributes in page.all("script")] == ["application/json", None]
    assert not page.all("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "49" not in page.content["h1"][0]
    assert "{{ 7 * 7 }}" in page.content["h1"][0]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    assert "NUL \N{SYMBOL FOR NULL} bell \N{SYMBOL FOR BELL}" in text
    for step in hostile.steps:
        passages = [content for content in page.content["p"] if content.startswith(visible(step.text))]
        assert passages


def test_foreign_text_has_a_direction_of_its_own(hostile: Selection, tmp_path: Path) -> None:
    for text in (page_of(hostile, tmp_path), hostile._repr_html_()):
        for line in text.splitlines():
            if "\u202e" in line and "<title>" not in line:
                holder = line[: line.index("\u202e")].rpartition("<")[2]
                assert 'dir="auto"' in holder or holder.startswith("bdi")


def test_the_page_loads_nothing(story: Selection, tmp_path: Path) -> None:
    text = page_of(story, tmp_path)
    page = Page(text)
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert page.values("src") == []
    assert all(target.startswith("#") for target in page.values("href"))
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    for kind, content in (("style", page.content["style"][0]), ("script", page.content["script"][1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert page.values("style") == []  # the policy forbids them


def test_the_page_is_built_for_screen_readers(story: Selection, tmp_path: Path) -> None:
    page = Page(page_of(story, tmp_path))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert {"header", "main", "footer", "title"} <= {tag for tag, _ in page.elements}
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    for attribute in ("aria-labelledby", "aria-describedby"):
        assert {name for value in page.values(attribute) for name in value.split()} <= set(ids)
    assert {target[1:] for target in page.values("href")} <= set(ids)
    for attributes, content in zip(page.all("button"), page.content["button"], strict=True):
        assert attributes.get("aria-label") or content.strip()
    assert len(page.all("caption")) == len(page.all("table")) >= 4
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert all(a["role"] == "img" and a["aria-label"] for a in page.all("svg"))
    assert set(page.values("tabindex")) <= {"0", "-1"}


def test_the_fragment_keeps_to_itself(story: Selection) -> None:
    text = story._repr_html_()
    page = Page(text)
    assert not {"script", "style", "link", "html", "body"} & {tag for tag, _ in page.elements}
    assert not page.values("class")
    assert not page.values("id")
    assert "://" not in text
    assert len(page.all("svg")) == 3
    for step in story.steps:
        assert clipped(step.text, 300) in text
        assert signed(step.q_value) in text
    assert len(text) < 60_000


def test_without_a_trace_there_is_no_map(story: Selection, tmp_path: Path) -> None:
    forgotten = pickle.loads(pickle.dumps(story))
    text = page_of(forgotten, tmp_path)
    page = Page(text)
    assert "There is no map" in text
    assert not page.all("script")
    assert "Margin" not in text
    assert all(step.text in text for step in story.steps)
    assert not Page(forgotten._repr_html_()).all("svg")


def test_by_hand_and_empty(tmp_path: Path) -> None:
    by_hand = Selection("Why?", (Step(3, "id", "text", {}, 0.5, 0, 0.0),), "k")
    assert "Chunk 3" in page_of(by_hand, tmp_path)
    empty = Selection("Why?", (), "exhausted")
    assert "No chunk was left to pick." in page_of(empty, tmp_path)
    assert "No chunk was left to pick." in empty._repr_html_()


def test_a_search_that_min_q_stopped(index: ChunkIndex, tmp_path: Path) -> None:
    text = page_of(MultiStepSelector(index, k=3, min_q=1e6).select(QUESTION), tmp_path)
    assert re.search(r"No chunk was worth more than min_q = 1e\+06; the best one left had Q = [+\u2212]\d", text)
    data = map_of(text)
    assert [hop["pick"] for hop in data["hops"]] == [None]
    assert data["minQ"] == 1e6
    assert page_of(MultiStepSelector(index, k=1, min_q=-np.inf).select(QUESTION), tmp_path)


def test_ruled_out_chunks(index: ChunkIndex, tmp_path: Path) -> None:
    text = page_of(MultiStepSelector(index, k=1, filters={"number": [0, 1, 5]}).select(QUESTION), tmp_path)
    assert "(9 ruled out by a filter)" in text
    data = map_of(text)
    assert np.flatnonzero(~np.isnan(values_of(data["hops"][0], 2))).tolist() == [0, 1, 5]


def test_one_document(index: ChunkIndex, tmp_path: Path) -> None:
    selection = MultiStepSelector(index, k=2, filters={"document_id": "odd"}).select(QUESTION)
    text = page_of(selection, tmp_path)
    data = map_of(text)
    assert (data["numChunks"], data["firstChunk"]) == (6, None)
    assert [hop["pick"]["chunk"] for hop in data["hops"]] == [step.chunk_id for step in selection.steps]
    assert not set(Page(text).content["p"]) & set(STORY[::2])
    nothing = MultiStepSelector(index, k=2, filters={"document_id": "none such"}).select(QUESTION)
    assert "No chunk was left to pick." in page_of(nothing, tmp_path)


def test_corpus_mode_has_neither_neighbours_nor_positions(corpus_model: QRAGModel, tmp_path: Path) -> None:
    index = ChunkIndex.from_texts(STORY, model=corpus_model, mode="corpus")
    text = page_of(MultiStepSelector(index, k=2).select(QUESTION), tmp_path)
    assert "Position gave" not in text
    assert len([a for a in Page(text).all("span") if a.get("class") == "place"]) == 2


def test_a_beam_may_pass_over_a_better_chunk(index: ChunkIndex, tmp_path: Path) -> None:
    selection = MultiStepSelector(index, k=2, temperature=100.0, sample_top_k=12, seed=5).select(QUESTION)
    text = page_of(selection, tmp_path)
    assert "A better chunk was passed over" in text
    assert re.search(r"<b>\u2212\d\.\d+</b> to chunk \d+", text)


def test_long_texts_are_cut(model: QRAGModel, tmp_path: Path) -> None:
    index = ChunkIndex.from_embeddings(
        np.eye(32, dtype=np.float32)[:2], ["a" * 5_000_000, "b" * 5_000_000], metadatas=[{"m": "c" * 99_999}] * 2,
        model=model,
    )  # fmt: skip
    text = page_of(MultiStepSelector(index, k=2).select(QUESTION), tmp_path)
    assert len(text) < 200_000
    assert "(4,980,000 more characters)" in text


def test_where_it_cannot_be_written(story: Selection, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        story.to_html(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        story.to_html(tmp_path / "missing" / "hops.html")
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_whole_or_not_at_all(story: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hops.html"
    path.write_text("what was there")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("qrag_retriever._files.sync", fail)
    with pytest.raises(OSError, match="disk full"):
        story.to_html(str(path))
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]

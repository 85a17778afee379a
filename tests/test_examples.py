"""The scripts and notebooks in examples/: they run, stay offline, and print what they are there to show.

The scripts run in this process, with the model loaded once; one of them runs as a reader would start it. Those that
embed a whole book or train are commands of .ci/run.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qrag_retriever import QRAGModel

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# Commands of .ci/run.
RUN_ELSEWHERE = {"quickstart.py", "see_the_hops.py", "train_on_your_data.py"}
MAX_NOTEBOOK_BYTES = 300_000
Run = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def one_model() -> Iterator[None]:
    """Load the default model once for all scripts."""
    model, load = QRAGModel.from_pretrained(device="cpu"), QRAGModel.from_pretrained

    def from_pretrained(name: Any = None, **options: Any) -> QRAGModel:
        return model if name is None else load(name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QRAGModel, "from_pretrained", staticmethod(from_pretrained))
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a script in this process; fails if anything wanted to go out of it, even if that was caught and logged."""
    wanted: list[str] = []

    def refuse(host: Any, *_: Any, **__: Any) -> None:
        wanted.append(str(host))
        raise OSError("no network in tests of examples")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def run_script(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    yield run_script
    assert not wanted, f"asked for the address of {wanted}"


def lines_with(text: str, output: str) -> list[str]:
    return [line for line in output.splitlines() if text in line]


def test_every_example_has_a_docstring_that_says_how_to_run_it_and_a_line_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) >= 10
    for script in scripts:
        assert f"python examples/{script.name}" in script.read_text(encoding="utf-8").split('"""')[1], script.name
        assert f"python examples/{script.name}" in ci if script.name in RUN_ELSEWHERE else f'"{script.name}"' in tests
    for path in [*scripts, *NOTEBOOKS]:
        assert f"| [`{path.name}`](examples/{path.name}) |" in readme, path.name


class TestLangChainChain:
    @pytest.fixture(autouse=True)
    def packages(self) -> None:
        pytest.importorskip("langchain_core")

    def test_streams_sources_and_then_an_answer_from_both_hops(self, run: Run) -> None:
        output = run("langchain_chain.py")
        first = output.index("[sentence 5] hop 1")
        assert first < output.index("[sentence 4] hop 2") < output.index("I was given: [sentence 5]")
        assert "[sentence 4] Mr. Okafor owns the Night Pharmacy." in output
        assert lines_with("On which street does Greta work?", output)[0].endswith("['sentence 17', 'sentence 15']")
        assert output.rstrip().endswith("['sentence 5']")

    def test_any_chat_model_takes_the_place_of_the_stand_in(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        chat_models = pytest.importorskip("langchain.chat_models")
        from langchain_core.language_models.fake_chat_models import FakeListChatModel

        named = []

        def init_chat_model(name: str) -> FakeListChatModel:
            named.append(name)
            return FakeListChatModel(responses=["It is Mr. Okafor's [sentence 4]."])

        monkeypatch.setattr(chat_models, "init_chat_model", init_chat_model)
        assert "It is Mr. Okafor's [sentence 4]." in run("langchain_chain.py", "--llm", "maker:model")
        assert named == ["maker:model"]


def test_langgraph_agent_needs_one_call_of_the_tool_for_two_hops(run: Run) -> None:
    pytest.importorskip("langchain.agents")
    output = run("langgraph_agent.py")
    assert len(lines_with("model calls search_the_town(", output)) == 1
    assert re.search(r"tools return hop 1, Q=\+0\.\d+: Tom works as a repairer at the Night Pharmacy\.", output)
    assert re.search(r"tools return hop 2, Q=\+0\.\d+: Mr\. Okafor owns the Night Pharmacy\.", output)
    assert output.splitlines()[-1].startswith("  model says: I found: Tom works")


def test_llama_index_engines_hand_both_hops_to_the_language_model(run: Run) -> None:
    pytest.importorskip("llama_index.core")
    output = run("llama_index_engines.py")
    parts = output.split("\n\n")[1:]
    titles = [part.partition(":")[0] for part in parts]
    assert titles == [
        "Query engine",
        "Query engine, streamed",
        "Chat, Who owns the shop where Tom works?",
        "Chat, On which street does Greta work?",
        "Chat that condenses",
        "Workflow",
    ]
    for title, part in zip(titles, parts, strict=True):
        expected = ["17", "15"] if "Greta" in title else ["5", "4"]
        assert re.findall(r"hop \d, Q=\+\d\.\d+ \[sentence (\d+)\]", part) == expected, title
    # A MockLLM's answer is its prompt: the streamed one is the same, letter by letter.
    assert parts[0].partition(":")[2] == parts[1].partition(":")[2]


def test_fusion_by_rank_keeps_evidence_that_fusion_by_score_puts_among_others(run: Run) -> None:
    pytest.importorskip("bm25s")
    pytest.importorskip("langchain_classic")
    output = run("fusion_with_bm25.py")
    evidence = json.loads(lines_with("evidence", output)[0].partition(": ")[2])
    bm25 = [int(number) for number in re.findall(r"\((\d+), ", lines_with("BM25, with", output)[0])]
    assert evidence[1] not in bm25
    ensemble = json.loads(lines_with("EnsembleRetriever", output)[0].partition(": ")[2])
    ranked, scored = (
        [(int(number), float(score)) for number, score in re.findall(r"\((\d+), ([\d.]+)\)", line)]
        for line in (lines_with("reciprocal_rerank", output)[0], lines_with("relative_score", output)[0])
    )
    assert ensemble[:2] == evidence
    assert [number for number, _ in ranked][:2] == evidence
    hops = [float(q_value) for q_value in re.findall(r"\(\d+, ([\d.]+)\)", lines_with("hops, with", output)[0])]
    lowest, by_score = evidence[hops.index(min(hops))], dict(scored)
    assert by_score[lowest] <= max(score for number, score in scored if number not in evidence)


def test_every_way_over_a_vector_store_finds_the_same(run: Run) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    output = run("vector_store.py")
    found = [part.splitlines()[1:] for part in output.rstrip().split("\n\n")[1:]]
    assert len(found) == 5
    hops = [re.findall(r"hop (\d)  Q=\+(\d\.\d+)  \[(\d+)\]", "\n".join(lines)) for lines in found]
    assert [(hop, id_) for hop, _, id_ in hops[0]] == [("1", "5"), ("2", "4")]
    for other in hops[1:]:
        assert [(hop, id_) for hop, _, id_ in other] == [("1", "5"), ("2", "4")]
        assert [float(q) for _, q, _ in other] == pytest.approx([float(q) for _, q, _ in hops[0]], abs=2e-3)


class TestServer:
    @pytest.fixture(autouse=True)
    def packages(self) -> None:
        for package in ("fastapi", "uvicorn", "httpx"):
            pytest.importorskip(package)

    def check(self, output: str) -> None:
        assert "GET /health {'chunks': 18, 'mode': 'corpus'}" in output
        assert "POST /search Who owns the shop where Tom works? ['sentence 5', 'sentence 4']" in output
        assert "POST /search On which street does Greta work? ['sentence 17', 'sentence 15']" in output
        assert re.search(r"POST /answer \['sentence 5', 'sentence 4'\] (\d+) tokens", output)
        assert (
            "I was given: Tom works as a repairer at the Night Pharmacy. Mr. Okafor owns the Night Pharmacy." in output
        )
        assert "POST /search with k=0 422 Input should be greater than or equal to 1" in output

    def test_as_a_reader_starts_it(self, tmp_path: Path) -> None:
        """From another folder, in a process of its own."""
        command = [sys.executable, str(EXAMPLES / "serve_fastapi.py"), "--check"]
        done = subprocess.run(
            command, cwd=tmp_path, env=with_the_repository(), capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        self.check(done.stdout)

    def test_is_served_by_uvicorn(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        import uvicorn

        served = []
        monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.append((app, options)))
        run("serve_fastapi.py", "--port", "8123")
        ((app, options),) = served
        assert options == {"host": "127.0.0.1", "port": 8123}
        assert {"/health", "/search", "/answer"} <= {route.path for route in app.routes}


def test_evaluators_of_both_frameworks_agree_and_prefer_the_hops(run: Run) -> None:
    for package in ("bm25s", "langsmith", "llama_index.core"):
        pytest.importorskip(package)
    output = run("evaluate_with_frameworks.py")
    hops, bm25, langsmith = (
        {name: float(value) for name, value in re.findall(r"(\w+) (\d\.\d\d)", lines_with(start, output)[0])}
        for start in ("LlamaIndex, hops:", "LlamaIndex, BM25:", "LangSmith, hops:")
    )
    assert set(hops) == {"hit_rate", "mrr", "recall", "all_found"}
    assert hops["all_found"] == langsmith["all_found"] >= 0.8
    assert bm25["all_found"] <= 0.4 < bm25["hit_rate"]


def with_the_repository() -> dict[str, str]:
    """Return the environment, in which the package of this repository is found from anywhere."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def shown_text(cell: dict[str, Any]) -> str:
    """Return what a cell printed or returned as text; pictures and pages have no text worth comparing."""
    printed = ["".join(out["text"]) for out in cell["outputs"] if out.get("name") == "stdout"]
    returned = [
        "".join(out["data"]["text/plain"]) for out in cell["outputs"] if set(out.get("data", ())) == {"text/plain"}
    ]
    return "".join(printed + returned)


def kinds(cell: dict[str, Any]) -> set[str]:
    """Return which of pictures and pages a cell shows; bars of progress come and go with what is installed."""
    return {kind for out in cell["outputs"] for kind in out.get("data", ())} & {"image/png", "text/html"}


class TestNotebooks:
    @pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
    def test_committed_with_outputs_that_are_small_and_tell_nothing_of_the_machine(self, path: Path) -> None:
        assert path.stat().st_size < MAX_NOTEBOOK_BYTES
        cells = code_cells(path)
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [out for cell in cells for out in cell["outputs"]]
        assert {out["output_type"] for out in outputs} <= {"stream", "display_data", "execute_result"}
        assert not [out for out in outputs if out.get("name") == "stderr"]
        text = "".join(shown_text(cell) for cell in cells)
        assert not re.search(r"/(home|root|tmp|usr|var|work|Users|opt)/|[A-Z]:\\\\|localhost", text)

    def test_run_and_show_what_is_committed(self, tmp_path: Path) -> None:
        for package in ("nbmake", "ipykernel", "matplotlib"):
            pytest.importorskip(package)
        for path in [*NOTEBOOKS, EXAMPLES / "alice.txt"]:
            shutil.copy(path, tmp_path)
        command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "--overwrite", "-p", "no:cacheprovider", "."]
        done = subprocess.run(
            command, cwd=tmp_path, env=with_the_repository(), capture_output=True, text=True, timeout=1200, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for path in NOTEBOOKS:
            for committed, now in zip(code_cells(path), code_cells(tmp_path / path.name), strict=True):
                assert_same_text(shown_text(committed), shown_text(now))
                assert kinds(committed) == kinds(now)

    def test_what_they_show_is_what_they_say(self) -> None:
        """The figures that the text around them speaks of."""
        shown = "".join(shown_text(cell) for cell in code_cells(EXAMPLES / "how_the_hops_work.ipynb"))
        assert "the same Q-values: True" in shown
        assert "as by hand: True" in shown
        first, second = re.findall(r"hop \d, picked so far: .*\n((?:  Q=.*\n)+)", shown)
        assert "Mary dropped the football." in first.splitlines()[0]
        assert "Mary went back to the hallway." in second.splitlines()[0]
        assert "image/png" in set().union(*map(kinds, code_cells(EXAMPLES / "how_the_hops_work.ipynb")))
        assert "text/html" in set().union(*map(kinds, code_cells(EXAMPLES / "quickstart.ipynb")))


def assert_same_text(committed: str, now: str) -> None:
    """Compare words exactly and numbers with decimals up to what processors differ by."""
    number = r"[-+]?\d+\.\d+"
    assert re.sub(number, "#", committed) == re.sub(number, "#", now)
    old, new = ([float(value) for value in re.findall(number, text)] for text in (committed, now))
    assert old == pytest.approx(new, abs=5e-3)

"""The documentation says what is so: its code runs, its error texts are the sources', its pictures are drawn anew."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from qrag_retriever import errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "pages").rglob("*.md"))
TEXTS = [*PAGES, DOCS / "scaling.md", ROOT / "README.md"]
FENCE = re.compile(r"^( *)```+ ?(\{[^}\n]*\}|\w*)\n(.*?)^\1```+$", re.MULTILINE | re.DOTALL)
# What a message may have in a place that the sources fill in.
FILLED_IN = re.compile(r"%(?:d|s|r|\.\df)")
LEAST_FIXED = 12
# What is put around a message where it is reported: its kind, the place in a file of data, the end of a warning.
AROUND = re.compile(r"^(?:(?P<kind>\w+Error): )?(?:[\w.]+, line \d+: )?(?:warning: (?=.*\.$))?(?P<message>.*)$")


def blocks(path: Path, language: str) -> Iterator[tuple[str, str]]:
    """Yield the attributes and the content of every fenced block in a language."""
    for indent, attributes, content in FENCE.findall(path.read_text(encoding="utf-8")):
        words = attributes.strip("{ }").split()
        if words and words[0].lstrip(".") == language:
            yield attributes, re.sub(f"^{indent}", "", content, flags=re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_python_blocks_compile(path: Path) -> None:
    for _, code in blocks(path, "python"):
        compile(code, name_of(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("path", [page for page in PAGES if any(blocks(page, "python"))], ids=name_of)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(code for attributes, code in blocks(path, "python") if ".not-run" not in attributes)
    if "llama_index" in code:
        pytest.importorskip("llama_index.core")
    exec(compile(code, name_of(path), "exec"), {"__name__": "__main__"})


def messages(path: Path) -> Iterator[str]:
    """Yield every message that the sources can word, as a pattern."""
    parents: dict[ast.AST, ast.AST] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parents |= dict.fromkeys(ast.iter_child_nodes(node), node)
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if isinstance(parents.get(node), ast.JoinedStr):
                continue
            parts = [part for text in FILLED_IN.split(node.value) for part in (None, text)][1:]
        else:
            continue
        fixed = [part for part in parts if part is not None]
        if sum(map(len, fixed)) >= LEAST_FIXED:
            yield "".join(".+?" if part is None else re.escape(part) for part in parts)


@pytest.fixture(scope="module")
def wordings() -> list[re.Pattern[str]]:
    sources = sorted((ROOT / "qrag_retriever").rglob("*.py"))
    return [re.compile(pattern) for path in sources for pattern in messages(path)]


def quoted_errors() -> list[str]:
    quoted = [text for path in PAGES for attributes, text in blocks(path, "text") if ".error" in attributes]
    return [line for text in quoted for line in text.splitlines()]


@pytest.mark.parametrize("line", quoted_errors())
def test_quoted_errors_are_the_sources(line: str, wordings: list[re.Pattern[str]]) -> None:
    found = AROUND.match(line)
    assert found is not None
    kind, message = found["kind"], found["message"]
    assert kind is None or hasattr(errors, kind) or hasattr(builtins, kind), f"there is no {kind}"
    if line.startswith("warning: "):
        message = message.removesuffix(".")
    assert any(wording.fullmatch(message) for wording in wordings)


def test_some_errors_are_quoted() -> None:
    assert len(quoted_errors()) > 30


def test_pictures_are_as_drawn() -> None:
    drawings = loaded("drawings")
    folder = DOCS / "pages/drawings"
    assert {path.stem for path in folder.iterdir()} == set(drawings.DRAWINGS)
    for name, draw in drawings.DRAWINGS.items():
        assert (folder / f"{name}.svg").read_text(encoding="utf-8") == draw(), f"run python docs/drawings.py: {name}"


def test_settings_become_tables() -> None:
    tables = loaded("hooks")
    page = tables.on_page_markdown("settings: qrag_retriever/training/recipe.py PQNSettings\n")
    assert "| <code>alpha</code> | <code>float</code> | <code>0.02</code> |" in page
    with pytest.raises(ValueError, match="has no class Nothing"):
        tables.settings_table(ROOT / "qrag_retriever/config.py", "Nothing")


def test_plots_of_training_are_where_its_page_looks_for_them() -> None:
    for folder, source in loaded("hooks").PLOTS.items():
        shown = re.findall(r"\]\((plots/\S+\.png)\)", (source.parent / "README.md").read_text(encoding="utf-8"))
        assert len(shown) > 3
        assert sorted(source.parent / name for name in shown) == sorted(source.iterdir())
        including = DOCS / "pages" / Path(folder).parent
        snippet = f'--8<-- "{source.parent.name}/README.md"'
        assert any(snippet in page.read_text(encoding="utf-8") for page in including.glob("*.md"))


def test_every_group_of_a_recipe_has_a_table() -> None:
    recipe = (ROOT / "qrag_retriever/training/recipe.py").read_text(encoding="utf-8")
    groups = set(re.findall(r"^class (\w+)\(Settings\):", recipe, re.MULTILINE)) - {"Recipe"}
    page = (DOCS / "pages/reference/recipe.md").read_text(encoding="utf-8")
    assert groups == set(re.findall(r"^settings: \S+ (\w+)$", page, re.MULTILINE))


def test_the_card_is_included_from_its_heading() -> None:
    (line,) = re.findall(r"README\.md:(\d+):", (DOCS / "pages/benchmarks/model.md").read_text(encoding="utf-8"))
    card = (ROOT / "qrag_retriever/bundled/README.md").read_text(encoding="utf-8").splitlines()
    assert card[int(line) - 1].startswith("# ")


def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", str(DOCS / "mkdocs.yml")]
    built = subprocess.run([*command, "-d", str(tmp_path)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in tmp_path.rglob("*.html"):
        loaded_from = re.findall(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"?(https?://[^\"\s>]+)", page.read_text())
        assert not loaded_from, f"{page.name} loads {loaded_from}"

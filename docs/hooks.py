"""Hooks of MkDocs.

A line ``settings: FILE CLASS`` of a page becomes a table of the fields of a pydantic class; the file is read, not
imported, so that the site is built without the package's dependencies. Plots that stand beside what the site includes
from elsewhere in the repository are copied to where the including page looks for them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
# Of training/README.md, which benchmarks/training.md includes: its links to plots/ hold in both places.
PLOTS = {"benchmarks/plots": ROOT / "training/plots"}
_REQUEST = re.compile(r"^settings: (\S+) (\w+)$", re.MULTILINE)
# Where names of types are defined that settings use.
_TYPES = ("config", "state")
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def on_files(files: Files, config: Any) -> Files:
    """Add the plots; called by MkDocs."""
    # The tables are made without MkDocs too.
    from mkdocs.structure.files import File

    for folder, source in PLOTS.items():
        for path in sorted(source.glob("*.png")):
            files.append(File.generated(config, f"{folder}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables in place of their requests; called by MkDocs for every page."""
    return _REQUEST.sub(lambda request: settings_table(ROOT / request[1], request[2]), markdown)


def settings_table(path: Path, class_name: str) -> str:
    """Make the table of one class, in Markdown.

    Args:
        path: A Python file.
        class_name: A class in it, with annotated fields.

    Raises:
        ValueError: If the file has no such class, or the class no fields.
    """
    classes = {node.name: node for node in ast.parse(path.read_text(encoding="utf-8")).body if _is_class(node)}
    if class_name not in classes:
        raise ValueError(f"{path} has no class {class_name}; it has {', '.join(classes)}")
    aliases = _aliases()
    rows = [_row(node, aliases) for node in classes[class_name].body if isinstance(node, ast.AnnAssign)]
    if not rows:
        raise ValueError(f"the class {class_name} of {path} has no annotated fields")
    head = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([ast.get_docstring(classes[class_name]) or "", "", *head, *rows, ""])


def _is_class(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef)


def _aliases() -> dict[str, str]:
    """Return what ``Mode`` and the like stand for."""
    found = {}
    for name in _TYPES:
        module = ast.parse((ROOT / f"qrag_retriever/{name}.py").read_text(encoding="utf-8"))
        for node in module.body:
            if isinstance(node, ast.Assign) and "Literal[" in ast.unparse(node.value):
                found[ast.unparse(node.targets[0])] = ast.unparse(node.value)
    return found


def _row(field: ast.AnnAssign, aliases: dict[str, str]) -> str:
    default, options = _default(field.value)
    bounds = [f"{words} {ast.unparse(options[name])}" for name, words in _BOUNDS.items() if name in options]
    description = ast.literal_eval(options["description"]) if "description" in options else ""
    kind = re.sub(r"\b\w+\b", lambda word: aliases.get(word[0], word[0]), ast.unparse(field.annotation))
    meaning = " ".join(part for part in (description, f"({', '.join(bounds)})" if bounds else "") if part)
    cells = (f"`{ast.unparse(field.target)}`", f"`{kind}`", default, meaning)
    # A pipe would end the cell, in code too.
    return f"| {' | '.join(cell.replace('|', '&#124;') if '`' not in cell else _coded(cell) for cell in cells)} |"


def _coded(cell: str) -> str:
    return re.sub(r"`([^`]*)`", lambda code: f"<code>{code[1].replace('|', '&#124;')}</code>", cell)


def _default(value: ast.expr | None) -> tuple[str, dict[str, ast.expr]]:
    """Return the default as Markdown, and what is said of the field beside it."""
    if value is None:
        return "must be given", {}
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "Field"):
        return f"`{ast.unparse(value)}`", {}
    options = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg is not None}
    if "default_factory" in options:
        return f"`{ast.unparse(options['default_factory'])}()`", options
    return (f"`{ast.unparse(options['default'])}`" if "default" in options else "must be given"), options

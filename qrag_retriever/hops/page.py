"""The hops as a page of its own and as a fragment for notebooks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qrag_retriever import __version__
from qrag_retriever._files import write_whole_file
from qrag_retriever.hops import strips
from qrag_retriever.hops.views import view_of
from qrag_retriever.hops.wording import clipped, signed, visible
from qrag_retriever.steps import Step, StopReason
from qrag_retriever.trace import SearchTrace

# A snippet in a notebook.
_MOST_OF_A_SNIPPET = 320


def write_page(path: Path, query: str, steps: Sequence[Step], reason: StopReason, trace: SearchTrace | None) -> Path:
    """Write a page; see `Selection.to_html`."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'hops.html'}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first, or choose another path")
    write_whole_file(path, render_page(query, steps, reason, trace))
    return path


def render_page(query: str, steps: Sequence[Step], reason: StopReason, trace: SearchTrace | None) -> str:
    """Return a complete page: style and script inside, and a policy by which a browser runs and loads nothing else."""
    style, script = _data_file("page.css"), _data_file("map.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            search=view_of(query, steps, reason, trace),
            style=Markup(style),  # noqa: S704  # the package's own
            script=Markup(script),  # noqa: S704
            style_hash=_policy_hash(style),
            script_hash=_policy_hash(script),
            version=__version__,
        )
    )


def render_fragment(query: str, steps: Sequence[Step], reason: StopReason, trace: SearchTrace | None) -> str:
    """Return a piece of HTML to be shown in a notebook."""
    search = view_of(query, steps, reason, trace, with_map=False)
    return _environment().get_template("fragment.html").render(search=search, most_of_a_snippet=_MOST_OF_A_SNIPPET)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(clipped=clipped, signed=signed)
    environment.globals.update(strip_width=strips.WIDTH, strip_height=strips.HEIGHT)
    return environment


def _shown(value: Any) -> Any:
    """Make foreign text writable, before it is escaped."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


@cache
def _data_file(name: str) -> str:
    return files(__package__).joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _policy_hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")

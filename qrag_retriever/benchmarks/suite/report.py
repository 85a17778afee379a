"""What a run leaves: a table for people, JSON for machines, a picture."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrag_retriever._extras import require_extra
from qrag_retriever.benchmarks.timing import table

Row = dict[str, Any]
_MOST_COLUMNS = 5
# Of the longest method's name with its line.
_LEGEND_INCHES = 1.7
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_PACKAGES = (
    "qrag-retriever", "torch", "sentence-transformers", "transformers", "faiss-cpu", "numpy", "langchain-core",
    "llama-index-core", "bm25s",
)  # fmt: skip
_COLUMNS = {
    "benchmark": "benchmark",
    "length": "length",
    "method": "method",
    "samples": "questions",
    "fact_recall": "fact recall",
    "exact": "exact",
    "fact_f1": "fact F1",
    "hit_at_1": "hit@1",
    "auto_fact_recall": "recall (auto)",
    "auto_picks": "picks (auto)",
    "answer_em": "answer EM",
    "answer_f1": "answer F1",
    "llm_calls": "LLM calls",
    "seconds_per_query": "median ms/query",
}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def results_table(rows: Sequence[Row]) -> str:
    """Lay out rows as a Markdown table; columns that no row has are left out."""
    shown = {name: head for name, head in _COLUMNS.items() if any(_has(row, name) for row in rows)}
    return table(list(shown.values()), [[_cell(row, name) for name in shown] for row in rows])


def recall_table(rows: Sequence[Row]) -> str:
    """Lay out fact recall with a column for each method, the best of a line in bold."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for benchmark, length in dict.fromkeys((row["benchmark"], row["length"]) for row in rows):
        own = {row["method"]: row for row in rows if (row["benchmark"], row["length"]) == (benchmark, length)}
        questions = str(next(iter(own.values()))["samples"])
        found = {method: row["fact_recall"] for method, row in own.items()}
        lines.append([benchmark, length, questions, *_best_in_bold(methods, found)])
    return table(["fact recall", "length", "questions", *methods], lines)


def brief_table(rows: Sequence[Row], families: Sequence[str] = ()) -> str:
    """Lay out fact recall at each benchmark's first length, with a column for each method, the best of a line in bold.

    Args:
        rows: Of one run or several.
        families: Beginnings of benchmarks' names; the benchmarks of each share a line, with their mean.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    first = {row["benchmark"]: row["length"] for row in reversed(rows)}
    lines: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    names: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        benchmark, length = row["benchmark"], row["length"]
        if length == first[benchmark]:
            key = next((family for family in families if benchmark.startswith(family)), benchmark), length
            lines.setdefault(key, {}).setdefault(row["method"], {})[benchmark] = row["fact_recall"]
            names.setdefault(key, set()).add(benchmark)
    laid_out = []
    for key, found in lines.items():
        # A mean over fewer benchmarks than there are would be of other questions than its neighbours.
        whole = {
            method: float(np.mean(list(values.values())))
            for method, values in found.items()
            if values.keys() == names[key]
        }
        count = f" ({len(names[key])} tasks)" if key[0] in families else ""
        laid_out.append([f"{key[0].rstrip('-')}{count}", key[1], *_best_in_bold(methods, whole)])
    return table(["fact recall", "length", *methods], laid_out)


def _best_in_bold(methods: Sequence[str], found: Mapping[str, float]) -> list[str]:
    cells = [f"{found[method]:.3f}" if method in found else "" for method in methods]
    return [f"**{cell}**" if cell and cell == max(cells) else cell for cell in cells]


def differences_table(differences: Sequence[Row]) -> str:
    """Lay out paired differences as a Markdown table."""
    header = ["benchmark", "length", "qrag minus", "score", "difference", "95% interval"]
    return table(
        header,
        [
            [
                row["benchmark"], row["length"], row["minus"], row["score"], f"{row['difference']:+.3f}",
                f"{row['low']:+.3f} to {row['high']:+.3f}",
            ]
            for row in differences
        ],
    )  # fmt: skip


def growth(rows: Sequence[Row]) -> list[Row]:
    """Fit seconds per query = c * chunks ^ exponent for each benchmark and method that has three lengths or more."""
    fitted = []
    for benchmark, method in dict.fromkeys((row["benchmark"], row["method"]) for row in rows):
        own = [row for row in rows if (row["benchmark"], row["method"]) == (benchmark, method)]
        if len({row["chunks"] for row in own}) >= 3:
            chunks, seconds = (np.log([row[name] for row in own]) for name in ("chunks", "seconds_per_query"))
            fitted.append(
                {"benchmark": benchmark, "method": method, "exponent": float(np.polyfit(chunks, seconds, 1)[0])}
            )
    return fitted


def growth_table(fitted: Sequence[Row]) -> str:
    """Lay out fitted exponents as a Markdown table."""
    header = ["benchmark", "method", "seconds per query ~ chunks ^"]
    return table(header, [[row["benchmark"], row["method"], f"{row['exponent']:.2f}"] for row in fitted])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw fact recall with its interval: over length where a benchmark has several, as bars where it has one.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_extra("matplotlib", "bench")
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = -(-len(names) // _MOST_COLUMNS)
    columns = -(-len(names) // lines)
    figure, grid = plt.subplots(
        lines, columns, figsize=(2.4 * columns + 1.6, 2.4 * lines + 0.6), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axes, name in zip(grid.flat, names, strict=False):
        _plot_one(axes, [row for row in rows if row["benchmark"] == name], methods)
        axes.set_title(name)
    for axes in grid[:, 0]:
        axes.set_ylabel("fact recall")
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        drawn, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, drawn, strict=True))
    columns_of_legend = max(1, min(len(handles), int(figure.get_figwidth() / _LEGEND_INCHES)))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns_of_legend, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_one(axes: Any, rows: Sequence[Row], methods: Sequence[str]) -> None:
    """Draw one benchmark; a method has the same colour in all of them."""
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    for number, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        recall = np.array([row["fact_recall"] for row in own])
        bounds = np.array([(row["fact_recall_low"], row["fact_recall_high"]) for row in own])
        spread = np.abs(bounds.T - recall)
        style: dict[str, Any] = {"color": f"C{number}", "label": method}
        if len(lengths) > 1:
            width = 2 if number == 0 else 1
            places = [lengths.index(row["length"]) for row in own]
            axes.errorbar(places, recall, spread, marker="o", markersize=3, linewidth=width, **style)
        else:
            axes.bar([number], recall, yerr=spread, **style)
    axes.set_ylim(0, 1.02)
    axes.grid(axis="y", alpha=0.3)
    if len(lengths) > 1:
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_xlabel("tokens")
    else:
        axes.set_xticks([])


def _has(row: Row, name: str) -> bool:
    return bool(row.get(name)) if name == "llm_calls" else row.get(name) is not None


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if name == "seconds_per_query":
        return f"{1e3 * value:.1f}"
    if isinstance(value, float):
        return f"{value:.1f}" if name in ("auto_picks", "llm_calls") else f"{value:.3f}"
    return str(value)

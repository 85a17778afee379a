"""Put a trained pair into the package as the model used when none is named, then fill in its card and the README.

    python training/bundle.py --model runs/bundled-average/model
    qrag-bench babilong niah hotpotqa musique 2wiki 2wiki-open --data DATA --baseline all --json figures.json
    python training/bundle.py --figures figures.json

Figures are measured of what is in the package: compact, and so rounded to bfloat16.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qrag_retriever import QRAGModel
from qrag_retriever.benchmarks.suite.report import brief_table, differences_table, plot, recall_table
from qrag_retriever.benchmarks.timing import table
from qrag_retriever.checksums import write_checksums
from qrag_retriever.compact import SKELETON_NAME

# Of this checkout, wherever the package is installed.
BUNDLED = Path(__file__).parents[1] / "qrag_retriever" / "bundled"
CARD = Path(__file__).with_name("model_card.md")
README = Path(__file__).parents[1] / "README.md"
PLOT = README.parent / "docs/pages/benchmarks/recall.svg"
# The lines of the README between which the table of fact recall stands.
BORDERS = "<!-- recall: made by training/bundle.py --figures -->", "<!-- recall: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the trained pair that goes into the package")
    parser.add_argument("--figures", type=Path, nargs="+", help="JSON of qrag-bench, of the model in the package")
    chosen = parser.parse_args()
    if chosen.model is None and chosen.figures is None:
        parser.error("nothing to do: give --model or --figures")
    if chosen.model is not None:
        QRAGModel.from_pretrained(chosen.model, device="cpu").save_pretrained(BUNDLED, compact=True)
        write_oldest_layout(BUNDLED / SKELETON_NAME)
        write_checksums(BUNDLED)
        write_card([], [])
        size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
        print(f"{BUNDLED}: {size / 10**6:.1f} MB")
    if chosen.figures is not None:
        fingerprint = QRAGModel.from_pretrained(BUNDLED, device="cpu").fingerprint()
        rows: list[dict[str, Any]] = []
        differences: list[dict[str, Any]] = []
        for path in chosen.figures:
            found = read_figures(path)
            if found["qrag"]["fingerprint"] != fingerprint or found["qrag"]["beam_width"] != 1:
                parser.error(f"{path} has the figures of {found['qrag']}; measure the default model, greedily")
            rows += found["rows"]
            differences += found["differences"]
        write_card(rows, differences)
        shown = brief_table(rows, families=["niah-"])
        README.write_text(with_table(README.read_text(encoding="utf-8"), shown), encoding="utf-8")
        if compared := over_length(rows):
            plot(compared, PLOT)


def over_length(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose what a plot over lengths can compare: methods at several lengths, of benchmarks with baselines."""
    many = [
        (benchmark, method)
        for benchmark, method in dict.fromkeys((row["benchmark"], row["method"]) for row in rows)
        if len({row["length"] for row in rows if (row["benchmark"], row["method"]) == (benchmark, method)}) > 1
    ]
    compared = {benchmark for benchmark, method in many if method != "qrag"}
    return [row for row in rows if row["benchmark"] in compared and (row["benchmark"], row["method"]) in many]


def with_table(readme: str, found: str) -> str:
    """Put the table of fact recall in the place of the one before.

    Raises:
        SystemExit: If the README has no place for it.
    """
    begin, end = BORDERS
    head, has_begin, rest = readme.partition(begin)
    _, has_end, tail = rest.partition(end)
    if not has_begin or not has_end:
        raise SystemExit(f"{README} has no lines {begin!r} and {end!r} for the table to stand between")
    return f"{head}{begin}\n\n{found.strip()}\n\n{end}{tail}"


def read_json(path: Path) -> Any:
    """Read a JSON file, or end with what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SystemExit(f"{path} cannot be read as JSON: {error}") from error


def read_figures(path: Path) -> dict[str, Any]:
    """Read what qrag-bench has written, or end with what is missing in it."""
    found = read_json(path)
    expected = {"qrag": dict, "rows": list, "differences": list}
    content = found if isinstance(found, dict) else {}
    wrong = [key for key, kind in expected.items() if not isinstance(content.get(key), kind)]
    wrong += [f"qrag.{key}" for key in ("fingerprint", "beam_width") if not wrong and key not in content["qrag"]]
    if wrong:
        raise SystemExit(f"{path} has no {', '.join(wrong)}; expected the JSON file of a run of qrag-bench")
    return content


def write_oldest_layout(encoder: Path) -> None:
    """Describe a mean-pooled transformer as every sentence-transformers release reads it, old and new.

    Args:
        encoder: A sentence-transformers folder that a newer release wrote.
    """
    names = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = read_json(encoder / "modules.json")
    pooling = read_json(encoder / "1_Pooling" / "config.json")
    tokenizer = read_json(encoder / "tokenizer_config.json")
    if [module["path"] for module in modules] != list(names) or pooling["pooling_mode"] != "mean":
        raise SystemExit(f"{encoder} is no transformer with mean pooling: {modules}, {pooling}")
    kinds = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    contents: dict[str, Any] = {
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
            for place, (path, name) in enumerate(names.items())
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": pooling["embedding_dimension"],
            **{f"pooling_mode_{kind}": kind == "mean_tokens" for kind in kinds},
            "include_prompt": pooling["include_prompt"],
        },
        "sentence_bert_config.json": {"max_seq_length": tokenizer["model_max_length"], "do_lower_case": False},
    }
    settings = read_json(encoder / "config_sentence_transformers.json")
    # Older releases warn of files of a newer one, which these no longer are.
    settings.pop("__version__", None)
    contents["config_sentence_transformers.json"] = settings
    for name, content in contents.items():
        (encoder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_card(rows: list[dict[str, Any]], differences: list[dict[str, Any]]) -> None:
    """Write the card with the figures of runs of qrag-bench, as far as there are any."""
    (BUNDLED / "README.md").write_text(card(rows, differences), encoding="utf-8")


def card(rows: list[dict[str, Any]], differences: list[dict[str, Any]]) -> str:
    """Fill in the figures of runs of qrag-bench."""
    own = [row for row in rows if row["method"] == "qrag" and "auto_picks" in row]
    stops = [
        [
            row["benchmark"], row["length"], f"{row['auto_fact_recall']:.3f}", f"{row['auto_picks']:.1f}",
            f"{row['fact_recall']:.3f}", str(row["step_limit"]),
        ]
        for row in own
    ]  # fmt: skip
    text = CARD.read_text(encoding="utf-8")
    for place, value in {
        "recall": recall_table(rows),
        "stops": table(["benchmark", "length", "recall (auto)", "picks (auto)", "recall, always", "picks"], stops),
        "differences": differences_table([row for row in differences if row["score"] == "fact_recall"]),
    }.items():
        text = text.replace(f"{{{place}}}", value if rows else "Not measured yet.")
    return text


if __name__ == "__main__":
    main()

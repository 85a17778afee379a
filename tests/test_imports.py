"""The layering: a module imports from the lines above it, never from below, and the framework sides never meet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qrag_retriever"
LINES = [
    ["errors", "checks", "batching", "_extras", "_files", "positions", "rotary", "state", "sentences", "weights"],
    [
        "records",
        "devices",
        "default_model",
        "shared_pairs",
        "checksums",
        "mapped_vectors",
        "safe_loading",
        "embedding_cache",
        "json_lines",
        "_terminal",
    ],
    ["filters", "setting_names", "layout", "record_json", "q_values", "scan", "config", "steps", "bulk"],
    ["encoders", "transaction", "model_card", "compact", "reference_checkpoint"],
    ["pair", "stored_layout", "backends"],
    ["storage"],
    ["model", "sources"],
    ["view", "index_model"],
    ["backing", "trace"],
    ["engines", "hops"],
    ["index", "selection", "paths"],
    ["streams"],
    ["selector"],
    ["integrations"],
    ["retriever"],
    ["training"],
    ["benchmarks"],
    ["cli"],
    ["commands"],
]
# The same within the training package.
TRAINING_LINES = [
    ["data_checks", "timing", "recipe", "processes", "returns", "imitation", "schedules", "health"],
    ["stop_signals", "data"],
    ["datasets", "rewards", "checkpoint", "logs"],
    ["environment", "labelled_states", "sampling", "chunk_cache", "batches", "networks", "starting_point"],
    ["run_folder"],
    ["opening", "warm_start", "rollout", "evaluation"],
    ["pqn", "validation"],
    ["stages"],
    ["run_state", "assembly"],
    ["best_model"],
    ["trainer"],
    ["dry_run"],
    ["cli"],
]
LINE_OF = {module: number for number, line in enumerate(LINES) for module in line}
TRAINING_LINE_OF = {module: number for number, line in enumerate(TRAINING_LINES) for module in line}
FRAMEWORKS = ("langchain_core", "llama_index", "llama_index_instrumentation")


def unit_of(module: str) -> str:
    """The first part of a module's name within the package."""
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_the_lines_above(path: Path) -> None:
    relative = path.relative_to(PACKAGE).with_suffix("")
    own = relative.parts[0]
    assert own in LINE_OF, f"{own} has no place in the layering"
    for module in imports_of(path):
        if module.startswith("qrag_retriever.") and unit_of(module) in LINE_OF:
            other = unit_of(module)
            assert other == own or LINE_OF[other] < LINE_OF[own], f"{own} imports {other}"


TRAINING_FILES = [path for path in FILES if path.parent != PACKAGE and path.is_relative_to(PACKAGE / "training")]


@pytest.mark.parametrize("path", TRAINING_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_training_imports_only_from_the_lines_above(path: Path) -> None:
    own = path.relative_to(PACKAGE / "training").with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in TRAINING_LINE_OF, f"training.{own} has no place in the layering"
    for module in imports_of(path):
        parts = module.split(".")
        if parts[:2] == ["qrag_retriever", "training"] and len(parts) > 2 and parts[2] in TRAINING_LINE_OF:
            assert parts[2] == own or TRAINING_LINE_OF[parts[2]] < TRAINING_LINE_OF[own], f"{own} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_its_side_imports_a_framework(path: Path) -> None:
    frameworks = {name for module in imports_of(path) for name in FRAMEWORKS if module.split(".")[0] == name}
    # `documents` and `installed` meet the frameworks through the two sides.
    allowed = {
        "integrations/langchain.py": {"langchain_core"},
        "integrations/langchain_batch.py": {"langchain_core"},
        "integrations/langchain_hops.py": {"langchain_core"},
        "integrations/llama_index.py": {"llama_index"},
        "integrations/llama_index_hops.py": {"llama_index_instrumentation"},
        "engines/langchain_store.py": {"langchain_core"},
        "engines/llama_index_store.py": {"llama_index"},
    }
    assert frameworks <= allowed.get(path.relative_to(PACKAGE).as_posix(), set())


def test_torch_and_sentence_transformers_are_imported_inside_functions_only() -> None:
    """Opening an index and searching it needs neither; they come in with the first encode."""
    heavy = {"torch", "sentence_transformers", "transformers"}
    deferred = {"compact", "benchmarks"}
    # Data, rewards and environments never see a tensor; the rest of training is for torch.
    without_tensors = {"data", "data_checks", "datasets", "environment", "rewards", "sampling", "schedules", "recipe"}
    for path in FILES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in deferred or (parts[0] == "training" and parts[1] not in without_tensors):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not heavy & {name.split(".")[0] for name in names}, path


def test_the_framework_sides_do_not_know_each_other() -> None:
    for name, other in (("langchain", "llama_index"), ("llama_index", "langchain")):
        for path in (PACKAGE / "integrations").glob(f"{name}*.py"):
            found = imports_of(path)
            assert not any(module.startswith(f"qrag_retriever.integrations.{other}") for module in found)
            assert "qrag_retriever.integrations.installed" not in found

"""The commands that need an extra: one line says which, where it is not installed."""

from __future__ import annotations

import sys

from qrag_retriever._extras import require_extra


def train() -> int:
    """Run qrag-train."""
    try:
        from qrag_retriever.training.cli import main
    except ImportError as error:
        return _missing("qrag-train", error)
    return main()


def bench() -> int:
    """Run qrag-bench."""
    try:
        require_extra("bm25s", "bench")
        from qrag_retriever.benchmarks.suite.cli import main
    except ImportError as error:
        return _missing("qrag-bench", error)
    return main()


def _missing(command: str, error: ImportError) -> int:
    sys.stderr.write(f"{command}: {error}\n")
    return 1

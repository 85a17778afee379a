"""What a run tells: a progress bar, TensorBoard, and lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

_SHOWN = {"right_pick": "right", "imitation": "ce", "td_loss": "td", "q": "Q", "v": "V", "return": "G", "reward": "r"}


class RunLog:
    """Writes figures of a run; silent in all processes but the first."""

    def __init__(self, folder: Path, tensorboard: bool, silent: bool = False, go_on_at: int | None = None) -> None:
        """Open the log.

        Args:
            folder: Of the run: lines go to ``log.jsonl``, TensorBoard files to ``tensorboard/``.
            tensorboard: Whether to write TensorBoard files.
            silent: Whether to do nothing.
            go_on_at: Updates done when the run goes on; what was logged later is dropped, because it comes again.
                None: a new run, with an empty log.
        """
        self._silent = silent
        self._writer: Any = None
        self._file: Any = None
        self._bar: Any = None
        self._validation: dict[str, float] = {}
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        _cut(path, -1 if go_on_at is None else go_on_at)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            purged = 0 if go_on_at is None else go_on_at + 1
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purged)

    def begin(self, stage: str, done: int, num_updates: int) -> None:
        """Start the progress bar of a stage."""
        if not self._silent:
            # A bar on a terminal only; a file gets the lines of log.jsonl.
            self._bar = tqdm(total=num_updates, initial=done, desc=stage, unit="update", disable=None)

    def update(self, step: int, stage: str, figures: Mapping[str, float]) -> None:
        """Log the figures of one update; ``step`` counts over all stages."""
        if self._silent:
            return
        self._bar.update(1)
        shown = {short: figures[name] for name, short in _SHOWN.items() if name in figures}
        self._bar.set_postfix({**self._validation, **shown}, refresh=False)
        self._write(step, stage, figures)

    def validation(self, step: int, stage: str, figures: Mapping[str, float]) -> None:
        """Log the figures of a validation."""
        if self._silent:
            return
        self._validation = {
            short: figures[name] for name, short in (("fact_recall", "recall"), ("exact", "exact")) if name in figures
        }
        self._write(step, f"validation/{stage}", figures)

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        if not self._silent:
            # Whoever read it may have gone; the run goes on.
            with contextlib.suppress(OSError):
                tqdm.write(text)

    def end(self) -> None:
        """Close the bar of a stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Close all files."""
        self.end()
        for writer in (self._writer, self._file):
            if writer is not None:
                writer.close()

    def _write(self, step: int, stage: str, figures: Mapping[str, float]) -> None:
        rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
        self._file.write(json.dumps({"step": step, "stage": stage, **rounded}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"{stage}/{name}", value, step)


def _cut(path: Path, step: int) -> None:
    """Keep the lines of a log up to a number of updates, in one go; a kill may have torn the last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
            number = entry["step"] if entry["stage"].startswith("validation/") else entry["step"] + 1
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if line.endswith("\n") and number <= step:
            kept.append(line)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text("".join(kept), encoding="utf-8")
    os.replace(draft, path)

"""The folder of a training run: whose it is at the moment, what is in it, and its model and report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qrag_retriever._files import write_whole_file
from qrag_retriever.config import CONFIG_NAME
from qrag_retriever.training.checkpoint import newest_checkpoint

_MODEL, _REPORT, _LOCK, _LOG = "model", "report.json", ".lock", "log.jsonl"


@dataclass(frozen=True)
class Found:
    """What a run's folder holds before the run: an error, a finished run's report, a checkpoint, or nothing."""

    error: Exception | None = None
    report: dict[str, Any] | None = None
    checkpoint: Path | None = None


class RunFolder:
    """Locks out other runs and reads and writes what a finished run leaves.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        """Touch nothing yet.

        Args:
            path: Need not exist.
        """
        self.path = path
        self._lock = FileLock(path / _LOCK, timeout=0)

    @property
    def model(self) -> Path:
        """The folder of the model that was best on validation."""
        return self.path / _MODEL

    @property
    def report(self) -> Path:
        """What a run did, as JSON; written when it is finished."""
        return self.path / _REPORT

    @property
    def has_model(self) -> bool:
        """Whether there is a model, of this run or of an earlier one."""
        return (self.model / CONFIG_NAME).is_file()

    @property
    def holds_run(self) -> bool:
        """Whether a run has left anything that a new one would overwrite."""
        there = (self.model, self.report, self.path / _LOG)
        return any(path.exists() for path in there) or newest_checkpoint(self.path) is not None

    def read_report(self) -> dict[str, Any]:
        """Return the report of a finished run.

        Raises:
            OSError: If there is none.
            ValueError: If it is no report.
        """
        try:
            found: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
            best = found["best"]
            _ = found["recipe"]["run"].keys(), best is None or (best["step"] + 0, best["figures"].keys())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.report} is damaged ({type(error).__name__}: {error}). The run was finished, and the model in "
                f"{self.model} is whole. Name another run.output to train anew; or delete the report to go on from the "
                "last checkpoint, if the run has left one"
            ) from error
        return found

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write the report, whole or not at all."""
        write_whole_file(self.report, json.dumps(report, indent=2) + "\n")

    def take(self, resume: bool) -> Found:
        """Make the folder, lock it until `release`, and tell what is in it.

        Args:
            resume: Whether a run in it may be gone on with; an error is returned if there is one and it may not.
        """
        try:
            self._make()
            self._lock.acquire()
            checkpoint = newest_checkpoint(self.path)
            self._put_back_model()
            if not resume and self.holds_run:
                raise FileExistsError(f"{self.path} holds a run; go on with --resume, or name another run.output")
            if self.model.exists() and not self.has_model and (not self.model.is_dir() or any(self.model.iterdir())):
                raise FileExistsError(f"{self.model} exists and is no model; move it away, or name another run.output")
            if self.report.is_file() and self.has_model:
                return Found(report=self.read_report())
            if self.has_model and checkpoint is None and not (self.path / _LOG).exists():
                raise FileExistsError(
                    f"{self.path} holds a model, but no run to go on with; move the model away, or name another "
                    "run.output"
                )
            # Of a run that somebody has thrown away.
            self.report.unlink(missing_ok=True)
            return Found(checkpoint=checkpoint)
        except Timeout:
            return Found(FileExistsError(f"another run is at work in {self.path}; name another run.output"))
        except (OSError, ValueError) as error:
            return Found(error)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"run.output cannot be the folder {str(self.path)!r}: {reason}") from error

    def release(self) -> None:
        """Let other runs in."""
        self._lock.release()

    def _put_back_model(self) -> None:
        """Put back the model that a kill caught while another took its place; remove what it left behind."""
        for place in self.path.glob(f".{_MODEL}-*"):
            retired = place / _MODEL
            if retired.is_dir() and not self.model.exists():
                os.replace(retired, self.model)
            shutil.rmtree(place, ignore_errors=True)

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
from qrag_retriever.training.checkpoint import newest_checkpoint

_MODEL, _REPORT, _LOCK = "model", "report.json", ".lock"


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

    def read_report(self) -> dict[str, Any]:
        """Return the report of a finished run.

        Raises:
            OSError: If there is none.
            ValueError: If it is no report.
        """
        try:
            found: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
            _ = found["recipe"], found["best"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.report} is damaged ({error}); delete it to go on with the run") from error
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
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            checkpoint = newest_checkpoint(self.path)
            self._put_back_model()
            has_model = self.model.exists()
            if not resume and (checkpoint is not None or has_model or self.report.exists()):
                raise FileExistsError(f"{self.path} holds a run; go on with --resume, or name another run.output")
            if self.report.is_file() and has_model:
                return Found(report=self.read_report())
            # Of a run that somebody has thrown away.
            self.report.unlink(missing_ok=True)
            return Found(checkpoint=checkpoint)
        except Timeout:
            return Found(FileExistsError(f"another run is at work in {self.path}; name another run.output"))
        except (OSError, ValueError) as error:
            return Found(error)

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

"""What `test_distributed.py` lets two processes do; started by torchrun with a folder and an encoder."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qrag_retriever.errors import RewardError
from qrag_retriever.training.cli import main
from qrag_retriever.training.logs import RunLog
from qrag_retriever.training.processes import Processes
from qrag_retriever.training.rewards import SupportingFactsReward
from qrag_retriever.training.trainer import Interrupted
from tests.training_runs import settings_of, some_updates, toml_of, trainer_of, weights_of

RANK = int(os.environ.get("RANK", "0"))
# The same updates as one process makes: no embeddings are older than an update. With the usual eps, AdamW moves weights
# whose gradient is nothing but rounding (the biases of attention's keys) as far as all others; and a low temperature
# magnifies the rounding of Q-values.
COMPARED = {
    "run.refresh_updates": 1, "pqn.imitation_weight": 0.0, "optimizer.eps": 1e-3,
    "warm_start.start_temperature": 1.0,
    "warm_start.samples_per_update": 4, "pqn.num_envs": 4, "pqn.num_steps": 4, "pqn.accumulate": 2,
}  # fmt: skip
# Out of patience at once, which both processes must notice.
WHOLE = {
    "warm_start.num_updates": 50, "warm_start.patience_updates": 2, "warm_start.learning_rate": 1e-12,
    "run.checkpoint_minutes": 60.0, "run.tensorboard": True,
}  # fmt: skip


def updates(folder: Path, encoder: Path, stage: int) -> None:
    """Carry out three updates of a stage; keep gradients and weights."""
    trainer = trainer_of(folder, encoder, COMPARED)
    found = some_updates(trainer, trainer.stages[stage], 3)
    for what, tensors in zip(("gradients", "weights"), found, strict=True):
        save_file(tensors, folder / f"{what}{stage}.{RANK}.safetensors")


def indivisible(folder: Path, encoder: Path) -> None:
    """Share five environments among two processes."""
    messages = []
    for changes in ({"pqn.num_envs": 5}, {"warm_start.samples_per_update": 3}):
        try:
            trainer_of(folder, encoder, changes)
        except ValueError as error:
            messages.append(str(error))
    (folder / f"indivisible.{RANK}.json").write_text(json.dumps(messages))


def whole(folder: Path, encoder: Path) -> tuple[int, int]:
    """Carry out a run by the command line; return its exit code, and how many modules held the group when it ended."""
    if RANK == 0:
        changes = {**WHOLE, "run.output": str(folder / "whole")}
        (folder / "recipe.toml").write_text(toml_of(settings_of(folder, encoder, changes)))
    torch.distributed.barrier()
    holders: list[Any] = []
    original = Processes.leave

    def leave(self: Processes) -> None:
        holders.extend(one for one in gc.get_objects() if isinstance(one, torch.nn.parallel.DistributedDataParallel))
        original(self)

    Processes.leave = leave  # type: ignore[method-assign]
    return main([str(folder / "recipe.toml")]), len(holders)


def run(folder: Path, encoder: Path, output: str, stop_after: int | None = None, **changes: Any) -> None:
    """Go on with a run or begin it; if it is to be stopped, only one of two processes gets the signal."""
    changes = {**changes, "run.output": str(folder / output), "run.checkpoint_minutes": 60.0}
    trainer = trainer_of(folder, encoder, changes)
    original: Callable[..., None] = RunLog.update
    if RANK == 1 and stop_after is not None:

        def update(self: RunLog, step: int, *arguments: Any) -> None:
            original(self, step, *arguments)
            if step + 1 == stop_after:
                signal.raise_signal(signal.SIGTERM)

        RunLog.update = update  # type: ignore[method-assign]
    try:
        trainer.fit(resume=True)
        (folder / f"{output}.{RANK}.spent").write_text(str(trainer.state.spent()["processor_seconds"]))
        save_file(weights_of(trainer), folder / f"{output}.{RANK}.safetensors")
    except Interrupted as stopped:
        (folder / f"{output}.{RANK}.stopped").write_text(str(stopped))
    finally:
        RunLog.update = original  # type: ignore[method-assign]


def failing(folder: Path, encoder: Path) -> None:
    """Go on with a run whose reward fails in one of two processes, in the middle of an update."""
    trainer = trainer_of(folder, encoder, {"run.output": str(folder / "failed"), "run.checkpoint_minutes": 60.0})
    original = SupportingFactsReward.judge

    def judge(self: SupportingFactsReward, outcomes: Any) -> Any:
        if RANK == 1 and trainer.state.step == 7:
            raise RewardError("no route")
        return original(self, outcomes)

    SupportingFactsReward.judge = judge  # type: ignore[method-assign]
    try:
        trainer.fit()
    except RewardError as error:
        (folder / f"failed.{RANK}.error").write_text(str(error))
    finally:
        SupportingFactsReward.judge = original  # type: ignore[method-assign]


def all_of_it(folder: Path, encoder: Path) -> None:
    """Do everything in one start, which takes most of the time; note what this process writes."""
    touched: set[str] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event in ("os.mkdir", "os.rename"):
            for name in arguments[:2] if event == "os.rename" else arguments[:1]:
                path = Path(os.fsdecode(name) if isinstance(name, (str, bytes, Path)) else "")
                if path.is_relative_to(folder):
                    touched.add(path.relative_to(folder).as_posix())

    sys.addaudithook(note)
    for stage in (0, 1):
        updates(folder, encoder, stage)
    indivisible(folder, encoder)
    run(folder, encoder, "uninterrupted")
    run(folder, encoder, "interrupted", stop_after=6)
    run(folder, encoder, "interrupted")
    failing(folder, encoder)
    run(folder, encoder, "failed")
    run(folder, encoder, "unvalidated", data=[{"source": "unvalidated.jsonl"}], validation=[])
    # Last, because the command line leaves the group.
    code, holders = whole(folder, encoder)
    ended = {"code": code, "holders": holders, "touched": sorted(touched)}
    (folder / f"written.{RANK}.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Tells where both wait for each other, before the test's patience ends.
    faulthandler.dump_traceback_later(500, exit=True)
    all_of_it(Path(sys.argv[1]), Path(sys.argv[2]))

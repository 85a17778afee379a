"""Two processes with half of the environments each do what one does with all of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qrag_retriever.errors import CheckpointError, RecipeError
from qrag_retriever.training.processes import Processes
from tests.training_runs import (
    PQN_UPDATES,
    log_of,
    norm_of_difference,
    outcome_of,
    recipe_of,
    some_updates,
    trainer_of,
    without_validation,
)
from tests.two_processes import COMPARED

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()) or sys.platform == "win32",
    reason="needs gloo",
)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """The folder in which two processes have done all that `two_processes.py` has."""
    folder = tmp_path_factory.mktemp("both")
    recipe_of(folder, tiny_encoder)
    without_validation(folder, "unvalidated.jsonl")
    arguments = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    arguments += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    arguments += ["-m", "tests.two_processes", str(folder), str(tiny_encoder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (
        (folder / "out.txt").open("w") as out,
        (folder / "err.txt").open("w") as err,
        subprocess.Popen(arguments, stdout=out, stderr=err, env=environment, cwd=Path(__file__).parents[1]) as launcher,
    ):
        try:
            launcher.wait(timeout=600)
        except subprocess.TimeoutExpired:
            # The launcher ends the processes that it has started.
            launcher.send_signal(signal.SIGTERM)
            launcher.wait()
            pytest.fail(f"two processes wait for each other:\n{(folder / 'err.txt').read_text()[-3000:]}")
    assert launcher.returncode == 0, (folder / "err.txt").read_text()[-5000:]
    return folder


def of_both(folder: Path, name: str, ending: str) -> list[Path]:
    return [folder / f"{name}.{rank}.{ending}" for rank in (0, 1)]


@pytest.mark.parametrize("stage", [0, 1], ids=["warm_start", "pqn"])
def test_two_processes_make_the_updates_of_one(both: Path, tmp_path: Path, tiny_encoder: Path, stage: int) -> None:
    trainer = trainer_of(both, tiny_encoder, {**COMPARED, "run.output": str(tmp_path / "one")})
    before = {name: weight.detach().clone() for name, weight in trainer.pair.trainable().items()}
    gradients, weights = some_updates(trainer, trainer.stages[stage], 3)
    assert norm_of_difference(weights, before) > 1e-3
    for what, expected in (("gradients", gradients), ("weights", weights)):
        for path in of_both(both, f"{what}{stage}", "safetensors"):
            assert norm_of_difference(load_file(path), expected) < 1e-6


def test_processes_end_with_the_same_weights(both: Path) -> None:
    for name in ("weights0", "weights1", "uninterrupted", "interrupted"):
        first, second = (load_file(path) for path in of_both(both, name, "safetensors"))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_cannot_be_shared_equally_is_an_error_that_says_what_to_do(both: Path) -> None:
    for path in of_both(both, "indivisible", "json"):
        assert json.loads(path.read_text()) == [
            "5 pqn.num_envs cannot be shared equally by 2 processes; use a multiple",
            "3 warm_start.samples_per_update cannot be shared equally by 2 processes; use a multiple",
        ]


def test_only_the_first_process_writes_and_speaks(both: Path) -> None:
    first, second = (json.loads(path.read_text()) for path in of_both(both, "written", "json"))
    assert (first["code"], second["code"]) == (0, 0)
    for run in ("whole", "unvalidated"):
        assert {f"{run}/log.jsonl", f"{run}/report.json"} <= set(first["touched"])
    # Its own part of a checkpoint, and what the test itself keeps.
    others = [path for path in second["touched"] if "/" in path and "/process-1." not in path]
    assert others == []
    assert (both / "out.txt").read_text().count("The model is in ") == 1
    assert len(list((both / "whole" / "tensorboard").iterdir())) == 1


def test_no_module_holds_the_group_when_it_ends(both: Path) -> None:
    assert [json.loads(path.read_text())["holders"] for path in of_both(both, "written", "json")] == [0, 0]


def test_both_processes_know_when_patience_is_at_an_end(both: Path) -> None:
    stages = [entry["stage"] for entry in log_of(both / "whole")]
    assert (stages.count("warm_start"), stages.count("pqn")) == (2, PQN_UPDATES)


def test_a_signal_to_one_process_stops_both_and_resuming_equals_not_stopping(both: Path) -> None:
    for path in of_both(both, "interrupted", "stopped"):
        assert "--resume" in path.read_text()
        assert f"from {both / 'interrupted' / 'checkpoints' / '00000006'} (" in path.read_text()
    outcomes: list[dict[str, Any]] = [
        outcome_of(both / name, load_file(both / f"{name}.0.safetensors")) for name in ("interrupted", "uninterrupted")
    ]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("run", ["uninterrupted", "interrupted"])
def test_processor_seconds_are_those_of_both(both: Path, run: str) -> None:
    spent = sum(float(path.read_text()) for path in of_both(both, run, "spent"))
    reported = json.loads((both / run / "report.json").read_text())["processor_seconds"]
    # The report is written a little before the processes note theirs.
    assert 0.8 * spent < reported <= spent


def test_a_reward_that_fails_in_one_process_leaves_a_checkpoint_of_all(both: Path) -> None:
    said = [(both / f"failed.{rank}.error").read_text() for rank in range(2)]
    checkpoint = both / "failed" / "checkpoints" / "00000007"
    assert said[1] == f"no route; go on with --resume from {checkpoint}"
    assert said[0] == f"the reward has failed in another process; go on with --resume from {checkpoint}"
    for rank in range(2):
        found, whole = (load_file(both / f"{run}.{rank}.safetensors") for run in ("failed", "uninterrupted"))
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_another_number_of_processes_is_refused(both: Path, tiny_encoder: Path) -> None:
    changes = {"run.output": str(both / "interrupted"), "run.checkpoint_minutes": 60.0}
    # As if its last updates were still to come.
    (both / "interrupted" / "report.json").unlink()
    with pytest.raises(CheckpointError, match="written by 2 processes, now there are 1; resume with the same number"):
        trainer_of(both, tiny_encoder, changes).fit(resume=True)


@pytest.mark.parametrize("size", [1, 4])
def test_each_process_has_a_gpu_of_its_own(size: int) -> None:
    processes = Processes(rank=size - 1, size=size, local_rank=size - 1)
    assert processes.own_device("cuda") == f"cuda:{size - 1}"
    assert processes.own_device("cpu") == "cpu"


def test_one_gpu_is_not_for_all_of_several_processes() -> None:
    assert Processes().own_device("cuda:1") == "cuda:1"
    with pytest.raises(RecipeError, match=r"run\.device is 'cuda:1', one GPU for all of 2 processes; make it 'cuda'"):
        Processes(rank=1, size=2, local_rank=1).own_device("cuda:1")

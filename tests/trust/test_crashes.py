"""Processes killed at random moments: an index and a training run lose nothing that was acknowledged."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.index_folders import assert_consistent, load, record, saved
from tests.training_runs import (
    assert_same,
    last_weights,
    outcome_of,
    recipe_of,
    settings_of,
    started,
    train_to_the_end,
)
from tests.trust.counts import count
from tests.trust.crash_worker import START, expected_after, killed

# Five kinds of changes: 200 kills in all, or 10.
KILLS = count(2, 40)
# Seconds: from before the first change to after some.
LATEST_KILL = 0.12


@pytest.mark.parametrize("kills", [KILLS])
@pytest.mark.parametrize("kind", ["add", "update", "delete", "save"])
def test_a_kill_leaves_the_old_or_the_new_state_and_all_that_was_acknowledged(
    tmp_path: Path, kind: str, kills: int
) -> None:
    rng = random.Random(kind)
    for _ in range(kills):
        folder = tmp_path / "index"
        saved(folder, START[kind])
        done = killed(kind, folder, rng.uniform(0.0, LATEST_KILL))
        index = load(folder)
        found = [(one.id, one.text) for one in index.get(index.ids)]
        assert found in (expected_after(kind, done), expected_after(kind, done + 1))
        assert_consistent(index)
        index.add_records([record(999)])
        assert_consistent(load(folder))
        shutil.rmtree(folder)


@pytest.mark.parametrize("kills", [KILLS])
def test_a_kill_leaves_a_new_folder_whole_or_absent(tmp_path: Path, kills: int) -> None:
    rng = random.Random("new")
    for kill in range(kills):
        folder = tmp_path / str(kill)
        done = killed("new", folder, rng.uniform(0.0, LATEST_KILL))
        for number in range(1, done + 2):
            if number <= done or (folder / str(number)).exists():
                index = load(folder / str(number))
                assert [one.text for one in index.get(index.ids)] == [f"save {number} {i}" for i in range(20)]
                assert_consistent(index)


def killed_and_resumed(
    folder: Path, content: Mapping[str, Any], kills: int, seconds: float, rng: random.Random
) -> Iterator[Any]:
    """Kill a run at random moments and go on; yield the outcome whenever it comes to an end."""
    done = 0
    while True:
        process = started(train_to_the_end, folder, content, str(folder))
        process.join(rng.uniform(0.1, 1.0) * seconds if done < kills else 60)
        if process.is_alive():
            process.kill()
            done += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), (folder / "err.txt").read_text()
        if process.exitcode != 0 and (folder / "run" / "report.json").exists():
            # It was at its end, and this test had not kept its last weights yet: a finished run trains no more.
            shutil.rmtree(folder / "run")
            (folder / "last.safetensors").unlink(missing_ok=True)
        if process.exitcode == 0:
            yield outcome_of(folder / "run", last_weights(folder))
            shutil.rmtree(folder / "run")
            (folder / "last.safetensors").unlink()
            if done >= kills:
                return


@pytest.mark.parametrize("kills", [count(2, 50)])
def test_a_run_that_is_killed_at_random_moments_equals_one_that_is_not(
    tmp_path: Path, tiny_encoder: Path, kills: int
) -> None:
    """Weights, kept model, figures and report: bit for bit."""
    rng = random.Random(kills)
    changes = {"run.evaluate_updates": 1}
    recipe_of(tmp_path, tiny_encoder)
    content = settings_of(tmp_path, tiny_encoder, changes)
    # The server of processes takes its time to start.
    started(int, tmp_path).join()
    begun = time.monotonic()
    # In a process of the same kind: the number of threads decides about last bits.
    expected = next(killed_and_resumed(tmp_path, content, 0, 0.0, rng))
    seconds = time.monotonic() - begun
    shutil.rmtree(tmp_path / "run")
    for found in killed_and_resumed(tmp_path, content, kills, seconds, rng):
        assert_same(found, expected)

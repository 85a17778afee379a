"""Trainer: carries out a recipe, stage by stage; logs, validates, keeps checkpoints and the best model."""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qrag_retriever.devices import choose_device, is_out_of_memory, release_free_memory
from qrag_retriever.errors import DataError, DivergedError, RecipeError, RewardError
from qrag_retriever.model import QRAGModel
from qrag_retriever.training.assembly import (
    StageLoss,
    build_networks,
    build_optimizer,
    build_stages,
    check_facts,
    warnings_of,
    warnings_of_sources,
)
from qrag_retriever.training.best_model import BestModel
from qrag_retriever.training.checkpoint import Checkpoint, drop_newest, drop_older, read_checkpoint, write_checkpoint
from qrag_retriever.training.data import DEFAULT_CHUNK_TOKENS
from qrag_retriever.training.health import Health, LossGuard, diverged
from qrag_retriever.training.logs import RunLog
from qrag_retriever.training.opening import open_reward, open_tasks
from qrag_retriever.training.processes import Processes
from qrag_retriever.training.recipe import Recipe
from qrag_retriever.training.rewards import Reward
from qrag_retriever.training.run_folder import Found, RunFolder
from qrag_retriever.training.run_state import RunState, check_same_recipe, random_states, set_random_states
from qrag_retriever.training.sampling import Mixture
from qrag_retriever.training.stages import Stage
from qrag_retriever.training.starting_point import starting_point
from qrag_retriever.training.stop_signals import StopSignals
from qrag_retriever.training.timing import Stopwatch
from qrag_retriever.training.validation import Validation

_SAMPLES_FOR_SCALE = 8
# Handing free memory back costs the next update what it takes to get it again.
_TRIMMED_UPDATES = 10


class Interrupted(Exception):  # noqa: N818 - no error: the run can go on
    """The run was stopped by a signal after it had written a checkpoint."""

    def __init__(self, signal_number: int, checkpoint: Path, best: str = "") -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; go on with --resume from {checkpoint}{best}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class _Before:
    """What an update may have changed when a reward fails in it: the stage, random states, embeddings by name."""

    stage: dict[str, Any]
    random: dict[str, torch.Tensor]
    caches: dict[str, tuple[list[str], torch.Tensor]]


class Trainer:
    """Fine-tunes a pair of encoders as a recipe says.

    Attributes:
        recipe: The settings.
        output: Folder of the run: ``model/`` (the best on validation), ``checkpoints/``, ``log.jsonl``,
            ``tensorboard/`` and ``report.json``.
        processes: This process's place among those of the run.
        state: What the next update goes on from, with the figures of every validation so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        data_folder: str | Path | None = None,
        recipe_folder: str | Path = ".",
        reward: Reward | None = None,
    ) -> None:
        """Open data, reward and model.

        Args:
            recipe: The settings.
            data_folder: Where data sets lie.
            recipe_folder: What paths of .jsonl files in the recipe are relative to.
            reward: In place of the recipe's, one of your own.

        Raises:
            RecipeError: If settings do not fit together.
            DataError: If data is missing or wrong.
        """
        self.recipe = recipe
        self.output = Path(recipe.run.output)
        self._folder = RunFolder(self.output)
        run = recipe.run
        device = choose_device(run.device)
        self.processes = Processes.join(device)
        self._device = self.processes.own_device(device)
        if device.startswith("cuda"):
            torch.cuda.set_device(self._device)
        self._reward = open_reward(recipe.reward) if reward is None else reward
        check_facts(recipe, self._reward)
        folder = None if data_folder is None else Path(data_folder).expanduser()
        if folder is not None and not folder.is_dir():
            raise DataError(f"the data folder {folder} is not there; name it with --data DIR, or leave it out")
        # Adapters, and whatever else an encoder lacks, begin at random.
        torch.manual_seed(run.seed)
        start = starting_point(recipe.model, self._device)
        action = start.encoders()[1]
        chunking = {"chunk_tokens": min(DEFAULT_CHUNK_TOKENS, action.content_limit), "count_tokens": action.token_ids}
        training, validation = open_tasks(recipe, folder, Path(recipe_folder), chunking)
        self.mixture = Mixture(training, self._reward)
        self.validation = Validation(validation, run.validation_samples, run.seed, self._reward, recipe.pqn.gamma)
        drawn = [self.mixture.draw(np.random.default_rng([run.seed, 0, i])) for i in range(_SAMPLES_FOR_SCALE)]
        samples = [sample for sample, _ in drawn]
        self._modes = {sample.mode for sample in samples}
        self._warnings = list(warnings_of(drawn, self.validation, action))
        self._warnings += warnings_of_sources(training, validation, self._reward)
        self._guard = LossGuard(max(map(self._reward.most, samples)))
        self._networks = build_networks(recipe, start, samples, self._device)
        self.pair = self._networks.pair
        if self.processes.rank:
            # Networks begin alike, dropout differs.
            torch.manual_seed(run.seed + self.processes.rank)
        self.state = RunState(
            recipe, self.pair, self._networks.log_temperature, self._networks.caches, self.mixture,
            [task.source for task in (*training, *validation)],
        )  # fmt: skip
        self.stages = build_stages(recipe, self._networks, self._reward, self.mixture, self.processes)
        self._module = self.processes.parallel(StageLoss(self.pair, self._networks.log_temperature))
        self._best = BestModel(self._folder.model, self.pair, self.validation, self.state, self.mixture.tasks, run.keep)
        if recipe.validation and not len(self.validation):
            raise RecipeError(
                f"the reward ({recipe.reward.kind}) can judge no question of the validation; name another one in "
                "[[validation]], or leave it out"
            )
        self._watch = Stopwatch()
        self._health = Health()
        self._signals = StopSignals(tell=self.processes.is_first)
        self._was_finished = False

    def fit(self, resume: bool = False) -> QRAGModel:
        """Train; return the model that was best on validation (the last one where there is no validation).

        Args:
            resume: Go on from the newest checkpoint in the output folder, if there is one; nothing is done if the
                run in it is finished.

        Raises:
            Interrupted: After SIGINT or SIGTERM, when the checkpoint has been written.
            KeyboardInterrupt: After a second SIGINT, at once.
            DivergedError: If the loss or Q-values are not finite, or the loss explodes; the best model and a checkpoint
                stand, if there were any: not the newest where it has led straight to this and there is one before it.
            RewardError: If the reward fails; a checkpoint to go on from has been written.
            MemoryError: If the device has not enough of it.
            CheckpointError: If the checkpoint is damaged or of another recipe.
            FileExistsError: If the output folder holds a run and ``resume`` is not asked for, or a run is at work in
                it.
        """
        self.state.start_clock()
        try:
            # The first process looks for all of them, with other runs locked out: what there is must not change between
            # two looks.
            there = self.processes.from_first(self._folder.take(resume) if self.processes.is_first else Found())
            if there.error is not None:
                raise there.error
            if there.report is not None:
                check_same_recipe(there.report["recipe"], self.recipe)
                self.state.best = there.report["best"] or self.state.best
                self._was_finished = True
            else:
                self._fit(there.checkpoint, resume)
        finally:
            self._folder.release()
        self.processes.wait()
        return QRAGModel.from_pretrained(self._folder.model, device=self.recipe.run.device)

    def _fit(self, found: Path | None, resume: bool) -> None:
        checkpoint = None if found is None else read_checkpoint(found, self.processes)
        first = 0 if checkpoint is None else self.state.restore_shared(checkpoint)
        log = RunLog(
            self.output, self.recipe.run.tensorboard, silent=not self.processes.is_first,
            go_on_at=None if checkpoint is None else self.state.step,
        )  # fmt: skip
        try:
            if resume:
                log.say("no checkpoint to go on from; a new run begins" if found is None else f"going on from {found}")
            for warning in self._warnings:
                log.say(f"warning: {warning}")
            if self.processes.from_first(self.state.best["step"] >= 0 and not self._folder.has_model):
                log.say(f"warning: the best model so far is not in {self._folder.model} any more; the next one is kept")
                self.state.forget_best()
            with self._signals.handled():
                self._run(log, first, checkpoint)
        finally:
            log.close()

    @property
    def is_first_process(self) -> bool:
        """Whether this process, of those of the run, is the one that tells what happens."""
        return self.processes.is_first

    @property
    def warnings(self) -> Sequence[str]:
        """What the recipe asks for that nobody can want; said when training begins."""
        return self._warnings

    def leave(self) -> None:
        """Leave the other processes of the run, at the very end; the trainer cannot train after it."""
        # A wrapped module holds the group too. If it were the last to do so, it would wait for the group's threads with
        # the interpreter's lock in its hands, for which they may be waiting.
        self.__dict__.pop("_module", None)
        gc.collect()
        self.processes.leave()

    def closing_words(self) -> str:
        """Say where the model is and how to use it."""
        folder = self._folder.model.as_posix()
        # The default for texts is document mode.
        mode = ', mode="corpus"' if self._modes == {"corpus"} else ""
        figures = self.state.best["figures"]
        measured = ", ".join(f"{name} {figures[name]:.3f}" for name in ("fact_recall", "exact") if name in figures)
        return (
            f"{'The run was finished before; nothing has been done. ' if self._was_finished else ''}"
            f"The model is in {folder}{f' (validation: {measured})' if measured else ''}. To use it:\n\n"
            "    from qrag_retriever import QRAGRetriever\n"
            f"    retriever = QRAGRetriever.from_texts(chunks, model={json.dumps(folder, ensure_ascii=False)}{mode})\n"
            '    docs = retriever.invoke("your question")\n'
        )

    def _run(self, log: RunLog, first: int, checkpoint: Checkpoint | None) -> None:
        for number in range(first, len(self.stages)):
            resumed = checkpoint if number == first else None
            self._run_stage(number, log, resumed)
        if self.processes.is_first and (self.state.best["step"] < 0 or not self._folder.has_model):
            self._best.save({})
        self._write_report(log)

    def _run_stage(self, number: int, log: RunLog, checkpoint: Checkpoint | None) -> None:
        stage, run = self.stages[number], self.recipe.run
        optimizer = build_optimizer(self.recipe.optimizer, self._networks)
        done = 0
        if checkpoint is not None:
            done = self.state.restore_stage(stage, optimizer, checkpoint)
        else:
            stage.begin()
        with self._stopping(stage, number, done, optimizer):
            if not self.state.history or self._is_due(stage, done):
                self._validate(stage, log)
        last_written = time.monotonic()
        log.begin(stage.name, done, stage.num_updates)
        while done < stage.num_updates and not self._out_of_patience(stage):
            with self._stopping(stage, number, done, optimizer, self._before_update(stage)):
                self._update(stage, done, optimizer, log)
            if self.processes.is_first:
                drop_older(self.output)
            if self.state.step % _TRIMMED_UPDATES == 0:
                release_free_memory()
            done += 1
            self.state.step += 1
            with self._stopping(stage, number, done, optimizer):
                if self._is_due(stage, done):
                    self._validate(stage, log)
            due = time.monotonic() - last_written > 60 * run.checkpoint_minutes
            stop = self.processes.any(self._signals.noted is not None)
            if self.processes.any(due) or stop:
                path = self._write_checkpoint(number, done, stage, optimizer)
                last_written = time.monotonic()
                if stop:
                    raise Interrupted(self._signals.noted or signal.SIGTERM, path, self._best_so_far())
        log.end()
        if done < stage.num_updates:
            log.say(
                f"{stage.name} ends after {done} of {stage.num_updates} updates: validation has not improved for "
                f"{stage.patience_updates}"
            )

    def _is_due(self, stage: Stage, done: int) -> bool:
        """Tell whether a stage's weights are to be measured after so many updates, and have not been."""
        now = done > 0 and (done % self.recipe.run.evaluate_updates == 0 or done == stage.num_updates)
        return now and (not self.state.history or self.state.history[-1]["step"] < self.state.step)

    def _update(self, stage: Stage, done: int, optimizer: torch.optim.Optimizer, log: RunLog) -> None:
        start = time.perf_counter()
        if self.state.step % self.recipe.run.refresh_updates == 0:
            self._new_era()
        optimizer.zero_grad(set_to_none=True)
        parts: list[dict[str, float]] = []
        for part in range(stage.accumulate):
            last = part == stage.accumulate - 1
            parts.append({})
            module: Any = self._module
            with module.no_sync() if self.processes.size > 1 and not last else contextlib.nullcontext():
                loss = self._loss(module, stage, done, parts[-1])
                self._guard.check_loss(float(loss.detach()), stage.name)
                with self._watch("backward"):
                    (loss / stage.accumulate).backward()
        with self._watch("optimizer"):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(weights, self.recipe.optimizer.max_gradient_norm)
            self._guard.check_gradient(float(norm), stage.name)
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate(done)
            optimizer.step()
            stage.after(done)
        figures = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        figures["gradient_norm"] = float(norm)
        figures["updates_per_second"] = 1.0 / (time.perf_counter() - start)
        figures["learning_rate"] = stage.learning_rate(done)
        figures.update({f"time/{name}": share for name, share in self._watch.shares().items()})
        log.update(self.state.step, stage.name, figures)
        for warning in self._health.update(figures) if "td_loss" in figures else ():
            log.say(warning)

    def _loss(self, module: Any, stage: Stage, done: int, figures: dict[str, float]) -> Any:
        """Make a loss; where the reward fails in one process, it fails in all, which then can write a checkpoint."""
        loss, failure = None, None
        try:
            loss = module(stage, done, self._watch, figures)
        except RewardError as error:
            failure = error
        if self.processes.any(failure is not None):
            raise failure or RewardError("the reward has failed in another process")
        return loss

    def _best_so_far(self) -> str:
        """Say which model a run that is stopped leaves: it may have learned nothing yet."""
        best = self.state.best["step"]
        return f" (the model of update {best} is in {self._folder.model})" if best >= 0 else ""

    @contextlib.contextmanager
    def _stopping(
        self, stage: Stage, number: int, done: int, optimizer: torch.optim.Optimizer,
        before: _Before | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """Say what to do where an update or a validation fails; where the reward did, leave a checkpoint.

        Args:
            stage: That is at work.
            number: Its place.
            done: Its updates so far.
            optimizer: Its optimiser.
            before: What the update changes before it is done, as it was: the checkpoint is of that. None: as it is.
        """
        try:
            yield
        except DivergedError as error:
            if self.processes.is_first:
                # Its weights have led straight to this.
                drop_newest(self.output, self.state.step)
            kept = self._folder.model if self.state.best["step"] >= 0 else None
            what = f"{error} at update {self.state.step}"
            raise DivergedError(diverged(what, kept, at_once=self.state.step == 0)) from error
        except RewardError as error:
            if before is not None:
                stage.restore(before.stage)
                set_random_states(before.random, self.pair.device)
                for name, cache in before.caches.items():
                    self._networks.caches[name].restore(*cache)
            path = self._write_checkpoint(number, done, stage, optimizer)
            raise RewardError(f"{error}; go on with --resume from {path}") from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"memory of {self.pair.device} was not enough at update {self.state.step} ({stage.name}): "
                f"{str(error).splitlines()[0]} Lower warm_start.fresh_tokens and warm_start.samples_per_update, or "
                "pqn.num_envs and pqn.fresh_chunks (pqn.accumulate makes up for environments), in another run.output; "
                "the last checkpoint stands"
            ) from error

    def _before_update(self, stage: Stage) -> _Before:
        # Of several rollouts, in turn or in other processes, those that go well leave their embeddings in the caches.
        caches = self._networks.caches if stage.accumulate > 1 or self.processes.size > 1 else {}
        kept = {name: cache.state() for name, cache in caches.items()}
        return _Before(stage.state(), random_states(self.pair.device), kept)

    def _write_checkpoint(self, number: int, done: int, stage: Stage, optimizer: torch.optim.Optimizer) -> Path:
        state = self.state.checkpoint(number, done, stage, optimizer, self.processes.size)
        return write_checkpoint(self.output, self.state.step, state, self.processes)

    def _new_era(self) -> None:
        self.mixture.era = self.state.step // self.recipe.run.refresh_updates
        for cache in self._networks.caches.values():
            cache.clear()

    def _validate(self, stage: Stage, log: RunLog) -> None:
        """Measure on validation in the first process; all of them know the outcome, and decide alike by it."""
        if not len(self.validation):
            return
        failure: RewardError | None = None
        if self.processes.is_first:
            try:
                with self._watch("validation"):
                    self._best.measure(stage, log)
            except RewardError as error:
                failure = error
            self._watch.shares()
        known = self.state.history, self.state.best, None if failure is None else str(failure)
        self.state.history, self.state.best, failed = self.processes.from_first(known)
        if failed is not None:
            raise failure or RewardError(failed)

    def _out_of_patience(self, stage: Stage) -> bool:
        patience = stage.patience_updates
        if patience is None:
            return False
        own = [entry for entry in self.state.history if entry["stage"] == stage.name]
        if not own:
            return False
        best = max(own, key=lambda entry: float(entry["score"]))
        return bool(int(own[-1]["step"]) - int(best["step"]) >= patience)

    def _write_report(self, log: RunLog) -> None:
        skipped = Counter(self.processes.gathered(list(self.mixture.skipped.elements())))
        spent = self.state.spent()
        spent["processor_seconds"] = sum(self.processes.gathered([spent["processor_seconds"]]))
        for reason, count in skipped.items():
            log.say(f"{count} questions were left out, because {reason}")
        if self.processes.is_first:
            report = {
                **spent,
                "recipe": self.recipe.model_dump(),
                "best": self.state.best if self.state.best["step"] >= 0 else None,
                "validation": self.state.history,
                "skipped_samples": dict(skipped),
            }
            self._folder.write_report(report)
            drop_older(self.output)

    def one_update(self, stage: Stage) -> float:
        """Carry out the first update of a stage and return the seconds it took; for estimates, changes the weights."""
        start = time.perf_counter()
        optimizer = build_optimizer(self.recipe.optimizer, self._networks)
        self._update(stage, 0, optimizer, RunLog(self.output, tensorboard=False, silent=True))
        self.state.step += 1
        return time.perf_counter() - start

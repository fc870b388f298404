"""The training loop, from the first weights to the last epoch. Runs inside every worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from pipelines.augment.draw import check_batch
from pipelines.errors import TrainingError
from pipelines.input.cache import Cache
from pipelines.input.order import PADDING
from pipelines.records import Batch
from service.checkpoint import (
    Arrays,
    Position,
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
    snapshot,
)
from service.config import RunConfig
from service.recipe import stopped
from service.runs import Run, StoppedError
from service.training.async_writer import AsyncWriter, ModelFile
from service.training.checks import check_finite, check_learned, check_measured
from service.training.controller import LoopController
from service.training.evaluation import Evaluation
from service.training.events import WriteEpoch, epoch_log
from service.training.features import Gallery
from service.training.learner import build_learner, build_network, open_splits
from service.training.meter import Clock, Meter
from service.training.schedule import stage_at, stages_of, updates_per_epoch
from service.training.statistics import PreciseStatistics
from service.training.step import StepResult, Steps
from service.training.strategy import ALONE, WorkerContext, choose_strategy, distributed
from service.training.telemetry import RowLog, profiled, to_profile, watchers

AfterEpoch = Callable[[Sequence[dict[str, float]]], None]
SHOWN_ROWS = 8  # rows of a bad batch that an error names


def fit(
    config: RunConfig, run: Run, place: WorkerContext = ALONE, after_epoch: AfterEpoch | None = None
) -> None:
    """Trains a run to its last epoch, from its newest checkpoint where it has one.

    After every epoch: evaluation, then in the background the best model, a checkpoint, a line of metrics.

    Args:
        config: What to train.
        run: Where to.
        place: Of this process among the workers.
        after_epoch: Called with the history when an epoch is over and written.

    Raises:
        GlassboxError: The configuration or the data cannot be used, or the training has diverged.
        StoppedError: It was asked to stop; where it stood is saved.
    """
    loop = Loop(config, run, place)
    try:
        loop.run_epochs(after_epoch)
    finally:
        loop.saver.wait()


class Loop:
    """One run in one worker: everything that is built once, and the position.

    Args:
        config: What to train.
        run: Where to.
        place: Of this process among the workers.
    """

    def __init__(self, config: RunConfig, run: Run, place: WorkerContext) -> None:
        self.config, self.run, self.place = config, run, place
        self.clock, self.saver = Clock(), AsyncWriter()
        with self.clock.measure("setup"):
            self.strategy = choose_strategy(config.global_batch, place)
            if config.augment:
                check_batch(config.augment, config.global_batch // self.strategy.num_replicas_in_sync)
            cache = Cache(self.strategy, place.neighbours)
            self.train, self.validation = open_splits(config, cache)
            check_measured(config, self.validation is not None)
            found = newest_checkpoint(run.checkpoints, self.train.manifest.digest(), config.model)
            model = build_network(config, self.strategy, self.train, begin=found is None)
            self.file = ModelFile(run, model)
            self.position = found.position if found else Position(self.train.manifest.digest())
            if run.metrics() and not found:
                raise TrainingError(
                    "the checkpoints of the finished epochs",
                    f"checkpoints={run.checkpoints} (empty)",
                    "start a new run",
                )
            self.gallery = Gallery(config, self.strategy, self.train, self.validation, cache)
            self.learner = build_learner(config, self.train, model, self.gallery, self._stage)
            if found:
                same = found.stage == self.learner.stage
                wanted = self.learner.variables
                found.load(wanted if same else {"model": wanted["model"]})
                if self.learner.steps.average and not same:
                    self.learner.steps.average.restart()  # a stage begins its average at the weights it begins with
            self.evaluation, self.statistics = self._evaluation(), self._statistics()
        left = config.epochs - self.position.epoch
        self.batches = distributed(
            self.strategy, self.train, place, self.position.epoch + 1, self.position.step, left
        )
        fixed = None if config.steps_per_call == "auto" else config.steps_per_call
        self.pace = LoopController(run, place, self.strategy, fixed, config.checkpoint_minutes)
        self.meter = Meter(run, config.epochs, self.train.rows, watchers(config, run) if place.writes else ())
        self.rows = RowLog.wanted(run, place.rank)
        if place.writes:
            self._announce(
                [f"{path.name} is damaged and was passed over" for path in (found.damaged if found else ())]
            )

    @property
    def _stage(self) -> int:
        """The stage of the next epoch; of the last one where there is none."""
        return stage_at(stages_of(self.config), min(self.position.epoch + 1, self.config.epochs))

    def _evaluation(self) -> Evaluation | None:
        """Of what the stage runs."""
        views = self.learner.views.prepared()
        with self.strategy.scope():
            return (
                Evaluation(views.net, self.strategy, self.validation, self.place, views.validation)
                if self.validation
                else None
            )

    def _statistics(self) -> PreciseStatistics | None:
        """Those of the stage, where they are asked for."""
        images = self.config.precise_batch_norm
        with self.strategy.scope():
            return (
                PreciseStatistics(self.learner.views, self.strategy, self.train, self.place, images)
                if images
                else None
            )

    @contextmanager
    def _judged(self, epoch: int) -> Iterator[bool]:
        """For the length of a block the model is as it is evaluated and saved; gives whether this epoch is evaluated."""
        due = (
            self.evaluation is None or epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs
        )
        with self.learner.judged_weights(), ExitStack() as stack:
            if due and self.statistics:
                with self.clock.measure("evaluation"):
                    stack.enter_context(self.statistics.in_place())
            yield due

    def _next_stage(self) -> None:
        """Takes up the settings of the stage that the next epoch belongs to."""
        before = self.learner.views
        self.learner = build_learner(self.config, self.train, self.learner.model, self.gallery, self._stage)
        self.statistics = self._statistics()
        if self.learner.views.net is not before.net:
            with self.clock.measure("setup"):
                self.evaluation = self._evaluation()
            if self.place.writes:
                self.run.notice(f"features: {self.learner.views.tier or 'none: the front learns'}")

    @property
    def _ended(self) -> bool:
        """Whether no epoch is left, or early stopping leaves it at that."""
        spec, last = self.config.early_stopping, stages_of(self.config)[-1]
        return self.position.epoch >= self.config.epochs or (
            spec is not None and stopped(self.position.history[last.first - 1 :], spec)
        )

    def _announce(self, notices: list[str]) -> None:
        """Brings the run directory to where this worker takes it up."""
        remove_unfinished(self.run.checkpoints)
        self.run.write_metrics(self.position.history)
        splits = (("train", self.train), ("validation", self.validation))
        caches = {name: str(split.tier) for name, split in splits if split} | self.learner.views.told()
        for notice in notices:
            self.run.notice(f"{notice}: continuing from {self.position.name}")
        timings = self.run.status().get("timings", {}) | self.clock.seconds
        self.run.update_status(
            state="training", caches=caches, timings=timings, world_size=self.strategy.num_replicas_in_sync
        )

    def run_epochs(self, after_epoch: AfterEpoch | None = None) -> None:
        """Every epoch that is left; for `after_epoch` see `fit`."""
        with (
            epoch_log(self.config, self.run, self.validation is not None)
            if self.place.writes
            else nullcontext() as log
        ):
            while not self._ended:
                if self._stage != self.learner.stage:
                    self._next_stage()
                self.finish_epoch(self.train_epoch(), log)
                if after_epoch:
                    self.saver.wait()
                    after_epoch(self.position.history)
            self.saver.wait()
        if self.place.writes:
            self.run.update_status(timings=self.run.status().get("timings", {}) | self.clock.seconds)

    def train_epoch(self) -> dict[str, float]:
        """What is left of an epoch; returns its metrics and its speed."""
        epoch, at, steps = self.position.epoch + 1, self.position, self.learner.steps
        steps.start(epoch, at.step, self.config.seed, at.sums)
        self.meter.start(epoch, at.step * self.config.global_batch, at.seconds)
        orders, step, skipped = self.pace.orders(), at.step, at.skipped
        with self.train.data_errors():
            while step < self.train.steps:
                if orders.save and step > at.step:
                    self._save(
                        replace(
                            at, step=step, sums=steps.totals(), seconds=self.meter.seconds, skipped=skipped
                        )
                    )
                if orders.stop:
                    self.saver.wait()
                    raise StoppedError(self.run.stop_requested() or "asked to")
                burst, taken, seconds = self._burst(epoch, step, orders.updates)
                self._check(burst, epoch)
                skipped += burst.skipped
                step += taken
                orders = self.pace.orders(-(-taken // self.config.accumulate), seconds)
        check_learned(epoch, skipped, updates_per_epoch(self.train.steps, self.config.accumulate))
        figures = self.meter.figures() | ({"skipped": skipped} if skipped else {})
        *sums, weight = steps.totals()
        loss, accuracy, near = (
            total / weight if weight else math.nan for total in sums
        )  # nothing counts if every batch was skipped
        near_five = {"top5": near} if len(self.train.classes) > 5 else {}
        rate = float(np.asarray(self.learner.optimizer.learning_rate))
        return {
            "epoch": epoch,
            "loss": loss,
            "accuracy": accuracy,
            **near_five,
            "learning_rate": rate,
            **figures,
        }

    def _burst(self, epoch: int, step: int, updates: int) -> tuple[StepResult, int, float]:
        """Some updates from a step on, not beyond the end of the epoch; returns how many batches and seconds they took."""
        every, left = self.config.accumulate, self.train.steps - step
        update = self._update_at(epoch, step)
        if self.config.profile:
            updates = to_profile(update, updates)
        micro, updates = min(every, left), max(min(updates, left // every), 1)
        began = time.perf_counter()
        with profiled(self.run, self.config.profile and self.place.writes, update):
            train = train_one_by_one if self.train.eager or self.rows else Steps.train
            burst = train(self.learner.steps, self.batches, update, updates, micro)
        seconds = time.perf_counter() - began
        if self.rows:
            self.rows.write(epoch, step, burst.rows)
        self.clock.add(
            "training" if "first call" in self.clock.seconds else "first call", seconds - burst.waited
        )
        self.clock.add("waiting for input", burst.waited)
        self.meter.add(updates * micro * self.config.global_batch, burst.waited)
        if self.place.writes:
            self.meter.publish(
                self.learner.steps.local_totals, step_seconds=seconds / (updates * micro), **self._state()
            )
        return burst, updates * micro, seconds

    def _state(self) -> dict[str, float]:
        """What else the progress tells."""
        return {"checkpoint_age_seconds": self.pace.age, "restarts": self.place.attempt}

    def _update_at(self, epoch: int, step: int) -> int:
        """How many updates of the run lie before a step."""
        every = self.config.accumulate
        return (epoch - 1) * updates_per_epoch(self.train.steps, every) + step // every

    def _check(self, burst: StepResult, epoch: int) -> None:
        """Stops a run whose gradient is not finite, unless it was told to go on without such updates."""
        self.saver.check()
        if burst.failed is None or self.config.on_nan == "skip":
            return
        step = (burst.failed - self._update_at(epoch, 0)) * self.config.accumulate
        batches = range(step, min(step + self.config.accumulate, self.train.steps))
        rows = [int(row) for batch in batches for row in self.train.rows_of(epoch, batch) if row != PADDING]
        rate = float(
            np.asarray(self.learner.steps.rates[min(burst.failed, len(self.learner.steps.rates) - 1)])
        )
        shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", ..." if len(rows) > SHOWN_ROWS else "")
        fix = "lower optimizer.learning_rate, or leave such updates out with on_nan=skip; what was saved before is still there"
        raise TrainingError(
            "a finite gradient", f"epoch={epoch} step={step} learning_rate={rate:.4g} rows={shown}", fix
        )

    def _save(self, position: Position) -> None:
        """Writes a checkpoint within an epoch, in the background."""
        self.learner.average_statistics()
        self.pace.saved()
        if self.place.writes:
            arrays, stage = snapshot(self.learner.variables), self.learner.stage
            self.saver.submit(lambda: self._commit(arrays, position, stage))

    def finish_epoch(self, metrics: dict[str, float], log: WriteEpoch | None) -> None:
        """Evaluates an epoch, and has it written: the best model, the checkpoint, then the line of metrics."""
        self.learner.average_statistics()
        epoch = self.position.epoch + 1
        with self._judged(epoch) as due:
            if self.evaluation and due:
                with self.clock.measure("evaluation"):
                    metrics |= self.evaluation.metrics()
            check_finite(metrics)
            self.position = Position(self.position.data, (*self.position.history, metrics))
            best = (
                self.learner.model.get_weights()
                if self.position.best_epoch == epoch and self.place.writes
                else None
            )
        self.pace.saved()
        if log is None:
            return
        position, stage = (
            self.position,
            self.learner.stage,
        )  # as they are now: the loop goes on while it is written
        with self.clock.measure("checkpoints"):
            arrays = snapshot(self.learner.variables)

            def write() -> None:
                if best is not None:
                    self.file.write(best)
                self._commit(arrays, position, stage)
                self.run.write_metrics(position.history)
                log(metrics)

            self.saver.submit(write)

    def _commit(self, arrays: Arrays, position: Position, stage: int) -> None:
        described = {"stage": stage, "config": self.config.model_dump(mode="json")}
        save_checkpoint(self.run.checkpoints, arrays, position, self.config.keep_checkpoints, **described)


def train_one_by_one(
    steps: Steps, batches: Iterator[Batch], update: int, updates: int, micro: int
) -> StepResult:
    """`Steps.train` for batches that come from Python: the same result, more slowly, and with the rows it took."""
    waited, failed, skipped, rows = 0.0, None, 0, []
    for done in range(updates * micro):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        burst = steps.train_on(batch, update + done // micro, (done + 1) % micro == 0)
        failed, skipped = burst.failed if failed is None else failed, skipped + burst.skipped
        rows.extend(burst.rows)
    return StepResult(waited, failed, skipped, rows)

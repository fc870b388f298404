"""The training loop of every worker, from the initial weights to the last epoch."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from pipelines.augment.draw import check_batch
from pipelines.errors import TrainingError
from pipelines.input.cache import CacheBudget
from pipelines.input.footprint import describe_window
from pipelines.input.mixed_manifest import MixedManifest
from pipelines.input.order import PADDING, check_lane_workers
from pipelines.input.placement import list_local_devices
from pipelines.records import Batch
from pipelines.remote.claims import CacheClaim, claim_cache
from pipelines.remote.metrics import StoreMetrics
from pipelines.remote.needs import add_needs
from pipelines.shards.manifest import Manifest
from service.checkpoint import (
    Arrays,
    Checkpoint,
    Position,
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
    snapshot,
)
from service.config import RunConfig
from service.milestones import remove_obsolete_milestones, save_milestone
from service.models.metadata import ModelMetadata
from service.runs import Run, StoppedError
from service.training.async_writer import AsyncWriter, ModelFile
from service.training.checks import (
    check_finite_losses,
    check_some_updates,
    check_stopping_metric,
    describe_early_stop,
    describe_end,
)
from service.training.controller import Command, LoopController
from service.training.distribute import IN_FLIGHT, distribute_batches
from service.training.evaluation import Evaluation
from service.training.events import WriteEpoch, open_epoch_log
from service.training.features import FeatureCache
from service.training.learner import Learner, build_learner, build_network, open_splits
from service.training.meter import Meter, PhaseTimer
from service.training.replicas import describe_unused_devices
from service.training.schedule import find_stage, list_stages, updates_per_epoch
from service.training.statistics import PreciseStatistics
from service.training.step import PendingStep, StepResult, Steps
from service.training.strategy import (
    SINGLE_WORKER,
    WorkerContext,
    choose_strategy,
    find_minimum,
)
from service.training.telemetry import (
    RowLog,
    align_to_profile,
    create_gauges,
    describe_store,
    describe_validation,
    profile_once,
)
from service.training.watchdog import Watchdog

AfterEpoch = Callable[[Sequence[dict[str, float]]], None]
MAX_ROWS_IN_ERROR = 8  # largest number of rows of a bad batch that an error lists


def fit(
    config: RunConfig,
    run: Run,
    worker: WorkerContext = SINGLE_WORKER,
    after_epoch: AfterEpoch | None = None,
) -> None:
    """Trains a run to its last epoch, from its newest checkpoint if it has one.

    Each epoch ends with an evaluation; then the best model, a checkpoint and a line of metrics are written
    in the background.

    Args:
        config: Configuration of the run.
        run: Run directory to train, or to resume.
        worker: Rank and group of this worker.
        after_epoch: Called with the metrics of all epochs after every epoch has been written.

    Raises:
        GlassboxError: The configuration or the data cannot be used, or the training has diverged.
        StoppedError: A stop was requested; the state is saved.
    """
    loop = Loop(config, run, worker)
    try:
        loop.run_epochs(after_epoch)
    finally:
        loop.close()


class Loop:
    """The training of one run in one worker, with its position.

    Args:
        config: Configuration of the run.
        run: Run directory to train, or to resume.
        worker: Rank and group of this worker.
    """

    def __init__(self, config: RunConfig, run: Run, worker: WorkerContext) -> None:
        self.config = config
        self.run = run
        self.worker = worker
        self.timer = PhaseTimer()
        self._skipped_updates = 0
        self.writer = AsyncWriter()
        self.watchdog = Watchdog() if worker.world_size > 1 else None

        with self.timer.measure("setup"):
            check_lane_workers(config.data.lanes, worker.world_size)
            self.strategy = choose_strategy(config.global_batch, worker, config.augment)
            self._report_unused_devices()
            if config.augment:
                check_batch(config.augment, config.global_batch // self.strategy.num_replicas_in_sync)
            cache = CacheBudget(self.strategy, worker.local_size)
            if worker.world_size > 1:
                # They must choose the same caches, or they would take different paths through the code.
                cache.ram, cache.gpu = find_minimum(self.strategy, worker, cache.measure())
            self.train, self.validation = open_splits(config, cache)
            self._claim = self._claim_shard_cache()
            if self._claim.sharing and worker.is_chief:
                run.notice(self._claim.sharing)
            egress = self.train.describe_egress(worker.world_size // worker.local_size, worker.world_size)
            if egress and worker.is_chief:
                run.notice(egress)
            check_stopping_metric(config, self.validation is not None)

            digest = self.train.manifest.digest()
            checkpoint = newest_checkpoint(run.checkpoints, digest, config.model)
            if run.metrics() and not checkpoint:
                raise TrainingError(
                    "the checkpoints of the finished epochs",
                    f"checkpoints={run.checkpoints} (empty)",
                    "start a new run",
                )
            self.position = checkpoint.position if checkpoint else Position(digest)
            model = build_network(config, self.strategy, self.train, is_new=checkpoint is None)
            self.model_file = ModelFile(run, model)
            self.features = FeatureCache(config, self.strategy, self.train, self.validation, cache)
            self.learner = build_learner(config, self.train, model, self.features, self._next_stage)
            if checkpoint:
                _restore(self.learner, checkpoint)
            self.evaluation = self._build_evaluation()
            self.statistics = self._build_statistics()

        self.batches = distribute_batches(
            self.strategy,
            self.train,
            worker,
            epoch=self.position.epoch + 1,
            start_step=self.position.step,
            epochs=config.epochs - self.position.epoch,
        )
        self.controller = LoopController(
            run,
            worker,
            self.strategy,
            None if config.steps_per_call == "auto" else config.steps_per_call,
            config.checkpoint_minutes,
        )
        listeners = create_gauges(config, run) if worker.is_chief else ()
        self.meter = Meter(run, config.epochs, self.train.epoch_rows, listeners)
        self.row_log = RowLog.from_environment(run, worker.rank)
        if worker.is_chief:
            self._prepare_run_directory(checkpoint)

    def run_epochs(self, after_epoch: AfterEpoch | None = None) -> None:
        """Runs all remaining epochs.

        Args:
            after_epoch: Called with the metrics of all epochs after every epoch has been written.
        """
        with self._open_log() as log:
            while not describe_end(self.config, self.position.history):
                if self._next_stage != self.learner.stage:
                    self._enter_stage()
                metrics = self.train_epoch()
                self.finish_epoch(metrics, log)
                if after_epoch:
                    self.writer.wait()
                    after_epoch(self.position.history)
        if self.worker.is_chief:
            self.run.add_timings(**self.timer.seconds)
            self.run.update_status(store=describe_store(self._read_store_metrics()) or None)
            self._record_early_stop()

    def _read_store_metrics(self) -> StoreMetrics | None:
        """Returns what was read from a store for both splits; None for local shard sets."""
        metrics = self.train.read_store_metrics()
        validation = self.validation.read_store_metrics() if self.validation else None
        if metrics is None or validation is None:
            return metrics or validation
        # What is fetched is counted for the whole set.
        return metrics + replace(validation, fetched_files=0, fetched_bytes=0)

    def _claim_shard_cache(self) -> CacheClaim:
        """Claims the space that this worker needs in the cache of shards."""
        worker = self.worker
        data = self.config.data
        readers = worker.local_size
        if self.train.is_eager:  # each replica reads for itself
            readers *= self.strategy.num_replicas_in_sync // worker.world_size
        lanes = max(1, data.lanes * worker.local_size // worker.world_size)  # of this host
        passes = max(1, readers // lanes)
        train = self.train.measure_need(worker.world_size, passes)
        needs = [train]
        if self.validation:
            needs.append(self.validation.measure_need(worker.world_size, passes))
        if self.config.precise_batch_norm:
            needs.append(train)  # a second pass, in another order
        # With lanes, each worker has shards of its own.
        rank = f"#{worker.rank}" if data.lanes > 1 else ""
        group = f"{self.run.path}{rank}"
        return claim_cache(add_needs(needs), data.cache_gb, describe_window(data), group)

    def _record_early_stop(self) -> None:
        """States an early stop, with the best epoch, in the notices and as the reason in the status."""
        reason = describe_early_stop(self.config, self.position.history)
        if reason:
            self.run.notice(reason)
            self.run.update_status(reason=reason)

    def _report_unused_devices(self) -> None:
        """Adds a notice about devices that cannot share the batch."""
        if self.worker.world_size > 1:
            return
        devices = list_local_devices()
        kind = "GPUs" if "GPU" in devices[0] else "logical CPU devices"
        note = describe_unused_devices(
            kind,
            self.strategy.num_replicas_in_sync,
            len(devices),
            self.config.global_batch,
            self.config.augment,
        )
        if note:
            self.run.notice(note)

    def close(self) -> None:
        """Waits for what is being written, and ends the threads of the loop."""
        if self.watchdog:
            self.watchdog.close()
        self._claim.close()
        self.writer.wait()

    def train_epoch(self) -> dict[str, float]:
        """Trains the remaining steps of the next epoch; returns its metrics and throughput."""
        start = self.position
        epoch = start.epoch + 1
        step = start.step
        skipped = start.skipped
        steps = self.learner.steps
        steps.start(epoch, step, self.config.seed, start.sums, start.squared_gradients)
        self.meter.start(epoch, step * self.config.global_batch, start.seconds)
        command = self._next_command()

        with self.train.data_errors():
            while step < self.train.steps:
                if command.save and step > start.step:
                    with self._watch("save"):
                        sums = steps.read_totals()
                        self.learner.average_statistics()
                    self._save(
                        replace(
                            start,
                            step=step,
                            sums=sums,
                            seconds=self.meter.seconds,
                            skipped=skipped,
                            squared_gradients=steps.gradient_norms.read(),
                        )
                    )
                if command.stop:
                    self.writer.wait()
                    # A collective: if another worker ended first, Ray would end worker 0 while it writes.
                    self._next_command()
                    raise StoppedError(self.run.stop_requested() or "a request")

                result, batches, seconds = self._run_updates(epoch, step, command.updates)
                self._check(result, epoch)
                step += batches
                skipped += result.skipped
                command = self._next_command(math.ceil(batches / self.config.accumulate), seconds)

        check_some_updates(epoch, skipped, updates_per_epoch(self.train.steps, self.config.accumulate))
        return self._compute_metrics(epoch, skipped)

    def finish_epoch(self, metrics: dict[str, float], log: WriteEpoch | None) -> None:
        """Evaluates an epoch and starts writing it: the best model, the checkpoint, then the line of metrics.

        Args:
            metrics: Metrics from `train_epoch`.
            log: Function that logs the metrics; None in workers other than the chief.
        """
        epoch = self.position.epoch + 1
        is_due = self._should_evaluate(epoch)
        best_weights = None
        with self._watch("evaluation" if is_due else "end of epoch"), self._evaluation_state(is_due):
            if self.evaluation and is_due:
                with self.timer.measure("evaluation"):
                    metrics |= self.evaluation.compute_metrics()
            check_finite_losses(metrics)
            self.position = Position(self.position.data, (*self.position.history, metrics))
            if self.position.best_epoch == epoch and self.worker.is_chief:
                best_weights = self.learner.model.get_weights()
        self.controller.mark_saved()
        if log is None:
            return

        # Copies, because training continues while they are written.
        position = self.position
        stage = self.learner.stage
        with self.timer.measure("checkpoints"):
            arrays = snapshot(self.learner.variables)
            summarize_layers = self.learner.prepare_layer_summary(arrays)

            def write() -> None:
                if best_weights is not None:
                    self.model_file.write(best_weights)
                self.run.write_layers(epoch, summarize_layers())
                save_milestone(self.run.milestones, position.epoch, arrays["model"])
                self._write_checkpoint(arrays, position, stage)
                remove_obsolete_milestones(self.run.milestones, position.epoch)
                self.run.write_metrics(position.history)
                log(metrics)

            self.writer.submit(write)

    def _run_updates(self, epoch: int, step: int, updates: int) -> tuple[StepResult, int, float]:
        """Runs some updates from a step on, at most to the end of the epoch.

        Returns:
            The result, the number of batches, and their duration in seconds.
        """
        update = self._count_updates_before(epoch, step)
        if self.config.profile:
            updates = align_to_profile(update, updates)
        steps_left = self.train.steps - step
        micro = min(self.config.accumulate, steps_left)  # the last update may have fewer batches
        updates = max(min(updates, steps_left // self.config.accumulate), 1)
        batches = updates * micro

        began = time.perf_counter()
        with profile_once(self.run, self.config.profile and self.worker.is_chief, update):
            run_updates = train_eager_batches if self.train.is_eager else Steps.train
            with self._watch(f"updates of stage {self.learner.stage}"):
                result = run_updates(self.learner.steps, self.batches, update, updates, micro)
        seconds = time.perf_counter() - began

        if self.row_log:
            self.row_log.write(epoch, step, result.rows)
        self._measure(result, batches, seconds)
        return result, batches, seconds

    def _measure(self, result: StepResult, batches: int, seconds: float) -> None:
        """Adds a call to the timings and the progress."""
        self._skipped_updates += result.skipped
        phase = "training" if "first call" in self.timer.seconds else "first call"
        self.timer.add(phase, seconds - result.wait_seconds)
        self.timer.add("waiting for input", result.wait_seconds)
        self.meter.add(batches * self.config.global_batch, result.wait_seconds)
        if self.worker.is_chief:
            self.meter.publish(
                self.learner.steps.read_local_totals,
                step_seconds=seconds / batches,
                checkpoint_age_seconds=self.controller.checkpoint_age,
                restarts=self.worker.attempt,
                skipped_updates=self._skipped_updates,
                **describe_validation(self.position.history),
                **describe_store(self._read_store_metrics()),
            )

    def _check(self, result: StepResult, epoch: int) -> None:
        """Stops a run whose gradient is not finite, unless it is configured to skip such updates."""
        self.writer.check()
        if result.first_skipped is None or self.config.on_nan == "skip":
            return
        update = result.first_skipped
        step = (update - self._count_updates_before(epoch, 0)) * self.config.accumulate
        rows: list[int] = []
        for batch in range(step, min(step + self.config.accumulate, self.train.steps)):
            rows += [int(row) for row in self.train.find_rows(epoch, batch) if row != PADDING]
        row_list = ", ".join(map(str, rows[:MAX_ROWS_IN_ERROR]))
        if len(rows) > MAX_ROWS_IN_ERROR:
            row_list += ", ..."
        rates = self.learner.steps.rates
        rate = float(np.asarray(rates[min(update, len(rates) - 1)]))
        fix = (
            "lower optimizer.learning_rate, or skip such updates with on_nan=skip; "
            "earlier checkpoints are intact"
        )
        raise TrainingError(
            "a finite gradient", f"epoch={epoch} step={step} learning_rate={rate:.4g} rows={row_list}", fix
        )

    def _compute_metrics(self, epoch: int, skipped: int) -> dict[str, float]:
        """Computes the metrics of a trained epoch, in the order of a line of metrics."""
        with self._watch("totals"):
            loss, top1, top5, weight = self.learner.steps.read_totals()
        if not weight:  # every batch was skipped
            loss = top1 = top5 = math.nan
            weight = 1.0
        metrics = {"epoch": epoch, "loss": loss / weight, "accuracy": top1 / weight}
        if len(self.train.classes) > 5:
            metrics["top5"] = top5 / weight
        metrics["learning_rate"] = float(np.asarray(self.learner.optimizer.learning_rate))
        metrics |= self.meter.read()
        if skipped:
            metrics["skipped"] = skipped
        return metrics

    def _save(self, position: Position) -> None:
        """Starts writing a checkpoint within an epoch."""
        self.controller.mark_saved()
        if self.worker.is_chief:
            arrays = snapshot(self.learner.variables)
            stage = self.learner.stage
            self.writer.submit(lambda: self._write_checkpoint(arrays, position, stage))

    def _write_checkpoint(self, arrays: Arrays, position: Position, stage: int) -> None:
        description = {"stage": stage, "config": self.config.model_dump(mode="json")}
        description["layers"] = self.run.hash_layers(position.epoch)
        keep = self.config.keep_checkpoints
        save_checkpoint(self.run.checkpoints, arrays, position, keep, **description)

    def _count_updates_before(self, epoch: int, step: int) -> int:
        """Counts the updates of the run before a step."""
        accumulate = self.config.accumulate
        return (epoch - 1) * updates_per_epoch(self.train.steps, accumulate) + step // accumulate

    @property
    def _next_stage(self) -> int:
        """Index of the stage of the next epoch; of the last stage if no epoch is left."""
        epoch = min(self.position.epoch + 1, self.config.epochs)
        return find_stage(list_stages(self.config), epoch)

    def _enter_stage(self) -> None:
        """Switches to the settings of the stage of the next epoch."""
        network_before = self.learner.stage_network.network
        self.learner = build_learner(
            self.config, self.train, self.learner.model, self.features, self._next_stage
        )
        self.statistics = self._build_statistics()
        stage_network = self.learner.stage_network
        if stage_network.network is network_before:
            return
        with self.timer.measure("setup"):
            self.evaluation = self._build_evaluation()
        if self.worker.is_chief:
            self.run.notice(f"features: {stage_network.tier or 'none: the first layers are trained'}")

    def _build_evaluation(self) -> Evaluation | None:
        """Returns the evaluation of the current stage, if there is a validation split."""
        stage_network = self.learner.stage_network
        stage_network.compute_features()
        if self.validation is None:
            return None
        with self.strategy.scope():
            return Evaluation(
                stage_network.network,
                self.strategy,
                self.validation,
                self.worker,
                stage_network.attach_validation,
                self.config.loss,
            )

    def _build_statistics(self) -> PreciseStatistics | None:
        """Returns the precise batch norm statistics of the current stage, if they are enabled."""
        images = self.config.precise_batch_norm
        if not images:
            return None
        with self.strategy.scope():
            return PreciseStatistics(
                self.learner.stage_network, self.strategy, self.train, self.worker, images
            )

    def _next_command(self, updates: int = 0, seconds: float = 0.0) -> Command:
        with self._watch("command"):
            return self.controller.next_command(updates, seconds)

    def _watch(self, kind: str) -> AbstractContextManager[None]:
        """Watches a block that waits for other workers; see `Watchdog.watch`."""
        return self.watchdog.watch(kind) if self.watchdog else nullcontext()

    def _should_evaluate(self, epoch: int) -> bool:
        """Tells whether an epoch is evaluated, or need not be because there is no validation split."""
        is_last = epoch == self.config.epochs
        return self.evaluation is None or is_last or epoch % self.config.evaluate_every == 0

    @contextmanager
    def _evaluation_state(self, is_due: bool) -> Iterator[None]:
        """Swaps in the weights and statistics that are evaluated and saved, for a block.

        Args:
            is_due: Whether this epoch is evaluated.
        """
        self.learner.average_statistics()
        with self.learner.use_evaluation_weights(), ExitStack() as stack:
            if is_due and self.statistics:
                with self.timer.measure("evaluation"):
                    stack.enter_context(self.statistics.swap_in())
            yield

    @contextmanager
    def _open_log(self) -> Iterator[WriteEpoch | None]:
        """Yields the function that logs the metrics of an epoch; None in workers other than the chief.

        The log is closed after the pending write, which uses it, has ended: also where the block raises.
        """
        has_validation = self.validation is not None
        with (
            open_epoch_log(self.config, self.run, has_validation)
            if self.worker.is_chief
            else nullcontext() as log
        ):
            try:
                yield log
            finally:
                self.writer.wait()

    def _prepare_run_directory(self, checkpoint: Checkpoint | None) -> None:
        """Resets the run directory to the position that this worker starts from."""
        remove_unfinished(self.run.checkpoints)
        scaling = self.config.optimizer.describe_scaling(self.config.images_per_update)
        if scaling:
            self.run.notice(scaling)
        self.run.write_metadata(_describe_model(self.config, self.train.manifest))
        self.run.write_metrics(self.position.history)
        self.run.remove_layers(after=self.position.epoch)
        for path in checkpoint.damaged if checkpoint else ():
            self.run.notice(f"{path.name} is damaged: continuing from {self.position.name}")
        caches = {"train": str(self.train.tier)}
        if self.validation:
            caches["validation"] = str(self.validation.tier)
        store = self._read_store_metrics()
        if store is not None:
            caches["shards"] = store.cache
        caches |= self.learner.stage_network.describe_cache()
        self.run.add_timings(**self.timer.seconds)
        self.run.update_status(state="training", caches=caches, world_size=self.strategy.num_replicas_in_sync)


def _describe_model(config: RunConfig, manifest: Manifest) -> ModelMetadata:
    """Describes the saved model: every one takes pixels of 0 to 255 and ends in probabilities."""
    mix = manifest.mix if isinstance(manifest, MixedManifest) else ()
    return ModelMetadata(
        classes=manifest.classes,
        data=manifest.digest(),
        image_size=config.data.image_size,
        channels=config.data.channels,
        levels=manifest.levels,
        fit=config.data.fit,
        resize=config.data.resize,
        antialias=config.data.antialias,
        mix=tuple(mixed.model_dump() for mixed in mix),
    )


def _restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Loads a checkpoint; at the start of another stage only its model, and restarts the average."""
    variables = learner.variables
    if checkpoint.stage == learner.stage:
        checkpoint.load(variables)
        return
    checkpoint.load({"model": variables["model"]})
    if learner.steps.average:
        learner.steps.average.restart()


def train_eager_batches(
    steps: Steps, batches: Iterator[Batch], update: int, updates: int, micro: int
) -> StepResult:
    """Does the same as `Steps.train` for batches that come from Python, such as those of DALI.

    The next batches are taken, and their steps started, while a device still computes; see `IN_FLIGHT`.

    Args:
        steps: The compiled steps.
        batches: Iterator over eager batches.
        update: Number of updates of the run that came before.
        updates: Number of updates to run.
        micro: Batches of each update.
    """
    wait_seconds = 0.0
    results: list[StepResult] = []
    in_flight: deque[PendingStep] = deque()
    for done in range(updates * micro):
        began = time.perf_counter()
        batch = next(batches)
        wait_seconds += time.perf_counter() - began
        is_last = (done + 1) % micro == 0
        in_flight.append(steps.start_batch(batch, update + done // micro, is_last))
        if len(in_flight) > IN_FLIGHT:
            results.append(in_flight.popleft().wait())
    results += [step.wait() for step in in_flight]
    skipped = [result.first_skipped for result in results if result.first_skipped is not None]
    rows = [row for result in results for row in result.rows]
    return StepResult(wait_seconds, min(skipped, default=None), len(skipped), rows)

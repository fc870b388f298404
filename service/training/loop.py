"""The training loop, from the first weights to the last epoch. Runs inside one worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
import tensorflow as tf

from pipelines.augment.colour import LUMA
from pipelines.augment.draw import check_batch
from pipelines.errors import ConfigError, TrainingError
from pipelines.input.batches import Batches
from pipelines.input.cache import Cache
from pipelines.storage import replacing
from service.checkpoint import Position, restore_latest, save_checkpoint, variables_of
from service.config import OptimizerSpec, RunConfig
from service.models import Task, build_model
from service.runs import Run, score
from service.training.events import event_log
from service.training.progress import Meter
from service.training.step import StepOptions, Steps
from service.training.strategy import choose_strategy, distributed


@dataclass(frozen=True)
class Trainer:
    """What trains: built once, the same for one device or many."""

    strategy: tf.distribute.Strategy
    model: keras.Model
    optimizer: keras.Optimizer
    steps: Steps

    def train_epoch(self, train: Batches, epoch: int, seed: int, meter: Meter) -> dict[str, float]:
        """Learns from every example once; returns the epoch's metrics and its speed."""
        self.steps.start_epoch(epoch, seed)
        with train.data_errors():
            for batch in meter.epoch(epoch, distributed(self.strategy, train.epoch(epoch))):
                self.steps.train(batch)
        totals = self.steps.take_totals()
        rate = float(self.optimizer.learning_rate)
        return {"epoch": epoch, "loss": totals.mean_loss, "accuracy": totals.accuracy, "learning_rate": rate, **meter.figures()}

    def evaluate(self, validation: Batches) -> dict[str, float]:
        """Mean loss and accuracy over a whole split, every example once."""
        with validation.data_errors():
            for batch in distributed(self.strategy, validation.epoch(0)):
                self.steps.evaluate(batch)
        totals = self.steps.take_totals()
        return {"val_loss": totals.mean_loss, "val_accuracy": totals.accuracy}


def fit(config: RunConfig, run: Run, report: Callable[[dict[str, float]], None]) -> None:
    """Trains a run to its last epoch, from its newest checkpoint where it has one.

    After every epoch: evaluation, the best model, a checkpoint, then a line of metrics.

    Args:
        config: What to train.
        run: Where to.
        report: Called with each epoch's metrics.

    Raises:
        GlassboxError: The configuration or the data cannot be used.
    """
    began = time.perf_counter()
    strategy = choose_strategy(config.global_batch)
    train, validation = open_splits(config, Cache(strategy))
    if config.augment:
        check_batch(config.augment, config.global_batch // strategy.num_replicas_in_sync)
    trainer = build_trainer(config, strategy, train, validation)
    variables = variables_of(trainer.model, trainer.optimizer)
    data = train.manifest.digest()
    position = restore_latest(run.checkpoints, variables, data) or Position(data)
    if run.metrics() and not position.epoch:
        raise TrainingError("the checkpoints of the finished epochs", f"checkpoints={run.checkpoints} (empty)", "start a new run")
    run.write_metrics(position.history)
    meter = Meter(run, config.epochs, train.rows, config.global_batch)
    caches = {name: str(split.tier) for name, split in (("train", train), ("validation", validation)) if split}
    run.update_status(
        state="training", caches=caches, timings=run.status().get("timings", {}) | {"setup_seconds": time.perf_counter() - began}
    )

    with event_log(run, validation is not None) as write_events:
        for epoch in range(position.epoch + 1, config.epochs + 1):
            metrics = trainer.train_epoch(train, epoch, config.seed, meter)
            metrics |= trainer.evaluate(validation) if validation else {}
            check_finite(metrics)
            if score(metrics) > position.best:
                save_model(trainer.model, run)
            position = Position(data, (*position.history, metrics))
            save_checkpoint(run.checkpoints, variables, position, config.keep_checkpoints)
            run.write_metrics(position.history)
            write_events(metrics)
            report(metrics)


def open_splits(config: RunConfig, cache: Cache) -> tuple[Batches, Batches | None]:
    """The training split, and the validation split where there is one; they share the memory for decoded images."""
    train = Batches(config.shards, "train", config.data, config.global_batch, seed=config.seed, augment=config.augment, cache=cache)
    if "validation" not in train.manifest.splits:
        return train, None
    return train, Batches(config.shards, "validation", config.data, config.global_batch, cache=cache)


def build_trainer(config: RunConfig, strategy: tf.distribute.Strategy, train: Batches, validation: Batches | None = None) -> Trainer:
    """Model, optimizer and steps with fresh weights, the same on every replica."""
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        model = build_model(config.model, _task(config, train))
        optimizer = make_optimizer(config.optimizer)
        options = StepOptions(_use_xla(config.xla), config.augment, train.attach, validation.attach if validation else train.attach)
        return Trainer(strategy, model, optimizer, Steps(model, optimizer, strategy, options))


def check_finite(metrics: dict[str, float]) -> None:
    """Stops a run that has diverged before it overwrites anything good.

    Raises:
        TrainingError: A loss is infinite or not a number.
    """
    for name in ("loss", "val_loss"):
        if not math.isfinite(metrics.get(name, 0.0)):
            fix = "lower optimizer.learning_rate; what was saved before is still there"
            raise TrainingError("a finite loss", f"epoch={metrics['epoch']} {name}={metrics[name]}", fix)


def save_model(model: keras.Model, run: Run) -> None:
    """Writes the best model as `model.keras`, whole or not at all."""
    with replacing(run.model_path) as temporary:
        model.save(temporary)


def make_optimizer(spec: OptimizerSpec) -> keras.Optimizer:
    """The Keras optimizer that a spec names."""
    if spec.name == "sgd":
        return keras.optimizers.SGD(spec.learning_rate, momentum=spec.momentum)
    return {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[spec.name](spec.learning_rate)


def _task(config: RunConfig, train: Batches) -> Task:
    split = train.manifest.split("train")
    mean, std = split.mean, split.std
    if mean is None or std is None:
        fix = "build the shard set without --check header, which leaves them out"
        raise ConfigError("the mean and deviation of the training images", f"data={config.shards} (not computed)", fix)
    if config.data.channels == 1:
        mean, std = ((sum(w * x for w, x in zip(LUMA, of, strict=True)),) for of in (mean, std))
    return Task((*config.data.image_size, config.data.channels), len(train.classes), mean, std)


def _use_xla(choice: str) -> bool:
    return choice == "on" or (choice == "auto" and bool(tf.config.list_physical_devices("GPU")))

"""What learns: model, optimizer and compiled steps, built from a configuration, the same for one device or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import keras
import tensorflow as tf

from pipelines.augment.colour import LUMA
from pipelines.errors import ConfigError
from pipelines.input.batches import Batches
from pipelines.input.cache import Cache
from service.checkpoint import Variables, variables_of
from service.config import RunConfig
from service.models import Task, build_model
from service.models.weights import load_weights
from service.pretrained import NONE
from service.recipe import class_weight_table
from service.training.features import Gallery, Views
from service.training.optimizers import check_no_decay, make_optimizer, trainable_variables
from service.training.schedule import run_rates, stages_of, updates_per_epoch
from service.training.statistics import normalizing
from service.training.step import StepOptions, Steps


@dataclass(frozen=True)
class Learner:
    """What trains through one stage of a run.

    Attributes:
        strategy: The devices.
        model: The network.
        optimizer: Of the stage.
        steps: Of the stage.
        views: What of the network the steps run, and on what.
        stage: Which of the run's, from 0.
    """

    strategy: tf.distribute.Strategy
    model: keras.Model
    optimizer: keras.Optimizer
    steps: Steps
    views: Views
    stage: int

    @property
    def variables(self) -> Variables:
        """What a checkpoint holds."""
        return variables_of(self.model, self.optimizer, self.steps.variables)

    def judged_weights(self) -> AbstractContextManager[None]:
        """For the length of a block the model has the weights that are evaluated and saved: their average, where there is one."""
        return self.steps.average.in_place() if self.steps.average else nullcontext()

    def average_statistics(self) -> None:
        """Makes the moving statistics of batch normalization the same on all replicas: their mean. Every worker must ask."""
        moving = [v.value for v in self.model.non_trainable_variables if "moving_" in v.path]
        if moving and self.strategy.num_replicas_in_sync > 1:
            _average(self.strategy, moving)


def open_splits(config: RunConfig, cache: Cache) -> tuple[Batches, Batches | None]:
    """The training split, and the validation split where there is one; they share the memory for decoded images."""
    train = Batches(
        config.shards,
        "train",
        config.data,
        config.global_batch,
        seed=config.seed,
        augment=config.augment,
        cache=cache,
    )
    if "validation" not in train.manifest.splits:
        return train, None
    return train, Batches(config.shards, "validation", config.data, config.global_batch, cache=cache)


def build_network(
    config: RunConfig, strategy: tf.distribute.Strategy, train: Batches, begin: bool = True
) -> keras.Model:
    """The model with its first weights, the same on every replica; those of `weights` only where it is to `begin`."""
    keras.utils.set_random_seed(config.seed)
    with strategy.scope(), _precision(config.precision):
        model = build_model(config.model, _task(config, train))
    if begin and config.weights != NONE:
        load_weights(model, config.model, config.weights)
    for stage in stages_of(
        config
    ):  # a pattern of the last stage that fits nothing shall not be found hours later
        trainable_variables(model, stage.freeze, stage.train)
    if config.batch_norm == "synchronized":
        if use_xla(config.xla):
            fix = "use xla=off, or batch_norm=averaged"
            raise ConfigError(
                "batch normalization that XLA can compile", "batch_norm=synchronized with XLA", fix
            )
        for layer in normalizing(model):
            layer.synchronized = True
    return model


def build_learner(
    config: RunConfig, train: Batches, model: keras.Model, gallery: Gallery, stage: int = 0
) -> Learner:
    """Optimizer and steps of a stage, for a model that may have been trained before."""
    now, strategy = stages_of(config)[stage], gallery.strategy
    weights = trainable_variables(model, now.freeze, now.train)
    views = gallery.views(model)
    updates = updates_per_epoch(train.steps, config.accumulate)
    counts = train.manifest.split("train").class_counts
    factors = (
        None
        if config.class_weights is None
        else class_weight_table(config.class_weights, train.classes, counts)
    )
    options = StepOptions(
        xla=use_xla(config.xla),
        xla_update=config.xla != "off",
        augment=config.augment,
        attach=views.train,
        accumulate=config.accumulate,
        clip_norm=config.optimizer.clip_norm,
        smoothing=config.label_smoothing,
        class_weights=None if factors is None else tuple(factors.tolist()),
        ema=config.ema,
        scaled=config.precision == "mixed_float16",
    )
    rates = run_rates(config, updates)
    check_no_decay(config.optimizer, model)
    with strategy.scope():
        optimizer = make_optimizer(config.optimizer, weights)
        return Learner(
            strategy,
            model,
            optimizer,
            Steps(views.learning, optimizer, weights, rates, strategy, options),
            views,
            stage,
        )


def use_xla(choice: str) -> bool:
    """Whether forward and backward are compiled; `auto` does where there is a GPU, because convolutions get slower on a CPU."""
    return choice == "on" or (choice == "auto" and bool(tf.config.list_physical_devices("GPU")))


@contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Layers built within the block compute in this precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _average(strategy: tf.distribute.Strategy, variables: Sequence[tf.Variable]) -> None:
    def per_replica() -> None:
        means = tf.distribute.get_replica_context().all_reduce("mean", [tf.identity(v) for v in variables])
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)

    tf.function(lambda: strategy.run(per_replica))()


def _task(config: RunConfig, train: Batches) -> Task:
    split = train.manifest.split("train")
    mean, std = split.mean, split.std
    if mean is None or std is None:
        fix = "build the shard set without --check header, which leaves them out"
        raise ConfigError(
            "the mean and deviation of the training images", f"data={config.shards} (not computed)", fix
        )
    if config.data.channels == 1:
        mean, std = ((sum(w * x for w, x in zip(LUMA, of, strict=True)),) for of in (mean, std))
    return Task((*config.data.image_size, config.data.channels), len(train.classes), mean, std)

"""Builds model, optimizer and compiled steps from a configuration, for one device or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import keras
import tensorflow as tf

from pipelines.errors import ConfigError
from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget
from service.checkpoint import Arrays, Variables, variables_of
from service.config import RunConfig
from service.models import build_model
from service.models.check import define_task
from service.models.weights import load_weights
from service.pretrained import NONE
from service.recipe import OptimizerSpec, class_weight_table
from service.training.features import FeatureCache, StageNetwork
from service.training.layer_norms import LayerNorms, name_weights, summarize_layers
from service.training.optimizers import build_optimizer, check_no_decay, freeze_layers
from service.training.schedule import list_stages, run_rates, updates_per_epoch
from service.training.statistics import find_batch_norms
from service.training.step import StepOptions, Steps
from service.training.telemetry import is_logging_rows


@dataclass(frozen=True)
class Learner:
    """Model, optimizer and compiled steps of one stage of a run.

    Attributes:
        strategy: Strategy of the training.
        model: The model, which all stages share.
        optimizer: Optimizer of this stage.
        steps: Compiled steps of this stage.
        stage_network: The part of the model that the steps execute, and its input.
        stage: Index of the stage, from 0.
    """

    strategy: tf.distribute.Strategy
    model: keras.Model
    optimizer: keras.Optimizer
    steps: Steps
    stage_network: StageNetwork
    stage: int

    @property
    def variables(self) -> Variables:
        """The variables that a checkpoint holds."""
        return variables_of(self.model, self.optimizer, self.steps.variables)

    def prepare_layer_summary(self, arrays: Arrays) -> Callable[[], LayerNorms]:
        """Returns a function that computes the norms of weights and gradients per layer, for another thread.

        Args:
            arrays: Values of `variables` at the end of an epoch.
        """
        sums = self.steps.gradient_norms.read()
        names = name_weights(self.model, self.steps.weights)
        pairs = zip(self.variables["model"], arrays["model"], strict=True)
        values = {id(variable): array for variable, array in pairs}
        weights = [values[id(weight)] for weight in self.steps.weights]
        return lambda: summarize_layers(names, weights, sums)

    def use_evaluation_weights(self) -> AbstractContextManager[None]:
        """Swaps in the weights that are evaluated and saved, for a block: the average, if there is one."""
        return self.steps.average.swap_in() if self.steps.average else nullcontext()

    def average_statistics(self) -> None:
        """Sets the moving statistics of batch normalization to their mean over all replicas.

        A collective: every worker must call it.
        """
        moving = [v.value for v in self.model.non_trainable_variables if "moving_" in v.path]
        if moving and self.strategy.num_replicas_in_sync > 1:
            _average(self.strategy, moving)


def open_splits(config: RunConfig, cache: CacheBudget) -> tuple[Batches, Batches | None]:
    """Returns the batches of the training split, and of the validation split if there is one.

    Args:
        config: Configuration of the run.
        cache: Memory that the decoded images of both share.
    """
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
    config: RunConfig, strategy: tf.distribute.Strategy, train: Batches, is_new: bool = True
) -> keras.Model:
    """Builds the model with its initial weights, the same on every replica.

    Args:
        config: Configuration of the run.
        strategy: Strategy of the training.
        train: Batches of the training split, for its classes, mean and deviation.
        is_new: Whether the run starts here, so that the weights named by `config.weights` are loaded.

    Raises:
        ConfigError: The model, its weights or its settings cannot be used.
    """
    keras.utils.set_random_seed(config.seed)
    with strategy.scope(), precision_scope(config.precision):
        model = build_model(
            config.model,
            define_task(config.data, train.manifest, config.shards),
            config.custom_objects,
            config.model_options,
        )
    if is_new and config.weights != NONE:
        load_weights(model, config.model, config.weights, config.custom_objects)
    # Check the patterns of all stages now: one that matches nothing should not fail hours later.
    for stage in list_stages(config):
        freeze_layers(model, stage.freeze, stage.train)
    if config.batch_norm == "synchronized":
        if should_use_xla(config.xla):
            fix = "use xla=off, or batch_norm=averaged"
            raise ConfigError(
                "batch normalization that XLA can compile", "batch_norm=synchronized with XLA", fix
            )
        for layer in find_batch_norms(model):
            layer.synchronized = True
    return model


def build_learner(
    config: RunConfig, train: Batches, model: keras.Model, features: FeatureCache, stage: int = 0
) -> Learner:
    """Builds optimizer and steps of a stage, for a model that may have been trained before.

    Args:
        config: Configuration of the run.
        train: Batches of the training split.
        model: The model from `build_network`.
        features: Features of frozen layers.
        stage: Index of the stage, from 0.

    Raises:
        ConfigError: A pattern matches no layer or variable, or a warmup is too long.
    """
    strategy = features.strategy
    stage_spec = list_stages(config)[stage]
    weights = freeze_layers(model, stage_spec.freeze, stage_spec.train)
    stage_network = features.build_stage_network(model)
    rates = run_rates(config, updates_per_epoch(train.steps, config.accumulate))
    check_no_decay(config.optimizer, model)
    options = StepOptions(
        xla=should_use_xla(config.xla),
        xla_update=config.xla != "off",
        augment=config.augment,
        attach=stage_network.attach_train,
        accumulate=config.accumulate,
        clip_norm=config.optimizer.clip_norm,
        label_smoothing=config.label_smoothing,
        loss=config.loss,
        bce_threshold=config.bce_threshold,
        l2=config.optimizer.l2,
        class_weights=_compute_class_weights(config, train),
        ema_decay=config.ema,
        scale_loss=config.precision == "mixed_float16",
        record_rows=is_logging_rows(),
    )
    with strategy.scope():
        optimizer = build_optimizer(_scale_weight_decay(config), weights)
        steps = Steps(stage_network.training_network, optimizer, weights, rates, strategy, options)
    return Learner(strategy, model, optimizer, steps, stage_network, stage)


def _scale_weight_decay(config: RunConfig) -> OptimizerSpec:
    """Returns the optimizer with the weight decay for the batch; its learning rate is set by the schedule."""
    decay = config.optimizer.scale_weight_decay(config.images_per_update)
    return config.optimizer.model_copy(update={"weight_decay": decay})


def _compute_class_weights(config: RunConfig, train: Batches) -> tuple[float, ...] | None:
    if config.class_weights is None:
        return None
    counts = train.manifest.get_split("train").class_counts
    return tuple(class_weight_table(config.class_weights, train.classes, counts).tolist())


def should_use_xla(choice: str) -> bool:
    """Tells whether forward and backward pass are compiled with XLA.

    Args:
        choice: `on`, `off`, or `auto`: only on a GPU, because convolutions get slower on a CPU.
    """
    return choice == "on" or (choice == "auto" and bool(tf.config.get_visible_devices("GPU")))


@contextmanager
def precision_scope(policy: str) -> Iterator[None]:
    """Sets the precision of layers that are built within the block.

    Args:
        policy: Name of a Keras dtype policy, such as `mixed_bfloat16`.
    """
    previous_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous_policy)


def _average(strategy: tf.distribute.Strategy, variables: Sequence[tf.Variable]) -> None:
    def average_on_replica() -> None:
        means = tf.distribute.get_replica_context().all_reduce("mean", [tf.identity(v) for v in variables])
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)

    tf.function(lambda: strategy.run(average_on_replica), autograph=False)()

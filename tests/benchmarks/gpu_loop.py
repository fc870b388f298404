"""Part d: compares the training loop with the bare step for each cache tier, and measures augmentation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from gpu_context import PUBLISHED, SIZE, CheckContext, load_photos, measure_seconds, synchronize
from gpu_part import Checks
from gpu_results import Row
from gpu_steps import clear_models

MODEL = "cats_dogs_small_dropout"
BATCH = 20
LEARNING_RATE = 0.0001
RATIO_GOALS = {"none": None, "host": None, "device": 0.97}  # by cache tier
MAX_SHARE = 0.05  # of the step's time, for augmentation


def list_checks(context: CheckContext) -> Checks:
    """Yields the cache tiers, then the augmentation."""
    for tier in RATIO_GOALS:
        yield f"loop, cache {tier}", lambda tier=tier: compare_loop(context, tier)
    yield "augmentation in the step", lambda: measure_augmentation(context)


def build_config(context: CheckContext, **changes: Any) -> Any:
    """Builds the configuration of the published experiment."""
    from service.config import RunConfig

    settings = {
        "preset": "gpu-check",
        "model": "linear" if context.smallest else MODEL,  # a linear model is traced in seconds
        "shards": str(context.shards),
        "global_batch": BATCH,
        "epochs": 1000,
        "augment": PUBLISHED,
        "data": {"image_size": SIZE},
        "optimizer": {"name": "rmsprop", "learning_rate": LEARNING_RATE},
    }
    return RunConfig.model_validate(settings | changes)


def build_bare_step(context: CheckContext, config: Any, augment: bool = True) -> Any:
    """Builds a hand-written step on one batch on the device, one compiled call per step.

    Args:
        context: Context of the check.
        config: Configuration of the run.
        augment: Whether the step augments the images.
    """
    import keras
    import tensorflow as tf

    from pipelines.augment.apply import apply_augmentations
    from pipelines.augment.draw import draw
    from service.models import Task, build_model
    from service.models.layers import build_logits_model
    from service.training.learner import should_use_xla
    from service.training.losses import example_losses

    photos = load_photos(context, BATCH)
    batch = {"image": photos["image"]}
    if augment:
        batch |= draw(config.augment, 0, 0, photos["row"], config.data)
    tensors = {name: tf.constant(value) for name, value in batch.items()}
    labels = tf.constant(photos["label"])
    model = build_model(config.model, Task((*SIZE, 3), 2, (127.0,) * 3, (64.0,) * 3))
    logits_model = build_logits_model(model)
    weights = logits_model.trainable_variables
    optimizer = keras.optimizers.RMSprop(LEARNING_RATE)
    optimizer.build(weights)

    @tf.function(jit_compile=should_use_xla(config.xla) or None)
    def compute_gradients(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(example_losses(labels, logits_model(images, training=True)))
        return tape.gradient(loss, [weight.value for weight in weights])

    update = tf.function(lambda gradients: optimizer.apply(gradients, weights), jit_compile=True)

    @tf.function
    def step() -> None:
        images, *_ = apply_augmentations(tensors, config.augment)
        update(compute_gradients(images))

    return step


def compare_loop(context: CheckContext, tier: str) -> list[Row]:
    """Alternates epochs of the loop and rounds of the bare step, so that noise hits both alike."""
    from service.runs import Run
    from service.training.loop import Loop
    from service.training.strategy import WorkerContext

    config = build_config(context, data={"image_size": SIZE, "cache": tier})
    step = build_bare_step(context, config)
    rates = []
    ratios = []
    waits = []
    with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
        run = Run(Path(folder) / "run")
        run.create(config.model_dump(mode="json"))
        loop = Loop(config, run, WorkerContext())
        if not context.smallest:  # an unmeasured epoch
            loop.finish_epoch(loop.train_epoch(), None)
        for _ in range(context.choose(5, 2, 1)):
            step_rate = BATCH / measure_seconds(step, context.choose(1.0, 2.0, 0.0))
            metrics = loop.train_epoch()
            loop.finish_epoch(metrics, None)
            rates.append(metrics["images_per_second"])
            ratios.append(metrics["images_per_second"] / step_rate)
            waits.append(metrics["input_wait"])
        loop.writer.wait()
    goal = RATIO_GOALS[tier]
    ratio = median(ratios)
    passed = ratio >= goal if goal and context.has_gpu else None
    speed = f"batch {BATCH}, {median(rates):,.0f} images/s, {median(waits):.1%} of the time waiting for input"
    decoder = _describe_decoder(loop)
    clear_models()
    return [
        Row(
            "d",
            f"loop over bare step, cache {tier}",
            "ratio",
            **context.as_column(ratio),
            goal=f">= {goal}" if goal else "",
            passed=passed,
            note=f"{speed}; {decoder}",
        )
    ]


def _describe_decoder(loop: Any) -> str:
    if loop.train.is_eager:
        return "decoded by DALI"
    return "decoded by tf.data" if loop.train.tier.name == "none" else "decoded once, then cached"


def measure_augmentation(context: CheckContext) -> list[Row]:
    """Measures the share of augmentation in the bare step."""
    config = build_config(context)
    with_augmentation = build_bare_step(context, config)
    without = build_bare_step(context, config, augment=False)
    minimum = context.choose(0.5, 1.0, 0.0)
    shares = []
    for _ in range(context.choose(5, 3, 1)):
        long = measure_seconds(with_augmentation, minimum)
        short = measure_seconds(without, minimum)
        shares.append(1 - short / long)
    synchronize()
    share = median(shares)
    clear_models()
    return [
        Row(
            "d",
            "augmentation",
            "fraction",
            **context.as_column(share),
            goal=f"< {MAX_SHARE}",
            passed=share < MAX_SHARE if context.has_gpu else None,
            note=f"of a step of {MODEL}, batch {BATCH}, as published",
        )
    ]

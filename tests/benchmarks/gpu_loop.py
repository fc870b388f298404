"""Part d: the loop around the step, with each cache, beside the bare step on one batch; and what augmentation takes of the step."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from gpu_lab import PUBLISHED, SIZE, Lab, finished, photos, seconds_each
from gpu_part import Checks
from gpu_results import Row
from gpu_steps import keras_forgets

MODEL, BATCH = "cats_dogs_small_dropout", 20
GOAL = {"none": None, "host": None, "device": 0.97}
SHARE = 0.05  # of the step, that augmentation may take


def checks(lab: Lab) -> Checks:
    """The tiers, then the augmentation."""
    for tier in GOAL:
        yield f"loop, cache {tier}", lambda tier=tier: loop(lab, tier)
    yield "augmentation in the step", lambda: augmentation(lab)


def configured(lab: Lab, **changes: Any) -> Any:
    """The published experiment."""
    from service.config import RunConfig

    model = "linear" if lab.smallest else MODEL  # seconds to trace, against minutes
    settings = {
        "preset": "gpu-check",
        "model": model,
        "shards": str(lab.shards),
        "global_batch": BATCH,
        "epochs": 1000,
    }
    settings |= {
        "augment": PUBLISHED,
        "data": {"image_size": SIZE},
        "optimizer": {"name": "rmsprop", "learning_rate": 0.0001},
    }
    return RunConfig.model_validate(settings | changes)


def bare(lab: Lab, config: Any, augment: bool = True) -> Any:
    """Forward, backward and update of one batch on the device, written by hand: one compiled call a step."""
    import keras
    import tensorflow as tf

    from pipelines.augment.apply import apply_augmentations
    from pipelines.augment.draw import draw
    from service.models import Task, build_model
    from service.models.layers import build_logits_model
    from service.training.learner import should_use_xla
    from service.training.losses import example_losses

    batch = photos(lab, BATCH)
    made = {
        "image": batch["image"],
        **(draw(config.augment, 0, 0, batch["row"], config.data) if augment else {}),
    }
    tensors = {name: tf.constant(value) for name, value in made.items()}
    labels = tf.constant(batch["label"])
    model = build_model(config.model, Task((*SIZE, 3), 2, (127.0,) * 3, (64.0,) * 3))
    net, optimizer = build_logits_model(model), keras.optimizers.RMSprop(0.0001)
    optimizer.build(net.trainable_variables)
    weights = net.trainable_variables

    @tf.function(jit_compile=should_use_xla(config.xla) or None)
    def gradients(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(example_losses(labels, net(images, training=True)))
        return tape.gradient(loss, [v.value for v in weights])

    update = tf.function(lambda found: optimizer.apply(found, weights), jit_compile=True)

    @tf.function
    def step() -> None:
        update(gradients(apply_augmentations(tensors, config.augment)[0]))

    return step


def loop(lab: Lab, tier: str) -> list[Row]:
    """Epochs of the loop and rounds of the bare step, one after the other, so that noise hits both alike."""
    from service.runs import Run
    from service.training.loop import Loop
    from service.training.strategy import WorkerContext

    config = configured(lab, data={"image_size": SIZE, "cache": tier})
    step = bare(lab, config)
    with tempfile.TemporaryDirectory(dir=lab.scratch) as folder:
        run = Run(Path(folder) / "run")
        run.create(config.model_dump(mode="json"))
        whole = Loop(config, run, WorkerContext())
        if not lab.smallest:
            whole.finish_epoch(whole.train_epoch(), None)
        rates, ratios, waits = [], [], []
        for _ in range(lab.pick(5, 2, 1)):
            single = BATCH / seconds_each(step, lab.pick(1.0, 2.0, 0.0))
            figures = whole.train_epoch()
            whole.finish_epoch(figures, None)
            rates.append(figures["images_per_second"])
            ratios.append(figures["images_per_second"] / single)
            waits.append(figures["input_wait"])
        whole.writer.wait()
    goal, ratio = GOAL[tier], median(ratios)
    passed = ratio >= goal if goal and lab.gpu else None
    note = f"batch {BATCH}, {median(rates):,.0f} images/s, {median(waits):.1%} of the time waiting for input; decoded by {_decoder(whole)}"
    keras_forgets()
    return [
        Row(
            "d",
            f"loop over bare step, cache {tier}",
            "ratio",
            **lab.column(ratio),
            goal=f">= {goal}" if goal else "",
            passed=passed,
            note=note,
        )
    ]


def _decoder(whole: Any) -> str:
    return "DALI" if whole.train.eager else "tf.data" if whole.train.tier.name == "none" else "nobody: cached"


def augmentation(lab: Lab) -> list[Row]:
    """The bare step with and without the augmentation."""
    config = configured(lab)
    steps = [bare(lab, config), bare(lab, config, augment=False)]
    shares = []
    for _ in range(lab.pick(5, 3, 1)):
        long, short = (seconds_each(step, lab.pick(0.5, 1.0, 0.0)) for step in steps)
        shares.append(1 - short / long)
    finished()
    share = median(shares)
    keras_forgets()
    note = f"of a step of {MODEL}, batch {BATCH}, as published"
    return [
        Row(
            "d",
            "augmentation",
            "share",
            **lab.column(share),
            goal=f"< {SHARE}",
            passed=share < SHARE if lab.gpu else None,
            note=note,
        )
    ]

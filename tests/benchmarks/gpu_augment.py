"""Part b: checks that augmentation gives the same images on every device, and measures its speed."""

from __future__ import annotations

from typing import Any

import numpy as np
from gpu_context import PUBLISHED, CheckContext, load_photos, measure_seconds
from gpu_part import Checks
from gpu_results import Row

TOLERANCE = 0.05  # levels of 255; the effect of another order of float32 operations
COLOURS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.5, "hue": 30.0}
MIXING = {"erase": 0.5, "mixup": 0.4, "cutmix": 0.4}
EVERYTHING = PUBLISHED | COLOURS | MIXING
GEOMETRY = PUBLISHED | {"flip_vertical": True, "crop": (0.3, 1.0)}
FILL_MODES = ("nearest", "reflect", "wrap", "constant")
KINDS: dict[str, dict[str, Any]] = {
    **{f"geometry, {fill}": GEOMETRY | {"fill": fill} for fill in FILL_MODES},
    "colour": COLOURS,
    "erase, mixup, cutmix": MIXING,
    "everything": EVERYTHING,
}


def list_checks(context: CheckContext) -> Checks:
    """Yields the comparison of every kind of augmentation, then the speed."""
    kinds = {"everything": EVERYTHING} if context.smallest else KINDS
    for name, spec in kinds.items():
        yield name, lambda name=name, spec=spec: compare_devices(context, name, spec)
    for name, spec in (("as published", PUBLISHED), ("everything", EVERYTHING)):
        yield f"{name}, speed", lambda name=name, spec=spec: measure_speed(context, name, spec)


def load_augmented_batch(
    context: CheckContext, settings: dict[str, Any], count: int
) -> tuple[dict[str, Any], Any]:
    """Returns a batch of photos with drawn parameters, and the specification of the augmentation."""
    from pipelines.augment.draw import draw
    from pipelines.spec import AugmentSpec, DataSpec

    spec = AugmentSpec(**settings)
    photos = load_photos(context, count)
    parameters = draw(spec, 0, 0, np.arange(count), DataSpec())
    return {"image": photos["image"], **parameters}, spec


def compare_devices(context: CheckContext, name: str, settings: dict[str, Any]) -> list[Row]:
    """Compares the GPU with the CPU; without a GPU, compares XLA with eager operations."""
    import tensorflow as tf

    from pipelines.augment.apply import apply_augmentations

    batch, spec = load_augmented_batch(context, settings, context.choose(64, 32, 4))

    def compute(device: str) -> np.ndarray:
        with tf.device(device):
            tensors = {key: tf.constant(value) for key, value in batch.items()}
            images, *_ = apply_augmentations(tensors, spec)
            return images.numpy()

    ours = compute(context.device)
    tf.config.run_functions_eagerly(not context.has_gpu)
    try:
        theirs = compute("CPU:0")
    finally:
        tf.config.run_functions_eagerly(False)
    difference = float(np.abs(ours - theirs).max())
    has_effect = float(np.abs(ours - batch["image"]).max()) > 1
    comparison = "GPU against CPU" if context.has_gpu else "XLA against single operations"
    return [
        Row(
            "b",
            f"{name}: {comparison}, largest difference",
            "levels",
            **context.as_column(difference),
            goal=f"<= {TOLERANCE}",
            passed=difference <= TOLERANCE and has_effect,
        )
    ]


def measure_speed(context: CheckContext, name: str, settings: dict[str, Any]) -> list[Row]:
    """Measures images per second from uint8 to augmented float32, on the device and on the CPU."""
    import tensorflow as tf

    from pipelines.augment.apply import apply_augmentations

    batch, spec = load_augmented_batch(context, settings, context.choose(256, 64, 4))
    minimum = context.choose(1.0, 1.0, 0.0)

    def measure_rate(device: str) -> float:
        with tf.device(device):
            tensors = {key: tf.constant(value) for key, value in batch.items()}
            seconds = measure_seconds(lambda: apply_augmentations(tensors, spec), minimum)
        return len(batch["image"]) / seconds

    cpu_rate = measure_rate("CPU:0")
    gpu_rate = measure_rate("GPU:0") if context.has_gpu else None
    return [Row("b", f"{name}: images augmented", "images/s", cpu=cpu_rate, gpu=gpu_rate)]

"""Part b: augmentation on the device: the same parameters give the same images everywhere, and how fast."""

from __future__ import annotations

from typing import Any

import numpy as np
from gpu_lab import PUBLISHED, Lab, photos, seconds_each
from gpu_part import Checks
from gpu_results import Row

TOLERANCE = 0.05  # levels of 255: what sums of float32 in another order, or fused, can differ by
COLOURS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.5, "hue": 30.0}
KINDS: dict[str, dict[str, Any]] = {
    **{
        f"geometry, {fill}": PUBLISHED | {"flip_vertical": True, "crop": (0.3, 1.0), "fill": fill}
        for fill in ("nearest", "reflect", "wrap", "constant")
    },
    "colour": COLOURS,
    "erase, mixup, cutmix": {"erase": 0.5, "mixup": 0.4, "cutmix": 0.4},
    "everything": PUBLISHED | COLOURS | {"erase": 0.5, "mixup": 0.4, "cutmix": 0.4},
}


def checks(lab: Lab) -> Checks:
    """Agreement of every kind of change, then speed."""
    kinds = {"everything": KINDS["everything"]} if lab.smallest else KINDS
    for name, spec in kinds.items():
        yield name, lambda name=name, spec=spec: agreement(lab, name, spec)
    for name, spec in (("as published", PUBLISHED), ("everything", KINDS["everything"])):
        yield f"{name}, speed", lambda name=name, spec=spec: speed(lab, name, spec)


def drawn(lab: Lab, settings: dict[str, Any], count: int) -> tuple[dict[str, Any], Any]:
    """A batch of photos with the parameters that were drawn for them."""
    from pipelines.augment.draw import draw
    from pipelines.spec import AugmentSpec, DataSpec

    batch, spec = photos(lab, count), AugmentSpec(**settings)
    return {"image": batch["image"], **draw(spec, 0, 0, np.arange(count), DataSpec())}, spec


def agreement(lab: Lab, name: str, settings: dict[str, Any]) -> list[Row]:
    """GPU against CPU; without a GPU, compiled by XLA against one operation after the other."""
    import tensorflow as tf

    from pipelines.augment.apply import apply_augmentations

    batch, spec = drawn(lab, settings, lab.pick(64, 32, 4))

    def made(device: str) -> np.ndarray:
        with tf.device(device):
            return apply_augmentations({key: tf.constant(value) for key, value in batch.items()}, spec)[0].numpy()

    ours = made(lab.device)
    tf.config.run_functions_eagerly(not lab.gpu)
    try:
        theirs = made("CPU:0")
    finally:
        tf.config.run_functions_eagerly(False)
    most = float(np.abs(ours - theirs).max())
    what = "GPU against CPU" if lab.gpu else "XLA against single operations"
    passed = most <= TOLERANCE and float(np.abs(ours - batch["image"]).max()) > 1  # and something was changed
    return [
        Row(
            "b",
            f"{name}: {what}, largest difference",
            "levels",
            **lab.column(most),
            goal=f"<= {TOLERANCE}",
            passed=passed,
        )
    ]


def speed(lab: Lab, name: str, settings: dict[str, Any]) -> list[Row]:
    """Images a second from uint8 to augmented float32, on the device that trains and on the CPU."""
    import tensorflow as tf

    from pipelines.augment.apply import apply_augmentations

    batch, spec = drawn(lab, settings, lab.pick(256, 64, 4))

    def rate(device: str) -> float:
        with tf.device(device):
            tensors = {key: tf.constant(value) for key, value in batch.items()}
            return len(batch["image"]) / seconds_each(
                lambda: apply_augmentations(tensors, spec), lab.pick(1.0, 1.0, 0.0)
            )

    return [
        Row(
            "b",
            f"{name}: images augmented",
            "images/s",
            cpu=rate("CPU:0"),
            gpu=rate("GPU:0") if lab.gpu else None,
        )
    ]

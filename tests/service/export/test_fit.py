"""Fitting inside the graph equals fitting by the decoder, for every way to fit and for many sizes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipelines.input.geometry import place_images
from pipelines.input.tfdata import decode_all
from pipelines.spec import DataSpec
from service.export.fit import _choose_target, _choose_window, fit_images

SIZES = [(24, 18), (25, 19), (7, 80), (80, 7), (61, 47), (48, 36), (1, 1), (13, 9)]
FITS = [{"fit": "stretch"}, {"fit": "crop"}, {"fit": "crop", "resize": 31}, {"fit": "pad"}]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("settings", FITS, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("channels", [1, 3])
def test_fitted_images_are_those_of_the_decoder(
    settings: dict[str, object], antialias: bool, channels: int
) -> None:
    data = DataSpec.model_validate(
        {"image_size": [24, 18], "channels": channels, "antialias": antialias, **settings}
    )
    fit = tf.function(lambda images: fit_images(images, data), reduce_retracing=True)
    generator = np.random.default_rng(0)
    for size in SIZES:
        image = generator.integers(0, 256, (*size, channels)).astype(np.uint8)
        expected = decode_all([image.tobytes()], np.array([image.shape]), data, "raw")
        fitted = fit(image[None]).numpy()
        assert (fitted.shape, fitted.dtype) == (expected.shape, np.uint8)
        differences = np.abs(fitted.astype(int) - expected.astype(int))
        assert differences.max() <= 1, size
        assert (differences > 0).mean() < 0.05, size  # without rounding, half of them would differ


@pytest.mark.parametrize("size", [(224, 224), (150, 150), (96, 128), (7, 5)])
@pytest.mark.parametrize("resize", [None, 256])
def test_windows_and_targets_are_those_of_the_plan(size: tuple[int, int], resize: int | None) -> None:
    """Halves of a pixel may be rounded to either side, because the plan computes in floating point."""
    generator = np.random.default_rng(1)
    sides = np.concatenate([generator.integers(1, 6000, (5000, 2)), generator.integers(1, 40, (500, 2))])
    shapes = np.concatenate([sides, np.full((len(sides), 1), 3)], axis=1).astype(np.int32)
    tensors = (tf.constant(shapes[:, 0]), tf.constant(shapes[:, 1]))
    target_size = (tf.constant(size[0]), tf.constant(size[1]))
    crop = DataSpec(image_size=size, fit="crop", resize=resize)
    pad = DataSpec(image_size=size, fit="pad")
    pairs = (
        (_choose_window(tensors, target_size, resize), place_images(shapes, crop).window),
        (_choose_target(tensors, target_size), place_images(shapes, pad).target),
    )
    for chosen, planned in pairs:
        differences = np.abs(np.stack([side.numpy() for side in chosen], axis=1) - planned[:, 2:])
        assert differences.max() <= 1
        assert (differences > 0).mean() < 0.002

"""TensorFlow decodes every image that `prepare_image` accepts, and to the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
import tensorflow as tf
from image_samples import encode_image, make_noise, make_orientation, make_ramp
from PIL import Image

from pipelines.shards import codec
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.spec import ShardSpec


def decode_with_tensorflow(image: bytes) -> np.ndarray | None:
    """Returns the pixels as training reads them, or None where TensorFlow reports an error."""
    try:
        if image.startswith(b"\xff\xd8"):
            return tf.io.decode_jpeg(image, dct_method="INTEGER_ACCURATE").numpy()
        return tf.io.decode_png(image).numpy()
    except tf.errors.InvalidArgumentError:
        return None


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize("size", [(32, 48), (37, 53), (1, 9), (9, 1)])
def test_raw_pixels_are_those_of_the_file_as_found(subsampling, size):
    channels = 1 if subsampling == "Gray" else 3
    image = simplejpeg.encode_jpeg(
        make_noise(*size, channels), 80, "GRAY" if channels == 1 else "RGB", subsampling
    )
    raw = prepare_image(image, ShardSpec(encoding="raw"))
    assert prepare_image(image, ShardSpec()).image == image
    assert np.array_equal(
        np.frombuffer(raw.image, np.uint8).reshape(raw.shape), decode_with_tensorflow(image)
    )


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_rows": 1}, {"exif": make_orientation(1)}]
)
def test_other_kinds_of_jpeg_decode_alike(options):
    image = encode_image(make_noise(37, 53), "JPEG", **options)
    assert np.array_equal(codec.decode_jpeg(image, 3), decode_with_tensorflow(image))


def make_damaged_images() -> list[bytes]:
    """Makes 500 images with changed, deleted or missing bytes."""
    texture = Image.fromarray(make_ramp(48, 64) // 2 + make_noise(48, 64) // 8)
    images = [
        encode_image(texture, "JPEG", quality=quality, **more)
        for quality in (60, 90)
        for more in ({}, {"progressive": True})
    ]
    images += [
        encode_image(texture, "JPEG", restart_marker_rows=1),
        encode_image(texture.convert("L"), "JPEG"),
        encode_image(texture.resize((16, 16))),
    ]
    draws = np.random.default_rng(0)
    damaged = []
    for _ in range(500):
        image = bytearray(images[draws.integers(len(images))])
        start = int(draws.integers(len(image)))
        count = int(draws.integers(1, 20))
        kind = draws.integers(5)
        if kind <= 1:
            image[start] = draws.integers(256)
        elif kind == 2:
            image[start : start + count] = draws.integers(0, 256, count, np.uint8).tobytes()
        elif kind == 3:
            del image[start : start + count]
        else:
            del image[start:]
        damaged.append(bytes(image))
    return damaged


def test_every_damaged_file_is_refused_or_decodes():
    outcomes = {"as found": 0, "copied": 0, "refused": 0}
    for image in make_damaged_images():
        try:
            ready = prepare_image(image, ShardSpec())
        except UnreadableImageError:
            outcomes["refused"] += 1
            assert decode_with_tensorflow(image) is None
            continue
        outcomes["as found" if ready.image == image else "copied"] += 1
        assert decode_with_tensorflow(ready.image).shape == ready.shape
    assert min(outcomes.values()) > 50, outcomes

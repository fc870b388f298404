"""What `prepare_image` lets pass, TensorFlow decodes, and to the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
import tensorflow as tf
from image_samples import encode, noise, orientation, smooth
from PIL import Image

from pipelines.shards import codec
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.spec import ShardSpec


def decoded(image: bytes) -> np.ndarray | None:
    """The pixels as training sees them, or None where TensorFlow refuses them."""
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
        noise(*size, channels), 80, "GRAY" if channels == 1 else "RGB", subsampling
    )
    raw = prepare_image(image, ShardSpec(encoding="raw"))
    assert prepare_image(image, ShardSpec()).image == image
    assert np.array_equal(np.frombuffer(raw.image, np.uint8).reshape(raw.shape), decoded(image))


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_rows": 1}, {"exif": orientation(1)}]
)
def test_so_are_those_of_other_ways_to_write_a_jpeg(options):
    image = encode(noise(37, 53), "JPEG", **options)
    assert np.array_equal(codec.decode_jpeg(image, 3), decoded(image))


def variants() -> list[bytes]:
    texture = Image.fromarray(smooth(48, 64) // 2 + noise(48, 64) // 8)
    whole = [
        encode(texture, "JPEG", quality=quality, **more)
        for quality in (60, 90)
        for more in ({}, {"progressive": True})
    ]
    whole += [
        encode(texture, "JPEG", restart_marker_rows=1),
        encode(texture.convert("L"), "JPEG"),
        encode(texture.resize((16, 16))),
    ]
    draws = np.random.default_rng(0)
    broken = []
    for _ in range(500):
        image = bytearray(whole[draws.integers(len(whole))])
        at, count, kind = int(draws.integers(len(image))), int(draws.integers(1, 20)), draws.integers(5)
        if kind <= 1:
            image[at] = draws.integers(256)
        elif kind == 2:
            image[at : at + count] = draws.integers(0, 256, count, np.uint8).tobytes()
        elif kind == 3:
            del image[at : at + count]
        else:
            del image[at:]
        broken.append(bytes(image))
    return broken


def test_no_damaged_file_passes_that_tensorflow_cannot_decode():
    verdicts = {"as found": 0, "copied": 0, "refused": 0}
    for image in variants():
        try:
            ready = prepare_image(image, ShardSpec())
        except UnreadableImageError:
            verdicts["refused"] += 1
            assert decoded(image) is None
            continue
        verdicts["as found" if ready.image == image else "copied"] += 1
        assert decoded(ready.image).shape == ready.shape
    assert min(verdicts.values()) > 50, verdicts

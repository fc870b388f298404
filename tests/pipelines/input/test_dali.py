"""DALI's batches, compared with tf.data's pixel by pixel, and with the input."""

from __future__ import annotations

import gc
import io
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from shard_samples import encode_png

from pipelines.errors import ConfigError, DataError
from pipelines.input import dali, tfdata
from pipelines.input.geometry import use_windows
from pipelines.shards.images import prepare_image
from pipelines.spec import DataSpec, ShardSpec

BATCH = 4
SECONDS = 60.0  # until a wait fails
SIZE = (31, 45)
GREY = DataSpec(image_size=(2, 3), channels=1)
Records = Callable[[], Iterator[dict[str, Any]]]


@pytest.fixture(autouse=True)
def skip_without_dali() -> None:
    if not dali.is_available():
        pytest.skip("needs NVIDIA DALI (nvidia-dali-cuda120)")


def solid(value: int) -> bytes:
    return encode_png(np.full((2, 3), value, np.uint8))


SOLIDS = [solid(20 * row) for row in range(10)]


def make_records(
    images: Sequence[bytes], batch: int = BATCH, first: int = 0, shapes: np.ndarray | None = None
) -> Records:
    """Returns records whose row i, from `first` on, is image i with label i % 3; the last batch is padded."""

    def iterate() -> Iterator[dict[str, Any]]:
        for start in range(first, len(images), batch):
            rows = np.arange(start, min(start + batch, len(images)))
            padding = (0, batch - len(rows))
            record = {
                "encoded": [memoryview(images[row]) for row in rows],
                "label": np.pad((rows % 3).astype(np.int32), padding),
                "weight": np.pad(np.ones(len(rows), np.float32), padding),
                "row": np.pad(rows, padding, constant_values=-1),
                "mix": np.arange(start, start + batch, dtype=np.float32),
            }
            yield record if shapes is None else {**record, "shape": np.pad(shapes[rows], (padding, (0, 0)))}

    return iterate


def decode(images: Sequence[bytes], data: DataSpec, batch: int = BATCH) -> np.ndarray:
    """Decodes all images by one pipeline, without the padding."""
    batches = dali.decode_batches(make_records(images, batch), data, batch, "as-found")
    return np.concatenate([batch["image"].numpy() for batch in batches])[: len(images)]


def decode_by_tfdata(images: Sequence[bytes], data: DataSpec) -> np.ndarray:
    return np.stack([tfdata.decode(tf.constant(image), data).numpy() for image in images])


def make_noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


def encode_jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def encode_upside_down(pixels: np.ndarray) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    return encode_jpeg(pixels, exif=exif)


def encode_cmyk() -> bytes:
    stream = io.BytesIO()
    Image.frombytes("CMYK", SIZE[::-1], make_noise(*SIZE, 4).tobytes()).save(stream, "JPEG")
    return prepare_image(stream.getvalue(), ShardSpec()).image


def wait_for_threads(count: int) -> None:
    """Waits until this process has no more than some threads: a thread exits after it was joined."""
    deadline = time.monotonic() + SECONDS
    while len(os.listdir("/proc/self/task")) > count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the same pixels as tf.data ---


@pytest.mark.parametrize("encoding", ["as-found", "raw"])
@pytest.mark.parametrize(
    "data",
    [
        DataSpec(image_size=(20, 24), fit="crop"),
        DataSpec(image_size=(20, 24), fit="crop", resize=32),
        DataSpec(image_size=(20, 24), fit="pad"),
        DataSpec(image_size=(20, 24), fit="pad", channels=1),
        DataSpec(image_size=(60, 24), antialias=True),
    ],
    ids=["crop", "resize", "pad", "grey", "antialias"],
)
def test_images_of_any_shape_are_fitted_as_by_tfdata(data: DataSpec, encoding: str) -> None:
    pixels = [make_noise(31, 45, 3), make_noise(60, 33, 3), make_noise(9, 50, 3), make_noise(31, 31, 3)]
    smooth = [
        np.asarray(Image.fromarray(image).resize((64, 48)).resize(image.shape[1::-1])) for image in pixels
    ]
    shapes = np.array([image.shape for image in smooth], np.int32)
    stored = [image.tobytes() if encoding == "raw" else encode_jpeg(image) for image in smooth]
    by_tfdata = tfdata.decode_all(stored, shapes, data, encoding)
    records = make_records(stored, shapes=shapes)
    (batch,) = dali.decode_batches(records, data, BATCH, encoding)
    difference = np.abs(batch["image"].numpy().astype(int) - by_tfdata)
    if data.antialias:  # at the border the two low-pass filters differ
        difference = difference[:, 1:-1, 1:-1]
    assert difference.max() <= 2


@pytest.mark.parametrize("encoding", ["as-found", "png", "raw"])
def test_given_windows_are_cut_out_as_by_tfdata(encoding: str) -> None:
    pixels = [make_noise(31, 45, 3), make_noise(60, 33, 3), make_noise(20, 24, 3)]
    smooth = [
        np.asarray(Image.fromarray(image).resize((64, 48)).resize(image.shape[1::-1])) for image in pixels
    ]
    shapes = np.array([image.shape for image in smooth], np.int32)
    encode = {"as-found": encode_jpeg, "png": encode_png, "raw": np.ndarray.tobytes}[encoding]
    stored = [encode(image) for image in smooth]
    windows = np.array([[3, 7, 21, 17], [0, 0, 60, 33], [13, 5, 7, 19]], np.int32)
    data = DataSpec(image_size=(20, 24), fit="pad")
    by_tfdata = tfdata.decode_all(stored, shapes, data, encoding, windows)

    def read_records() -> Iterator[dict[str, Any]]:
        (record,) = make_records(stored, shapes=shapes)()
        yield {**record, "window": np.concatenate([windows, np.int32([[0, 0, 1, 1]])])}

    (batch,) = dali.decode_batches(read_records, use_windows(data), BATCH, encoding)
    assert np.abs(batch["image"].numpy()[:3].astype(int) - by_tfdata).max() <= 2
    assert not batch["image"].numpy()[3].any()
    assert batch["window"].numpy()[:3].tolist() == windows.tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_agrees_to_the_last_bit(channels: int) -> None:
    colour = make_noise(*SIZE, 3)
    images = [
        encode_jpeg(colour, subsampling=subsampling) for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")
    ]
    images += [
        encode_jpeg(colour, progressive=True),
        encode_upside_down(colour),
        encode_jpeg(make_noise(*SIZE)),
        encode_png(colour),
        encode_png(make_noise(*SIZE)),
        encode_cmyk(),
    ]
    data = DataSpec(image_size=SIZE, channels=channels)
    np.testing.assert_array_equal(decode(images, data, len(images)), decode_by_tfdata(images, data))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(60, 50), (9, 14)])
def test_resizing_agrees_to_one_level(size: tuple[int, int], channels: int) -> None:
    sizes = [(1, 1), (1, 7), (7, 1), (1, 300), (24, 36), (31, 45), (64, 64), (333, 217)]
    images = [encode_jpeg(make_noise(*shape, 3)) for shape in sizes] + [
        encode_png(make_noise(*shape)) for shape in sizes
    ]
    data = DataSpec(image_size=size, channels=channels)
    assert np.abs(decode(images, data, len(images)).astype(int) - decode_by_tfdata(images, data)).max() <= 1


def test_real_photos_agree(shared: Path) -> None:
    photos = sorted((shared / "data" / "cats_and_dogs_filtered" / "train").rglob("*.jpg"))[::16]
    images = [path.read_bytes() for path in photos]
    difference = np.abs(decode(images, DataSpec(), 32).astype(int) - decode_by_tfdata(images, DataSpec()))
    assert len(images) == 125
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_raw_pixels_are_resized_alike(channels: int) -> None:
    arrays = [make_noise(*shape) for shape in ((8, 5, 3), (1, 1, 1), (40, 60, 1), (2, 90, 3), (12, 10, 3))]
    data = DataSpec(image_size=(12, 10), channels=channels)
    shapes = np.array([array.shape for array in arrays], np.int32)
    source = make_records([array.tobytes() for array in arrays], shapes=shapes)
    batches = list(dali.decode_batches(source, data, BATCH, "raw"))
    assert set(batches[0]) == {"image", "label", "weight", "row", "mix"}
    found = np.concatenate([b["image"].numpy() for b in batches])
    expected = decode_by_tfdata([encode_png(array) for array in arrays], data)
    assert np.abs(found[:5].astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(found[4], expected[4])  # of the right size
    assert not found[5:].any()


def test_raw_colours_become_grey_as_those_of_a_png_do() -> None:
    pixels = make_noise(300, 400, 3)
    grey = dali.convert_pixels(pixels.ravel(), np.array(pixels.shape, np.int32), 0, GREY)
    np.testing.assert_array_equal(grey, tf.io.decode_png(encode_png(pixels), channels=1))


# --- batches ---


@pytest.mark.parametrize("encoding", ["as-found", "jpeg:90", "png"])
def test_contents_of_a_batch(encoding: str) -> None:
    found = list(dali.decode_batches(make_records(SOLIDS), GREY, BATCH, encoding))
    assert [b["row"].numpy().tolist() for b in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    last = found[-1]
    expected = 20 * np.arange(4, 8)[:, None, None, None] * np.ones((1, 2, 3, 1))
    assert found[1]["image"].numpy().tolist() == expected.tolist()
    assert last["image"].numpy()[:, 1, 2, 0].tolist() == [160, 180, 0, 0]
    assert last["label"].numpy().tolist() == [2, 0, 0, 0]
    assert last["weight"].numpy().tolist() == [1, 1, 0, 0]
    assert last["mix"].numpy().tolist() == [8, 9, 10, 11]
    types = {"image": tf.uint8, "label": tf.int32, "weight": tf.float32, "row": tf.int64, "mix": tf.float32}
    assert {name: tensor.dtype for name, tensor in last.items()} == types


def test_a_batch_of_padding_alone_is_black() -> None:
    padding = {
        "encoded": [],
        "label": np.zeros(2, np.int32),
        "weight": np.zeros(2, np.float32),
        "row": np.full(2, -1),
    }
    first, second = dali.decode_batches(
        lambda: iter([next(make_records(SOLIDS[5:], 2)()), padding]), GREY, 2, "as-found"
    )
    assert first["image"].numpy().any()
    assert second["image"].shape == (2, 2, 3, 1)
    assert not second["image"].numpy().any()


def test_no_records_make_no_batches() -> None:
    assert list(dali.decode_batches(make_records([]), GREY, BATCH, "as-found")) == []


def test_two_pipelines_interleaved_stay_in_order() -> None:
    train = dali.decode_batches(make_records(SOLIDS), GREY, BATCH, "as-found")
    validation = dali.decode_batches(make_records(SOLIDS, first=4), GREY, BATCH, "as-found")
    pairs = list(zip(train, validation, strict=False))
    assert [[b["image"].numpy()[0, 0, 0, 0] for b in pair] for pair in pairs] == [[0, 80], [80, 160]]
    assert [[b["row"].numpy()[0] for b in pair] for pair in pairs] == [[0, 4], [4, 8]]


def test_batches_outlive_the_pipeline() -> None:
    images = [solid(value) for value in range(40)]
    found = [b["image"] for b in dali.decode_batches(make_records(images), GREY, BATCH, "as-found")]
    gc.collect()
    assert np.concatenate(found)[:, 0, 0, 0].tolist() == list(range(40))


def test_prefetching_is_bounded() -> None:
    ahead = dali.READY + dali.AHEAD
    produced = threading.Semaphore(0)

    def count_records() -> Iterator[dict[str, Any]]:
        for record in make_records(SOLIDS, 1)():
            produced.release()
            yield record

    batches = dali.decode_batches(count_records, GREY, 1, "as-found")
    next(batches)
    for _ in range(1 + ahead):
        assert produced.acquire(timeout=SECONDS)
    assert not produced.acquire(timeout=0.01)
    batches.close()


def test_records_are_read_in_another_thread() -> None:
    threads = set()

    def record_threads() -> Iterator[dict[str, Any]]:
        for record in make_records(SOLIDS)():
            threads.add(threading.current_thread())
            yield record

    assert len(list(dali.decode_batches(record_threads, GREY, BATCH, "as-found"))) == 3
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_the_device_of_a_pipeline_is_a_number_of_a_gpu_or_the_cpu() -> None:
    worker = "/job:worker/replica:0/task:3/device"
    assert [dali.find_gpu(f"{worker}:GPU:2"), dali.find_gpu("/device:GPU:0")] == [2, 0]
    assert [dali.find_gpu(f"{worker}:CPU:2"), dali.find_gpu("CPU:0")] == [None, None]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_stopping_early_ends_the_pipeline(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines = []
    build = dali.build_pipeline

    def build_and_record(*arguments: Any) -> Any:
        pipelines.append(build(*arguments))
        return pipelines[-1]

    monkeypatch.setattr(dali, "build_pipeline", build_and_record)
    batches = dali.decode_batches(make_records(SOLIDS), GREY, BATCH, "as-found")
    before = len(os.listdir("/proc/self/task"))
    for _ in range(count):
        next(batches)
    assert len(os.listdir("/proc/self/task")) > before
    pipeline = weakref.ref(pipelines.pop())
    batches.close()
    assert pipeline() is None
    wait_for_threads(before)


# --- errors ---


@pytest.mark.parametrize(
    "broken",
    [b"", b"junk", solid(7)[:-20], encode_jpeg(make_noise(9, 9, 3))[:-20], b"\xff\xd8\xff\xe0 no jpeg"],
)
def test_an_image_that_cannot_be_decoded_is_named_in_its_place(broken: bytes) -> None:
    images = [*SOLIDS[:6], broken, *SOLIDS[7:]]
    batches = dali.decode_batches(make_records(images), GREY, BATCH, "as-found")
    assert next(batches)["row"].numpy().tolist() == [0, 1, 2, 3]
    with pytest.raises(tf.errors.InvalidArgumentError, match="row 6") as caught:
        next(batches)
    assert isinstance(caught.value, dali.UndecodableError)
    assert caught.value.row == 6


def test_raw_pixels_of_another_size_are_named() -> None:
    images = [bytes(6)] * 3
    shapes = np.array([[2, 3, 1], [2, 4, 1], [2, 3, 1]], np.int32)
    with pytest.raises(dali.UndecodableError, match="row 1"):
        list(dali.decode_batches(make_records(images, shapes=shapes), GREY, BATCH, "raw"))


def test_an_error_of_the_reader_is_not_changed() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from make_records(SOLIDS)()
        raise DataError("a checksum", "row=10", "copy the file again")

    with pytest.raises(DataError, match="row=10"):
        list(dali.decode_batches(broken, GREY, BATCH, "as-found"))


def test_an_error_that_no_image_caused_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali, "find_undecodable_row", lambda *_: None)
    with pytest.raises(RuntimeError):
        list(dali.decode_batches(make_records([b"junk"]), GREY, BATCH, "as-found"))


def test_fast_decoding_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="decode=fast"):
        dali.decode_batches(make_records(SOLIDS), DataSpec(decode="fast"), BATCH, "as-found")


def test_without_dali_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)
    assert not dali.is_available()
    with pytest.raises(ConfigError, match="backend=dali"):
        dali.decode_batches(make_records(SOLIDS), GREY, BATCH, "as-found")

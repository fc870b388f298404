"""Batches of a tiny shard set, value by value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tensorflow as tf
from order_oracle import epoch_order
from shard_samples import encode_png
from shard_samples import write_shards as write_shard_set
from tiny_shards import solid, solids

from pipelines.augment.draw import draw
from pipelines.errors import ConfigError, DataError
from pipelines.input import dali
from pipelines.input.batches import Batches, read_rows
from pipelines.input.cache import CacheBudget
from pipelines.input.reader import ShardReader
from pipelines.records import Record
from pipelines.spec import AugmentSpec, DataSpec

DATA = DataSpec(image_size=(2, 3), channels=1)
AUGMENT = AugmentSpec(rotation=30, shift=0.1, flip=True)

PHOTO = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))


@pytest.fixture
def directory(write_shards) -> Path:
    return write_shards(solids(10))


def read_batches(dataset: tf.data.Dataset) -> list[dict[str, np.ndarray]]:
    return list(dataset.as_numpy_iterator())


def read_row_numbers(dataset: tf.data.Dataset) -> list[list[int]]:
    return [batch["row"].tolist() for batch in read_batches(dataset)]


def test_contents_of_a_batch(directory: Path) -> None:
    batches = Batches(directory, "train", DATA, 4)
    assert (batches.rows, batches.steps, batches.classes) == (10, 3, ("ant", "bee", "cat"))
    found = read_batches(batches.epoch(0))
    last = found[-1]
    assert [batch["row"].tolist() for batch in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    expected = 10 * np.arange(4, 8)[:, None, None, None] * np.ones((1, 2, 3, 1))
    assert found[1]["image"].tolist() == expected.tolist()
    assert found[1]["label"].tolist() == [1, 2, 0, 1]
    assert found[1]["weight"].tolist() == [1, 1, 1, 1]
    assert last["image"][:, 0, 0, 0].tolist() == [80, 90, 0, 0]
    assert last["label"].tolist() == [2, 0, 0, 0]
    assert last["weight"].tolist() == [1, 1, 0, 0]
    assert {name: array.dtype.name for name, array in last.items()} == {
        "image": "uint8",
        "label": "int32",
        "weight": "float32",
        "row": "int64",
    }


def test_every_shape_is_static(directory: Path) -> None:
    dataset = Batches(directory, "train", DATA, 4, seed=1, augment=AUGMENT).epoch(0, start_step=1, workers=2)
    shapes = {name: tuple(spec.shape) for name, spec in dataset.element_spec.items()}
    assert shapes == {"image": (2, 2, 3, 1), "label": (2,), "weight": (2,), "row": (2,), "affine": (2, 2, 3)}
    assert len(dataset) == 2


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_seed_shuffles_every_epoch_by_the_order(directory: Path, epoch: int) -> None:
    found = read_batches(Batches(directory, "train", DATA, 5, seed=8).epoch(epoch))
    rows = np.concatenate([batch["row"] for batch in found])
    assert rows.tolist() == epoch_order(10, 8, epoch).tolist()
    assert np.concatenate([batch["image"] for batch in found])[:, 1, 2, 0].tolist() == (rows * 10).tolist()
    assert np.concatenate([batch["label"] for batch in found]).tolist() == (rows % 3).tolist()


def test_a_dataset_can_be_iterated_again(directory: Path) -> None:
    dataset = Batches(directory, "train", DATA, 3, seed=8).epoch(0)
    assert read_row_numbers(dataset) == read_row_numbers(dataset)


@pytest.mark.parametrize("start", range(5))
def test_starting_at_a_step_gives_the_rest_of_the_epoch(directory: Path, start: int) -> None:
    batches = Batches(directory, "train", DATA, 3, seed=8)
    whole = read_row_numbers(batches.epoch(2))
    assert len(whole) == 4
    assert read_row_numbers(batches.epoch(2, start_step=start)) == whole[start:]


def test_images_before_the_first_step_are_not_decoded(write_shards) -> None:
    examples = [Record(b"broken", 0, "broken.png", (2, 3, 1)), *solids(4)[1:]]
    assert read_row_numbers(Batches(write_shards(examples), "train", DATA, 2).epoch(0, start_step=1)) == [
        [2, 3]
    ]


@pytest.mark.parametrize("workers", [2, 3, 6])
def test_workers_together_give_the_batches_of_one(directory: Path, workers: int) -> None:
    batches = Batches(directory, "train", DATA, 6, seed=8, augment=AUGMENT)
    alone = read_batches(batches.epoch(1))
    parts = [read_batches(batches.epoch(1, worker=worker, workers=workers)) for worker in range(workers)]
    for step, expected in enumerate(alone):
        for name, array in expected.items():
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), array)


def test_a_batch_that_cannot_be_divided_among_workers_is_refused_at_once(directory: Path) -> None:
    with pytest.raises(ConfigError, match="use 4 or 8"):
        Batches(directory, "train", DATA, 6).epoch(0, workers=4)


def test_augmentation_draws_by_seed_epoch_and_row(directory: Path) -> None:
    (batch,) = read_batches(Batches(directory, "train", DATA, 12, seed=8, augment=AUGMENT).epoch(3))
    expected = draw(AUGMENT, 8, 3, batch["row"], DATA)["affine"]
    np.testing.assert_array_equal(batch["affine"], expected)
    assert batch["row"][-2:].tolist() == [-1, -1]
    assert batch["affine"][-1].tolist() == [[1, 0, 0], [0, 1, 0]]
    # the images themselves are unchanged
    assert batch["image"][:10, 0, 0, 0].tolist() == (batch["row"][:10] * 10).tolist()


def test_augmentation_needs_a_seed(directory: Path) -> None:
    with pytest.raises(ConfigError, match="seed=None"):
        Batches(directory, "train", DATA, 4, augment=AUGMENT)


@pytest.mark.parametrize(("batch", "seed", "message"), [(0, 1, "batch=0"), (4, -1, "seed=-1")])
def test_values_out_of_range_are_refused(directory: Path, batch: int, seed: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Batches(directory, "train", DATA, batch, seed=seed)


@pytest.mark.parametrize("broken", [b"broken", b"", solid(7)[:-20], PHOTO[:-20], PHOTO[:20]])
def test_an_image_that_cannot_be_decoded_is_named(write_shards, broken: bytes) -> None:
    examples = solids(9)
    examples[5] = Record(broken, 0, "folder/broken.png", (2, 3, 1))
    batches = Batches(write_shards(examples), "train", DATA, 4, seed=8)
    with (
        pytest.raises(DataError, match=r"split 'train' .* row=5 id=folder/broken\.png\.") as caught,
        batches.data_errors(),
    ):
        read_batches(batches.epoch(0))
    assert caught.value.__suppress_context__


def test_an_image_late_in_a_large_split_is_named(write_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.input.batches.SEARCH_ROWS", 4)
    examples = [*solids(9), Record(b"broken", 0, "last.png", (2, 3, 1))]
    batches = Batches(write_shards(examples), "train", DATA, 4)
    with pytest.raises(DataError, match=r"row=9 id=last\.png"), batches.data_errors():
        read_batches(batches.epoch(0))


def test_other_errors_of_the_same_type_are_not_changed(directory: Path) -> None:
    batches = Batches(directory, "train", DATA, 4)
    with pytest.raises(tf.errors.InvalidArgumentError), batches.data_errors():
        tf.linalg.matmul(tf.zeros((1, 2)), tf.zeros((1, 2)))


def test_rows_are_read_as_arrays(directory: Path) -> None:
    batch = read_rows(directory, "train", DATA, [7, 2, 7])
    assert batch["image"][:, 0, 0, 0].tolist() == [70, 20, 70]
    assert batch["label"].tolist() == [1, 2, 1]
    assert batch["weight"].tolist() == [1, 1, 1]
    assert batch["row"].tolist() == [7, 2, 7]
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "image": "uint8",
        "label": "int32",
        "weight": "float32",
        "row": "int64",
    }


def test_a_row_that_cannot_be_decoded_is_named(write_shards) -> None:
    examples = [*solids(3), Record(b"broken", 0, "broken.png", (2, 3, 1))]
    with pytest.raises(DataError, match=r"row=3 id=broken\.png"):
        read_rows(write_shards(examples), "train", DATA, [0, 3])


def collect_rows(batches: tf.data.Dataset, rows: list[int]) -> None:
    """Appends the rows of all batches before the first that fails."""
    for batch in batches:
        rows.extend(batch["row"].numpy())


def test_a_flipped_byte_is_named_in_place_of_its_batch(directory: Path) -> None:
    """Without `data_errors`, TensorFlow's own error still contains the reason."""
    path = directory / "train-00006.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(solid(70)) + 40] ^= 1
    path.write_bytes(content)
    batches = Batches(directory, "train", DATA, 2)
    rows: list[int] = []
    with (
        pytest.raises(DataError, match=r"train-00006\.arrow: row=1 of the file, row=7 .* id=folder/7\.png"),
        batches.data_errors(),
    ):
        collect_rows(batches.epoch(0), rows)
    assert rows == list(range(6))
    with pytest.raises(tf.errors.OpError, match=r"row=7 .* id=folder/7\.png"):
        read_batches(batches.epoch(0))


def test_an_earlier_failure_is_not_reported_again(directory: Path) -> None:
    path = directory / "train-00000.arrow"
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[damaged.index(solid(0)) + 40] ^= 1
    path.write_bytes(damaged)
    batches = Batches(directory, "train", DATA, 4)
    with pytest.raises(DataError, match="row=0"), batches.data_errors():
        read_batches(batches.epoch(0))
    path.write_bytes(content)
    with pytest.raises(tf.errors.InvalidArgumentError), batches.data_errors():
        tf.linalg.matmul(tf.zeros((1, 2)), tf.zeros((1, 2)))


def test_raw_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 3), np.uint8)
    records = [Record(pixels.tobytes(), 0, f"{row}", (2, 3, 3)) for row, pixels in enumerate(noise)]
    shards = write_shard_set(tmp_path / "raw", ("ant",), {"train": records}, encoding="raw")
    (batch,) = read_batches(Batches(shards, "train", DataSpec(image_size=(2, 3)), 4).epoch(0))
    np.testing.assert_array_equal(batch["image"], np.concatenate([noise, np.zeros((1, 2, 3, 3), np.uint8)]))
    np.testing.assert_array_equal(
        read_rows(shards, "train", DataSpec(image_size=(2, 3)), [2, 0])["image"], noise[[2, 0]]
    )


def test_raw_pixels_of_another_shape_are_named(tmp_path: Path) -> None:
    records = [Record(bytes(18 - row), 0, f"image-{row}", (2, 3, 3)) for row in range(2)]
    shards = write_shard_set(tmp_path / "raw", ("ant",), {"train": records}, encoding="raw")
    batches = Batches(shards, "train", DataSpec(image_size=(2, 3)), 4)
    with pytest.raises(DataError, match="row=1 id=image-1"), batches.data_errors():
        read_batches(batches.epoch(0))


def test_a_window_of_shards_is_shuffled_at_a_time(directory: Path) -> None:
    data = DataSpec(image_size=(2, 3), channels=1, window=1)
    rows = np.concatenate(read_row_numbers(Batches(directory, "train", data, 5, seed=8).epoch(1))).tolist()
    assert rows == epoch_order(10, 8, 1, (3, 3, 3, 1), 1).tolist() != epoch_order(10, 8, 1).tolist()


def test_parameters_drawn_for_many_steps_are_those_of_each(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = AugmentSpec(rotation=30, hue=20, erase=0.5, mixup=0.2, cutmix=0.5)
    data = DataSpec(image_size=(2, 3))
    for block in (1, 5, 4096):
        monkeypatch.setattr("pipelines.input.batches.DRAW_ROWS", block)
        for batch in read_batches(
            Batches(directory, "train", data, 4, seed=8, augment=spec).epoch(2, start_step=1)
        ):
            expected = draw(spec, 8, 2, batch["row"], data)
            assert set(batch) == {"image", "label", "weight", "row", *expected}
            for name, values in expected.items():
                np.testing.assert_array_equal(batch[name], values)


def test_an_odd_batch_is_not_mixed(directory: Path) -> None:
    batches = Batches(directory, "train", DATA, 6, seed=8, augment=AugmentSpec(mixup=0.2))
    batches.epoch(0)
    with pytest.raises(ConfigError, match="batch=3"):
        batches.epoch(0, workers=2)


def test_without_a_gpu_auto_is_tf_data(directory: Path) -> None:
    assert isinstance(Batches(directory, "train", DataSpec(image_size=(2, 3)), 4).epoch(0), tf.data.Dataset)


def test_dali_that_is_not_installed_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.input.dali.is_available", lambda: False)
    with pytest.raises(ConfigError, match="install nvidia-dali"):
        Batches(directory, "train", DataSpec(backend="dali"), 4).epoch(0)


@pytest.mark.parametrize("cache", [None, "host"])
def test_dali_gives_the_same_batches(directory: Path, cache: str | None) -> None:
    pytest.importorskip("nvidia.dali")
    ours = DataSpec(image_size=(2, 3), channels=1, backend="dali", cache=cache or "none")
    batches = Batches(
        directory,
        "train",
        ours,
        4,
        seed=8,
        augment=AUGMENT,
        cache=CacheBudget(ram=10**6, gpu=0) if cache else None,
    )
    expected = read_batches(Batches(directory, "train", DATA, 4, seed=8, augment=AUGMENT).epoch(1))
    for found, batch in zip(batches.epoch(1), expected, strict=True):
        assert found.keys() == batch.keys()
        for name, values in batch.items():
            np.testing.assert_array_equal(np.asarray(found[name]), values)


def test_an_image_that_dali_cannot_decode_is_named(write_shards) -> None:
    pytest.importorskip("nvidia.dali")
    examples = solids(9)
    examples[7] = Record(b"broken", 0, "broken.png", (2, 3, 1))
    batches = Batches(
        write_shards(examples), "train", DataSpec(image_size=(2, 3), channels=1, backend="dali"), 3, seed=8
    )
    with pytest.raises(DataError, match=r"row=7 id=broken\.png"), batches.data_errors():
        list(batches.epoch(0))


def test_copies_of_an_image_are_augmented_differently_for_any_number_of_workers(directory: Path) -> None:
    data = DATA.model_copy(update={"repeats": 3})
    batches = Batches(directory, "train", data, 6, seed=8, augment=AUGMENT)
    alone = read_batches(batches.epoch(1))
    parts = [read_batches(batches.epoch(1, worker=worker, workers=3)) for worker in range(3)]
    for step, expected in enumerate(alone):
        for name, array in expected.items():
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), array)
    rows = alone[0]["row"]
    assert len(set(rows.tolist())) == 2  # six examples of two images
    assert len({affine.tobytes() for affine in alone[0]["affine"]}) == 6
    # The first copy is augmented as without repeats.
    first = draw(AUGMENT, 8, 1, rows[:2], data)["affine"]
    np.testing.assert_array_equal(alone[0]["affine"][:2], first)


# --- crops while decoding ---

CROP = AugmentSpec(crop=(0.2, 0.9), crop_at="decode")


@pytest.fixture
def ramps(write_shards) -> Path:
    """Images of different sizes in which every pixel tells its place: row + 40 * column."""
    records = []
    for row in range(10):
        height, width = 4 + row % 3, 5 + row % 2
        pixels = (np.arange(height)[:, None] + 40 * np.arange(width)).astype(np.uint8)
        records.append(Record(encode_png(pixels), row % 3, f"{row}.png", (height, width, 1)))
    return write_shards(records)


@pytest.mark.parametrize("backend", ["tfdata", "dali"])
def test_every_image_shows_its_window_for_any_number_of_workers(ramps: Path, backend: str) -> None:
    if backend == "dali" and not dali.is_available():
        pytest.skip("needs NVIDIA DALI (nvidia-dali-cuda120)")
    data = DataSpec(image_size=(1, 1), channels=1, backend=backend)
    batches = Batches(ramps, "train", data, 4, seed=8, augment=CROP)
    batches._is_decodable = True  # as if the builder had decoded them
    shapes = ShardReader(ramps, "train").read_shapes(range(10))
    seen: dict[int, list[int]] = {}
    for batch in batches.epoch(2):
        for row, window, image in zip(
            batch["row"].numpy(), batch["window"].numpy(), batch["image"].numpy(), strict=True
        ):
            if row < 0:
                continue
            top, left, height, width = window.tolist()
            seen[int(row)] = window.tolist()
            middle = top + (height - 1) / 2 + 40 * (left + (width - 1) / 2)
            assert abs(float(image[0, 0, 0]) - middle) <= 0.5
    expected = draw(CROP, 8, 2, np.arange(10), data, shapes)["window"]
    assert [seen[row] for row in range(10)] == expected.tolist()
    for worker in range(2):
        for batch in batches.epoch(2, start_step=1, worker=worker, workers=2):
            for row, window in zip(batch["row"].numpy(), batch["window"].numpy(), strict=True):
                assert row < 0 or window.tolist() == seen[int(row)]


def test_crops_are_decoded_at_the_size_of_augmented_images(ramps: Path) -> None:
    data = DataSpec(image_size=(6, 6), channels=1, antialias=True)
    augment = CROP.model_copy(update={"size": (3, 3)})
    (batch, *_) = read_batches(Batches(ramps, "train", data, 4, seed=8, augment=augment).epoch(2))
    small = DataSpec(image_size=(3, 3), channels=1, antialias=True)
    expected = read_rows(ramps, "train", small, batch["row"], batch["window"])["image"]
    np.testing.assert_array_equal(batch["image"], expected)


def test_images_that_are_cropped_while_decoding_are_not_cached(ramps: Path) -> None:
    data = DataSpec(image_size=(2, 3), channels=1)
    batches = Batches(ramps, "train", data, 4, seed=8, augment=CROP, cache=CacheBudget())
    assert str(batches.tier).startswith("cache: none (augment.crop_at=decode")
    with pytest.raises(ConfigError, match=r"use data\.cache=none"):
        Batches(ramps, "train", DataSpec(cache="host"), 4, seed=8, augment=CROP, cache=CacheBudget())


# --- batches in parts ---


@pytest.mark.parametrize("backend", ["tfdata", "dali"])
def test_batches_in_parts_are_the_same_batches(ramps: Path, backend: str) -> None:
    if backend == "dali" and not dali.is_available():
        pytest.skip("needs NVIDIA DALI (nvidia-dali-cuda120)")
    found = []
    for decode_gb in (4.0, 4 * 120e-9):  # all images, or two to four
        data = DataSpec(image_size=(3, 2), channels=1, backend=backend, fit="pad", decode_gb=decode_gb)
        batches = Batches(ramps, "train", data, 8, seed=8, augment=AUGMENT)
        batches._is_decodable = True  # as if the builder had decoded them
        with batches.data_errors():
            found.append([{k: v.numpy() for k, v in batch.items()} for batch in batches.epoch(1)])
    for whole, divided in zip(*found, strict=True):
        assert whole.keys() == divided.keys()
        assert whole["image"].shape == (8, 3, 2, 1)
        for name, values in whole.items():
            np.testing.assert_array_equal(divided[name], values)


def test_the_cache_is_filled_in_parts(ramps: Path) -> None:
    size = {"image_size": (3, 2), "channels": 1, "cache": "host"}
    found = []
    for decode_gb in (4.0, 4 * 120e-9):
        data = DataSpec(**size, decode_gb=decode_gb)
        cache = CacheBudget(ram=10**9, gpu=0)
        found.append(read_batches(Batches(ramps, "train", data, 8, cache=cache).epoch(0)))
    for whole, divided in zip(*found, strict=True):
        np.testing.assert_array_equal(whole["image"], divided["image"])


def test_dali_never_holds_more_than_the_budget(write_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dali.is_available():
        pytest.skip("needs NVIDIA DALI (nvidia-dali-cuda120)")
    pixels = np.zeros((20, 30, 3), np.uint8)
    shards = write_shards([Record(encode_png(pixels), 0, f"{row}", (20, 30, 3)) for row in range(64)])
    image_bytes = 2 * pixels.nbytes  # decoded, and at most as many encoded
    budget = 20 * image_bytes
    data = DataSpec(image_size=(2, 3), backend="dali", decode_gb=budget / 1e9)
    batches = Batches(shards, "train", data, 32)
    batches._is_decodable = True
    held = 0
    peak = 0
    read_parts = Batches._read_parts
    decode = dali.Decoder.decode

    def count_read(*arguments):
        nonlocal held, peak
        for part in read_parts(*arguments):
            held += len(part["row"])
            peak = max(peak, held)
            yield part

    def count_decoded(*arguments):
        nonlocal held
        for output, arrays in decode(*arguments):
            held -= len(arrays["row"])
            yield output, arrays

    monkeypatch.setattr(Batches, "_read_parts", count_read)
    monkeypatch.setattr(dali.Decoder, "decode", count_decoded)
    assert sum(1 for _ in batches.epoch(0)) == 2
    assert held == 0
    assert 5 < peak <= 20

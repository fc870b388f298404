"""The shard set that a build makes of a source: rows, statistics, rejected images, options."""

from __future__ import annotations

import io
import json
import shutil
import time

import numpy as np
import pytest
from list_source import (
    ListSource,
    encode_noise,
    encode_row,
    list_shards,
    make_examples,
    read_rows,
    register_by_value,
    snapshot,
)
from PIL import Image

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.shards import images as images_module
from pipelines.shards.build import build_shards
from pipelines.shards.info import describe_shards
from pipelines.shards.manifest import load_manifest
from pipelines.sources import open_source
from pipelines.spec import ShardSpec
from pipelines.storage import hash_file


@pytest.fixture(scope="module", autouse=True)
def _cluster(ray_cluster):
    register_by_value()


def test_a_whole_shard_set(tmp_path):
    source = ListSource(
        {
            "train": make_examples(5),
            "validation": [Example(encode_row(9), 1, "ü b.png", (0.0, 0.5, 0.5, 1.0))],
        }
    )
    progress = []
    manifest = build_shards(
        source, tmp_path / "deep/set", ShardSpec(shard_rows=2), lambda *done: progress.append(done)
    )
    out = tmp_path / "deep/set"
    assert load_manifest(out) == manifest
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "rejected.jsonl",
        *(f"train-0000{index}-of-00003.arrow" for index in range(3)),
        "train.rows.arrow",
        "train.shards.arrow",
        "validation-00000-of-00001.arrow",
        "validation.rows.arrow",
        "validation.shards.arrow",
    ]
    shards = list_shards(out, manifest, "train")
    assert [shard.rows for shard in shards] == [2, 2, 1]
    assert all(
        (shard.sha256, shard.bytes) == (hash_file(out / shard.file), (out / shard.file).stat().st_size)
        for shard in shards
    )
    assert [(row["image"], row["label"], row["id"]) for row in read_rows(out, manifest, "train")] == [
        (e.image, e.label, e.id) for e in make_examples(5)
    ]
    (last,) = read_rows(out, manifest, "validation")
    assert last.pop("checksum")
    assert last == {
        "image": encode_row(9),
        "label": 1,
        "id": "ü b.png",
        "evidence": [0.0, 0.5, 0.5, 1.0],
        "shape": [1, 1, 1],
    }
    assert (manifest.source, manifest.fingerprint, manifest.classes, manifest.rejected) == (
        "list:test",
        source.fingerprint(),
        ("ant", "bee"),
        0,
    )
    assert (manifest.splits["train"].class_counts, manifest.splits["validation"].class_counts) == (
        (3, 2),
        (0, 1),
    )
    assert (out / "rejected.jsonl").read_text() == ""
    assert progress[0] == (0, 6)
    assert progress[-1] == (6, 6)
    assert sorted(progress) == progress


def test_mean_and_deviation_are_exact(tmp_path):
    manifest = build_shards(
        ListSource({"train": make_examples(4)}), tmp_path / "set", ShardSpec(shard_rows=1, validation=0)
    )
    pixels = [0, 1, 1, 2, 2, 3, 3, 4]
    assert list(manifest.splits) == ["train"]
    assert manifest.splits["train"].mean == pytest.approx((2.0,) * 3, rel=1e-15)
    assert manifest.splits["train"].std == pytest.approx((np.std(pixels),) * 3, rel=1e-15)


def test_rejected_images_are_listed_in_order_and_empty_shards_left_out(tmp_path):
    items = make_examples(6)
    items[1] = Example(b"text", 1, "text.jpg")
    items[2] = Rejected("2.txt", "not an image suffix: .txt")
    items[3] = Example(b"", 0, "empty ü.png")
    manifest = build_shards(
        ListSource({"train": items}), tmp_path / "set", ShardSpec(shard_rows=2, validation=0)
    )
    assert [shard.file for shard in list_shards(tmp_path / "set", manifest, "train")] == [
        "train-00000-of-00003.arrow",
        "train-00002-of-00003.arrow",
    ]
    assert len(list((tmp_path / "set").glob("train-*.arrow"))) == 2
    assert [json.loads(line) for line in (tmp_path / "set/rejected.jsonl").read_text().splitlines()] == [
        {"id": "text.jpg", "reason": "not a JPEG, PNG, BMP, GIF or WebP image, or a damaged header"},
        {"id": "2.txt", "reason": "not an image suffix: .txt"},
        {"id": "empty ü.png", "reason": "empty file"},
    ]
    assert manifest.rejected == 3
    assert manifest.splits["train"].class_counts == (2, 1)


def test_an_unusable_validation_split_is_left_out(tmp_path):
    manifest = build_shards(
        ListSource({"train": make_examples(3), "validation": [Rejected("x", "bad")]}),
        tmp_path / "set",
        ShardSpec(),
    )
    assert list(manifest.splits) == ["train"]


@pytest.mark.parametrize("file_format", ["arrow", "tfrecord"])
def test_the_number_of_workers_does_not_change_the_bytes(tmp_path, file_format):
    items = [
        Rejected(f"{index}.txt", "no image") if index % 5 == 3 else item
        for index, item in enumerate(make_examples(40))
    ]
    source = ListSource({"train": items})
    spec = ShardSpec(format=file_format, shard_rows=3)
    for workers in (1, 2, 3, None):
        build_shards(source, tmp_path / str(workers), spec, workers=workers)
    sets = [snapshot(tmp_path / str(workers)) for workers in (1, 2, 3, None)]
    assert sets[1:] == sets[:1] * 3
    assert {path.suffix for path in (tmp_path / "1").glob("train-00000-*")} >= {f".{file_format}"}


@pytest.mark.parametrize(("workers", "expected"), [(2, True), (1, False)])
def test_workers_limit_the_shards_built_at_a_time(tmp_path, workers, expected):
    """Every read waits for another one at the same time, which one worker alone never meets."""

    def wait_for_another(index):
        marker = tmp_path / f"at-{index}"
        marker.touch()
        deadline = time.monotonic() + (300.0 if expected else 0.05)
        while time.monotonic() < deadline and not (tmp_path / "met").exists():
            if len(list(tmp_path.glob("at-*"))) > 1:
                (tmp_path / "met").touch()
        marker.unlink()

    source = ListSource({"train": make_examples(8)}, before_read=wait_for_another)
    build_shards(source, tmp_path / "set", ShardSpec(shard_rows=1), workers=workers)
    assert (tmp_path / "met").exists() is expected


def test_the_rows_of_a_shard_follow_from_its_megabytes(tmp_path):
    items = [Example(encode_noise(index), index % 2, str(index)) for index in range(30)]
    sizes = [len(item.image) for item in items[:24]]
    source = ListSource({"train": items})
    spec = ShardSpec(shard_mb=5.2 * np.mean(sizes) / 1e6)
    manifest = build_shards(source, tmp_path / "set", spec)
    assert [shard.rows for shard in list_shards(tmp_path / "set", manifest, "train")] == [5, 5, 5, 5, 4]
    # Estimated from what is stored, not from what is read.
    small = ShardSpec(shard_mb=2.5 * 32 * 32 / 1e6, encoding="raw", store_size=32)
    manifest = build_shards(source, tmp_path / "small", small)
    assert {shard.rows for shard in list_shards(tmp_path / "small", manifest, "train")} == {2}


def test_a_shard_smaller_than_an_image_holds_one(tmp_path):
    manifest = build_shards(
        ListSource({"train": make_examples(4)}), tmp_path / "set", ShardSpec(shard_mb=1e-6, validation=0)
    )
    assert [shard.rows for shard in list_shards(tmp_path / "set", manifest, "train")] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "workers", "message"),
    [
        ({"check": "header", "encoding": "png"}, None, "encoding=png"),
        ({"check": "header", "store_size": 64}, None, "store_size=64"),
        ({"shard_mb": 1.0, "shard_rows": 256}, None, "shard_mb=1.0 shard_rows=256"),
        ({}, 0, "workers=0"),
    ],
)
def test_options_that_contradict_each_other(tmp_path, options, workers, message):
    with pytest.raises(ConfigError, match=message):
        build_shards(
            ListSource({"train": make_examples(4)}), tmp_path / "set", ShardSpec(**options), workers=workers
        )
    assert not (tmp_path / "set").exists()


def test_checking_headers_only_gives_no_mean(tmp_path):
    deep = io.BytesIO()
    Image.fromarray(np.full((2, 2), 999, np.uint16)).save(deep, "PNG")
    items = [*make_examples(4), Example(deep.getvalue(), 0, "must be decoded")]
    manifest = build_shards(
        ListSource({"train": items}), tmp_path / "set", ShardSpec(check="header", validation=0)
    )
    assert manifest.splits["train"].rows == 5
    assert (manifest.splits["train"].mean, manifest.splits["train"].std) == (None, None)
    assert "mean (R G B)  not computed" in describe_shards(tmp_path / "set")


def encode_deep(*values):
    file = io.BytesIO()
    Image.fromarray(np.array([values], np.uint16)).save(file, "PNG")
    return file.getvalue()


def test_levels_are_chosen_once_for_the_whole_set(tmp_path):
    images = [encode_deep(0, value) for value in (100, 1023, 700, 512)]
    source = ListSource(
        {"train": [Example(image, index % 2, str(index)) for index, image in enumerate(images)]}
    )
    manifest = build_shards(source, tmp_path / "set", ShardSpec(levels="auto", validation=0))
    assert manifest.levels == "0:1023"
    assert manifest.notes == ("levels: 0:1023 (largest value of 4 16-bit images of the first 4: 1023)",)
    assert manifest.notices == {images_module.DEEP: 4}
    rows = read_rows(tmp_path / "set", manifest, "train")
    maxima = [np.asarray(Image.open(io.BytesIO(row["image"]))).max() for row in rows]
    assert maxima == [25, 255, 174, 128]


def test_nearly_black_images_cause_a_warning_with_their_number(tmp_path, caplog):
    items = [*make_examples(2), *(Example(encode_deep(0, 4095), index, f"deep{index}") for index in (0, 1))]
    manifest = build_shards(ListSource({"train": items}), tmp_path / "set", ShardSpec(validation=0))
    assert manifest.notices == {images_module.DEEP: 2, images_module.DARK: 2}
    assert "warning: 2 images with 16-bit values below 4096" in caplog.text


def test_a_class_whose_training_images_are_all_unusable_is_refused(tmp_path):
    items = [*make_examples(4), Example(b"text", 2, "broken.jpg")]
    source = ListSource({"train": items}, classes=("ant", "bee", "cow"))
    with pytest.raises(DataError, match="no training images of class 'cow'"):
        build_shards(source, tmp_path / "set", ShardSpec(validation=0))
    assert not (tmp_path / "set").exists()


def test_three_splits_stay_three_and_a_missing_one_is_held_out(tmp_path):
    names = [
        f"{split}/{name}/{index}.png" for split in ("train", "test") for name in "ab" for index in range(5)
    ]
    for index, name in enumerate(names):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_row(index))

    def reopen():
        return open_source(f"folder:{tmp_path / 'photos'}")

    sets = []
    for workers in (1, 2):
        out = tmp_path / f"set{workers}"
        manifest = build_shards(reopen(), out, ShardSpec(shard_rows=3), workers=workers, reopen=reopen)
        sets.append((manifest, snapshot(out)))
    assert sets[0] == sets[1]
    assert manifest.fingerprint == reopen().fingerprint()
    counts = {name: split.class_counts for name, split in manifest.splits.items()}
    assert counts == {"train": (4, 4), "validation": (1, 1), "test": (5, 5)}
    assert manifest.notes == (
        "splits: train=train, test=test",
        "no validation split: 20 % of each class of train held out",
    )


def test_the_manifest_records_how_images_are_stored(tmp_path):
    spec = ShardSpec(format="tfrecord", encoding="jpeg:70", store_size=8, validation=0)
    manifest = build_shards(ListSource({"train": make_examples(4)}), tmp_path / "set", spec)
    assert (manifest.format, manifest.encoding, manifest.store_size) == ("tfrecord", "jpeg:70", 8)
    (shard,) = list_shards(tmp_path / "set", manifest, "train")
    assert [(file.bytes, file.sha256) for file in shard.files] == [
        ((tmp_path / "set" / file.file).stat().st_size, hash_file(tmp_path / "set" / file.file))
        for file in shard.files
    ]
    assert len(shard.files) == 2


def test_the_description(tmp_path):
    items = [*make_examples(5), Rejected("x", "bad")]
    build_shards(
        ListSource({"train": items, "validation": make_examples(2)}),
        tmp_path / "set",
        ShardSpec(shard_rows=2, store_size=64),
    )
    text = describe_shards(tmp_path / "set")
    assert "list:test" in text
    assert "shorter side of 64 pixels" in text
    assert "rejected     1 (reasons in rejected.jsonl)" in text
    table = [line.split() for line in text.splitlines() if line.startswith(("class", "ant", "bee", "all"))]
    assert table == [
        ["class", "train", "validation"],
        ["ant", "3", "1"],
        ["bee", "2", "1"],
        ["all", "5", "2"],
    ]
    assert "train: 3 files" in text
    assert "mean (R G B)  2.50 2.50 2.50" in text


def test_a_folder_with_unusual_and_damaged_files(tmp_path):
    photos = tmp_path / "photos"
    for name in ("cats", "dogs", "empty"):
        (photos / name).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    picture = Image.fromarray(pixels)
    for path in ("cats/plain.jpg", "dogs/with spaces.JPG", "dogs/ünï — 猫.jpg"):
        picture.save(photos / path, "JPEG")
    picture.convert("CMYK").save(photos / "cats/cmyk.jpg")
    Image.fromarray((pixels[..., 0].astype(np.uint16)) * 257).save(photos / "cats/16 bit.png")
    (photos / "cats/truncated.jpg").write_bytes((photos / "cats/plain.jpg").read_bytes()[:900])
    (photos / "dogs/text.jpg").write_text("this is text")
    (photos / "dogs/empty.jpg").touch()
    picture.save(photos / "dogs/really a png.jpg", "PNG")
    shutil.copytree(photos, tmp_path / "copy")
    spec = ShardSpec(shard_rows=3, validation=0)
    manifest = build_shards(open_source(f"folder:{photos}"), tmp_path / "one", spec)
    build_shards(open_source(f"folder:{tmp_path / 'copy'}"), tmp_path / "two", spec)
    assert {**snapshot(tmp_path / "one"), "manifest.json": ""} == {
        **snapshot(tmp_path / "two"),
        "manifest.json": "",
    }
    found = {row["id"]: row for row in read_rows(tmp_path / "one", manifest, "train")}
    assert set(found) == {
        "cats/plain.jpg",
        "cats/cmyk.jpg",
        "cats/16 bit.png",
        "dogs/with spaces.JPG",
        "dogs/ünï — 猫.jpg",
        "dogs/really a png.jpg",
    }
    assert manifest.classes == ("cats", "dogs")
    assert manifest.splits["train"].class_counts == (3, 3)
    assert found["cats/plain.jpg"]["image"] == (photos / "cats/plain.jpg").read_bytes()
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(found["cats/16 bit.png"]["image"]))), pixels[..., 0]
    )
    reasons = {
        entry["id"]: entry["reason"]
        for entry in map(json.loads, (tmp_path / "one/rejected.jsonl").read_text().splitlines())
    }
    assert set(reasons) == {"cats/truncated.jpg", "dogs/text.jpg", "dogs/empty.jpg"}
    assert "truncated" in reasons["cats/truncated.jpg"]

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.shards.build import WORK, build_shards
from pipelines.shards.info import describe
from pipelines.shards.manifest import load_manifest
from pipelines.sources import open_source
from pipelines.spec import ShardSpec
from pipelines.storage import sha256


def png(*values: int) -> bytes:
    """One row of grey pixels."""
    file = io.BytesIO()
    Image.fromarray(np.array([values], np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class ListSource:
    """A real source over lists that are given to it."""

    splits: dict[str, list[Example | Rejected]]
    classes: tuple[str, ...] = ("ant", "bee")
    name: str = "list:test"
    error: Exception | None = field(default=None, compare=False)

    def counts(self):
        return {split: len(items) for split, items in self.splits.items()}

    def read(self, split, start, stop):
        for index, item in enumerate(self.splits[split][start:stop], start):
            if self.error and index == 2:
                raise self.error
            yield item

    def fingerprint(self):
        return str(len(repr(self.splits)))


def examples(count: int, prefix: str = "") -> list[Example | Rejected]:
    return [Example(png(index, index + 1), index % 2, f"{prefix}{index}.png") for index in range(count)]


@pytest.fixture(scope="module", autouse=True)
def _cluster(ray_cluster):
    import sys

    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests


def rows(directory, manifest, split):
    tables = [pa.ipc.open_file(directory / shard.file).read_all() for shard in manifest.splits[split].shards]
    return pa.concat_tables(tables).to_pylist()


def snapshot(directory):
    return {path.name: sha256(path) for path in directory.iterdir()}


def test_a_whole_shard_set(tmp_path):
    source = ListSource({"train": examples(5), "validation": [Example(png(9), 1, "ü b.png", (0.0, 0.5, 0.5, 1.0))]})
    progress = []
    manifest = build_shards(source, tmp_path / "deep/set", ShardSpec(shard_rows=2), lambda *done: progress.append(done))
    out = tmp_path / "deep/set"
    assert load_manifest(out) == manifest
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "rejected.jsonl",
        *(f"train-0000{index}-of-00003.arrow" for index in range(3)),
        "validation-00000-of-00001.arrow",
    ]
    assert [shard.rows for shard in manifest.splits["train"].shards] == [2, 2, 1]
    assert all(
        (shard.sha256, shard.bytes) == (sha256(out / shard.file), (out / shard.file).stat().st_size)
        for shard in manifest.splits["train"].shards
    )
    assert [(row["image"], row["label"], row["id"]) for row in rows(out, manifest, "train")] == [
        (e.image, e.label, e.id) for e in examples(5)
    ]
    assert rows(out, manifest, "validation") == [{"image": png(9), "label": 1, "id": "ü b.png", "evidence": [0.0, 0.5, 0.5, 1.0]}]
    assert (manifest.source, manifest.fingerprint, manifest.classes, manifest.rejected) == (
        "list:test",
        source.fingerprint(),
        ("ant", "bee"),
        0,
    )
    assert (manifest.splits["train"].class_counts, manifest.splits["validation"].class_counts) == ((3, 2), (0, 1))
    assert (out / "rejected.jsonl").read_text() == ""
    assert progress[0] == (0, 6)
    assert progress[-1] == (6, 6)
    assert sorted(progress) == progress


def test_mean_and_deviation_are_exact(tmp_path):
    manifest = build_shards(ListSource({"train": examples(4)}), tmp_path / "set", ShardSpec(shard_rows=1, validation=0))
    pixels = [0, 1, 1, 2, 2, 3, 3, 4]
    assert list(manifest.splits) == ["train"]
    assert manifest.splits["train"].mean == pytest.approx((2.0,) * 3, rel=1e-15)
    assert manifest.splits["train"].std == pytest.approx((np.std(pixels),) * 3, rel=1e-15)


def test_rejects_are_listed_in_order_and_empty_shards_left_out(tmp_path):
    items = examples(6)
    items[1] = Example(b"words", 1, "words.jpg")
    items[2], items[3] = Rejected("2.txt", "not an image suffix: .txt"), Example(b"", 0, "empty ü.png")
    manifest = build_shards(ListSource({"train": items}), tmp_path / "set", ShardSpec(shard_rows=2, validation=0))
    assert [shard.file for shard in manifest.splits["train"].shards] == ["train-00000-of-00003.arrow", "train-00002-of-00003.arrow"]
    assert len(list((tmp_path / "set").glob("*.arrow"))) == 2
    assert [json.loads(line) for line in (tmp_path / "set/rejected.jsonl").read_text().splitlines()] == [
        {"id": "words.jpg", "reason": "not a JPEG, PNG, BMP, GIF or WebP image, or a damaged header"},
        {"id": "2.txt", "reason": "not an image suffix: .txt"},
        {"id": "empty ü.png", "reason": "empty file"},
    ]
    assert manifest.rejected == 3
    assert manifest.splits["train"].class_counts == (2, 1)


def test_an_unusable_validation_split_is_left_out(tmp_path):
    manifest = build_shards(ListSource({"train": examples(3), "validation": [Rejected("x", "bad")]}), tmp_path / "set", ShardSpec())
    assert list(manifest.splits) == ["train"]


class EndedError(Exception):
    """Stands for whatever ends a build from outside."""


def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source, spec, out = ListSource({"train": examples(12)}), ShardSpec(shard_rows=2), tmp_path / "set"
    build_shards(source, tmp_path / "whole", spec)

    def stop(done, total):
        if done:
            raise EndedError

    with pytest.raises(EndedError):
        build_shards(source, out, spec, stop)
    kept = {path.name.removesuffix(".json") for path in (out / WORK).glob("*.arrow.json")}
    assert kept
    assert not (out / "manifest.json").exists()
    first = (out / min(kept)).stat()
    (out / ".tmp-1234-train-00000-of-00005.arrow").write_bytes(b"half")
    lost = sorted(kept)[1:]  # one finished shard is lost, another cut short
    for index, name in enumerate(lost):
        (out / name).unlink() if index % 2 else (out / name).write_bytes(b"cut")
    progress = []
    build_shards(source, out, spec, lambda *done: progress.append(done))
    assert progress[0] == (2, 12)
    assert (out / min(kept)).stat().st_ino == first.st_ino
    assert snapshot(out) == snapshot(tmp_path / "whole")


def test_a_build_killed_between_manifest_and_cleaning_up_is_finished(tmp_path):
    source, spec, out = ListSource({"train": examples(4)}), ShardSpec(), tmp_path / "set"

    def stop(done, total):
        if done == total:
            raise EndedError

    with pytest.raises(EndedError):
        build_shards(source, out, spec, stop)
    shutil.copytree(out / WORK, tmp_path / "work")
    build_shards(source, out, spec)
    expected = snapshot(out)
    shutil.copytree(tmp_path / "work", out / WORK)
    build_shards(source, out, spec)
    assert snapshot(out) == expected


def test_an_unfinished_build_of_something_else_is_left_alone(tmp_path):
    def stop(done, total):
        raise EndedError

    source, out = ListSource({"train": examples(4)}), tmp_path / "set"
    with pytest.raises(EndedError):
        build_shards(source, out, ShardSpec(), stop)
    for other, spec in ((source, ShardSpec(store_size=5)), (ListSource({"train": examples(5)}), ShardSpec())):
        with pytest.raises(ConfigError, match="unfinished build"):
            build_shards(other, out, spec)
    build_shards(source, out, ShardSpec())


@pytest.mark.parametrize("content", ["manifest.json", "letter.txt", ".hidden"])
def test_an_output_with_something_in_it_is_left_alone(tmp_path, content):
    (tmp_path / content).write_text("mine")
    with pytest.raises(ConfigError, match="does not exist yet"):
        build_shards(ListSource({"train": examples(4)}), tmp_path, ShardSpec())
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_an_output_that_is_a_file_or_lies_under_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ConfigError, match="out="):
            build_shards(ListSource({"train": examples(4)}), out, ShardSpec())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([Rejected("a.txt", "bad suffix"), Example(b"", 1, "b")], "ant=0, bee=0; rejected=2 (a.txt: bad suffix; b: empty file)"),
        ([item for item in examples(8) if item.label], "ant=0, bee=4; rejected=0"),
    ],
)
def test_too_little_leaves_nothing(tmp_path, items, found, made):
    out = tmp_path / "set"
    if not made:
        out.mkdir()
    with pytest.raises(DataError) as caught:
        build_shards(ListSource({"train": items}), out, ShardSpec(shard_rows=2, validation=0))
    assert found in str(caught.value)
    assert out.exists() is not made
    assert made or not any(out.iterdir())


def test_a_source_without_images(tmp_path):
    with pytest.raises(DataError, match="at least one image"):
        build_shards(ListSource({"train": []}), tmp_path / "set", ShardSpec())
    assert not (tmp_path / "set").exists()


def test_what_breaks_a_worker_reaches_the_caller_as_it_was(tmp_path):
    error = DataError("a", "b=c", "d")
    with pytest.raises(DataError) as caught:
        build_shards(ListSource({"train": examples(4)}, error=error), tmp_path / "set", ShardSpec(shard_rows=1))
    assert type(caught.value) is DataError
    assert str(caught.value) == "Expected a. Received: b=c. Fix: d."
    assert not (tmp_path / "set").exists()


def test_a_full_disk_is_no_traceback_and_keeps_what_is_finished(tmp_path):
    source, out = ListSource({"train": examples(8)}), tmp_path / "set"
    error = OSError(28, "No space left on device", "x.arrow")
    with pytest.raises(ConfigError, match=r"No space left on device \(x.arrow\).*free space"):
        build_shards(ListSource(source.splits, error=error), out, ShardSpec(shard_rows=1))
    build_shards(source, out, ShardSpec(shard_rows=1))
    build_shards(source, tmp_path / "whole", ShardSpec(shard_rows=1))
    assert snapshot(out) == snapshot(tmp_path / "whole")


def test_the_description(tmp_path):
    items = [*examples(5), Rejected("x", "bad")]
    build_shards(ListSource({"train": items, "validation": examples(2)}), tmp_path / "set", ShardSpec(shard_rows=2, store_size=64))
    text = describe(tmp_path / "set")
    assert "list:test" in text
    assert "shorter side of 64 pixels" in text
    assert "rejected     1 (reasons in rejected.jsonl)" in text
    table = [line.split() for line in text.splitlines() if line.startswith(("class", "ant", "bee", "all"))]
    assert table == [["class", "train", "validation"], ["ant", "3", "1"], ["bee", "2", "1"], ["all", "5", "2"]]
    assert "train: 3 files" in text
    assert "mean (R G B)  2.50 2.50 2.50" in text


def test_a_folder_of_nasty_files(tmp_path):
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
    (photos / "dogs/words.jpg").write_text("these are words")
    (photos / "dogs/nothing.jpg").touch()
    picture.save(photos / "dogs/in truth a png.jpg", "PNG")
    shutil.copytree(photos, tmp_path / "copy")
    spec = ShardSpec(shard_rows=3, validation=0)
    manifest = build_shards(open_source(f"folder:{photos}"), tmp_path / "one", spec)
    build_shards(open_source(f"folder:{tmp_path / 'copy'}"), tmp_path / "two", spec)
    assert {**snapshot(tmp_path / "one"), "manifest.json": ""} == {**snapshot(tmp_path / "two"), "manifest.json": ""}
    found = {row["id"]: row for row in rows(tmp_path / "one", manifest, "train")}
    assert set(found) == {
        "cats/plain.jpg",
        "cats/cmyk.jpg",
        "cats/16 bit.png",
        "dogs/with spaces.JPG",
        "dogs/ünï — 猫.jpg",
        "dogs/in truth a png.jpg",
    }
    assert manifest.classes == ("cats", "dogs")
    assert manifest.splits["train"].class_counts == (3, 3)
    assert found["cats/plain.jpg"]["image"] == (photos / "cats/plain.jpg").read_bytes()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found["cats/16 bit.png"]["image"]))), pixels[..., 0])
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, (tmp_path / "one/rejected.jsonl").read_text().splitlines())}
    assert set(reasons) == {"cats/truncated.jpg", "dogs/words.jpg", "dogs/nothing.jpg"}
    assert "truncated" in reasons["cats/truncated.jpg"]

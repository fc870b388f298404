"""`service.inference.predict`: the table, its order, and the images it leaves out."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as pq
from report_samples import brightness_model, dim_and_bright, make_run, metrics
from shard_samples import encode_png, make_record, write_shards

from pipelines.errors import ConfigError, DataError
from pipelines.records import Record
from pipelines.shards.task import prepare_examples
from pipelines.sources import open_source
from pipelines.spec import ShardSpec
from service.inference.options import PredictOptions
from service.inference.predict import predict
from service.models.metadata import ModelMetadata, append_metadata


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "brightness.keras"
    brightness_model().save(path)
    return path


def bright(value: float) -> float:
    """Probability of class 1 that the model predicts for an image of one value."""
    return 1 / (1 + np.exp(-20 * (value - 112) / 255))


def grey(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side), value, np.uint8)


def photo(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(grey(value)))


def rejected(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in out.with_suffix(".rejected.jsonl").read_text().splitlines()]


def test_a_table_of_all_splits_in_order(model, tmp_path):
    out = tmp_path / "out.parquet"
    result = predict(model, str(dim_and_bright(tmp_path / "data")), out, classes=["dim", "bright"])
    table = pq.read_table(out)
    assert table.schema.remove_metadata() == pa.schema(
        [("id", pa.string()), ("class", pa.string()), ("dim", pa.float32()), ("bright", pa.float32())]
    )
    assert table["id"].to_pylist() == [f"tiny/{row}.png" for row in range(6)] * 2  # train, then validation
    assert table["class"].to_pylist() == (["dim"] * 3 + ["bright"] * 3) * 2
    np.testing.assert_allclose(
        table["bright"].to_numpy(), [bright(20 * row + 60) for row in range(6)] * 2, rtol=1e-5
    )
    np.testing.assert_allclose(table["dim"].to_numpy() + table["bright"].to_numpy(), 1, rtol=1e-6)
    assert (result.images, result.rejected) == (12, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.parquet"]


def test_csv_holds_the_same_to_the_bit(model, tmp_path):
    data = str(dim_and_bright(tmp_path / "data"))
    predict(model, data, tmp_path / "out.csv", split="validation", classes=['the "dim", ones', "bright"])
    predict(model, data, tmp_path / "out.parquet", split="validation")
    with (tmp_path / "out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    table = pq.read_table(tmp_path / "out.parquet")
    assert header == ["id", "class", 'the "dim", ones', "bright"]
    assert [row[:2] for row in rows] == [
        [f"tiny/{i}.png", 'the "dim", ones' if i < 3 else "bright"] for i in range(6)
    ]
    assert table.column_names == ["id", "class", "class_0", "class_1"]
    for place, name in ((2, "class_0"), (3, "class_1")):
        assert np.array([row[place] for row in rows], np.float32).tolist() == table[name].to_pylist()


def test_a_flat_folder_of_photos(model, tmp_path):
    for name, value in (
        ("b.png", 200),
        ("a.png", 10),
        ("sub/deep/c.png", 111),
        (".hidden.png", 1),
        ("ä.png", 113),
    ):
        photo(tmp_path / "photos" / name, value)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    result = predict(
        model, f"photos:{tmp_path / 'photos'}", tmp_path / "out.parquet", classes=["dim", "bright"]
    )
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == ["a.png", "b.png", "sub/deep/c.png", "ä.png"]
    assert table["class"].to_pylist() == ["dim", "bright", "dim", "bright"]
    np.testing.assert_allclose(
        table["bright"].to_numpy(), [bright(v) for v in (10, 200, 111, 113)], rtol=1e-5
    )
    assert [item["id"] for item in rejected(tmp_path / "out.parquet")] == ["broken.jpg", "notes.txt"]
    assert "image" in rejected(tmp_path / "out.parquet")[0]["reason"]
    assert (result.images, result.rejected) == (4, 2)


def test_a_source_gives_the_table_of_its_shard_set(model, tmp_path):
    """A zip of images of several sizes, three of which are not images."""
    draw = np.random.default_rng(1)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for row in range(140):
            pixels = draw.integers(0, 256, (8 + row % 5, 9, 3)).astype(np.uint8)
            archive.writestr(f"{'ab'[row % 2]}/{row}.png", encode_png(pixels) if row % 50 != 20 else b"none")
    source = open_source(f"archive:{tmp_path / 'photos.zip'}")
    rows = [
        item[0] for item in prepare_examples(source, "train", 0, 140, ShardSpec()) if isinstance(item, tuple)
    ]
    shards = write_shards(tmp_path / "data", ("a", "b"), {"train": rows}, shard_rows=50)
    result = predict(model, source.name, tmp_path / "source.parquet")
    predict(model, str(shards), tmp_path / "shards.parquet")
    assert pq.read_table(tmp_path / "source.parquet").equals(pq.read_table(tmp_path / "shards.parquet"))
    assert (result.images, result.rejected) == (137, 3)


def test_deep_images_of_a_source_are_reduced_as_for_the_training_of_the_model(tmp_path):
    """12 bits in 16-bit PNGs: 111 and 113 of 255 at levels 0:4095; nearly black at full levels."""
    for name, value in (("dim", 111), ("bright", 113)):
        picture = Image.fromarray(np.full((8, 8), value * 4095 // 255, np.uint16))
        picture.save(tmp_path / f"{name}.png")
    file = tmp_path / "model.keras"
    brightness_model().save(file)
    append_metadata(file, ModelMetadata(("dim", "bright"), "00", (8, 8), 1, levels="0:4095"))
    predict(file, f"photos:{tmp_path}", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8") as table:
        classes = {row["id"]: row["class"] for row in csv.DictReader(table)}
    assert classes == {"dim.png": "dim", "bright.png": "bright"}


@pytest.mark.parametrize("kind", ["photos", "shards"])
def test_images_are_fitted_as_for_the_training_of_the_model(tmp_path, kind):
    """A wide image, dark in its middle: bright when stretched, dim when cropped or padded.

    The model weights the pixels of a row by 1, 2, 3, 3, 3, 3, 2 and 1 eighteenths, and the rows likewise: a
    third of the stretched image is dark, and half of the padded one is black.
    """
    pixels = np.full((8, 24, 1), 250, np.uint8)
    pixels[:, 8:16] = 50
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wide.png").write_bytes(encode_png(pixels))
    data = f"photos:{tmp_path / 'photos'}"
    if kind == "shards":
        rows = [make_record(pixels, 0, "wide.png")]
        data = str(write_shards(tmp_path / "shards", ("dim", "bright"), {"train": rows}))
    file = tmp_path / "model.keras"
    brightness_model().save(file)
    append_metadata(file, ModelMetadata(("dim", "bright"), "00", (8, 8), 1, fit="crop"))

    def predict_brightness(**options: object) -> tuple[float, str]:
        summary = predict(file, data, tmp_path / "out.parquet", options=PredictOptions(**options))
        return pq.read_table(tmp_path / "out.parquet")["bright"].to_pylist()[0], summary.notes[2]

    probability, note = predict_brightness()
    assert probability == pytest.approx(bright(50), rel=1e-5)
    assert note == "images of other proportions: cropped to the centre: recorded when the model was trained"
    probability, note = predict_brightness(fit="stretch")
    assert probability == pytest.approx(bright(550 / 3), rel=1e-5)
    assert note == "images of other proportions: stretched: as set by --fit"
    probability, _ = predict_brightness(fit="pad")
    assert probability == pytest.approx(bright(550 / 6), rel=1e-5)


def test_rows_that_cannot_be_decoded_are_left_out_and_listed(model, tmp_path, monkeypatch):
    """Some rows of a batch, and a whole batch of them, in three blocks; all others are predicted."""
    monkeypatch.setattr("service.inference.jobs.BLOCK", 256)
    bad = {70, 71, 200, 599, *range(128, 192)}
    rows = [
        make_record(grey(row % 251), 0, f"{row}")
        if row not in bad
        else Record(b"junk", 0, f"{row}", (8, 8, 1))
        for row in range(600)
    ]
    shards = write_shards(tmp_path / "data", ("dim", "bright"), {"train": rows}, shard_rows=90)
    (tmp_path / "out.rejected.jsonl").write_text("of a previous table")
    result = predict(model, str(shards), tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    kept = [row for row in range(600) if row not in bad]
    assert table["id"].to_pylist() == [f"{row}" for row in kept]
    np.testing.assert_allclose(table["class_1"].to_numpy(), [bright(row % 251) for row in kept], rtol=1e-4)
    assert rejected(tmp_path / "out.parquet") == [
        {"id": f"{row}", "reason": "cannot be decoded"} for row in sorted(bad)
    ]
    assert (result.images, result.rejected) == (600 - len(bad), len(bad))
    predict(model, str(dim_and_bright(tmp_path / "fine")), tmp_path / "out.parquet")
    assert not (tmp_path / "out.rejected.jsonl").exists()


def test_a_damaged_shard_is_an_error_and_leaves_the_previous_table(model, tmp_path):
    shards = write_shards(
        tmp_path / "data",
        ("dim", "bright"),
        {"train": [make_record(grey(row), 0, f"{row}") for row in range(100)]},
    )
    (shard,) = shards.glob("train-*.arrow")
    content = bytearray(shard.read_bytes())
    place = content.index(encode_png(grey(80)))
    content[place + 60] ^= 1
    shard.write_bytes(content)
    (tmp_path / "out.csv").write_text("previous")
    with pytest.raises(DataError, match="id=80"):
        predict(model, str(shards), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "previous"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.csv"]


def test_no_usable_image_is_an_error(model, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="images=0"):
        predict(model, f"photos:{tmp_path / 'photos'}", tmp_path / "out.csv")
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="all 1 images rejected"):
        predict(model, f"photos:{tmp_path / 'photos'}", tmp_path / "out.csv")
    assert [item["id"] for item in rejected(tmp_path / "out.csv")] == ["broken.png"]
    assert not (tmp_path / "out.csv").exists()


def test_class_names_come_from_the_model_whatever_became_of_its_shard_set(tmp_path):
    run = make_run(tmp_path / "run", dim_and_bright(tmp_path / "own"), brightness_model(), metrics(1))
    other = str(dim_and_bright(tmp_path / "other", classes=("x", "y")))
    out = tmp_path / "out.parquet"
    (tmp_path / "own").rename(tmp_path / "gone")
    dim_and_bright(tmp_path / "own", classes=("bright", "dim"))  # another set in its place
    for model in (run.path, run.model_path):
        predict(model, other, out, split="train")
        assert pq.read_schema(out).names == ["id", "class", "dim", "bright"]
        with pytest.raises(ConfigError, match=r"classes of the model: dim, bright.*Received: classes=x, y"):
            predict(model, other, out, classes=["x", "y"])


def test_a_table_records_how_the_model_was_interpreted(model, tmp_path):
    summary = predict(model, str(dim_and_bright(tmp_path / "data")), tmp_path / "out.parquet")
    recorded = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"glassbox"])
    assert (recorded["scale"], recorded["head"]) == (1.0, "probabilities")
    assert [*recorded["interpretation"], recorded["classes"]] == list(summary.notes)
    assert "by position, because the file has no class names" in recorded["classes"]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"out": "out.json"}, ConfigError, r"ends in \.parquet or \.csv"),
        ({"out": "nowhere/out.csv"}, ConfigError, "its directory does not exist"),
        ({"classes": ["a"]}, ConfigError, "2 class names"),
        ({"classes": ["a", "a"]}, ConfigError, "class=a twice"),
        ({"classes": ["a", "id"]}, ConfigError, "class=id twice"),
        ({"split": "test"}, DataError, "split=test"),
        ({"workers": 0}, ConfigError, "workers=0"),
        ({"data": "data/.."}, ConfigError, "pass photos:"),
        ({"data": "phots:x"}, ConfigError, "use photos"),
        ({"data": "photos:nowhere"}, ConfigError, "no such folder"),
        ({"model": "missing.keras"}, ConfigError, "no such file"),
    ],
)
def test_invalid_requests_are_refused(model, tmp_path, monkeypatch, changes, error, match):
    monkeypatch.chdir(tmp_path)
    dim_and_bright(tmp_path / "data")
    arguments = {"model": model, "data": "data", "out": "out.csv"} | changes
    with pytest.raises(error, match=match):
        predict(**arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]

"""`service.inference.evaluate`: exact scores of a model with known predictions, and early errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics
from run_samples import write_older_record
from shard_samples import encode_png, make_record, write_shards

from pipelines.errors import ConfigError, DataError
from pipelines.records import Record
from pipelines.shards.manifest import load_manifest
from pipelines.sources import SourceOptions
from pipelines.text import render_table
from service.cli import main
from service.inference.evaluate import Evaluation, evaluate
from service.inference.jobs import Throughput
from service.inference.options import PredictOptions

L = keras.layers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "brightness.keras"
    brightness_model().save(path)
    return path


def one_hot_model(classes: int, path: Path) -> Path:
    """Maps images [1, classes, 1] to the softmax of their pixels: each pixel is the logit of its class."""
    model = keras.Sequential([L.Input((1, classes, 1)), L.Rescaling(1 / 16), L.Flatten(), L.Softmax()])
    model.save(path)
    return path


def test_a_set_that_replaces_another_is_read_anew(model, tmp_path):
    """Evaluations of one process, as in a notebook: the second set has the opposite labels."""
    for labels, accuracy in (((0, 1), 1.0), ((1, 0), 0.0)):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        records = []
        for grey, label in zip((60, 160), labels, strict=True):
            records.append(make_record(np.full((8, 8, 1), grey, np.uint8), label, str(grey)))
        write_shards(tmp_path / "data", ("dim", "bright"), {"train": records, "validation": records})
        assert evaluate(model, tmp_path / "data", "validation").accuracy == accuracy


def test_all_scores_of_a_known_model(model, tmp_path):
    result = evaluate(model, dim_and_bright(tmp_path / "data"), "validation", out=tmp_path / "scores.json")
    logits = [20 * (20 * row + 60 - 112) / 255 for row in range(6)]
    loss = sum(math.log1p(math.exp(-z if row >= 2 else z)) for row, z in enumerate(logits)) / 6
    assert (result.images, result.accuracy, result.top5, result.auc) == (6, 5 / 6, None, 1.0)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.confusion.tolist() == [[2, 0], [1, 3]]
    assert result.figures() == {"accuracy": 5 / 6, "loss": result.loss, "AUC": 1.0}
    assert render_table(result.confusion_table()).splitlines() == [
        "true \\ predicted  dim  bright",
        "dim                 2       0",
        "bright              1       3",
    ]
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert {name: saved[name] for name in ("accuracy", "loss", "auc", "top5", "images", "split")} == {
        "accuracy": 5 / 6,
        "loss": result.loss,
        "auc": 1.0,
        "top5": None,
        "images": 6,
        "split": "validation",
    }
    assert (saved["classes"], saved["confusion"]) == (["dim", "bright"], [[2, 0], [1, 3]])


def test_flip_tta_averages_with_the_mirror_image(tmp_path, capsys):
    """The brighter pixel decides the class, and in the mirror image the other one: both get one half."""
    rows = [make_record(np.array([[[200], [40]]], np.uint8), row % 2, f"{row}") for row in range(3)]
    shards = write_shards(tmp_path / "data", ("left", "right"), {"validation": rows})
    arguments = [
        "--model",
        str(one_hot_model(2, tmp_path / "m.keras")),
        "--data",
        str(shards),
        "--tta",
        "flip",
    ]
    assert main(["evaluate", *arguments, "--out", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["loss"], scores["tta"]) == (pytest.approx(math.log(2), rel=1e-6), "flip")
    assert main(["predict", *arguments, "--out", str(tmp_path / "table.csv")]) == 0
    lines = (tmp_path / "table.csv").read_text().splitlines()[1:]
    probabilities = [[float(value) for value in line.split(",")[2:]] for line in lines]
    np.testing.assert_allclose(probabilities, np.full((3, 2), 0.5), rtol=1e-6)
    assert main(["evaluate", *arguments[:-1], "flop"]) == 2
    assert "Received: tta=flop. Fix: use flip" in capsys.readouterr().err


def test_top_5_over_blocks_and_a_padded_batch(tmp_path, monkeypatch):
    """Row i of 7 classes is brightest at i % 7; its label is the brightest, fifth or sixth brightest."""
    monkeypatch.setattr("service.inference.jobs.BLOCK", 128)
    rows = []
    for row in range(150):
        brightness = np.roll(np.arange(7, dtype=np.uint8)[::-1] * 30, row % 7)  # brightest at row % 7
        rank = (5, 4, 0)[row % 3]
        rows.append(make_record(brightness[None, :, None], (row + rank) % 7, f"{row}"))
    shards = write_shards(tmp_path / "data", [f"c{i}" for i in range(7)], {"validation": rows}, shard_rows=40)
    result = evaluate(one_hot_model(7, tmp_path / "m.keras"), shards, "validation")
    assert (result.images, result.accuracy, result.top5, result.auc) == (150, 50 / 150, 100 / 150, None)
    assert result.confusion.sum() == 150
    assert np.trace(result.confusion) == 50
    assert result.confusion.sum(axis=0).tolist() == [22, 22, 22, 21, 21, 21, 21]  # predicted as row % 7


def test_one_class_alone_has_no_auc(model, tmp_path):
    rows = [make_record(np.full((8, 8, 1), 200, np.uint8), 1, "a")]
    shards = write_shards(tmp_path / "data", ("dim", "bright"), {"validation": rows})
    result = evaluate(model, shards, "validation")
    assert (result.auc, result.accuracy) == (None, 1.0)


def test_class_names_are_those_of_the_model_whatever_became_of_its_shard_set(tmp_path):
    """The labels of `other` are those of the images, under the other name: every prediction is reversed."""
    own = dim_and_bright(tmp_path / "own")
    other = dim_and_bright(tmp_path / "other", classes=("bright", "dim"))
    run = make_run(tmp_path / "run", own, brightness_model(), metrics(1))
    for model in (run.path, run.model_path):
        assert evaluate(model, own).accuracy == 5 / 6
        swapped = evaluate(model, other)
        assert (swapped.accuracy, swapped.classes) == (1 / 6, ("dim", "bright"))
        assert swapped.confusion.tolist() == [[1, 3], [2, 0]]
        assert "another order" in swapped.notes[-1]
    own.rename(tmp_path / "moved")
    assert evaluate(run.path, other).accuracy == 1 / 6
    dim_and_bright(own, classes=("dim", "bright", "dark"))  # another set in its place
    assert evaluate(run.path, other).accuracy == 1 / 6
    with pytest.raises(ConfigError, match="unknown to the model: x; missing: dim"):
        evaluate(run.model_path, dim_and_bright(tmp_path / "x", classes=("x", "bright")))


def test_a_file_without_class_names_is_evaluated_by_position_and_says_so(model, tmp_path):
    result = evaluate(model, dim_and_bright(tmp_path / "data", classes=("a", "b")))
    assert (result.accuracy, result.classes) == (5 / 6, ("a", "b"))
    assert result.notes[-1] == (
        "classes: by position (the file has no class names): output 0 is 'a', 1 is 'b'"
    )


def test_an_older_run_takes_the_names_of_its_shard_set_while_that_is_the_same(tmp_path):
    own = dim_and_bright(tmp_path / "own")
    run = make_run(tmp_path / "run", own, None, metrics(1))
    brightness_model().save(run.model_path)
    assert "the run has no record of its classes; those of" in evaluate(run.path, own).notes[-1]
    write_older_record(run, load_manifest(own).digest())
    assert evaluate(run.path, own).notes[-1] == (
        "classes: by name (those of the shard set that the run was trained on)"
    )
    own.rename(tmp_path / "moved")
    assert "no longer exists" in evaluate(run.path, tmp_path / "moved").notes[-1]
    dim_and_bright(own, classes=("bright", "dim"))
    assert "is another set now" in evaluate(run.path, tmp_path / "moved").notes[-1]


def test_scores_record_how_the_model_was_interpreted(model, tmp_path, capsys):
    data = dim_and_bright(tmp_path / "data")
    out = tmp_path / "scores.json"
    arguments = ["evaluate", "--model", str(model), "--data", str(data), "--out", str(out)]
    assert main(arguments) == 0
    saved = json.loads(out.read_text())
    assert (saved["scale"], saved["offset"], saved["head"]) == (1.0, 0.0, "probabilities")
    printed = capsys.readouterr().out
    assert all(line in printed for line in (*saved["interpretation"], saved["matching"]))
    assert main([*arguments, "--scale", "0.5", "--offset", "-3", "--head", "probabilities"]) == 0
    saved = json.loads(out.read_text())
    assert (saved["scale"], saved["offset"]) == (0.5, -3.0)
    assert (
        "pixels: -3 to 124.5 (scale=0.5, offset=-3): as set by --scale and --offset"
        in capsys.readouterr().out
    )


def test_an_image_that_cannot_be_decoded_is_named(model, tmp_path):
    good = make_record(np.full((8, 8, 1), 200, np.uint8), 1, "good")
    shards = write_shards(
        tmp_path / "data", ("dim", "bright"), {"validation": [good, Record(b"junk", 1, "bad", (8, 8, 1))]}
    )
    with pytest.raises(DataError, match="id=bad"):
        evaluate(model, shards, "validation", out=tmp_path / "scores.json")
    assert not (tmp_path / "scores.json").exists()


def test_a_model_that_predicts_nan(tmp_path):
    model = brightness_model()
    model.get_layer("logits").set_weights([np.full((3, 1), np.nan), np.zeros(1)])
    model.save(tmp_path / "nan.keras")
    with pytest.raises(ConfigError, match="finite probabilities"):
        evaluate(tmp_path / "nan.keras", dim_and_bright(tmp_path / "data"), "validation")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"workers": 0}, ConfigError, "workers=0"),
        ({"out": "scores.txt"}, ConfigError, r"ends in \.json"),
        ({"out": "nowhere/scores.json"}, ConfigError, "its directory does not exist"),
        ({"split": "test"}, DataError, "split=test"),
    ],
)
def test_invalid_requests_are_refused(model, tmp_path, monkeypatch, changes, error, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        evaluate(model, dim_and_bright(tmp_path / "data"), **({"split": "validation"} | changes))


def test_options_are_checked_without_a_model():
    with pytest.raises(ConfigError, match="scale=-1"):
        PredictOptions(scale=-1.0)
    with pytest.raises(ConfigError, match="tta=flop"):
        PredictOptions(tta="flop")


def test_many_or_long_class_names_leave_the_table_readable():
    def render(classes: tuple[str, ...]) -> str | None:
        counts = np.zeros((len(classes), len(classes)), int)
        table = Evaluation(classes, 1, 1.0, 0.0, None, None, counts, Throughput()).confusion_table()
        return table and render_table(table)

    assert render(tuple(f"c{i}" for i in range(21))) is None
    assert "longer than…" in render(("longer than twelve", "b"))


def test_a_source_is_evaluated_like_the_shard_set_made_from_it(model, tmp_path):
    for row in range(6):
        for split in ("train", "test"):
            path = tmp_path / f"photos/{split}/{'bright' if row >= 2 else 'dim'}/{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(np.full((8, 8, 3), 20 * row + 60, np.uint8)))
    expected = evaluate(model, dim_and_bright(tmp_path / "data"), "validation")
    (tmp_path / "photos/test/dim/text.png").write_text("this is text")
    names = SourceOptions(class_names=("dim", "bright"))
    result = evaluate(model, f"folder:{tmp_path / 'photos'}", "test", source_options=names)
    assert (result.images, result.accuracy) == (expected.images, expected.accuracy) == (6, 5 / 6)
    assert result.confusion.tolist() == expected.confusion.tolist()
    assert result.notes[-1] == "images left out, because they cannot be used: 1"
    with pytest.raises(DataError, match="a split named one of train, test"):
        evaluate(model, f"folder:{tmp_path / 'photos'}", "validation")

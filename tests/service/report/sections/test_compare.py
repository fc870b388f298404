"""Across time: the weights of every checkpoint, one scale for all of them, and runs side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image
from report_samples import brightness_model, dim_and_bright, make_run, metrics

from pipelines.errors import ConfigError, TrainingError
from service.checkpoint import Position, save_checkpoint, snapshot, variables_of
from service.report.analysis.checkpoints import RunCheckpoint, list_run_checkpoints
from service.report.analysis.timeline import Look, look, shared_limits, shared_sheets
from service.report.job import render_report
from service.report.options import ReportOptions
from service.report.pages.comparison import curves_of, render_comparison
from service.report.sections.compare import MAP, Course, _drawings
from service.runs import Run

SMALL = ReportOptions(training_images=2, predictions=2)


def with_factor(factor: float) -> keras.Model:
    """The brightness model with the logits' weights times a factor: 0 sees nothing, -1 names the other class."""
    model = brightness_model()
    model.get_layer("logits").set_weights(
        [weights * factor for weights in model.get_layer("logits").get_weights()]
    )
    return model


def checkpoint(run: Run, epoch: int, model: keras.Model) -> Path:
    arrays = snapshot(variables_of(model, keras.optimizers.SGD()))
    return save_checkpoint(run.checkpoints, arrays, Position("", tuple(metrics(epoch))), keep=99)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of three epochs: of the other opinion, of none, and right."""
    run = make_run(
        tmp_path / "runs" / "one", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(3)
    )
    for epoch, factor in enumerate((-1.0, 0.0, 1.0), 1):
        checkpoint(run, epoch, with_factor(factor))
    return run


def test_a_moment_has_the_weights_of_its_checkpoint(run):
    model = brightness_model()
    for moment, factor in zip(list_run_checkpoints(run, 8), (-1.0, 0.0, 1.0), strict=True):
        moment.load(model)
        for found, expected in zip(model.get_weights(), with_factor(factor).get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("most", "epochs"), [(8, [1, 2, 3, 4, 5]), (3, [1, 3, 5]), (2, [1, 5])])
def test_moments_are_spread_from_the_first_to_the_last(tmp_path, most, epochs):
    run = make_run(tmp_path / "run", tmp_path, None, metrics(5))
    for epoch in range(1, 6):
        checkpoint(run, epoch, brightness_model())
    (run.checkpoints / "epoch-0006").mkdir()  # half-written
    shutil.copytree(
        run.checkpoints / "epoch-0005", run.checkpoints / "epoch-0005-step-0000007"
    )  # within an epoch
    assert [moment.epoch for moment in list_run_checkpoints(run, most)] == epochs


@pytest.mark.parametrize("damage", ["cut", "empty", "another model"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(run, tmp_path, damage):
    state = run.checkpoints / "epoch-0002" / "state.npz"
    if damage == "another model":
        other = keras.Sequential(
            [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
        )
        np.savez(state, **{f"{place:04d}": array for place, array in enumerate(other.get_weights())})
    else:
        state.write_bytes(state.read_bytes()[: 300 if damage == "cut" else 0])
    with pytest.raises(TrainingError, match="epoch-0002"):
        RunCheckpoint(2, state.parent).load(brightness_model())
    page = render_report(run, options=SMALL).read_text()  # the rest of the report does not need it
    assert "The checkpoint of epoch 2 of one is damaged and left out." in page
    figures = json.loads((run.report / "manifest.json").read_text())["figures"]["compare"]
    assert [moment["epoch"] for moment in figures["runs"]["one"]] == [1, 3]


def test_every_moment_says_what_its_weights_say(run):
    images = np.stack([np.full((8, 8, 1), value, np.uint8) for value in (60, 160)])
    looks = look(brightness_model(), 1.0, list_run_checkpoints(run, 8), images, np.array([0, 1]))
    assert [one.epoch for one in looks] == [1, 2, 3]
    logits = 20 * (np.array([60, 160]) - 112) / 255
    for one, factor in zip(looks, (-1.0, 0.0, 1.0), strict=True):
        np.testing.assert_allclose(one.probabilities[:, 1], 1 / (1 + np.exp(-factor * logits)), atol=1e-6)
        assert one.channels["convolution"].shape == (2, 6, 6, 3)
    assert looks[1].maps.max() == 0  # no weights, nothing to see
    assert looks[2].maps[1].min() > 0  # bright all over
    assert looks[0].maps[1].max() == 0  # brightness speaks against the class there


def test_all_moments_share_one_scale():
    """A channel twice as high at the second moment is brighter there; each for itself, both would look alike."""
    low = np.zeros((1, 2, 2, 1), np.float32)
    low[0, 0, 0] = 1.0
    first, second = (sheets[0] for sheets in shared_sheets([low, 2 * low]))
    mean, deviation = 3 / 8, np.std([0, 0, 0, 1, 0, 0, 0, 2])
    expected = [
        np.rint(np.clip((value - mean) / deviation * 64 + 128, 0, 255) / 255 * 253) for value in (0, 1, 2)
    ]
    assert [first[-2, 0], first[0, 0], second[0, 0]] == expected
    assert first[-2, 0] == second[-2, 0]


def test_what_is_drawn_is_of_its_moment_image_and_layer():
    maps = [np.full((2, 1, 1), 0.1 * (number + 1), np.float32) * [[[1.0]], [[2.0]]] for number in range(2)]
    course = Course(
        "r", tuple(Look(epoch, np.zeros((2, 2)), m) for epoch, m in zip((3, 7), maps, strict=True))
    )
    sheets = {
        layer: [[np.full((1, 1), 100 * at + 10 * n + p) for p in (0, 1)] for n in (0, 1)]
        for at, layer in enumerate(("one", "two"))
    }
    subject = SimpleNamespace(
        origin=lambda images, rows, **more: {"rows": rows} | more,
        evaluation=SimpleNamespace(split="validation"),
    )
    for number, epoch in enumerate((3, 7)):
        for probe, row in enumerate((5, 6)):
            found = _drawings(subject, course, number, probe, row, sheets, limit=0.5)
            assert [int(found[layer].pixels[0, 0]) for layer in ("one", "two")] == [
                10 * number + probe,
                100 + 10 * number + probe,
            ]
            assert int(found[MAP].pixels[0, 0]) == round(253 * 0.1 * (number + 1) * (probe + 1) / 0.5)
            assert all(
                drawing.origin["rows"] == [row] and drawing.origin["epoch"] == epoch
                for drawing in found.values()
            )
            assert all(f"epoch {epoch}, validation image {row}" in drawing.alt for drawing in found.values())


def test_the_limit_of_maps_is_the_highest_of_all_moments():
    maps = [np.array([[[1.0]], [[0.0]]], np.float32), np.array([[[0.5, 3.0]], [[0.0, 0.0]]], np.float32)]
    assert shared_limits(maps).tolist() == [3.0, 1.0]


def test_the_report_of_a_run_shows_its_checkpoints(run):
    html = render_report(run, options=SMALL).read_text()
    assert 'id="view-compare"' in html
    figures = json.loads((run.report / "manifest.json").read_text())["figures"]["compare"]
    assert [moment["epoch"] for moment in figures["runs"]["one"]] == [1, 2, 3]
    assert figures["runs"]["one"][1]["of_truth"] == [0.5, 0.5]
    shutil.rmtree(run.checkpoints / "epoch-0001")
    shutil.rmtree(run.checkpoints / "epoch-0002")
    assert "view-compare" not in render_report(run, options=SMALL).read_text()


def test_runs_side_by_side(run, tmp_path):
    other = make_run(tmp_path / "runs" / "two", Path(run.config()["shards"]), with_factor(0.5), metrics(5))
    for epoch in (2, 5):
        checkpoint(other, epoch, with_factor(0.5))
    page = render_comparison([run, other], tmp_path / "out")
    html = page.read_text()
    assert "one and two" in html
    assert '["epoch 1","epoch 2","epoch 3","epoch 5"]' in html
    # at epoch 1 the other run has nothing yet: its first moment stands there; at epoch 3 that of epoch 2 still does
    for when in (
        '{"image": "0", "moment": ["0", "1", "2"]}',
        '{"image": "0", "moment": ["3"]}',
        '{"image": "0", "moment": ["2", "3"]}',
    ):
        assert when.replace(" ", "") in html
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert set(manifest["runs"]) == {"one", "two"}
    patterns = [entry for entry in manifest["pictures"] if entry["file"].startswith("pictures/patterns-")]
    assert {(origin["run"], origin["epoch"]) for entry in patterns for origin in entry["made_from"]} == {
        *(("one", epoch) for epoch in (1, 2, 3)),
        *(("two", epoch) for epoch in (2, 5)),
    }
    assert len(patterns) == 1  # the convolution is the same in all of them, and so is the noise
    for picture in manifest["pictures"]:
        assert (page.parent / picture["file"]).is_file()
    assert render_comparison([run, other], tmp_path / "out") == page  # in place of the old one


def test_maps_of_all_moments_share_one_limit(tmp_path):
    """At half the weights the map is half as bright, not brought to its own brightest."""
    run = make_run(tmp_path / "run", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(2))
    for epoch, factor in ((1, 0.5), (2, 1.0)):
        checkpoint(run, epoch, with_factor(factor))
    render_report(run, options=SMALL)
    places = {}
    for entry in json.loads((run.report / "manifest.json").read_text())["pictures"]:
        origin = entry["made_from"][0]
        if entry["file"].startswith("pictures/map-") and origin["rows"] == [2]:  # a bright one
            with Image.open(run.report / entry["file"]) as image:
                places[origin["epoch"]] = np.asarray(image).max()
    assert places == {1: round(253 / 2), 2: 253}


def test_what_cannot_be_compared(run, tmp_path):
    elsewhere = make_run(
        tmp_path / "runs" / "else",
        dim_and_bright(tmp_path / "other", classes=("a", "b")),
        brightness_model(),
        metrics(2),
    )
    checkpoint(elsewhere, 1, brightness_model())
    with pytest.raises(ConfigError, match="one and else"):
        render_comparison([run, elsewhere], tmp_path / "out")
    with pytest.raises(ConfigError, match="different runs"):
        render_comparison([run, run], tmp_path / "out")
    shutil.rmtree(elsewhere.checkpoints)
    with pytest.raises(ConfigError, match=r"runs with undamaged checkpoints. Received: run=.*else"):
        render_comparison([elsewhere], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_curves_of_runs_of_different_length():
    accuracy, loss = curves_of([("a", metrics(2)), ("b", metrics(3))])
    assert (accuracy.title, loss.title) == ("Validation accuracy", "Validation loss")
    assert accuracy.data()["lines"][0]["values"][2] is None
    assert accuracy.data()["lines"][1]["values"][2] == metrics(3)[2]["val_accuracy"]
    training, _ = curves_of([("a", metrics(2, validation=False)), ("b", metrics(3))])
    assert training.title == "Training accuracy"

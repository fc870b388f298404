"""Checkpoints over training: the weights of each checkpoint, one scale for all, and runs side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from report_samples import (
    brightness_model,
    dim_and_bright,
    find_palette_indices,
    make_run,
    metrics,
    read_whole_page,
)

from pipelines.errors import ConfigError, TrainingError
from service.checkpoint import (
    Position,
    RunCheckpoint,
    list_run_checkpoints,
    save_checkpoint,
    snapshot,
    variables_of,
)
from service.milestones import save_milestone
from service.report.analysis.timeline import (
    CheckpointOutputs,
    compute_shared_limits,
    run_checkpoints,
    standardize_jointly,
)
from service.report.drawing.album import Album
from service.report.drawing.colours import SEQUENTIAL
from service.report.drawing.sheets import draw_comparison_sheets
from service.report.job import SECTIONS, render_report
from service.report.options import ReportOptions
from service.report.pages.comparison import plot_metrics, render_comparison
from service.report.pages.page import load_templates
from service.report.reported import find_shards
from service.report.sections.compare import MAP, ImageSelection, draw_checkpoint
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section
from service.report.subject import open_run, read_manifest
from service.runs import Run

SMALL = ReportOptions(
    training_images=2, predictions=2, activation_images=0, heatmap_images=0, patterns=0, trust_images=0
)


def with_factor(factor: float) -> keras.Model:
    """The brightness model with scaled logits: 0 predicts nothing, -1 the other class."""
    model = brightness_model()
    model.get_layer("logits").set_weights(
        [weights * factor for weights in model.get_layer("logits").get_weights()]
    )
    return model


def checkpoint(run: Run, epoch: int, model: keras.Model) -> Path:
    arrays = snapshot(variables_of(model, keras.optimizers.SGD()))
    return save_checkpoint(run.checkpoints, arrays, Position("", tuple(run.metrics()[:epoch])), keep=99)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of three epochs: wrong, undecided and correct."""
    run = make_run(
        tmp_path / "runs" / "one", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(3)
    )
    for epoch, factor in enumerate((-1.0, 0.0, 1.0), 1):
        checkpoint(run, epoch, with_factor(factor))
    return run


def build_compare(run: Run, folder: Path, album: Album | None = None) -> Section | None:
    """Builds the section of a run alone."""
    shards = find_shards(run)
    subject = open_run(run, shards, read_manifest(shards), SMALL)
    return SECTIONS["compare"](subject, album or Album(folder))


def test_a_checkpoint_loads_its_weights(run):
    model = brightness_model()
    for saved, factor in zip(list_run_checkpoints(run, 8), (-1.0, 0.0, 1.0), strict=True):
        saved.load(model)
        for found, expected in zip(model.get_weights(), with_factor(factor).get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("most", "epochs"), [(8, [1, 2, 3, 4, 5]), (3, [1, 3, 5]), (2, [1, 5])])
def test_checkpoints_are_spread_from_the_first_to_the_last(tmp_path, most, epochs):
    run = make_run(tmp_path / "run", tmp_path, None, metrics(5))
    for epoch in range(1, 6):
        checkpoint(run, epoch, brightness_model())
    (run.checkpoints / "epoch-0006").mkdir()  # half-written
    # A checkpoint within an epoch
    shutil.copytree(run.checkpoints / "epoch-0005", run.checkpoints / "epoch-0005-step-0000007")
    assert [saved.epoch for saved in list_run_checkpoints(run, most)] == epochs


@pytest.mark.parametrize("damage", ["cut", "empty", "another model", "a directory", "no record"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(run, tmp_path, damage, caplog):
    state = run.checkpoints / "epoch-0002" / "state.npz"
    if damage == "another model":
        other = keras.Sequential(
            [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
        )
        np.savez(state, **{f"{place:04d}": array for place, array in enumerate(other.get_weights())})
    elif damage == "a directory":
        state.unlink()
        state.mkdir()
    elif damage == "no record":
        (state.parent / "checkpoint.json").write_text("null")
    else:
        state.write_bytes(state.read_bytes()[: 300 if damage == "cut" else 0])
    with pytest.raises(TrainingError, match="epoch-0002"):
        RunCheckpoint(2, state.parent).load(brightness_model())
    section = build_compare(run, tmp_path)  # which does not need it
    assert section is not None
    assert "left out of the report: Expected an undamaged checkpoint" in caplog.text
    html = load_templates().get_template("compare.html").render(values=section.values)
    assert "The checkpoint of epoch 2 of one is damaged and was skipped." in html
    assert [shown["epoch"] for shown in section.figures["runs"]["one"]] == [1, 3]


def test_every_checkpoint_predicts_with_its_weights(run):
    images = np.stack([np.full((8, 8, 1), value, np.uint8) for value in (60, 160)])
    outputs = run_checkpoints(brightness_model(), 1.0, list_run_checkpoints(run, 8), images, np.array([0, 1]))
    assert [one.epoch for one in outputs] == [1, 2, 3]
    logits = 20 * (np.array([60, 160]) - 112) / 255
    for one, factor in zip(outputs, (-1.0, 0.0, 1.0), strict=True):
        np.testing.assert_allclose(one.probabilities[:, 1], 1 / (1 + np.exp(-factor * logits)), atol=1e-6)
        assert one.channels["convolution"].shape == (2, 6, 6, 3)
    assert outputs[1].maps.max() == 0  # no weights, no heatmap
    assert outputs[2].maps[1].min() > 0  # brightness supports the class
    assert outputs[0].maps[1].max() == 0  # brightness contradicts the class there


def test_all_checkpoints_share_one_scale():
    """A channel twice as high at the second checkpoint is brighter there."""
    low = np.zeros((1, 2, 2, 1), np.float32)
    low[0, 0, 0] = 1.0
    first, second = (draw_comparison_sheets(*pair)[0] for pair in standardize_jointly([low, 2 * low]))
    mean = 3 / 8
    deviation = np.std([0, 0, 0, 1, 0, 0, 0, 2])
    expected = [
        np.rint(np.clip((value - mean) / deviation * 64 + 128, 0, 255) / 255 * 253) for value in (0, 1, 2)
    ]
    assert [first[-2, 0], first[0, 0], second[0, 0]] == expected
    assert first[-2, 0] == second[-2, 0]


class Validation:
    """A split of which only the name is used."""

    split = "validation"


@pytest.mark.parametrize(("n", "row"), [(0, 5), (1, 6)])
def test_drawings_are_of_their_checkpoint_image_and_layer(n, row):
    provenance = Provenance("model-digest", "shards-digest", 1.0, "validation")
    selection = ImageSelection(Validation(), (5, 6), ("a", "b"), provenance)  # type: ignore[arg-type]
    maps = np.array([[[0.1]], [[0.2]]], np.float32)
    sheets = {"one": np.full((1, 1), 10), "two": np.full((1, 1), 20)}
    drawings = draw_checkpoint(selection, n, "r", CheckpointOutputs(7, np.zeros((2, 2)), maps), sheets, 0.5)
    assert list(drawings) == ["one", "two", MAP]
    assert [int(drawings[layer].pixels[0, 0]) for layer in ("one", "two")] == [10, 20]
    assert int(drawings[MAP].pixels[0, 0]) == round(253 * 0.1 * (n + 1) / 0.5)
    for drawing in drawings.values():
        assert (drawing.origin["rows"], drawing.origin["epoch"]) == ([row], 7)
        assert f"epoch 7, validation image {row}" in drawing.alt


def test_the_limit_of_heatmaps_is_the_highest_of_all_checkpoints():
    maps = [np.array([[[1.0]], [[0.0]]], np.float32), np.array([[[0.5, 3.0]], [[0.0, 0.0]]], np.float32)]
    assert compute_shared_limits(maps).tolist() == [3.0, 1.0]


def test_the_report_of_a_run_shows_its_checkpoints(run, tmp_path):
    html = read_whole_page(render_report(run, options=SMALL))
    assert 'id="view-compare"' in html
    figures = json.loads((run.report / "manifest.json").read_text())["figures"]["compare"]
    assert [(shown["epoch"], shown["roles"]) for shown in figures["runs"]["one"]] == [
        (1, "first"),
        (2, "best"),  # of three epochs, it is also the one in the middle
        (3, "last"),
    ]
    assert figures["runs"]["one"][1]["of_truth"] == [0.5, 0.5]
    shutil.rmtree(run.checkpoints / "epoch-0001")
    shutil.rmtree(run.checkpoints / "epoch-0002")
    assert build_compare(run, tmp_path) is None


def test_runs_are_shown_next_to_each_other(run, tmp_path):
    other = make_run(tmp_path / "runs" / "two", Path(run.config()["shards"]), with_factor(0.5), metrics(5))
    for epoch in (2, 5):
        checkpoint(other, epoch, with_factor(0.5))
    page = render_comparison([run, other], tmp_path / "out")
    html = page.read_text()
    assert "one and two" in html
    epochs = [int(text.split(" ")[0]) for text in html.split("<h4>Epoch ")[1:]]
    assert epochs == [1, 2, 3, 2, 5]
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
    assert render_comparison([run, other], tmp_path / "out") == page  # replaces the old one


def test_heatmaps_of_all_checkpoints_share_one_limit(tmp_path):
    """At half the weights the heatmap is half as bright, not scaled to its own maximum."""
    run = make_run(tmp_path / "run", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(2))
    for epoch, factor in ((1, 0.5), (2, 1.0)):
        checkpoint(run, epoch, with_factor(factor))
    album = Album(tmp_path)
    build_compare(run, tmp_path, album)
    highest = {}
    for entry in album.entries.values():
        origin = entry["made_from"][0]
        if entry["file"].startswith("pictures/map-") and origin["rows"] == [2]:  # a bright one
            indices = find_palette_indices(tmp_path / entry["file"], SEQUENTIAL)
            highest[origin["epoch"]] = int(indices.max())
    assert highest == pytest.approx({1: 253 / 2, 2: 253}, abs=6)  # WebP has losses


def test_runs_that_do_not_fit_together_are_refused(run, tmp_path):
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


def test_metrics_of_runs_of_different_length():
    accuracy, loss = plot_metrics([("a", metrics(2)), ("b", metrics(3))])
    assert (accuracy.title, loss.title) == ("Validation accuracy", "Validation loss")
    assert accuracy.data()["lines"][0]["values"][2] is None
    assert accuracy.data()["lines"][1]["values"][2] == metrics(3)[2]["val_accuracy"]
    training, _ = plot_metrics([("a", metrics(2, validation=False)), ("b", metrics(3))])
    assert training.title == "Training accuracy"


def test_milestones_are_shown_with_what_they_are(tmp_path):
    """Of seven epochs, the checkpoints of the best and the last two are left, and the milestones before."""
    run = make_run(tmp_path / "run", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(7))
    for epoch in (1, 2, 4):
        weights = snapshot(variables_of(with_factor(epoch / 4), keras.optimizers.SGD()))["model"]
        save_milestone(run.milestones, epoch, weights)
    for epoch in (5, 6, 7):
        checkpoint(run, epoch, with_factor(epoch / 4))
    section = build_compare(run, tmp_path)
    shown = section.values["runs"][0]["checkpoints"]
    assert [(one.epoch, one.roles) for one in shown] == [
        (1, "first"),
        (4, "middle"),
        (5, "best"),
        (7, "last"),
    ]
    expected = [metrics(7)[one.epoch - 1] for one in shown]
    assert [one.validation_accuracy for one in shown] == [epoch["val_accuracy"] for epoch in expected]
    assert [one.training_accuracy for one in shown] == [epoch["accuracy"] for epoch in expected]
    logits = 20 * (60 - 112) / 255
    of_truth = [one["of_truth"][0] for one in section.figures["runs"]["run"]]
    np.testing.assert_allclose(
        of_truth, [1 / (1 + np.exp(one.epoch / 4 * logits)) for one in shown], rtol=1e-5
    )
    html = load_templates().get_template("compare.html").render(values=section.values)
    assert '<h3>Epoch 5 <span class="count">best</span></h3>' in html
    assert "with their moving average" not in html


def test_a_damaged_milestone_is_skipped(tmp_path):
    run = make_run(tmp_path / "run", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(3))
    run.milestones.mkdir()
    (run.milestones / "epoch-0001.npz").write_bytes(b"half")
    for epoch in (2, 3):
        checkpoint(run, epoch, brightness_model())
    section = build_compare(run, tmp_path)
    assert section.values["damaged"] == [("run", 1)]
    assert [one.epoch for one in section.values["runs"][0]["checkpoints"]] == [2, 3]

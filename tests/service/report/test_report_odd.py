"""Reports of unusual models and data: a thousand classes, one pixel, one image, a class without images."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from report_samples import make_run, metrics, read_whole_page
from shard_samples import make_record, write_shards

from pipelines.errors import ConfigError
from service.report.job import render_report
from service.runs import Run

layers = keras.layers
HOSTILE = "<script>alert('x')</script> & \"é\" \N{SNOWMAN}"


def odd_run(
    folder: Path,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
    splits: dict[str, int],
    model: keras.Model,
) -> Run:
    """Creates a run on images of noise."""
    random = np.random.default_rng(0)
    rows = {
        split: [
            make_record(random.integers(0, 256, shape).astype(np.uint8), n % len(classes), f"{split}/{n}.png")
            for n in range(count)
        ]
        for split, count in splits.items()
    }
    run = make_run(
        folder / "run",
        write_shards(folder / "shards", classes, rows),
        model,
        metrics(2, "validation" in splits),
    )
    return run


def classifier(shape: tuple[int, int, int], classes: int, *middle: keras.layers.Layer) -> keras.Model:
    """Builds a small network that ends in a softmax."""
    return keras.Sequential(
        [layers.Input(shape), layers.Rescaling(1 / 255), *middle, layers.Dense(classes, activation="softmax")]
    )


def figures(run: Run) -> dict:
    return json.loads((run.report / "manifest.json").read_text())["figures"]


def test_a_thousand_classes(tmp_path: Path) -> None:
    names = tuple(f"class {n} of a thousand" for n in range(1000))
    model = classifier(
        (16, 16, 3), 1000, layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D()
    )
    run = odd_run(tmp_path, (16, 16, 3), names, {"train": 1200, "validation": 1000}, model)
    page = render_report(run)
    assert figures(run)["summary"]["majority_class_share"] == 0.001
    assert len(figures(run)["training_images"]["shown_rows"]) == 24
    assert page.stat().st_size < 700_000  # not a million cells


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_one_pixel(tmp_path: Path, channels: int, kind: str) -> None:
    middle = (
        [layers.Flatten()]
        if kind == "dense"
        else [layers.Conv2D(2, 1, activation="relu"), layers.GlobalAveragePooling2D()]
    )
    run = odd_run(
        tmp_path,
        (1, 1, channels),
        ("a", HOSTILE),
        {"train": 4, "validation": 4},
        classifier((1, 1, channels), 2, *middle),
    )
    html = read_whole_page(render_report(run))
    assert figures(run)["summary"]["images"] == 4
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_a_wide_image_of_one_row(tmp_path: Path) -> None:
    model = classifier((1, 40, 1), 2, layers.Conv2D(3, (1, 5), activation="relu"), layers.Flatten())
    render_report(odd_run(tmp_path, (1, 40, 1), ("a", "b"), {"train": 4, "validation": 4}, model))


def test_one_image_in_all(tmp_path: Path) -> None:
    model = classifier((8, 8, 1), 3, layers.Conv2D(3, 3, activation="relu"), layers.Flatten())
    run = odd_run(tmp_path, (8, 8, 1), ("a", "b", "c"), {"train": 1}, model)
    html = read_whole_page(render_report(run))
    assert figures(run)["summary"]["images"] == 1
    assert figures(run)["training_images"]["per_class"] == {"a": 1, "b": 0, "c": 0}
    assert "There is no validation split" in html


def test_a_model_that_predicts_nan_is_refused(tmp_path: Path) -> None:
    """A run that diverged saves such a model."""
    model = classifier((8, 8, 1), 2, layers.Conv2D(2, 3, activation="relu"), layers.Flatten())
    model.layers[-1].set_weights(
        [np.full_like(weights, np.nan) for weights in model.layers[-1].get_weights()]
    )
    run = odd_run(tmp_path, (8, 8, 1), ("a", "b"), {"train": 4, "validation": 4}, model)
    with pytest.raises(ConfigError, match="probability=nan"):
        render_report(run)
    assert not run.report.exists()

"""The section of linear probes: which images it fits and tests on, and its summary."""

from __future__ import annotations

import keras
import numpy as np

from service.report.analysis.linear_probes import LinearProbe
from service.report.analysis.network import Network
from service.report.sections.linear_probes import build_section, summarize_probes

L = keras.layers


class NoiseImages:
    """A split of noise that records which rows are read."""

    def __init__(self, split: str, count: int) -> None:
        self.split = split
        self.labels = np.arange(count, dtype=np.int32) % 2
        self.images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 1)).astype(np.uint8)
        self.rows: list[list[int]] = []

    def read(self, rows):
        self.rows.append(rows)
        return self.images[rows]


def small_network() -> Network:
    layers = [
        L.Conv2D(1, 1, name="same"),
        L.AveragePooling2D((8, 16), name="halves"),
        L.Flatten(),
        L.Dense(2),
    ]
    return Network(keras.Sequential([L.Input((16, 16, 1)), *layers]))


def test_probes_are_fitted_on_training_images_and_tested_on_the_evaluated_split():
    training = NoiseImages("train", 60)
    evaluation = NoiseImages("validation", 40)
    section = build_section(small_network(), training, evaluation, seed=0)
    assert section is not None
    assert (section.figures["fit_images"], section.figures["test_images"]) == (60, 40)
    assert [len(rows) for rows in (*training.rows, *evaluation.rows)] == [60, 40]
    names = [layer["layer"] for layer in section.figures["layers"]]
    assert names == list(section.values["plot"].ticks)


def test_a_single_split_is_divided_into_disjoint_images():
    images = NoiseImages("train", 99)
    section = build_section(small_network(), images, images, seed=0)
    assert section is not None
    assert (section.figures["fit_images"], section.figures["test_images"]) == (66, 33)
    assert not set(images.rows[0]) & set(images.rows[1])


def test_there_is_no_section_with_too_few_images():
    images = NoiseImages("train", 50)
    assert build_section(small_network(), images, images, seed=0) is None


def test_the_summary_compares_the_last_layer_with_the_pixels():
    pixels = LinearProbe("pixels", 0.0, 0.5, 1.0)
    assert "image is discarded" in summarize_probes([pixels, LinearProbe("l", 0.0, 0.9, 0.2)])
    assert "image stays intact" in summarize_probes([pixels, LinearProbe("l", 0.0, 0.9, 1.0)])
    assert "as well from the pixels" in summarize_probes([pixels, LinearProbe("l", 0.0, 0.5, 0.2)])

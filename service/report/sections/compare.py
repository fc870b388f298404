"""Across time: the same images at several checkpoints of one run, or of several runs side by side, under one slider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.errors import ConfigError
from service.inference.classifier import load_model
from service.report.analysis.checkpoints import list_run_checkpoints
from service.report.analysis.timeline import Look, look, shared_limits, shared_sheets
from service.report.drawing.album import Album, Drawing, Picture, tiled
from service.report.drawing.colours import SEQUENTIAL, shaded
from service.report.drawing.plots import Line, Plot
from service.report.sections import training_images
from service.report.subject import Section, Subject
from service.runs import Run

PROBES, MOMENTS = 2, 8  # images, and moments of each run
FILTERS = 8  # patterns of each moment, in comparisons that were asked for
ROLES = "abcdef"
MAP = "Grad-CAM"


@dataclass(frozen=True)
class Shown:
    """One image at one moment of one run, as the page shows it."""

    when: dict[str, Any]
    epoch: int
    predicted: str
    probability: float
    right: bool
    map: Picture | None
    sheets: tuple[tuple[str, Picture], ...]


@dataclass(frozen=True)
class Course:
    """One run over its moments; `damaged` are epochs whose checkpoints are."""

    name: str
    looks: tuple[Look, ...]
    damaged: tuple[int, ...] = ()


def build_section(subject: Subject, album: Album, run: Run) -> Section | None:
    """The checkpoints of a run under one slider; None where it kept fewer than two that are whole."""
    if len(list_run_checkpoints(run, MOMENTS)) < 2:
        return None
    rows = probe_rows(subject)
    course = course_of(run, replace(subject, model=load_model(run.model_path)), rows)
    return section(subject, album, rows, [course]) if len(course.looks) > 1 else None


def probe_rows(subject: Subject) -> list[int]:
    """Rows of the images every moment is shown: of different classes, and the same for every run on a shard set."""
    return [int(row) for row in training_images.choose(subject.evaluation.labels, PROBES)]


def course_of(run: Run, subject: Subject, rows: Sequence[int], filters: int = 0) -> Course:
    """What a run made of the images at its moments. The weights of the subject's model are changed."""
    moments = list_run_checkpoints(run, MOMENTS)
    looks = look(
        subject.model,
        subject.scale,
        moments,
        subject.evaluation.read(rows),
        subject.evaluation.labels[list(rows)],
        filters,
    )
    seen = {one.epoch for one in looks}
    return Course(
        subject.name, tuple(looks), tuple(moment.epoch for moment in moments if moment.epoch not in seen)
    )


def side_by_side(subjects: Sequence[tuple[Run, Subject]], album: Album) -> Section:
    """Several runs at their moments, or one.

    Args:
        subjects: The runs, each with what its own report would be about.
        album: Where pictures go.

    Raises:
        ConfigError: They are of different shard sets, or one has kept no whole checkpoint.
    """
    _, first = subjects[0]
    rows = probe_rows(first)
    courses = []
    for run, subject in subjects:
        if subject.shards_digest != first.shards_digest:
            fix = "compare runs of one shard set, or name one for all with --data"
            raise ConfigError(
                "runs on the same shard set", f"runs={first.name} and {subject.name} (on different ones)", fix
            )
        courses.append(course_of(run, subject, rows, FILTERS))
        if not courses[-1].looks:
            raise ConfigError(
                "runs with undamaged checkpoints", f"run={run.path} (none)", "train it again, or leave it out"
            )
    return section(first, album, rows, courses)


def section(subject: Subject, album: Album, rows: Sequence[int], courses: Sequence[Course]) -> Section:
    """Draws what all moments made of the probes."""
    images, labels = subject.evaluation, subject.evaluation.labels[list(rows)]
    axis = sorted({one.epoch for course in courses for one in course.looks})
    limits = shared_limits([one.maps for course in courses for one in course.looks])
    names = [subject.classes[label] for label in labels]
    photos = [
        album.add_photo(
            pixels,
            "probe",
            f"{images.split.capitalize()} image {row}, {name}",
            **subject.origin(images, [row]),
        )
        for row, name, pixels in zip(rows, names, images.read(rows), strict=True)
    ]
    shown = [
        {"name": course.name, "seen": _shown(subject, album, rows, course, axis, limits)}
        for course in courses
    ]
    values = {
        "axis": [f"epoch {epoch}" for epoch in axis],
        "probes": list(zip(photos, names, strict=True)),
        "courses": shown,
        "plots": [
            _plot(name, place, label, courses, axis)
            for place, (name, label) in enumerate(zip(names, labels, strict=True))
        ],
        "damaged": [(course.name, epoch) for course in courses for epoch in course.damaged],
    }
    figures = {
        "rows": list(rows),
        "limits": limits.tolist(),
        "runs": {course.name: _figures(course, labels) for course in courses},
    }
    return Section("compare", "Across time" if len(courses) == 1 else "Side by side", values, figures)


def _shown(
    subject: Subject,
    album: Album,
    rows: Sequence[int],
    course: Course,
    axis: Sequence[int],
    limits: np.ndarray,
) -> list[Shown]:
    """Every probe at every moment of a run; a moment stands for the places on the axis up to the run's next one."""
    sheets = {
        layer: shared_sheets([one.channels[layer] for one in course.looks])
        for layer in course.looks[0].channels
    }
    found = []
    for number, one in enumerate(course.looks):
        until = course.looks[number + 1].epoch if number + 1 < len(course.looks) else axis[-1] + 1
        places = [
            str(place)
            for place, epoch in enumerate(axis)
            if (one.epoch <= epoch or number == 0) and epoch < until
        ]
        for probe, row in enumerate(rows):
            drawings = _drawings(subject, course, number, probe, row, sheets, float(limits[probe]))
            pictures = dict(zip(drawings, album.add_all(drawings.values()), strict=True))
            predicted = int(one.probabilities[probe].argmax())
            found.append(
                Shown(
                    {"moment": places, "image": str(probe)},
                    one.epoch,
                    subject.classes[predicted],
                    float(one.probabilities[probe, predicted]),
                    predicted == int(subject.evaluation.labels[row]),
                    pictures.pop(MAP, None),
                    tuple(pictures.items()),
                )
            )
    return found


def _drawings(
    subject: Subject,
    course: Course,
    number: int,
    probe: int,
    row: int,
    sheets: dict[str, list[list[np.ndarray]]],
    limit: float,
) -> dict[str, Drawing]:
    """What is drawn of a probe at one moment, by what stands above it; the map under `MAP`."""
    one = course.looks[number]
    origin = subject.origin(subject.evaluation, [row], run=course.name, epoch=one.epoch)
    words = f"{course.name}, epoch {one.epoch}"
    of_image = f"{words}, {subject.evaluation.split} image {row}"
    found = {}
    for layer, drawn in sheets.items():
        alt = f"{layer}: first channels; {of_image}"
        found[layer] = Drawing(
            drawn[number][probe], "channels", alt, origin | {"layer": layer}, "png", SEQUENTIAL
        )
    if one.patterns:
        layer, tiles = one.patterns
        title = f"what {len(tiles)} filters of {layer} look for"
        pixels = tiled(tiles.repeat(3, axis=3) if tiles.shape[3] == 1 else tiles, FILTERS)
        found[title] = Drawing(
            pixels, "patterns", f"{title.capitalize()}; {words}", origin | {"layer": layer}
        )
    if one.maps.size:
        heat = one.maps[probe]
        alt = f"Grad-CAM for the true class, highest {heat.max():.3g} of {limit:.3g}; {of_image}"
        found[MAP] = Drawing(shaded(heat / limit), "map", alt, origin | {"limit": limit}, "png", SEQUENTIAL)
    return found


def _plot(name: str, place: int, label: int, courses: Sequence[Course], axis: Sequence[int]) -> Plot:
    """How sure every run was of the truth of one image."""
    lines = []
    for course, role in zip(courses, ROLES * len(courses), strict=False):
        of_truth = {one.epoch: float(one.probabilities[place, label]) for one in course.looks}
        lines.append(Line(course.name, [of_truth.get(epoch, np.nan) for epoch in axis], role))
    return Plot(f"Image {place + 1}: probability of {name}", "epoch", list(axis), tuple(lines), percent=True)


def _figures(course: Course, labels: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"epoch": one.epoch, "of_truth": one.probabilities[np.arange(len(labels)), labels].tolist()}
        for one in course.looks
    ]

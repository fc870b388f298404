"""Sample photos: what the model says to pictures from anywhere, a folder that is no part of the data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ConfigError
from pipelines.input import tfdata
from pipelines.shards.images import UnreadableImageError, prepare
from pipelines.spec import DataSpec, ShardSpec
from service.inference.classifier import Classifier, PredictOptions
from service.report.drawing.album import Album, Drawing, photo
from service.report.subject import Section, Subject

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}
MOST, TOP, BATCH = 100, 3, 32  # pictures; classes named of each; images asked about at a time
AS_FOUND = ShardSpec()


def files_of(folder: Path) -> list[Path]:
    """The pictures of a folder, numbers in names by their size, `MOST` of them at most.

    Raises:
        ConfigError: There is no such folder, or no picture in it.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    if not found:
        raise ConfigError(
            "a folder of pictures",
            f"samples={folder} ({'none in it' if folder.is_dir() else 'no such folder'})",
            "name another",
        )
    return sorted(found, key=_by_numbers)[:MOST]


def _by_numbers(path: Path) -> list[Any]:
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())
    ]


def read(files: Sequence[Path], data: DataSpec) -> tuple[list[Path], np.ndarray, list[str]]:
    """Reads pictures as a shard set would hold them, at the size a model takes.

    Returns:
        Those that could be read, uint8 `[N, H, W, C]`, and the names of the others.
    """
    good, pixels, bad = [], [np.zeros((0, *data.image_size, data.channels), np.uint8)], []
    for file in files:
        try:
            ready = prepare(file.read_bytes(), AS_FOUND)
            pixels.append(
                tfdata.decode_all([ready.image], np.array([ready.shape], np.int32), data, AS_FOUND.encoding)
            )
            good.append(file)
        except (UnreadableImageError, OSError):
            bad.append(file.name)
    return good, np.concatenate(pixels), bad


def truth_of(name: str, classes: Sequence[str]) -> int | None:
    """The class a file name begins with, such as `cats` for `cat.1500.jpg`; None where it names none, or several."""
    words = [word.lower() for word in re.split(r"[^A-Za-z]+", Path(name).stem) if word]
    said = {k for word in words for k, label in enumerate(classes) if label.lower() in (word, word + "s")}
    return said.pop() if len(said) == 1 else None


def build_section(subject: Subject, album: Album) -> Section | None:
    """A grid of the samples with what the model says; None where none were asked for.

    Raises:
        ConfigError: The folder holds no pictures.
    """
    if subject.options.samples is None:
        return None
    classifier = Classifier(subject.model, PredictOptions(subject.scale))
    files, pixels, unreadable = read(files_of(subject.options.samples), classifier.data)
    parts = [_padded(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    none = np.zeros((0, classifier.classes), np.float32)
    probabilities = np.concatenate([none, *(classifier(images, real) for images, real in parts)])
    answers = [_answer(subject, file, p) for file, p in zip(files, probabilities, strict=True)]
    drawings = [_drawing(subject, image, answer) for image, answer in zip(pixels, answers, strict=True)]
    shown = [
        answer | {"picture": picture}
        for answer, picture in zip(answers, album.add_all(drawings), strict=True)
    ]
    known = [answer for answer in answers if answer["truth"] is not None]
    right = sum(answer["truth"] == answer["top"][0]["name"] for answer in known)
    values = {"answers": shown, "known": len(known), "right": right, "unreadable": unreadable}
    return Section(
        "samples",
        "Sample photos",
        values,
        {"samples": answers, "known": len(known), "right": right, "unreadable": unreadable},
    )


def _padded(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A batch filled up to a fixed size, and which of its images are real."""
    missing = BATCH - len(images)
    return np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))), np.arange(BATCH) < len(images)


def _answer(subject: Subject, file: Path, probabilities: np.ndarray) -> dict[str, Any]:
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    truth = truth_of(file.name, subject.classes)
    top = [{"name": subject.classes[k], "probability": float(probabilities[k])} for k in best]
    return {"file": file.name, "top": top, "truth": None if truth is None else subject.classes[truth]}


def _drawing(subject: Subject, pixels: np.ndarray, answer: dict[str, Any]) -> Drawing:
    said = answer["top"][0]
    words = f"{answer['file']}: {said['name']} with {said['probability']:.1%}" + (
        f", is {answer['truth']}" if answer["truth"] else ""
    )
    return photo(
        pixels,
        "sample",
        words,
        {"sample": answer["file"], "checkpoint": subject.model_digest, "scale": subject.scale},
    )

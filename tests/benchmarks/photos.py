"""Provides the photos of a benchmark: JPEGs from a folder of classes, or generated ones."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from harness import CORES
from PIL import Image

from pipelines.sources import open_source

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "cats_and_dogs_filtered"
SIZE = 320  # of generated photos, in pixels
GENERATED = 2000  # photos where there are no real ones
IMAGES_PER_TASK = 50
LARGE_SIZE = (500, 375)  # width and height of most photos of ImageNet, which have 110 kB on average
QUALITY = 95
GRAIN = 10.5  # standard deviation of the noise that brings a JPEG of this size and quality to 110 kB


def stage(data: Path | None, images: int | None, folder: Path) -> tuple[int, str]:
    """Creates a folder with a subfolder of JPEGs per class: links to real photos, or generated ones.

    Args:
        data: Folder of classes, or of `train/` with classes; None for the default photos, or generated
            ones where those are absent.
        images: Number of photos to use, evenly from all classes; None for all, or 2,000 generated ones.
        folder: Directory to create.

    Returns:
        The number of photos and a description of their origin.
    """
    source = data or (REAL if REAL.is_dir() else None)
    if source is None:
        _generate(folder, images or GENERATED)
        note = f"generated photos of {SIZE} x {SIZE}, because {REAL} does not exist"
    else:
        train = source / "train"
        _link(train if train.is_dir() else source, folder, images)
        note = f"photos of {source.resolve().name}"
    count = sum(1 for _ in folder.glob("*/*"))
    if not count:
        raise SystemExit(
            f"Expected folders of JPEG photos, one per class. Received: data={data}. Fix: use such a folder."
        )
    return count, note


def enlarge(folder: Path, out: Path) -> None:
    """Writes photos of the size of ImageNet's, 500 x 375 pixels and about 110 kB, in the same folders.

    Args:
        folder: Folder with a subfolder of JPEGs per class.
        out: Directory to create.
    """
    paths = sorted(folder.glob("*/*"))
    for path in paths:
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_enlarge_one, paths, [out] * len(paths), range(len(paths)), chunksize=IMAGES_PER_TASK))


def _enlarge_one(path: Path, out: Path, seed: int) -> None:
    with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB").resize(LARGE_SIZE), np.float32)
    grain = np.random.default_rng(seed).normal(0.0, GRAIN, pixels.shape[:2])
    grainy = np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8)
    Image.fromarray(grainy).save(out / path.parent.name / path.name, "JPEG", quality=QUALITY)


def _link(source: Path, folder: Path, images: int | None) -> None:
    classes = sorted(path for path in source.iterdir() if path.is_dir()) if source.is_dir() else []
    for index, class_folder in enumerate(classes):
        files = sorted(path for path in class_folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        count = len(files)
        if images is not None:
            count = min((images + index) // len(classes), len(files))
        target = folder / class_folder.name
        target.mkdir(parents=True)
        for number in range(count):
            path = files[number * len(files) // count]
            (target / path.name).symlink_to(path.resolve())


def _generate(folder: Path, images: int) -> None:
    for name in open_source("synthetic:evidence").classes:
        (folder / name).mkdir(parents=True)
    starts = range(0, images, IMAGES_PER_TASK)
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_generate_part, [folder] * len(starts), [images] * len(starts), starts))


def _generate_part(folder: Path, images: int, start: int) -> None:
    source = open_source(f"synthetic:evidence,train={images},validation=0,size={SIZE}")
    for number, example in enumerate(source.read("train", start, start + IMAGES_PER_TASK), start):
        (folder / source.classes[example.label] / f"{number:06d}.jpg").write_bytes(example.image)

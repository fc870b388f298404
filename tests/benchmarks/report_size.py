"""Measures what a report takes for each image that it examines closely: by the difference of two reports.

`python tests/benchmarks/report_size.py MODEL.keras SHARDS`: renders the views of single images for N and for
2N of them; everything that is there once, whatever their number, cancels out.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from service.devices import configure_devices
from service.report.job import SECTIONS, render
from service.report.options import PageOptions, ReportOptions
from service.report.subject import Subject, open_model, read_manifest

GOAL = 0.6  # MB per image, for small networks
IMAGE_SECTIONS = ("heatmaps", "attention", "saliency", "activations")
MANIFEST = "manifest.json"


def main() -> None:
    """Prints a table of the sizes of both reports, and of their difference per image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a .keras file")
    parser.add_argument("data", type=Path, help="shard set of its classes")
    parser.add_argument("--images", type=int, default=4, help="N, the smaller number of images (default: 4)")
    options = parser.parse_args()
    configure_devices()
    shards = options.data.resolve()
    subject = open_model(options.model, shards, read_manifest(shards), ReportOptions())
    few = measure(subject, options.images)
    many = measure(subject, 2 * options.images)
    print(f"| kB | {options.images} images | {2 * options.images} images | per image |\n|---|---:|---:|---:|")
    for name in sorted(many):
        per_image = (many[name] - few[name]) / options.images
        print(f"| {name} | {few[name] / 1000:.0f} | {many[name] / 1000:.0f} | {per_image / 1000:.1f} |")
    total = (sum(many.values()) - sum(few.values())) / options.images / 1e6
    verdict = "yes" if total <= GOAL else "no"
    print(f"{options.model.stem}: {total:.2f} MB per image, goal <= {GOAL} MB: {verdict}")


def measure(subject: Subject, count: int) -> dict[str, int]:
    """Renders the views of single images.

    Args:
        subject: Model and data.
        count: Number of images with heatmaps, saliency maps and activations.

    Returns:
        Bytes by kind: pictures, manifest, page and views.
    """
    limits = ReportOptions(heatmap_images=count, activation_images=count, layer_times=False)
    sections = {name: SECTIONS[name] for name in IMAGE_SECTIONS}
    with tempfile.TemporaryDirectory(prefix="glassbox-benchmark-") as folder:
        out = Path(folder) / "report"
        render(replace(subject, options=limits), out, PageOptions(), sections=sections)
        sizes: dict[str, int] = {}
        for path in out.rglob("*"):
            if path.is_file():
                kind = name_kind(path)
                sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    return sizes


def name_kind(path: Path) -> str:
    """Returns what a file of a report belongs to."""
    if path.parent.name == "pictures":
        return "pictures"
    return "manifest" if path.name == MANIFEST else "page and views"


if __name__ == "__main__":
    main()

"""How fast the report's pictures are made, beside the tutorials' way and other libraries: CPU seconds of one process.

`python tests/benchmarks/report.py --help`; a table for each kind of picture; VGG16 with random weights takes most of an hour on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import runner
from arena import Contestant
from table import Field, Goal

LIMIT = "convolutions alone"
OURS, FAST, TUTORIAL = "ours", "ours, bfloat16", "the tutorials' way"
TF_KERAS_VIS, XPLIQUE = "tf-keras-vis", "xplique"
LOSSLESS, JPEG, LOOPS = "ours, PNG", "ours, JPEG", "NumPy loops + matplotlib"
MAPS, GRIDS, FILTERS = 32, 8, 80  # images a round; filters a round

Enter = Callable[
    [Path, Path, str, int], Field
]  # from photos, scratch directory, Python of the peers, and how many pictures


def of_maps(model: str, times: dict[str, float]) -> Enter:
    """The field of Grad-CAM: a batch of one size, the last convolution, the most probable class."""

    def enter(photos: Path, scratch: Path, python: str, count: int) -> Field:
        settings = {"model": model, "folder": str(photos)}
        ways = {
            OURS: "maps",
            FAST: "maps",
            TUTORIAL: "tutorial_maps",
            TF_KERAS_VIS: "tf_keras_vis_maps",
            XPLIQUE: "xplique_maps",
        }
        field = [
            _entry(name, way, settings | ({"fast": True} if name == FAST else {}), python)
            for name, way in ways.items()
        ]
        goals = [
            Goal(name, OURS, name, times[name], f"ours >= {times[name]:g} x this")
            for name in times
            if name != FAST
        ]
        if FAST in times:
            goals.append(Goal(FAST, FAST, TUTORIAL, times[FAST], f">= {times[FAST]:g} x {TUTORIAL}"))
        return Field(field, goals)

    return enter


def of_patterns(photos: Path, scratch: Path, python: str, count: int) -> Field:
    """The field of filter patterns: filters of five layers of VGG16 at 150 x 150, 20 steps each."""
    settings = {"filters": count}
    field = [
        _entry(LIMIT, "convolved", settings, python),
        _entry(OURS, "climbed", settings, python),
        _entry(FAST, "climbed", settings | {"fast": True}, python),
        _entry(TUTORIAL, "tutorial_climbed", settings, python),
    ]
    goals = (
        Goal(OURS, OURS, TUTORIAL, 4, f">= 4 x {TUTORIAL}"),
        Goal(FAST, FAST, TUTORIAL, 7, f">= 7 x {TUTORIAL}"),
    )
    return Field(field, goals, [LIMIT], images=count, note="noise")


def of_grids(photos: Path, scratch: Path, python: str, count: int) -> Field:
    """The field of activation grids: all channels of eight layers, drawn and encoded."""
    settings = {"folder": str(photos), "out": str(scratch)}
    field = [
        _entry(LOSSLESS, "grids", settings | {"kind": "png"}, python),
        _entry(JPEG, "grids", settings | {"kind": "jpeg"}, python),
        _entry(LOOPS, "tutorial_grids", settings, python),
    ]
    goals = (
        Goal(LOSSLESS, LOSSLESS, LOOPS, 35, f">= 35 x {LOOPS}"),
        Goal(JPEG, JPEG, LOOPS, 60, f">= 60 x {LOOPS}"),
    )
    return Field(field, goals)


def of_reports(photos: Path, scratch: Path, python: str, count: int) -> Field:
    """The field of whole reports: heatmaps and all activations of every image, graphs traced anew each round."""
    settings = {"folder": str(photos), "out": str(scratch)}
    whole = "NumPy loops + matplotlib + the tutorials' heatmaps"
    field = [_entry(OURS, "reports", settings, python), _entry(whole, "tutorial_reports", settings, python)]
    return Field(field, [Goal(OURS, OURS, whole, 15, ">= 15 x matplotlib")])


def _entry(name: str, way: str, settings: dict[str, Any], python: str) -> Contestant:
    return Contestant(name, f"report_contestants:{way}", settings, "one process", python, cores=1)


TABLES: dict[str, tuple[str, Enter, int]] = {
    "maps-small": (
        f"Grad-CAM of {MAPS} photos at 150 x 150, four convolutions",
        of_maps("small", {TUTORIAL: 10, TF_KERAS_VIS: 5, XPLIQUE: 0.95}),
        MAPS,
    ),
    "maps-vgg16": (
        f"Grad-CAM of {MAPS} photos at 224 x 224, VGG16",
        of_maps("vgg16", {TUTORIAL: 4, TF_KERAS_VIS: 3.3, XPLIQUE: 0.95, FAST: 7}),
        MAPS,
    ),
    "grids": (f"Activations of {GRIDS} photos at 150 x 150, eight layers, encoded", of_grids, GRIDS),
    "reports": ("32 photos: heatmaps and all activations, encoded", of_reports, MAPS),
    "patterns": ("Filter patterns of VGG16 at 150 x 150", of_patterns, FILTERS),
}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the benchmark, one table after the other."""
    parser = runner.parser(__doc__ or "")
    parser.add_argument(
        "--table", action="append", choices=list(TABLES), help="only this table; may be repeated"
    )
    has = "a Python that has the project, matplotlib, tf-keras-vis and xplique"
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH", help=has)
    options = parser.parse_args(arguments)
    found, images = [], options.images
    for name in options.table or TABLES:
        title, enter, most = TABLES[name]
        options.images = min(images or most, 5 if options.quick else most)
        if options.json:
            options.json = options.json.with_stem(f"{options.json.stem.partition('-')[0]}-{name}")
        print()
        take_part = partial(enter, python=options.peers_python, count=options.images)
        found.append(runner.run(f"{title} (CPU seconds)", options, take_part))
    return found


if __name__ == "__main__":
    main()

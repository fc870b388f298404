"""Measures the CPU time of the report's pictures, against tutorial code and other libraries.

`python tests/benchmarks/report.py --help`; one table per kind of picture. VGG16 with random weights takes
most of an hour on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import runner
from harness import Candidate
from results import Benchmark, Goal

LIMIT = "convolutions alone"
OURS = "ours"
FAST = "ours, bfloat16"
TUTORIAL = "tutorial code"
TF_KERAS_VIS = "tf-keras-vis"
XPLIQUE = "xplique"
LOSSLESS = "ours, PNG"
JPEG = "ours, JPEG"
LOOPS = "NumPy loops + matplotlib"
NOISE = "gradient ascent from noise"
FOURIER = "in the Fourier basis"
FORWARD = "forward pass alone"
CROPS = "top crops"
ABLATION = "top crops and ablation"
WHOLE_REPORT = "NumPy loops + matplotlib + tutorial heatmaps"
MAP_IMAGES = 32  # per round
GRID_IMAGES = 8
FILTERS = 80
SMALL_FILTERS = 32
CROP_IMAGES = 128

# Builds a benchmark from photos, scratch directory, Python of the peers, and number of images or filters.
BuildBenchmark = Callable[[Path, Path, str, int], Benchmark]


def compare_heatmaps(model: str, ratios: dict[str, float]) -> BuildBenchmark:
    """Compares Grad-CAM of the last convolution for the most probable class.

    Args:
        model: Name of a network of `report_candidates`.
        ratios: Speed to reach as a multiple of a candidate; for `FAST` as a multiple of `TUTORIAL`.
    """

    def build(photos: Path, scratch: Path, python: str, count: int) -> Benchmark:
        settings = {"model": model, "folder": str(photos)}
        candidates = [
            _build_candidate(OURS, "heatmaps", settings, python),
            _build_candidate(FAST, "heatmaps", settings | {"fast": True}, python),
            _build_candidate(TUTORIAL, "tutorial_heatmaps", settings, python),
            _build_candidate(TF_KERAS_VIS, "tf_keras_vis_heatmaps", settings, python),
            _build_candidate(XPLIQUE, "xplique_heatmaps", settings, python),
        ]
        goals = []
        for name, ratio in ratios.items():
            if name == FAST:
                goals.append(Goal(FAST, FAST, TUTORIAL, ratio, f">= {ratio:g} x {TUTORIAL}"))
            else:
                goals.append(Goal(name, OURS, name, ratio, f"ours >= {ratio:g} x this"))
        return Benchmark(candidates, goals)

    return build


def compare_patterns(photos: Path, scratch: Path, python: str, count: int) -> Benchmark:
    """Compares filter patterns of five layers of VGG16 at 150 x 150, with 20 steps each."""
    settings = {"filters": count}
    candidates = [
        _build_candidate(LIMIT, "convolutions", settings, python),
        _build_candidate(OURS, "patterns", settings, python),
        _build_candidate(FAST, "patterns", settings | {"fast": True}, python),
        _build_candidate(TUTORIAL, "tutorial_patterns", settings, python),
    ]
    goals = (
        Goal(OURS, OURS, TUTORIAL, 4, f">= 4 x {TUTORIAL}"),
        Goal(FAST, FAST, TUTORIAL, 7, f">= 7 x {TUTORIAL}"),
    )
    return Benchmark(candidates, goals, [LIMIT], images=count, note="noise")


def compare_filters(photos: Path, scratch: Path, python: str, count: int) -> Benchmark:
    """Compares the patterns of the first filters of four convolutions by both methods of the report."""
    settings = {"filters": count}
    candidates = [
        _build_candidate(NOISE, "small_patterns", settings, python),
        _build_candidate(FOURIER, "small_fourier_patterns", settings, python),
    ]
    goals = [Goal(FOURIER, FOURIER, NOISE, 0.5, f"at most twice as long as {NOISE}")]
    return Benchmark(candidates, goals, images=count, note="noise")


def compare_crops(photos: Path, scratch: Path, python: str, count: int) -> Benchmark:
    """Compares the search for the strongest crops with the forward pass that it cannot do without."""
    settings = {"folder": str(photos)}
    candidates = [
        _build_candidate(FORWARD, "last_feature_maps", settings, python),
        _build_candidate(CROPS, "top_crops", settings, python),
        _build_candidate(ABLATION, "top_crops", settings | {"with_ablation": True}, python),
    ]
    goals = [Goal(CROPS, CROPS, FORWARD, 0.5, f"at most twice as long as the {FORWARD}")]
    return Benchmark(candidates, goals, [FORWARD])


def compare_grids(photos: Path, scratch: Path, python: str, count: int) -> Benchmark:
    """Compares activation grids: all channels of eight layers, drawn and encoded."""
    settings = {"folder": str(photos), "out": str(scratch)}
    candidates = [
        _build_candidate(LOSSLESS, "grids", settings | {"kind": "png"}, python),
        _build_candidate(JPEG, "grids", settings | {"kind": "jpeg"}, python),
        _build_candidate(LOOPS, "tutorial_grids", settings, python),
    ]
    goals = (
        Goal(LOSSLESS, LOSSLESS, LOOPS, 35, f">= 35 x {LOOPS}"),
        Goal(JPEG, JPEG, LOOPS, 60, f">= 60 x {LOOPS}"),
    )
    return Benchmark(candidates, goals)


def compare_reports(photos: Path, scratch: Path, python: str, count: int) -> Benchmark:
    """Compares whole reports: heatmaps and all activations of every image, with graphs traced every round."""
    settings = {"folder": str(photos), "out": str(scratch)}
    candidates = [
        _build_candidate(OURS, "reports", settings, python),
        _build_candidate(WHOLE_REPORT, "tutorial_reports", settings, python),
    ]
    return Benchmark(candidates, [Goal(OURS, OURS, WHOLE_REPORT, 15, ">= 15 x matplotlib")])


def _build_candidate(name: str, function: str, settings: dict[str, Any], python: str) -> Candidate:
    return Candidate(
        name, f"report_candidates:{function}", settings, process="shared", python=python, cores=1
    )


SMALL_RATIOS = {TUTORIAL: 10, TF_KERAS_VIS: 5, XPLIQUE: 0.95}
VGG16_RATIOS = {TUTORIAL: 4, TF_KERAS_VIS: 3.3, XPLIQUE: 0.95, FAST: 7}
# Title, builder, and images or filters per round.
TABLES: dict[str, tuple[str, BuildBenchmark, int]] = {
    "maps-small": (
        f"Grad-CAM of {MAP_IMAGES} photos at 150 x 150, four convolutions",
        compare_heatmaps("small", SMALL_RATIOS),
        MAP_IMAGES,
    ),
    "maps-vgg16": (
        f"Grad-CAM of {MAP_IMAGES} photos at 224 x 224, VGG16",
        compare_heatmaps("vgg16", VGG16_RATIOS),
        MAP_IMAGES,
    ),
    "grids": (
        f"Activations of {GRID_IMAGES} photos at 150 x 150, eight layers, encoded",
        compare_grids,
        GRID_IMAGES,
    ),
    "reports": ("32 photos: heatmaps and all activations, encoded", compare_reports, MAP_IMAGES),
    "filters": ("Filter patterns of the small network", compare_filters, SMALL_FILTERS),
    "crops": (
        f"Strongest crops of {CROP_IMAGES} photos at 150 x 150, four convolutions",
        compare_crops,
        CROP_IMAGES,
    ),
    "patterns": ("Filter patterns of VGG16 at 150 x 150", compare_patterns, FILTERS),
}
QUICK_COUNT = 5


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the benchmark, one table after the other, and returns the figures of all."""
    parser = runner.build_parser(__doc__ or "")
    parser.add_argument(
        "--table", action="append", choices=list(TABLES), help="only this table; may be repeated"
    )
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        metavar="PATH",
        help="a Python with this project, matplotlib, tf-keras-vis and xplique (default: this one)",
    )
    options = parser.parse_args(arguments)
    limit = options.images
    runs = []
    for name in options.table or TABLES:
        title, build, count = TABLES[name]
        options.images = min(limit or count, QUICK_COUNT if options.quick else count)
        if options.json:
            options.json = options.json.with_stem(f"{options.json.stem.partition('-')[0]}-{name}")
        print()
        build_table = partial(build, python=options.peers_python, count=options.images)
        runs.append(runner.run(f"{title} (CPU seconds)", options, build_table))
    return runs


if __name__ == "__main__":
    main()

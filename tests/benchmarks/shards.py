"""Measures how fast a folder of photos becomes a shard set, against raw limits and other builders.

`python tests/benchmarks/shards.py --help`; takes some minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import large
import runner
from harness import CORES, Candidate
from results import LIMIT, Benchmark, Goal

TITLE = "Shards: a folder of JPEG photos to a shard set, without Ray's start"
LIMITS = ("raw: decode, threads", "raw: decode, processes")
ENCODE = "raw: decode + encode"
SCALE = "raw: decode + scale to 256 + encode"
COPY = "raw: cp -r + sync"
AS_FOUND = "ours: as found, all decoded"
HEADER = "ours: as found, --check header"
ENCODED = "ours: jpeg:90"
SCALED = "ours: jpeg:90 --store-size 256"
IMG2DATASET_SCALED = "img2dataset, jpeg 90 at 256"
IMG2DATASET = "img2dataset"
# Peers by title: function, and whether it takes the number of processes
PEERS = {
    IMG2DATASET: ("img2dataset", True),
    "webdataset ShardWriter": ("webdataset", True),
    "mosaicml-streaming MDSWriter": ("mosaicml_streaming", True),
    "tensorflow-datasets": ("tensorflow_datasets", False),
}
# Checks that are added to the loops of peers that have none. Our builder adds up pixels as well.
DECODED = "all decoded"
SUMMED = "all decoded, pixels summed"
NOT_DECODED = "headers checked"
CHECKS = {DECODED: "decode", SUMMED: "sums", NOT_DECODED: "header"}

GOALS = (
    Goal(AS_FOUND, AS_FOUND, LIMIT, 0.75, ">= 0.75 of the limit"),
    Goal(HEADER, HEADER, COPY, 0.5, ">= 0.5 of cp -r + sync"),
    Goal(ENCODED, ENCODED, ENCODE, 0.85, ">= 0.85 of decode + encode"),
    Goal(SCALED, SCALED, SCALE, 0.85, ">= 0.85 of decode + scale + encode"),
    *(
        Goal(f"{peer}, {DECODED}", AS_FOUND, f"{peer}, {DECODED}", 1.0, "ours, as found >= 1 x this")
        for peer in PEERS
    ),
    *(
        Goal(f"{peer}, {SUMMED}", AS_FOUND, f"{peer}, {SUMMED}", 1.0, "ours, as found >= 1 x this")
        for peer in PEERS
        if peer != IMG2DATASET
    ),
    *(
        Goal(f"{peer}, {NOT_DECODED}", HEADER, f"{peer}, {NOT_DECODED}", 1.0, "ours, header >= 1 x this")
        for peer in PEERS
    ),
    Goal(IMG2DATASET_SCALED, SCALED, IMG2DATASET_SCALED, 1.0, "ours, at 256 >= 1 x this"),
)


def list_candidates(photos: Path, scratch: Path, peers_python: str | None) -> list[Candidate]:
    """Returns all candidates in the order of the table."""
    raw = {"folder": str(photos), "cores": CORES}
    build = {"folder": str(photos), "scratch": str(scratch)}
    python = peers_python or sys.executable
    peers = []
    for title, check in CHECKS.items():
        for peer, (function, takes_cores) in PEERS.items():
            if title == SUMMED and peer == IMG2DATASET:  # which decodes by itself
                continue
            settings = build | {"check": check} | ({"cores": CORES} if takes_cores else {})
            peer_python = python if takes_cores else sys.executable
            name = f"{peer}, {title}"
            peers.append(Candidate(name, f"shards_peers:{function}", settings, python=peer_python))
    scaled = {"quality": 90, "size": 256}
    ours = "shards_ours:ours"
    return [
        Candidate(LIMITS[0], "shards_ours:raw", raw | {"threads": True}),
        Candidate(LIMITS[1], "shards_ours:raw", raw | {"threads": False}),
        Candidate(ENCODE, "shards_ours:raw", raw | {"threads": False, "quality": 90}),
        Candidate(SCALE, "shards_ours:raw", raw | {"threads": False, **scaled}),
        Candidate(COPY, "shards_ours:copy", build),
        Candidate(AS_FOUND, ours, build, process="ours"),
        Candidate(HEADER, ours, build | {"check": "header"}, process="ours"),
        Candidate(ENCODED, ours, build | {"encoding": "jpeg:90"}, process="ours"),
        Candidate(SCALED, ours, build | {"encoding": "jpeg:90", "store_size": 256}, process="ours"),
        Candidate("ours: command line, with Ray's start", "shards_ours:command_line", build),
        *peers,
        Candidate(
            IMG2DATASET_SCALED, "shards_peers:img2dataset", build | {"cores": CORES} | scaled, python=python
        ),
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    parser = runner.build_parser(__doc__ or "")
    parser.add_argument(
        "--peers-python",
        metavar="PATH",
        help="a Python with img2dataset, webdataset, mosaicml-streaming and simplejpeg (default: this one)",
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help="measure memory and speed with 20,000 and 200,000 small images instead; takes many minutes",
    )
    options = parser.parse_args(arguments)
    if options.large:
        return large.run(options)

    def build(photos: Path, scratch: Path) -> Benchmark:
        return Benchmark(list_candidates(photos, scratch, options.peers_python), GOALS, LIMITS)

    return runner.run(TITLE, options, build)


if __name__ == "__main__":
    main()

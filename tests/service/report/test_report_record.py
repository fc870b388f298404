"""The record of a published report is external data: other files and other types are refused."""

from __future__ import annotations

from typing import Any

import pytest

from service.report.publish import KIND, summarize_manifest
from service.report.record import is_report_record

PICTURE = "pictures/map-0123456789ab.png"


def build_record(**changes: Any) -> dict[str, Any]:
    record = {
        "kind": KIND,
        "version": 1,
        "made_of": {"model": "abc", "data": "shards"},
        "about": {"source": "folder:x", "preset": "demo", "finished": "2026-01-01", "seconds": 3.5},
        "checks": [{"name": "Deletion", "passed": None, "words": "..."}],
        "thumbnails": [{"file": PICTURE, "width": 96, "height": 96, "alt": ""}],
        "single_file": False,
        "figures": {
            "summary": {"accuracy": 1, "best_accuracy": None, "epochs": 2, "split": "train"},
            "curves": {"epochs": [{"epoch": 1, "accuracy": 0.5, "val_loss": None}]},
            "confusion": [[1, 0], [0, 1]],
        },
        "views": [{"file": "views/data-0123456789ab.js", "sha256": "0"}],
        "pictures": [{"file": PICTURE, "sha256": "0", "made_from": []}],
    }
    return record | changes


def test_a_manifest_and_its_summary_are_records() -> None:
    assert is_report_record(build_record())
    assert is_report_record(summarize_manifest(build_record()))


@pytest.mark.parametrize("place", ["views", "pictures", "thumbnails"])
@pytest.mark.parametrize(
    "file",
    [
        "",
        "map.png",
        "../model.keras",
        "/etc/passwd",
        "pictures/",
        "pictures/.",
        "pictures/..",
        "pictures/../index.html",
        "pictures/a/b.png",
        "pictures\\map.png",
        "pictures/..\\map.png",
        "pictures/a\\b.png",
        "pictures/a\0.png",
        "views//a.js",
        "other/a.png",
        "https://example.org/a.png",
        5,
        None,
    ],
)
def test_other_names_than_those_of_files_of_the_page_are_refused(place: str, file: Any) -> None:
    entry = {"file": file, "width": 1, "height": 1}
    assert not is_report_record(build_record(**{place: [entry]}))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "glassbox comparison"},
        {"made_of": None},
        {"made_of": []},
        {"single_file": "no"},
        {"about": {"finished": 5}},
        {"about": {"seconds": "long"}},
        {"checks": {}},
        {"checks": [{"name": "Deletion", "passed": "yes"}]},
        {"thumbnails": [{"file": PICTURE}]},
        {"thumbnails": [PICTURE]},
        {"figures": []},
        {"figures": {}},
        {"figures": {"summary": {"best_accuracy": "high"}}},
        {"figures": {"summary": {"best_accuracy": float("inf")}}},
        {"figures": {"summary": {}, "curves": {"epochs": [{"accuracy": "high"}]}}},
        {"figures": {"summary": {}, "curves": {"epochs": [{"accuracy": 10**400}]}}},
        {"views": None},
    ],
)
def test_values_of_other_types_are_refused(changes: dict[str, Any]) -> None:
    assert not is_report_record(build_record(**changes))

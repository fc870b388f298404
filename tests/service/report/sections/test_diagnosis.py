"""The diagnosis section: the findings of `service.diagnosis.findings`, and the image with the wrong label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from report_samples import brightness_model, make_run, metrics
from shard_samples import make_record, write_shards

from service.diagnosis.findings import History, diagnose
from service.report.job import render_report
from service.report.options import ReportOptions


def test_the_page_shows_findings_and_label_issues(tmp_path: Path) -> None:
    labels = (1, 0, 0, 1, 1, 1)  # the first is wrong: the model predicts bright above 112
    rows = [
        make_record(np.full((8, 8, 1), 20 * row + 60, np.uint8), label, f"tiny/{row}.png")
        for row, label in enumerate(labels)
    ]
    shards = write_shards(tmp_path / "shards", ("dim", "bright"), {"train": rows, "validation": rows})
    run = make_run(tmp_path / "run", shards, brightness_model(), metrics(30))
    small = ReportOptions(
        training_images=2, predictions=2, activation_images=0, heatmap_images=0, patterns=0, trust_images=0
    )
    page = render_report(run, options=small)
    figures = json.loads((page.parent / "manifest.json").read_text())["figures"]["diagnosis"]
    expected = diagnose(History(metrics(30), images=6, majority_share=4 / 6))
    assert (
        [finding["kind"] for finding in figures["findings"]]
        == [finding.kind for finding in expected]
        == ["chance"]
    )
    assert figures["labels"]["label_issues"] == 1
    (issue,) = figures["labels"]["issues"]
    assert (issue["row"], issue["label"], issue["predicted"]) == (0, "bright", "dim")
    html = page.read_text()
    for finding in expected:
        assert finding.message in html
    assert html.index('id="diagnosis"') < html.index('id="curves"')
    assert "Training image 0, bright: tiny/0.png" in html

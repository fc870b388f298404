"""The diagnosis on the page says what `service.diagnosis.findings` says, and shows the image with the wrong label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from report_samples import brightness_model, make_run, metrics
from shard_samples import record, write_shards

from service.diagnosis.findings import History, diagnose
from service.report.job import render_report
from service.report.options import ReportOptions


def test_findings_and_suspects_stand_on_the_page(tmp_path: Path) -> None:
    labels = (1, 0, 0, 1, 1, 1)  # the first is wrong: the model says bright above 112
    rows = [
        record(np.full((8, 8, 1), 20 * row + 60, np.uint8), label, f"tiny/{row}.png")
        for row, label in enumerate(labels)
    ]
    shards = write_shards(tmp_path / "shards", ("dim", "bright"), {"train": rows, "validation": rows})
    run = make_run(tmp_path / "run", shards, brightness_model(), metrics(30))
    small = ReportOptions(
        training_images=2, predictions=2, activation_images=0, heatmap_images=0, patterns=0, trust_images=0
    )
    page = render_report(run, options=small)
    figures = json.loads((page.parent / "manifest.json").read_text())["figures"]["diagnosis"]
    expected = diagnose(History(metrics(30), images=6, commonest=4 / 6))
    assert (
        [finding["kind"] for finding in figures["findings"]]
        == [finding.kind for finding in expected]
        == ["chance"]
    )
    assert figures["labels"]["doubtful"] == 1
    (suspect,) = figures["labels"]["suspects"]
    assert (suspect["row"], suspect["label"], suspect["predicted"]) == (0, "bright", "dim")
    html = page.read_text()
    assert all(finding.words in html for finding in expected)
    assert html.index('id="diagnosis"') < html.index('id="curves"')
    assert "Training image 0, bright: tiny/0.png" in html

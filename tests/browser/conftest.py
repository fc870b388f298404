"""One browser for all tests of a session, and the report that they open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
from chrome import CHROMIUM, Chrome, open_chrome
from report_samples import brightness_model, dim_and_bright, make_run, metrics

from pipelines.shards.manifest import load_manifest
from service.checkpoint import Position, save_checkpoint, snapshot, variables_of
from service.report.job import render_report
from service.report.options import ReportOptions

OPTIONS = ReportOptions(training_images=6, predictions=6)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless Chromium, or a skip."""
    if not Path(CHROMIUM).exists():
        pytest.skip("needs Chromium")
    with open_chrome(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with a wrong prediction, a rejected image and a class name that is markup."""
    folder = tmp_path_factory.mktemp("browser")
    shards = dim_and_bright(folder / "shards", classes=("dim", "<script>bright</script>"))
    load_manifest(shards).model_copy(update={"rejected": 1}).save(shards)
    (shards / "rejected.jsonl").write_text('{"id": "a/<b>cut.jpg", "reason": "it ends in the middle"}\n')
    run = make_run(
        folder / "runs" / "dim_or_bright",
        shards,
        brightness_model(),
        metrics(30),
        augment={"rotation": 20, "flip": True},
    )
    for epoch in (1, 15, 30):
        arrays = snapshot(variables_of(brightness_model(), keras.optimizers.SGD()))
        save_checkpoint(run.checkpoints, arrays, Position("", tuple(metrics(epoch))), keep=9)
    return render_report(run, options=OPTIONS)

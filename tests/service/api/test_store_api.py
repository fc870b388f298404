"""The functions of `import glassbox` take URIs, and refuse those that nothing can read."""

from __future__ import annotations

from pathlib import Path

import glassbox
import numpy as np
import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics
from stores import Bucket

UNKNOWN = "ftp://host/name"
CALLS = {
    "build_shards, source": lambda: glassbox.build_shards(f"folder:{UNKNOWN}", "out"),
    "build_shards, out": lambda: glassbox.build_shards("folder:photos", UNKNOWN),
    "open_shards": lambda: glassbox.open_shards(UNKNOWN),
    "Dataset": lambda: glassbox.Dataset(UNKNOWN),
    "load_run": lambda: glassbox.load_run(UNKNOWN),
    "load_config, preset": lambda: glassbox.load_config(UNKNOWN, "data"),
    "load_config, data": lambda: glassbox.load_config("demo", UNKNOWN),
    "load_config, model": lambda: glassbox.load_config("demo", "data", model=f"{UNKNOWN}.keras"),
    "load_config, weights": lambda: glassbox.load_config("demo", "data", weights=UNKNOWN),
    "train": lambda: glassbox.train("demo", "data", UNKNOWN),
    "resume": lambda: glassbox.resume(UNKNOWN),
    "load_model": lambda: glassbox.load_model(UNKNOWN),
    "evaluate, model": lambda: glassbox.evaluate(UNKNOWN, "data"),
    "evaluate, data": lambda: glassbox.evaluate("model", f"folder:{UNKNOWN}"),
    "predict, model": lambda: glassbox.predict(UNKNOWN, "data"),
    "report": lambda: glassbox.report(UNKNOWN),
    "report, out": lambda: glassbox.report("model.keras", "data", UNKNOWN),
    "preview, shards": lambda: glassbox.preview(UNKNOWN, {"flip": True}),
    "preview, out": lambda: glassbox.preview("data", {"flip": True}, UNKNOWN),
    "heatmaps": lambda: glassbox.heatmaps(UNKNOWN, np.zeros((1, 8, 8, 3), np.uint8)),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_scheme_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(glassbox.GlassboxError) as caught:
        CALLS[name]()
    if name not in ("evaluate, data", "report, out"):  # of which the model is missing first
        assert caught.value.received == "scheme=ftp"
    assert list(tmp_path.iterdir()) == []


def test_shards_and_runs_on_a_store_are_used_like_local_ones(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    local_shards = dim_and_bright(tmp_path / "data")
    make_run(tmp_path / "run", local_shards, brightness_model(), metrics(3))
    bucket.upload_folder(tmp_path / "data", "data")
    bucket.upload_folder(tmp_path / "run", "runs/first")

    shards = glassbox.open_shards(f"{bucket.url}/data")
    assert str(shards.path) == f"{bucket.url}/data"
    assert shards.manifest == glassbox.open_shards(local_shards).manifest
    for batch, expected in zip(shards.dataset(seed=1), glassbox.Dataset(local_shards, seed=1), strict=True):
        np.testing.assert_array_equal(batch["row"], expected["row"])
        np.testing.assert_array_equal(batch["image"], expected["image"])

    run = glassbox.load_run(f"{bucket.url}/runs/first")
    assert (run.state, len(run.metrics())) == ("finished", 3)
    evaluation = glassbox.evaluate(run, shards)
    assert evaluation.accuracy == glassbox.evaluate(tmp_path / "run", local_shards).accuracy
    assert glassbox.load_config("demo", shards).shards == f"{bucket.url}/data"
    page = run.report(data=shards, training_images=2, patterns=0, trust_images=0, heatmap_images=0)
    assert str(page) == f"{bucket.url}/runs/first/report/index.html"
    assert b"<html" in bucket.get("runs/first/report/index.html")
    preview = glassbox.preview(shards, {"flip": True}, f"{bucket.url}/preview", rows=1, versions=1)
    assert str(preview) == f"{bucket.url}/preview/index.html"
    assert "preview/manifest.json" in bucket.list_keys("preview")
    assert not list(tmp_path.glob("s3:*"))

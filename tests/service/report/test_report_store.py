"""Reports of runs in a store, published in a store: what is read, what is written, and who may render."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.request import urlopen

import keras
import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics
from stores import Bucket, FaultProxy, S3Server

from pipelines.errors import ConfigError
from pipelines.remote import store
from pipelines.remote.uri import Uri
from service.checkpoint import Position, save_checkpoint, snapshot, variables_of
from service.cli import main
from service.milestones import save_milestone
from service.report.batch import NOT_FINISHED, UP_TO_DATE, examine_all
from service.report.job import render_reported_run
from service.report.lease import LeaseHeldError
from service.report.options import PageOptions, ReportOptions
from service.report.pages.index import write_index
from service.report.publish import publish
from service.report.reported import ReportedRun, find_home_link, find_reported_runs
from service.runs import Run

SMALL = ReportOptions(
    training_images=2, predictions=2, activation_images=0, heatmap_images=0, patterns=0, trust_images=0
)
pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache folder."""
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(bucket: Bucket, tmp_path: Path) -> ReportedRun:
    """A finished run in a bucket, whose report belongs in another one."""
    shards = dim_and_bright(tmp_path / "shards")
    bucket.upload_folder(shards, "shards")
    local = make_run(tmp_path / "runs/good", shards, brightness_model(), metrics(3))
    for epoch in (1, 2, 3):
        local.write_layers(epoch, {"dense": {"weights": float(epoch), "gradients": 0.25}})
    text = local.config_path.read_text()
    local.config_path.write_text(text.replace(str(shards), f"{bucket}/shards"))
    bucket.upload_folder(tmp_path / "runs", "runs")
    reports = bucket.server.create_bucket(f"{bucket.name}-reports")
    (reported,) = find_reported_runs(Uri("s3", bucket.name, "runs"), Uri("s3", reports.name))
    return reported


def find_state(run: ReportedRun) -> str:
    return examine_all({run.name: run}, SMALL, PageOptions())[0][1].state


def test_a_report_is_published_in_another_bucket_and_redone_only_after_a_change(
    run: ReportedRun, bucket: Bucket, proxy: FaultProxy, s3_server: S3Server
) -> None:
    assert isinstance(run.report, Uri)
    assert str(run.report) == f"{bucket}-reports/good/report"
    assert find_state(run) == ""
    proxy.requests.clear()
    page = render_reported_run(run, options=SMALL, page_options=PageOptions(home=find_home_link(run.name)))
    assert page == run.report / "index.html"
    for name in ("config.yaml", "metrics.jsonl", "layers.jsonl", "status.json", "model.keras"):
        assert proxy.count_requests("GET", f"*/good/{name}") == 1
    html = store.read_bytes(page).decode()
    assert "../../index.html" in html
    assert 'id="dynamics"' in html  # of the norms in `layers.jsonl`
    names = {info.uri.relative_to(run.report): info.size for info in store.list_objects(run.report)}
    manifest = json.loads(store.read_bytes(run.report / "manifest.json"))
    pictures = [picture["file"] for picture in manifest["pictures"]]
    assert pictures
    views = [view["file"] for view in manifest["views"]]
    assert views
    assert set(names) == {"index.html", "manifest.json", "summary.json", *views, *pictures}
    shown = html + "".join(store.read_bytes(run.report / name).decode() for name in views)
    assert all(name in shown for name in pictures)
    assert store.stat(run.report.parent / ".report.lock") is None
    address = f"http://127.0.0.1:{s3_server.filer_port}/buckets/{page.bucket}/{page.key}"
    with urlopen(address) as response:
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"

    # An unchanged run costs a few small requests, whatever the sizes of its model, checkpoints and report.
    proxy.requests.clear()
    assert find_state(run) == UP_TO_DATE
    assert proxy.count_requests() == 4  # and another one where there are checkpoints
    assert proxy.count_bytes() < 8_000
    assert proxy.count_requests(key="*model.keras") == 0

    # The same pictures are not uploaded again.
    bucket.put("runs/good/metrics.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in metrics(4)))
    assert find_state(run) == ""
    proxy.requests.clear()
    render_reported_run(run, options=SMALL)
    uploaded = [request.key for request in proxy.requests if request.method == "PUT"]
    assert sum("/pictures/" in key for key in uploaded) < len(pictures) / 2
    assert sum("/views/" in key for key in uploaded) < len(views)
    assert uploaded[-1].endswith("summary.json") or ".report.lock" in uploaded[-1]
    assert find_state(run) == UP_TO_DATE

    store.delete(run.report / "index.html")
    assert find_state(run) == ""
    bucket.put("runs/good/status.json", b'{"state": "training"}')
    assert find_state(run) == NOT_FINISHED


def test_a_run_without_a_model_or_a_configuration_is_named(run: ReportedRun, bucket: Bucket) -> None:
    bucket.delete("runs/good/model.keras")
    with pytest.raises(ConfigError, match="model"):
        render_reported_run(run, options=SMALL)
    bucket.delete("runs/good/config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        render_reported_run(run, options=SMALL)


def test_two_jobs_do_not_render_the_same_report(run: ReportedRun) -> None:
    with run.hold_lease(), pytest.raises(LeaseHeldError, match="good/report"):
        render_reported_run(run, options=SMALL)
    with run.hold_lease() as lease:
        lease.renew("1/2 curves")


def test_the_index_page_links_the_reports_and_replaces_no_other_page(
    run: ReportedRun, proxy: FaultProxy
) -> None:
    render_reported_run(run, options=SMALL)
    root = run.report.parent.parent
    assert isinstance(root, Uri)
    page = write_index(root, {run.name: run}, {})
    html = store.read_bytes(root / "index.html").decode()
    assert page == root / "index.html"
    assert 'href="good/report/index.html"' in html
    assert 'src="good/report/pictures/' in html
    proxy.requests.clear()
    write_index(root, {run.name: run}, {})
    assert proxy.count_requests("PUT") == 0

    store.write_bytes(root / "index.html", b"<p>mine</p>")
    with pytest.raises(ConfigError, match="no other page"):
        write_index(root, {run.name: run}, {})


def test_a_page_replaces_an_older_one_and_nothing_else(bucket: Bucket) -> None:
    out = Uri("s3", bucket.name, "out")

    def write(names: dict[str, str]) -> None:
        with publish(out, "test page") as folder:
            (folder / "pictures").mkdir()
            for name, text in {"index.html": "", "manifest.json": '{"kind": "test page"}', **names}.items():
                (folder / name).write_text(text)

    bucket.put("out/.report.lock", b"{}")
    write({"pictures/a.png": "a", "pictures/b.png": "b"})
    write({"pictures/b.png": "b", "extra.txt": "x"})
    assert bucket.list_keys("out") == [
        "out/.report.lock", "out/extra.txt", "out/index.html", "out/manifest.json", "out/pictures/b.png",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="holds something else"), publish(out, "other page"):
        pass
    bucket.put("notes/todo.txt", b"x")
    with pytest.raises(ConfigError, match=r"such as todo\.txt"), publish(Uri("s3", bucket.name, "notes")):
        pass


def test_runs_in_a_bucket_are_compared_into_it(
    run: ReportedRun, bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(tmp_path / "runs/good", tmp_path / "runs/other")
    weights = snapshot(variables_of(brightness_model(), keras.optimizers.SGD()))
    for name in ("good", "other"):
        local = Run(tmp_path / "runs" / name)
        save_checkpoint(local.checkpoints, weights, Position("", tuple(metrics(3))), keep=1)
        save_milestone(local.milestones, 1, weights["model"])
    text = Run(other).config_path.read_text()
    Run(other).config_path.write_text(text.replace("preset: tiny", "preset: another"))
    bucket.upload_folder(tmp_path / "runs", "runs")
    out = f"{bucket}/compare"
    assert main(["report", f"{bucket}/runs/good", f"{bucket}/runs/other", "--compare", "--out", out]) == 0
    assert f"open {out}/index.html" in capsys.readouterr().out
    manifest = json.loads(bucket.get("compare/manifest.json"))
    figures = manifest["figures"]
    assert figures["good and other on the same images"]["outcomes"]["both"] == 5
    epochs = {name: [one["epoch"] for one in shown] for name, shown in figures["compare"]["runs"].items()}
    assert epochs == {"good": [1, 3], "other": [1, 3]}
    keys = bucket.list_keys("compare")
    assert all(f"compare/{picture['file']}" in keys for picture in manifest["pictures"])

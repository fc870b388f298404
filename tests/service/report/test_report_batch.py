"""The job over all runs: reports that are due are rendered, failures stay isolated, and the index page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics

from pipelines.errors import ConfigError
from service.cli import main
from service.report.batch import BatchObserver, ReportOutcome, _render_task, format_summary, report_all
from service.report.fingerprint import compute_fingerprint, is_up_to_date
from service.report.lease import hold_lease
from service.report.options import PageOptions, ReportOptions
from service.report.pages.index import compute_sparkline
from service.report.reported import ReportedRun, find_shards
from service.runs import Run, find_runs

SMALL = ReportOptions(
    training_images=2, predictions=2, activation_images=0, heatmap_images=0, patterns=0, trust_images=0
)
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two good runs, one of them nested; one with a truncated model, one in training, one without data."""
    root = tmp_path / "runs"
    shards = dim_and_bright(tmp_path / "shards")
    good = make_run(root / "good", shards, brightness_model(), metrics(3))
    for name in ("group/nested", "cut", "training", "lost"):
        shutil.copytree(good.path, root / name)
    (root / "cut" / "model.keras").write_bytes(good.model_path.read_bytes()[:4000])
    Run(root / "training").update_status(state="training")
    config = Run(root / "lost").config_path
    config.write_text(config.read_text().replace(str(shards), str(tmp_path / "gone")))
    (root / ".hidden").mkdir()
    shutil.copytree(good.path, root / ".hidden" / "run")
    return root


def states(outcomes: list[ReportOutcome]) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in outcomes}


def times(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("report/*.*")}


def test_a_second_job_renders_only_what_changed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--all", str(runs)]) == 4
    output = capsys.readouterr()
    assert "reports: 2 rendered, 0 up to date, 1 not finished, 2 failed: cut, lost\n" in output.out
    assert "cut: failed: Expected a " in output.out
    assert "Expected a report of every finished run. Received: failed=cut, lost." in output.err
    assert "Traceback" not in output.out + output.err
    before = times(runs)
    assert len(before) == 4
    assert "../../index.html" in (runs / "good" / "report" / "index.html").read_text()
    assert "../../../index.html" in (runs / "group" / "nested" / "report" / "index.html").read_text()

    shutil.rmtree(runs / "cut")
    shutil.rmtree(runs / "lost")
    index = (runs / "index.html").read_text()
    assert main(["report", "--all", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "reports: 0 rendered, 2 up to date, 1 not finished, 0 failed",
        f"open {runs / 'index.html'}",
    ]
    assert times(runs) == before
    assert (runs / "index.html").read_text() != index  # two runs are gone

    Run(runs / "good").write_metrics(metrics(4))
    next((runs / "group" / "nested" / "report" / "pictures").iterdir()).unlink()
    assert states(report_all(runs)) == {
        "good": "rendered",
        "group/nested": "rendered",
        "training": "not finished",
    }
    assert states(report_all(runs)) == {
        "good": "up to date",
        "group/nested": "up to date",
        "training": "not finished",
    }
    assert states(report_all(runs, SMALL)) == {
        "good": "rendered",
        "group/nested": "rendered",
        "training": "not finished",
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its report."""
    folder = tmp_path_factory.mktemp("one")
    run = make_run(folder / "runs" / "one", dim_and_bright(folder / "shards"), brightness_model(), metrics(2))
    assert states(report_all(run.path.parent, SMALL)) == {"one": "rendered"}
    assert states(report_all(run.path.parent, SMALL)) == {"one": "up to date"}
    return run


@pytest.mark.parametrize(
    "change", ["nothing", "model", "config", "metrics", "checkpoint", "status", "page", "shards"]
)
def test_a_report_is_out_of_date_if_any_input_changed(one: Run, tmp_path: Path, change: str) -> None:
    run = Run(shutil.copytree(one.path, tmp_path / "runs" / "one"))
    shards = tmp_path / "shards"
    if change == "model":
        model = brightness_model()
        model.get_layer("logits").set_weights([w * 2 for w in model.get_layer("logits").get_weights()])
        model.save(run.model_path)
    elif change == "config":
        run.config_path.write_text(run.config_path.read_text().replace("preset: tiny", "preset: other"))
    elif change == "metrics":
        run.write_metrics(metrics(3))
    elif change == "checkpoint":
        (run.checkpoints / "epoch-0001").mkdir()
        (run.checkpoints / "epoch-0001" / "checkpoint.json").write_text("{}")
    elif change == "status":
        run.update_status(finished="2026-01-01T00:00:00+00:00")
    elif change == "page":
        (run.report / "index.html").unlink()
    elif change == "shards":
        fingerprint = compute_fingerprint(
            run, dim_and_bright(shards, classes=("a", "b")), SMALL, PageOptions()
        )
        assert not is_up_to_date(run, fingerprint)
        return
    fingerprint = compute_fingerprint(run, find_shards(run), SMALL, PageOptions())
    assert is_up_to_date(run, fingerprint) == (change == "nothing")
    assert not is_up_to_date(run, compute_fingerprint(run, find_shards(run), ReportOptions(), PageOptions()))


def test_a_report_that_another_process_renders_is_skipped(runs: Path) -> None:
    shutil.rmtree(runs / "cut")
    shutil.rmtree(runs / "lost")
    with hold_lease(Run(runs / "good").report_lease_path):
        outcomes = report_all(runs, SMALL)
    assert states(outcomes) == {
        "good": "in progress elsewhere",
        "group/nested": "rendered",
        "training": "not finished",
    }
    assert (
        format_summary(outcomes)
        == "reports: 1 rendered, 0 up to date, 1 not finished, 1 in progress elsewhere, 0 failed"
    )


def test_damage_in_one_run_stops_no_other_report(runs: Path) -> None:
    Run(runs / "cut").metrics_path.write_text('["no epoch"]\n')
    shutil.copy(runs / "good" / "model.keras", runs / "cut" / "model.keras")
    outcomes = report_all(runs, SMALL)
    by_name = {outcome.name: outcome for outcome in outcomes}
    assert (by_name["cut"].state, by_name["good"].state) == ("failed", "rendered")
    assert "metrics.jsonl, line=1 (damaged)" in by_name["cut"].message
    assert "Traceback" not in by_name["cut"].message


def test_a_bug_in_a_report_is_shown_with_its_traceback(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("service.report.job.render_reported_run", fail)
    state, message, _ = _render_task(ReportedRun.from_run(Run(runs / "good")), SMALL, False)
    assert state == "failed"
    assert message.startswith("ZeroDivisionError: \nTraceback")


def test_the_index_page_lists_all_runs(runs: Path) -> None:
    report_all(runs, SMALL)
    html = (runs / "index.html").read_text()
    rows = html[html.index("<tbody>") : html.index("</tbody>")].split("<tr")[1:]
    good = next(row for row in rows if ">good<" in row)
    assert 'href="good/report/index.html"' in good
    assert "74.0%" in good  # 0.5 + 0.72 * 2/3 - 0.54 * 4/9: the best of three epochs is the second
    assert good.count("<img") >= 2
    for picture in [part.split('"')[0] for part in good.split('<img src="')[1:]]:
        assert (runs / picture).is_file()
    assert [row for row in rows if "cut" in row and "Expected a" in row]
    assert [row for row in rows if "not finished: training" in row and "<a " not in row]
    assert len(rows) == 5


def test_another_page_in_place_of_the_index_is_not_replaced(runs: Path) -> None:
    (runs / "index.html").write_text("<h1>Dear diary</h1>")
    by_name = {outcome.name: outcome for outcome in report_all(runs, SMALL)}
    assert by_name["good"].state == "rendered"
    assert by_name["index.html"].state == "failed"
    assert (runs / "index.html").read_text() == "<h1>Dear diary</h1>"


def test_a_directory_without_runs(tmp_path: Path) -> None:
    assert report_all(tmp_path) == []
    assert "There are no runs in this directory yet" in (tmp_path / "index.html").read_text()
    with pytest.raises(ConfigError, match="no such directory"):
        report_all(tmp_path / "gone")


def test_runs_inside_runs_and_hidden_ones_are_skipped(runs: Path) -> None:
    shutil.copytree(runs / "good", runs / "good" / "inner")
    assert [str(run.path.relative_to(runs)) for run in find_runs(runs)] == [
        "cut",
        "good",
        "group/nested",
        "lost",
        "training",
    ]


def test_an_observer_receives_every_outcome(runs: Path) -> None:
    class Recorder(BatchObserver):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def on_start(self, runs, names):
            self.calls += [f"start {name}" for name in names]

        def on_outcome(self, outcome):
            self.calls.append(f"{outcome.name} {outcome.state}")

    observer = Recorder()
    report_all(runs, SMALL, observer=observer)
    assert observer.calls[:4] == ["start cut", "start good", "start group/nested", "start lost"]
    assert sorted(observer.calls[4:]) == [
        "cut failed",
        "good rendered",
        "group/nested rendered",
        "lost failed",
    ]


def test_a_single_file_embeds_its_pictures(runs: Path) -> None:
    report_all(runs, SMALL, single_file=True)
    report = runs / "good" / "report"
    assert sorted(path.name for path in report.iterdir()) == ["index.html", "manifest.json"]
    html = report.joinpath("index.html").read_text()
    assert 'src="data:image/png;base64,' in html
    assert "pictures/" not in html
    assert json.loads(report.joinpath("manifest.json").read_text())["single_file"] is True
    assert states(report_all(runs, SMALL, single_file=True))["good"] == "up to date"
    assert states(report_all(runs, SMALL))["good"] == "rendered"


def test_the_points_of_the_sparkline() -> None:
    assert compute_sparkline([0.5, 0.75, 1.0]) == "2.0,25.0 60.0,14.0 118.0,3.0"
    assert compute_sparkline([0.5, 0.5]) == "2.0,25.0 118.0,25.0"
    assert compute_sparkline([0.5]) == ""

"""The job over all runs: what is missing is made, one broken run stops nothing, and the page over all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics

from pipelines.errors import ConfigError
from service.cli import main
from service.report.batch import Outcome, Watcher, find_runs, report_all, summary_line
from service.report.fingerprint import fingerprint, is_up_to_date, shards_of
from service.report.job import Form, lease_path, parameters
from service.report.lease import hold_lease
from service.report.options import ReportOptions
from service.report.pages.index import curve
from service.runs import Run

SMALL = ReportOptions(training_images=2, predictions=2)
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two good runs, one of them in a folder of its own; one whose model was cut off; one that still trains; one without its data."""
    root, shards = tmp_path / "runs", dim_and_bright(tmp_path / "shards")
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


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in outcomes}


def times(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("report/*.*")}


def test_from_the_first_start_to_the_next(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--all", str(runs)]) == 4
    said = capsys.readouterr()
    assert "reports: 2 made, 0 up to date, 1 not finished, 2 failed: cut, lost\n" in said.out
    assert "cut: failed: Expected a " in said.out
    assert "Expected a report of every finished run. Received: failed=cut, lost." in said.err
    assert "Traceback" not in said.out + said.err
    before = times(runs)
    assert len(before) == 4
    assert "../../index.html" in (runs / "good" / "report" / "index.html").read_text()
    assert "../../../index.html" in (runs / "group" / "nested" / "report" / "index.html").read_text()

    shutil.rmtree(runs / "cut")
    shutil.rmtree(runs / "lost")
    index = (runs / "index.html").read_text()
    assert main(["report", "--all", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "reports: 0 made, 2 up to date, 1 not finished, 0 failed",
        f"open {runs / 'index.html'}",
    ]
    assert times(runs) == before
    assert (runs / "index.html").read_text() != index  # two runs are gone

    Run(runs / "good").write_metrics(metrics(4))
    next((runs / "group" / "nested" / "report" / "pictures").iterdir()).unlink()
    assert states(report_all(runs)) == {"good": "made", "group/nested": "made", "training": "not finished"}
    assert states(report_all(runs)) == {
        "good": "up to date",
        "group/nested": "up to date",
        "training": "not finished",
    }
    assert states(report_all(runs, SMALL)) == {
        "good": "made",
        "group/nested": "made",
        "training": "not finished",
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its report."""
    folder = tmp_path_factory.mktemp("one")
    run = make_run(folder / "runs" / "one", dim_and_bright(folder / "shards"), brightness_model(), metrics(2))
    assert states(report_all(run.path.parent, SMALL)) == {"one": "made"}
    assert states(report_all(run.path.parent, SMALL)) == {"one": "up to date"}
    return run


@pytest.mark.parametrize(
    "change", ["nothing", "model", "config", "metrics", "checkpoint", "status", "page", "shards"]
)
def test_what_a_report_was_made_of_decides(one: Run, tmp_path: Path, change: str) -> None:
    run, shards = Run(shutil.copytree(one.path, tmp_path / "runs" / "one")), tmp_path / "shards"
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
        made_of = fingerprint(run, dim_and_bright(shards, classes=("a", "b")), parameters(SMALL, Form()))
        assert not is_up_to_date(run, made_of)
        return
    made_of = fingerprint(run, shards_of(run), parameters(SMALL, Form()))
    assert is_up_to_date(run, made_of) == (change == "nothing")
    assert not is_up_to_date(run, fingerprint(run, shards_of(run), parameters(ReportOptions(), Form())))


def test_a_report_in_work_elsewhere_is_left_to_it(runs: Path) -> None:
    shutil.rmtree(runs / "cut")
    shutil.rmtree(runs / "lost")
    with hold_lease(lease_path(Run(runs / "good"))):
        outcomes = report_all(runs, SMALL)
    assert states(outcomes) == {
        "good": "in work elsewhere",
        "group/nested": "made",
        "training": "not finished",
    }
    assert (
        summary_line(outcomes)
        == "reports: 1 made, 0 up to date, 1 not finished, 1 in work elsewhere, 0 failed"
    )


def test_a_bug_in_one_report_stops_no_other(runs: Path) -> None:
    Run(runs / "cut").metrics_path.write_text('["no epoch"]\n')
    shutil.copy(runs / "good" / "model.keras", runs / "cut" / "model.keras")
    outcomes = report_all(runs, SMALL)
    found = {outcome.name: outcome for outcome in outcomes}
    assert (found["cut"].state, found["good"].state) == ("failed", "made")
    assert "Traceback" in found["cut"].words  # a bug of ours is shown whole


def test_the_page_over_all_runs(runs: Path) -> None:
    report_all(runs, SMALL)
    html = (runs / "index.html").read_text()
    rows = html[html.index("<tbody>") : html.index("</tbody>")].split("<tr>")[1:]
    good = next(row for row in rows if ">good<" in row)
    assert 'href="good/report/index.html"' in good
    assert "74.0%" in good  # 0.5 + 0.72 * 2/3 - 0.54 * 4/9: the best of three epochs is the second
    assert good.count("<img") >= 2
    for picture in [part.split('"')[0] for part in good.split('<img src="')[1:]]:
        assert (runs / picture).is_file()
    assert [row for row in rows if "cut" in row and "Expected a" in row]
    assert [row for row in rows if "not finished: training" in row and "<a " not in row]
    assert len(rows) == 5


def test_another_page_over_the_runs_is_not_replaced(runs: Path) -> None:
    (runs / "index.html").write_text("<h1>Dear diary</h1>")
    found = {outcome.name: outcome for outcome in report_all(runs, SMALL)}
    assert found["good"].state == "made"
    assert found["index.html"].state == "failed"
    assert (runs / "index.html").read_text() == "<h1>Dear diary</h1>"


def test_where_there_are_no_runs(tmp_path: Path) -> None:
    assert report_all(tmp_path) == []
    assert "There are no runs here yet" in (tmp_path / "index.html").read_text()
    with pytest.raises(ConfigError, match="no such directory"):
        report_all(tmp_path / "gone")


def test_runs_inside_runs_and_hidden_ones_are_passed_over(runs: Path) -> None:
    shutil.copytree(runs / "good", runs / "good" / "inner")
    assert [str(run.path.relative_to(runs)) for run in find_runs(runs)] == [
        "cut",
        "good",
        "group/nested",
        "lost",
        "training",
    ]


def test_the_watcher_is_told_everything(runs: Path) -> None:
    class Listening(Watcher):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def begins(self, due, names):
            self.heard += [f"begins {name}" for name in names]

        def ends(self, outcome):
            self.heard.append(f"{outcome.name} {outcome.state}")

    watcher = Listening()
    report_all(runs, SMALL, watcher=watcher)
    assert watcher.heard[:4] == ["begins cut", "begins good", "begins group/nested", "begins lost"]
    assert sorted(watcher.heard[4:]) == ["cut failed", "good made", "group/nested made", "lost failed"]


def test_a_single_file_holds_its_pictures(runs: Path) -> None:
    report_all(runs, SMALL, single_file=True)
    report = runs / "good" / "report"
    assert sorted(path.name for path in report.iterdir()) == ["index.html", "manifest.json"]
    html = report.joinpath("index.html").read_text()
    assert 'src="data:image/png;base64,' in html
    assert "pictures/" not in html
    assert json.loads(report.joinpath("manifest.json").read_text())["single_file"] is True
    assert states(report_all(runs, SMALL, single_file=True))["good"] == "up to date"
    assert states(report_all(runs, SMALL))["good"] == "made"


def test_the_small_curve() -> None:
    assert curve([0.5, 0.75, 1.0]) == "2.0,25.0 60.0,14.0 118.0,3.0"
    assert curve([0.5, 0.5]) == "2.0,25.0 118.0,25.0"
    assert curve([0.5]) == ""

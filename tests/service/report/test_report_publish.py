"""Publishing: the old report is complete until the new one is, and other files are never replaced."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from report_samples import brightness_model, dim_and_bright, make_run, metrics

from pipelines.errors import ConfigError
from service.report.job import render_report
from service.report.options import ReportOptions
from service.report.publish import KIND, publish, remove_unfinished

ROOT = Path(__file__).resolve().parents[3]
SMALL = ReportOptions(
    training_images=2, predictions=2, activation_images=0, heatmap_images=0, patterns=0, trust_images=0
)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_page(out: Path, text: str, *pictures: str) -> None:
    with publish(out) as directory:
        (directory / "pictures").mkdir()
        for name in pictures:
            (directory / "pictures" / name).write_text(name)
        (directory / "index.html").write_text(text)
        (directory / "manifest.json").write_text(json.dumps({"kind": KIND}))


def test_a_new_report_replaces_the_old_one(tmp_path):
    out = tmp_path / "deep" / "report"
    write_page(out, "old", "a", "b")
    (out / "stale").mkdir()
    write_page(out, "new", "b", "c")
    assert sorted(files(out)) == ["index.html", "manifest.json", "pictures/b", "pictures/c"]
    assert (out / "index.html").read_text() == "new"
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "manifest.json", "pictures"]
    assert [path.name for path in out.parent.iterdir()] == ["report"]


def test_a_failure_keeps_the_old_report(tmp_path):
    write_page(tmp_path / "report", "old", "a")
    before = files(tmp_path)

    def fail() -> None:
        with publish(tmp_path / "report") as directory:
            (directory / "index.html").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert files(tmp_path) == before


def test_a_reader_finds_a_complete_page_at_any_moment(tmp_path):
    """Next to the page are its own pictures, or it has been replaced by a newer one."""
    out = tmp_path / "report"
    write_page(out, "0", "p0")
    code = f"""
import json
from pathlib import Path
from service.report.publish import KIND, publish
for n in range(1, 30):
    with publish(Path({str(out)!r})) as new:
        (new / "pictures").mkdir()
        (new / "pictures" / f"p{{n}}").write_text("x")
        (new / "index.html").write_text(str(n))
        (new / "manifest.json").write_text(json.dumps({{"kind": KIND}}))
"""
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    seen = 0
    while writer.poll() is None:
        seen = int((out / "index.html").read_text())  # an error if the page is missing or incomplete
        assert seen <= 29
        if not (out / "pictures" / f"p{seen}").exists():
            assert int((out / "index.html").read_text()) > seen
    assert writer.returncode == 0
    assert (out / "index.html").read_text() == "29"


@pytest.mark.parametrize("left", ["file", "folder", "manifest of something else"])
def test_other_files_are_never_replaced(tmp_path, left):
    out = tmp_path / "out"
    if left == "file":
        out.write_text("dear")
    else:
        out.mkdir()
        (out / ("manifest.json" if "manifest" in left else "photo.jpg")).write_text('{"kind": "a holiday"}')
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="holds something else"):
        write_page(out, "new")
    assert files(tmp_path) == before


def test_temporary_directories_of_killed_jobs_are_removed(tmp_path):
    write_page(tmp_path / "report", "old")
    (tmp_path / ".tmp-0123-report").mkdir()
    (tmp_path / ".tmp-0123-report" / "x").write_text("x")
    (tmp_path / ".tmp-0123-other").mkdir()
    remove_unfinished(tmp_path / "report")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-0123-other", "report"]


def test_a_full_disk_keeps_the_old_report(tmp_path):
    run = make_run(tmp_path / "run", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(2))
    render_report(run, options=SMALL)
    before = files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the page is larger
    try:
        with pytest.raises(
            ConfigError,
            match=r"a directory for the report that can be written. Received: out=.*File too large",
        ):
            render_report(run, options=SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {name: content for name, content in files(tmp_path).items() if "lock" not in name} == {
        name: content for name, content in before.items() if "lock" not in name
    }


def test_a_read_only_run_is_an_error_in_one_sentence(tmp_path):
    run = make_run(tmp_path / "run", dim_and_bright(tmp_path / "shards"), brightness_model(), metrics(2))
    if os.geteuid():
        run.path.chmod(0o555)
        command = []
    else:  # permissions do not bind the superuser: a file system that cannot be written does
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(run.path)]
        if subprocess.run([*command, "true"], capture_output=True).returncode:
            pytest.skip("needs leave to mount")
    code = "import sys; from service.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [*command, sys.executable, "-c", code, "report", str(run.path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    run.path.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert "Expected a directory that can be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.report.exists()

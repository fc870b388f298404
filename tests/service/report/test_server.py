"""What the web server of reports takes for a report, and what it refuses, without a server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from service.report.pages.index import GENERATOR as INDEX
from service.report.pages.view_files import add_view_file, is_view_file
from service.report.server import _open

PAGE = '<meta name="generator" content="glassbox report">'
PICTURE = "photo-0123456789ab.jpg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a run and its report, and a secret file outside of it."""
    report = tmp_path / "runs" / "a" / "report"
    (report / "pictures").mkdir(parents=True)
    (report / "index.html").write_text(PAGE)
    (report / "manifest.json").write_text("{}")
    (report / "pictures" / PICTURE).write_bytes(b"\xff\xd8")
    add_view_file(report, "data", "<p>view</p>")
    (tmp_path / "runs" / "index.html").write_text(INDEX)
    (tmp_path / "runs" / "a" / "model.keras").write_bytes(b"model")
    (tmp_path / "secret.html").write_text(PAGE)
    return tmp_path / "runs"


def is_served(root: Path, address: str) -> bool:
    opened = _open(root, address)
    if opened is None:
        return False
    opened[1].close()
    return True


def test_index_and_report_are_served(root: Path) -> None:
    view = next((root / "a" / "report" / "views").iterdir()).name
    for address in (
        "/",
        "/index.html",
        "/a/report/",
        "/a/report/index.html",
        "/%61/report/manifest.json",
        f"/a/report/pictures/{PICTURE}",
        f"/a/report/views/{view}",
    ):
        assert is_served(root, address), address


@pytest.mark.parametrize(
    "address",
    [
        "/a",
        "/a/",
        "/a/report",
        "/a/model.keras",
        "/a/report/pictures/",
        "//",
        "//a/report/",
        "/./index.html",
        "/a/../index.html",
        "/a/%2e%2e/index.html",
        "/a/..%2findex.html",
        "/a%2freport%2findex.html",
        "/a/report/index.html%00",
        "/%00",
        "/a%00/report/index.html",
        "/a/report/index.html/",
        "/a\\report\\index.html",
        "/plain/index.html",
        "/data/manifest.json",
        "/data/pictures/photo-0123456789ab.jpg",
        "/data/views/data-0123456789ab.js",
        f"/{'a' * 300}/report/index.html",
        "/%ff/report/",
    ],
)
def test_other_addresses_are_not_found(root: Path, address: str) -> None:
    (root / "plain").mkdir()
    (root / "plain" / "index.html").write_text("<script>1</script>")
    shutil.copytree(root / "a" / "report", root / "data")
    (root / "data" / "index.html").unlink()
    assert not is_served(root, address)


def test_a_comparison_is_served(root: Path) -> None:
    shutil.copytree(root / "a" / "report", root / "both")
    (root / "both" / "index.html").write_text(PAGE.replace("report", "comparison"))
    for address in ("/both/", "/both/manifest.json", f"/both/pictures/{PICTURE}"):
        assert is_served(root, address), address
    (root / "both" / "index.html").write_text(PAGE.replace("report", "preview"))
    assert not is_served(root, "/both/")
    assert not is_served(root, f"/both/pictures/{PICTURE}")


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/report/pictures/out-0123456789ab.jpg", "../../../../secret.html"),
        ("a/report/pictures/model-0123456789ab.jpg", "../../model.keras"),
        ("b", "../.."),
        ("a/report/pictures/page-0123456789ab.jpg", "../index.html"),
        ("a/report/pictures/loop-0123456789ab.jpg", "loop-0123456789ab.jpg"),
    ],
)
def test_links_to_anything_else_are_not_followed(root: Path, link: str, target: str) -> None:
    (root.parent / "runs.html").mkdir()
    (root / link).symlink_to(target)
    assert not is_served(root, f"/{link}")
    assert not is_served(root, f"/{link}/report/index.html")
    assert not is_served(root, f"/{link}/index.html")


def test_a_link_to_another_run_or_page_is_followed(root: Path) -> None:
    (root / "best").symlink_to("a")
    (root / "page").symlink_to("a/report")
    assert is_served(root, "/page/")
    assert is_served(root, "/best/report/")
    assert not is_served(root, "/best/model.keras")


def test_hidden_folders_are_not_served(root: Path) -> None:
    (root / "a").rename(root / ".a")
    assert not is_served(root, "/.a/report/")
    (root / "b").symlink_to(".a")
    assert not is_served(root, "/b/report/")


def test_pages_of_other_programs_are_not_served(root: Path) -> None:
    (root / "index.html").write_text(PAGE)
    (root / "a" / "report" / "index.html").write_text(f"<script>1</script>{' ' * 5000}{PAGE}")
    assert not is_served(root, "/")
    assert not is_served(root, "/a/report/")


def test_views_of_an_implausible_size_are_not_read(root: Path) -> None:
    view = next((root / "a" / "report" / "views").iterdir())
    os.truncate(view, 1 << 36)  # 64 GiB without a block on disk
    assert not is_served(root, f"/a/report/views/{view.name}")


def test_scripts_of_others_are_not_served(root: Path) -> None:
    (root / "a" / "report" / "views" / "data-0123456789ab.js").write_text("alert(1)")
    assert not is_served(root, "/a/report/views/data-0123456789ab.js")


def test_pipes_and_folders_are_not_served(root: Path) -> None:
    pictures = root / "a" / "report" / "pictures"
    os.mkfifo(pictures / "pipe-0123456789ab.jpg")
    (pictures / "folder-0123456789ab.jpg").mkdir()
    assert not is_served(root, "/a/report/pictures/pipe-0123456789ab.jpg")
    assert not is_served(root, "/a/report/pictures/folder-0123456789ab.jpg")


@pytest.mark.parametrize(
    "script",
    [
        "alert(1)",
        'deliver("view-x","<p>");\nalert(1);\n',
        'deliver("view-x",alert(1));\n',
        'deliver("view-x",["<p>"]);\n',
        'deliver("view-x","a","b");\n',
        'deliver("view-x","<p>")',
        "deliver(" + "[" * 100_000 + ");\n",
        "\ufeff",
        "",
    ],
)
def test_only_data_is_a_view(tmp_path: Path, script: str) -> None:
    import hashlib

    digest = hashlib.sha256(script.encode()).hexdigest()[:12]
    assert not is_view_file(f"x-{digest}.js", script.encode())


def test_a_changed_view_is_none(tmp_path: Path) -> None:
    name = Path(add_view_file(tmp_path, "x", "<p>\u2028</p>")["file"]).name
    content = (tmp_path / "views" / name).read_bytes()
    assert is_view_file(name, content)
    assert not is_view_file(name, content.replace(b"<p>", b"<b>"))
    assert not is_view_file("x-000000000000.js", content)

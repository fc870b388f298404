"""A run whose names are attacks, on the web server: names are text, and nothing private is served."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urljoin

import pytest
from chrome import Chrome
from hostile_names import (
    CLASSES,
    ENDS,
    LAYER_NAME,
    RUN_NAME,
    SCRIPT,
    SHOWN_CONTROLS,
    make_hostile_run,
)
from import_graph import ROOT
from page_checks import inspect_pictures

from service.report.job import render_report
from service.report.options import ReportOptions
from service.report.pages.comparison import render_comparison
from service.report.pages.index import write_index
from service.report.reported import ReportedRun
from service.runs import Run

LINK = re.compile(r'(?:href|src|data-source)="([^"#]+)')
POLICY = "script-src 'self' 'sha256-"
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Site:
    """A web server for a directory of runs.

    Attributes:
        root: The directory.
        port: Port of the server.
        run: The run whose names are attacks.
    """

    root: Path
    port: int
    run: Run

    @property
    def report(self) -> str:
        return f"http://127.0.0.1:{self.port}/{quote(RUN_NAME)}/report/index.html"

    def request(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, body


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Renders the report of such a run, and serves it together with files that nobody may read."""
    folder = tmp_path_factory.mktemp("site")
    root = folder / "runs"
    run = make_hostile_run(root / RUN_NAME, folder / "shards")
    options = ReportOptions(training_images=6, predictions=6)
    render_report(run, options=options)
    other = make_hostile_run(folder / "other", folder / "shards", seed=1)
    models = [run.model_path, other.model_path]
    render_comparison([], root / "comparison", folder / "shards", models=models)
    write_index(root, {RUN_NAME: ReportedRun.from_run(run)}, {RUN_NAME: SCRIPT})
    plant_private_files(root, run)
    with serve(root) as port:
        yield Site(root, port, run)


@contextmanager
def serve(root: Path) -> Iterator[int]:
    """Runs `glassbox serve` for the length of a block; yields its port."""
    command = "import sys; from service.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(root), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline()
    match = re.search(r"http://127\.0\.0\.1:(\d+)", address)
    assert match is not None, address
    try:
        yield int(match[1])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def plant_private_files(root: Path, run: Run) -> None:
    """Puts files next to the report that have no place on the web: other pages, links, checkpoints."""
    (root.parent / "outside.html").write_text(run.report.joinpath("index.html").read_text())
    (run.path / "other.html").write_text("<script>1</script>")
    (run.report / "other.html").write_text(run.report.joinpath("index.html").read_text())
    (run.report / "index.html.gz").write_bytes(b"secret")
    (run.report / ".hidden").write_text("secret")
    (run.checkpoints / "epoch-0001").mkdir(parents=True)
    (run.checkpoints / "epoch-0001" / "state.npz").write_bytes(b"secret")
    (run.report / "pictures" / "out-0123456789ab.jpg").symlink_to(root.parent / "outside.html")
    (run.report / "pictures" / "model-0123456789ab.jpg").symlink_to(run.model_path)
    (run.report / "views" / "own-0123456789ab.js").write_text("window.attacked = 4")
    (root / "parent").symlink_to(root.parent)
    (root / "data" / "pictures").mkdir(parents=True)  # photos, which have no page next to them
    (root / "data" / "manifest.json").write_text("{}")
    (root / "data" / "pictures" / "cat-0123456789ab.jpg").write_bytes(b"secret")
    (root / "foreign" / "report").mkdir(parents=True)
    (root / "foreign" / "report" / "index.html").write_text("<script>1</script>")


def find_links(address: str, text: str) -> set[str]:
    """Returns the paths that a page, or the script of a view in it, links to on the same server."""
    page = address.partition("/views/")[0] + "/" if "/views/" in address else address
    return {urljoin(page, link) for link in LINK.findall(text.replace('\\\\"', '"').replace('\\"', '"'))}


def test_a_crawler_finds_the_index_and_the_report_and_nothing_is_missing(site: Site) -> None:
    waiting = {"/", "/comparison/"}  # which no page links to
    seen: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        status, headers, body = site.request(path)
        assert status == 200, path
        assert SECURITY.items() <= headers.items(), path
        assert POLICY in headers["content-security-policy"], path
        seen[path] = headers["content-type"].partition(";")[0]
        if seen[path] in ("text/html", "text/javascript"):
            found = find_links(path, body.decode())
            waiting |= {link for link in found if link.startswith("/")} - seen.keys()
    kinds = set(seen.values())
    assert {"text/html", "text/javascript", "application/json", "image/png"} <= kinds
    assert kinds <= {
        "text/html",
        "text/javascript",
        "application/json",
        "image/jpeg",
        "image/png",
        "image/webp",
    }
    views = {path for path, kind in seen.items() if kind == "text/javascript"}
    assert len(views) == len(list((site.run.report / "views").glob("*.js"))) - 1  # without the planted one


def test_every_other_file_is_refused(site: Site) -> None:
    served = []
    for path in [site.root, *site.root.rglob("*"), *site.root.parent.rglob("*.html")]:
        is_inside = path.is_relative_to(site.root)
        name = quote(str(path.relative_to(site.root)) if is_inside else f"../{path.name}")
        for address in (f"/{name}", f"/{name}/", f"/parent/runs/{name}", f"/x/..%2f{name}"):
            status, headers, body = site.request(address)
            assert SECURITY.items() <= headers.items()
            if status == 200:
                served.append(address)
            else:
                assert (status, body) == (404, b"404: Not Found"), address
    run = quote(RUN_NAME)
    parts = r"(index\.html)?|manifest\.json|(pictures|views)/.+"
    pages = rf"(index\.html)?|({re.escape(run)}/report|comparison)/({parts})"
    allowed = re.compile(rf"(/parent/runs)?/({pages})")  # a link to the directory itself is followed
    assert [address for address in served if not allowed.fullmatch(address)] == []
    assert len(served) > 10
    private = ("model-0123456789ab", "out-0123456789ab", "own-0123456789ab", "cat-0123456789ab")
    assert not [address for address in served for name in private if name in address]


def test_requests_of_other_kinds(site: Site) -> None:
    address = f"/{quote(RUN_NAME)}/report/index.html"
    status, headers, body = site.request(address)
    page = site.run.report.joinpath("index.html").read_bytes()
    assert (status, body) == (200, page)
    assert site.request(address, "HEAD")[0::2] == (200, b"")
    assert site.request(address, "HEAD")[1]["content-length"] == str(len(page))
    assert site.request(address, **{"Accept-Encoding": "gzip, br"})[2] == page  # not the planted file
    assert site.request(address, **{"Range": "bytes=5-9"})[0::2] == (200, page)  # ranges may be ignored
    assert site.request(address, **{"If-None-Match": headers["etag"]})[0::2] == (304, b"")
    assert site.request(address, "POST")[0] == 405
    assert site.request(address, "DELETE")[0] == 405


@pytest.mark.parametrize(
    "line",
    [
        b"GET /\x00 HTTP/1.1",
        b"GET /../outside.html HTTP/1.1",
        b"GET \\ HTTP/1.1",
        b"\x16\x03\x01<script>",
        b"GET /" + 20_000 * b"a" + b" HTTP/1.1",
        b"GET / HTTP/9",
    ],
    ids=["null", "dots", "backslash", "other protocol", "long", "version"],
)
def test_malformed_requests_get_the_headers_too(site: Site, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=60) as connection:
        connection.sendall(line + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    assert re.match(r"HTTP/1\.[01] 4\d\d ", head)
    assert re.fullmatch(r"4\d\d: [A-Za-z -]+", body)  # nothing of the request
    headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
    assert SECURITY.items() <= headers.items()
    assert POLICY in headers["content-security-policy"]


def test_names_are_text_and_no_script_runs(site: Site, browser: Chrome) -> None:
    browser.open(site.report, width=390)
    views = browser.run("[...document.querySelectorAll('[data-view]')].map((view) => view.id)")
    shown = ""
    for view in views:
        browser.open(site.report, f"#{view}", width=390)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        found = inspect_pictures(browser)
        assert (found["wrong"], found["overflow"]) == (0, 0), view
        assert browser.run("window.attacked === undefined"), view
        assert browser.errors == [], view
        assert all(address.startswith(site.report[: -len("index.html")]) for address in browser.requests)
        shown += browser.run("document.body.innerText + [...document.images].map((i) => i.alt).join()")
    assert CLASSES[0] in shown
    assert f"{ENDS}{SCRIPT}" in shown
    assert SHOWN_CONTROLS in shown
    assert "{{ 7 * 7 }}${7 * 7}" in shown
    assert CLASSES[2] in shown
    assert LAYER_NAME in shown
    assert not set("\x1b\x9b\u202e\u2066\u200f") & set(shown)


def test_the_index_shows_names_as_text(site: Site, browser: Chrome) -> None:
    browser.open(f"http://127.0.0.1:{site.port}/", width=390)
    assert inspect_pictures(browser)["overflow"] == 0
    shown = browser.run("document.body.innerText")
    assert RUN_NAME.replace("\u202e", r"\u202e") in shown
    assert SCRIPT in shown  # the reason of a failure
    assert browser.run("window.attacked === undefined")
    assert browser.errors == []
    browser.run("document.querySelector('table.runs tbody a').click()")
    browser.until("location.pathname.endsWith('/report/index.html') && document.readyState === 'complete'")


def test_a_comparison_shows_names_as_text(site: Site, browser: Chrome) -> None:
    browser.open(f"http://127.0.0.1:{site.port}/comparison/", width=390)
    found = inspect_pictures(browser)
    assert (found["wrong"], found["overflow"]) == (0, 0)
    shown = browser.run("document.body.innerText")
    assert RUN_NAME.replace("\u202e", r"\u202e") in shown
    assert CLASSES[0] in shown
    assert browser.run("window.attacked === undefined")
    assert browser.errors == []


def test_a_script_in_the_markup_would_be_blocked(site: Site, browser: Chrome) -> None:
    """The policy of the server stops what the policy of a page allows."""
    page = site.root / "loose" / "report" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<meta name="generator" content="glassbox report"><script>window.attacked = 5</script>')
    browser.open(f"http://127.0.0.1:{site.port}/loose/report/")
    assert browser.run("window.attacked === undefined")
    assert "Content Security Policy" in browser.errors[0]
    shutil.rmtree(page.parents[1])

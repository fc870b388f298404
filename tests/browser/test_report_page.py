"""The report in a real browser: it opens from disk, without an error, and every picture decodes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from report_samples import brightness_model, dim_and_bright, make_run, metrics

from service.report.job import render_report
from service.report.subject import ReportOptions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
]
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Chromium")

# A headless window is at least 500 pixels wide, but a frame can be as narrow as a phone. The frame's
# page is opened in every part, all its pictures fetched at once, and looked at from outside.
FRAME = """<!doctype html><style>body { margin: 0 } iframe { border: 0; width: WIDTHpx; height: HEIGHTpx; display: block }</style>
<iframe src="PAGE"></iframe>
<script>
const wrong = i => i.naturalWidth !== +i.getAttribute("width") || i.naturalHeight !== +i.getAttribute("height");
addEventListener("load", async () => {
  const page = document.querySelector("iframe").contentDocument, images = [...page.images];
  page.querySelectorAll("details").forEach(d => d.open = true);
  images.forEach(i => i.loading = "eager");
  await Promise.allSettled(images.map(i => i.decode()));
  const found = {images: images.length, wrong: images.filter(wrong).length, charts: page.querySelectorAll("svg.chart").length,
                 overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth};
  document.body.append(Object.assign(document.createElement("pre"), {textContent: JSON.stringify(found)}));
});
</script>"""


def chromium(folder: Path, page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Opens a page in a browser of its own, which ends by itself."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={home}", *flags, page.as_uri()]
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)


def console_errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    run = make_run(folder / "runs" / "dim_or_bright", dim_and_bright(folder / "shards"), brightness_model(), metrics(30))
    return render_report(run, options=ReportOptions(training_images=6, predictions=6))


def framed(page: Path, width: int, height: int = 900) -> Path:
    """A page that shows `page` in a frame and looks into it."""
    frame = page.with_name(f"frame-{width}-{page.name}")
    frame.write_text(FRAME.replace("PAGE", page.name).replace("WIDTH", str(width)).replace("HEIGHT", str(height)))
    return frame


def findings(page: Path, width: int, folder: Path) -> dict[str, int]:
    done = chromium(folder, framed(page, width), "--dump-dom", "--window-size=1400,1000", "--allow-file-access-from-files")
    (found,) = re.findall(r"<pre>(.*?)</pre>", done.stdout)
    return json.loads(found)


def test_it_opens_from_disk_without_an_error(report, tmp_path):
    done = chromium(tmp_path, report, "--dump-dom")
    assert console_errors(done.stderr) == []
    assert "5 of 6 validation images are right" in done.stdout


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_every_picture_decodes_and_nothing_sticks_out(report, tmp_path, width):
    assert findings(report, width, tmp_path) == {"images": 20, "wrong": 0, "charts": 2, "overflow": 0}


def test_the_probe_finds_a_missing_picture_and_a_wide_one(report, tmp_path):
    page = report.with_name("broken.html")
    html = report.read_text().replace('src="pictures/input', 'src="pictures/gone', 1)
    page.write_text(html.replace("</h1>", '</h1><div style="width: 1300px">wide</div>'))
    found = findings(page, 1280, tmp_path)
    assert found["wrong"] == 1
    assert found["overflow"] > 0


def test_the_policy_of_the_page_stops_scripts(report, tmp_path):
    page = report.with_name("script.html")
    page.write_text(report.read_text().replace("</body>", "<script>document.title = 'it ran'</script></body>"))
    assert "<title>it ran" not in chromium(tmp_path, page, "--dump-dom").stdout


@pytest.mark.parametrize(
    ("name", "flags", "dark"),
    [
        ("desktop", ["--window-size=1280,2400"], False),
        ("phone", ["--window-size=500,3600"], False),
        ("dark", ["--window-size=1280,2400", "--blink-settings=preferredColorScheme=0"], True),
    ],
)
def test_screenshots(report, tmp_path, name, flags, dark):
    """Light and dark differ, and pictures, curves and frames are painted."""
    shot = tmp_path / f"{name}.png"
    page = framed(report, 390, 3600) if name == "phone" else report
    chromium(tmp_path, page, f"--screenshot={shot}", *flags)
    with Image.open(shot) as image:
        pixels = image.convert("RGB")
        corner = pixels.getpixel((2, 2))
        colours = {colour for _, colour in pixels.getcolors(2**24) or []}
    assert corner == ((0x13, 0x15, 0x1A) if dark else (0xFB, 0xFA, 0xF7))
    right, training = ((0x4C, 0xC3, 0x8A), (0x8F, 0xA8, 0xE8)) if dark else ((0x1F, 0x7A, 0x4D), (0x3B, 0x52, 0x8B))
    assert {right, training, (112, 116, 124)} <= colours  # a frame, a curve, a blank channel

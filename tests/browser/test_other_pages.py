"""The index of all runs, a comparison, a single file, a preview and a leaderboard in the browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from chrome import Chrome
from conftest import OPTIONS
from page_checks import find_broken_words, find_violations, inspect_pictures, list_views
from shard_samples import encode_png

from pipelines.spec import AugmentSpec, DataSpec
from service.report.analysis.augmented import PreviewOptions
from service.report.job import render_report
from service.report.options import LookRequest, PageOptions
from service.report.pages.comparison import render_comparison
from service.report.pages.index import write_index
from service.report.pages.leaderboard import Trial, rank_trials, write_leaderboard
from service.report.pages.look import render_look
from service.report.pages.preview import render_preview
from service.report.pages.reproduction import Experiment, PublishedResult, write_reproduction
from service.report.reported import ReportedRun
from service.runs import Run
from service.tuning.space import parse_dimension

NAMES = "[...document.querySelectorAll('table.runs tbody th')].map((head) => head.dataset.value)"
SHOWN_NAMES = (
    "[...document.querySelectorAll('table.runs tbody tr:not([hidden]) th')].map((head) => head.dataset.value)"
)


@pytest.fixture(scope="module")
def pages(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Renders each of these pages."""
    folder = tmp_path_factory.mktemp("pages")
    run = Run(report.parent.parent)
    root = folder / "runs"
    runs = {}
    for name in ("good", "better", "<i>odd</i>"):
        shutil.copytree(run.path, root / name)
        runs[name] = Run(root / name)
    single = render_report(
        runs["better"], options=OPTIONS, page_options=PageOptions(single_file=True)
    ).rename(folder / "alone.html")
    shutil.copytree(run.report, runs["better"].report, dirs_exist_ok=True)
    for name, accuracy in (("good", 0.9), ("better", 0.95)):
        manifest = runs[name].report / "manifest.json"
        manifest.write_text(
            manifest.read_text().replace('"best_accuracy": ', f'"best_accuracy": {accuracy}, "was": ', 1)
        )
    shutil.rmtree(runs["<i>odd</i>"].report)
    shards = Path(run.config()["shards"])
    augment = AugmentSpec(rotation=20, flip=True)
    preview = render_preview(
        shards,
        DataSpec(image_size=(8, 8), channels=1),
        augment,
        PreviewOptions(rows=2, versions=2),
        folder / "preview",
    )
    space = (
        parse_dimension("optimizer.learning_rate", {"loguniform": [1e-4, 1e-2]}),
        parse_dimension("augment", {"choice": [None, {"flip": True}]}),
    )
    values = {"optimizer.learning_rate": 0.003, "augment": {"flip": True}}
    trials = rank_trials(
        [
            Trial.from_run(runs["good"], {}),
            Trial.from_run(runs["better"], values),
            Trial.from_run(runs["<i>odd</i>"], values),
        ]
    )
    published = [
        Experiment(
            "cats_dogs_lecture_dropout", PublishedResult(0.8, 30, 100), (runs["good"],), history=run.metrics()
        ),
        Experiment("vgg16", PublishedResult(0.9, 100, None), missing_reason="no weights"),
    ]
    reported = {name: ReportedRun(name, run.path, run.report) for name, run in runs.items()}
    return {
        "leaderboard": write_leaderboard(folder, "demo", trials, space, 6),
        "reproduction": write_reproduction(folder / "reproduction", published, "2 CPUs"),
        "index": write_index(root, reported, {"<i>odd</i>": "Expected better. Received: worse."}),
        "comparison": render_comparison([runs["good"], runs["better"]], folder / "comparison"),
        "single": single,
        "preview": preview,
    }


@pytest.mark.parametrize("name", ["index", "comparison", "single", "preview", "leaderboard", "reproduction"])
@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (375, False), (1280, True)], ids=["desktop", "phone", "dark"]
)
def test_a_page_opens_without_an_error(
    browser: Chrome, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = inspect_pictures(browser)
    assert (found["wrong"], found["overflow"]) == (0, 0)
    assert find_violations(browser) == []
    assert browser.errors == []


def test_runs_are_sorted(browser: Chrome, pages: dict[str, Path]) -> None:
    browser.open(pages["index"])
    heads = "[...document.querySelectorAll('table.runs thead th')]"
    browser.run(f"{heads}[1].querySelector('button').click()")
    assert browser.run(NAMES) == ["better", "good", "<i>odd</i>"]
    assert browser.run(f"{heads}.map((head) => head.getAttribute('aria-sort'))")[:2] == [None, "descending"]
    browser.run(f"{heads}[0].querySelector('button').click()")
    browser.run(f"{heads}[0].querySelector('button').click()")
    assert browser.run(NAMES) == ["<i>odd</i>", "better", "good"]
    assert browser.run("document.querySelectorAll('table.runs a').length") == 2
    assert "Expected better" in browser.run("document.querySelector('.note').textContent")


def test_runs_are_filtered_and_their_curves_share_one_scale(browser: Chrome, pages: dict[str, Path]) -> None:
    browser.open(pages["index"])
    browser.run("document.querySelector('[name=layout][value=curves]').click()")
    curves = """[...document.querySelectorAll('.run')].map((run) => [
      run.querySelector('h2').textContent.trim(),
      run.querySelector('polyline.validation').getAttribute('points').split(' ').filter(Boolean).length,
    ])"""
    shown = dict(browser.run(curves))
    assert shown.keys() >= {"good", "better"}
    assert shown["good"] == 30
    heights = """[...document.querySelectorAll('.run polyline')].flatMap((line) =>
      line.getAttribute('points').split(' ').filter(Boolean).map((point) => +point.split(',')[1]))"""
    values = browser.run(heights)
    assert (min(values), max(values)) == (4, 106)  # the extremes of all runs touch the margins
    assert find_violations(browser) == []
    browser.run(
        "const box = document.querySelector('[data-search]'); box.value = 'goo';"
        "box.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert [name for name, _ in browser.run(curves)] == ["good"]
    assert browser.run("document.querySelector('[data-runs] .status').textContent") == "1 of 3 runs"
    browser.run("document.querySelector('[name=layout][value=table]').click()")
    assert browser.run(SHOWN_NAMES) == ["good"]


def test_the_table_of_runs_fits_a_wide_window_and_its_names_break_between_parts(
    browser: Chrome, pages: dict[str, Path]
) -> None:
    browser.open(pages["index"], width=1400)
    browser.run("""document.querySelectorAll('table.runs a').forEach((link) => {
      link.innerHTML = 'cats_<wbr>dogs_<wbr>small_<wbr>with_<wbr>a_<wbr>long_<wbr>name_<wbr>seed_<wbr>3';
    })""")
    width, shown = browser.run("""(() => {
      const { scrollWidth, clientWidth } = document.querySelector('table.runs').closest('.scroll');
      return [scrollWidth, clientWidth];
    })()""")
    assert width <= shown
    assert find_broken_words(browser, "table.runs a") == []
    sources = "[...document.querySelectorAll('td.source')].map((cell) => [cell.textContent, cell.title])"
    assert ["tiny", "folder:tiny"] in browser.run(sources)


def test_controls_in_a_row_are_aligned(browser: Chrome, pages: dict[str, Path]) -> None:
    browser.open(pages["index"], width=1400)
    middles = browser.run("""['[data-search]', '[data-preset]', '[name=layout]'].map((name) => {
      const label = document.querySelector(`.controls ${name}`).closest('label').getBoundingClientRect();
      return (label.top + label.bottom) / 2;
    })""")
    assert max(middles) - min(middles) <= 2
    heights = browser.run("""['[data-search]', '[data-preset]'].map((name) =>
      document.querySelector(name).getBoundingClientRect().height)""")
    assert abs(heights[0] - heights[1]) <= 4


def test_the_index_links_to_the_reports(browser: Chrome, pages: dict[str, Path]) -> None:
    browser.open(pages["index"])
    browser.run(
        "[...document.querySelectorAll('table.runs a')].find((a) => a.textContent === 'good').click()"
    )
    browser.until("document.querySelector('.what b')?.textContent === 'dim_or_bright'")


def test_a_single_file_requests_nothing_else(browser: Chrome, pages: dict[str, Path]) -> None:
    browser.open(pages["single"], "#view-predictions")
    assert inspect_pictures(browser)["images"] >= 6
    assert {address.partition("#")[0] for address in browser.requests} == {pages["single"].as_uri()}


def test_without_scripts_a_single_file_shows_everything(browser: Chrome, pages: dict[str, Path]) -> None:
    browser.enable_scripts(False)
    try:
        browser.open(pages["single"])
        hidden = (
            "[...document.querySelectorAll('[data-view], [data-when]')].filter((e) => !e.offsetParent).length"
        )
        assert browser.run(hidden) == 0
        assert browser.run("document.querySelectorAll('[data-view]').length") >= 4
    finally:
        browser.enable_scripts(True)


@pytest.fixture(scope="module")
def look(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two of the user's images, and of one that cannot be decoded."""
    folder = tmp_path_factory.mktemp("look")
    for value in (60, 200):
        pixels = np.full((8, 8), value, np.uint8)
        pixels[2:5, 2:5] = 255 - value
        (folder / f"value {value}.png").write_bytes(encode_png(pixels))
    (folder / "<b>broken.png").write_bytes(b"none")
    page = render_look(LookRequest(report.parent.parent, (str(folder),)), folder / "page").page
    assert isinstance(page, Path)
    return page


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (375, False), (1280, True)], ids=["desktop", "phone", "dark"]
)
def test_a_look_at_own_images(browser: Chrome, look: Path, width: int, dark: bool) -> None:
    views = list_views(browser, look)
    assert views == ["#view-image", "#view-layers", "#view-trust"]
    for view in views:
        browser.open(look, view, width, dark=dark)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        found = inspect_pictures(browser)
        assert found["images"] > 0
        assert (found["wrong"], found["overflow"]) == (0, 0), view
        assert find_violations(browser) == [], view
        assert browser.errors == []
    assert "<b>broken.png" in browser.run("document.querySelector('header .warning').textContent")


def test_the_selector_of_a_look_page_switches_maps_and_checks(browser: Chrome, look: Path) -> None:
    for view in ("#view-image", "#view-trust"):
        browser.open(look, view)
        shown = f"""[...document.querySelectorAll('{view} .side-by-side figure:first-child')]
          .filter((figure) => figure.offsetParent).map((figure) => figure.querySelector('img').alt)"""
        before = browser.run(shown)
        browser.run(f"document.querySelector('{view} [data-key=image]').focus()")
        browser.press("ArrowRight")
        assert set(before) == {"Image value 200.png"}
        assert set(browser.run(shown)) == {"Image value 60.png"}

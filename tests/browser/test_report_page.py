"""The report in a browser: every view, from disk, at several widths, in light and dark; accessibility."""

from __future__ import annotations

from pathlib import Path

import pytest
from chrome import Chrome
from page_checks import find_overlaps, find_violations, inspect_pictures, list_views
from PIL import Image


def write_changed(page: Path, name: str, old: str, new: str) -> Path:
    """Writes a copy of a page next to it, with one change."""
    html = page.read_text()
    assert old in html
    copy = page.with_name(f"{name}.html")
    copy.write_text(html.replace(old, new, 1))
    return copy


def test_every_view_opens_from_disk_and_requests_nothing_but_pictures(browser: Chrome, report: Path) -> None:
    shown = list_views(browser, report)
    assert {"#view-overview", "#view-data", "#view-predictions", "#view-layers"} <= set(shown)
    for view in shown:
        browser.open(report, view)
        assert browser.run(
            "[...document.querySelectorAll('[data-view]')].filter((v) => !v.hidden).map((v) => '#' + v.id)"
        ) == [view]
        assert browser.run("document.querySelector('nav.views [aria-current]').hash") == view
        inspect_pictures(browser)
        assert browser.errors == []
        folders = [(report.parent / folder).as_uri() for folder in ("pictures", "views")]
        allowed = (report.as_uri(), *folders)
        assert [address for address in browser.requests if not address.startswith(allowed)] == []


@pytest.mark.parametrize("width", [1920, 1280, 768, 360])
def test_pictures_decode_and_neither_views_nor_texts_overflow(
    browser: Chrome, report: Path, width: int
) -> None:
    total = 0
    for view in list_views(browser, report):
        browser.open(report, view, width)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        found = inspect_pictures(browser)
        assert (found["wrong"], found["overflow"]) == (0, 0), view
        assert find_overlaps(browser) == [], view
        total += found["images"]
    assert total >= 6 + 6 + 4


def test_the_check_finds_text_that_overlaps(browser: Chrome, report: Path) -> None:
    fault = '</h1><p>below</p><p style="margin-top: -36px">above</p>'
    browser.open(write_changed(report, "overlap", "</h1>", fault))
    assert "below / above" in find_overlaps(browser)


def test_a_warning_keeps_its_distance_and_the_count_of_a_title_wraps_without_indent(
    browser: Chrome, report: Path
) -> None:
    browser.open(report, "#view-trust", width=390)
    browser.run("""document.querySelector('#trust .checks').insertAdjacentHTML('beforebegin',
      '<p class="warning">No verdict.</p>'
      + '<h3>A block with a long title <span class="count">stem/convolution</span></h3>')""")
    gap = """document.querySelector('#trust .warning + *').getBoundingClientRect().top
      - document.querySelector('#trust .warning').getBoundingClientRect().bottom"""
    browser.run("document.querySelector('#trust h3').style.margin = '0'")
    assert browser.run(gap) >= 16
    title, count = browser.run("""(() => {
      const count = document.querySelector('#trust h3 .count'), range = document.createRange();
      range.selectNodeContents(count.parentElement.firstChild);
      return [range, count].map((item) => item.getBoundingClientRect()).map(({left, top}) => [left, top]);
    })()""")
    assert count[1] > title[1]  # it is on a line of its own
    assert count[0] == title[0]


def test_signed_maps_tint_the_image_that_they_lie_on(browser: Chrome, report: Path) -> None:
    """Their white, which is zero, leaves the image as it is."""
    browser.open(report, "#saliency:method=integrated")
    blend = """[...document.querySelectorAll('#saliency .overlay .map')]
      .filter((map) => map.checkVisibility())
      .map((map) => getComputedStyle(map).mixBlendMode)"""
    assert browser.run(blend) == ["multiply"]
    browser.open(report, "#saliency:method=gradient")
    assert browser.run(blend) == ["normal"]


def test_the_check_finds_a_missing_picture_and_overflow(browser: Chrome, report: Path) -> None:
    browser.open(write_changed(report, "missing", 'src="pictures/thumbnail', 'src="pictures/gone'))
    assert inspect_pictures(browser)["wrong"] == 1
    page = write_changed(
        report,
        "missing",
        "</h1>",
        '</h1><div style="width: 1300px">wide</div><img src="pictures/gone.png" width="5" height="5">',
    )
    browser.open(page)
    found = inspect_pictures(browser)
    assert found["wrong"] == 1
    assert found["overflow"] > 0


def test_the_policy_of_the_page_stops_foreign_scripts(browser: Chrome, report: Path) -> None:
    browser.open(
        write_changed(report, "script", "</main>", "</main><script>document.title = 'it ran'</script>")
    )
    assert "it ran" not in browser.run("document.title")
    assert any("Content Security Policy" in error for error in browser.errors)
    assert browser.run("document.querySelectorAll('canvas').length") > 0  # the script of the page itself ran


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (375, False), (1280, True)], ids=["desktop", "phone", "dark"]
)
def test_axe_finds_nothing(browser: Chrome, report: Path, width: int, dark: bool) -> None:
    rules = ["color-contrast"] if dark else []  # the only one that depends on the colours
    for view in list_views(browser, report):
        browser.open(report, view, width, dark=dark)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert find_violations(browser, rules) == [], view


def test_axe_finds_planted_violations(browser: Chrome, report: Path) -> None:
    fault = '</h1><img src="pictures/x.png"><p style="color: #ccc; background: #fff">pale</p>'
    browser.open(write_changed(report, "faults", "</h1>", fault))
    assert {violation.split(":")[0] for violation in find_violations(browser)} == {
        "image-alt",
        "color-contrast",
    }


def measure_requests(browser: Chrome, page: Path, fragment: str = "") -> dict[str, int]:
    """Opens a page and returns the bytes of the files it requests, as `page`, `views` and `pictures`."""
    browser.open(page, fragment)
    browser.run("new Promise((done) => setTimeout(done, 300))")
    sizes = {"page": 0, "views": 0, "pictures": 0}
    for address in {address.partition("#")[0].removeprefix("file://") for address in browser.requests}:
        path = Path(address)
        sizes["page" if path == page else path.parent.name] += path.stat().st_size
    return sizes


def test_the_first_view_is_small_and_loads_no_other(browser: Chrome, report: Path) -> None:
    sizes = measure_requests(browser, report)
    assert 0 < sizes["pictures"] < 30_000
    assert sizes["views"] == 0
    assert sum(sizes.values()) <= 200_000


def test_a_view_is_loaded_when_it_is_shown(browser: Chrome, report: Path) -> None:
    (file,) = (report.parent / "views").glob("data-*.js")
    assert measure_requests(browser, report, "#rejected")["views"] == file.stat().st_size
    browser.run("location.hash = '#view-overview'")
    browser.run("location.hash = '#view-data'")
    browser.until("!document.querySelector('#view-data').hidden")
    assert sum("/views/" in address for address in browser.requests) == 1


def test_a_view_that_is_asked_for_again_before_it_arrives_is_loaded_once(
    browser: Chrome, report: Path
) -> None:
    browser.open(report)
    # All in one task, so that no script can arrive in between: a click on each of two links into the view.
    browser.run("""for (const hash of ["#view-data", "#rejected"]) {
      location.hash = hash;
      dispatchEvent(new HashChangeEvent("hashchange"));
    }""")
    browser.until("document.querySelector('#rejected')?.checkVisibility()")
    assert browser.run("document.querySelectorAll('head script[src]').length") == 1
    assert sum("/views/" in address for address in browser.requests) == 1


def test_printing_shows_the_opened_views_and_says_how_to_print_all(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-network")
    shown = "[...document.querySelectorAll('[data-view]')].filter((v) => v.offsetHeight).map((v) => v.id)"
    note = "document.querySelector('.printed').offsetHeight"
    assert browser.run(note) == 0
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.run(shown) == ["view-overview", "view-network"]
        assert browser.run(note) > 0
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_without_scripts_the_first_view_is_shown_and_tells_how_to_see_the_others(
    browser: Chrome, report: Path
) -> None:
    browser.enable_scripts(False)
    try:
        browser.open(report)
        assert browser.run(
            "[...document.querySelectorAll('#view-overview > *')].every((e) => e.offsetHeight)"
        )
        assert "--single-file" in browser.run("document.querySelector('noscript').innerText")
        assert browser.run("document.querySelector('noscript p').offsetHeight > 0")
    finally:
        browser.enable_scripts(True)


def test_a_view_whose_file_is_missing_says_so(browser: Chrome, report: Path) -> None:
    browser.open(write_changed(report, "incomplete", 'data-source="views/data', 'data-source="views/gone'))
    browser.run("location.hash = '#rejected'")
    browser.until("document.querySelector('#view-data .warning')?.offsetHeight")
    assert "views/gone" in browser.run("document.querySelector('#view-data .warning').innerText")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_screenshots(browser: Chrome, report: Path, tmp_path: Path, dark: bool) -> None:
    """Light and dark differ, and frames, curves and the area between them are drawn."""
    paper, right, training = ("#13151a", "#4cc38a", "#8fa8e8") if dark else ("#fbfaf7", "#1a6e45", "#3b528b")
    found = set()
    for view in ("", "#view-predictions"):
        browser.open(report, view, height=1500, dark=dark)
        with Image.open(browser.screenshot(tmp_path / "page.png", whole=False)) as image:
            pixels = image.convert("RGB")
            assert "#{:02x}{:02x}{:02x}".format(*pixels.getpixel((2, 2))) == paper
            found |= {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in pixels.getcolors(2**24) or []}
    assert {right, training} <= found


def test_wide_windows_have_two_columns(browser: Chrome, report: Path) -> None:
    boxes = """Object.fromEntries(
      [...document.querySelectorAll('.view:not([hidden]) > .part')].map((part) => {
        const box = part.getBoundingClientRect();
        return [part.id, [Math.round(box.x), Math.round(box.y), Math.round(box.width)]];
      })
    )"""
    width = "Math.round(document.querySelector('main').getBoundingClientRect().width)"
    browser.open(report, "#view-predictions", width=1400)
    shown = browser.run(boxes)
    left, right = shown["confusion"], shown["class_scores"]
    assert left[1] == right[1]
    assert left[0] + left[2] < right[0]
    assert left[2] == right[2]
    browser.open(report, "#view-gallery", width=1400)
    assert browser.run(boxes)["gallery"][2] == browser.run(width)
    browser.open(report, "#view-predictions", width=1000)
    assert {box[2] for box in browser.run(boxes).values()} == {browser.run(width)}


def test_on_a_phone_tables_fit_without_scrolling(browser: Chrome, report: Path) -> None:
    widths = """[...document.querySelectorAll('.scroll')]
      .filter((box) => box.offsetParent && !box.querySelector('.matrix'))
      .map((box) => [box.getAttribute('aria-label'), box.scrollWidth - box.clientWidth])"""
    for view in list_views(browser, report):
        browser.open(report, view, width=390)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert [box for box in browser.run(widths) if box[1] > 0] == [], view
    browser.open(report, "#view-overview", width=390)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    label = "getComputedStyle(document.querySelector('#curves .stacked td:nth-child(3)'), '::before').content"
    assert browser.run(label) == '"Training accuracy"'


def test_long_names_do_not_widen_the_page_of_a_phone(browser: Chrome, report: Path) -> None:
    name = "convnext_tiny/convnext_tiny_stage_0_block_2_depthwise_conv"
    for view in list_views(browser, report):
        browser.open(report, view, width=390)
        browser.run(f"""document.querySelectorAll('.verdict, .lead, .message, .caption')
          .forEach((text) => {{ text.textContent = {name!r}; }})""")
        assert inspect_pictures(browser)["overflow"] == 0, view


def test_ten_classes_fit_into_the_confusion_matrix_of_a_phone(browser: Chrome, report: Path) -> None:
    browser.open(report, "#confusion", width=390)
    overflow = browser.run("""(() => {
      const table = document.querySelector('.confusion');
      table.classList.add('large');
      for (const row of table.rows) {
        const cell = row.lastElementChild;
        while (row.cells.length < 11) row.append(cell.cloneNode(true));
        [...row.cells].slice(1).forEach((copy, column) => {
          (copy.querySelector('span, a') ?? copy).textContent = copy.tagName === 'TH' ? column : '1,135';
        });
      }
      return table.parentElement.scrollWidth - table.parentElement.clientWidth;
    })()""")
    assert overflow <= 0

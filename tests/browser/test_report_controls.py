"""The controls of a page, by mouse and by keyboard alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chrome import Chrome
from looking import complaints, views

FOCUS = """(() => {
  const at = document.activeElement;
  if (at === document.body || at.dataset.walked) return null;
  at.dataset.walked = "yes";
  const style = getComputedStyle(at), box = at.getBoundingClientRect();
  return {tag: at.tagName, words: (at.getAttribute("aria-label") || at.textContent).trim(), name: at.name || "", hash: at.hash || "",
          ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0, seen: box.width > 0 && box.height > 0};
})()"""
REACHABLE = """[...document.querySelectorAll("a[href], button, summary, select, input, [tabindex='0']")].filter((e) => e.checkVisibility()
  && !(e.type === "radio" && !e.checked)).length"""
SHOWN = (
    "[...document.querySelectorAll('.answers figure')].filter((f) => f.offsetParent).map((f) => f.className)"
)


def walk(browser: Chrome) -> list[dict[str, object]]:
    """What Tab comes by from the first thing on the page on, until it leaves it."""
    found = []
    browser.press("Tab")  # so that the keyboard is what moves the focus, and its ring shows
    browser.run("document.querySelector('a').focus()")
    for _ in range(400):
        at = browser.run(FOCUS)
        if at is None:
            return found
        found.append(at)
        browser.press("Tab")
    raise AssertionError("Tab goes round and round")


def test_tab_reaches_everything_and_shows_where_it_is(browser: Chrome, report: Path) -> None:
    for view in views(browser, report):
        browser.open(report, view)
        found = walk(browser)
        assert len(found) == browser.run(REACHABLE), view
        assert all(at["ring"] and at["seen"] for at in found), view
        assert found[0]["words"] == "Skip to the content"
        assert [at["hash"] for at in found[1:3]] == ["#view-overview", "#view-data"]


def test_the_skip_link_leads_into_the_content_and_keeps_the_view(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-data")
    browser.run("document.querySelector('.skip').focus()")
    browser.press("Enter")
    browser.until("location.hash === '#main'")
    assert browser.run("document.activeElement.id") == "main"
    assert not browser.run("document.querySelector('#view-data').hidden")


def test_views_change_with_the_address_and_back(browser: Chrome, report: Path) -> None:
    browser.open(report)
    browser.run("document.querySelector('a[href=\"#view-predictions\"]').focus()")
    browser.press("Enter")
    browser.until("!document.querySelector('#view-predictions').hidden")
    assert browser.run("document.querySelector('#view-overview').hidden")
    assert browser.run("document.title").startswith("Predictions · dim_or_bright")
    browser.run("history.back()")
    browser.until("!document.querySelector('#view-overview').hidden")


def test_a_section_is_found_by_its_name(browser: Chrome, report: Path) -> None:
    browser.open(report, "#rejected")
    assert not browser.run("document.querySelector('#view-data').hidden")


def test_predictions_are_filtered(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-predictions")
    assert browser.run(SHOWN) == ["wrong", *["right"] * 5]
    browser.run("document.querySelector('[data-key=kind]').focus()")
    browser.press("ArrowRight")
    assert browser.run(SHOWN) == ["wrong"]
    browser.press("ArrowRight")
    assert browser.run(SHOWN) == ["right"] * 5
    browser.press("ArrowRight")
    assert len(browser.run(SHOWN)) == 6


def test_bars_are_as_long_as_the_shares(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-predictions")
    shares = "[+b.dataset.share, b.offsetWidth / b.parentElement.offsetWidth]"
    lengths = browser.run(f"[...document.querySelectorAll('#predictions [data-share]')].map((b) => {shares})")
    assert len(lengths) == 6 * 2
    assert all(abs(share - length) < 0.02 for share, length in lengths)


def test_a_plot_is_drawn_and_read_by_the_pointer(browser: Chrome, report: Path) -> None:
    browser.open(report)
    browser.until("document.querySelectorAll('.uplot canvas').length === 2")
    browser.run("document.querySelector('.u-over').scrollIntoView({block: 'center'})")
    box = browser.run(
        "(() => { const b = document.querySelector('.u-over').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] - 2, y=box[1] + box[3] / 2)
    browser.until("document.querySelector('.readout').textContent !== ''")
    said = browser.run("document.querySelector('.readout').textContent")
    last = browser.run(
        "[...document.querySelectorAll('.plot tbody tr:last-child')[0].cells].slice(1).map((cell) => cell.textContent)"
    )
    assert said == f"epoch 30: training {float(last[0][:-1]):.1f}%, validation {float(last[1][:-1]):.1f}%"


def plotting(report: Path, values: list[float | None]) -> Path:
    """The report with other values in every line of its first plot."""
    html, begin = report.read_text(), '<script type="application/json">'
    head, _, rest = html.partition(begin)
    data, _, tail = rest.partition("</script>")
    plot = json.loads(data) | {
        "x": [n + 1.0 for n in range(len(values))],
        "marks": [],
        "levels": [],
        "shade": False,
    }
    plot["lines"] = [line | {"values": values} for line in plot["lines"]]
    page = report.with_name("other.html")
    page.write_text(f"{head}{begin}{json.dumps(plot)}</script>{tail}")
    return page


@pytest.mark.parametrize(
    "values", [[1.0, 1.0, 0.9999997], [0.0, 0.0, 0.0], [0.5, None, 0.5], [None, 3e-9, None]]
)
def test_a_flat_line_is_drawn_too(browser: Chrome, report: Path, values: list[float | None]) -> None:
    browser.open(plotting(report, values))
    browser.until("document.querySelectorAll('.uplot canvas').length === 2")
    assert browser.errors == []


def test_a_line_goes_on_where_only_some_epochs_were_evaluated(browser: Chrome, report: Path) -> None:
    """Of 31 epochs each fifth: the line covers the plot from the fifth to the thirtieth, not six dots of it."""
    browser.open(plotting(report, [n / 40 if n % 5 == 0 and n else None for n in range(1, 32)]))
    browser.until("document.querySelectorAll('.uplot canvas').length === 2")
    coloured = """(() => {
      const canvas = document.querySelector('.uplot canvas'), {width, height} = canvas;
      const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
      const strong = (i) => pixels[i + 3] > 128 && Math.max(...pixels.slice(i, i + 3)) - Math.min(...pixels.slice(i, i + 3)) > 40;
      let columns = 0;
      for (let x = 0; x < width; x++) for (let y = 0; y < height; y++) if (strong(4 * (y * width + x))) { columns++; break; }
      return columns / document.querySelector('.u-over').offsetWidth / devicePixelRatio;
    })()"""
    assert browser.run(coloured) == pytest.approx(25 / 30, abs=0.03)


@pytest.mark.parametrize("old", [1280, 375])
def test_a_plot_follows_the_width_of_the_window(browser: Chrome, report: Path, old: int) -> None:
    browser.open(report, width=old)
    browser.until("document.querySelector('.uplot canvas')")
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=700, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.until(
        "document.querySelector('.uplot').offsetWidth === Math.floor(document.querySelector('.canvas').clientWidth)"
    )
    assert browser.run("document.documentElement.scrollWidth <= 700")


def test_a_sheet_is_walked_sorted_and_enlarged_by_keyboard(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-layers")
    browser.run("document.querySelector('#view-layers .sheet').closest('details').open = true")
    sheet = "[...document.querySelectorAll('#view-layers [data-sheet]')].find((f) => f.textContent.includes('convolution'))"
    status = f"{sheet}.querySelector('.status').textContent"
    browser.run(f"{sheet}.querySelector('.sheet').focus()")
    said = [browser.run(status)]
    for _ in range(3):  # once more than there are channels
        browser.press("ArrowRight")
        said.append(browser.run(status))
    assert [words.split(",")[0] for words in said] == [f"Channel {n} of 3" for n in (0, 1, 2, 2)]
    assert all(words.endswith("blank") for words in said)  # a grey image is the same everywhere
    activity = [float(words.split("activity ")[1].split(",")[0]) for words in said[:3]]

    browser.run(
        f"[...{sheet}.querySelectorAll('button')].find((b) => b.textContent === 'Sort by activity').click()"
    )
    browser.until(f"{sheet}.querySelector('[aria-pressed=true]') && {status} !== ''")
    browser.run(f"{sheet}.querySelector('.sheet').focus()")
    order = []
    for _ in range(3):
        order.append(int(browser.run(status).split()[1]))
        browser.press("ArrowRight")
    assert order == sorted(range(3), key=lambda channel: -activity[channel])

    browser.press("Enter")
    browser.until("document.querySelector('dialog.zoom').open")
    assert browser.run("document.querySelector('dialog .status').textContent").startswith(
        f"Channel {order[2]} of 3"
    )
    browser.press("ArrowLeft")
    assert browser.run("document.querySelector('dialog .status').textContent").startswith(
        f"Channel {order[1]} of 3"
    )
    assert complaints(browser) == []
    browser.press("Escape")
    browser.until("!document.querySelector('dialog.zoom').open")
    assert browser.run("document.activeElement.className") == "sheet"


def test_a_sheet_is_read_by_the_pointer(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-layers")
    sheet = "[...document.querySelectorAll('#view-layers [data-sheet]')].find((f) => f.textContent.includes('convolution'))"
    browser.run(f"{sheet}.querySelector('.sheet').scrollIntoView({{block: 'center'}})")
    box = browser.run(
        f"(({{x, y, width, height}}) => [x, y, width, height])({sheet}.querySelector('.sheet').getBoundingClientRect())"
    )
    found = []
    for third in (0.1, 0.5, 0.9):
        browser.call(
            "Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + third * box[2], y=box[1] + box[3] / 3
        )
        found.append(browser.run(f"{sheet}.querySelector('.status').textContent").split(",")[0])
    assert found[1:] == ["Channel 1 of 3", "Channel 2 of 3"]


def test_time_runs_under_the_slider(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-compare")
    shown = "[...document.querySelectorAll('.seen')].filter((s) => s.offsetParent).map((s) => s.querySelector('.status').textContent)"
    assert browser.run(shown) == ["epoch 30"]
    browser.run("document.querySelector('[data-key=moment]').focus()")
    browser.press("ArrowLeft")
    assert browser.run(shown) == ["epoch 15"]
    assert (
        browser.run("document.querySelector('[data-key=moment]').getAttribute('aria-valuetext')")
        == "epoch 15"
    )
    browser.run("document.querySelector('[data-play]').click()")
    assert browser.run(shown) == ["epoch 1"]
    browser.until("document.querySelector('[data-output=moment]').textContent === 'epoch 30'")


def test_the_opacity_of_a_map_follows_its_slider(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-compare")
    opacity = "getComputedStyle([...document.querySelectorAll('#view-compare .map')].find((m) => m.offsetParent)).opacity"
    assert browser.run(opacity) == "0.6"
    browser.run("document.querySelector('#view-compare [data-opacity]').focus()")
    browser.press("ArrowLeft")
    assert browser.run(opacity) == "0.59"


def test_a_table_sorts_by_number_and_back(browser: Chrome, report: Path, tmp_path: Path) -> None:
    table = """<table data-sortable><thead><tr><th>Name</th><th>Value</th></tr></thead><tbody>
      <tr><td>b</td><td>10.5%</td></tr><tr><td>a</td><td>9%</td></tr><tr><td>c</td><td>\u2013</td></tr><tr><td>d</td><td>\u22121</td></tr>
      </tbody></table>"""
    page = report.with_name("table.html")
    page.write_text(report.read_text().replace('<h2 class="hidden">', table + '<h2 class="hidden">', 1))
    browser.open(page)
    names = "[...document.querySelectorAll('table[data-sortable] tbody tr')].slice(0, 4).map((r) => r.cells[0].textContent).join('')"
    press = "document.querySelectorAll('table[data-sortable] thead button')[{}].click()"
    for column, order in (
        (1, "badc"),
        (1, "dabc"),
        (0, "dcba"),
        (0, "abcd"),
    ):  # what has no value stands last
        browser.run(press.format(column))
        assert browser.run(names) == order

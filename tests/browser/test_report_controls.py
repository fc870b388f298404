"""The controls of a page, by mouse and by keyboard."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from chrome import Chrome
from page_checks import find_violations, list_views

FOCUS = """(() => {
  const element = document.activeElement;
  if (element === document.body || element.dataset.visited) return null;
  element.dataset.visited = "yes";
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  return {
    text: (element.getAttribute("aria-label") || element.textContent).trim(),
    hash: element.hash || "",
    hasRing: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
    isVisible: box.width > 0 && box.height > 0,
  };
})()"""
COUNT_FOCUSABLE = """[...document.querySelectorAll("a[href], button, summary, select, input, [tabindex='0']")]
  .filter((element) => element.checkVisibility() && element.tabIndex >= 0 && !element.disabled)
  .filter((element) => !(element.type === "radio" && !element.checked)).length"""
SHOWN = """[...document.querySelectorAll('.predictions figure')]
  .filter((figure) => figure.offsetParent).map((figure) => figure.className)"""
BASELINE = "majority-class baseline"
# Boxes of the texts that plots draw, and how many coloured pixels of lines they cover.
RECORD_TEXTS = """(() => {
  window.labels = [];
  const { strokeText } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.strokeText = function (text, x, y) {
    const { width } = this.measureText(text);
    const { data } = this.getImageData(x, y - 9, width, 9); // before the text and its outline cover the lines
    let covered = 0;
    for (let i = 0; i < data.length; i += 4) {
      const channels = [data[i], data[i + 1], data[i + 2]];
      if (data[i + 3] > 200 && Math.max(...channels) - Math.min(...channels) > 60) covered += 1;
    }
    labels.push({ text, left: x, right: x + width, top: y - 9, bottom: y, covered });
    strokeText.call(this, text, x, y);
  };
})();"""
PLOTS_ARE_DRAWN = "document.querySelectorAll('.uplot canvas').length === 2"
GET_BOX = """(() => {{
  const box = {}.getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
}})()"""
LAST_ROW = """[...document.querySelectorAll('.plot tbody tr:last-child')[0].cells]
  .slice(1).map((cell) => cell.textContent)"""
COLOURED_SHARE = """(() => {
  const canvas = document.querySelector('.uplot canvas');
  const {width, height} = canvas;
  const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
  const isColoured = (i) => {
    const rgb = pixels.slice(i, i + 3);
    return pixels[i + 3] > 128 && Math.max(...rgb) - Math.min(...rgb) > 40;
  };
  let columns = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if (isColoured(4 * (y * width + x))) { columns++; break; }
    }
  }
  return columns / document.querySelector('.u-over').offsetWidth / devicePixelRatio;
})()"""
SHEET = """[...document.querySelectorAll('#view-layers [data-sheet]')]
  .find((figure) => figure.textContent.includes('convolution'))"""


def press_tab_through(browser: Chrome) -> list[dict[str, object]]:
    """Presses Tab from the first element of the page until the focus leaves it; returns what it focuses."""
    visited = []
    browser.press("Tab")  # makes the browser show the focus ring
    browser.run("document.querySelector('a').focus()")
    for _ in range(400):
        element = browser.run(FOCUS)
        if element is None:
            return visited
        visited.append(element)
        browser.press("Tab")
    raise AssertionError("Tab never leaves the page")


def test_tab_reaches_everything_and_shows_the_focus(browser: Chrome, report: Path) -> None:
    for view in list_views(browser, report):
        browser.open(report, view)
        visited = press_tab_through(browser)
        assert len(visited) == browser.run(COUNT_FOCUSABLE), view
        assert all(element["hasRing"] and element["isVisible"] for element in visited), view
        assert visited[0]["text"] == "Skip to content"
        assert [element["hash"] for element in visited[1:3]] == ["#view-overview", "#view-data"]


def test_the_skip_link_leads_to_the_content_and_keeps_the_view(browser: Chrome, report: Path) -> None:
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
    assert browser.run("document.title").startswith("Predictions · tiny on tiny (dim_or_bright)")
    browser.run("history.back()")
    browser.until("!document.querySelector('#view-overview').hidden")


def test_a_link_to_a_section_opens_its_view(browser: Chrome, report: Path) -> None:
    browser.open(report, "#rejected")
    assert not browser.run("document.querySelector('#view-data').hidden")


TABS_AND_HEADING = """(() => {
    const tabs = document.querySelector("nav.views").getBoundingClientRect();
    const heading = document.querySelector("#ID h2").getBoundingClientRect();
    return {top: tabs.top, bottom: tabs.bottom, heading: heading.top};
})()"""


@pytest.mark.parametrize("target", ["settings", "view-layers"])
def test_the_tabs_stay_in_view(browser: Chrome, report: Path, target: str) -> None:
    browser.open(report, f"#{target}")
    positions = browser.run(TABS_AND_HEADING.replace("ID", target))
    assert positions["heading"] >= positions["bottom"]  # the tabs do not cover what the link leads to
    browser.run("scrollTo(0, 1e6)")
    assert browser.run(TABS_AND_HEADING.replace("ID", target))["top"] == pytest.approx(0, abs=0.5)


def test_predictions_are_filtered(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-predictions")
    assert browser.run(SHOWN) == ["incorrect", *["correct"] * 5]
    browser.run("document.querySelector('[data-key=kind]').focus()")
    browser.press("ArrowRight")
    assert browser.run(SHOWN) == ["incorrect"]
    browser.press("ArrowRight")
    assert browser.run(SHOWN) == ["correct"] * 5
    browser.press("ArrowRight")
    assert len(browser.run(SHOWN)) == 6


def test_bars_are_as_long_as_the_probabilities(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-predictions")
    shares = "[+b.dataset.share, b.offsetWidth / b.parentElement.offsetWidth]"
    lengths = browser.run(f"[...document.querySelectorAll('#predictions [data-share]')].map((b) => {shares})")
    assert len(lengths) == 6 * 2
    assert all(abs(share - length) < 0.02 for share, length in lengths)


def test_a_plot_shows_the_values_under_the_pointer(browser: Chrome, report: Path) -> None:
    browser.open(report)
    browser.until(PLOTS_ARE_DRAWN)
    browser.run("document.querySelector('.u-over').scrollIntoView({block: 'center'})")
    x, y, width, height = browser.run(GET_BOX.format("document.querySelector('.u-over')"))
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + width - 2, y=y + height / 2)
    browser.until("document.querySelector('.readout').textContent !== ''")
    readout = browser.run("document.querySelector('.readout').textContent")
    training, validation = [float(text.removesuffix("%")) for text in browser.run(LAST_ROW)[:2]]
    assert readout == f"epoch 30: training {training:.1f}%, validation {validation:.1f}%"


def write_plot(report: Path, values: list[float | None], **options: object) -> Path:
    """Writes a copy of the report with other values in every line of its first plot, and other options."""
    tag = '<script type="application/json">'
    before, _, rest = report.read_text().partition(tag)
    data, _, after = rest.partition("</script>")
    plot = json.loads(data)
    plot["x"] = [n + 1.0 for n in range(len(values))]
    plot |= {"marks": [], "levels": [], "shade": False, **options}
    plot["lines"] = [line | {"values": values} for line in plot["lines"]]
    page = report.with_name("other.html")
    page.write_text(f"{before}{tag}{json.dumps(plot)}</script>{after}")
    return page


@pytest.mark.parametrize(
    "values", [[1.0, 1.0, 0.9999997], [0.0, 0.0, 0.0], [0.5, None, 0.5], [None, 3e-9, None]]
)
def test_a_flat_line_is_drawn(browser: Chrome, report: Path, values: list[float | None]) -> None:
    browser.open(write_plot(report, values))
    browser.until(PLOTS_ARE_DRAWN)
    assert browser.errors == []


def test_long_labels_of_an_axis_are_not_cut_off(browser: Chrome, report: Path) -> None:
    """Nothing is drawn at the left edge of the canvas."""
    browser.open(write_plot(report, [0.00025, 0.0005, 0.00075], percent=False))
    browser.until(PLOTS_ARE_DRAWN)
    edge = """(() => {
      const canvas = document.querySelector('.uplot canvas');
      return Math.max(...canvas.getContext('2d').getImageData(0, 0, 2, canvas.height).data);
    })()"""
    assert browser.run(edge) == 0


def test_a_line_connects_the_evaluated_epochs(browser: Chrome, report: Path) -> None:
    """Of 31 epochs every fifth is evaluated: the line covers the plot from the fifth to the thirtieth."""
    browser.open(write_plot(report, [n / 40 if n % 5 == 0 and n else None for n in range(1, 32)]))
    browser.until(PLOTS_ARE_DRAWN)
    assert browser.run(COLOURED_SHARE) == pytest.approx(25 / 30, abs=0.03)


@pytest.mark.parametrize(
    "values",
    [
        [0.5 + 0.48 * (n / 30) ** 0.5 - 0.12 * (n == 18) for n in range(1, 31)],
        [0.95 if n == 20 else 0.6 for n in range(1, 31)],
    ],
    ids=["rising", "spike"],
)
def test_labels_of_a_plot_overlap_neither_each_other_nor_a_line(
    browser: Chrome, report: Path, values: list[float]
) -> None:
    """On a phone, next to the mark there is only the line, and the baseline below it is labelled too."""
    mark = [24, "best epoch 24, gap +15.7 points"]
    page = write_plot(report, values, marks=[mark], levels=[[0.5, "majority-class baseline"]])
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=RECORD_TEXTS)
    browser.open(page, width=390)
    browser.until(PLOTS_ARE_DRAWN)
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **script)
    boxes = [label for label in browser.run("labels") if label["text"] in (*mark[1].split(", "), BASELINE)]
    assert len(boxes) == 3
    for one, other in itertools.combinations(boxes, 2):
        is_apart = one["right"] < other["left"] or other["right"] < one["left"]
        assert is_apart or one["bottom"] <= other["top"] or other["bottom"] <= one["top"]
    assert [box["text"] for box in boxes if box["text"] != BASELINE and box["covered"]] == []


@pytest.mark.parametrize("old", [1280, 375])
def test_a_plot_follows_the_width_of_the_window(browser: Chrome, report: Path, old: int) -> None:
    browser.open(report, width=old)
    browser.until("document.querySelector('.uplot canvas')")
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=700, height=900, deviceScaleFactor=1, mobile=False
    )
    canvas_width = "Math.floor(document.querySelector('.canvas').clientWidth)"
    browser.until(f"document.querySelector('.uplot').offsetWidth === {canvas_width}")
    assert browser.run("document.documentElement.scrollWidth <= 700")


TICK_WIDTHS = """(names => {
    const context = document.createElement("canvas").getContext("2d");
    context.font = "12px system-ui, sans-serif";
    return Math.max(...names.map((name) => context.measureText(shorten(name)).width));
})(NAMES)"""


@pytest.mark.parametrize("width", [340, 900])
def test_names_of_many_layers_do_not_overlap(browser: Chrome, report: Path, width: int) -> None:
    browser.open(report)
    names = json.dumps([f"efficientnet/block{n}a_expand_convolution" for n in range(200)] + ["logits"])
    space = browser.run(f"tickSpace({{ticks: {names}}}, {width}).space")
    assert browser.run(TICK_WIDTHS.replace("NAMES", names)) <= space <= width / 2
    assert browser.run("shorten('logits')") == "logits"
    assert browser.run("shorten('efficientnet/block1a_expand')") == "\u2026et/block1a_expand"


def test_a_sheet_is_read_sorted_and_enlarged_by_keyboard(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-layers")
    status = f"{SHEET}.querySelector('.status').textContent"
    browser.run(f"{SHEET}.querySelector('.sheet').focus()")
    texts = [browser.run(status)]
    for _ in range(3):  # one more than there are channels
        browser.press("ArrowRight")
        texts.append(browser.run(status))
    assert [text.split(",")[0] for text in texts] == [f"Channel {n} of 3" for n in (0, 1, 2, 2)]
    assert all(text.endswith("inactive") for text in texts)  # a grey image is the same everywhere
    activation = [float(text.split("activation ")[1].split(",")[0]) for text in texts[:3]]

    browser.run("document.querySelector('#view-layers [data-sort-sheets]').click()")
    # The sheet is drawn anew once its picture is decoded, and only then starts at the first channel.
    browser.until(f"!{SHEET}.querySelector('canvas').hidden")
    browser.run(f"{SHEET}.querySelector('.sheet').focus()")
    order = []
    for _ in range(3):
        order.append(int(browser.run(status).split()[1]))
        browser.press("ArrowRight")
    assert order == sorted(range(3), key=lambda channel: -activation[channel])

    browser.press("Enter")
    browser.until("document.querySelector('dialog.zoom').open")
    zoomed = "document.querySelector('dialog .status').textContent"
    assert browser.run(zoomed).startswith(f"Channel {order[2]} of 3")
    browser.press("ArrowLeft")
    assert browser.run(zoomed).startswith(f"Channel {order[1]} of 3")
    assert find_violations(browser) == []
    browser.press("Escape")
    browser.until("!document.querySelector('dialog.zoom').open")
    assert browser.run("document.activeElement.className") == "sheet"


def test_a_sheet_shows_the_channel_under_the_pointer(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-layers")
    browser.run(f"{SHEET}.querySelector('.sheet').scrollIntoView({{block: 'center'}})")
    x, y, width, height = browser.run(GET_BOX.format(f"{SHEET}.querySelector('.sheet')"))
    channels = []
    for share in (0.1, 0.5, 0.9):
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + share * width, y=y + height / 3)
        channels.append(browser.run(f"{SHEET}.querySelector('.status').textContent").split(",")[0])
    assert channels[1:] == ["Channel 1 of 3", "Channel 2 of 3"]


def test_all_checkpoints_show_the_selected_image(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-compare")
    shown = """[...document.querySelectorAll('.checkpoint [data-when]')]
      .filter((view) => view.offsetParent).map((view) => view.dataset.when)"""
    count = browser.run("document.querySelectorAll('.checkpoint').length")
    assert count >= 3
    assert browser.run(shown) == ['{"image":"0"}'] * count
    browser.run("document.querySelectorAll('#view-compare [data-key=image]')[1].click()")
    assert browser.run(shown) == ['{"image":"1"}'] * count


def test_the_opacity_of_a_heatmap_follows_its_slider(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-compare")
    shown_map = "[...document.querySelectorAll('#view-compare .map')].find((m) => m.offsetParent)"
    opacity = f"getComputedStyle({shown_map}).opacity"
    assert browser.run(opacity) == "0.6"
    browser.run("document.querySelector('#view-compare [data-opacity]').focus()")
    browser.press("ArrowLeft")
    assert browser.run(opacity) == "0.59"


IMAGES_SHOWN = """[...document.querySelectorAll('#view-image .side-by-side')]
  .filter((row) => row.offsetParent)
  .map((row) => [...row.querySelectorAll('img')].filter((image) => image.offsetParent))
  .map((images) => images.map((image) => image.getAttribute('src')))"""
SELECTOR = "#view-image [data-key=image]"


def test_one_selector_switches_the_image_in_all_sections_of_a_view(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-image")
    assert browser.run(f"document.querySelectorAll('{SELECTOR}').length") == 4
    assert browser.run("document.querySelectorAll('#view-image .images').length") == 1
    first = browser.run(IMAGES_SHOWN)
    assert len(first) == 2  # heatmaps and saliency
    browser.run(f"document.querySelector('{SELECTOR}').focus()")
    browser.press("ArrowRight")
    second = browser.run(IMAGES_SHOWN)
    for before, after in zip(first, second, strict=True):
        photo, map_alone, photo_under_map, map_on_top = after
        assert photo == photo_under_map != before[0]
        assert map_alone == map_on_top
    assert second[0][0] == second[1][0]  # both sections show the same image
    thumbnail = f"document.querySelector('{SELECTOR}:checked + img').getAttribute('src')"
    assert second[0][0] == browser.run(thumbnail)


def test_class_and_method_apply_to_map_and_overlay(browser: Chrome, report: Path) -> None:
    browser.open(report, "#gradcam:image=1,class=1,method=layercam")
    assert not browser.run("document.querySelector('#view-image').hidden")
    photo, map_alone, photo_under_map, map_on_top = browser.run(IMAGES_SHOWN)[0]
    assert photo == photo_under_map
    assert map_alone == map_on_top
    alt = "[...document.querySelectorAll('#gradcam img')].filter((i) => i.offsetParent)[1].alt"
    assert browser.run(alt).startswith("LayerCAM of convolution for <script>bright</script>:")


def test_a_link_selects_an_image_and_ignores_values_that_do_not_exist(browser: Chrome, report: Path) -> None:
    browser.open(report, "#saliency:image=2")
    checked = f"document.querySelector('{SELECTOR}:checked').value"
    assert browser.run(checked) == "2"
    assert browser.run("scrollY") > 0  # it leads to the section
    browser.run("location.hash = '#saliency:image=99,method=nothing'")
    browser.until("location.hash.includes('99')")
    assert browser.run(checked) == "2"
    assert all(len(images) == 4 for images in browser.run(IMAGES_SHOWN))


def test_a_table_sorts_by_number_and_back(browser: Chrome, report: Path, tmp_path: Path) -> None:
    rows = [("b", "10.5%"), ("a", "9%"), ("c", "\u2013"), ("d", "\u22121")]
    head = "<thead><tr><th>Name</th><th>Value</th></tr></thead>"
    body = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    table = f"<table data-sortable>{head}<tbody>{body}</tbody></table>"
    page = report.with_name("table.html")
    page.write_text(report.read_text().replace('<h2 class="hidden">', table + '<h2 class="hidden">', 1))
    browser.open(page)
    names = """[...document.querySelectorAll('table[data-sortable] tbody tr')]
      .slice(0, 4).map((r) => r.cells[0].textContent).join('')"""
    press = "document.querySelectorAll('table[data-sortable] thead button')[{}].click()"
    # The row without a value comes last, whatever the direction.
    for column, order in ((1, "badc"), (1, "dabc"), (0, "dcba"), (0, "abcd")):
        browser.run(press.format(column))
        assert browser.run(names) == order

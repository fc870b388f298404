"""The views of the network and of its activations: from a layer to its activations, and finding layers."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest
from chrome import Chrome
from page_checks import find_broken_lines, find_broken_words, find_overlaps, find_violations
from section_pages import write_sections

from service.report.analysis.architecture import describe_architecture
from service.report.analysis.network import Network
from service.report.sections import architecture

LINK = "#architecture a[href='#layer-convolution']"
SHOWN_LAYERS = """[...document.querySelectorAll('#view-layers .layer')]
  .filter((layer) => layer.checkVisibility()).map((layer) => layer.id)"""
SHOWN_FIGURES = """[...document.querySelectorAll('#layer-convolution figure')]
  .map((figure) => figure.checkVisibility())"""


def search(browser: Chrome, text: str) -> None:
    """Types into the search field of the layers."""
    browser.run(f"""(() => {{
      const field = document.querySelector('[data-find-layer]');
      field.value = {text!r};
      field.dispatchEvent(new Event('input', {{bubbles: true}}));
    }})()""")


def test_a_block_opens_by_keyboard_and_its_layer_leads_to_its_activations(
    browser: Chrome, report: Path
) -> None:
    browser.open(report, "#view-network")
    link = f'document.querySelector("{LINK}")'
    assert not browser.run(f"{link}.checkVisibility()")
    browser.run(f"{link}.closest('details').querySelector('summary').focus()")
    browser.press("Enter")
    browser.until(f"{link}.checkVisibility()")
    assert find_violations(browser) == []
    browser.run(f"{link}.focus()")
    browser.press("Enter")
    browser.until("document.querySelector('#layer-convolution') !== null")  # its view is loaded
    assert browser.run("location.hash") == "#layer-convolution"
    top = browser.run("document.querySelector('#layer-convolution').getBoundingClientRect().top")
    assert 0 <= top < 400


def test_all_blocks_open_and_close_at_once(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-network")
    count = "document.querySelectorAll('.graph > ol > li > details[open]').length"
    press = "document.querySelector('[data-open-all]').click()"
    blocks = browser.run("document.querySelectorAll('.graph > ol > li').length")
    assert browser.run(f"{press}, {count}") == blocks > 1
    assert browser.run(f"{press}, {count}") == 0


def test_all_rows_of_the_graph_are_as_wide_as_the_page(browser: Chrome, report: Path) -> None:
    for width in (390, 1400):
        browser.open(report, "#view-network", width=width)
        browser.run("document.querySelectorAll('.graph details').forEach((box) => { box.open = true; })")
        assert browser.run("document.documentElement.scrollWidth") <= width
        edges = browser.run(
            "[...document.querySelectorAll('.graph > ol > li > details > summary')]"
            ".map((row) => row.getBoundingClientRect()).map((box) => [box.left, box.right])"
        )
        assert len({tuple(edge) for edge in edges}) == 1
        assert edges[0][0] >= 0


@pytest.fixture(scope="module")
def equal_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a network with three equal residual blocks between other layers."""
    inputs = keras.Input((112, 112, 3))
    x = keras.layers.Conv2D(256, 3, padding="same", name="stem")(inputs)
    for number in (1, 2, 3):
        y = keras.layers.Conv2D(256, 1, padding="same", name=f"block{number}_conv")(x)
        x = keras.layers.Add(name=f"block{number}_sum")([x, y])
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    network = Network(keras.Model(inputs, outputs), head="logits")
    section = architecture.build_section(describe_architecture(network), None)
    return write_sections(tmp_path_factory.mktemp("network") / "index.html", [section])


@pytest.mark.parametrize("width", [390, 1400])
def test_equal_blocks_are_one_row_that_opens(browser: Chrome, equal_blocks: Path, width: int) -> None:
    """The rows of its blocks lie below it, in the same columns."""
    browser.open(equal_blocks, width=width)
    shown = """[...document.querySelectorAll('.graph .row > summary')].filter((row) => row.checkVisibility())
      .map((row) => row.querySelector('b').textContent.replaceAll('\\u00a0', ' '))"""
    merged = "Residual block \N{MULTIPLICATION SIGN} 3"
    assert browser.run(shown) == ["Convolution", merged, "Classifier"]
    browser.run("document.querySelector('.graph .row:has(> ol) > summary').click()")
    assert browser.run(shown) == ["Convolution", merged, *["Residual block"] * 3, "Classifier"]
    edges = browser.run("""[...document.querySelectorAll('.graph .row > summary')].map((row) => {
      const boxes = [...row.querySelectorAll('.figure')].map((box) => box.getBoundingClientRect());
      return boxes.map((box) => [box.left, box.right]);
    })""")
    assert len(edges) == 6
    assert find_broken_lines(browser, ".figure:first-child .value") == []
    assert all(row == edges[0] for row in edges)
    assert find_overlaps(browser) == []
    assert find_violations(browser) == []


def test_layers_are_found_by_name_and_type(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-layers")
    everything = browser.run(SHOWN_LAYERS)
    assert len(everything) == 5
    search(browser, "CONV")
    assert browser.run(SHOWN_LAYERS) == ["layer-convolution"]
    assert browser.run("document.querySelector('#view-layers [data-count]').textContent") == "1 of 5 layers"
    links = "[...document.querySelectorAll('[data-jump] li')].filter((item) => item.checkVisibility()).length"
    assert browser.run(links) == 1
    search(browser, "pooling global")
    assert browser.run(SHOWN_LAYERS) == ["layer-pooling"]
    search(browser, "nothing")
    assert browser.run(SHOWN_LAYERS) == []
    search(browser, "")
    assert browser.run(SHOWN_LAYERS) == everything


def test_the_list_of_layers_lies_below_its_title(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-layers", width=1400)
    boxes = """['summary', 'nav'].map((name) => document.querySelector(`details[data-jump] > ${name}`))
      .map((element) => element.getBoundingClientRect()).map((box) => [box.left, box.top, box.bottom])"""
    title, names = browser.run(boxes)
    assert names[0] == title[0]
    assert names[1] >= title[2]


def test_one_selector_changes_the_image_of_all_layers(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-layers")
    assert browser.run(SHOWN_FIGURES) == [True, False]
    browser.run("document.querySelector('#view-layers [data-key=image][value=\"1\"]').click()")
    assert browser.run(SHOWN_FIGURES) == [False, True]


@pytest.mark.parametrize("width", [1400, 390])
def test_names_of_layers_are_broken_between_their_parts(browser: Chrome, tmp_path: Path, width: int) -> None:
    block = keras.Input((8, 8, 3))
    x = block
    for number in range(2):
        name = f"expanded_convolution_{number}_squeeze_excite_normalization"
        x = keras.layers.Conv2D(4, 3, padding="same", name=name)(x)
    backbone = keras.Model(block, x, name="MobileNetV3SmallBackbone")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(backbone(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    section = architecture.build_section(describe_architecture(Network(model)), None)
    browser.open(write_sections(tmp_path / "index.html", [section]), width=width)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    names = browser.run("[...document.querySelectorAll('.layers code')].map((name) => name.textContent)")
    assert "MobileNetV3SmallBackbone/expanded_convolution_1_squeeze_excite_normalization" in names
    assert find_broken_lines(browser, ".layers code") != []
    assert find_broken_words(browser, ".layers code") == []


def test_the_check_finds_broken_words(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-network")
    browser.run(
        "document.body.innerHTML = '<p style=\"width: 60px; overflow-wrap: anywhere\">long_normalization</p>'"
    )
    assert find_broken_words(browser, "p") == ["normalization"]

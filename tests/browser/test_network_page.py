"""The views of the network and of its activations: from a layer to its activations, and finding layers."""

from __future__ import annotations

from pathlib import Path

from chrome import Chrome
from page_checks import find_violations

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


def test_one_selector_changes_the_image_of_all_layers(browser: Chrome, report: Path) -> None:
    browser.open(report, "#view-layers")
    assert browser.run(SHOWN_FIGURES) == [True, False]
    browser.run("document.querySelector('#view-layers [data-key=image][value=\"1\"]').click()")
    assert browser.run(SHOWN_FIGURES) == [False, True]

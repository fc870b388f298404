"""Checks of an open page: its pictures, its width, and its accessibility."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chrome import Chrome

AXE = Path(__file__).with_name("axe.min.js")
INSPECT_PICTURES = """(async () => {
  const isShown = (image) => image.offsetParent || getComputedStyle(image).position === "fixed";
  const hasStatedSize = (image) =>
    image.naturalWidth === +image.getAttribute("width") &&
    image.naturalHeight === +image.getAttribute("height");
  const images = [...document.images].filter(isShown);
  images.forEach((image) => { image.loading = "eager"; });
  await Promise.allSettled(images.map((image) => image.decode()));
  return {
    images: images.length,
    wrong: images.filter((image) => !hasStatedSize(image)).length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
})()"""
RUN_AXE = """axe.run(document, {resultTypes: ["violations"]}).then(({violations}) =>
  violations.map(({id, nodes}) => ({id, nodes: nodes.map((node) => node.html.slice(0, 160))}))
)"""


def list_views(browser: Chrome, page: Path) -> list[str]:
    """Opens a page and returns the addresses of its views, such as `#view-data`."""
    browser.open(page)
    names = browser.run("[...document.querySelectorAll('[data-view]')].map((view) => view.id)")
    return [f"#{name}" for name in names]


def inspect_pictures(browser: Chrome) -> dict[str, int]:
    """Inspects the pictures that are shown.

    Returns:
        `images`: their number; `wrong`: how many do not decode to the size that the page states; `overflow`:
        how far the page is wider than the window, in pixels.
    """
    return dict(browser.run(INSPECT_PICTURES))


def find_violations(browser: Chrome) -> list[str]:
    """Returns the violations that axe finds in the page as it is shown, colour contrast included."""
    browser.run(AXE.read_text() + "; 0")
    violations: list[dict[str, Any]] = browser.run(RUN_AXE)
    return [f"{violation['id']}: {node}" for violation in violations for node in violation["nodes"]]

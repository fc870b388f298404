"""What tests ask of an open page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chrome import Chrome

AXE = Path(__file__).with_name("axe.min.js")
DECODED = """(async () => {
  const images = [...document.images].filter((image) => image.offsetParent || getComputedStyle(image).position === "fixed");
  images.forEach((image) => { image.loading = "eager"; });
  await Promise.allSettled(images.map((image) => image.decode()));
  return {
    images: images.length,
    wrong: images.filter((i) => i.naturalWidth !== +i.getAttribute("width") || i.naturalHeight !== +i.getAttribute("height")).length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
})()"""


def views(browser: Chrome, page: Path) -> list[str]:
    """The addresses of the views of a page."""
    browser.open(page)
    return [
        f"#{name}"
        for name in browser.run("[...document.querySelectorAll('[data-view]')].map((view) => view.id)")
    ]


def pictures(browser: Chrome) -> dict[str, int]:
    """How many pictures the view shows, how many are not what the page says, and how far anything sticks out, in pixels."""
    return dict(browser.run(DECODED))


def complaints(browser: Chrome) -> list[str]:
    """What axe finds wrong with the page as it stands, colour contrast included."""
    browser.run(AXE.read_text() + "; 0")
    nodes = "v.nodes.map((n) => n.html.slice(0, 160))"
    found: list[dict[str, Any]] = browser.run(
        f"axe.run(document, {{resultTypes: ['violations']}}).then((r) => r.violations.map((v) => ({{id: v.id, nodes: {nodes}}})))"
    )
    return [f"{entry['id']}: {node}" for entry in found for node in entry["nodes"]]

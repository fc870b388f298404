"""Checks of an open page: its pictures, its width, and its accessibility."""

from __future__ import annotations

from collections.abc import Sequence
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
# Lines of text that overlap, clipped as their boxes clip them; those of sticky boxes may cover others.
FIND_OVERLAPS = """(() => {
  const isHidden = ({ clipPath, position }) =>
    clipPath.startsWith("inset(50") || ["sticky", "fixed"].includes(position);
  const lines = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = texts.nextNode());) {
    const owner = text.parentElement;
    if (!text.data.trim() || !owner.checkVisibility()) continue;
    if (owner.matches("script, style, option, .skip")) continue;
    const clip = { left: -Infinity, right: Infinity, top: -Infinity, bottom: Infinity };
    let box = owner;
    for (; box && !isHidden(getComputedStyle(box)); box = box.parentElement) {
      if (getComputedStyle(box).overflowX === "visible") continue;
      const edge = box.getBoundingClientRect();
      clip.left = Math.max(clip.left, edge.left);
      clip.right = Math.min(clip.right, edge.right);
      clip.top = Math.max(clip.top, edge.top);
      clip.bottom = Math.min(clip.bottom, edge.bottom);
    }
    if (box) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const { left, right, top, bottom, height } of range.getClientRects()) {
      const leading = height * 0.2; // of a line, which letters do not reach
      lines.push({
        text,
        left: Math.max(left, clip.left),
        right: Math.min(right, clip.right),
        top: Math.max(top + leading, clip.top),
        bottom: Math.min(bottom - leading, clip.bottom),
      });
    }
  }
  lines.sort((a, b) => a.top - b.top);
  const found = [];
  lines.forEach((a, at) => {
    for (let next = at + 1; next < lines.length && lines[next].top < a.bottom; next += 1) {
      const b = lines[next];
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - b.top;
      if (a.text === b.text || width <= 2 || height <= 2) continue;
      found.push(`${a.text.data.trim()} / ${b.text.data.trim()}`);
    }
  });
  return found;
})()"""
RUN_AXE = """((rules) => axe.run(document, {
  resultTypes: ["violations"], ...(rules.length ? {runOnly: rules} : {}),
}).then(({violations}) =>
  violations.map(({id, nodes}) => ({id, nodes: nodes.map((node) => node.html.slice(0, 160))}))
))"""


# Texts that are broken into several lines, of the elements that a selector finds.
FIND_BROKEN_LINES = """((selector) => [...document.querySelectorAll(selector)].filter((element) => {
  const range = document.createRange();
  range.selectNodeContents(element);
  return new Set([...range.getClientRects()].map((line) => Math.round(line.top))).size > 1;
}).map((element) => element.textContent.trim()))"""

# Words that are broken into several lines, of the elements that a selector finds.
FIND_BROKEN_WORDS = """((selector) => [...document.querySelectorAll(selector)].flatMap((element) => {
  if (!element.checkVisibility()) return [];
  const found = [];
  const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  for (let text; (text = texts.nextNode());) {
    for (const { index, 0: word } of text.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
      const range = document.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + word.length);
      if (new Set([...range.getClientRects()].map((line) => Math.round(line.top))).size > 1) found.push(word);
    }
  }
  return found;
}))"""


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


def find_overlaps(browser: Chrome) -> list[str]:
    """Returns the pairs of texts that overlap in the page as it is shown."""
    return list(browser.run(FIND_OVERLAPS))


def find_broken_lines(browser: Chrome, selector: str) -> list[str]:
    """Returns the texts, of the elements that a selector finds, that are broken into several lines."""
    return list(browser.run(f"{FIND_BROKEN_LINES}({selector!r})"))


def find_broken_words(browser: Chrome, selector: str) -> list[str]:
    """Returns the words that are broken into several lines, of the elements that a selector finds."""
    return list(browser.run(f"{FIND_BROKEN_WORDS}({selector!r})"))


def find_violations(browser: Chrome, rules: Sequence[str] = ()) -> list[str]:
    """Returns the violations that axe finds in the page as it is shown, of some rules or of all."""
    browser.run(AXE.read_text() + "; 0")
    violations: list[dict[str, Any]] = browser.run(f"{RUN_AXE}({list(rules)})")
    return [f"{violation['id']}: {node}" for violation in violations for node in violation["nodes"]]

"""Formats of fragment identifiers; those of numbers are tested with the pages that show them."""

from __future__ import annotations

import re
from pathlib import Path

import service.report
from service.report.drawing.formatting import anchor, decimal, sizes


def test_the_anchor_of_a_layer_is_legible_and_has_no_colon_or_space():
    assert anchor("block1_conv1") == "block1_conv1"
    assert anchor("efficientnetv2-b0/stem_conv") == "efficientnetv2-b0/stem_conv"
    assert re.fullmatch(r"[!-9;-~]+", anchor("Faltung ä:2"))


def test_different_names_have_different_anchors():
    names = ["a/b", "a-b", "a_b", "a b", "a:b", "a.b", "a.3a.b", "ab", "a.20.b"]
    assert len({anchor(name) for name in names}) == len(names)


def test_decimals_have_a_minus_sign():
    assert [decimal(value) for value in (1.0, -0.194)] == ["1.00", "\N{MINUS SIGN}0.19"]


def test_lines_are_not_broken_within_a_size():
    assert sizes((28, 28, 3)) == "28\u00a0\u00d7\u00a028\u00a0\u00d7\u00a03"
    html = Path(service.report.__file__).parent / "html"
    assert [path.name for path in sorted(html.glob("*.html")) if " \u00d7 " in path.read_text()] == []

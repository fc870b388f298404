"""Damaged files of pages: huge ones are not read, and what cannot be replaced replaces nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from service.report.pages.index import write_index
from service.report.publish import (
    KIND,
    format_manifest,
    parse_manifest,
    publish,
    read_kind,
    read_page_manifest,
    write_page_manifest,
)

HUGE_BYTES = 1 << 36  # 64 GiB without a block on disk


def test_a_huge_manifest_counts_as_damaged(tmp_path: Path) -> None:
    write_page_manifest(tmp_path, {"kind": KIND})
    assert read_page_manifest(tmp_path) == {"kind": KIND}
    os.truncate(tmp_path / "manifest.json", HUGE_BYTES)
    assert read_page_manifest(tmp_path) == {}
    assert read_kind(tmp_path) == ""


def test_a_flipped_bit_leaves_the_content_of_a_manifest_or_none(tmp_path: Path) -> None:
    content = {"kind": KIND, "figures": {"summary": {"accuracy": 0.75, "gap": float("nan")}}, "about": {}}
    text = format_manifest(content).encode()
    whole = {**content, "figures": {"summary": {"accuracy": 0.75, "gap": None}}}
    assert parse_manifest(text) == whole
    first_of_digest = text.rindex(b"sha256") - 1
    for place in range(first_of_digest):
        damaged = bytearray(text)
        damaged[place] ^= 1
        assert parse_manifest(bytes(damaged)) == {}, place
    for place in range(first_of_digest, len(text)):
        damaged = bytearray(text)
        damaged[place] ^= 1
        assert whole.items() <= parse_manifest(bytes(damaged)).items() or not parse_manifest(bytes(damaged))


def test_a_huge_index_is_not_replaced(tmp_path: Path) -> None:
    page = write_index(tmp_path, {}, {})
    write_index(tmp_path, {}, {})
    os.truncate(page, HUGE_BYTES)
    with pytest.raises(ConfigError, match="no other page in place of the index"):
        write_index(tmp_path, {}, {})
    assert page.stat().st_size == HUGE_BYTES


@pytest.mark.parametrize("name", ["index.html", "manifest.json"])
def test_a_directory_in_place_of_a_file_is_found_before_anything_is_replaced(
    tmp_path: Path, name: str
) -> None:
    out = tmp_path / "report"
    for text in ("old", "new"):
        with publish(out) as directory:
            (directory / "index.html").write_text(f'<meta name="generator" content="glassbox report">{text}')
            write_page_manifest(directory, {"kind": KIND})
    (out / name).unlink()
    (out / name).mkdir()
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=rf"{name} \(a directory\)"), publish(out):
        pass
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert list(tmp_path.iterdir()) == [out]

"""Files of pages that are too large to be what they should be are not read into memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from service.report.pages.index import write_index
from service.report.publish import KIND, read_kind, read_page_manifest, write_page_manifest

HUGE_BYTES = 1 << 36  # 64 GiB without a block on disk


def test_a_huge_manifest_counts_as_damaged(tmp_path: Path) -> None:
    write_page_manifest(tmp_path, {"kind": KIND})
    assert read_page_manifest(tmp_path) == {"kind": KIND}
    os.truncate(tmp_path / "manifest.json", HUGE_BYTES)
    assert read_page_manifest(tmp_path) == {}
    assert read_kind(tmp_path) == ""


def test_a_huge_index_is_not_replaced(tmp_path: Path) -> None:
    page = write_index(tmp_path, {}, {})
    write_index(tmp_path, {}, {})
    os.truncate(page, HUGE_BYTES)
    with pytest.raises(ConfigError, match="no other page in place of the index"):
        write_index(tmp_path, {}, {})
    assert page.stat().st_size == HUGE_BYTES

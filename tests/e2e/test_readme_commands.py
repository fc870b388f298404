"""Every command in the READMEs is run through a real shell, as a reader would.

A document's ```python blocks that begin with `# NAME.py` become files; its other ```python blocks and its
```sh blocks are run in order, in one folder per document that holds `photos/` with two classes. A block that
cannot be run here follows a comment `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from shard_samples import encode_png

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "pipelines/README.md",
    "pipelines/remote/README.md",
    "service/export/README.md",
    "service/training/README.md",
    "service/report/README.md",
    "tests/README.md",
)
FAST_DOCUMENTS = ("README.md", "service/export/README.md", "tests/README.md")
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\s*)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)
FILE_NAME = re.compile(r"# (\w+\.(?:py|yaml))\n")
LANGUAGES = {"sh", "python", "yaml", "toml", "html"}
PHOTOS = 16  # per class
SECONDS = 240


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    code: str
    reason: str | None


def read_blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    return [Block(m["language"], m["code"], m["reason"]) for m in BLOCK.finditer(text)]


def write_photos(folder: Path) -> None:
    """Noise, darker in one class than in the other."""
    generator = np.random.default_rng(0)
    for low, name in ((0, "cats"), (128, "dogs")):
        (folder / name).mkdir(parents=True)
        for number in range(PHOTOS):
            pixels = generator.integers(low, low + 128, (48, 64, 3)).astype(np.uint8)
            (folder / name / f"{number}.png").write_bytes(encode_png(pixels))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_have_a_known_language(document: str) -> None:
    blocks = read_blocks(document)
    assert len(blocks) == len(re.findall(r"^```\w+$", (ROOT / document).read_text(), re.M))
    assert {block.language for block in blocks} <= LANGUAGES


@pytest.mark.parametrize(
    "document",
    [pytest.param(name, marks=() if name in FAST_DOCUMENTS else pytest.mark.slow) for name in DOCUMENTS],
)
def test_commands_of_a_document_run(document: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    environment["GLASSBOX_CACHE"] = str(tmp_path / "cache")
    try:
        run_blocks(document, tmp_path, environment)
    finally:
        for path in tmp_path.glob("*.pid"):  # of servers that the document leaves running
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def run_blocks(document: str, folder: Path, environment: dict[str, str]) -> None:
    for block in read_blocks(document):
        file = FILE_NAME.match(block.code)
        if file and block.language in ("python", "yaml"):
            (folder / file[1]).write_text(block.code)
        elif block.reason is None and block.language in ("python", "sh"):
            program = ["bash", "-eu", "-c"] if block.language == "sh" else [sys.executable, "-c"]
            result = subprocess.run(
                [*program, block.code],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            assert result.returncode == 0, f"{block.code}\n{result.stdout}\n{result.stderr}"

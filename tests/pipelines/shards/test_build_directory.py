"""Unfinished builds: a damaged description is refused in one sentence, and nothing is removed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.shards.build_directory import lock_build_directory
from pipelines.shards.markers import get_marker_name
from pipelines.shards.output import WORK_FOLDER
from pipelines.shards.plan import plan_shards
from pipelines.spec import ShardSpec

DIGEST = "0123456789abcdef" * 4
ABOUT = {"the options": "a"}
HUGE_BYTES = 1 << 36  # without a block on disk


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory with a shard and its marker, whose build was killed."""
    with lock_build_directory(tmp_path / "set", DIGEST, ABOUT) as directory:
        (directory.work / "train-00000-of-00002.arrow.done").write_text("{}")
    (tmp_path / "set" / "train-00000-of-00002.arrow").write_bytes(b"shard")
    return tmp_path / "set"


def list_files(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def enlarge(path: Path) -> None:
    os.truncate(path, HUGE_BYTES)


@pytest.mark.parametrize(
    "damage",
    [
        write(""),
        write("null"),
        write("[3]"),
        write("{}"),
        write(json.dumps({"digest": 3, "about": ABOUT, "made_directory": True})),
        write(json.dumps({"digest": DIGEST, "about": {"the options": [1]}, "made_directory": True})),
        write(json.dumps({"digest": DIGEST, "about": ABOUT, "made_directory": "perhaps"})),
        write("[" * 100_000),
        make_directory,
        make_unreadable,
        enlarge,
    ],
)
def test_a_damaged_description_is_refused_and_nothing_is_removed(
    out: Path, damage: Callable[[Path], object]
) -> None:
    description = out / WORK_FOLDER / "build.json"
    before = list_files(out)
    damage(description)
    with (
        pytest.raises(ConfigError, match=r"description of the unfinished build.*build\.json \(damaged\)"),
        lock_build_directory(out, DIGEST, ABOUT),
    ):
        pass
    assert set(before) - set(list_files(out)) <= {f"{WORK_FOLDER}/build.json"}


def test_an_undamaged_description_is_resumed_or_compared(out: Path) -> None:
    with lock_build_directory(out, DIGEST, ABOUT) as directory:
        assert directory.made_directory
    with (
        pytest.raises(ConfigError, match="differs: the options"),
        lock_build_directory(out, DIGEST[::-1], {"the options": "b"}),
    ):
        pass


@pytest.mark.parametrize("damage", [write(""), write("null"), make_directory, make_unreadable, enlarge])
def test_a_shard_with_a_damaged_marker_is_not_complete(out: Path, damage: Callable[[Path], object]) -> None:
    plan = plan_shards({"train": 4}, ShardSpec(shard_rows=2))
    with lock_build_directory(out, DIGEST, ABOUT) as directory:
        for planned_shard in plan:
            marker = directory.work / get_marker_name(planned_shard.file)
            marker.write_text("{}")
            damage(marker)
        assert list(directory.load_results(plan)) == []

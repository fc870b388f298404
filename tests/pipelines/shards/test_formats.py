"""Both file formats: the same rows, whole files, and no unnoticed damage."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import DataError
from pipelines.records import Record
from pipelines.shards import arrow
from pipelines.shards.files import LocalFiles
from pipelines.shards.formats import ShardRows, flush_file, open_shard, write_shard
from pipelines.shards.manifest import ShardFile

ROOT = Path(__file__).resolve().parents[3]
FORMATS = ("arrow", "tfrecord")
RECORDS = [
    Record(
        bytes([200 + row]) * (20 + row),
        row % 3,
        f"ä {row}.png",
        (1, 2, row + 1),
        None if row % 2 else (0.0, 0.25, 0.5, 1.0),
    )
    for row in range(7)
]


def list_records(rows: ShardRows) -> list[Record]:
    return [
        Record(
            rows.read_image(row),
            int(rows.labels[row]),
            rows.id(row),
            tuple(rows.shapes[row].tolist()),
            rows.bbox(row),
        )
        for row in range(rows.rows)
    ]


def read_records(directory: Path, shard: ShardFile) -> list[Record]:
    with open_shard(LocalFiles(directory), shard) as rows:
        return list_records(rows)


def list_files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("batch_bytes", [1, 50, 2**20])
@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_are_read_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, batch_bytes: int
) -> None:
    monkeypatch.setattr(arrow, "BATCH_BYTES", batch_bytes)
    shard = write_shard(tmp_path, f"s.{suffix}", iter(RECORDS))
    with open_shard(LocalFiles(tmp_path), shard) as rows:
        assert list_records(rows) == RECORDS
        assert (rows.rows, shard.rows) == (7, 7)
        assert (rows.labels.dtype, rows.checksums.dtype, rows.shapes.dtype, rows.shapes.shape) == (
            np.int32,
            np.uint64,
            np.int32,
            (7, 3),
        )
        assert all(rows.is_sound(row, rows.read_image(row)) for row in range(7))


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_manifest_entry_describes_every_file(tmp_path: Path, suffix: str) -> None:
    shard = write_shard(tmp_path, f"a.b.{suffix}", RECORDS)
    entries = [shard, shard.index] if shard.index else [shard]
    assert list_files(tmp_path) == sorted(entry.file for entry in entries)
    assert [entry.file for entry in entries] == {
        "arrow": ["a.b.arrow"],
        "tfrecord": ["a.b.tfrecord", "a.b.index.arrow"],
    }[suffix]
    for entry in entries:
        data = (tmp_path / entry.file).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_records_there_is_no_file(tmp_path: Path, suffix: str) -> None:
    shard = write_shard(tmp_path, f"s.{suffix}", iter(()))
    assert (shard.rows, shard.bytes, shard.index) == (0, 0, None)
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    old = write_shard(tmp_path, f"s.{suffix}", RECORDS[:2])

    def fail() -> Iterator[Record]:
        yield RECORDS[3]
        raise OSError("the source is gone")

    before = list_files(tmp_path)
    with pytest.raises(OSError, match="gone"):
        write_shard(tmp_path, f"s.{suffix}", fail())
    assert list_files(tmp_path) == before
    assert read_records(tmp_path, old) == RECORDS[:2]


@pytest.mark.parametrize("name", ["s.arrow", "s.tfrecord", "s.index.arrow"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "grown"])
def test_an_incomplete_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    shard = write_shard(tmp_path, "s.arrow" if name == "s.arrow" else "s.tfrecord", RECORDS)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes({"missing": b"", "truncated": whole[:-10], "grown": whole + b"\0"}[damage])
    if damage == "missing":
        path.unlink()
    received = {
        "missing": r" \(missing\)",
        "truncated": f": bytes={len(whole) - 10}",
        "grown": f": bytes={len(whole) + 1}",
    }[damage]
    with pytest.raises(DataError, match=rf"/{name}{received}\. Fix: copy the file again, or build"):
        read_records(tmp_path, shard)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_wrong_number_of_rows_is_named(tmp_path: Path, suffix: str) -> None:
    shard = write_shard(tmp_path, f"s.{suffix}", RECORDS)
    with pytest.raises(DataError, match=rf"8 rows. Received: .*s\.{suffix}.*: rows=7\."):
        read_records(tmp_path, shard.model_copy(update={"rows": 8}))


def test_the_index_of_another_shard_is_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "s.tfrecord", RECORDS)
    other = write_shard(
        tmp_path, "other.tfrecord", [Record(b"x" * 5000, 0, "x", (1, 1, 1)) for _ in range(7)]
    )
    with pytest.raises(DataError, match=r"other\.index\.arrow: an image outside of the file"):
        read_records(tmp_path, shard.model_copy(update={"index": other.index}))


@pytest.mark.parametrize("name", ["s.arrow", "s.tfrecord", "s.index.arrow"])
def test_no_flipped_byte_makes_a_wrong_row(tmp_path: Path, name: str) -> None:
    """With any byte changed, the rows are those that were written, or an error names the file."""
    shard = write_shard(tmp_path, "s.arrow" if name == "s.arrow" else "s.tfrecord", RECORDS)
    path = tmp_path / name
    whole = path.read_bytes()
    masks = np.random.default_rng(5).integers(1, 256, len(whole)).tolist()

    def read_or_fail() -> list[Record] | str:
        try:
            with open_shard(LocalFiles(tmp_path), shard) as rows:
                is_sound = all(rows.is_sound(row, rows.read_image(row)) for row in range(7))
                return list_records(rows) if is_sound else f"row of {name}"
        except DataError as error:
            return str(error)

    errors = 0
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ masks[at]]) + whole[at + 1 :])
        result = read_or_fail()
        assert result == RECORDS or name in result, at
        errors += result != RECORDS
    assert errors > 20


@pytest.mark.parametrize("suffix", FORMATS)
def test_writing_and_reading_import_nothing_heavy(tmp_path: Path, suffix: str) -> None:
    """Workers of a build would lose a second to pandas, several to TensorFlow."""
    code = f"""
import sys
from pathlib import Path
from pipelines.records import Record
from pipelines.shards.files import LocalFiles
from pipelines.shards.formats import open_shard, write_shard
shard = write_shard(Path({str(tmp_path)!r}), "s.{suffix}", [Record(b"x", 0, "x", (1, 1, 1))])
with open_shard(LocalFiles(Path({str(tmp_path)!r})), shard) as rows:
    print(rows.read_image(0), rows.id(0), {{"pandas", "tensorflow", "ray"}} & set(sys.modules))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "b'x' x set()"


def test_flush_errors_are_not_lost() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        flush_file(Path("/dev/null"), "train-0.arrow")  # a device that cannot be flushed

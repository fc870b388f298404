"""Damaged inputs for every parser: a value or one sentence, never another exception, a hang or all memory."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from fuzz_targets import TARGETS, Target, check_input, fuzz, fuzz_for, limit_time, list_metas
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_samples import encode_png, write_shards

from pipelines.errors import DataError
from pipelines.records import Record
from pipelines.remote.uri import parse_location
from pipelines.shards.manifest import load_manifest
from pipelines.shards.markers import Marker, ShardResult, read_marker
from pipelines.shards.tfrecord import write_tfrecord
from pipelines.sources import open_source
from pipelines.sources.tfexample import find_records, parse_example
from pipelines.storage import parse_json
from service.config import set_value
from service.yaml_text import MAX_DEPTH, parse_yaml

QUICK = 15  # examples of other properties
BY_NAME = {target.name: target for target in TARGETS}
RESULT = {
    "shard": {"file": "train-00000.arrow", "bytes": 3, "sha256": "", "rows": 1},
    "class_counts": [1],
    "moments": [[1, 2, 4]] * 3,
    "rejected": 0,
}
every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
META = list_metas()[0]
# What was found: the parser, and the input on which it failed.
FOUND = (
    ("preset", b"[" * 1200),
    ("preset", b"a: !!bool x"),
    ("preset", b"a: 2001-99-99"),
    ("preset", b"a: &a [*a]"),
    ("configuration of a run", b"[" * 1_000_000),  # ended the process
    ("override", b"epochs=2001-99-99"),
    ("override", b"epochs=" + b"[" * 1200),
    ("manifest", b"[" * 5000),
    ("marker", b"[" * 5000),
    ("marker", b'{"result": {}, "row_part": 1e999}\n'),
    ("uri", b"file://[x"),
    ("idx", gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 0xCF00_0004, 0x202_0202, 0x4000_2), mtime=0)),
    ("imagenet truth", b"\x80"),
    ("imagenet truth", b"1" * 5000),
    ("imagenet words", b"\x80"),
    ("imagenet solution", b"ImageId,PredictionString\nILSVRC2012_val_00000001,\xff\n"),
    ("imagenet solution", b"ImageId,PredictionString\nILSVRC2012_val_00000001,\n"),
    ("imagenet solution", b"ImageId,PredictionString\n1,2\n"),
    ("imagenet meta", b""),
    ("imagenet meta", META[:360] + bytes(4) + META[360:]),  # crashes SciPy
)


@every_target
def test_damaged_inputs(target: Target) -> None:
    fuzz(target, target.quick)


@pytest.mark.slow
@every_target
def test_damaged_inputs_for_longer(target: Target, request: pytest.FixtureRequest) -> None:
    minutes = request.config.getoption("fuzz_minutes")
    inputs = fuzz_for(target, 60 * minutes / len(TARGETS))
    print(f"{target.name}: {inputs:,} inputs")  # for `pytest -s`


@pytest.mark.parametrize(("name", "data"), FOUND, ids=lambda value: str(value)[:30])
def test_what_was_found(name: str, data: bytes) -> None:
    check_input(BY_NAME[name], data)


@every_target
def test_undamaged_inputs_are_read(target: Target, tmp_path: Path) -> None:
    for number, sample in enumerate(target.samples()):
        folder = tmp_path / str(number)
        folder.mkdir()
        if target.name == "override" and b"blur.py" in sample:
            continue  # there is no such file
        target.parse(folder, sample)


def test_a_small_file_does_not_become_gigabytes(tmp_path: Path) -> None:
    """Of a gzip file, no more is decompressed than its shape says; this one would be a gigabyte."""
    import tracemalloc

    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=1) as file:
        file.write(struct.pack(">HBBIII", 0, 8, 3, 4, 2, 2))
        for _ in range(1024):
            file.write(bytes(2**20))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb.getvalue())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 4) + bytes([0, 1, 0, 1]))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="bytes for shape"):
            open_source(f"idx:{tmp_path}")
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_a_few_lines_of_yaml_do_not_become_billions_of_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    with limit_time(), pytest.raises(yaml.YAMLError, match="more than"):
        parse_yaml("\n".join(lines))


def test_yaml_may_be_nested_and_have_aliases() -> None:
    depth = MAX_DEPTH - 1
    assert parse_yaml("[" * depth + "]" * depth) is not None
    with pytest.raises(yaml.YAMLError, match="levels"):
        parse_yaml("[" * (depth + 1) + "]" * (depth + 1))
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: *a") == {name: {"b": 1} for name in "acd"}
    with pytest.raises(yaml.YAMLError, match="part of itself"):
        parse_yaml("a: &a [*a]")


def test_json_may_not_be_nested_endlessly() -> None:
    assert parse_json(b"[[1]]") == [[1]]
    with pytest.raises(ValueError, match="nested"):
        parse_json("[" * 100_000)


SEGMENTS = st.from_regex(r"[a-z0-9][a-z0-9 _-]{0,8}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ROWS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 2**31 - 1), TEXT), max_size=5)


@settings(max_examples=QUICK)
@given(ROWS)
def test_tfrecords_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    folder = tmp_path_factory.mktemp("records")
    path = folder / "train.tfrecord"
    records = [Record(image, label, name, (1, 2, 3)) for image, label, name in rows]
    write_tfrecord(path, folder / "train.index.arrow", records)
    content = memoryview(path.read_bytes())
    read = [parse_example(content[start : start + length]) for start, length in find_records(content)]
    found = [(bytes(row["image"][0]), row["label"][0], bytes(row["id"][0]).decode()) for row in read]
    assert found == rows


@settings(max_examples=QUICK)
@given(st.lists(TEXT, min_size=2, max_size=4, unique=True))
def test_manifests_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, classes: list[str]) -> None:
    folder = tmp_path_factory.mktemp("manifest") / "set"
    image = Record(encode_png(np.zeros((2, 2, 3), np.uint8)), 0, "a", (2, 2, 3))
    write_shards(folder, classes, {"train": [image]})
    assert load_manifest(folder).classes == tuple(classes)


@settings(max_examples=QUICK)
@given(st.binary(max_size=30), st.lists(TEXT.map(lambda text: "".join(text.split()) + "\n"), max_size=3))
def test_markers_are_read_as_written(part: bytes, lines: list[str]) -> None:
    lines = [line for line in lines if len(line.splitlines()) == 1]
    marker = Marker(ShardResult.model_validate(RESULT), part, tuple(lines))
    assert read_marker(io.BytesIO(marker.encode())) == marker


@settings(max_examples=50)
@given(st.sampled_from(("s3", "gs", "az", "https")), st.lists(SEGMENTS, min_size=1, max_size=4))
def test_uris_are_read_as_written(scheme: str, parts: list[str]) -> None:
    text = f"{scheme}://bucket/{'/'.join(parts)}"
    assert str(parse_location(parse_location(text))) == text


@settings(max_examples=50)
@given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_overrides_are_read_as_written(value: object) -> None:
    settings_: dict[str, object] = {}
    set_value(settings_, f"a.b={json.dumps(value)}")
    assert settings_ == {"a": {"b": value}}

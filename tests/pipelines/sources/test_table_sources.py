"""Sources in tables and shards are read like the folder they were made from; bad input is reported."""

from __future__ import annotations

import csv
import io
import itertools
import json
import pickle
import struct
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Record, Rejected
from pipelines.shards.tfrecord import write_tfrecord
from pipelines.sources import SourceOptions, open_source
from pipelines.sources.tfexample import compute_masked_crc

TREE = {
    f"{split}/{name}/{index}.jpg": f"{split} {name} {index}".encode() * (index + 1)
    for split, count in (("train", 9), ("valid", 3), ("test", 2))
    for name in ("cat", "dog", "Ünicorn")
    for index in range(count)
}
CLASSES = ("cat", "dog", "Ünicorn")


@pytest.fixture
def folder(tmp_path):
    for name, content in TREE.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "photos"


def read_all(source):
    return {split: list(source.read(split, 0, count)) for split, count in source.counts().items()}


def collect_rejections(source):
    return {
        item.id: item.reason
        for items in read_all(source).values()
        for item in items
        if isinstance(item, Rejected)
    }


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def list_rows(split=None):
    names = [name for name in TREE if split is None or name.startswith(split)]
    return [(name, *name.split("/")[:2]) for name in names]


def export_csv(folder):
    write_csv(folder / "all.csv", ("filename", "split", "label"), [(n, s, c) for n, s, c in list_rows()])
    return f"csv:{folder}/all.csv"


def export_parquet(folder):
    (folder.parent / "data").mkdir()
    for split in ("train", "valid", "test"):
        rows = list_rows(split)
        table = pa.table(
            {
                "image": [{"bytes": TREE[name], "path": name} for name, *_ in rows],
                "label": [CLASSES.index(label) for _, _, label in rows],
            }
        )
        features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        path = folder.parent / f"data/{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return f"parquet:{folder.parent}/data"


def write_tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def export_webdataset(folder):
    for split in ("train", "valid", "test"):
        for part in range(2):
            members = []
            for name, _, label in list_rows(split)[part::2]:
                members.append((name, TREE[name]))
                suffix, content = (".cls", label) if part else (".json", json.dumps({"label": label}))
                members.append((name.removesuffix(".jpg") + suffix, content.encode()))
            write_tar(folder.parent / f"{split}-{part:03d}.tar", members)
    return f"webdataset:{folder.parent}/{{train,valid,test}}-{{000..001}}.tar"


def encode_field(number, content):
    size = b""
    length = len(content)
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def encode_example(**features):
    """Serialises a `tf.train.Example` of bytes and small integers."""
    entries = b""
    for key, value in features.items():
        if isinstance(value, bytes):
            feature = encode_field(1, encode_field(1, value))
        else:
            feature = encode_field(3, encode_field(1, bytes(value)))  # packed varints below 128
        entry = encode_field(1, key.encode()) + encode_field(2, feature)
        entries += encode_field(1, entry)
    return encode_field(1, entries)


def frame_record(record):
    length = struct.pack("<Q", len(record))
    return length + compute_masked_crc(length) + record + compute_masked_crc(record)


def make_record(name, label):
    keys = {"image/encoded": TREE[name], "image/filename": name.encode(), "image/class/label": [label]}
    return frame_record(encode_example(**keys))


def export_tfrecord(folder):
    for split in ("train", "valid", "test"):
        records = [make_record(name, CLASSES.index(label)) for name, _, label in list_rows(split)]
        (folder.parent / f"{split}.tfrecord").write_bytes(b"".join(records))
    return f"tfrecord:{folder.parent}/*.tfrecord"


EXPORTS = {
    "csv": export_csv,
    "parquet": export_parquet,
    "webdataset": export_webdataset,
    "tfrecord": export_tfrecord,
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_source_is_read_like_the_folder_it_was_made_from(folder, kind):
    expected = open_source(f"folder:{folder}")
    name = EXPORTS[kind](folder)
    options = SourceOptions(class_names=CLASSES if kind == "tfrecord" else None)
    source = open_source(name, options=options)
    assert source.name == name
    assert set(source.classes) == set(expected.classes)
    examples = read_all(source)
    assert set(examples) == {"train", "validation", "test"}
    for split, items in read_all(expected).items():
        by_id = {item.id: (item.image, expected.classes[item.label]) for item in items}
        assert {item.id: (item.image, source.classes[item.label]) for item in examples[split]} == by_id
        if kind != "parquet":  # whose row groups stay together
            assert [item.id for item in examples[split]] == [item.id for item in items]
        assert [item for start in range(len(items)) for item in source.read(split, start, start + 1)] == (
            examples[split]
        )
    again = open_source(name, options=options)
    assert again.fingerprint() == source.fingerprint()
    assert read_all(pickle.loads(pickle.dumps(source))) == examples
    labels = source.labels("train").tolist()
    assert labels == [item.label for item in examples["train"]]


def export_without_labels(kind, folder):
    """Writes the images of the train split without labels; returns the name of the source."""
    names = [name for name, *_ in list_rows("train")]
    out = folder.parent / "unlabelled"
    out.mkdir()
    if kind == "csv":
        write_csv(folder / "test.csv", ("filename", "width", "height"), [(name, 9, 8) for name in names])
        return f"csv:{folder}/test.csv"
    if kind == "parquet":
        pq.write_table(pa.table({"image": [TREE[name] for name in names]}), out / "test.parquet")
    elif kind == "webdataset":
        write_tar(out / "test.tar", [(name, TREE[name]) for name in names])
    else:
        records = [frame_record(encode_example(**{"image/encoded": TREE[name]})) for name in names]
        (out / "test.tfrecord").write_bytes(b"".join(records))
    return f"{kind}:{out}" + ("" if kind == "parquet" else "/*")


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_source_without_labels_can_be_predicted_but_not_built(folder, kind):
    name = export_without_labels(kind, folder)
    source = open_source(name, labelled=False, options=SourceOptions(needs_train=False, needs_labels=False))
    assert source.classes == ()
    items = [item for items in read_all(source).values() for item in items]
    expected = [content for path, content in TREE.items() if path.startswith("train")]
    assert sorted(item.image for item in items) == sorted(expected)
    assert {item.label for item in items} == {-1}
    with pytest.raises(DataError, match="label"):
        open_source(name)


def test_labels_are_read_where_they_are_not_needed(folder):
    source = open_source(export_csv(folder), labelled=False, options=SourceOptions(needs_labels=False))
    assert source.classes == CLASSES
    assert source.labels("train").min() == 0


def test_the_rows_of_a_row_group_follow_each_other(folder):
    source = open_source(export_parquet(folder))
    groups = source.splits["train"]["size"].to_pylist()
    assert len(groups) == 27
    assert sum(one != two for one, two in itertools.pairwise(groups)) == 6  # of 7 groups


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_are_found_or_specified(folder, delimiter):
    rows = [("a,1", name, label) for name, _, label in list_rows("train")]
    with (folder / "x.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([("Note", "Image Path", "Breed"), *rows])
    source = open_source(f"csv:{folder}/x.csv")
    assert source.notes == ("columns: image=Image Path, label=Breed",)
    assert dict(source.counts()) == {"train": 27}
    options = SourceOptions(columns="image=Image Path,label=Note")
    with pytest.raises(DataError, match="at least two classes"):
        open_source(f"csv:{folder}/x.csv", options=options)


def test_a_kaggle_export_lacks_folder_and_suffix(folder):
    names = [f"{index:03d}" for index in range(6)]
    (folder / "train_images").mkdir()
    for name in names:
        (folder / f"train_images/{name}.png").write_bytes(name.encode())
    rows = [(name, "healthy" if int(name) % 2 else "rust") for name in names]
    path = write_csv(folder / "train.csv", ("image_id", "diagnosis"), rows)
    source = open_source(f"csv:{path}")
    assert source.notes == (
        "columns: image=image_id, label=diagnosis",
        "images found as train_images/{image_id}.png",
    )
    (items,) = read_all(source).values()
    assert {item.image for item in items} == {name.encode() for name in names}
    options = SourceOptions(columns="image=train_images/{image_id}.png,label=diagnosis")
    assert read_all(open_source(f"csv:{path}", options=options)) == read_all(source)
    (folder / "other").mkdir()
    (folder / "other/000.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"write --columns image=FOLDER/\{image_id\}\.jpg"):
        open_source(f"csv:{path}")


def test_a_roboflow_export_has_a_table_per_split(folder):
    for split in ("train", "valid", "test"):
        rows = [
            (name.split("/", 1)[1], *(int(label == other) for other in CLASSES))
            for name, _, label in list_rows(split)
        ]
        write_csv(folder / split / "_classes.csv", ("filename", " cat", " dog", " Ünicorn"), rows)
    (folder / "README.roboflow.txt").write_text("exported")
    source = open_source(f"csv:{folder}")
    expected = open_source(f"folder:{folder}")
    assert source.classes == expected.classes
    assert read_all(source) == {
        split: [item for item in items if isinstance(item, Example)]
        for split, items in read_all(expected).items()
    }
    assert (
        source.notes[0]
        == "splits: train=train/_classes.csv, validation=valid/_classes.csv, test=test/_classes.csv"
    )


def test_several_labels_of_an_image_are_refused(folder):
    write_csv(
        folder / "a.csv", ("filename", "cat", "dog"), [("train/cat/0.jpg", 1, 1), ("train/cat/1.jpg", 1, 0)]
    )
    with pytest.raises(DataError, match=r"one label per image.*train/cat/0\.jpg: labels=cat, dog"):
        open_source(f"csv:{folder}/a.csv")
    write_csv(
        folder / "b.csv", ("filename", "class"), [("train/cat/0.jpg", "cat"), ("train/cat/0.jpg", "dog")]
    )
    with pytest.raises(DataError, match="one label per image"):
        open_source(f"csv:{folder}/b.csv")
    pq.write_table(pa.table({"image": [b"1", b"2"], "label": [[0], [0, 1]]}), folder / "x.parquet")
    with pytest.raises(DataError, match=r"one label per image.*labels=0, 1"):
        open_source(f"parquet:{folder}/x.parquet")


def test_rows_that_cannot_be_used_are_counted(folder):
    rows = [
        *((name, "train", label) for name, _, label in list_rows("train")),
        ("train/cat/0.jpg", "train", "cat"),
        ("train/cat/1.jpg", "test", "cat"),
        ("../secret.jpg", "train", "cat"),
        ("/etc/passwd", "train", "cat"),
        ("https://host/x.jpg", "train", "cat"),
        ("missing.jpg", "train", "cat"),
        ("valid/cat/0.jpg", "train", ""),
        ("valid/cat/1.jpg", "train", "zebra"),
        ("valid/cat/2.jpg", "extra", "cat"),
        ("notes.txt", "train", "cat"),
        ("", "train", "cat"),
    ]
    write_csv(folder / "x.csv", ("path", "split", "label"), rows)
    source = open_source(f"csv:{folder}/x.csv", options=SourceOptions(class_names=CLASSES))
    reasons = collect_rejections(source)
    assert reasons == {
        "train/cat/0.jpg": "listed more than once",
        "train/cat/1.jpg": "listed more than once, in train and in test",
        "../secret.jpg": "path outside of the source: ../secret.jpg",
        "/etc/passwd": "path outside of the source: /etc/passwd",
        "https://host/x.jpg": "path outside of the source: https://host/x.jpg",
        "missing.jpg": "no such file",
        "valid/cat/0.jpg": "no label",
        "valid/cat/1.jpg": "unknown label: 'zebra'",
        "valid/cat/2.jpg": "unknown split: 'extra'",
        "notes.txt": "not an image suffix: .txt",
        "x.csv, row 38": "no path of an image",
    }
    assert source.labels("train").tolist().count(-1) == 10


@pytest.mark.parametrize("start", ["../photos/", "{folder}/"])
def test_a_table_whose_images_are_all_elsewhere_is_told_where_to_lie(folder, start):
    tables = folder.parent / "tables"
    tables.mkdir()
    start = start.format(folder=folder)
    write_csv(tables / "x.csv", ("path", "label"), [(start + name, label) for name, _, label in list_rows()])
    with pytest.raises(DataError) as caught:
        open_source(f"csv:{tables}/x.csv")
    assert f"rejected all {len(TREE)} images: path outside of the source ({len(TREE)})" in str(caught.value)
    assert f"move the table to {folder}, or a folder above it" in str(caught.value)


def test_a_table_whose_images_are_all_missing_counts_the_reasons(folder):
    write_csv(folder / "x.csv", ("path", "label"), [("train/cat/0.jpg", ""), ("gone.jpg", "dog")])
    with pytest.raises(DataError, match=r"rejected all 2 images: no label \(1\), no such file \(1\)"):
        open_source(f"csv:{folder}/x.csv")


@pytest.mark.parametrize(
    ("header", "options", "reason"),
    [
        (("a", "label", "b"), {}, "a column for image"),
        (("path", "a", "b"), {}, "a column for label"),
        (("path", "label", "class"), {}, "label and class may each be the label"),
        (("path", "label", "b"), {"columns": "image=nothing"}, r"image=nothing \(columns: path, label, b\)"),
        (("path", "label", "label"), {}, "different names of columns"),
    ],
)
def test_a_missing_column_is_reported(folder, header, options, reason):
    write_csv(folder / "x.csv", header, [("train/cat/0.jpg", "cat", "x"), ("train/dog/0.jpg", "dog", "y")])
    with pytest.raises(DataError, match=reason):
        open_source(f"csv:{folder}/x.csv", options=SourceOptions(**options))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Empty|header"),
        (b"path,label\n1,2,3\n", "Expected 2 columns, got 3"),
        (b"\xff\xfe\x00", "codec"),
        (b"a.jpg,cat\nb.jpg,dog\n", "first line=a.jpg, cat, which looks like data.*add a first line such as"),
    ],
)
def test_a_damaged_table_is_reported(tmp_path, content, reason):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        open_source(f"csv:{tmp_path}/x.csv")
    assert "x.csv" in caught.value.received


def test_images_that_are_nowhere_are_reported(tmp_path):
    write_csv(tmp_path / "x.csv", ("path", "label"), [("1.jpg", "a"), ("2.jpg", "b")])
    with pytest.raises(DataError, match=r"path=1\.jpg \(no such file\)"):
        open_source(f"csv:{tmp_path}/x.csv")


@pytest.mark.parametrize("kind", ["csv", "parquet", "webdataset", "tfrecord"])
def test_a_missing_file_is_reported(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"no such file|none"):
        open_source(f"{kind}:{tmp_path}/x-{{0..1}}.bin")


@pytest.mark.parametrize(("kind", "pattern"), [("webdataset", "*.tar"), ("tfrecord", "*.tfrecord*")])
def test_a_directory_in_place_of_a_pattern_is_reported(tmp_path, kind, pattern):
    with pytest.raises(ConfigError) as caught:
        open_source(f"{kind}:{tmp_path}/")
    assert "(a directory)" in caught.value.received
    assert f"write '{kind}:{tmp_path}/{pattern}'" in caught.value.fix


def test_null_bytes_and_labels_in_parquet_are_counted(tmp_path):
    table = pa.table({"image": [b"1", None, b"3", b"4", b"5"], "label": ["a", "a", None, "b", "B"]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    source = open_source(f"parquet:{tmp_path}/x.parquet")
    assert collect_rejections(source) == {
        "x.parquet/00000001": "no bytes of an image",
        "x.parquet/00000002": "no label",
    }
    assert source.classes == ("B", "a")  # one class in two spellings
    assert sorted(source.labels("train").tolist()) == [-1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": ["a.jpg", "b.jpg"], "label": [0, 1]}, "column of bytes.*write csv:FILE"),
        ({"image": [b"1", b"2"], "caption": [0, 1]}, "a column for label.*columns=image, caption"),
    ],
)
def test_wrong_columns_of_parquet_are_reported(tmp_path, columns, reason):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=reason):
        open_source(f"parquet:{tmp_path}/x.parquet")


def test_a_truncated_shard_is_reported_in_one_sentence(folder):
    for kind, pattern in (
        ("parquet", "data/train-*.parquet"),
        ("webdataset", "train-000.tar"),
        ("tfrecord", "train.tfrecord"),
    ):
        name = EXPORTS[kind](folder)
        (path,) = folder.parent.glob(pattern)
        path.write_bytes(path.read_bytes()[:1300])
        with pytest.raises(DataError, match="whole") as caught:
            open_source(name, options=SourceOptions(class_names=CLASSES))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_incomplete_samples_of_a_webdataset_are_counted(tmp_path):
    members = [
        ("1.jpg", b"one"), ("1.cls", b"0"), ("2.jpg", b"two"), ("2.cls", b"1"), ("3.jpg", b"three"),
        ("4.cls", b"0"), ("5.jpg", b"five"), ("5.json", b"{"), ("6.jpg", b"six"), ("6.json", b'{"label": 7}'),
    ]  # fmt: skip
    write_tar(tmp_path / "x.tar", members)
    source = open_source(f"webdataset:{tmp_path}/x.tar", options=SourceOptions(class_names=("a", "b")))
    assert collect_rejections(source) == {
        "3.jpg": "no label: neither .cls nor .json",
        "4": "no image in the sample",
        "5.jpg": "the JSON of the sample is damaged",
        "6.jpg": "unknown label: 7",
    }


def test_names_that_repeat_from_shard_to_shard_are_told_apart(tmp_path):
    for part in range(2):
        write_tar(tmp_path / f"{part}.tar", [("0.jpg", b"%d" % part), ("0.cls", b"%d" % part)])
    (items,) = read_all(open_source(f"webdataset:{tmp_path}/{{0..1}}.tar")).values()
    assert {(item.id, item.image, item.label) for item in items} == {
        ("0.tar/0.jpg", b"0", 0),
        ("1.tar/0.jpg", b"1", 1),
    }


@pytest.mark.parametrize("pattern", ["*", "train*"])
def test_a_tfrecord_shard_set_is_read_back(tmp_path, pattern):
    records = [
        Record(TREE[name], CLASSES.index(label), name, (1, 2, 3)) for name, _, label in list_rows("train")
    ]
    for part in range(2):
        shard = tmp_path / f"train-{part:05d}.tfrecord"
        write_tfrecord(shard, shard.with_suffix(".index.arrow"), records[part::2])
    source = open_source(f"tfrecord:{tmp_path}/{pattern}")
    (items,) = read_all(source).values()
    read_back = {(item.id, item.image, source.classes[item.label]) for item in items}
    assert read_back == {(record.id, record.image, str(record.label)) for record in records}


def test_a_damaged_record_is_rejected_and_the_others_are_not(folder):
    name = export_tfrecord(folder)
    path = folder.parent / "train.tfrecord"
    data = bytearray(path.read_bytes())
    data[data.index(b"train cat 3")] ^= 1
    path.write_bytes(data)
    source = open_source(name, options=SourceOptions(class_names=CLASSES))
    assert collect_rejections(source) == {"train/cat/3.jpg": "damaged: not the CRC-32C of the record"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"this is no record at all", "no record at byte 0"),
        (b"\x1f\x8b" + bytes(20), "decompress it"),
        (b"", "records=0"),
        (frame_record(b"no message"), "no tf.train.Example"),
        (frame_record(encode_example(image=b"x", other=b"y")), "a column for label"),
    ],
)
def test_other_files_than_records_of_examples_are_refused(tmp_path, content, reason):
    (tmp_path / "x.tfrecord").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_source(f"tfrecord:{tmp_path}/x.tfrecord")


def test_only_some_names_with_a_split_are_refused(tmp_path):
    for name in ("train-0.tar", "more.tar"):
        write_tar(tmp_path / name, [("1.jpg", b""), ("1.cls", b"0")])
    with pytest.raises(ConfigError, match=r"files=more\.tar"):
        open_source(f"webdataset:{tmp_path}/*.tar")

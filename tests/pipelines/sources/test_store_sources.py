"""Sources on an object store are read like their copies on a disk; bad input is reported with its address."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import Bucket, FaultProxy

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Record, Rejected
from pipelines.shards.tfrecord import write_tfrecord
from pipelines.sources import open_source
from pipelines.sources.options import read_class_names

pytestmark = pytest.mark.e2e

CLASSES = ("cat", "dog", "Ünicorn")
TREE = {
    f"{split}/{name}/{index} a.jpg": f"{split} {name} {index}".encode() * (index + 1)
    for split, count in (("train", 9), ("valid", 3))
    for name in CLASSES
    for index in range(count)
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "20")


def read_all(source):
    source = pickle.loads(pickle.dumps(source))  # as Ray sends it
    return {split: list(source.read(split, 0, count)) for split, count in source.counts().items()}


def write_tree(folder: Path) -> Path:
    for name, content in TREE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def list_rows(split=""):
    return [(name, *name.split("/")[:2]) for name in TREE if name.startswith(split)]


def export_folder(folder):
    write_tree(folder / "photos")
    return "folder", "photos"


def export_csv(folder):
    write_tree(folder / "photos")
    lines = [",".join(row) for row in [("filename", "split", "label"), *list_rows()]]
    (folder / "photos/all.csv").write_text("\n".join(lines))
    return "csv", "photos/all.csv"


def export_csv_folder(folder):
    """Writes a table per split, whose paths lack the suffix."""
    write_tree(folder / "photos")
    for split in ("train", "valid"):
        (folder / f"photos/{split}.csv").write_text(
            "\n".join(["id,label", *(f"{name[:-4]},{label}" for name, _, label in list_rows(split))])
        )
    return "csv", "photos"


def export_parquet(folder):
    (folder / "data").mkdir()
    for split in ("train", "valid"):
        rows = list_rows(split)
        images = [{"bytes": TREE[name], "path": name} for name, *_ in rows]
        table = pa.table({"image": images, "label": [label for _, _, label in rows]})
        pq.write_table(table, folder / f"data/{split}-00000.parquet", row_group_size=4)
    return "parquet", "data"


def export_webdataset(folder):
    for split in ("train", "valid"):
        for part in range(2):
            with tarfile.open(folder / f"{split}-{part:03d}.tar", "w") as file:
                for name, _, label in list_rows(split)[part::2]:
                    for path, content in ((name, TREE[name]), (f"{name[:-4]}.cls", label.encode())):
                        info = tarfile.TarInfo(path)
                        info.size = len(content)
                        file.addfile(info, io.BytesIO(content))
    return "webdataset", "{train,valid}-{000..001}.tar"


def export_tfrecord(folder):
    for split in ("train", "valid"):
        records = [
            Record(TREE[name], CLASSES.index(label), name, (1, 1, 3)) for name, _, label in list_rows(split)
        ]
        write_tfrecord(folder / f"{split}-00000.tfrecord", folder / f"{split}.index.arrow", records)
    (folder / "manifest.json").write_text(json.dumps({"classes": CLASSES}))
    return "tfrecord", "*-0*.tfrecord"


def export_zip(folder):
    with zipfile.ZipFile(folder / "photos.zip", "w") as file:
        for name, content in TREE.items():
            file.writestr(name, content)
    return "archive", "photos.zip"


def export_tar_gz(folder):
    write_tree(folder / "photos")
    with tarfile.open(folder / "photos.tar.gz", "w:gz") as file:
        file.add(folder / "photos", "photos")
    return "archive", "photos.tar.gz"


def export_idx(folder):
    for prefix, count in (("train", 6), ("t10k", 2)):
        pixels = np.arange(count * 4, dtype=np.uint8)
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, count, 2, 2)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, count) + bytes(index % 2 for index in range(count))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return "idx", ""


EXPORTS = (
    export_folder,
    export_csv,
    export_csv_folder,
    export_parquet,
    export_webdataset,
    export_tfrecord,
    export_zip,
    export_tar_gz,
    export_idx,
)


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_a_source_on_a_store_is_read_like_its_copy_on_a_disk(export, bucket: Bucket, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    kind, pattern = export(folder)
    bucket.upload_folder(folder, "some/where")
    remote = open_source(f"{kind}:{bucket.url}/some/where/{pattern}".rstrip("/"))
    local = open_source(f"{kind}:{folder}/{pattern}".rstrip("/"))
    assert remote.classes == local.classes
    assert remote.counts() == local.counts()
    assert read_all(remote) == read_all(local)
    for split in local.counts():
        np.testing.assert_array_equal(remote.labels(split), local.labels(split))
    assert remote.fingerprint() == open_source(remote.name).fingerprint()


def test_splits_and_notes_are_those_of_a_folder_on_a_disk(bucket: Bucket, tmp_path):
    folder = write_tree(tmp_path / "photos")
    for extra in ("train/outside.jpg", "train/cat/.hidden.jpg", "other/readme.txt", "train/empty/readme.txt"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"x")
    bucket.upload_folder(folder, "photos")
    local = open_source(f"folder:{folder}")
    remote = open_source(f"folder:{bucket.url}/photos")
    assert remote.notes == local.notes
    assert remote.counts() == local.counts()


def test_photos_without_classes_are_read(bucket: Bucket, tmp_path):
    bucket.upload_folder(write_tree(tmp_path / "photos"), "all")
    (images,) = read_all(open_source(f"photos:{bucket.url}/all", labelled=False)).values()
    assert {image.id: image.image for image in images} == TREE


def test_a_table_lists_objects_of_other_buckets_by_their_uris(bucket: Bucket, tmp_path):
    bucket.upload_folder(write_tree(tmp_path / "photos"), "elsewhere")
    lines = ["image,label", *(f"{bucket.url}/elsewhere/{name},{label}" for name, _, label in list_rows())]
    lines.append(f"{bucket.url}/elsewhere/gone.jpg,cat")
    lines.append("https://host/a.jpg?token=abc,cat")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines))
    (items,) = read_all(open_source(f"csv:{table}")).values()
    images = {item.id: item.image for item in items if isinstance(item, Example)}
    assert images == {f"{bucket.url}/elsewhere/{name}": content for name, content in TREE.items()}
    reasons = {item.id.rpartition("/")[2]: item.reason for item in items if isinstance(item, Rejected)}
    assert reasons["gone.jpg"] == "no such file"


def test_only_the_folders_that_a_table_names_are_listed(bucket: Bucket, proxy: FaultProxy, tmp_path):
    lines = ["image,label"]
    for name in ("cat", "dog"):
        for index in range(2):
            bucket.put(f"photos/train/{name}/{index}.jpg", f"{name}{index}".encode())
            lines.append(f"train/{name}/{index}.jpg,{name}")
    lines.append("train/none/0.jpg,cat")
    bucket.put("photos/all.csv", "\n".join(lines).encode())
    bucket.put("photos/train/.hidden/0.jpg", b"hidden")
    for index in range(30):
        bucket.put(f"photos/unrelated/{index}/0.jpg", b"unrelated")
    proxy.requests.clear()
    source = open_source(f"csv:{bucket.url}/photos/all.csv")
    assert source.counts() == {"train": 5}
    listings = [request.query for request in proxy.requests if "list-type=2" in request.query]
    assert len([query for query in listings if "unrelated" in query]) == 0
    assert len(listings) <= 4  # the two classes, a folder that does not exist, and the table
    assert [item.image for item in source.read("train", 0, 5) if hasattr(item, "image")].count(b"cat0") == 1


def test_the_fingerprint_covers_content_of_the_same_size(bucket: Bucket, tmp_path):
    bucket.upload_folder(write_tree(tmp_path / "photos"), "photos")
    source = open_source(f"folder:{bucket.url}/photos")
    name, content = next(iter(TREE.items()))
    bucket.put(f"photos/{name}", content[::-1])
    assert open_source(source.name).fingerprint() != source.fingerprint()


def test_an_object_that_changed_or_disappeared_is_named(bucket: Bucket, tmp_path):
    bucket.upload_folder(write_tree(tmp_path / "photos"), "photos")
    source = open_source(f"folder:{bucket.url}/photos")
    bucket.put("photos/train/cat/3 a.jpg", b"other")
    with pytest.raises(DataError, match=r"cat/3 a\.jpg: bytes=5, before"):
        read_all(source)
    bucket.put("photos/train/cat/3 a.jpg", TREE["train/cat/3 a.jpg"][::-1])  # of the same size
    with pytest.raises(DataError, match=r"cat/3 a\.jpg: .*etag=another"):
        read_all(source)
    bucket.delete("photos/train/cat/3 a.jpg")
    with pytest.raises(DataError, match=f"{bucket.url}/photos/train/cat/3 a.jpg"):
        read_all(source)


def test_an_archive_is_downloaded_once_and_again_when_it_has_changed(
    bucket: Bucket, proxy: FaultProxy, tmp_path
):
    export_zip(tmp_path)
    bucket.upload_folder(tmp_path)
    source = open_source(f"archive:{bucket.url}/photos.zip")
    read_all(source)
    open_source(source.name)
    assert proxy.count_requests("GET", "*/photos.zip") == 1
    bucket.put("photos.zip", (tmp_path / "photos.zip").read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"an archive that does not change.*{bucket.url}/photos.zip"):
        read_all(source)


def test_a_damaged_archive_is_named_by_its_uri(bucket: Bucket):
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        bucket.put(name, b"no archive at all")
        with pytest.raises(DataError) as caught:
            open_source(f"archive:{bucket.url}/{name}")
        assert caught.value.received.startswith(f"{bucket.url}/{name}: ")


@pytest.mark.parametrize(
    "name",
    [
        "folder:{}/nothing",
        "photos:{}/nothing",
        "csv:{}/nothing.csv",
        "parquet:{}/nothing",
        "webdataset:{}/nothing-*.tar",
        "webdataset:{}/nothing-{{00..03}}.tar",
        "tfrecord:{}/nothing.tfrecord",
        "archive:{}/nothing.zip",
        "idx:{}/nothing",
    ],
)
def test_a_missing_object_is_an_error_that_names_it(name, bucket: Bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match=f"{bucket.url}/nothing"):
        open_source(name.format(bucket.url), labelled=False)
    assert not (tmp_path / "s3:").exists()


def test_the_error_for_a_folder_in_place_of_a_pattern_says_what_to_write(bucket: Bucket):
    bucket.put("shards/train.tar", b"")
    bucket.put("shards/train.txt", b"x")
    with pytest.raises(ConfigError) as caught:
        open_source(f"webdataset:{bucket.url}/shards")
    assert caught.value.fix.startswith(f"write 'webdataset:{bucket.url}/shards/*.tar'")


def test_class_names_are_read_from_a_store(bucket: Bucket):
    bucket.put("names.txt", "\ufeffcat\nÜnicorn\n".encode())
    assert read_class_names(f"{bucket.url}/names.txt") == ("cat", "Ünicorn")
    with pytest.raises((ConfigError, DataError), match=f"{bucket.url}/missing.txt"):
        read_class_names(f"{bucket.url}/missing.txt")


def test_a_whole_bucket_is_a_folder(bucket: Bucket, tmp_path):
    bucket.upload_folder(write_tree(tmp_path / "photos"))
    source = open_source(f"folder:{bucket.url}/")
    assert read_all(source) == read_all(open_source(f"folder:{tmp_path}/photos"))


def test_tar_files_are_listed_without_reading_the_images(bucket: Bucket, proxy: FaultProxy, tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as file:
        for index in range(10):
            for suffix, content in (("jpg", bytes(200_000)), ("cls", b"%d" % (index % 2))):
                info = tarfile.TarInfo(f"{index}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    bucket.upload_folder(tmp_path)
    source = open_source(f"webdataset:{bucket.url}/train.tar")
    assert source.counts() == {"train": 10}
    assert proxy.count_bytes("GET", "*/train.tar") < 12 * 2**14
    proxy.requests.clear()
    read_all(source)
    assert proxy.count_bytes("GET", "*/train.tar") == 10 * 200_000


def test_a_connection_that_breaks_changes_nothing(bucket: Bucket, proxy: FaultProxy, tmp_path):
    bucket.upload_folder(write_tree(tmp_path / "photos"), "photos")
    source = open_source(f"folder:{bucket.url}/photos")
    proxy.inject("status", times=3)
    proxy.inject("reset", times=2, after=3)
    proxy.inject("truncate", times=2, after=3)
    assert read_all(source) == read_all(open_source(f"folder:{tmp_path}/photos"))

"""Archives are read like the folder they were made from, and malicious ones are refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, DataError, GlassboxError
from pipelines.records import Example, Rejected
from pipelines.sources import archive, members, open_source

ROOT = Path(__file__).resolve().parents[3]
KINDS = ["zip", "tar", "tar.gz", "tgz"]
TREE = {
    "train/cat/1.png": b"one",
    "train/cat/ü 2.jpg": b"2" * 3000,
    "train/dog/sub/3.JPEG": os.urandom(5000),
    "train/dog/notes.txt": b"text",
    "train/dog/.hidden.png": b"hidden",
    "train/empty/text.txt": b"",
    "val/dog/4.webp": b"",
    "val/cat/5.png": b"five",
    "test/cat/6.png": b"six",
    "stray.png": b"stray",
}
PAIR = {"a/1.png": b"first", "b/2.png": b"second"}


def fill(root, tree):
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pack(path, entries):
    """Writes an archive of (name, content) pairs; a name may also be a ZipInfo or TarInfo."""
    entries = list(entries.items() if isinstance(entries, dict) else entries)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in entries:
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w:" if path.suffix == ".tar" else "w:gz") as file:
            for name, content in entries:
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def read_items(path, split="train"):
    source = open_source(f"archive:{path}")
    return list(source.read(split, 0, source.counts()[split]))


@pytest.mark.parametrize("top", ["", "photos/", "./", "./photos/"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_read_like_its_folder(tmp_path, kind, top):
    folder = open_source(f"folder:{fill(tmp_path / 'photos', TREE)}")
    path = pack(tmp_path / f"x.{kind}", {top + name: content for name, content in reversed(TREE.items())})
    source = pickle.loads(pickle.dumps(open_source(f"archive:{path}")))
    assert source == open_source(f"archive:{path}")
    assert source.name == f"archive:{path}"
    assert source.classes == folder.classes == ("cat", "dog")
    assert dict(source.counts()) == dict(folder.counts()) == {"train": 5, "validation": 2, "test": 1}
    for split, count in folder.counts().items():
        whole = list(source.read(split, 0, count))
        assert whole == list(folder.read(split, 0, count))
        assert [item for start in range(count) for item in source.read(split, start, start + 1)] == whole
    assert list(source.read("train", 3, 99)) == list(folder.read("train", 3, 99))


def test_the_order_is_fixed(tmp_path):
    fill(tmp_path, {f"{name}/{index}.png": b"" for name in "ab" for index in range(3)})
    assert [item.id for item in open_source(f"folder:{tmp_path}").read("train", 0, 6)] == GOLDEN


GOLDEN = ["a/1.png", "b/1.png", "b/2.png", "a/0.png", "a/2.png", "b/0.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_top_folder_is_stripped_unless_it_is_train(tmp_path, kind):
    path = pack(
        tmp_path / f"x.{kind}",
        {"train/a/1.png": b"", "train/b/2.png": b"", "__MACOSX/train/a/._1.png": b"", "README": b""},
    )
    assert {item.id for item in read_items(path)} == {"train/a/1.png", "train/b/2.png"}
    path = pack(
        tmp_path / f"y.{kind}",
        {
            "top/a/1.png": b"",
            "top/b/2.png": b"",
            "__MACOSX/top/a/._1.png": b"",
            ".x/1.png": b"",
            "README": b"",
        },
    )
    assert {item.id for item in read_items(path)} == {"a/1.png", "b/2.png"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "../a/3.png",
        "a/../../3.png",
        "/a/3.png",
        "C:/a/3.png",
        "c:3.png",
        "a\\3.png",
        "a/..",
        "x\\..\\y",
        "..",
    ],
)
def test_a_path_that_leads_out_of_the_archive_is_refused(tmp_path, kind, name):
    path = pack(tmp_path / f"x.{kind}", [*PAIR.items(), (name, b"")])
    with pytest.raises(DataError, match="paths inside the archive") as caught:
        open_source(f"archive:{path}")
    assert repr(name) in caught.value.received


@pytest.mark.parametrize("kind", KINDS)
def test_names_with_dots_are_allowed(tmp_path, kind):
    path = pack(tmp_path / f"x.{kind}", PAIR | {"a/x..png": b"x", "a..b/...c.png": b"y", "b//./3.png": b"z"})
    assert {item.id for item in read_items(path)} == {"a/1.png", "b/2.png", "a/x..png", "b/3.png"}


def make_special(kind, name, content=b""):
    """Makes an entry of some kind for a tar, by its type, and for a zip, by its Unix mode."""
    types = {
        "link": (tarfile.SYMTYPE, stat.S_IFLNK),
        "pipe": (tarfile.FIFOTYPE, stat.S_IFIFO),
        "device": (tarfile.CHRTYPE, stat.S_IFCHR),
    }
    tar_info = tarfile.TarInfo(name)
    zip_info = zipfile.ZipInfo(name)
    tar_info.type, mode = types.get(kind, (tarfile.LNKTYPE, stat.S_IFLNK))
    tar_info.linkname = "b/2.png"
    zip_info.external_attr = (mode | 0o644) << 16
    return tar_info, zip_info, content


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("kind", ["link", "hardlink", "pipe", "device"])
def test_links_and_devices_are_rejected(tmp_path, kind, suffix, caplog):
    tar_info, zip_info, content = make_special(kind, "a/3.png", b"" if suffix != "zip" else b"/etc/passwd")
    path = pack(
        tmp_path / f"x.{suffix}", [*PAIR.items(), (zip_info if suffix == "zip" else tar_info, content)]
    )
    reason = "a link, which is not followed" if "link" in kind else "not a regular file"
    assert [item for item in read_items(path) if isinstance(item, Rejected)] == [Rejected("a/3.png", reason)]
    assert ("links=1" in caplog.text) == ("link" in kind)


def test_a_linked_class_folder_is_logged(tmp_path, caplog):
    path = pack(tmp_path / "x.tar", [*PAIR.items(), (make_special("link", "c")[0], b"")])
    assert len(read_items(path)) == 2
    assert "links=1, which are not followed" in caplog.text


def test_a_sparse_member_is_rejected(tmp_path):
    info = tarfile.TarInfo("a/3.png")
    info.pax_headers = {
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": "99",
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
    }
    assert Rejected("a/3.png", "not a regular file") in read_items(
        pack(tmp_path / "x.tar", [*PAIR.items(), (info, b"")])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_is_too_large_is_rejected(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(archive, "MAX_FILE", 9)
    path = pack(tmp_path / f"x.{kind}", PAIR | {"a/9.png": b"123456789", "a/10.png": b"1234567890"})
    found = {item.id: item for item in read_items(path)}
    assert found["a/9.png"] == Example(b"123456789", 0, "a/9.png")
    assert found["a/10.png"] == Rejected("a/10.png", "larger than 0 MiB: 10 bytes")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_that_expands_too_much_is_refused_before_it_is_inflated(tmp_path, kind, monkeypatch):
    path = pack(tmp_path / f"x.{kind}", PAIR | {"a/3.png": bytes(2**25), "b/4.png": b""})
    open_source(f"archive:{path}")  # small enough for any ratio
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED", 2**20)
    positions = []
    original = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: positions.append(self.tell()) or original(self, size)
    )
    with pytest.raises(DataError, match="expands to at most 100 times"):
        open_source(f"archive:{path}")
    assert max(positions, default=0) < 10_000  # not even inflated


def test_a_wrong_size_in_the_directory_limits_what_is_inflated(tmp_path):
    path = pack(tmp_path / "x.zip", PAIR | {"a/3.png": bytes(2**24)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("a/3.png")
    entry = data.rindex(b"PK\1\2")
    assert struct.unpack_from("<I", data, entry + 24)[0] == info.file_size
    struct.pack_into("<I", data, entry + 24, 5)  # the directory says 5 bytes
    path.write_bytes(data)
    source = open_source(f"archive:{path}")
    rows = {row["path"]: row for row in source.splits["train"].to_pylist()}

    class CountingFile(io.BytesIO):
        total = 0

        def read(self, size=-1):
            CountingFile.total += size
            return super().read(size)

    file = CountingFile(bytes(data))
    tracemalloc.start()
    with pytest.raises(members.DamagedMemberError):
        members.read_zip(file, rows[b"a/3.png"])
    assert tracemalloc.get_traced_memory()[1] < 100_000  # inflated no further than the declared size
    tracemalloc.stop()
    assert CountingFile.total < 2000
    assert Rejected("a/3.png", "damaged: not the size and CRC-32 that the archive says") in read_items(path)


@pytest.mark.parametrize("surplus", [b"", b"more"])
def test_too_many_bytes_behind_a_tar_are_refused(tmp_path, surplus, monkeypatch):
    monkeypatch.setattr(members, "MAX_TRAILER", 2**20)
    tar = pack(tmp_path / "x.tar", PAIR).read_bytes()
    (tmp_path / "y.tgz").write_bytes(gzip.compress(tar + surplus + bytes(2**19)))
    assert len(read_items(tmp_path / "y.tgz")) == 2
    (tmp_path / "y.tgz").write_bytes(gzip.compress(tar + surplus + bytes(2**22)))
    with pytest.raises(DataError, match="behind the end"):
        open_source(f"archive:{tmp_path / 'y.tgz'}")


def test_a_huge_header_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 2**40
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(DataError, match=f"a header of {2**40} bytes"):
        open_source(f"archive:{tmp_path / 'x.tar'}")


def test_one_flipped_bit_in_the_directory_makes_no_class(tmp_path):
    path = pack(tmp_path / "x.zip", PAIR | {"a/3.png": b"three"})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"a/3.png")] ^= 2  # the class folder a becomes c, in the directory only
    path.write_bytes(data)
    source = open_source(f"archive:{path}")
    assert source.classes == ("a", "b")
    assert Rejected("c/3.png", "another name in its own header: 'a/3.png'") in read_items(path)


def test_members_that_share_one_header_are_refused(tmp_path):
    path = pack(tmp_path / "x.zip", PAIR | {"a/3.png": b"three"})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    offset = struct.unpack_from("<I", data, data.index(b"PK\1\2") + 42)[0]
    struct.pack_into("<I", data, entry + 42, offset)  # the last entry refers to the first member
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"'a/3\.png' and 'a/1\.png' share bytes of the file"):
        open_source(f"archive:{path}")


@pytest.mark.parametrize("time", ["inf", "-inf", "nan", "1e300"])
def test_an_impossible_time_in_a_tar_does_no_harm(tmp_path, time):
    info = tarfile.TarInfo("a/3.png")
    info.pax_headers = {"mtime": time}
    path = pack(tmp_path / "x.tar", [*PAIR.items(), (info, b"three")])
    assert Example(b"three", 0, "a/3.png") in read_items(path)


@pytest.mark.parametrize("kind", KINDS)
def test_images_outside_of_class_folders_are_counted(tmp_path, kind):
    path = pack(tmp_path / f"x.{kind}", PAIR | {"1.png": b"", "2.jpg": b"", "notes.txt": b"", ".3.png": b""})
    assert open_source(f"archive:{path}").notes == ("images outside of class folders, not read: 2",)


def test_an_encrypted_member_is_rejected(tmp_path):
    path = pack(tmp_path / "x.zip", PAIR | {"a/3.png": b"secret"})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert Rejected("a/3.png", "encrypted") in read_items(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unsupported_compression_is_rejected(tmp_path, method):
    path = pack(tmp_path / "x.zip", PAIR)
    with zipfile.ZipFile(path, "a", method) as file:
        file.writestr("a/3.png", b"three")
    (rejected,) = (item for item in read_items(path) if isinstance(item, Rejected))
    assert rejected.reason.startswith(f"compression method {method}")


def test_a_self_extracting_zip_with_stored_members(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"#!/bin/sh something that unpacks itself\n")
    with zipfile.ZipFile(path, "a") as file:
        for name, content in PAIR.items():
            file.writestr(name, content)
    assert {item.id: item.image for item in read_items(path)} == PAIR


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("place", ["header", "content"])
def test_a_damaged_zip_member_is_rejected_and_the_others_are_not(tmp_path, compression, place):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in (PAIR | {"a/3.png": bytes(range(256)) * 9}).items():
            file.writestr(name, content)
        offset = file.getinfo("a/3.png").header_offset
    data = bytearray(path.read_bytes())
    data[offset if place == "header" else offset + 30 + 7 + 100] ^= 0xFF
    path.write_bytes(data)
    (rejected,) = (item for item in read_items(path) if isinstance(item, Rejected))
    assert rejected.id == "a/3.png"
    assert rejected.reason.startswith("no member where" if place == "header" else "damaged")
    assert len(read_items(path)) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_a_truncated_archive_is_refused(tmp_path, kind, share):
    path = pack(
        tmp_path / f"x.{kind}",
        {f"{name}/{index}.png": os.urandom(3000) for name in "ab" for index in range(9)},
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"archive|whole") as caught:
        open_source(f"archive:{path}")
    assert str(path) in caught.value.received


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    path = pack(tmp_path / "x.tar", PAIR | {"b/3.png": b"3"})
    path.write_bytes(path.read_bytes()[:2048])
    with pytest.raises(DataError, match="cut off after 2048 bytes"):
        open_source(f"archive:{path}")


def test_a_damaged_header_in_the_middle_of_a_tar_is_refused(tmp_path):
    path = pack(tmp_path / "x.tar", PAIR | {"b/3.png": b"3"})
    data = bytearray(path.read_bytes())
    data[2048 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged or cut off after 2048"):
        open_source(f"archive:{path}")


def test_a_flipped_bit_in_a_gzip_is_refused(tmp_path):
    path = pack(
        tmp_path / "x.tgz", {f"{name}/{index}.png": os.urandom(3000) for name in "ab" for index in range(9)}
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"CRC check failed|whole"):
        open_source(f"archive:{path}")


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_give_wrong_content_or_other_errors_never(tmp_path, kind):
    path = pack(tmp_path / f"x.{kind}", TREE)
    generator = random.Random(7)
    original = path.read_bytes()
    expected = {item.id: item for item in read_items(path)}
    for _ in range(150):
        data = bytearray(original)
        for _ in range(generator.choice([1, 1, 1, 20])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            found = read_items(path)
        except GlassboxError:
            continue
        if kind != "tar":  # which holds no checksum of the contents
            pictures = [
                item
                for item in found
                if isinstance(item, Example) and isinstance(expected.get(item.id), Example)
            ]
            assert all(item.image == expected[item.id].image for item in pictures)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_members_with_one_name_the_last_counts(tmp_path, kind):
    path = pack(
        tmp_path / f"x.{kind}", [("a/1.png", b"old"), *PAIR.items(), ("b/0.png", b"0"), ("./a/1.png", b"new")]
    )
    found = [item for item in read_items(path) if item.id == "a/1.png"]
    overwritten = Rejected("a/1.png", "comes again later in the archive under the same name")
    assert found == [overwritten, overwritten, Example(b"new", 0, "a/1.png")]
    assert len(read_items(path)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_not_utf8_are_rejected(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        pack(path, PAIR | {"a/QQ.png": b"", "a/RR.png": b"r"})
        path.write_bytes(path.read_bytes().replace(b"QQ", b"\xff\xfe").replace(b"RR", "ü".encode()))
    else:
        pack(path, PAIR | {"a/\udcff\udcfe.png": b"", "a/ü.png": b"r"})
    found = {item.id: item for item in read_items(path)}
    assert found["a/\\xff\\xfe.png"] == Rejected("a/\\xff\\xfe.png", "the name is not UTF-8")
    # UTF-8 is also recognised without its flag, which many programs do not set.
    assert found["a/ü.png"] == Example(b"r", 0, "a/ü.png")


@pytest.mark.parametrize("kind", KINDS)
def test_archives_without_files_are_refused(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    for entries in ([], ["top/", "top/a/", "top/b/"]):
        if kind == "zip":
            pack(path, [(name, b"") for name in entries])
        else:
            with tarfile.open(path, "w:" if kind == "tar" else "w:gz") as file:
                for name in entries:
                    info = tarfile.TarInfo(name)
                    info.type = tarfile.DIRTYPE
                    file.addfile(info)
        with pytest.raises(DataError, match="two classes"):
            open_source(f"archive:{path}")


def test_an_empty_class_folder_is_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    pack(tmp_path / "x.zip", [*PAIR.items(), ("empty/", b"")])
    assert open_source(f"archive:{tmp_path / 'x.zip'}").classes == ("a", "b")
    assert "'empty'" in caplog.text


@pytest.mark.parametrize(
    ("kind", "suffix"), [(kind, suffix) for kind in KINDS[:3] for suffix in KINDS[:3] if kind != suffix]
)
def test_a_wrong_suffix_is_reported(tmp_path, kind, suffix):
    path = pack(tmp_path / f"x.{kind}", PAIR).rename(tmp_path / f"y.{suffix}")
    with pytest.raises(DataError, match=rf"it looks like a \.{kind} file"):
        open_source(f"archive:{path}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_web_page_is_refused(tmp_path, kind):
    (tmp_path / f"x.{kind}").write_bytes(b"<!DOCTYPE html><html>not found</html>" * 99)
    with pytest.raises(DataError, match="a whole"):
        open_source(f"archive:{tmp_path / f'x.{kind}'}")


def test_a_wrong_path_is_reported(tmp_path):
    (tmp_path / "d.zip").mkdir()
    for name, expected in (
        ("x.rar", r"\.zip, \.tar"),
        ("x.zip", "check the path"),
        ("d.zip", r"write folder:.*d\.zip"),
    ):
        with pytest.raises(ConfigError, match=expected):
            open_source(f"archive:{tmp_path / name}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_changes_with_the_members(tmp_path, kind):
    one = open_source(f"archive:{pack(tmp_path / f'1.{kind}', PAIR)}")
    assert one.fingerprint() == open_source(f"archive:{pack(tmp_path / f'2.{kind}', PAIR)}").fingerprint()
    for index, changed in enumerate(
        (PAIR | {"a/3.png": b""}, PAIR | {"a/1.png": b"longer"}, {"b/1.png": b"first", "a/2.png": b"second"})
    ):
        assert (
            open_source(f"archive:{pack(tmp_path / f'c{index}.{kind}', changed)}").fingerprint()
            != one.fingerprint()
        )
    if kind == "zip":
        same_size = open_source(f"archive:{pack(tmp_path / 's.zip', PAIR | {'a/1.png': b'First'})}")
        assert same_size.fingerprint() != one.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_changed_or_was_removed_is_an_error(tmp_path, kind):
    path = pack(tmp_path / f"x.{kind}", PAIR)
    source = open_source(f"archive:{path}")
    pack(path, PAIR | {"a/3.png": os.urandom(99999)})
    with pytest.raises(DataError, match="does not change"):
        list(source.read("train", 0, 2))
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        list(source.read("train", 0, 2))


def test_a_large_gzip_is_read_from_its_seek_points(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "MIN_SPACING", 2**16)
    tree = {f"{name}/{index}.png": os.urandom(40_000) for name in "ab" for index in range(20)}
    source = open_source(f"archive:{pack(tmp_path / 'x.tgz', tree)}")
    assert 5 * 32768 < source.seek_points.size < 40 * 32768
    assert {item.id: item.image for item in source.read("train", 0, 40)} == tree


def test_seek_points_of_an_enormous_gzip_do_not_crash_the_library(tmp_path):
    path = pack(tmp_path / "x.tgz", PAIR)
    code = (
        "from pipelines.sources import members, open_source\n"
        f"members.MIN_SPACING = 2**40\nopen_source('archive:{path}')"
    )
    # In a process of its own, which may crash.
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert len(read_items(path)) == 2


def test_a_source_of_many_members_is_small_when_pickled(tmp_path):
    """Workers receive columns, not Python objects."""
    tree = {f"photos/{'cats' if index % 2 else 'dogs'}/{index:07d}.jpg": b"" for index in range(20_000)}
    source = open_source(f"archive:{pack(tmp_path / 'x.zip', tree)}")
    buffers = []
    pickled = pickle.dumps(source, 5, buffer_callback=buffers.append)
    assert len(pickled) < 5000
    assert sum(buffer.raw().nbytes for buffer in buffers) < 100 * len(tree)


@pytest.mark.parametrize("change", ["none", "replaced", "removed"])
def test_an_archive_that_changed_is_noticed_without_a_second_listing(tmp_path, change):
    path = tmp_path / "a.zip"
    pack(path, PAIR)
    os.utime(path, (1, 1))  # clocks of file systems are coarse
    source = open_source(f"archive:{path}")
    if change == "none":
        pickle.loads(pickle.dumps(source)).check_unchanged()
        return
    content = path.read_bytes()
    path.unlink()
    if change == "replaced":
        path.write_bytes(content)
    with pytest.raises(DataError, match="changed since the build began"):
        source.check_unchanged()

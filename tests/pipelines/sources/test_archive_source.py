"""Archives: the same as the folder they were made of, and nothing that one can hold does harm."""

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
    "train/dog/notes.txt": b"words",
    "train/dog/.hidden.png": b"hidden",
    "train/empty/words.txt": b"",
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
    """Makes an archive of (name, content) pairs; a content may be a ready-made ZipInfo or TarInfo with its bytes."""
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


def items(path, split="train"):
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
    assert dict(source.counts()) == dict(folder.counts()) == {"train": 5, "validation": 2}
    for split, count in folder.counts().items():
        whole = list(source.read(split, 0, count))
        assert whole == list(folder.read(split, 0, count))
        assert [item for start in range(count) for item in source.read(split, start, start + 1)] == whole
    assert list(source.read("train", 3, 99)) == list(folder.read("train", 3, 99))


def test_the_order_never_changes(tmp_path):
    fill(tmp_path, {f"{name}/{index}.png": b"" for name in "ab" for index in range(3)})
    assert [item.id for item in open_source(f"folder:{tmp_path}").read("train", 0, 6)] == GOLDEN


GOLDEN = ["a/1.png", "b/1.png", "b/2.png", "a/0.png", "a/2.png", "b/0.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_folder_is_the_top_unless_it_is_train(tmp_path, kind):
    path = pack(
        tmp_path / f"x.{kind}",
        {"train/a/1.png": b"", "train/b/2.png": b"", "__MACOSX/train/a/._1.png": b"", "README": b""},
    )
    assert {item.id for item in items(path)} == {"train/a/1.png", "train/b/2.png"}
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
    assert {item.id for item in items(path)} == {"a/1.png", "b/2.png"}


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
def test_a_path_that_leads_out_is_refused(tmp_path, kind, name):
    path = pack(tmp_path / f"x.{kind}", [*PAIR.items(), (name, b"")])
    with pytest.raises(DataError, match="paths inside the archive") as caught:
        open_source(f"archive:{path}")
    assert repr(name) in caught.value.received


@pytest.mark.parametrize("kind", KINDS)
def test_names_with_dots_are_no_escape(tmp_path, kind):
    path = pack(tmp_path / f"x.{kind}", PAIR | {"a/x..png": b"x", "a..b/...c.png": b"y", "b//./3.png": b"z"})
    assert {item.id for item in items(path)} == {"a/1.png", "b/2.png", "a/x..png", "b/3.png"}


def special(kind, name, content=b""):
    """An entry of some kind: of a tar by its type, of a zip by its Unix mode."""
    types = {
        "link": (tarfile.SYMTYPE, stat.S_IFLNK),
        "pipe": (tarfile.FIFOTYPE, stat.S_IFIFO),
        "device": (tarfile.CHRTYPE, stat.S_IFCHR),
    }
    tar, zipped = tarfile.TarInfo(name), zipfile.ZipInfo(name)
    tar.type, mode = types.get(kind, (tarfile.LNKTYPE, stat.S_IFLNK))
    tar.linkname = "b/2.png"
    zipped.external_attr = (mode | 0o644) << 16
    return tar, zipped, content


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("kind", ["link", "hardlink", "pipe", "device"])
def test_links_and_devices_are_rejected(tmp_path, kind, suffix, caplog):
    tar, zipped, content = special(kind, "a/3.png", b"" if suffix != "zip" else b"/etc/passwd")
    path = pack(tmp_path / f"x.{suffix}", [*PAIR.items(), (zipped if suffix == "zip" else tar, content)])
    reason = "a link, which is not followed" if "link" in kind else "not a regular file"
    assert [item for item in items(path) if isinstance(item, Rejected)] == [Rejected("a/3.png", reason)]
    assert ("links=1" in caplog.text) == ("link" in kind)


def test_a_linked_class_is_mentioned(tmp_path, caplog):
    path = pack(tmp_path / "x.tar", [*PAIR.items(), (special("link", "c")[0], b"")])
    assert len(items(path)) == 2
    assert "links=1, which are not followed" in caplog.text


def test_a_sparse_member_is_rejected(tmp_path):
    info = tarfile.TarInfo("a/3.png")
    info.pax_headers = {
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": "99",
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
    }
    assert Rejected("a/3.png", "not a regular file") in items(
        pack(tmp_path / "x.tar", [*PAIR.items(), (info, b"")])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_too_large_a_member_is_rejected_unread(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBER", 9)
    path = pack(tmp_path / f"x.{kind}", PAIR | {"a/9.png": b"123456789", "a/10.png": b"1234567890"})
    found = {item.id: item for item in items(path)}
    assert found["a/9.png"] == Example(b"123456789", 0, "a/9.png")
    assert found["a/10.png"] == Rejected("a/10.png", "larger than 0 MiB: 10 bytes")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused_before_it_goes_off(tmp_path, kind, monkeypatch):
    path = pack(tmp_path / f"x.{kind}", PAIR | {"a/3.png": bytes(2**25), "b/4.png": b""})
    open_source(f"archive:{path}")  # as small as that it may be what it likes
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED", 2**20)
    most = []
    original = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: most.append(self.tell()) or original(self, size)
    )
    with pytest.raises(DataError, match="expands to at most 100 times"):
        open_source(f"archive:{path}")
    assert max(most, default=0) < 10_000  # not even inflated


def test_a_lie_about_the_size_is_not_followed(tmp_path):
    path = pack(tmp_path / "x.zip", PAIR | {"a/3.png": bytes(2**24)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("a/3.png")
    at = data.rindex(b"PK\1\2")
    assert struct.unpack_from("<I", data, at + 24)[0] == info.file_size
    struct.pack_into("<I", data, at + 24, 5)  # the directory says 5 bytes
    path.write_bytes(data)
    source = open_source(f"archive:{path}")
    rows = {row["path"]: row for row in source.splits["train"].to_pylist()}

    class Counted(io.BytesIO):
        total = 0

        def read(self, size=-1):
            Counted.total += size
            return super().read(size)

    file = Counted(bytes(data))
    tracemalloc.start()
    with pytest.raises(members.DamagedMemberError):
        members.read_zip(file, rows[b"a/3.png"])
    assert tracemalloc.get_traced_memory()[1] < 100_000  # inflated no further than said
    tracemalloc.stop()
    assert Counted.total < 2000
    assert Rejected("a/3.png", "damaged: not the size and CRC-32 that the archive says") in items(path)


@pytest.mark.parametrize("surplus", [b"", b"more"])
def test_too_much_behind_a_tar_is_refused(tmp_path, surplus, monkeypatch):
    monkeypatch.setattr(members, "MAX_TRAILER", 2**20)
    tar = pack(tmp_path / "x.tar", PAIR).read_bytes()
    (tmp_path / "y.tgz").write_bytes(gzip.compress(tar + surplus + bytes(2**19)))
    assert len(items(tmp_path / "y.tgz")) == 2
    (tmp_path / "y.tgz").write_bytes(gzip.compress(tar + surplus + bytes(2**22)))
    with pytest.raises(DataError, match="behind the end"):
        open_source(f"archive:{tmp_path / 'y.tgz'}")


def test_a_huge_header_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(DataError, match=f"a header of {2**40} bytes"):
        open_source(f"archive:{tmp_path / 'x.tar'}")


def test_an_encrypted_member_is_rejected(tmp_path):
    path = pack(tmp_path / "x.zip", PAIR | {"a/3.png": b"secret"})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert Rejected("a/3.png", "encrypted") in items(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unsupported_compression_is_rejected(tmp_path, method):
    path = pack(tmp_path / "x.zip", PAIR)
    with zipfile.ZipFile(path, "a", method) as file:
        file.writestr("a/3.png", b"three")
    (rejected,) = (item for item in items(path) if isinstance(item, Rejected))
    assert rejected.reason.startswith(f"compression method {method}")


def test_stored_members_and_a_zip_behind_other_bytes(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"#!/bin/sh something that unpacks itself\n")
    with zipfile.ZipFile(path, "a") as file:
        for name, content in PAIR.items():
            file.writestr(name, content)
    assert {item.id: item.image for item in items(path)} == PAIR


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
    (rejected,) = (item for item in items(path) if isinstance(item, Rejected))
    assert rejected.id == "a/3.png"
    assert rejected.reason.startswith("no member where" if place == "header" else "damaged")
    assert len(items(path)) == 3


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
def test_flipped_bytes_never_give_anything_but_our_errors(tmp_path, kind):
    path, draw = pack(tmp_path / f"x.{kind}", TREE), random.Random(7)
    good = path.read_bytes()
    expected = {item.id: item for item in items(path)}
    for _ in range(150):
        data = bytearray(good)
        for _ in range(draw.choice([1, 1, 1, 20])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            found = items(path)
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
def test_the_last_of_one_name_counts(tmp_path, kind):
    path = pack(
        tmp_path / f"x.{kind}", [("a/1.png", b"old"), *PAIR.items(), ("b/0.png", b"0"), ("./a/1.png", b"new")]
    )
    found = [item for item in items(path) if item.id == "a/1.png"]
    again = Rejected("a/1.png", "comes again later in the archive under the same name")
    assert found == [again, again, Example(b"new", 0, "a/1.png")]
    assert len(items(path)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_not_utf8(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        pack(path, PAIR | {"a/QQ.png": b"", "a/RR.png": b"r"})
        path.write_bytes(path.read_bytes().replace(b"QQ", b"\xff\xfe").replace(b"RR", "ü".encode()))
    else:
        pack(path, PAIR | {"a/\udcff\udcfe.png": b"", "a/ü.png": b"r"})
    found = {item.id: item for item in items(path)}
    assert found["a/\\xff\\xfe.png"] == Rejected("a/\\xff\\xfe.png", "the name is not UTF-8")
    assert found["a/ü.png"] == Example(
        b"r", 0, "a/ü.png"
    )  # also without the mark for it that many packers forget


@pytest.mark.parametrize("kind", KINDS)
def test_folders_only_and_nothing_at_all(tmp_path, kind):
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


def test_an_empty_class_folder_is_mentioned(tmp_path, caplog):
    pack(tmp_path / "x.zip", [*PAIR.items(), ("nothing/", b"")])
    assert open_source(f"archive:{tmp_path / 'x.zip'}").classes == ("a", "b")
    assert "'nothing'" in caplog.text


@pytest.mark.parametrize(
    ("real", "said"), [(real, said) for real in KINDS[:3] for said in KINDS[:3] if real != said]
)
def test_not_what_its_suffix_says(tmp_path, real, said):
    path = pack(tmp_path / f"x.{real}", PAIR).rename(tmp_path / f"y.{said}")
    with pytest.raises(DataError, match=rf"it looks like a \.{real} file"):
        open_source(f"archive:{path}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_web_page_is_no_archive(tmp_path, kind):
    (tmp_path / f"x.{kind}").write_bytes(b"<!DOCTYPE html><html>not found</html>" * 99)
    with pytest.raises(DataError, match="a whole"):
        open_source(f"archive:{tmp_path / f'x.{kind}'}")


def test_wrong_paths(tmp_path):
    (tmp_path / "d.zip").mkdir()
    for name, expected in (
        ("x.rar", r"\.zip, \.tar"),
        ("x.zip", "check the path"),
        ("d.zip", r"write folder:.*d\.zip"),
    ):
        with pytest.raises(ConfigError, match=expected):
            open_source(f"archive:{tmp_path / name}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint(tmp_path, kind):
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
def test_an_archive_that_changed_or_vanished(tmp_path, kind):
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


def test_the_spacing_of_an_enormous_gzip_is_one_that_the_library_takes(tmp_path):
    path = pack(tmp_path / "x.tgz", PAIR)
    code = f"from pipelines.sources import members, open_source; members.MIN_SPACING = 2**40; open_source('archive:{path}')"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
    )  # a process of its own: it may crash
    assert len(items(path)) == 2


def test_a_million_members_stay_small(tmp_path):
    """In the source that travels to the workers: its columns, not Python objects."""
    tree = {f"photos/{'cats' if index % 2 else 'dogs'}/{index:07d}.jpg": b"" for index in range(20_000)}
    source = open_source(f"archive:{pack(tmp_path / 'x.zip', tree)}")
    buffers = []
    rest = pickle.dumps(source, 5, buffer_callback=buffers.append)
    assert len(rest) < 5000
    assert sum(buffer.raw().nbytes for buffer in buffers) < 100 * len(tree)

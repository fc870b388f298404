"""IDX files become greyscale PNG images; damaged and missing files are named."""

from __future__ import annotations

import gzip
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ConfigError, DataError
from pipelines.sources import open_source

PIXELS = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4) * 10


def encode_idx(array, kind=0x08):
    sides = b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sides + array.astype(np.uint8).tobytes()


def write_split(root, prefix, pixels, labels, suffix=".gz"):
    pack = gzip.compress if suffix else bytes
    (root / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(encode_idx(pixels)))
    (root / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(encode_idx(np.array(labels))))


def test_images_become_greyscale_png(tmp_path):
    write_split(tmp_path, "train", PIXELS, [3, 1, 2])
    write_split(tmp_path, "t10k", PIXELS[:1] + 1, [3])
    source = open_source(f"idx:{tmp_path}")
    assert source.classes == ("1", "2", "3")  # as in EMNIST letters, where 0 never occurs
    assert source.labels("train").tolist() == [2, 0, 1]
    assert dict(source.counts()) == {"train": 3, "validation": 1}
    second, third = source.read("train", 1, 9)
    assert (second.id, second.label, third.id, third.label) == ("train/000001", 0, "train/000002", 1)
    picture = Image.open(io.BytesIO(second.image))
    assert (picture.format, picture.mode) == ("PNG", "L")
    assert np.array_equal(np.asarray(picture), PIXELS[1])
    (only,) = source.read("validation", 0, 1)
    assert (only.id, only.label) == ("t10k/000000", 2)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(only.image))), PIXELS[0] + 1)


def test_compression_does_not_matter(tmp_path):
    found = []
    for suffix in ("", ".gz"):
        root = tmp_path / f"d{suffix}"
        root.mkdir()
        write_split(root, "train", PIXELS, [2, 0, 1], suffix)
        source = pickle.loads(pickle.dumps(open_source(f"idx:{root}")))
        found.append((source.fingerprint(), list(source.read("train", 0, 3))))
    assert found[0] == found[1]


@pytest.mark.parametrize("what", ["pixel", "label"])
def test_the_fingerprint_changes_with_the_content(tmp_path, what):
    write_split(tmp_path, "train", PIXELS, [2, 0, 1])
    before = open_source(f"idx:{tmp_path}").fingerprint()
    changed = PIXELS.copy()
    changed[2, 1, 3] += what == "pixel"
    write_split(tmp_path, "train", changed, [2, 0, 1] if what == "pixel" else [2, 1, 1])
    assert open_source(f"idx:{tmp_path}").fingerprint() != before


VALID = encode_idx(PIXELS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "IDX file of unsigned bytes"),
        (VALID[:10], "40 bytes|bytes for shape"),
        (VALID[:-1], r"40 bytes for shape \(3, 2, 4\)"),
        (VALID + b"x", "bytes=41"),
        (b"\1" + VALID[1:], "unsigned bytes"),
        (encode_idx(PIXELS, kind=0x0D), "00 00 0d 03"),
        (encode_idx(PIXELS[:, 0]), "rows x columns"),
        (encode_idx(PIXELS[:0]), "at least one"),
        (encode_idx(PIXELS[:2]), r"each of the 2 images.*shape=\(3,\)"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_file_is_named(tmp_path, content, expected, suffix):
    write_split(tmp_path, "train", PIXELS, [2, 0, 1], suffix)
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=expected) as caught:
        open_source(f"idx:{tmp_path}")
    assert f"idx{1 if 'each of' in expected else 3}-ubyte{suffix}: " in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-9], lambda data: b"text", lambda data: data[:15] + b"\xff\xff" + data[17:]],
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    write_split(tmp_path, "train", PIXELS, [2, 0, 1])
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz: "):
        open_source(f"idx:{tmp_path}")


@pytest.mark.parametrize(
    "missing", ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
)
def test_a_missing_partner_is_named(tmp_path, missing):
    for prefix in ("train", "t10k"):
        write_split(tmp_path, prefix, PIXELS, [2, 0, 1])
    (tmp_path / f"{missing}-ubyte.gz").unlink()
    with pytest.raises(DataError, match=f"{missing}-ubyte"):
        open_source(f"idx:{tmp_path}")


def test_a_missing_folder_and_a_single_class_are_reported(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        open_source(f"idx:{tmp_path / 'missing'}")
    write_split(tmp_path, "train", PIXELS, [0, 0, 1])
    write_split(tmp_path, "t10k", PIXELS, [0, 0, 2])
    with pytest.raises(DataError, match="no training images of class '2'"):
        open_source(f"idx:{tmp_path}")
    write_split(tmp_path, "train", PIXELS, [0, 0, 0])
    with pytest.raises(DataError, match="two classes"):
        open_source(f"idx:{tmp_path}")

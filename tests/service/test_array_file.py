"""Files of arrays: what is loaded was saved, and files that declare more than they hold are refused."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.array_file import load_arrays, save_arrays

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7), np.zeros((0, 4), np.float16)]
ALLOWED = 1 << 22  # bytes of memory for a refusal
TERABYTES = (1 << 40, 8)


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def build_header(shape: tuple[int, ...]) -> bytes:
    """Builds the header of an array of float32, with a few bytes of its content."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(64)


def write_member(path: Path, content: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("0000.npy", content)


def declare_terabytes(path: Path) -> None:
    write_member(path, build_header(TERABYTES))


def overflow_size(path: Path) -> None:
    write_member(path, build_header((1 << 40, 1 << 40)))


def declare_negative_size(path: Path) -> None:
    write_member(path, build_header((-(1 << 40), 8)))


def compress_zeros(path: Path) -> None:
    """Writes an array of 64 MB into a file of 64 kB."""
    file = io.BytesIO()
    np.save(file, np.zeros(1 << 24, np.float32))
    write_member(path, file.getvalue(), zipfile.ZIP_DEFLATED)


def list_a_member_twice(path: Path) -> None:
    """Writes an archive whose directory lists one large member many times."""
    file = io.BytesIO()
    np.save(file, np.zeros(1 << 12, np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0000.npy", file.getvalue())
        archive.filelist.extend(archive.filelist * 1000)


def pickle_an_object(path: Path) -> None:
    file = io.BytesIO()
    objects = np.array([Attack(path.with_name("mark"))], object)
    np.save(file, objects, allow_pickle=True)
    write_member(path, file.getvalue())


def pickle_a_member(path: Path) -> None:
    """Writes a pickle where an array should be, which `np.load` would unpickle if it were allowed."""
    write_member(path, pickle.dumps(Attack(path.with_name("mark"))))


def pickle_a_file(path: Path) -> None:
    path.write_bytes(pickle.dumps(Attack(path.with_name("mark"))))


def enlarge(path: Path) -> None:
    """Appends 64 GiB of nothing to a file."""
    save_arrays(path, ARRAYS)
    with path.open("r+b") as file:
        file.truncate(1 << 36)


def hide_bytes(path: Path) -> None:
    """Puts 16 MB of nothing in front of an archive, which `zipfile` skips."""
    save_arrays(path, ARRAYS)
    content = path.read_bytes()
    with path.open("wb") as file:
        file.seek(1 << 24)
        file.write(content)


def damage_header(path: Path) -> None:
    write_member(path, build_header((2, 8)).replace(b"descr", b"desc\x00"))


def leave_header_open(path: Path) -> None:
    write_member(path, build_header((2, 8)).replace(b"}", b"("))


def add_text(path: Path) -> None:
    save_arrays(path, ARRAYS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("text", "text")


def test_arrays_are_loaded_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save_arrays(path, ARRAYS)
    for loaded, saved in zip(load_arrays(path), ARRAYS, strict=True):
        assert (loaded.dtype, loaded.shape) == (saved.dtype, saved.shape)
        np.testing.assert_array_equal(loaded, saved)
    assert len(load_arrays(path, 2)) == 2
    save_arrays(path, [])
    assert load_arrays(path) == []


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (declare_terabytes, "declares 35,184,372,088,832 bytes of "),
        (overflow_size, "declares "),
        (declare_negative_size, "negative"),
        (compress_zeros, "no uncompressed array"),
        (list_a_member_twice, "list of members"),
        (pickle_an_object, "allow_pickle"),
        (pickle_a_member, "magic string"),
        (pickle_a_file, "no whole zip archive"),
        (enlarge, "no whole zip archive"),
        (hide_bytes, "list of members"),
        (damage_header, "header"),
        (leave_header_open, "multi-line"),
        (add_text, "no uncompressed array"),
    ],
)
def test_a_file_is_refused_at_little_cost(tmp_path: Path, write: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "state.npz"
    write(path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason):
        load_arrays(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ALLOWED
    assert not (tmp_path / "mark").exists()


def test_arrays_of_objects_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        save_arrays(tmp_path / "state.npz", [np.array([object()])])

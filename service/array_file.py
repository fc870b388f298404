"""Saves and loads lists of arrays, `.npz`: no more memory is allocated than the file has bytes."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np

from pipelines.errors import ARCHIVE_ERRORS
from pipelines.storage import check_archive_size

HEADER_VERSION = (1, 0)  # in which NumPy writes arrays of numbers
SUFFIX = ".npy"  # of the members


def save_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Writes arrays to a file, uncompressed.

    Args:
        path: File to create, with the suffix `.npz`.
        arrays: Arrays of numbers, of any shapes.
    """
    # Numbered, because names of variables count up in a process.
    numbered = {f"{number:04d}": array for number, array in enumerate(arrays)}
    np.savez(path, allow_pickle=False, **numbered)


def load_arrays(path: Path, limit: int | None = None) -> list[np.ndarray]:
    """Loads the arrays that `save_arrays` wrote, in their order.

    Args:
        path: File to read; somebody else may have written it.
        limit: Number of arrays to load, the first ones; None for all.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, declares more than it holds, or holds anything but arrays of numbers.
    """
    check_archive_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.filename)
            return [_load_array(archive, member) for member in members[:limit]]
    except OSError:
        raise
    except (*ARCHIVE_ERRORS, RuntimeError, TokenError) as error:  # NumPy parses headers as Python
        raise ValueError(str(error) or type(error).__name__) from None


def _load_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED or not member.filename.endswith(SUFFIX):
        raise ValueError(f"{member.filename} is no uncompressed array")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != HEADER_VERSION:
            raise ValueError(f"{member.filename} has a header of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    declared = math.prod(shape) * dtype.itemsize
    if declared > member.file_size:
        raise ValueError(f"{member.filename} declares {declared:,} bytes of {member.file_size:,}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)

"""Errors, the registry and atomic writing."""

from __future__ import annotations

import fcntl
import os
import pickle
from pathlib import Path
from typing import TextIO

import pytest

from pipelines.errors import ConfigError, DataError
from pipelines.registry import Registry
from pipelines.storage import hash_file, lock_file, replace_directory, replace_file, write_atomically


def test_error_says_three_things_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DataError("a folder", "source=x", "make it")))
    assert str(error) == "Expected a folder. Received: source=x. Fix: make it."
    assert (type(error), error.exit_code) == (DataError, 3)


def test_registry_refuses_a_second_and_an_unknown_name() -> None:
    animals: Registry[int] = Registry("animal")
    animals.register("cat")(1)
    with pytest.raises(ValueError, match="name='cat'"):
        animals.register("cat")(2)
    assert animals.get("cat") == 1
    with pytest.raises(ConfigError, match=r"animal=cta\. Fix: use cat"):
        animals.get("cta")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.keras"
    write_atomically(path, "old")

    def fill_the_disk() -> None:
        with replace_file(path) as temporary:
            assert temporary.suffix == ".keras"
            temporary.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert [p.name for p in tmp_path.iterdir()] == ["file.keras"]
    assert path.read_text() == "old"


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report"
    for text in ("first", "second"):
        with replace_directory(path) as temporary:
            (temporary / text).write_text(text)
    assert [p.name for p in path.iterdir()] == ["second"]

    def fill_the_disk() -> None:
        with replace_directory(path) as temporary:
            (temporary / "half").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
    assert [p.name for p in path.iterdir()] == ["second"]


def test_a_directory_that_cannot_take_its_place_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report"
    path.mkdir()
    (path / "old").write_text("old")
    move = os.replace

    def fail_for_new(source: Path, target: Path) -> None:
        if target == path and source.name.startswith(".tmp-"):
            raise OSError("no")
        move(source, target)

    monkeypatch.setattr(os, "replace", fail_for_new)

    def replace() -> None:
        with replace_directory(path):
            pass

    with pytest.raises(OSError, match="no"):
        replace()
    assert [p.name for p in tmp_path.rglob("*")] == ["report", "old"]


def test_sha256(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"abc")
    assert hash_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_lock_is_held_by_one_and_freed(tmp_path: Path) -> None:
    with lock_file(tmp_path / "lock", ConfigError("a", "b", "c")):
        with (
            pytest.raises(ConfigError, match="Received: x"),
            lock_file(tmp_path / "lock", ConfigError("u", "x", "z")),
        ):
            pass
        with (
            pytest.raises(ConfigError),
            lock_file(tmp_path / "lock", ConfigError("u", "x", "z")),
        ):  # the refused one freed nothing
            pass
    with lock_file(tmp_path / "lock", ConfigError("u", "x", "z")):
        pass


@pytest.mark.parametrize("made_again", [True, False])
def test_a_lock_that_was_removed_between_opening_and_locking_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    path, lock = tmp_path / "lock", fcntl.flock

    def remove_first(file: TextIO, how: int) -> None:
        path.unlink()
        if made_again:
            path.touch()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with pytest.raises(ConfigError), lock_file(path, ConfigError("a", "b", "c")):
        pass

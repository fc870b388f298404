"""Errors, the registry, files that are written atomically, and locks."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, DataError
from pipelines.registry import Registry
from pipelines.storage import hash_file, lock_file, replace_directory, replace_file, write_atomically

ROOT = Path(__file__).resolve().parents[2]


def test_an_error_names_expectation_input_and_fix_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DataError("a folder", "source=x", "create it")))
    assert str(error) == "Expected a folder. Received: source=x. Fix: create it."
    assert (type(error), error.exit_code) == (DataError, 3)


def test_the_middle_of_a_huge_part_of_an_error_is_left_out() -> None:
    error = DataError("a number", f"rows={'1' * 2**20}2", "use 3")
    assert str(error) == f"Expected a number. Received: rows={'1' * 495} … {'1' * 499}2. Fix: use 3."
    assert error.args == (error.expected, error.received, error.fix)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    path = f"file={'x' * 900}"
    assert ConfigError("x", path, "y").received == path


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

    def fail_while_writing() -> None:
        with replace_file(path) as temporary:
            assert temporary.suffix == ".keras"
            temporary.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail_while_writing()
    assert [p.name for p in tmp_path.iterdir()] == ["file.keras"]
    assert path.read_text() == "old"


def test_a_directory_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report"
    for text in ("first", "second"):
        with replace_directory(path) as temporary:
            (temporary / text).write_text(text)
    assert [p.name for p in path.iterdir()] == ["second"]

    def fail_while_writing() -> None:
        with replace_directory(path) as temporary:
            (temporary / "half").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail_while_writing()
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
    assert [p.name for p in path.iterdir()] == ["second"]


def test_a_directory_that_cannot_be_moved_leaves_the_old_one(
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


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"abc")
    assert hash_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


REFUSAL = ConfigError("a free lock", "lock=held", "wait")


def test_a_lock_is_held_once_and_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path, REFUSAL):
        for _ in range(2):  # a refused attempt does not release it
            with pytest.raises(ConfigError, match="lock=held"), lock_file(path, REFUSAL):
                pass
    with lock_file(path, REFUSAL):
        pass
    assert path.exists()


@pytest.mark.parametrize("is_created_again", [True, False])
def test_a_lock_on_a_removed_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_created_again: bool
) -> None:
    """The file is removed between opening and locking it, so that the lock would guard nothing."""
    path = tmp_path / "lock"
    lock = fcntl.flock

    def remove_and_lock(descriptor: int, operation: int) -> None:
        path.unlink(missing_ok=True)
        if is_created_again:
            path.touch()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with pytest.raises(ConfigError), lock_file(path, REFUSAL):
        pass


HOLD_LOCK = """
import sys
from pathlib import Path
from pipelines.storage import lock_file

with lock_file(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_and_can_be_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD_LOCK, str(path)]
    first = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(ConfigError, match="lock=held"), lock_file(path, REFUSAL):
        pass
    second = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first.kill()
    assert second.stdout.readline() == "locked\n"
    second.communicate()
    assert (first.wait(), second.wait()) == (-signal.SIGKILL, 0)
    with lock_file(path, REFUSAL):
        pass

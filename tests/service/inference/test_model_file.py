"""Model files that would exhaust memory or run code are refused in one sentence, at little cost."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest
from import_graph import ROOT

from service.inference.model_file import check_model_file

MEGABYTE = 1 << 20
ALLOWED = 120 * MEGABYTE  # of memory for a refusal, buffers of the libraries included
# Loads every file, and prints the error and how far the peak of the memory has grown.
SCRIPT = """
import json, resource, sys
from pathlib import Path
from typing import Any
import keras
from pipelines.errors import GlassboxError
from service.inference.classifier import load_model

def measure_peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))  # what is not refused fails, and harms nothing
for name in sys.argv[1:]:
    before = measure_peak()
    try:
        load_model(Path(name))
        result = [0, "loaded"]
    except GlassboxError as error:
        result = [error.exit_code, str(error)]
    print("RESULT", json.dumps([*result, measure_peak() - before]))
"""


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


def save(path: Path, *layers: keras.Layer) -> Path:
    model = keras.Sequential([keras.layers.Input((4,)), *layers, keras.layers.Dense(2, name="last")])
    model.save(path)
    return path


def leave_mark(path: str) -> Callable[[Any], Any]:
    """Returns a function that creates a file; Keras stores its bytecode, and calls it to build a model."""
    return lambda x: [open(path, "w").close(), x][1]


def rewrite(
    source: Path, target: Path, member: str, content: bytes, method: int = zipfile.ZIP_STORED
) -> Path:
    """Copies a `.keras` file with one member replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if name != member:
                new.writestr(name, old.read(name))
        new.writestr(member, content, method)
    return target


def change_units(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(source) as archive:
        config = json.loads(archive.read("config.json"))
    config["config"]["layers"][-1]["config"]["units"] = 10**9
    return rewrite(source, target, "config.json", json.dumps(config).encode())


def change_legacy_units(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][-1]["config"]["units"] = 10**9
        file.attrs["model_config"] = json.dumps(config)
    return target


def declare_giant_array(path: Path) -> Path:
    """Replaces a kernel by an array of 40 GB of which nothing is stored."""
    with h5py.File(path, "r+") as file:
        kernels: list[str] = []
        file.visititems(
            lambda name, item: (
                kernels.append(name) if isinstance(item, h5py.Dataset) and item.ndim == 2 else None
            )
        )
        for name in kernels:
            del file[name]
            file.create_dataset(name, (10**5, 10**5), "f4", chunks=(1000, 1000))
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, int]]:
    """Loads all of the files in one process: exit code, message and growth of the peak memory, by name."""
    folder = tmp_path_factory.mktemp("models")
    good = save(folder / "good.keras")
    legacy = save(folder / "legacy.h5")
    zeros = bytes(150 * MEGABYTE)
    rewrite(good, folder / "bomb.keras", "model.weights.h5", zeros, zipfile.ZIP_DEFLATED)
    rewrite(good, folder / "config.keras", "config.json", b"[" + b"{}," * (6 << 20), zipfile.ZIP_DEFLATED)
    change_units(good, folder / "layer.keras")
    change_legacy_units(legacy, folder / "layer.h5")
    with zipfile.ZipFile(good) as archive:
        (folder / "weights.h5").write_bytes(archive.read("model.weights.h5"))
    weights = declare_giant_array(folder / "weights.h5").read_bytes()
    rewrite(good, folder / "array.keras", "model.weights.h5", weights)
    declare_giant_array(save(folder / "array.h5"))
    (folder / "secret").write_bytes(b"1234")
    with h5py.File(save(folder / "elsewhere.h5"), "r+") as file:
        file.create_dataset("elsewhere", (4,), "u1", external=[(str(folder / "secret"), 0, 4)])
    with h5py.File(save(folder / "link.h5"), "r+") as file:
        file["link"] = h5py.ExternalLink(str(folder / "legacy.h5"), "/model_weights")
    for name in ("lambda.keras", "lambda.h5"):
        save(folder / name, keras.layers.Lambda(leave_mark(str(folder / "mark"))))
        (folder / "mark").unlink()
    (folder / "pickle.keras").write_bytes(pickle.dumps(Attack(folder / "mark")))
    rewrite(good, folder / "member.keras", "model.weights.h5", pickle.dumps(Attack(folder / "mark")))
    (folder / "text.h5").write_text("hello")
    (folder / "cut.keras").write_bytes(good.read_bytes()[:-100])
    (folder / "cut.h5").write_bytes(legacy.read_bytes()[:3000])
    flipped = bytearray(good.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "flipped.keras").write_bytes(flipped)
    (folder / "saved_model.keras").mkdir()
    names = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".keras", ".h5")]
    names.remove("weights.h5")
    names.sort(key=lambda name: not name.startswith("good"))  # what TensorFlow needs once is allocated first
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(folder / name) for name in names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT")]
    found = {name: tuple(json.loads(line.split(" ", 1)[1])) for name, line in zip(names, lines, strict=True)}
    found["code"] = (int((folder / "mark").exists()), "", 0)
    return found


@pytest.mark.parametrize("name", ["good.keras", "legacy.h5"])
def test_a_model_is_loaded(results: dict[str, tuple[int, str, int]], name: str) -> None:
    assert results[name][:2] == (0, "loaded")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bomb.keras", "unpacks to at most 20 times its size"),
        ("config.keras", "unpacks to at most 20 times its size"),
        ("layer.keras", "holds the weights of its layers"),
        ("layer.h5", "holds the weights of its layers"),
        ("array.keras", "arrays of at most 20 times"),
        ("array.h5", "arrays of at most 20 times"),
        ("elsewhere.h5", "elsewhere is in another file"),
        ("link.h5", "link is in another file"),
        ("lambda.keras", "Lambda"),
        ("lambda.h5", "Lambda"),
        ("pickle.keras", "a Keras model file"),
        ("member.keras", "an undamaged model file"),
        ("text.h5", "a Keras model file"),
        ("cut.keras", "a Keras model file"),
        ("cut.h5", "an undamaged model file"),
        ("flipped.keras", "an undamaged model file"),
        ("saved_model.keras", "no such file"),
    ],
)
def test_a_file_is_refused_in_one_sentence(
    results: dict[str, tuple[int, str, int]], name: str, reason: str
) -> None:
    code, message, growth = results[name]
    assert code == 2
    assert message.startswith("Expected ")
    assert reason in message
    assert name in message
    assert "\n" not in message
    assert growth < ALLOWED


def test_no_code_was_executed(results: dict[str, tuple[int, str, int]]) -> None:
    assert results["code"][0] == 0


def test_a_file_without_permission_is_not_one_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"PK")
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"model\.keras"):
            check_model_file(path)
    finally:
        if is_root:
            os.seteuid(0)

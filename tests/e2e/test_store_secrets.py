"""Credentials of object stores and signed addresses are in no output, log, file or report of any command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stores import SECRET_KEY, Bucket, reserve_ports

from service.cli import main

ROOT = Path(__file__).resolve().parents[2]
# What no file may contain: the key that the server accepts, and some that it does not.
WRONG_KEY = "wrong-key-QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"
TOKEN = "session-token-Rm9yIHRlc3RzIG9ubHk"
AZURE_KEY = "YXp1cmUta2V5LWZvci10ZXN0cy1vbmx5LTEyMzQ1Njc4OTA="
SAS = "sv=2024-01-01&sig=c2FzLXRva2VuLWZvci10ZXN0cw"
SIGNATURE = "c2lnbmF0dXJlLWZvci10ZXN0cy1vbmx5"
SECRETS = (SECRET_KEY, WRONG_KEY, TOKEN, AZURE_KEY, SAS, SIGNATURE)

pytestmark = pytest.mark.e2e


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Creates the folder of Ray's sessions; the paths of its sockets must be short."""
    folder = Path(tempfile.mkdtemp(prefix="gb", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


class Shell:
    """Runs commands in a folder, and keeps what they print in files next to what they write.

    Args:
        folder: Working directory.
        environment: Changes to the environment of this process.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self._count = 0

    def run(self, *arguments: str, code: int = 0, **changes: str) -> str:
        """Runs a command of glassbox, checks its exit code, and returns what it printed."""
        command = [
            sys.executable,
            "-c",
            "import sys; from service.cli import main; sys.exit(main())",
            *arguments,
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | self.environment | changes
        result = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=500
        )
        output = result.stdout + result.stderr
        self._count += 1
        (self.folder / f"output-{self._count}.txt").write_text(output)
        assert result.returncode == code, output
        return output


def find_secrets(folder: Path) -> list[str]:
    """Returns the files below a folder that contain a secret."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [f"{path}: {secret}" for secret in SECRETS if secret.encode() in content]
    return found


def test_the_search_finds_a_secret(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\\x00 key=" + TOKEN.encode())
    assert find_secrets(tmp_path) == [f"{tmp_path}/log: {TOKEN}"]


def test_errors_of_stores_contain_no_secret(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (port,) = reserve_ports(1)
    closed = f"http://127.0.0.1:{port}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "1")

    def run(*arguments: str, code: int, **environment: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert main(arguments) == code
        output = "".join(capfd.readouterr())
        assert output.startswith("glassbox: Expected") or "does not respond" in output
        assert [secret for secret in SECRETS if secret in output] == []

    shards = f"{bucket.url}/shards"
    wrong = {"AWS_SECRET_ACCESS_KEY": WRONG_KEY}
    azure = {"AZURE_STORAGE_ACCOUNT_NAME": "tests", "AZURE_STORAGE_ENDPOINT": closed}
    signed = f"https://127.0.0.1:{port}/photos.zip?X-Amz-Signature={SIGNATURE}"
    run("shards", "info", shards, code=3, **wrong)
    run("shards", "build", f"folder:{bucket.url}/photos", "out", code=3, **wrong, AWS_SESSION_TOKEN=TOKEN)
    run("train", "--preset", f"{shards}/own.yaml", "--data", shards, "--out", "run", code=3, **wrong)
    run("shards", "info", shards, code=3, AWS_ENDPOINT_URL=closed)
    run("shards", "info", "az://container/shards", code=3, **azure, AZURE_STORAGE_ACCOUNT_KEY=AZURE_KEY)
    run("shards", "info", "az://container/shards", code=3, **azure, AZURE_STORAGE_SAS_TOKEN=SAS)
    for arguments in (
        ("shards", "build", signed, "out"),
        ("shards", "build", f"csv:{signed}", "out"),
        ("shards", "build", f"archive:{signed}", "out"),
        ("shards", "build", f"http{signed[5:]}", "out"),
        ("shards", "info", signed),
        ("preview", signed),
        ("train", "--preset", signed, "--data", "x", "--out", "run"),
        ("train", "--preset", "demo", "--data", "x", "--out", "run", f"weights={signed}"),
        ("evaluate", "--model", signed, "--data", "x"),
        ("predict", "--model", "x", "--data", signed, "--out", "x.csv"),
        ("report", signed),
        ("diagnose", signed),
    ):
        run(*arguments, code=2)
    assert find_secrets(tmp_path) == []
    assert not (tmp_path / "run").exists()


def write_photos(folder: Path) -> None:
    """Writes photos of two classes that a tiny model tells apart."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 8)):
        for name, level in (("dark", 60), ("light", 190)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(random.normal(level, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


@pytest.mark.slow
def test_a_whole_job_on_a_store_leaves_no_secret(bucket: Bucket, tmp_path: Path, ray_folder: Path) -> None:
    write_photos(tmp_path / "photos")
    bucket.upload_folder(tmp_path / "photos", "photos")
    logs = tmp_path / "logs"
    environment = {"GLASSBOX_CACHE": str(tmp_path / "cache"), "RAY_TMPDIR": str(ray_folder)}
    shell = Shell(tmp_path, environment | {"GLASSBOX_RAY_LOGS": str(logs)})
    shards = f"{bucket.url}/shards"
    run = f"{bucket.url}/runs/first"
    shell.run("shards", "build", f"folder:{bucket.url}/photos", shards, "--workers", "2")
    shell.run("train", "--preset", "demo", "--data", shards, "--out", run, "epochs=1", "data.image_size=32")
    shell.run("evaluate", "--model", run, "--data", shards, "--out", f"{bucket.url}/scores.json")
    shell.run("predict", "--model", run, "--data", f"folder:{bucket.url}/photos", "--out", "table.csv")
    shell.run("report", run)
    shell.run("diagnose", run)
    bucket.download_folder("", tmp_path / "objects")
    names = {path.name for path in (tmp_path / "objects/runs/first").rglob("*")}
    assert {"config.yaml", "status.json", "index.html"} <= names
    assert any(logs.rglob("*.out")), "Ray wrote its logs elsewhere"
    assert find_secrets(tmp_path) == []
    assert list(ray_folder.iterdir()) == []

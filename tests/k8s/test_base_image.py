"""The base image is pinned by a digest, or by none: anything else is refused before a build starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kube_render import K8S, ROOT

sys.path.insert(0, str(K8S / "image"))
import base_image
from base_image import BaseImageError

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
ENGINE = '#!/bin/bash\necho "$@" >> {log}\n{script}\n'
FAULTS = {
    "a tag": "debian:bookworm-slim\n",
    "a short digest": f"debian@{DIGEST[:-1]}\n",
    "a long digest": f"debian@{DIGEST}0\n",
    "capital letters": f"debian@{DIGEST.upper()}\n",
    "another algorithm": f"debian@sha512:{'0' * 128}\n",
    "no name": f"@{DIGEST}\n",
    "no digest after the sign": "debian@\n",
    "a placeholder": "debian@sha256:DIGEST\n",
    "two images": f"debian@{DIGEST}\nubuntu@{DIGEST}\n",
    "an option": f"debian@{DIGEST} --privileged\n",
    "nothing": "\n",
    "a comment only": f"# debian@{DIGEST}\n",
}


def write_engine(folder: Path, script: str, name: str = "skopeo") -> Path:
    """Writes a program in place of an engine, since the registry is not reached by tests."""
    path = folder / name
    path.write_text(ENGINE.format(log=folder / "log", script=script))
    path.chmod(0o755)
    return path


def test_pinned_image_is_read(tmp_path: Path) -> None:
    path = tmp_path / "base.txt"
    for reference in (f"debian@{DIGEST}", f"registry.example:5000/team/debian@{DIGEST}"):
        path.write_text(f"# where it came from\n{reference}\n")
        assert base_image.read_base(path) == reference


@pytest.mark.parametrize("fault", FAULTS)
def test_file_without_a_digest_is_refused(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "base.txt"
    path.write_text(FAULTS[fault])
    with pytest.raises(BaseImageError, match=r"Expected one line NAME@sha256:DIGEST .* Fix: make image-base"):
        base_image.read_base(path)


def test_image_without_a_file_is_the_one_of_the_dockerfile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert base_image.read_base(tmp_path / "base.txt") == "debian:bookworm-slim"
    assert "is not pinned. To pin it: make image-base" in capsys.readouterr().err


def test_committed_file_is_valid() -> None:
    assert base_image.main(["read"]) == 0


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("debian:bookworm-slim", "docker.io/library/debian"),
        ("team/base:1", "docker.io/team/base"),
        ("registry.example:5000/team/base:1", "registry.example:5000/team/base"),
        ("localhost/base", "localhost/base"),
    ],
)
def test_digest_of_the_engine_is_written(image: str, pinned: str, tmp_path: Path) -> None:
    engine = write_engine(tmp_path, f"echo {DIGEST}")
    path = tmp_path / "base.txt"
    assert base_image.resolve_base(str(engine), image, path) == f"{pinned}@{DIGEST}"
    assert base_image.read_base(path) == f"{pinned}@{DIGEST}"
    (command,) = (tmp_path / "log").read_text().splitlines()
    tag = image.removeprefix("docker.io/").rpartition("/")[2]
    assert command.endswith(f"/{tag}")
    assert command.startswith("inspect --format {{.Digest}} docker://")


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_engine_pulls_the_image_before_it_tells_the_digest(name: str, tmp_path: Path) -> None:
    engine = write_engine(tmp_path, f"echo docker.io/library/debian@{DIGEST}", name)
    base_image.resolve_base(str(engine), "debian:bookworm-slim", tmp_path / "base.txt")
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == "pull --quiet debian:bookworm-slim"
    assert "inspect" in second


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no route >&2; exit 1", "no route"),
        ("echo", "Expected one digest"),
        ("echo sha256:abc", "Expected one digest"),
        (f"echo {DIGEST} {DIGEST}", "Expected one digest"),
    ],
)
def test_no_digest_is_invented(script: str, message: str, tmp_path: Path) -> None:
    engine = write_engine(tmp_path, script)
    path = tmp_path / "base.txt"
    path.write_text("as it was")
    with pytest.raises(BaseImageError, match=message):
        base_image.resolve_base(str(engine), "debian", path)
    assert path.read_text() == "as it was"


def test_engine_that_is_missing_or_unknown_is_an_error(tmp_path: Path) -> None:
    for engine in (str(tmp_path / "skopeo"), "crane"):
        with pytest.raises(BaseImageError, match="engine="):
            base_image.resolve_base(engine, "debian", tmp_path / "base.txt")


def test_make_passes_the_base_image_and_stops_without_one() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    command = ["make", "--dry-run", "image", "ENGINE=buildah"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "base=$(python3 k8s/image/base_image.py read) && \\\n" in output
    assert 'buildah build --build-arg BASE_IMAGE="$base" ' in output

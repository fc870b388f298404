"""Pins the base image of the Dockerfile by its digest, in a file that `make image` reads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PINNED = FOLDER / "base.txt"
DEFAULT = re.compile(r"^ARG BASE_IMAGE=(\S+)$", re.MULTILINE)
DIGEST = re.compile(r"\bsha256:[0-9a-f]{64}\b")
REFERENCE = re.compile(r"[a-z0-9][-a-z0-9._/:]*[a-z0-9]@sha256:[0-9a-f]{64}")
FIX = "make image-base ENGINE=skopeo (or docker, podman, buildah), where the registry can be reached"
USAGE = "usage: base_image.py read | base_image.py resolve ENGINE [IMAGE]"


class BaseImageError(Exception):
    """The base image is not pinned as it must be, or its digest was not found."""

    def __init__(self, expected: str, received: str, fix: str = FIX) -> None:
        super().__init__(f"Expected {expected}. Received: {received}. Fix: {fix}.")


def main(words: list[str]) -> int:
    """Runs `read`, which prints the base image, or `resolve`, which asks the registry and writes the file.

    Args:
        words: Arguments of the command line.

    Returns:
        The exit code.
    """
    try:
        match words:
            case ["read"]:
                print(read_base())
            case ["resolve", engine]:
                print(resolve_base(engine, read_default()))
            case ["resolve", engine, image]:
                print(resolve_base(engine, image))
            case _:
                raise BaseImageError("a command", " ".join(words) or "nothing", USAGE)
    except BaseImageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def read_default() -> str:
    """Returns the name of the base image in the Dockerfile, which has no digest."""
    match = DEFAULT.search((FOLDER / "Dockerfile").read_text())
    if match is None:
        raise BaseImageError("ARG BASE_IMAGE=NAME in the Dockerfile", "none")
    return match[1]


def read_base(path: Path = PINNED) -> str:
    """Returns the pinned base image; without a file, the name in the Dockerfile, and a notice.

    Args:
        path: File with one reference, `NAME@sha256:DIGEST`, and comments.

    Raises:
        BaseImageError: The file has no such reference, or several lines.
    """
    if not path.exists():
        name = read_default()
        print(f"The base image {name} is not pinned. To pin it: {FIX}.", file=sys.stderr)
        return name
    lines = [line.strip() for line in path.read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1 or not REFERENCE.fullmatch(lines[0]):
        raise BaseImageError(f"one line NAME@sha256:DIGEST in {path}", f"lines={lines}")
    return lines[0]


def list_commands(engine: str, image: str) -> list[list[str]]:
    """Returns the commands of an engine, the last of which prints the digest of an image in its registry.

    Args:
        engine: Name or path of the tool.
        image: Name of the image, with a tag.

    Raises:
        BaseImageError: The engine is not known.
    """
    match Path(engine).name:
        case "skopeo":
            return [[engine, "inspect", "--format", "{{.Digest}}", f"docker://{add_registry(image)}"]]
        case "buildah":
            inspect = [engine, "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", image]
            return [[engine, "pull", "--quiet", image], inspect]
        case "docker" | "podman":
            inspect = [engine, "image", "inspect", "--format", "{{index .RepoDigests 0}}", image]
            return [[engine, "pull", "--quiet", image], inspect]
    raise BaseImageError("skopeo, docker, podman or buildah", f"engine={engine}")


def add_registry(image: str) -> str:
    """Returns an image name with the registry that engines add to a short one."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


def resolve_base(engine: str, image: str, path: Path = PINNED) -> str:
    """Asks the registry for the digest of an image, and pins it.

    Args:
        engine: Tool that asks.
        image: Name of the image, with a tag.
        path: File that is written.

    Returns:
        The reference that was written.

    Raises:
        BaseImageError: The engine is missing, fails, or prints no digest; the file stays as it was.
    """
    output = ""
    for command in list_commands(engine, image):
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise BaseImageError("an installed engine", f"engine={engine}") from error
        if result.returncode:
            raise BaseImageError(f"`{' '.join(command)}` to succeed", result.stderr.strip())
        output = result.stdout
    digests = DIGEST.findall(output)
    if len(digests) != 1:
        raise BaseImageError("one digest", f"output={output!r}")
    registry, slash, name = add_registry(image).rpartition("/")
    reference = f"{registry}{slash}{name.partition('@')[0].partition(':')[0]}@{digests[0]}"
    path.write_text(f"# {image}, resolved by `make image-base`\n{reference}\n")
    return reference


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

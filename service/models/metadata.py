"""Metadata of a saved model: its classes, its preprocessing and its data, kept inside the `.keras` file.

A `.keras` file is a zip archive, and Keras ignores members that it does not know: every `load_model` still
reads the file. Saving a loaded model again with Keras drops the metadata.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pipelines.errors import ARCHIVE_ERRORS, ConfigError
from pipelines.spec import Fit
from pipelines.storage import add_digest, remove_digest

MAX_BYTES = 1 << 26  # of the document: a million class names of 60 characters
# What zipfile and its users raise for a model file or a checkpoint whose bytes were changed anywhere
MODEL_FILE_ERRORS = (*ARCHIVE_ERRORS, KeyError, RuntimeError)
MEMBER = "glassbox.json"
VERSION = 2
EARLIEST_DATE = (1980, 1, 1, 0, 0, 0)  # of a zip archive; the current time would make the bytes differ
REGULAR_FILE = 0o100644 << 16


@dataclass(frozen=True)
class ModelMetadata:
    """What a model needs besides its layers and weights.

    Attributes:
        classes: Class names in the order of the outputs.
        data: Digest of the manifest of the shard set that the model was trained on.
        image_size: Height and width of the images.
        channels: Number of channels, 1 or 3.
        scale: Factor on pixels of 0 to 255 before they enter the model.
        offset: Summand after that multiplication.
        head: Whether the outputs are `probabilities` or `logits`.
        levels: How images of more than 8 bits were reduced, see `pipelines.spec.ShardSpec.levels`.
        fit: How images of other proportions were made to fit, see `pipelines.spec.DataSpec.fit`.
        resize: Length of the shorter side before the crop, see `pipelines.spec.DataSpec.resize`.
        antialias: Whether images were low-pass filtered, see `pipelines.spec.DataSpec.antialias`.
        mix: The sets that the model was trained on, if there are several: their locations, weights, digests
            and row numbers. `data` covers all of them.
    """

    classes: tuple[str, ...]
    data: str
    image_size: tuple[int, int]
    channels: int
    scale: float = 1.0
    offset: float = 0.0
    head: str = "probabilities"
    levels: str = "full"
    fit: Fit = "stretch"
    resize: int | None = None
    antialias: bool = False
    mix: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> str:
        """Returns the metadata as a JSON document, the same bytes for the same content."""
        content = {"version": self._version} | asdict(self)
        del content["mix"]
        if self.mix:
            content["mix"] = list(self.mix)
        return json.dumps(add_digest(content), indent=2, ensure_ascii=False) + "\n"

    @property
    def _version(self) -> int:
        """Version of the format: programs that only know the first one would prepare images wrongly."""
        is_stretched = self.fit == "stretch" and not self.antialias
        return 1 if is_stretched else VERSION

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> ModelMetadata:
        """Reads a JSON document of `to_json`.

        Args:
            text: Content of the document.
            source: File that it comes from, for the message.

        Raises:
            ConfigError: The document is damaged, or a newer version of the project wrote it.
        """
        try:
            stored: dict[str, Any] = json.loads(text)
            if stored["version"] > VERSION:
                received = f"{source} (version {stored['version']}, which is newer)"
                raise ConfigError(
                    f"metadata of version {VERSION}", received, "use the glassbox that wrote it"
                )
            content = remove_digest(stored)
            height, width = content["image_size"]
            return cls(
                classes=tuple(str(name) for name in content["classes"]),
                data=str(content["data"]),
                image_size=(int(height), int(width)),
                channels=int(content["channels"]),
                scale=float(content["scale"]),
                offset=float(content["offset"]),
                head=str(content["head"]),
                levels=str(content["levels"]),
                fit=parse_fit(content.get("fit", "stretch")),
                resize=None if content.get("resize") is None else int(content["resize"]),
                antialias=bool(content.get("antialias", False)),
                mix=tuple(dict(mixed) for mixed in content.get("mix", ())),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise ConfigError(
                "metadata of a model in JSON", f"{source} (damaged)", "restore the file, or train again"
            ) from None


def parse_fit(text: object) -> Fit:
    """Returns the way to fit images that a text names.

    Raises:
        ValueError: It names none.
    """
    for fit in get_args(Fit):
        if text == fit:
            return cast("Fit", fit)
    raise ValueError(f"{text!r} is not a way to fit images")


def append_metadata(path: Path, metadata: ModelMetadata) -> None:
    """Adds metadata to a `.keras` file that has none, without rewriting the rest of the file.

    Args:
        path: File that Keras has saved, or a file whose readers ignore what follows its content.
        metadata: The metadata to add.
    """
    append_text(path, MEMBER, metadata.to_json())


def append_text(path: Path, name: str, text: str) -> None:
    """Adds a text to a zip archive; to any other file, an archive that holds it.

    Args:
        path: File that has no member of this name.
        name: Name of the member.
        text: Content of the member, written as UTF-8.
    """
    member = zipfile.ZipInfo(name, EARLIEST_DATE)
    member.external_attr = REGULAR_FILE
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, text)


def read_metadata(path: Path) -> ModelMetadata | None:
    """Reads the metadata of a model file; None if it has none.

    Raises:
        ConfigError: The metadata is damaged, or of a newer version.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if MEMBER not in archive.namelist():
                return None
            if archive.getinfo(MEMBER).file_size > MAX_BYTES:
                raise zipfile.BadZipFile("metadata of an unreasonable size")
            text = archive.read(MEMBER)
    except MODEL_FILE_ERRORS:
        raise ConfigError("an undamaged model file", f"model={path}", "restore the file") from None
    return ModelMetadata.from_json(text, f"{path}: {MEMBER}")

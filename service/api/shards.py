"""Shard sets: build them from a source, and open them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location, Uri
from pipelines.shards.manifest import SHOWN_CLASSES, Manifest, load_manifest
from pipelines.text import escape_html

if TYPE_CHECKING:
    import numpy as np

    from pipelines.sources import Source

    from .datasets import Dataset


@dataclass(frozen=True)
class ShardSet:
    """A shard set on a disk or a store. Can be passed wherever a path to a shard set is expected.

    Attributes:
        path: Path of its directory, or its URI.
        manifest: Its manifest: classes, encoding, and the shards, counts and pixel statistics of every split.
    """

    path: Location
    manifest: Manifest

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels are indices into them."""
        return self.manifest.classes

    @property
    def splits(self) -> dict[str, int]:
        """Number of images per split."""
        return {name: split.rows for name, split in self.manifest.splits.items()}

    def dataset(self, split: str = "train", **options: Any) -> Dataset:
        """Opens a split as batches; see `glassbox.Dataset` for the options."""
        from .datasets import Dataset

        return Dataset(self, split, **options)

    def images(self, rows: list[int], split: str = "validation", size: Any = None) -> np.ndarray:
        """Decodes some images, uint8 `[N, H, W, C]`.

        Args:
            rows: Row numbers in the split.
            split: Name of the split.
            size: Height and width in pixels, or one number for both; None for the default of `DataSpec`.

        Raises:
            DataError: A row does not exist or its image is damaged.
        """
        import numpy as np

        from pipelines.input.batches import read_rows
        from pipelines.spec import DataSpec, check
        from service.devices import configure_devices

        configure_devices()
        data = check(DataSpec, {} if size is None else {"image_size": size}, "images")
        return np.asarray(read_rows(self.path, split, data, list(rows))["image"])[: len(rows)]

    def _repr_html_(self) -> str:
        names = ["split", "images", *self.classes[:SHOWN_CLASSES]]
        more = len(self.classes) - SHOWN_CLASSES
        if more > 0:
            names.append(f"... and {more} more")
        header = "".join(f"<th>{escape_html(name)}</th>" for name in names)
        rows = []
        for name, split in self.manifest.splits.items():
            counts = [split.rows, *split.class_counts[:SHOWN_CLASSES]]
            if more > 0:
                counts.append(sum(split.class_counts[SHOWN_CLASSES:]))
            cells = "".join(f"<td>{value:,}</td>" for value in counts)
            rows.append(f"<tr><td>{escape_html(name)}</td>{cells}</tr>")
        title = f"<b>Shard set</b> {escape_html(str(self.path))}"
        return f"{title}<table><tr>{header}</tr>{''.join(rows)}</table>"


def build_shards(
    source: str | Source,
    out: str | os.PathLike[str] | Uri,
    *,
    workers: int | None = None,
    splits: str | None = None,
    columns: str | None = None,
    classes: Sequence[str] | None = None,
    **spec: Any,
) -> ShardSet:
    """Builds a shard set from a source, or resumes an interrupted build. Shows a progress bar.

    Args:
        source: Name of a source, such as `folder:DIR`, `folder:s3://BUCKET/photos`, `archive:FILE` or
            `package.module:Class`; or a source object.
        out: Path or URI of the directory to create.
        workers: Shards built at a time; None for one per CPU.
        splits: Folder of every split, such as `train=Training,validation=Testing`; None to find them by name.
        columns: Column per role, such as `image=file,label=breed`; None to find them by name.
        classes: Class names in the order of their labels; None to derive them from the source.
        spec: Settings of `ShardSpec`, such as `encoding="jpeg:90"` or `validation=0.1`.

    Returns:
        The finished shard set.

    Raises:
        ConfigError: An option is invalid, or `out` exists and is something else.
        DataError: The source cannot be used.
    """
    from pipelines.shards.build import build_shards as build
    from pipelines.sources import SourceOptions, open_source
    from pipelines.spec import ShardSpec, check
    from service.progress_bar import progress_bar

    shard_spec = check(ShardSpec, spec, "build_shards")
    location = resolve_location(out)

    options = SourceOptions(splits, columns, None if classes is None else tuple(classes))

    def open_again(log_notes: bool = False) -> Source:
        if not isinstance(source, str):
            return source
        return open_source(source, options=options, log_notes=log_notes)

    opened = open_again(log_notes=True)
    with progress_bar("building shards") as update:
        build(opened, location, shard_spec, update, workers, open_again)
    return open_shards(location)


def open_shards(path: str | os.PathLike[str] | Uri) -> ShardSet:
    """Opens an existing shard set.

    Args:
        path: Directory of the shard set, or its URI, such as `s3://BUCKET/shards`.

    Raises:
        ConfigError: The scheme of the URI is unknown.
        DataError: There is no shard set, or its manifest is damaged.
    """
    location = resolve_location(path)
    return ShardSet(location, load_manifest(location))

"""WebDataset shards: `webdataset:PATTERN`, tar files in which members of one name are a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import IO, Any

from pipelines.errors import ARCHIVE_ERRORS, DataError
from pipelines.records import Example, Rejected
from pipelines.remote.store import read_range
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.sources.base import SOURCES, build_read_error
from pipelines.sources.columns import find_column
from pipelines.sources.layout import MAX_FILE, is_image
from pipelines.sources.locations import compute_stamp, map_files, open_location
from pipelines.sources.members import DamagedMemberError, Member, read_tar, scan_headers
from pipelines.sources.options import SourceOptions
from pipelines.sources.patterns import expand_pattern, find_splits_of_files
from pipelines.sources.table import NO_LABEL, Item, TableSource, build_source
from pipelines.storage import parse_json

MAX_LABEL = 2**20  # bytes of a label or a JSON
LABEL_SUFFIXES = (".cls", ".json")
HEADER_BUFFER = 2**14  # bytes per request: the headers and the label of a sample, but not its image


@dataclass(frozen=True)
class TarReader:
    """Reads images from tar files.

    Attributes:
        paths: Paths or URIs of the files.
    """

    paths: tuple[str, ...]

    def read(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Example | Rejected]:
        """Yields one image per row; with several requests in flight if the files are in a store.

        Raises:
            DataError: A file has disappeared.
        """
        return map_files(self.paths, self._read_row, rows, itemgetter("size"))

    def _read_row(self, row: Mapping[str, Any]) -> Example | Rejected:
        path = parse_location(self.paths[row["file"]])
        if isinstance(path, Uri):
            return Example(read_range(path, row["offset"], row["size"]), row["label"], row["id"])
        try:
            with path.open("rb") as file:
                return Example(read_tar(file, dict(row)), row["label"], row["id"])
        except DamagedMemberError as error:
            return Rejected(row["id"], str(error))
        except OSError as error:
            raise build_read_error(path, error) from None


@dataclass
class _Sample:
    """Members of one name in a tar file."""

    image: Member | None = None
    labels: dict[str, bytes] = field(default_factory=dict)


@SOURCES.register("webdataset")
def open_webdataset(argument: str, options: SourceOptions | None = None) -> TableSource:
    """Lists WebDataset shards. A sample is an image and its label, `.cls` or an entry of `.json`.

    Args:
        argument: Pattern of the paths or URIs of tar files, such as `data/train-{0000..0009}.tar`. A split in
            the names of the files (`train`, `val`, ...) is the split of their samples.
        options: Class names that the user specified, and the entry of `.json` that holds the label.

    Raises:
        ConfigError: A file does not exist.
        DataError: A file is damaged or cut off, or an image has several labels; see also `build_source`.
    """
    options = options or SourceOptions()
    name = f"webdataset:{argument}"
    paths = expand_pattern(name, argument, "*.tar")
    splits, notes = find_splits_of_files(name, paths)
    items: list[Item] = []
    files = map_files(map(str, paths), _read_samples, paths)
    for index, (samples, split) in enumerate(zip(files, splits, strict=True)):
        for key, sample in samples:
            items.append(_build_item(name, key, sample, split, index, options))
    if len({item.id for item in items}) < len(items):  # names repeat from shard to shard
        items = [item._replace(id=f"{paths[item.file].name}/{item.id}") for item in items]
    reader = TarReader(tuple(map(str, paths)))
    source = build_source(name, items, reader, options, notes)
    return replace(source, stamp=compute_stamp(paths))


def _read_samples(path: Location) -> Iterable[tuple[str, _Sample]]:
    samples: dict[str, _Sample] = {}
    try:
        with open_location(path, HEADER_BUFFER) as file:
            for member in scan_headers(path, file):
                member_path = member.path.decode("utf-8", "backslashreplace")
                folder, slash, file_name = member_path.removeprefix("./").rpartition("/")
                stem, dot, suffix = file_name.partition(".")
                if not dot or not stem or member_path.endswith("/"):
                    continue
                sample = samples.setdefault(f"{folder}{slash}{stem}", _Sample())
                _add_member(file, sample, f".{suffix.lower()}", member)
    except ARCHIVE_ERRORS as error:
        received = f"{path}: {error or type(error).__name__}"
        raise DataError("a whole tar file", received, "copy the file again") from None
    return samples.items()


def _add_member(file: IO[bytes], sample: _Sample, suffix: str, member: Member) -> None:
    if is_image(member.path) and sample.image is None:
        sample.image = member
    elif suffix in LABEL_SUFFIXES and member.size <= MAX_LABEL and not member.problem:
        file.seek(member.offset)
        sample.labels[suffix] = file.read(member.size)


def _build_item(
    source: str, key: str, sample: _Sample, split: str, index: int, options: SourceOptions
) -> Item:
    if sample.image is None:
        return Item(key, split, None, index, problem="no image in the sample")
    suffix = sample.image.path.rpartition(b".")[2].decode("utf-8", "backslashreplace")
    identifier = f"{key}.{suffix}"
    problem = sample.image.problem
    label: Any = None
    if sample.image.size > MAX_FILE:
        problem = f"larger than {MAX_FILE >> 20} MiB: {sample.image.size} bytes"
    if ".cls" in sample.labels:
        label = sample.labels[".cls"].decode("utf-8", "backslashreplace").strip()
    elif ".json" in sample.labels:
        try:
            content = parse_json(sample.labels[".json"])
        except ValueError:
            content = None
        if isinstance(content, dict):
            requested = options.parse_columns()
            column = find_column(source, "label", list(content), requested, options.needs_labels)
            label = content[column] if column else None
        else:
            problem = problem or "the JSON of the sample is damaged"
    else:
        problem = problem or f"{NO_LABEL}: neither .cls nor .json"
    return Item(identifier, split, label, index, sample.image.offset, sample.image.size, problem)

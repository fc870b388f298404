"""The parsers of the project, each with undamaged inputs to start from, for tests with damaged ones.

Every input must yield a value or a `GlassboxError` of one sentence, soon and within bounded memory.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import resource
import signal
import struct
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from shard_samples import encode_png, make_record, write_shards

from pipelines.errors import GlassboxError
from pipelines.input.reader import ShardReader
from pipelines.remote.uri import parse_location
from pipelines.shards.headers import read_plain_header
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.shards.manifest import load_manifest
from pipelines.shards.markers import read_marker
from pipelines.shards.tfrecord import write_tfrecord
from pipelines.sources import open_source
from pipelines.sources.options import SourceOptions, read_class_names
from pipelines.spec import ShardSpec
from service.checkpoint_record import read_record
from service.config import load_config, read_yaml
from service.run_files import parse_metrics, read_layers, read_status
from service.runs import Run
from service.tuning.space import parse_dimension

HANG_SECONDS = 120  # a busy machine is slow
MAX_GROWTH = 512 * 2**20  # bytes of memory that one input may take
SENTENCE = re.compile(r"Expected .+\. Received: .+\. Fix: .+\.", re.DOTALL)
# What parsers deep inside raise for their callers, as their docstrings say
INNER_ERRORS = (UnreadableImageError,)


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: Its name.
        samples: Returns undamaged inputs.
        parse: Parses an input; the folder is empty and belongs to it.
        words: Parts that are inserted at random.
        quick: Number of inputs in the quick test.
    """

    name: str
    samples: Callable[[], Sequence[bytes]]
    parse: Callable[[Path, bytes], object]
    words: tuple[bytes, ...] = ()
    quick: int = 15


def encode_small_images() -> list[bytes]:
    """Returns small images in all formats with a header that is read."""
    from PIL import Image

    pixels = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    images = [encode_png(pixels), encode_png(pixels[:, :, :1])]
    for kind in ("JPEG", "GIF", "BMP", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        images.append(file.getvalue())
    deep = io.BytesIO()
    Image.fromarray(np.arange(25, dtype=np.uint16).reshape(5, 5) * 1000).save(deep, "PNG")
    return [*images, deep.getvalue()]


def parse_image(folder: Path, data: bytes) -> object:
    try:
        read_plain_header(data)
    except ValueError as error:
        if not data.startswith(b"\x89PNG"):
            raise AssertionError("only a PNG may be refused") from error
    return prepare_image(data, ShardSpec())


def make_idx(shape: tuple[int, ...], values: bytes) -> bytes:
    """Returns the content of an IDX file."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values


def list_idx() -> list[bytes]:
    images = make_idx((4, 2, 2), bytes(range(16)))
    return [images, gzip.compress(images, mtime=0)]


def parse_idx(folder: Path, data: bytes) -> object:
    suffix = ".gz" if data.startswith(b"\x1f\x8b") else ""
    (folder / f"train-images-idx3-ubyte{suffix}").write_bytes(data)
    (folder / "train-labels-idx1-ubyte").write_bytes(make_idx((4,), bytes([0, 1, 0, 1])))
    return read_all(f"idx:{folder}")


def read_all(argument: str, options: SourceOptions | None = None) -> object:
    """Opens a source and reads all of it."""
    source = open_source(argument) if options is None else open_source(argument, options=options)
    counts = source.counts()
    return [list(source.read(split, 0, count)) for split, count in counts.items()]


def list_members() -> list[tuple[str, bytes]]:
    image = encode_png(np.full((3, 3, 3), 7, np.uint8))
    return [(f"{label}/{number}.png", image) for label in ("cat", "dog") for number in range(2)]


def list_zips() -> list[bytes]:
    contents = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content in list_members():
                archive.writestr(zipfile.ZipInfo(name), content, method)
        contents.append(file.getvalue())
    return contents


def list_tars() -> list[bytes]:
    contents = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            for name, content in [*list_members(), (f"cat/{'long' * 20}.png", b"x")]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.pax_headers = {"comment": "ü"}
                archive.addfile(info, io.BytesIO(content))
        contents.append(file.getvalue())
    return contents


def list_tar_gzs() -> list[bytes]:
    return [gzip.compress(content, mtime=0) for content in list_tars()]


def parse_archive(suffix: str) -> Callable[[Path, bytes], object]:
    """Returns a function that reads all members of an archive."""

    def parse(folder: Path, data: bytes) -> object:
        path = folder / f"images{suffix}"
        path.write_bytes(data)
        return read_all(f"archive:{path}")

    return parse


def list_webdatasets() -> list[bytes]:
    contents = []
    for suffix in ("cls", "json"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(3):
                label_text = str(number % 2).encode() if suffix == "cls" else b'{"label": %d}' % (number % 2)
                image = encode_png(np.full((3, 3, 3), number, np.uint8))
                for name, content in ((f"{number}.png", image), (f"{number}.{suffix}", label_text)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        contents.append(file.getvalue())
    return contents


def parse_webdataset(folder: Path, data: bytes) -> object:
    path = folder / "train.tar"
    path.write_bytes(data)
    return read_all(f"webdataset:{path}")


def list_tfrecords() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "train.tfrecord"
        pixels = [np.full((3, 3, 3), 9 * row, np.uint8) for row in range(4)]
        records = [make_record(image, row % 2, f"{row}.png") for row, image in enumerate(pixels)]
        write_tfrecord(path, Path(name) / "train.index.arrow", records)
        return [path.read_bytes()]


def parse_tfrecord(folder: Path, data: bytes) -> object:
    path = folder / "train.tfrecord"
    path.write_bytes(data)
    return read_all(f"tfrecord:{path}")


@cache
def build_small_set(kind: str) -> dict[str, bytes]:
    """Returns the files of a small shard set."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        pixels = [np.full((3, 3, 3), 9 * row, np.uint8) for row in range(4)]
        rows = [make_record(image, row % 2, f"{row}.png") for row, image in enumerate(pixels)]
        write_shards(folder, ("a", "ü"), {"train": rows})
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def list_set_file(file: str) -> Callable[[], list[bytes]]:
    return lambda: [build_small_set("arrow")[file]]


def parse_set(file: str) -> Callable[[Path, bytes], object]:
    """Returns a function that reads all rows of a shard set, one of whose files is the input."""

    def parse(folder: Path, data: bytes) -> object:
        for name, content in build_small_set("arrow").items():
            (folder / name).write_bytes(data if name == file else content)
        reader = ShardReader(folder, "train")
        rows = np.arange(len(reader.labels))
        with closing(reader):
            return [read(rows) for read in (reader.read_images, reader.read_ids, reader.read_bboxes)]

    return parse


def parse_manifest(folder: Path, data: bytes) -> object:
    (folder / "manifest.json").write_bytes(data)
    return load_manifest(folder).digest()


def parse_preset(folder: Path, data: bytes) -> object:
    path = folder / "preset.yaml"
    path.write_bytes(data)
    return load_config(str(path), "shards")


def list_presets() -> list[bytes]:
    from service.config import PRESETS

    return [path.read_bytes() for path in sorted(PRESETS.glob("*.yaml"))]


def parse_configuration(folder: Path, data: bytes) -> object:
    (folder / "config.yaml").write_bytes(data)
    return Run(folder).config()


def parse_override(folder: Path, data: bytes) -> object:
    return load_config("demo", "shards", [data.decode("utf-8", "surrogateescape")])


def parse_space(folder: Path, data: bytes) -> object:
    path = folder / "space.yaml"
    path.write_bytes(data)
    return [parse_dimension(key, entry) for key, entry in read_yaml(path, "space").items()]


def parse_uri(folder: Path, data: bytes) -> object:
    location = parse_location(data.decode("utf-8", "surrogateescape"))
    is_encoded = any(character in str(location) for character in "%?#")
    if not (isinstance(location, Path) or is_encoded or parse_location(str(location)) == location):
        raise AssertionError(f"{location!r} is not what its own text is")
    return location


def parse_csv(folder: Path, data: bytes) -> object:
    for name, content in list_members():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (folder / "train.csv").write_bytes(data)
    return read_all(f"csv:{folder}")


def parse_class_names(folder: Path, data: bytes) -> object:
    path = folder / "classes.txt"
    path.write_bytes(data)
    return read_class_names(path)


GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = ("n01440764", "n01443537")


def parse_imagenet(file: str) -> Callable[[Path, bytes], object]:
    """Returns a function that reads a small folder like that of ImageNet, one of whose files is the input."""

    def parse(folder: Path, data: bytes) -> object:
        image = encode_png(np.full((3, 3, 3), 7, np.uint8))
        for synset in SYNSETS:
            path = folder / "train" / synset / f"{synset}_1.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(image)
        (folder / "val").mkdir()
        for number in (1, 2):
            (folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(image)
        files = {"meta.mat": list_metas()[0], GROUND_TRUTH: b"1\n2\n"}
        if file == "LOC_synset_mapping.txt":
            files["LOC_val_solution.csv"] = list_solutions()[0]
        for name, content in (files | {file: data}).items():
            (folder / name).write_bytes(content)
        return read_all(f"imagenet:{folder}")

    return parse


@cache
def list_metas() -> list[bytes]:
    from scipy.io import savemat

    rows = np.zeros(2, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for number, synset in enumerate(SYNSETS):
        rows[number] = (number + 1, synset, f"fish {number}")
    contents = []
    for is_compressed in (False, True):
        file = io.BytesIO()
        savemat(file, {"synsets": rows}, do_compression=is_compressed)
        contents.append(file.getvalue())
    return contents


def list_solutions() -> list[bytes]:
    lines = [f"ILSVRC2012_val_{n:08d},{synset} 1 2 3 4" for n, synset in enumerate(SYNSETS, 1)]
    return ["\n".join(["ImageId,PredictionString", *lines, ""]).encode()]


def list_words() -> list[bytes]:
    return [b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n"]


def list_lines() -> list[bytes]:
    return [b'{"epoch": 1, "layers": {"a": {"norm": 1.0}}}\n']


def parse_run_file(folder: Path, data: bytes) -> object:
    """Reads an input as each of the text files of a run."""
    path = folder / "layers.jsonl"
    path.write_bytes(data)
    read_status(path)
    with suppress(ValueError):  # which its caller turns into a sentence
        parse_metrics(data.decode("utf-8", "replace"), 1)
    (folder / "checkpoint.json").write_bytes(data)
    read_record(folder)
    return read_layers(path)


def parse_marker(folder: Path, data: bytes) -> object:
    return read_marker(io.BytesIO(data))


JSON_WORDS = (
    b"null",
    b"[]",
    b"{}",
    b"1e999",
    b"NaN",
    b'"\\ud800"',
    b"[" * 1200,
    b'{"a":' * 1200,
    b"1" * 5000,
)
YAML_WORDS = (
    *(
        b"[" * 1200,
        b"&a ",
        b"*a",
        b"&a [&b [1, 1], *b, *b]",
        b"*b",
        b"{<<: *a}",
        b"? [a]\n: b",
        b": ",
        b"\n- ",
    ),
    *(
        b"!!python/name:os.system",
        b"!!int x",
        b"!!bool x",
        b"!!timestamp x",
        b"!!binary x",
        b"!!set",
        b"!!omap",
    ),
    *(b"2001-99-99", b"1" * 5000, b"1e-4", b"0x", b"1:99:99", b".inf"),
)
TEXT_WORDS = (b"\xff", b"\0", b"\r", b"\n\n", b",", b'"', b"-1", b"1" * 5000, "\u0663".encode())
NUMBERS = tuple(value.to_bytes(4, "little") for value in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
ZIP_WORDS = (b"PK\3\4", b"PK\1\2", b"PK\5\6", b"../", *NUMBERS)
TAR_WORDS = (b"../", b"7777777", b"\x80", b"99 path=/x\n", b"L", b"x")
URI_WORDS = (b"[", b"]", b"//", b"@", b"%", b"?", b"#", b"..", b"\0", b"://", b"file://[")
OVERRIDES = (
    b"epochs=5",
    b"optimizer.learning_rate=0.01",
    b"data.image_size=96x64",
    b"augment.my/blur.py:Blur.radius=2",
    b"freeze=[a*, b]",
)
SPACES = (
    b"optimizer.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}\nseed: {int: [1, 5]}\n",
    b"a: {choice: [1, x]}\nb: {uniform: [0, 1]}\n",
)
TABLES = (
    b"image,label\ncat/0.png,cat\ndog/1.png,dog\n",
    b"id;class\ncat/1;cat\ndog/0;dog\n",
    b"filename,cat,dog\ncat/0.png,1,0\ndog/0.png,0,1\n",
)
URIS = (b"s3://bucket/a/b", b"file:///data/x", b"https://host:80/a%20b", b"az://c/x", b"data/x")
MARKER = b'{"result": {"shard": {"file": "a", "bytes": 0, "sha256": "", "rows": 0}}, "row_part": 0}\n'

TARGETS = (
    Target("images", encode_small_images, parse_image, NUMBERS),
    Target("idx", list_idx, parse_idx, NUMBERS),
    Target("zip", list_zips, parse_archive(".zip"), ZIP_WORDS),
    Target("tar", list_tars, parse_archive(".tar"), TAR_WORDS),
    Target("tar.gz", list_tar_gzs, parse_archive(".tar.gz"), NUMBERS),
    Target("webdataset", list_webdatasets, parse_webdataset, JSON_WORDS),
    Target("tfrecord", list_tfrecords, parse_tfrecord, NUMBERS),
    Target("manifest", list_set_file("manifest.json"), parse_manifest, JSON_WORDS),
    Target("shard", list_set_file("train-00000.arrow"), parse_set("train-00000.arrow"), NUMBERS),
    Target("rows of a set", list_set_file("train.rows.arrow"), parse_set("train.rows.arrow"), NUMBERS),
    Target("shards of a set", list_set_file("train.shards.arrow"), parse_set("train.shards.arrow"), NUMBERS),
    Target("preset", list_presets, parse_preset, YAML_WORDS),
    Target("configuration of a run", list_presets, parse_configuration, YAML_WORDS),
    Target("override", lambda: OVERRIDES, parse_override, (*YAML_WORDS, b"=", b".", b"augment.", b"stages=")),
    Target("search space", lambda: SPACES, parse_space, YAML_WORDS),
    Target("uri", lambda: URIS, parse_uri, URI_WORDS),
    Target("csv", lambda: TABLES, parse_csv, (*TEXT_WORDS, b"../", b"s3://b/x.png", b"nan")),
    Target("class names", lambda: [b"cat\ndog\n"], parse_class_names, TEXT_WORDS),
    Target("imagenet truth", lambda: [b"1\n2\n"], parse_imagenet(GROUND_TRUTH), TEXT_WORDS),
    Target("imagenet solution", list_solutions, parse_imagenet("LOC_val_solution.csv"), TEXT_WORDS),
    Target("imagenet words", list_words, parse_imagenet("LOC_synset_mapping.txt"), TEXT_WORDS),
    Target("imagenet meta", list_metas, parse_imagenet("meta.mat"), NUMBERS, quick=2),  # a process each
    Target("files of a run", list_lines, parse_run_file, JSON_WORDS),
    Target("marker", lambda: [MARKER], parse_marker, (*JSON_WORDS, b"-1")),
)


@st.composite
def damaged(draw: st.DrawFn, samples: Sequence[bytes], words: tuple[bytes, ...]) -> bytes:
    """Draws an input: an undamaged one with some changes, or seldom any bytes."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=60))
    data = bytearray(draw(st.sampled_from(samples)))
    parts = st.sampled_from(words) | st.binary(min_size=1, max_size=4) if words else st.binary(max_size=4)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(("replace", "insert", "cut", "remove", "repeat")))
        if change == "replace":
            part = draw(parts)
            data[start : start + len(part)] = part
        elif change == "insert":
            data[start:start] = draw(parts)
        elif change == "cut":
            del data[start:]
        elif change == "remove":
            del data[start : start + draw(st.integers(1, 16))]
        else:
            data[start:start] = data[max(start - draw(st.integers(1, 64)), 0) : start]
    return bytes(data)


def check_input(target: Target, data: bytes) -> None:
    """Checks what a parser makes of an input.

    Raises:
        AssertionError: It is not a value or an error of one sentence, or takes too much memory.
        TimeoutError: It hangs.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name, limit_time():
        try:
            target.parse(Path(name), data)
        except INNER_ERRORS:
            pass
        except GlassboxError as error:
            if not SENTENCE.fullmatch(str(error)):
                raise AssertionError("not a sentence") from error
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert growth < MAX_GROWTH, f"{growth >> 20} MiB for {len(data)} bytes"


@contextmanager
def limit_time() -> Iterator[None]:
    """Raises a `TimeoutError` if a block takes too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {HANG_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def fuzz(target: Target, examples: int, number: int = 0) -> None:
    """Checks a parser with so many inputs; the same number draws the same inputs."""
    inputs = damaged(target.samples(), target.words)

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),  # to explain a failure takes minutes
    )
    @given(inputs)
    def check(data: bytes) -> None:
        check_input(target, data)

    check()


def fuzz_for(target: Target, seconds: float) -> int:
    """Checks a parser for some time, at least once; returns the number of inputs."""
    deadline = time.monotonic() + seconds
    examples = 10 * target.quick
    for number in itertools.count(1):
        fuzz(target, examples, number)
        if time.monotonic() >= deadline:
            return number * examples
    raise AssertionError

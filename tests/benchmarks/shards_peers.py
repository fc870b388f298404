"""Candidates of the shard benchmark: other builders on the same photos."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from worker import Rounds

sys.path.append(str(Path(__file__).resolve().parents[2]))  # for `pipelines`, in any Python

SHARD_BYTES = 96 * 10**6


def check_image(content: bytes, check: str) -> bytes:
    """Checks a JPEG with the decoder of this project, which most of these libraries do not do.

    Args:
        content: Content of the file.
        check: `decode` for all pixels, `sums` to add up the pixels that this project adds up as well,
            `header` for the header only.

    Returns:
        The content.
    """
    import simplejpeg

    if check == "header":
        simplejpeg.decode_jpeg_header(content, strict=True)
        return content
    pixels = simplejpeg.decode_jpeg(content, strict=True)
    if check == "sums":
        from pipelines.shards.codec import sum_pixels

        sum_pixels(pixels)
    return content


def flush(folder: Path) -> None:
    """Waits until everything is on disk, as this project's builder does with every shard."""
    subprocess.run(["sync", "--file-system", str(folder)], check=True)


def webdataset(folder: str, scratch: str, cores: int, check: str) -> Rounds:
    """The `ShardWriter` of webdataset in one process per core, with a digest of every shard added."""
    import webdataset  # noqa: F401 (before the processes are forked)

    yield from _write_parts(folder, scratch, cores, partial(write_tars, check=check))


def write_tars(out: Path, paths: Sequence[Path], labels: dict[str, int], check: str) -> None:
    """Writes photos with webdataset, and computes the digest of every shard."""
    import webdataset as wds

    def compute_digest(name: str) -> None:
        with open(name, "rb") as file:
            hashlib.file_digest(file, "sha256")

    pattern = str(out / "%05d.tar")
    with wds.ShardWriter(
        pattern, maxcount=10**9, maxsize=SHARD_BYTES, post=compute_digest, verbose=0
    ) as writer:
        for path in paths:
            image = check_image(path.read_bytes(), check)
            name = f"{path.parent.name}/{path.stem}"
            writer.write({"__key__": name, "jpg": image, "cls": labels[path.parent.name]})


def mosaicml_streaming(folder: str, scratch: str, cores: int, check: str) -> Rounds:
    """The `MDSWriter` of mosaicml-streaming in one process per core, with its digests of the shards."""
    from streaming.base.util import merge_index

    write = partial(write_mds, check=check)
    yield from _write_parts(folder, scratch, cores, write, lambda out: merge_index(str(out), keep_local=True))


def write_mds(out: Path, paths: Sequence[Path], labels: dict[str, int], check: str) -> None:
    """Writes photos with mosaicml-streaming, which computes the digest of every shard."""
    from streaming import MDSWriter

    columns = {"image": "bytes", "label": "int", "id": "str"}
    with MDSWriter(columns=columns, out=str(out), hashes=["sha256"], size_limit=SHARD_BYTES) as writer:
        for path in paths:
            image = check_image(path.read_bytes(), check)
            name = f"{path.parent.name}/{path.name}"
            writer.write({"image": image, "label": labels[path.parent.name], "id": name})


def _write_parts(
    folder: str,
    scratch: str,
    cores: int,
    write: Callable[[Path, Sequence[Path], dict[str, int]], None],
    finish: Callable[[Path], None] | None = None,
) -> Rounds:
    """Runs rounds in which every process writes a part of the photos to a folder of its own."""
    yield None
    while True:
        out = Path(scratch) / f"peer-{os.getpid()}"
        start = time.perf_counter()
        paths = sorted(Path(folder).glob("*/*"))
        names = sorted({path.parent.name for path in paths})
        labels = {name: index for index, name in enumerate(names)}
        processes = []
        for core in range(cores):
            part = out / str(core)
            part.mkdir(parents=True)
            arguments = (part, paths[core::cores], labels)
            processes.append(multiprocessing.get_context("fork").Process(target=write, args=arguments))
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError("a process failed")
        if finish is not None:
            finish(out)
        flush(out)
        duration = time.perf_counter() - start
        shutil.rmtree(out)
        yield duration


def tensorflow_datasets(folder: str, scratch: str, check: str) -> Rounds:
    """A plain `GeneratorBasedBuilder` of tensorflow-datasets, which stores the undecoded bytes."""
    import tensorflow_datasets as tfds

    class Photos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent  # searched for a README of the data set

        def _info(self) -> Any:
            names = sorted(path.name for path in Path(folder).iterdir())
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
            )
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, str]]]:
            for path in sorted(Path(folder).glob("*/*")):
                check_image(path.read_bytes(), check)
                yield f"{path.parent.name}/{path.name}", {"image": str(path), "label": path.parent.name}

    tfds.disable_progress_bar()
    yield None
    while True:
        out = Path(scratch) / "tfds"
        start = time.perf_counter()
        Photos(data_dir=out).download_and_prepare()
        flush(out)
        duration = time.perf_counter() - start
        shutil.rmtree(out)
        yield duration


def img2dataset(
    folder: str,
    scratch: str,
    cores: int,
    quality: int | None = None,
    size: int | None = None,
    check: str = "decode",
) -> Rounds:
    """img2dataset on `file:` URLs with one process per core. It decodes every image itself.

    The reported seconds come from img2dataset's own statistics, which exclude the start of its processes.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset import download

    urls = [path.resolve().as_uri() for path in sorted(Path(folder).glob("*/*"))]
    url_list = Path(scratch) / f"addresses-{os.getpid()}.txt"
    url_list.write_text("".join(f"{url}\n" for url in urls))
    out = Path(scratch) / f"img2dataset-{os.getpid()}"
    options: dict[str, Any] = {
        "output_folder": str(out),
        "output_format": "webdataset",
        "processes_count": cores,
        "thread_count": 16,
        "number_sample_per_shard": 1000,
        "disable_all_reencoding": check == "header",
    }
    if quality is None:
        options |= {"resize_mode": "no", "skip_reencode": True}
    else:
        options |= {"resize_mode": "keep_ratio" if size else "no", "encode_quality": quality}
    if size is not None:
        options |= {"image_size": size, "resize_only_if_bigger": True}
    yield None
    while True:
        download(str(url_list), **options)
        reports = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
        if not reports or any(report["successes"] != report["count"] for report in reports):
            statuses = [report.get("status_dict") for report in reports]
            raise RuntimeError(f"img2dataset failed on some images: {statuses}")
        shutil.rmtree(out)
        yield max(report["end_time"] for report in reports) - min(report["start_time"] for report in reports)

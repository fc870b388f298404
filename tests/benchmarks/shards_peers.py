"""Candidates of the shard benchmark: other builders on the same photos."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker import Rounds


def tensorflow_datasets(folder: str, scratch: str) -> Rounds:
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
                yield f"{path.parent.name}/{path.name}", {"image": str(path), "label": path.parent.name}

    tfds.disable_progress_bar()
    yield None
    while True:
        out = Path(scratch) / "tfds"
        start = time.perf_counter()
        Photos(data_dir=out).download_and_prepare()
        duration = time.perf_counter() - start
        shutil.rmtree(out)
        yield duration


def img2dataset(
    folder: str, scratch: str, cores: int, quality: int | None = None, size: int | None = None
) -> Rounds:
    """img2dataset on `file:` URLs with one process per core.

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
        "number_sample_per_shard": 256,
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

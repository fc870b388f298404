"""Contestants of the shard benchmark: other builders on the same photos."""

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
    """A plain `GeneratorBasedBuilder` of tensorflow-datasets, which stores the bytes and decodes nothing."""
    import tensorflow_datasets as tfds

    class Photos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent  # where it would look for notes on the data set

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
        began = time.perf_counter()
        Photos(data_dir=out).download_and_prepare()
        taken = time.perf_counter() - began
        shutil.rmtree(out)
        yield taken


def img2dataset(
    folder: str, scratch: str, cores: int, quality: int | None = None, size: int | None = None
) -> Rounds:
    """img2dataset on `file:` addresses, with as many processes as cores; its own clocks count, without the processes' start."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset import download

    addresses = Path(scratch) / f"addresses-{os.getpid()}.txt"
    addresses.write_text("".join(f"{path.resolve().as_uri()}\n" for path in sorted(Path(folder).glob("*/*"))))
    how: dict[str, Any] = {"resize_mode": "no", "skip_reencode": True}
    if quality is not None:
        how = {"resize_mode": "keep_ratio" if size else "no", "encode_quality": quality}
    if size is not None:
        how |= {"image_size": size, "resize_only_if_bigger": True}
    yield None
    while True:
        out = Path(scratch) / f"img2dataset-{os.getpid()}"
        crew = {"processes_count": cores, "thread_count": 16, "number_sample_per_shard": 256}
        download(str(addresses), output_folder=str(out), output_format="webdataset", **crew, **how)
        reports = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
        if not reports or any(report["successes"] != report["count"] for report in reports):
            raise RuntimeError(
                f"img2dataset left images out: {[report.get('status_dict') for report in reports]}"
            )
        shutil.rmtree(out)
        yield max(report["end_time"] for report in reports) - min(report["start_time"] for report in reports)

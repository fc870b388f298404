"""Candidates of the store benchmark: other libraries that read photos from the same server."""

from __future__ import annotations

import glob
import os
from typing import Any

from worker import Rounds

SHUFFLE_BUFFER = 1000
URL_SECONDS = 86_400


def streaming(
    bucket: str, scratch: str, batch: int, workers: int, is_cold: bool, copies: int, shard_mb: float
) -> Rounds:
    """mosaicml-streaming, with its default shuffle over blocks of 262,144 images.

    Args:
        bucket: Name of the bucket; the shards are written to it first.
        scratch: Folder for the shards and for the local cache; holds the photos.
        batch: Images per batch.
        workers: Number of PyTorch's worker processes.
        is_cold: Whether every round starts with an empty cache.
        copies: Times that each photo is in the set.
        shard_mb: Size of a shard.
    """
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    name = "cold" if is_cold else "warm"
    written = f"{scratch}/mds-{name}"
    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=written, columns=columns, hashes=["xxh64"], size_limit=int(shard_mb * 1e6)) as writer:
        for label, folder in enumerate(sorted(glob.glob(f"{scratch}/photos/*"))):
            for path in sorted(glob.glob(f"{folder}/*")) * copies:
                with open(path, "rb") as file:
                    writer.write({"image": file.read(), "label": label})
    upload(written, bucket, f"mds-{name}")

    def open_loader(local: str) -> Any:
        clean_stale_shared_memory()
        dataset = StreamingDataset(
            remote=f"s3://{bucket}/mds-{name}",
            local=local,
            shuffle=True,
            batch_size=batch,
            validate_hash="xxh64",
        )
        return DataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=list)

    number = 0
    loader = open_loader(f"{scratch}/streaming-{name}")
    yield None
    while True:
        if is_cold:
            number += 1
            del loader  # the library refuses a second dataset with the same folder
            loader = open_loader(f"{scratch}/streaming-{name}-{number}")
        for _ in loader:
            pass
        yield None


def webdataset(bucket: str, scratch: str, batch: int, workers: int) -> Rounds:
    """Webdataset: tar files in a shuffled order through curl, then a buffer of 1,000 images."""
    import boto3
    import webdataset
    from torch.utils.data import DataLoader

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    listed = client.list_objects_v2(Bucket=bucket, Prefix="tars/")["Contents"]
    urls = [
        client.generate_presigned_url(
            "get_object", {"Bucket": bucket, "Key": entry["Key"]}, ExpiresIn=URL_SECONDS
        )
        for entry in listed
    ]
    commands = [f"pipe:curl -s -f '{url}'" for url in urls]
    dataset = webdataset.WebDataset(commands, shardshuffle=len(commands)).shuffle(SHUFFLE_BUFFER)
    loader = DataLoader(dataset.batched(batch, collation_fn=list), batch_size=None, num_workers=workers)
    yield None
    while True:
        for _ in loader:
            pass
        yield None


def ray_images(bucket: str, scratch: str, batch: int, size: int) -> Rounds:
    """Ray Data's image reader: one object per photo, whose order is shuffled."""
    import ray
    from pyarrow.fs import S3FileSystem

    filesystem = S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
        scheme="http",
    )
    ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield None
    while True:
        dataset = ray.data.read_images(
            f"{bucket}/photos", filesystem=filesystem, size=(size, size), mode="RGB", shuffle="files"
        )
        for _ in dataset.iter_batches(batch_size=batch):
            pass
        yield None


def upload(folder: str, bucket: str, prefix: str) -> None:
    """Uploads the files of a folder."""
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for path in sorted(glob.glob(f"{folder}/*")):
        client.upload_file(path, bucket, f"{prefix}/{os.path.basename(path)}")

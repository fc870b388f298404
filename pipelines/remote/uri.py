"""Addresses of files and folders: local paths, and URIs of objects in a store. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from pipelines.errors import ConfigError

SCHEMES = ("s3", "gs", "az", "http", "https")
_PREFIX = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")


@dataclass(frozen=True, order=True)
class Uri:
    """Address of an object, or of all objects below a prefix.

    Attributes:
        scheme: One of `SCHEMES`.
        bucket: Bucket on S3 and GCS, container on Azure, host with its port for HTTP.
        key: Name inside the bucket, segments separated by "/"; empty for the whole bucket.
    """

    scheme: str
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}" if self.key else f"{self.scheme}://{self.bucket}"

    def __truediv__(self, name: str | Path) -> Uri:
        """Returns the address of `name`, which may contain "/", below this one."""
        key = _check_key("/".join(part for part in (self.key, str(name)) if part), str(self))
        return Uri(self.scheme, self.bucket, key)

    @property
    def name(self) -> str:
        """Last segment of the key, or the bucket."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def stem(self) -> str:
        """Name without its last suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """Last suffix of the name with its dot; empty if there is none."""
        return Path(self.name).suffix

    @property
    def parent(self) -> Uri:
        """Address one level up; a bucket is its own parent."""
        return Uri(self.scheme, self.bucket, self.key.rpartition("/")[0])

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written or listed there."""
        return self.scheme in ("http", "https")

    def relative_to(self, prefix: Uri) -> str:
        """Returns the part of the key below `prefix`.

        Raises:
            ValueError: This address is not below `prefix`.
        """
        is_same_bucket = (self.scheme, self.bucket) == (prefix.scheme, prefix.bucket)
        start = f"{prefix.key}/" if prefix.key else ""
        if not is_same_bucket or not self.key.startswith(start):
            raise ValueError(f"{self} is not below {prefix}")
        return self.key[len(start) :]


Location: TypeAlias = Path | Uri


def is_uri(text: str | Path | Uri) -> bool:
    """Returns whether the text starts with a scheme, known or not, such as `s3://`."""
    return isinstance(text, Uri) or (isinstance(text, str) and _PREFIX.match(text) is not None)


def parse_location(text: str | Path | Uri) -> Location:
    """Returns a local path for a path or a `file://` URI, else the URI of a store.

    Raises:
        ConfigError: The scheme is unknown, the bucket is missing, or the address contains a user name, a
            password or a query, which could be a secret.
    """
    if isinstance(text, Uri):
        return text
    # `Path("s3://bucket/x")` has lost a slash, and would become a local folder named "s3:".
    damaged = re.match(rf"^({'|'.join(SCHEMES)}):/[^/]", str(text))
    if damaged:
        raise ConfigError(
            f"an address with two slashes, such as {damaged[1]}://bucket/name",
            f"location={text}",
            "add the missing slash",
        )
    match = _PREFIX.match(text) if isinstance(text, str) else None
    if isinstance(text, Path) or match is None:
        return Path(text)
    scheme = match[1].lower()
    rest = text[match.end() :]
    if scheme == "file":
        return _parse_file(text)
    if scheme not in SCHEMES:
        raise ConfigError(
            "a path or an address that starts with s3://, gs://, az://, http://, https:// or file://",
            f"scheme={scheme}",
            "use one of these schemes",
        )
    bucket, _, key = rest.partition("/")
    shown = f"{scheme}://{bucket.rpartition('@')[2]}"
    if not bucket or "@" in bucket:
        raise ConfigError(
            f"an address such as {scheme}://bucket/name, without a user name or a password",
            f"location={shown}/...",
            "name the bucket, and pass credentials in the environment or in a profile",
        )
    if scheme in ("http", "https"):
        if "?" in key or "#" in key:
            raise ConfigError(
                "an address without a query or a fragment, since a signed address is a secret",
                f"location={shown}/{re.split('[?#]', key)[0]}?...",
                "use an address that needs no signature, or s3://, gs:// or az:// with credentials",
            )
        key = unquote(key)
    return Uri(scheme, bucket, _check_key(key.strip("/"), shown))


def _parse_file(text: str) -> Path:
    host, slash, path = text[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise ConfigError(
            "a file:// address of this host, such as file:///data/shards",
            f"location={text}",
            "write three slashes before the path, or mount the other host's files",
        )
    return Path(unquote(re.split("[?#]", slash + path)[0]))


def _check_key(key: str, where: str) -> str:
    """Returns the key if every store keeps it as it is."""
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise ConfigError(
            "a name whose segments are not empty, '.' or '..'",
            f"location={where}, name={key}",
            "write the address without '//', '.' and '..'",
        )
    return key

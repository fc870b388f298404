"""Reads the windows of a shard set through the cache, as a training worker does, and prints their digest.

    cache_script.py LOCATION CACHE_GB FILES WINDOWS [hold]

`FILES` is a JSON list of `[file, bytes, sha256]`, `WINDOWS` a JSON list of lists of indices into it. With
`hold`, the process stops in the first window, with a file open, until its standard input ends.
"""

from __future__ import annotations

import hashlib
import json
import sys

from object_site import SiteFile

from pipelines.remote.cache import CachedFiles
from pipelines.remote.uri import parse_location


def main(location: str, cache_gb: str, files_json: str, windows_json: str, mode: str = "") -> None:
    files = [SiteFile(*fields) for fields in json.loads(files_json)]
    windows = [[files[index] for index in window] for window in json.loads(windows_json)]
    uri = parse_location(location)
    cached = CachedFiles(uri, float(cache_gb)).plan(windows)
    digest = hashlib.sha256()
    for number, window in enumerate(windows):
        for file in window:
            with cached.open([file]) as (opened,):
                digest.update(opened.read(0, file.bytes))
                if mode == "hold" and number == 0:
                    print("holding", flush=True)
                    sys.stdin.read()
        cached.advance(number + 1)
    metrics = cached.metrics()
    print(json.dumps({"digest": digest.hexdigest(), "hit_rate": metrics.hit_rate}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

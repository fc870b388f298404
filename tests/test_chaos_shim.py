"""The library that disturbs clock and disk in `make chaos` does so, and only when asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).parent / "chaos_shim.c"
SCRIPT = """
import ctypes, os, sys, time
configure = ctypes.CDLL(None).chaos_configure
configure.argtypes = (ctypes.c_double, ctypes.c_long, ctypes.c_long)

def measure(action):
    start = time.monotonic()
    action()
    return time.monotonic() - start

def write():
    for name in ("a", "b"):
        with open(name, "wb", buffering=0) as file:
            file.write(b"x")
    os.rename("a", "b")

offset = time.time() - time.monotonic()
write()
configure(time.monotonic() + 3600, 86400, 0)
assert abs(time.time() - time.monotonic() - offset) < 60
configure(time.monotonic(), -86400, 0)
assert abs(time.time() - time.monotonic() - offset + 86400) < 60
assert abs(os.stat("b").st_mtime - time.time() - 86400) < 60
configure(0, 0, 100_000)
assert abs(time.time() - time.monotonic() - offset) < 60
assert measure(write) >= 0.3
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_clock_and_disk_are_disturbed(tmp_path: Path) -> None:
    library = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    command = [sys.executable, "-I", "-c", SCRIPT]
    subprocess.run(command, check=True, cwd=tmp_path, env={"LD_PRELOAD": str(library)})

"""Every replica gets its contiguous slice of a global batch, whatever the batches come from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("distributed_script.py")


def test_replicas_get_contiguous_slices_of_datasets_and_of_iterators() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True, cwd=SCRIPT.parents[3])
    rows = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    expected = [[parts, [[[float(row)] for row in part] for part in parts]] for parts in rows]
    assert json.loads(result.stdout) == {"dataset": expected, "iterator": expected}

"""Files of run directories as older versions wrote them."""

from __future__ import annotations

import json

from service.runs import Run


def write_older_record(run: Run, data: str) -> None:
    """Writes the record of a checkpoint after the first epoch, without a digest of its own.

    Args:
        run: Run without checkpoints.
        data: Digest of its shard set.
    """
    record = {
        "epoch": 1,
        "step": 0,
        "stage": 0,
        "data": data,
        "history": run.metrics() or [{"epoch": 1, "accuracy": 0.5}],
        "sums": [0.0, 0.0, 0.0, 0.0],
        "seconds": 0.0,
        "groups": {},
        "sha256": "",
    }
    folder = run.checkpoints / "epoch-0001"
    folder.mkdir()
    (folder / "checkpoint.json").write_text(json.dumps(record))

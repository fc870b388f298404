"""`glassbox train` as a script, for `ray job submit --working-dir . -- python service/train.py ...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, not this folder

from service.cli import main  # noqa: E402 (after the path is set)

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

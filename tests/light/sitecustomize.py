"""Guards the Python processes that tests start: Python runs this file when its directory is on PYTHONPATH."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from heavy_imports import refuse_heavy_imports

refuse_heavy_imports()

"""Runs a command if a database of known vulnerabilities can be reached; otherwise says why it was skipped.

`make lint` runs `python tests/audit.py make audit`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from urllib.error import HTTPError
from urllib.request import urlopen

DATABASE = "https://api.osv.dev"  # the one that pip-audit asks with `--vulnerability-service osv`
SECONDS = 5  # to wait for an answer


def main(command: Sequence[str], database: str = DATABASE) -> int:
    """Runs a command if a database answers.

    Args:
        command: Words of the command.
        database: URL of the database.

    Returns:
        The exit code of the command; 0 if the database cannot be reached.
    """
    try:
        urlopen(database, timeout=SECONDS).close()
    except HTTPError:
        pass  # it has no page at this address, but it answers
    except OSError as error:
        print(f"pip-audit: skipped, because {database} cannot be reached ({error})")
        return 0
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

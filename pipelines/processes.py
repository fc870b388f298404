"""Tells whether another process of this machine still runs."""

from __future__ import annotations

import os


def is_running(process: int) -> bool:
    """Tells whether there is a process with this id, whoever owns it.

    A process that ended counts until its parent has waited for it, and an id may have been given to another
    process since: only False is certain.

    Args:
        process: Id in the space of process ids of this process; ids that no system has are not running.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

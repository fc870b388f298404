"""Claims of trainings on the shard cache of their host, which must hold what they need together."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from time import monotonic, sleep

from pipelines.errors import ConfigError
from pipelines.remote.cache_errors import describe_lack
from pipelines.remote.disk import User, open_cache
from pipelines.remote.folder import format_gigabytes
from pipelines.remote.needs import Needs, count_bytes
from pipelines.remote.users import Claim, UserTable, count_claimed

logger = logging.getLogger(__name__)

WAIT_SECONDS = 60.0  # for another training that is about to end, such as the one that this one continues
POLL_SECONDS = 0.5


class CacheClaim:
    """Space in the cache that a training claims until `close`, or until the object or the process ends.

    Args:
        user: Entry in the cache folder; None if nothing is claimed.
        sharing: Sentence about the other trainings that share the cache; empty if there are none.

    Attributes:
        sharing: Sentence about the other trainings, for the log and the status of the run.
    """

    def __init__(self, user: User | None = None, sharing: str = "") -> None:
        self.sharing = sharing
        self._finalizer = weakref.finalize(self, user.close) if user else None

    def close(self) -> None:
        """Ends the claim."""
        if self._finalizer:
            self._finalizer()


def check_cache(needs: Needs, cache_gb: float | None, purpose: str) -> None:
    """Checks that the budget of the cache suffices.

    Args:
        needs: What is needed at the same time; nothing for local sets.
        cache_gb: Budget from the configuration in units of 10**9 bytes; None if it is not set.
        purpose: What needs it, for the message.

    Raises:
        ConfigError: The budget is smaller; the message has the number needed.
    """
    if not needs:
        return
    budget = open_cache(cache_gb).budget
    if count_bytes(needs) > budget.bytes:
        raise describe_lack(budget, count_bytes(needs), purpose)


def claim_cache(needs: Needs, cache_gb: float | None, purpose: str, group: str) -> CacheClaim:
    """Claims what a training needs in the cache.

    Args:
        needs: What is needed at the same time; nothing for local sets.
        cache_gb: Budget from the configuration in units of 10**9 bytes; None if it is not set.
        purpose: What needs it, for the message.
        group: Name of the training; its processes on this host have the same if they read the same shards.

    Raises:
        ConfigError: The budget is smaller than what is needed, or than what all trainings need together.
    """
    if not needs:
        return CacheClaim()
    check_cache(needs, cache_gb, purpose)
    cache = open_cache(cache_gb)
    claim = Claim(group, dict(needs), cache.budget.bytes)
    deadline = monotonic() + WAIT_SECONDS
    user, others = cache.claim(claim)
    if user is None:
        logger.warning("waiting for space in the shard cache, next to %s", _name_users(others))
    while user is None:
        if monotonic() > deadline:
            raise _describe_conflict(claim, others)
        sleep(POLL_SECONDS)
        user, others = cache.claim(claim)
    return CacheClaim(user, _describe_sharing(others))


def _describe_sharing(others: Sequence[UserTable]) -> str:
    if not others:
        return ""
    return f"the shard cache is shared with {_name_users(others)}: each may fetch again what the others evict"


def _describe_conflict(claim: Claim, others: Sequence[UserTable]) -> ConfigError:
    claims = [claim, *(user.claim for user in others if user.claim)]
    needed = format_gigabytes(count_claimed(claims))
    budget = format_gigabytes(min(each.budget for each in claims))
    own = format_gigabytes(count_bytes(claim.needs))
    return ConfigError(
        f"a shard cache of at least {needed} for all trainings on this host",
        f"budget={budget}, of which this training needs {own}, next to {_name_users(others)}",
        f"set data.cache_gb or GLASSBOX_CACHE_GB of all to at least {needed.removesuffix(' GB')}, "
        "choose another folder with GLASSBOX_CACHE, or train one after the other",
    )


def _name_users(users: Sequence[UserTable]) -> str:
    names = {str(user): format_gigabytes(count_bytes(user.claim.needs)) for user in users if user.claim}
    return ", ".join(f"{name}, which needs {size}" for name, size in sorted(names.items()))

"""Named things: models, sources, anything a user picks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from pipelines.errors import ConfigError

T = TypeVar("T")


def suggest(name: str, known: Iterable[str]) -> str:
    """Words a fix for an unknown name: the nearest known names, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return "use " + " or ".join(near) if near else "use one of " + ", ".join(names)


class Registry(Generic[T]):
    """Names mapped to things of one kind; a second registration of a name is an error.

    Args:
        kind: What the names stand for, as error messages call it (``"model"``).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers its target as ``name``.

        Raises:
            ValueError: The name is taken (a mistake in the code, not of a user).
        """

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(
                    f"Expected a new {self.kind} name. Received: name={name!r}. Fix: rename one."
                )
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """Looks a name up.

        Raises:
            ConfigError: No such name; the message lists the nearest ones.
        """
        if name not in self._items:
            raise ConfigError(f"a known {self.kind}", f"{self.kind}={name}", suggest(name, self._items))
        return self._items[name]

    def names(self) -> tuple[str, ...]:
        """All registered names, sorted."""
        return tuple(sorted(self._items))

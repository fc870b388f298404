"""Maps the names that users choose from, such as those of models and sources, to the objects they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

from pipelines.errors import ConfigError, suggest
from pipelines.plugins import find_entry_points, is_reference, load_entry_point, load_reference

T = TypeVar("T")


class Registry(Generic[T]):
    """Names mapped to objects of one kind; a second registration of a name is an error.

    Args:
        kind: Kind of the objects for error messages, such as `model`.
        group: Entry-point group in which installed packages add names, such as `glassbox.models`. With a
            group, `get` also takes references to user code, `file.py:NAME` and `package.module:NAME`.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers its target under a name.

        Raises:
            ValueError: The name is already registered, which is a mistake in the code.
        """

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(
                    f"Expected a new {self.kind} name. Received: name={name!r}. Fix: rename one."
                )
            self._items[name] = item
            return item

        return add

    def __contains__(self, name: object) -> bool:
        """Tells whether a name is registered here; entry points and references do not count."""
        return name in self._items

    def get(self, name: str) -> T:
        """Returns the object of a name: a registered one, else that of an entry point, else of a reference.

        Raises:
            ConfigError: The name is unknown (the message lists the nearest ones), or the code it refers to
                cannot be imported.
        """
        if name in self._items:
            return self._items[name]
        entry_points = find_entry_points(self.group) if self.group else {}
        if name in entry_points:
            return cast(T, load_entry_point(entry_points[name], self.kind))
        if self.group and is_reference(name):
            return cast(T, load_reference(name, self.kind))
        if self.group and name.endswith(".py"):
            raise ConfigError(f"a {self.kind} in a file", f"{self.kind}={name}", f"write {name}:NAME")
        fix = suggest(name, [*self._items, *entry_points])
        if self.group:
            fix += f", or file.py:NAME for a {self.kind} of your own"
        raise ConfigError(f"a known {self.kind}", f"{self.kind}={name}", fix)

    def is_registered(self, name: str) -> bool:
        """Tells whether a name is registered here; entry points and references do not count."""
        return name in self._items

    def names(self) -> tuple[str, ...]:
        """Returns all names, sorted: those registered here and those of entry points."""
        names = set(self._items)
        if self.group:
            names.update(find_entry_points(self.group))
        return tuple(sorted(names))

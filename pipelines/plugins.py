"""Loads code that is not part of this package: `file.py:NAME`, `package.module:NAME` and entry points."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.errors import ConfigError, GlassboxError, suggest

FILE_MODULE_PREFIX = "glassbox_file_"  # starts the names of modules loaded from files in `sys.modules`
_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_FILE_REFERENCE = re.compile(rf"(?P<file>.*\.py):(?P<attribute>{_NAME})")
_MODULE_REFERENCE = re.compile(rf"(?P<folder>.*/)?(?P<module>{_NAME}):(?P<attribute>{_NAME})")


def is_reference(name: str) -> bool:
    """Tells whether a name refers to user code: `file.py:NAME` or `[FOLDER/]package.module:NAME`.

    A module name without a dot counts only if such a module is installed, so that `folder:photos` is not a
    reference. Nothing is imported.
    """
    if _match_file(name):
        return True
    match = _match_module(name)
    if not match:
        return False
    return bool(match["folder"]) or "." in match["module"] or _is_installed(match["module"])


def split_argument(name: str) -> tuple[str, str]:
    """Splits `REFERENCE:ARGUMENT` into both parts; the argument is empty if there is none."""
    parts = name.split(":")
    for count in range(2, len(parts)):
        reference = ":".join(parts[:count])
        if is_reference(reference):
            return reference, ":".join(parts[count:])
    return name, ""


def reference_file(reference: str) -> Path | None:
    """Returns the path in a `file.py:NAME` reference, whether or not it exists; None for any other name."""
    match = _match_file(reference)
    return Path(match["file"]).expanduser() if match else None


def find_sibling(file: Path, module: str) -> Path | None:
    """Returns the module or package of a name next to a file, which the file cannot import; None without one.

    Args:
        file: Python file of the user.
        module: Name of the module; dots are allowed.
    """
    name = module.partition(".")[0]
    for sibling in (file.parent / f"{name}.py", file.parent / name / "__init__.py"):
        if sibling.is_file() and sibling.resolve() != file.resolve():
            return sibling.resolve()
    return None


def load_reference(reference: str, kind: str) -> Any:
    """Imports the object that a reference names.

    A file is executed once per content, because the name of its module depends on the file's name and content
    alone. A copy of the file therefore yields the same module, and objects pickled with one can be unpickled
    with the other.

    Args:
        reference: `file.py:NAME` or `package.module:NAME`; NAME may contain dots.
        kind: Kind of the object for error messages, such as `model`.

    Returns:
        The function, class or other object.

    Raises:
        ConfigError: The file, module or name does not exist, or importing it failed.
    """
    received = f"{kind}={reference}"
    match = _match_file(reference)
    if match:
        module = _import_file(Path(match["file"]).expanduser(), received)
        return _get_attribute(module, match["attribute"], match["file"], received)
    match = _match_module(reference)
    if not match:
        raise ConfigError("file.py:NAME or package.module:NAME", received, "write it in one of these forms")
    module = _import_module(match["module"], received, match["folder"])
    return _get_attribute(module, match["attribute"], match["module"], received)


def load_module(name: str, kind: str) -> ModuleType:
    """Imports a whole module: `file.py`, `package.module`, or `FOLDER/package.module`.

    Args:
        name: The module, in one of these forms.
        kind: Kind of the module for error messages.

    Raises:
        ConfigError: The file or module does not exist, or importing it failed.
    """
    received = f"{kind}={name}"
    if name.endswith(".py"):
        return _import_file(Path(name).expanduser(), received)
    match = _match_module(f"{name}:NAME")
    if not match:
        raise ConfigError("file.py or package.module", received, "write it in one of these forms")
    return _import_module(match["module"], received, match["folder"])


def split_reference(reference: str) -> tuple[str | None, str, str]:
    """Splits a `[FOLDER/]package.module:NAME` reference into folder (None without one), module and name.

    Raises:
        ValueError: The reference is not of this form.
    """
    match = _match_module(reference)
    if not match:
        raise ValueError(f"no package.module:NAME: {reference!r}")
    return match["folder"], match["module"], match["attribute"]


def find_entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """Returns the entry points that installed packages declare in a group, by name.

    Args:
        group: Group in the metadata of packages, such as `glassbox.models`.
    """
    by_name: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(group=group):
        same_name = by_name.setdefault(entry_point.name, [])
        if entry_point.value not in [other.value for other in same_name]:
            same_name.append(entry_point)
    return by_name


def load_entry_point(candidates: list[EntryPoint], kind: str) -> Any:
    """Imports the object of an entry point.

    Args:
        candidates: All entry points of one name.
        kind: Kind of the object for error messages.

    Raises:
        ConfigError: Several packages declare the name, or its object cannot be imported.
    """
    entry_point = candidates[0]
    if len(candidates) > 1:
        values = " and ".join(candidate.value for candidate in candidates)
        fix = "uninstall one of the packages, or write package.module:NAME"
        raise ConfigError(
            f"one package that provides the {kind}", f"{kind}={entry_point.name} ({values})", fix
        )
    received = f"{kind}={entry_point.name} (entry point {entry_point.value})"
    if not entry_point.attr:
        raise ConfigError("an entry point package.module:NAME", received, "repair the package's metadata")
    module = _import_module(entry_point.module, received)
    return _get_attribute(module, entry_point.attr, entry_point.module, received)


def list_file_modules() -> list[ModuleType]:
    """Returns the modules that `load_reference` made from files, which no other process can import."""
    return [module for name, module in list(sys.modules.items()) if name.startswith(FILE_MODULE_PREFIX)]


def _match_file(name: str) -> re.Match[str] | None:
    match = _FILE_REFERENCE.fullmatch(name)
    return None if match is None or "://" in name else match


def _match_module(name: str) -> re.Match[str] | None:
    match = _MODULE_REFERENCE.fullmatch(name)
    return None if match is None or "://" in name else match


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: in `sys.modules` without a spec, such as `__main__`
        return False


def _import_file(path: Path, received: str) -> ModuleType:
    """Executes a file as a module, or returns the module of an earlier call with the same content."""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError("a Python file", f"{received} ({reason})", "check the path") from None
    stem = re.sub(r"\W", "_", path.stem)
    name = f"{FILE_MODULE_PREFIX}{stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]

    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError("a Python file", received, "choose a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (GlassboxError, KeyboardInterrupt)):
            raise
        line = _find_line(error, str(path.resolve()))
        fix = f"run `python {path}` and repair what it reports"
        if isinstance(error, ModuleNotFoundError) and error.name and find_sibling(path, error.name):
            fix = "put both files into a package and write FOLDER/package.module:NAME"
        raise ConfigError(
            "a file that can be imported", f"{received}: {_last_line(error)}{line}", fix
        ) from error
    return module


def _import_module(name: str, received: str, folder: str | None = None) -> ModuleType:
    if folder:
        _prepend_to_path(Path(folder).expanduser().resolve(), name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except (GlassboxError, KeyboardInterrupt):
        raise
    except BaseException as error:
        is_missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        fix = f"run `python -c 'import {name}'` and repair what it reports"
        if is_missing:
            fix = "install the package in this environment, or write file.py:NAME"
        raise ConfigError(
            f"a module {name} that can be imported", f"{received}: {_last_line(error)}", fix
        ) from error


def _prepend_to_path(folder: Path, package: str) -> None:
    """Puts a folder first on the import path, and unloads a package that was imported from elsewhere."""
    module = sys.modules.get(package)
    paths = [*getattr(module, "__path__", ()), getattr(module, "__file__", None)]
    if module is not None and not any(path and Path(path).is_relative_to(folder) for path in paths):
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
            del sys.modules[name]
    if sys.path[0] != str(folder):
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _get_attribute(module: ModuleType, attribute: str, place: str, received: str) -> Any:
    value: Any = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            known = _public_names(value)
            fix = suggest(name, known) if known else f"define {name} in {place}"
            raise ConfigError(f"a name that {place} defines", received, fix)
        value = getattr(value, name)
    return value


def _public_names(owner: Any) -> Iterable[str]:
    """Returns the functions and classes that a module or class defines, without what it imported."""
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    return [
        name
        for name, value in vars(owner).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module
    ]


def _last_line(error: BaseException) -> str:
    """Returns the last line of the traceback that Python would print, without a full stop."""
    line = traceback.format_exception_only(error)[-1].strip().rstrip(".")
    return line.splitlines()[0] if line else type(error).__name__


def _find_line(error: BaseException, path: str) -> str:
    """Returns the innermost line of a file in a traceback as ` (line N)`; empty if there is none."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f" (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" (line {lines[-1]})" if lines else ""

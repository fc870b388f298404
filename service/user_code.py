"""Copies the user's files that a run needs, and records their digests, so that a run is self-contained.

`service/runs.py` stores the copies in the run directory.
"""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.plugins import (
    find_entry_points,
    find_sibling,
    is_reference,
    reference_file,
    split_reference,
)
from pipelines.remote.files import fetch_file, is_file
from pipelines.remote.uri import Location, Uri, parse_location
from pipelines.storage import hash_file
from service.pretrained import is_weights_file

ROOT = Path(__file__).resolve().parents[1]
OWN_PACKAGES = ("glassbox", "pipelines", "service")
FILE_SUFFIXES = (".py", ".keras", ".h5")
LARGEST_DATA_FILE = 1_000_000  # bytes; larger files of a package are copied only if they are Python code
LARGEST_PACKAGE = 64_000_000  # bytes
ENTRY_POINT_GROUPS = ("glassbox.models", "glassbox.augmentations")


def check_code(config: dict[str, Any]) -> None:
    """Checks that a run can copy all user code that a configuration names. Imports nothing.

    Args:
        config: Configuration of a run as plain values.

    Raises:
        ConfigError: A file or package does not exist, or a file imports another one next to it, which would
            not be copied.
    """
    names = find_names(config)
    copied = {*find_packages(names), *OWN_PACKAGES}
    for name in names:
        file: Location | None = reference_file(name)
        if file is None and name.endswith(FILE_SUFFIXES):
            file = _parse_file(name)
        if file is None:
            find_package(name)
            continue
        if not is_file(file):
            raise ConfigError("a file that exists", f"file={name}", "correct the path")
        if isinstance(file, Uri):
            continue
        if file.suffix == ".py":
            _check_imports(file, name, copied)


def build_code_error(location: Location) -> ConfigError:
    """Returns the error for user code on a store: a command executes only local code."""
    fix = "copy the code to a local file or package, and name that"
    return ConfigError("user code on a disk of this machine", f"file={location}", fix)


@dataclass
class CodeCopy:
    """Copies of user files in a folder.

    Args:
        folder: Folder that receives the copies; it is created with the first of them.

    Attributes:
        originals: Names in the configuration, by the name of each copy relative to the folder.
        installed: Distribution and version of code that is installed and was not copied, by name.
    """

    folder: Path
    originals: dict[str, str] = field(default_factory=dict)
    installed: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> str | None:
        """Copies the file or package that a name refers to.

        Args:
            name: `file.py:NAME`, `[FOLDER/]package.module[:NAME]`, or a `.py`, `.keras` or `.h5` file; the
                latter two also as URIs.

        Returns:
            The name of the copy relative to the folder, in the same form; None for code that is installed.

        Raises:
            ConfigError: The file or module does not exist, or its package is too large.
        """
        file = reference_file(name)
        if file is not None:
            stored = f"{self._add_file(file, name)}:{name.rpartition(':')[2]}"
        elif name.endswith(FILE_SUFFIXES):
            stored = self._add_file(fetch_file(_parse_file(name)), name)
        else:
            package_name = self._add_package(name)
            if package_name is None:
                return None
            stored = package_name
        self.originals[stored] = name
        return stored

    def hash_files(self) -> dict[str, str]:
        """Returns the SHA-256 of every copied file, by its path relative to the folder."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): hash_file(path) for path in files}

    def _add_file(self, file: Path, name: str) -> str:
        if not file.is_file():
            raise ConfigError("a file that exists", f"file={name}", "correct the path")
        target = self.folder / file.name
        number = 1
        while target.exists() and hash_file(target) != hash_file(file):
            number += 1
            target = self.folder / str(number) / file.name  # another file of the same name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        return str(target.relative_to(self.folder))

    def _add_package(self, name: str) -> str | None:
        """Copies the whole package around a module, unless it is installed."""
        module, _, attribute = name.partition(":")
        _, dotted, _ = split_reference(f"{module}:NAME")
        package = dotted.partition(".")[0]
        source = find_package(name)
        if package in OWN_PACKAGES or source is None or is_installed(source):
            self.installed[name] = _describe_distribution(package)
            return None
        files = [source] if source.is_file() else list(_iterate_files(source))
        total = sum(file.stat().st_size for file in files)
        if total > LARGEST_PACKAGE:
            received = f"reference={name} ({source}, {total / 1e6:.0f} MB in {len(files)} files)"
            raise ConfigError(
                f"a package of at most {LARGEST_PACKAGE / 1e6:.0f} MB",
                received,
                "install it, or move the code into a package of its own",
            )
        for file in files:
            target = self.folder / file.relative_to(source.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        return f"{dotted}:{attribute}" if attribute else dotted


def find_names(config: dict[str, Any]) -> tuple[str, ...]:
    """Returns everything in a configuration that refers to a user's files or code, in a fixed order.

    Args:
        config: Configuration of a run as plain values.
    """
    names = []
    model = str(config.get("model", ""))
    if model.endswith(FILE_SUFFIXES) or is_reference(model):
        names.append(model)
    weights = str(config.get("weights", "none"))
    if is_weights_file(weights):
        names.append(weights)
    names += config.get("custom_objects") or ()
    names += [key for key in config.get("augment") or {} if is_reference(key)]
    return tuple(dict.fromkeys(names))


def find_packages(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the packages in the names from `find_names`: those of `package.module`, not of files.

    Args:
        names: References to user code and paths of files.
    """
    packages = []
    for name in names:
        if reference_file(name) is None and not name.endswith(FILE_SUFFIXES):
            module = name.partition(":")[0].rpartition("/")[2]
            packages.append(module.partition(".")[0])
    return tuple(packages)


def replace_names(value: Any, names: dict[str, str]) -> Any:
    """Returns nested plain values with some texts, keys included, replaced."""
    if isinstance(value, dict):
        return {names.get(key, key): replace_names(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_names(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def list_modules(config: dict[str, Any]) -> tuple[str, ...]:
    """Returns the modules that may define custom layers of a model: that of its function, and declared ones.

    Args:
        config: Configuration of a run as plain values.
    """
    model = str(config.get("model", ""))
    modules = []
    if is_reference(model):
        modules.append(model.rpartition(":")[0])
    for entry_point in find_entry_points("glassbox.models").get(model, [])[:1]:
        modules.append(entry_point.module)
    modules += config.get("custom_objects") or ()
    return tuple(dict.fromkeys(modules))


def describe_entry_points(config: dict[str, Any]) -> dict[str, str]:
    """Returns distribution and version of the installed packages whose entry points a configuration uses."""
    names = {str(config.get("model", "")), *(config.get("augment") or {})}
    descriptions = {}
    for group in ENTRY_POINT_GROUPS:
        for name, entry_points in find_entry_points(group).items():
            distribution = entry_points[0].dist
            if name in names and distribution is not None:
                descriptions[name] = f"{distribution.name} {distribution.version}"
    return descriptions


def find_package(name: str) -> Path | None:
    """Finds the package of a reference without importing it.

    Args:
        name: Reference of the form `[FOLDER/]package.module[:NAME]`.

    Returns:
        Folder of the package, or file of the module; None for modules built into Python.

    Raises:
        ConfigError: The package does not exist.
    """
    folder, dotted, _ = split_reference(f"{name.partition(':')[0]}:NAME")
    package = dotted.partition(".")[0]
    if folder is not None:
        parent = Path(folder).expanduser()
        for path in (parent / package, parent / f"{package}.py"):
            if path.exists():
                return path.absolute()
        raise ConfigError(
            f"a package {package} in {folder}", f"reference={name}", "correct the folder or the name"
        )
    spec = importlib.util.find_spec(package)
    if spec is None:
        fix = "install it, or write FOLDER/package.module"
        raise ConfigError(f"a package {package} that can be imported", f"reference={name}", fix)
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).absolute()
    return Path(spec.origin).absolute() if spec.has_location and spec.origin else None


def is_installed(source: Path) -> bool:
    """Tells whether code belongs to Python or to an installed distribution, not to a working folder."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    is_below = any(source.is_relative_to(folder) for folder in folders if folder)
    return is_below or bool({"site-packages", "dist-packages"} & set(source.parts))


def _parse_file(name: str) -> Location:
    location = parse_location(name)
    return location.expanduser() if isinstance(location, Path) else location


def _check_imports(file: Path, name: str, copied: set[str]) -> None:
    """Refuses a file with an import of another file of the user that is neither copied nor installed."""
    for package in _list_imports(file):
        if package in copied or package in sys.stdlib_module_names:
            continue
        other = find_sibling(file, package) or _find_imported(package)
        if other is not None and not is_installed(other) and not other.is_relative_to(ROOT):
            fix = "put both files into a package and write FOLDER/package.module:NAME, or install the other"
            raise ConfigError(
                "user code that imports only installed packages and its own",
                f"{name} (imports {package} from {other})",
                fix,
            )


def _list_imports(file: Path) -> list[str]:
    """Returns the top-level packages that a file imports; none if it cannot be parsed."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []  # importing the file reports this, with the line
    packages = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.append(node.module.partition(".")[0])
    return list(dict.fromkeys(packages))


def _find_imported(package: str) -> Path | None:
    """Finds file or folder of a top-level package without importing it; None if there is none."""
    try:
        return find_package(package)
    except (ConfigError, ImportError, ValueError):  # ValueError: in `sys.modules` without a spec
        return None


def _describe_distribution(package: str) -> str:
    names = packages_distributions().get(package)
    return f"{names[0]} {version(names[0])}" if names else package


def _iterate_files(package: Path) -> Iterator[Path]:
    """Yields the Python code of a package, and its small other files, without caches and hidden files."""
    for path in sorted(package.rglob("*")):
        parts = path.relative_to(package).parts
        if any(part.startswith(".") or part == "__pycache__" for part in parts) or not path.is_file():
            continue
        if path.suffix == ".py" or path.stat().st_size <= LARGEST_DATA_FILE:
            yield path

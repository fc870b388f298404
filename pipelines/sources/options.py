"""Options of a source that are not part of its name: splits, columns and class names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.remote.files import read_file
from pipelines.remote.uri import Uri, parse_location

ROLES = ("image", "label", "split", "id")
MAX_NAMES_FILE = 2**26  # bytes of a file of class names in a store


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; None leaves each decision to the source, which says what it decided.

    Attributes:
        splits: Folder of every split, such as `train=Training,validation=Testing`.
        columns: Column of every role, such as `image=file,label=breed`; `image=train/{id}.jpg` is a
            template of paths.
        class_names: Class names in the order of their labels.
        needs_train: Whether a source without a train split is an error; False to evaluate or predict it.
        needs_labels: Whether a table without labels is an error; False to predict its images.
    """

    splits: str | None = None
    columns: str | None = None
    class_names: tuple[str, ...] | None = None
    needs_train: bool = True
    needs_labels: bool = True

    def list_names(self) -> list[str]:
        """Returns the command-line options that are set."""
        values = {"--splits": self.splits, "--columns": self.columns, "--classes": self.class_names}
        return [name for name, value in values.items() if value is not None]

    def parse_columns(self) -> dict[str, str]:
        """Returns the requested column per role.

        Raises:
            ConfigError: A role is unknown or occurs twice, or a column is missing.
        """
        columns: dict[str, str] = {}
        for part in (self.columns or "").split(",") if self.columns is not None else ():
            role, _, column = part.partition("=")
            role = role.strip()
            if role not in ROLES or not column.strip() or role in columns:
                expected = f"ROLE=COLUMN with each of {', '.join(ROLES)} at most once"
                fix = "write --columns image=file,label=class, for example"
                raise ConfigError(expected, f"columns={self.columns}", fix)
            columns[role] = column.strip()
        return columns


def read_class_names(path: str | Path | Uri) -> tuple[str, ...]:
    """Reads a file of class names, one per line in the order of the labels.

    Args:
        path: Path or URI of the file.

    Raises:
        ConfigError: The file cannot be read as UTF-8, has fewer than two names, or a name twice or empty.
    """
    try:
        location = parse_location(path)
        if isinstance(location, Path):
            location = location.expanduser()
        lines = read_file(location, MAX_NAMES_FILE).decode("utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError("a text file of class names", f"classes={path}: {reason}", "check it") from None
    names = [line.strip() for line in lines]
    received = f"classes={path}: {len(names)} names"
    if len(names) < 2:
        raise ConfigError("at least two class names, one per line", received, "list all classes")
    for line, name in enumerate(names, 1):
        if not name or name in names[: line - 1]:
            received = f"classes={path}: line {line}: {name!r}"
            raise ConfigError("a different class name in every line", received, "correct that line")
    return tuple(names)

"""Matches the classes of a model with those of a data set, by name. Does not import TensorFlow."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError

MAX_NAMES = 8  # class names listed in a message


@dataclass(frozen=True)
class ClassMatch:
    """How labels of a data set relate to outputs of a model.

    Attributes:
        names: Class names in the order of the outputs.
        outputs: Index of the output for every label of the data set.
        note: How the classes were matched, as a line for the terminal and the footer of a report.
    """

    names: tuple[str, ...]
    outputs: tuple[int, ...]
    note: str

    def map_labels(self, labels: Any) -> NDArray[np.int32]:
        """Returns labels `[N]` as indices of outputs, int32; unknown labels stay as they are."""
        values = np.asarray(labels, np.int32)
        is_known = (values >= 0) & (values < len(self.outputs))
        table = np.asarray(self.outputs, np.int32)
        return np.where(is_known, table[np.where(is_known, values, 0)], values).astype(np.int32)


def match_classes(names: Sequence[str] | None, classes: Sequence[str], source: str = "") -> ClassMatch:
    """Matches the outputs of a model with the classes of a data set.

    Args:
        names: Class names of the model in the order of its outputs; None if they are not known, so that
            output i is taken for class i of the data.
        classes: Class names of the data set in the order of its labels.
        source: Where the names of the model come from, or why they are not known, for the note.

    Raises:
        ConfigError: One has classes that the other does not have.
    """
    if names is None:
        pairs = ", ".join(f"{index} is {name!r}" for index, name in enumerate(classes[:MAX_NAMES]))
        more = f" and {len(classes) - MAX_NAMES} more" if len(classes) > MAX_NAMES else ""
        note = f"classes: by position ({source or 'the model has no class names'}): output {pairs}{more}"
        return ClassMatch(tuple(classes), tuple(range(len(classes))), note)
    place = {unicodedata.normalize("NFC", name): index for index, name in enumerate(names)}
    keys = [unicodedata.normalize("NFC", name) for name in classes]
    unknown = [name for name, key in zip(classes, keys, strict=True) if key not in place]
    missing = [name for name in names if unicodedata.normalize("NFC", name) not in keys]
    if unknown or missing:
        parts = [("unknown to the model", unknown), ("missing", missing)]
        received = "; ".join(f"{kind}: {list_names(group)}" for kind, group in parts if group)
        raise ConfigError(
            f"a shard set of the classes of the model: {list_names(names)}{f' ({source})' if source else ''}",
            f"classes={list_names(classes)} ({received})",
            "pass --data with a shard set of these classes",
        )
    outputs = tuple(place[key] for key in keys)
    order = "" if list(outputs) == sorted(outputs) else "; the data has them in another order"
    return ClassMatch(tuple(names), outputs, f"classes: by name{f' ({source})' if source else ''}{order}")


def list_names(names: Sequence[str]) -> str:
    """Returns class names as text, only the first ones of many."""
    listed = ", ".join(names[:MAX_NAMES])
    return f"{listed}, ... ({len(names)} in all)" if len(names) > MAX_NAMES else listed

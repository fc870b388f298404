"""Amounts as Kubernetes writes them."""

from __future__ import annotations

import re
from typing import Any

QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m|k|[MGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3} | {
    letter + suffix: base ** (n + 1)
    for suffix, base in (("", 1e3), ("i", 1024.0))
    for n, letter in enumerate("KMGTPE")
}
GPU = "nvidia.com/gpu"


def amount(quantity: Any) -> float | None:
    """The number a quantity stands for; None where Kubernetes would not read it."""
    match = (
        QUANTITY.fullmatch(str(quantity))
        if isinstance(quantity, str | int | float) and not isinstance(quantity, bool)
        else None
    )
    if not match:
        return None
    number, suffix = match[1], match[2] or ""
    return (
        float(number + suffix) if suffix[:1] in ("e", "E") and suffix[1:] else float(number) * FACTORS[suffix]
    )

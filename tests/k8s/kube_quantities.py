"""Parses Kubernetes quantities such as `500m` and `16Gi`."""

from __future__ import annotations

import re
from typing import Any

QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m|k|[MGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
PREFIXES = "KMGTPE"
FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3}
FACTORS |= {prefix: 1e3 ** (power + 1) for power, prefix in enumerate(PREFIXES)}
FACTORS |= {f"{prefix}i": 1024.0 ** (power + 1) for power, prefix in enumerate(PREFIXES)}
GPU = "nvidia.com/gpu"


def parse_quantity(quantity: Any) -> float | None:
    """Returns the number that a quantity stands for; None if Kubernetes would refuse it."""
    if isinstance(quantity, bool) or not isinstance(quantity, str | int | float):
        return None
    match = QUANTITY.fullmatch(str(quantity))
    if not match:
        return None
    number = match[1]
    suffix = match[2] or ""
    has_exponent = len(suffix) > 1 and suffix[0] in "eE" and suffix[1] != "i"
    if has_exponent:
        return float(number + suffix)
    return float(number) * FACTORS[suffix]

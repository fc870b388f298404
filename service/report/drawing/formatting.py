"""Formats of numbers and fragment identifiers of the pages, also used as filters in the templates."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pipelines.text import keep_together

# Shown instead of a missing value.
NO_VALUE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = keep_together(" \N{MULTIPLICATION SIGN} ")
FLOAT32_ERROR = 1e-6  # of a sum of probabilities
# Characters of a name that a fragment identifier keeps.
PLAIN = re.compile(r"[A-Za-z0-9/_-]")


def percent(fraction: float | None, digits: int = 1) -> str:
    """Formats a fraction in [0, 1] as a percentage, never rounded to 100% or 0%; a dash for None.

    What float32 does not tell from 1 is 1: a probability is the same wherever on the page it was computed.
    """
    if fraction is None or not math.isfinite(fraction):
        return NO_VALUE
    if abs(fraction - 1) < FLOAT32_ERROR:
        fraction = 1.0
    text = f"{fraction * 100:.{digits}f}"
    smallest = 10.0**-digits
    if fraction < 1 and float(text) >= 100:
        text = f">{100 - smallest:.{digits}f}"
    elif fraction > 0 and float(text) <= 0:
        text = f"<{smallest:.{digits}f}"
    return f"{text}%"


def number(value: float | None, digits: int = 3) -> str:
    """Formats a number with few significant digits; a dash for None."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    is_whole = abs(value) >= 1000 or value == int(value)
    text = f"{value:,.0f}" if is_whole else f"{value:.{digits}g}"
    # Also in exponents: lines are not broken at this sign.
    return text.replace("-", MINUS)


def decimal(value: float, digits: int = 2) -> str:
    """Formats a number with a fixed number of decimals, such as `0.50`, and a minus sign of its own."""
    return f"{value:.{digits}f}".replace("-", MINUS)


def quantity(value: float | None, names: tuple[str, str, str] = ("M", "G", "T")) -> str:
    """Formats a large count with three digits and its unit, such as `15.5 G`; a dash for None.

    Args:
        value: The count, at least 0.
        names: Names of a million, a billion and a trillion.
    """
    if value is None:
        return NO_VALUE
    if value < 999_500:
        return f"{value:,.0f}"
    power = 2
    while power < 4 and value >= 999.5 * 1000**power:
        power += 1
    scaled = value / 1000**power
    digits = 2 - (scaled >= 9.995) - (scaled >= 99.95)
    return f"{scaled:.{digits}f}\N{NO-BREAK SPACE}{names[power - 2]}"


def sizes(lengths: Sequence[int]) -> str:
    """Formats the lengths of the sides of an image or an array, such as `56 x 56 x 64`, for one line."""
    return TIMES.join(str(length) for length in lengths)


def difference(value: float | None, unit: str = "", digits: int = 1) -> str:
    """Formats a difference with its sign, such as `+4.1%`; a dash for None."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text + unit
    sign = "+" if value > 0 else MINUS
    return sign + text + unit


def points(fraction: float | None) -> str:
    """Formats a difference of two fractions in percentage points, with its sign: 0.144 is `+14.4`."""
    return difference(None if fraction is None else fraction * 100)


def duration(seconds: float | None) -> str:
    """Formats a duration in its two largest units, such as `3 min 20 s` or `2 h 5 min`; a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return NO_VALUE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    for size, name, smaller_size, smaller_name in units:
        if whole >= size:
            rest = whole % size // smaller_size
            text = f"{whole // size} {name}"
            return f"{text} {rest} {smaller_name}" if rest else text
    return f"{whole} s"


def anchor(name: str) -> str:
    """Formats a name, such as that of a layer, as a fragment identifier; different names stay different.

    Letters, digits, `-`, `_` and the `/` between nested models are kept; any other character becomes its
    code point between dots, so that a colon keeps its meaning in addresses.
    """
    return "".join(letter if PLAIN.match(letter) else f".{ord(letter):x}." for letter in name)

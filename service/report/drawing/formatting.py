"""Figures in words: how every page writes shares, numbers, differences and times."""

from __future__ import annotations

import math

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage; a dash where there is none. Never rounds up to 100% or down to 0%."""
    if share is None or not math.isfinite(share):
        return NONE
    text = f"{share * 100:.{digits}f}"
    edge = 10.0**-digits
    if share < 1 and float(text) >= 100:
        text = f">{100 - edge:.{digits}f}"
    elif share > 0 and float(text) <= 0:
        text = f"<{edge:.{digits}f}"
    return f"{text}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number in few digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.{digits}g}"
    return text.replace("-", MINUS, 1) if value < 0 else text


def signed(value: float | None, unit: str = "", digits: int = 1) -> str:
    """A difference with its sign, such as `+4.1%`; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{abs(value):.{digits}f}"
    return ("" if float(text) == 0 else "+" if value > 0 else MINUS) + text + unit


def points(share: float | None) -> str:
    """A difference of two shares in percentage points, with its sign: 0.144 is `+14.4`."""
    return signed(None if share is None else share * 100)


def duration(seconds: float | None) -> str:
    """A time in the two units that matter: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"

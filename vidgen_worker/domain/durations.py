"""Durations as settings and options write them: 500ms, 15s, 1h or 1m30s."""

import re
from datetime import timedelta

from vidgen_worker.domain.foreign_text import quoted

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(value: object) -> object:
    """Read "15s", "2m", "1m30s" or "500ms"; a timedelta passes through.

    Raises ValueError naming the accepted units: a bare number is refused, since it has no unit.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    parts = _DURATION.findall(text)
    msg = f"{quoted(value)} is not a duration; write for example 500ms, 15s, 2m, 1h or 1m30s"
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(msg)
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise ValueError(msg) from None


def format_duration(value: timedelta) -> str:
    """Write a duration the way `parse_duration` reads it."""
    milliseconds = round(value.total_seconds() * 1000)
    if milliseconds % 1000:
        return f"{milliseconds}ms"
    parts, rest = [], milliseconds // 1000
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if rest >= length:
            parts.append(f"{rest // length}{unit}")
            rest %= length
    return "".join(parts) or "0s"

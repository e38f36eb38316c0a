"""How long a task still takes, in words that don't flicker: "about 25 s left".

It is an estimate, so it is rounded, and what was said stays until it is wrong by a whole step.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from vidgen_worker.cli.output import lasting

MINUTE = 60
STEPS = ((MINUTE, 5), (10 * MINUTE, 30), (math.inf, MINUTE))
"""Pairs in seconds: up to the first, the time left is said in steps of the second."""


class TimeLeft:
    """The time left of one task, as it was said last."""

    def __init__(self) -> None:
        self._said: float | None = None

    def words(self, row: Mapping[str, Any], now: datetime) -> str:
        """Say it of a task's row; empty where nobody knows. `now` is by the database's clock."""
        self._look(row, now)
        if self._said is None:
            return ""
        return f"about {_length(self._said)} left" if self._said else "nearly there"

    def short(self, row: Mapping[str, Any], now: datetime) -> str:
        """Say it as `words` does, for a cell of a table."""
        self._look(row, now)
        if self._said is None:
            return ""
        return f"~{lasting(self._said)} left" if self._said else "nearly there"

    def _look(self, row: Mapping[str, Any], now: datetime) -> None:
        if row["expected_at"] is None:
            self._said = None
            return
        seconds = max((row["expected_at"] - now).total_seconds(), 0.0)
        step = next(step for below, step in STEPS if seconds < below)
        if self._said is None or abs(seconds - self._said) >= step:
            self._said = math.ceil(seconds / step) * step


def _length(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), MINUTE)
    return " ".join([*([f"{minutes} min"] if minutes else []), *([f"{rest} s"] if rest else [])])

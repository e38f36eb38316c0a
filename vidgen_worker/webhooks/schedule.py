"""When a delivery is tried again. No I/O."""

import random
from datetime import timedelta

PAUSES = (
    timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=2),
    timedelta(hours=5), timedelta(hours=10), timedelta(hours=14), timedelta(hours=20),
    timedelta(hours=24),
)  # fmt: skip
"""After the first try, the second …: ten tries within a little over three days."""
JITTER = 0.2
LONGEST_WISH = timedelta(hours=24)
"""The longest pause that a receiver may ask for."""


def pause_after(tries: int, wish: timedelta | None = None) -> timedelta | None:
    """Return the pause after so many tries; None: there is no further one.

    `wish` is what the receiver has asked for (Retry-After). It is never asked sooner.
    """
    if tries > len(PAUSES):
        return None
    pause = PAUSES[tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
    return max(pause, min(wish, LONGEST_WISH)) if wish is not None else pause

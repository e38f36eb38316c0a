"""A machine whose clock is wrong: what a process of Python reads as the time of day."""

from pathlib import Path

MOVED = """
import datetime, time

class Moved(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(hours={hours})

really = time.time
time.time = lambda: really() + {hours} * 3600
datetime.datetime = Moved
"""


def moved_clock(folder: Path, hours: float) -> dict[str, str]:
    """The environment of a process whose clock is so far ahead; below zero: behind."""
    (folder / "sitecustomize.py").write_text(MOVED.format(hours=hours))
    return {"PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}"}

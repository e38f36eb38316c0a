"""Whether the loops turn, for systemd's watchdog and /healthz.

A loop announces the longest time of its next turn. A loop that waits for PostgreSQL without a limit
is not counted: an outage of the database is no reason to kill the worker.
"""

from datetime import timedelta

from vidgen_worker.domain.clock import boot_time

SLACK = timedelta(seconds=10)
"""The time that a turn may take beyond its time-outs, on a busy machine."""


class Turns:
    """The time by which each loop must have turned again."""

    def __init__(self) -> None:
        self._due: dict[object, float] = {}

    def turned(self, loop: object, longest: timedelta) -> None:
        """Note a turn; a loop without a next one within `longest` and the slack is stuck."""
        self._due[loop] = boot_time() + (longest + SLACK).total_seconds()

    def rests(self, loop: object) -> None:
        """Expect nothing of this loop until it turns again."""
        self._due.pop(loop, None)

    def all_rest(self) -> None:
        """Expect nothing of any loop until it turns again."""
        self._due.clear()

    def stuck(self) -> list[object]:
        """Return the loops that should have turned by now."""
        now = boot_time()
        return [loop for loop, due in tuple(self._due.items()) if due < now]

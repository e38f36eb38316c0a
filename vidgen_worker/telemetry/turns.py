"""Whether the loops turn: what systemd's watchdog, and /healthz, ask for.

A loop says how long its turn may take at the most; none of them counts while it waits for
Postgres without an end, because a database that is away is no reason to be killed.
"""

from datetime import timedelta

from vidgen_worker.domain.clock import boot_time

SLACK = timedelta(seconds=10)
"""What a turn may take beyond its time-outs, on a machine that is busy."""


class Turns:
    """By when each loop has to have turned again."""

    def __init__(self) -> None:
        self._due: dict[object, float] = {}

    def turned(self, loop: object, longest: timedelta) -> None:
        """Note a turn; the next one comes within `longest` and the slack, or the loop is stuck."""
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

"""A worker's own view of its lease, counted from the moment each renewal was SENT.

CLOCK_BOOTTIME, because the monotonic clock stops while a machine sleeps and a lease does not. It
decides nothing about other workers but whether this one may judge them.
"""

import time

from vidgen_worker.config import Settings


def boot_time() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The lease of one life of a worker."""

    def __init__(self, settings: Settings) -> None:
        self._lease = settings.vidgen_lease.total_seconds()
        self._margin = settings.lease_margin.total_seconds()
        self._interval = settings.heartbeat.total_seconds()
        self._sent = float("-inf")
        self._unbroken_since: float | None = None

    def renewed(self, sent: float, answered: float) -> None:
        """Note a heartbeat that was accepted."""
        if answered - sent > self._interval or sent - self._sent > 2 * self._interval:
            # Late, or after a gap: the others may have had the same trouble. Begin to count anew.
            self._unbroken_since = sent
        elif self._unbroken_since is None:
            self._unbroken_since = sent
        self._sent = sent

    def missed(self) -> None:
        """Note a heartbeat without an answer: it says nothing but that we can't judge others."""
        self._unbroken_since = None

    @property
    def unbroken(self) -> bool:
        """Whether the last heartbeats were answered in time."""
        return self._unbroken_since is not None

    def steady(self) -> bool:
        """Whether one whole lease of heartbeats was answered in time: only then others are judged.

        After an outage every heartbeat in the table is old, not only those of the dead.
        """
        return (
            self._unbroken_since is not None and boot_time() - self._unbroken_since >= self._lease
        )

    def age(self) -> float:
        """Seconds since the heartbeat that was accepted last was sent."""
        return boot_time() - self._sent

    def held(self) -> bool:
        """Whether nobody can have declared this worker dead yet."""
        return boot_time() - self._sent < self._lease

    def may_spend(self) -> bool:
        """Whether something paid may be started."""
        return boot_time() - self._sent < self._lease - self._margin

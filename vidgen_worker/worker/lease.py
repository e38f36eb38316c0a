"""Leases by this machine's own clock: its own, and how long the others have been silent.

CLOCK_BOOTTIME, because the monotonic clock stops while a machine sleeps and a lease does not; never
the database's, which may step. Nothing here writes: who is dead is decided by a statement, which
compares once more.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vidgen_worker.config import Settings
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.queue.leases import Heartbeat

if TYPE_CHECKING:
    from uuid import UUID


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
        """Note a heartbeat without an answer: this worker may not judge others now."""
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


class Observer:
    """Which workers are silent: those whose heartbeat has not changed for a whole lease of theirs.

    Counted by `boot_time`. A look reads a heartbeat's age by the database's clock, but counts it
    only back to the last look that had not found this heartbeat. So a step forward of that clock
    makes no living worker dead, and a step back keeps no dead worker alive.
    """

    def __init__(self) -> None:
        self._seen: dict[UUID, tuple[Heartbeat, float]] = {}
        """Each worker's last heartbeat, and when it was sent, by `boot_time`."""
        self._looked: float | None = None

    def look(self, found: Iterable[Heartbeat], sent: float, answered: float) -> None:
        """Note what the table says. `sent` and `answered`: when it was asked, by `boot_time`."""
        earliest = answered if self._looked is None else self._looked
        seen: dict[UUID, tuple[Heartbeat, float]] = {}
        for heartbeat in found:
            before = self._seen.get(heartbeat.worker_id)
            if before is not None and before[0].beat == heartbeat.beat:
                seen[heartbeat.worker_id] = heartbeat, before[1]
            else:
                since = max(answered - max(heartbeat.age, 0.0), earliest)
                seen[heartbeat.worker_id] = heartbeat, since
        self._seen, self._looked = seen, sent

    def silent(self) -> list[Heartbeat]:
        """The last heartbeats of the silent, in the order of their workers' ids."""
        now = boot_time()
        silent = [beat for beat, since in self._seen.values() if now - since > beat.lease]
        return sorted(silent, key=lambda heartbeat: heartbeat.worker_id)

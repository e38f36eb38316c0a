"""One life of a worker: who it is to queue and gates, and its lease.

A worker that was declared dead begins another one, whole: nothing of a life changes, and nothing
outlives it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from vidgen_worker.admission.gates import Gates
from vidgen_worker.admission.limits import Limits
from vidgen_worker.config import Settings
from vidgen_worker.database.pool import Databases
from vidgen_worker.domain.keys import Key
from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.queue import Queue
from vidgen_worker.worker.lease import Lease


@dataclass(frozen=True, slots=True)
class Life:
    """The parts that every life has anew; the worker's id is in the queue."""

    queue: Queue
    gates: Gates
    limits: Limits
    lease: Lease

    @classmethod
    def begin(
        cls, databases: Databases, settings: Settings, key: Key, give_up: Callable[[], bool]
    ) -> Self:
        """A life under a new id."""
        caller = Caller(databases, settings, key, give_up)
        return cls(Queue(caller), Gates(caller), Limits(caller), Lease(settings))

"""The leases of workers: registered, renewed, lost, taken over, given back."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last heartbeat of another worker, as its row has it.

    `beat` is only ever compared with itself. `age` and `lease` are in seconds; the age is by the
    database's clock.
    """

    worker_id: UUID
    beat: datetime
    age: float
    lease: float

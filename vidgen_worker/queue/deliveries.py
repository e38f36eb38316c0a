"""Deliveries in the queue: taken under a lease, booked under their fence. Nothing here sends."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from vidgen_worker.queue.caller import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One try to tell a webhook of an event. `try_number` counts from 1; `waited` is in seconds.

    `at` is the time of the request by the database's clock, in seconds since 1970.
    """

    webhook_id: UUID
    id: UUID
    try_number: int
    event: str
    url: str
    body: str
    secrets: tuple[bytes, ...]
    """The newest first."""
    waited: float
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one try. `status` is the HTTP status; None: no answer came, `error` says why.

    `pause` is the time until the next try; None: there is none. `gone`: no more events are wanted.
    """

    arrived: bool
    status: int | None
    error: str | None
    pause: timedelta | None
    gone: bool


class Deliveries:
    """What a worker does about deliveries."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def take(self, places: int, lease: timedelta) -> list[Delivery]:
        """Take at most so many that are due, webhooks by turns, two of each webhook at the most."""
        rows = await self._caller.once(
            "take_deliveries", worker_id=self._caller.worker_id, places=places, lease=lease
        )
        return [
            Delivery(
                webhook_id=row["webhook_id"], id=row["id"], try_number=row["try"],
                event=row["event"], url=row["url"], body=row["body"],
                secrets=tuple(map(bytes, row["secrets"])), waited=row["waited"], at=row["at"],
            )
            for row in rows
        ]  # fmt: skip

    async def book(self, delivery: Delivery, result: Result) -> str:
        """Record what came of a try.

        Returns what follows: `delivered`, `again`, `gave up`, `disabled`, or `lost`: somebody else
        has the delivery now.
        """
        rows = await self._caller.run(
            "book_delivery", webhook_id=delivery.webhook_id, id=delivery.id,
            worker_id=self._caller.worker_id, try_number=delivery.try_number,
            arrived=result.arrived, status=result.status, error=result.error, pause=result.pause,
            gone=result.gone,
        )  # fmt: skip
        return str(rows[0]["follows"])

    async def give_back(self, ids: Sequence[UUID]) -> None:
        """Return leases: these deliveries are due at once."""
        await self._caller.once(
            "return_deliveries", worker_id=self._caller.worker_id, ids=list(ids)
        )

    async def forget(self, batch: int) -> int:
        """Remove old deliveries that have ended; return their number."""
        return int((await self._caller.once("forget_deliveries", batch=batch))[0]["deliveries"])

"""The loop that sends deliveries: taken when somebody is woken, and at intervals.

A receiver that is slow or dead takes two of the places, and no more. What is due, in which turn,
and what follows is decided in PostgreSQL.
"""

import asyncio
import contextlib
from datetime import timedelta

from vidgen_worker.database.trouble import DatabaseUnavailableError
from vidgen_worker.queue.deliveries import Deliveries, Delivery, Result
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import DeliveryFailed, DeliverySent, WebhookDisabled
from vidgen_worker.webhooks.schedule import pause_after
from vidgen_worker.webhooks.sender import Sender
from vidgen_worker.webhooks.signing import headers
from vidgen_worker.worker.ending import LOOPS_END, end_all
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.rounds import guarded

MOST = 20
"""Requests of one worker under way at once."""
LEASE = timedelta(seconds=60)
"""Longer than a request and its booking: a shorter one would be sent twice by living workers."""
LOOK_EVERY = timedelta(seconds=5)
"""How often deliveries are looked for that nobody was woken for."""


class Delivering:
    """Sends deliveries on behalf of one worker."""

    def __init__(self, process: Process) -> None:
        settings = process.settings
        self._process = process
        proxy = settings.vidgen_webhook_proxy
        self._sender = Sender(
            allow_loopback=settings.vidgen_webhook_allow_loopback,
            proxy=proxy.get_secret_value() if proxy else None,
        )
        self._sending: dict[asyncio.Task[None], tuple[Delivery, Deliveries]] = {}
        """Each request under way, with the life that took it: no other one may book it."""

    async def loop(self) -> None:
        """Take what is due as long as there is room, then wait to be woken."""
        wakes = self._process.wakes
        while True:
            async with guarded("deliver", self._process):
                wakes.deliveries.clear()
                if not self._process.stopping.is_set() and len(self._sending) < MOST:
                    await self._take()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                        await wakes.deliveries.wait()

    async def end(self) -> None:
        """Cut off what is under way: it is due again at once, for another worker."""
        cut = list(self._sending.values())
        await end_all(set(self._sending), LOOPS_END)
        for deliveries in {taken_by for _, taken_by in cut}:
            ids = [delivery.id for delivery, taken_by in cut if taken_by is deliveries]
            with contextlib.suppress(DatabaseUnavailableError):  # then their leases run out
                await deliveries.give_back(ids)
        await self._sender.aclose()

    async def _take(self) -> None:
        deliveries = self._process.life.queue.deliveries
        for delivery in await deliveries.take(MOST - len(self._sending), LEASE):
            sending = asyncio.create_task(
                self._send(delivery, deliveries), name=f"deliver {delivery.id}"
            )
            self._sending[sending] = delivery, deliveries
            sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        del self._sending[sending]
        self._process.wakes.deliveries.set()

    async def _send(self, delivery: Delivery, deliveries: Deliveries) -> None:
        async with guarded("deliver", self._process):
            body = delivery.body.encode()
            answer = await self._sender.send(
                delivery.url,
                headers(delivery.id, delivery.at, body, delivery.secrets),
                body,
            )
            pause = None if answer.arrived else pause_after(delivery.try_number, answer.wish)
            result = Result(
                arrived=answer.arrived, status=answer.status,
                error=answer.trouble.value if answer.trouble else None, pause=pause,
                gone=answer.gone,
            )  # fmt: skip
            follows = await deliveries.book(delivery, result)
            self._tell(delivery, answer.status, answer.trouble, follows)
            if follows == "again" and pause is not None and pause <= LOOK_EVERY * 2:
                asyncio.get_running_loop().call_later(
                    pause.total_seconds(), self._process.wakes.deliveries.set
                )

    def _tell(
        self, delivery: Delivery, status: int | None, trouble: str | None, follows: str
    ) -> None:
        webhook, said = str(delivery.webhook_id), str(trouble or f"status {status}")
        if follows == "delivered":
            emit(DeliverySent(
                webhook=webhook, delivery=delivery.id, kind=delivery.event, status=status or 0,
                tries=delivery.try_number, waited_seconds=round(delivery.waited, 3),
            ))  # fmt: skip
        elif follows != "lost":
            emit(DeliveryFailed(
                webhook=webhook, delivery=delivery.id, kind=delivery.event, error=said,
                tries=delivery.try_number, follows=follows,
            ))  # fmt: skip
        if follows == "disabled":
            emit(WebhookDisabled(webhook=webhook, error=said))

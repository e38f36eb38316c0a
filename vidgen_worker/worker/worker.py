"""The daemon: one process that holds many tasks and one lease, from its start to its end.

Nothing here knows what a stage is.
"""

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Coroutine
from datetime import timedelta
from typing import Any

from vidgen_worker.config import Settings
from vidgen_worker.database.trouble import one_line
from vidgen_worker.media.outputs import Media
from vidgen_worker.media.scratch import scratch
from vidgen_worker.pipeline.stages import Stage
from vidgen_worker.providers.protocol import Provider
from vidgen_worker.storage.storage import Storage
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    ClaimsDisabled,
    LoopFailed,
    MetricsServed,
    WorkerStarted,
)
from vidgen_worker.telemetry.metrics import Metrics, serving
from vidgen_worker.worker.claiming import Claiming
from vidgen_worker.worker.delivering import Delivering
from vidgen_worker.worker.draining import drain
from vidgen_worker.worker.ending import EXIT_OK, LOOPS_END, end_all
from vidgen_worker.worker.heartbeat import Heartbeat
from vidgen_worker.worker.janitor import Janitor
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.proofs import Proofs
from vidgen_worker.worker.reports import Reports
from vidgen_worker.worker.rounds import guarded
from vidgen_worker.worker.systemd import sd_notify, watchdog_pace

STATUS_EVERY = timedelta(seconds=10)
REGISTER_SELDOM = 60.0
"""Seconds between two tries to register at the most."""


class Worker:
    """One process. `run` returns its exit status."""

    def __init__(
        self, settings: Settings, provider: Provider, storage: Storage, media: Media,
        stages: tuple[Stage, ...],
    ) -> None:  # fmt: skip
        self.settings = settings
        self.process = Process(settings, provider, storage, media, stages)
        proofs = Proofs()
        self._reports = Reports(self.process)
        self.claiming = Claiming(self.process, proofs, self._reports)
        self.heartbeat = Heartbeat(self.process, self.claiming.lock)
        self.janitor = Janitor(self.process, proofs, self.claiming.try_gate)
        self._delivering = Delivering(self.process)

    async def run(self) -> int:
        """Work until told to stop, then drain."""
        process = self.process
        with contextlib.ExitStack() as stack:
            process.scratch = stack.enter_context(scratch())
            port = stack.enter_context(serving(
                self._metrics(), self.settings.vidgen_metrics_port,
                alive=self.alive, ready=self._ready,
            ))  # fmt: skip
            if port is not None:
                emit(MetricsServed(port=port))
            await process.databases.open()
            loops: list[asyncio.Task[None]] = []
            try:
                if not await self._or_stop(self._begin()):
                    return EXIT_OK
                loops = [
                    asyncio.create_task(loop, name=name) for name, loop in self._loops().items()
                ]
                await process.stopping.wait()
                return await drain(process, self.claiming.lock, self._reports, loops)
            finally:
                returning = self.heartbeat.returning
                await end_all({*loops, *filter(None, [returning])}, LOOPS_END)
                await self._delivering.end()
                await process.media.aclose()
                await process.storage.aclose()
                await process.provider.aclose()
                await process.databases.close()

    def stop(self) -> None:
        """Begin to drain."""
        self.process.stopping.set()
        self.process.wakes.claim.set()

    def alive(self) -> bool:
        """Whether the loops turn; says nothing of Postgres, which may be away for good reasons."""
        return not self.process.turns.stuck()

    # Each reads through the process, because a new life has a new lease.

    def _ready(self) -> bool:
        return self.process.life.lease.held()

    def _lease_age(self) -> float:
        return self.process.life.lease.age()

    def _metrics(self) -> Metrics:
        metrics, concurrency = self.process.metrics, self.settings.vidgen_concurrency
        metrics.gauge("running", "Tasks in this process", lambda: len(self.process.held))
        metrics.gauge("concurrency", "Slots of this process", lambda: concurrency)
        metrics.gauge("lease_age_seconds", "Since the last accepted heartbeat", self._lease_age)
        return metrics

    async def _begin(self) -> None:
        tries = 0
        while True:
            try:
                await self.heartbeat.register()
                break
            except Exception as error:  # noqa: BLE001 - a worker that ends serves nobody
                tries += 1
                emit(LoopFailed(
                    loop="register", error=one_line(error), traceback=traceback.format_exc()
                ))  # fmt: skip
            await self.process.sleep(timedelta(seconds=min(2.0 ** min(tries, 10), REGISTER_SELDOM)))
        emit(WorkerStarted(
            worker=self.process.life.queue.worker_id, concurrency=self.settings.vidgen_concurrency,
            renders=self.settings.renders, enabled=self.settings.runwayml_enabled,
            listening=self.settings.vidgen_listen != "off",
        ))  # fmt: skip
        if not self.settings.runwayml_enabled:
            emit(ClaimsDisabled())

    async def _or_stop(self, work: Awaitable[None]) -> bool:
        """Do this, unless told to stop meanwhile."""
        working = asyncio.ensure_future(work)
        stopped = asyncio.create_task(self.process.stopping.wait())
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if working.done():
            working.result()
            return True
        await end_all({working}, LOOPS_END)
        return False

    def _loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Everything that turns, by name. Each loop guards its own rounds (`rounds.guarded`)."""
        loops = {
            "claim": self.claiming.loop(),
            "report": self._reports.loop(),
            "heartbeat": self.heartbeat.loop(),
            "deliver": self._delivering.loop(),
            "watchdog": self._watchdog_loop(),
        }
        for duty in self.janitor.duties():
            loops[f"janitor {duty.name}"] = self.janitor.keep(duty)
        if self.settings.vidgen_listen != "off":
            loops["listen"] = self.process.listener.run(self.process.life.queue.worker_id)
        return loops

    async def _watchdog_loop(self) -> None:
        """Tell systemd that claim, heartbeat and poll loops turn, never that Postgres answers."""
        pace = watchdog_pace()
        while True:
            async with guarded("watchdog", self.process):
                if not self.process.turns.stuck():
                    sd_notify("WATCHDOG=1", self.process.status())
                await asyncio.sleep((pace or STATUS_EVERY).total_seconds())

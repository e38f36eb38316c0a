"""The heartbeat: renews the lease, acts on what comes back, and begins another life when dead.

It never waits for a claim or a task.
"""

import asyncio
import contextlib
import os
import socket
import traceback
from typing import TYPE_CHECKING

from vidgen_worker import __version__
from vidgen_worker.database.trouble import DatabaseUnavailableError, one_line
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import LoopFailed, OrphansHandedBack, WorkerDeclaredDead
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.rounds import guarded
from vidgen_worker.worker.systemd import sd_notify

if TYPE_CHECKING:
    from vidgen_worker.domain.task import Fence

SOONEST_BEAT = 0.05
"""Seconds between two heartbeats at least: a burst of cancels causes one heartbeat."""


class Heartbeat:
    """`claiming` is the lock that a claim in flight holds."""

    def __init__(self, process: Process, claiming: asyncio.Lock) -> None:
        self._process = process
        self._claiming = claiming
        self._said_ready = False
        self.returning: asyncio.Task[None] | None = None
        """The hand-back of orphans, where one is under way."""

    async def register(self) -> None:
        """Write this life's row."""
        life, sent = self._process.life, boot_time()
        await life.queue.leases.register(
            socket.gethostname(), os.getpid(), __version__, renders=self._process.settings.renders
        )
        await life.limits.expect()
        life.lease.renewed(sent, boot_time())
        self._process.renewed.set()

    async def loop(self) -> None:
        """Renew the lease; act on what comes back."""
        process = self._process
        while True:
            async with guarded("heartbeat", process):
                began = boot_time()
                # One pause, and one statement, which is given up after the same time.
                process.turns.turned("heartbeat", process.settings.heartbeat * 2)
                process.wakes.beat.clear()
                with contextlib.suppress(DatabaseUnavailableError):
                    await self.beat()
                    self._say_ready()
                await asyncio.sleep(SOONEST_BEAT)
                rest = process.settings.heartbeat.total_seconds() - (boot_time() - began)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(rest, 0.0)):
                        await process.wakes.beat.wait()

    def _say_ready(self) -> None:
        """Tell systemd once that a heartbeat was accepted."""
        if not self._said_ready and not self._process.stopping.is_set():
            self._said_ready = sd_notify("READY=1", self._process.status())

    async def beat(self) -> None:
        """Renew the lease once."""
        process, life = self._process, self._process.life
        fences = process.held.fences()
        sent = boot_time()
        # Orphans are told apart only while no claim is in flight: then every row that names this
        # worker is one that it knows of. The lock keeps a new claim away meanwhile, not this beat.
        # While draining, rows without a runner are what the drain itself is about to hand back.
        sweep = not self._claiming.locked() and not process.stopping.is_set()
        async with self._claiming if sweep else contextlib.nullcontext():
            try:
                verdict = await life.queue.leases.heartbeat(
                    fences, len(fences), sweep=sweep, steady=life.lease.unbroken
                )
            except DatabaseUnavailableError:
                life.lease.missed()
                raise
        if not verdict.alive:
            await self._start_over()
            return
        life.lease.renewed(sent, boot_time())
        process.renewed.set()
        for fence in verdict.lost:
            process.held.drop(fence)
        for fence in verdict.cancel:
            run = process.held.find(fence)
            if run:
                run.cancel.set()
        if verdict.cancel_waiting:
            process.wakes.cancel.set()
            process.wakes.claim.set()
        if verdict.orphans and (self.returning is None or self.returning.done()):
            # In a task of its own: the lease must not wait for a task's row.
            self.returning = asyncio.create_task(self._return(verdict.orphans))

    async def _return(self, orphans: "list[Fence]") -> None:
        """Hand back rows that nobody runs; a row that fails is an orphan at the next heartbeat."""
        try:
            back = await self._process.life.queue.leases.hand_back(orphans)
        except DatabaseUnavailableError:
            return  # said once per statement by the database layer
        except Exception as error:  # noqa: BLE001 - said, and met again
            emit(LoopFailed(
                loop="orphans", error=one_line(error), traceback=traceback.format_exc()
            ))  # fmt: skip
            return
        if back:
            emit(OrphansHandedBack(tasks=[str(fence.task_id) for fence in back]))

    async def _start_over(self) -> None:
        """Declared dead: drop everything and begin a new life under a new id."""
        process = self._process
        dead = process.life.queue.worker_id
        emit(WorkerDeclaredDead(worker=dead, dropped=len(process.held)))
        process.held.drop_all()
        process.life = process.new_life()
        # The watchdog expects no loop to run until the database has taken the new row.
        process.turns.all_rest()
        await self.register()
        process.wakes.claim.set()

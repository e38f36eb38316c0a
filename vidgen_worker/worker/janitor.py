"""The periodic duties: probing closed gates, ending stray generations, removing stale rows.

Any worker may do any of it at any time: each piece is one fenced or locked statement. Each duty has
a loop of its own, so that one that fails, or takes long, keeps no other waiting; it is tried again
at its next turn. It never touches a task that somebody runs.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from vidgen_worker.database.pool import Row
from vidgen_worker.domain.faults import Fault
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    BooksDisagree,
    LimitRead,
    LimitsUnread,
    TasksForgotten,
    UploadsKept,
    UploadsLeft,
    UploadsRemoved,
)
from vidgen_worker.worker.probing import Probing, TryGate
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.proofs import Proofs
from vidgen_worker.worker.rounds import guarded
from vidgen_worker.worker.strays import Strays

SWEEP_EVERY = timedelta(seconds=60)
STRAYS_EVERY = timedelta(seconds=15)
"""A stray keeps its slot until it has ended, and a small tier has only one."""
REFUSALS_POLLS = 5
"""The janitor looks at tasks that are set aside once in this many polls of the queue."""
COUNT_EVERY = timedelta(seconds=15)
PROVE_EVERY = timedelta(minutes=3)
"""A proof may fail later: a bucket's settings and the free room of a disk change."""
LIMITS_AGAIN = timedelta(seconds=5)
"""The pause after a reading that failed."""
LIMITS_EVERY = timedelta(minutes=1)
"""One worker of the fleet reads the account this often, so that a new tier counts soon."""
AUDIT_EVERY = timedelta(minutes=10)
AUDIT_ENTRIES, AUDIT_USERS = 20_000, 10_000
"""Entries and users per statement, which takes some tens of milliseconds."""
UPLOADS_EVERY = timedelta(seconds=15)
UPLOADS_BATCH = 500
FORGET_EVERY = timedelta(minutes=5)
FORGET_BATCH = 1000
"""Submissions or holds in one statement."""
MOST_BATCHES = 40
"""Batches in one run: eleven million submissions a day while there is a backlog."""
BETWEEN_BATCHES = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Duty:
    """One piece of the janitor's work.

    `do` returns the pause until its next turn where that differs from `every`.
    """

    name: str
    every: timedelta
    do: Callable[[], Awaitable[timedelta | None]]
    at_once: bool = True
    """Whether its first run begins at once, and not after a random part of its pause."""

    def first_pause(self) -> timedelta:
        """The pause before its first run."""
        return timedelta() if self.at_once else self.every * random.random()  # noqa: S311


class Janitor:
    """Sweeps on behalf of one worker."""

    def __init__(self, process: Process, proofs: Proofs, try_gate: TryGate) -> None:
        self._process = process
        self.probing = Probing(process, proofs, try_gate)
        self.strays = Strays(process)
        self._limits: dict[str, int | None] = {}

    def duties(self) -> tuple[Duty, ...]:
        """Everything that is done now and then, each with its own pace."""
        settings = self._process.settings
        pace = min(settings.vidgen_queue_poll, settings.vidgen_gate_probe)
        return (
            Duty("storage", PROVE_EVERY, self.probing.prove_storage),
            Duty("machine", PROVE_EVERY, self.probing.prove_machine),
            Duty("gates", pace, self.probing.probe_closed),
            Duty("limits", LIMITS_EVERY, self.read_limits),
            Duty("rows", SWEEP_EVERY, self.sweep_rows, at_once=False),
            Duty(
                "refusals",
                settings.vidgen_queue_poll * REFUSALS_POLLS,
                self.retry_refused,
                at_once=False,
            ),
            Duty(
                "scenes",
                settings.vidgen_queue_poll * REFUSALS_POLLS,
                self.write_owed_scenes,
                at_once=False,
            ),
            Duty("strays", STRAYS_EVERY, self.strays.end, at_once=False),
            Duty("uploads", UPLOADS_EVERY, self.remove_uploads, at_once=False),
            Duty("costs", SWEEP_EVERY, self.strays.read_costs_again, at_once=False),
            Duty("audit", AUDIT_EVERY, self.audit),
            Duty("forget", FORGET_EVERY, self.forget, at_once=False),
            *(
                (Duty("count", COUNT_EVERY, self.count),)
                if settings.vidgen_metrics_port is not None
                else ()
            ),
        )

    async def keep(self, duty: Duty) -> None:
        """Do one duty again and again, until the worker stops."""
        pause = duty.first_pause()
        while not self._process.stopping.is_set():
            await asyncio.sleep(pause.total_seconds())
            pause = duty.first_pause()  # where the duty fails, it begins anew
            async with guarded(f"janitor {duty.name}", self._process):
                after = await duty.do() or duty.every
                pause = after * random.uniform(0.9, 1.1)  # noqa: S311

    async def read_limits(self) -> timedelta:
        """Read the provider's limits if it is this worker's turn; the pause until the next look.

        A model that the account doesn't name has no limit: the provider itself holds it back.
        """
        process = self._process
        models, others_unknown = await process.life.limits.ask(LIMITS_EVERY)
        said = process.life.limits.of_settings()
        for model in said.keys() & set(models):
            # At every run: that corrects a number of slots that is not the limit.
            await process.life.limits.set_limit(model, said[model])
        unset = [model for model in models if model not in said]
        if not unset:
            return LIMITS_AGAIN if others_unknown else LIMITS_EVERY
        try:
            account = await process.provider.account()
        except Fault as fault:
            emit(LimitsUnread(code=fault.code, details=fault.details))
            return LIMITS_AGAIN
        for model in unset:
            found = account.models.get(model)
            limit = None if found is None else found.max_concurrent
            await process.life.limits.set_limit(model, limit)
            if model not in self._limits or self._limits[model] != limit:
                self._limits[model] = limit
                emit(LimitRead(model=model, slots=limit))
        return LIMITS_EVERY

    async def count(self) -> None:
        """Read the fleet's numbers for /metrics."""
        fleet = await self._process.life.queue.upkeep.fleet()
        self._process.metrics.show(fleet.numbers, fleet.closed, fleet.slots)

    async def audit(self) -> None:
        """Compare the ledger with balances and holds, part by part; one worker for the fleet."""
        queue = self._process.life.queue
        if await queue.upkeep.take_duty("audit", AUDIT_EVERY * 0.9):
            entries = await queue.upkeep.audit_entries(AUDIT_ENTRIES)
            while entries == AUDIT_ENTRIES:
                await asyncio.sleep(BETWEEN_BATCHES.total_seconds())
                entries = await queue.upkeep.audit_entries(AUDIT_ENTRIES)
            found, after = await queue.upkeep.audit_users(None, AUDIT_USERS)
            while after is not None:
                await asyncio.sleep(BETWEEN_BATCHES.total_seconds())
                more, after = await queue.upkeep.audit_users(after, AUDIT_USERS)
                found += more
            await queue.upkeep.note_audit(found)
            if found:
                emit(BooksDisagree(users=found))
            uploads, oldest = await queue.upkeep.uploads_left()
            if uploads:
                emit(UploadsLeft(uploads=uploads, oldest_seconds=oldest.total_seconds()))
        self._process.metrics.audited(await queue.upkeep.read_audit())

    async def forget(self) -> None:
        """Remove private rows of tasks that ended long ago; one worker for the fleet."""
        queue = self._process.life.queue
        if not await queue.upkeep.take_duty("forget", FORGET_EVERY * 0.9):
            return
        tasks, holds, after = 0, 0, None
        for _ in range(MOST_BATCHES):
            some, after = await queue.upkeep.forget_tasks(after, FORGET_BATCH)
            gone = await queue.upkeep.forget_holds(FORGET_BATCH)
            told = await queue.deliveries.forget(FORGET_BATCH)
            tasks, holds = tasks + some, holds + gone
            if after is None and max(gone, told) < FORGET_BATCH:
                break
            await asyncio.sleep(BETWEEN_BATCHES.total_seconds())
        if tasks or holds:
            emit(TasksForgotten(tasks=tasks, holds=holds))

    async def sweep(self) -> None:
        """Everything that is swept, at once."""
        await self.sweep_rows()
        await self.retry_refused()
        await self.write_owed_scenes()
        await self.strays.end()
        await self.remove_uploads()
        await self.strays.read_costs_again()

    async def sweep_rows(self) -> None:
        """Remove rows that are of no use any more."""
        await self._process.life.queue.upkeep.sweep()

    async def retry_refused(self) -> None:
        """Take up tasks that were set aside and whose pause is over."""
        await self._process.life.queue.conclusions.retry_refused()

    async def write_owed_scenes(self) -> None:
        """Write to the scenes that were locked when their tasks wrote them."""
        await self._process.life.queue.conclusions.write_owed_scenes()

    async def remove_uploads(self) -> None:
        """Remove from Storage what was uploaded and will never be charged."""
        queue, removed = self._process.life.queue, 0
        for _ in range(MOST_BATCHES):
            rows = await queue.upkeep.take_uploads(UPLOADS_BATCH)
            for bucket in sorted({row["bucket"] for row in rows}):
                removed += await self._remove(bucket, [r for r in rows if r["bucket"] == bucket])
            if len(rows) < UPLOADS_BATCH:
                break
        if removed:
            emit(UploadsRemoved(uploads=removed))

    async def _remove(self, bucket: str, uploads: list[Row]) -> int:
        """Remove these uploads of one bucket; how many of them for the first time."""
        try:
            await self._process.storage.remove(bucket, [row["path"] for row in uploads])
        except Fault as fault:
            if not fault.rule.absent:  # with a bucket its files are gone
                emit(UploadsKept(
                    bucket=bucket, uploads=len(uploads), code=fault.code, details=fault.details
                ))  # fmt: skip
                return 0
        await self._process.life.queue.upkeep.uploads_removed([row["upload_id"] for row in uploads])
        return sum(row["first_time"] for row in uploads)

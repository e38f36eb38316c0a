"""The end of a worker: no claim begins, POSTs in flight end, tasks are handed back.

Generations at the provider go on; another worker follows them.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING

from vidgen_worker.database.trouble import DatabaseUnavailableError
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    GenerationLeftRunning,
    TaskHandedBack,
    WorkerDraining,
    WorkerStopped,
)
from vidgen_worker.worker.ending import EXIT_OK, end_all
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.reports import Reports
from vidgen_worker.worker.systemd import sd_notify

if TYPE_CHECKING:
    from vidgen_worker.domain.task import Fence

IDLE_DRAIN = 5.0
"""Seconds that the drain of a worker without a task may take."""
LAST_TRY = 1.0
"""Seconds that each step of a drain has at the least, even after the drain's time-out."""


async def drain(
    process: Process, claiming: asyncio.Lock, reports: Reports, loops: list[asyncio.Task[None]]
) -> int:
    """Stop claiming, let submissions in flight end, hand back; `claiming` is a claim in flight."""
    held, queue = process.held, process.life.queue
    patience = process.settings.vidgen_drain_timeout.total_seconds()
    if not held and not held.posting:
        # There is nothing to hand back; a database that is away can't be told.
        patience = 0.0 if process.databases.outage.away else min(patience, IDLE_DRAIN)
    process.drain_deadline = boot_time() + patience
    emit(WorkerDraining(worker=queue.worker_id, running=len(held)))
    sd_notify("STOPPING=1", process.status())
    process.turns.rests("claim")
    with contextlib.suppress(TimeoutError):
        # The claim in flight; no other begins.
        async with asyncio.timeout(_left(process)), claiming:
            pass
    posting = held.posting | {run.posting for run in held.runs() if run.posting is not None}
    if posting:
        await asyncio.wait(posting, timeout=_left(process))
    tasks = dict(held.tasks)
    await end_all({working for _, working in tasks.values()}, _left(process))
    handed_back: list[Fence] = []
    try:
        async with asyncio.timeout(_left(process)):
            await reports.flush()
            leases = process.life.queue.leases
            handed_back = await leases.hand_back_all([run.task.fence for run, _ in tasks.values()])
            await leases.leave()
    except (DatabaseUnavailableError, TimeoutError):
        for run, _ in tasks.values():
            for stage, generation in run.generations.items():
                if stage not in run.done:
                    emit(GenerationLeftRunning(
                        fence=run.task.fence, stage=stage, generation=generation
                    ))  # fmt: skip
    for fence in handed_back:
        emit(TaskHandedBack(fence=fence))
    for loop in loops:
        loop.cancel()
    emit(WorkerStopped(worker=process.life.queue.worker_id, handed_back=len(handed_back)))
    return EXIT_OK


def _left(process: Process) -> float:
    """Seconds that the drain may still take; never too few for one try at Postgres."""
    deadline = process.drain_deadline or 0.0
    return max(deadline - boot_time(), LAST_TRY)

"""Progress of all tasks, written together once a second. It never waits for a task."""

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from vidgen_worker.database.trouble import DatabaseUnavailableError
from vidgen_worker.queue.checkpoints import Reported
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.rounds import guarded

if TYPE_CHECKING:
    from vidgen_worker.domain.task import Fence

REPORT_EVERY = timedelta(seconds=1)


class Reports:
    """The reports that are not written yet."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pending: dict[UUID, Reported] = {}

    def add(self, report: Reported) -> None:
        """Note the progress of a task."""
        self._pending[report.fence.task_id] = report

    def forget(self, task_id: UUID) -> None:
        """Its attempt has ended: its end is written elsewhere."""
        self._pending.pop(task_id, None)

    async def loop(self) -> None:
        """One statement a second for all tasks whose progress has changed."""
        process = self._process
        last: dict[UUID, Reported] = {}
        refusing: set[Fence] = set()
        while not process.stopping.is_set():
            async with guarded("report", process):
                await process.sleep(REPORT_EVERY)
                pending, self._pending = self._pending, {}
                changed = [
                    r for r in pending.values()
                    if last.get(r.fence.task_id) != r and r.fence not in refusing
                ]  # fmt: skip
                if changed:
                    refused = set(await process.life.queue.checkpoints.report(changed))
                    # Reported once per attempt: the next report would be refused as well.
                    refusing |= {r.fence for r in changed if r.fence.task_id in refused}
                refusing &= set(process.held.fences())
                last = {t: r for t, r in (last | pending).items() if t in process.held.tasks}

    async def flush(self) -> None:
        """Write what is left."""
        if self._pending:
            with contextlib.suppress(DatabaseUnavailableError):
                await self._process.life.queue.checkpoints.report(list(self._pending.values()))

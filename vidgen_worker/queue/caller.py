"""The caller of the queue: one life of a worker, with its connections and its fence.

Every write about a task carries its fence; a write that hits no row raises `LeaseLostError`, and
the worker falls silent about that task. Nothing here knows what a statement is for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg

from vidgen_worker.config import Settings
from vidgen_worker.database.pool import LOCK_PATIENCE, Database, Databases, Row, Rows
from vidgen_worker.database.trouble import LockedError
from vidgen_worker.domain.keys import Key
from vidgen_worker.domain.task import Fence
from vidgen_worker.queue.errors import LeaseLostError, RowRefusedError
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import SceneWriteRefused


@dataclass(slots=True)
class Caller:
    """`worker_id` is new for every life of a worker; `run` stops trying when `give_up` is true."""

    databases: Databases
    settings: Settings
    key: Key
    give_up: Callable[[], bool]
    worker_id: UUID = field(default_factory=uuid4)

    @property
    def claims(self) -> Database:
        """The connection of claims; no other statement uses it."""
        return self.databases.claims

    @property
    def pulse(self) -> Database:
        """The connection of the heartbeat, which no other statement can delay."""
        return self.databases.pulse

    async def once(self, name: str, **parameters: object) -> Rows:
        """Run a named query once; see `Database.once`."""
        return await self.databases.work.once(name, **parameters)

    async def run(
        self, name: str, *, paid: bool = False, lock_patience: timedelta | None = None,
        **parameters: object,
    ) -> Rows:  # fmt: skip
        """Run a named query until it goes through; see `Database.run`."""
        return await self.databases.work.run(
            name, self.give_up, paid=paid, lock_patience=lock_patience, **parameters
        )

    async def fenced(
        self, name: str, fence: Fence, *, paid: bool = False,
        lock_patience: timedelta | None = LOCK_PATIENCE, **parameters: object,
    ) -> Rows:  # fmt: skip
        """Run a named query about a task that this worker holds."""
        try:
            rows = await self.run(
                name, paid=paid, lock_patience=lock_patience, **fenced_by(fence), **parameters
            )
        except (psycopg.Error, LockedError) as error:
            raise RowRefusedError(name, error) from error
        if not rows:
            raise LeaseLostError(str(fence.task_id))
        return rows


def fenced_by(fence: Fence) -> dict[str, Any]:
    """The fence as the statements name it."""
    return {"task_id": fence.task_id, "attempt": fence.attempt, "worker_id": fence.worker_id}


def scene_said(fence: Fence, row: Row) -> None:
    """Emit an event where the task's scene refused a write."""
    if row.get("scene_refused"):
        emit(SceneWriteRefused(fence=fence, error=str(row["scene_refused"])))

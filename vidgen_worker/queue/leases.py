"""The leases of workers: registered, renewed, lost, taken over, given back.

A worker's row is its lease. The observer (`worker/lease.py`) decides who is silent.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import assert_never
from uuid import UUID

from vidgen_worker.database.pool import LOCK_PATIENCE, Row
from vidgen_worker.domain.faults import FAULTS, FaultName
from vidgen_worker.domain.task import Fence, Task
from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.claims import task_of
from vidgen_worker.queue.errors import BucketsNotSharedError
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import RowRefused

A_MOMENT = 0.1
"""Seconds before the hand-back of a locked row is tried once more."""


class Beat(StrEnum):
    """The kind of a row in a heartbeat's answer; rows of the first and the last name no task."""

    ALIVE = "alive"
    LOST = "lost"
    CANCEL = "cancel"
    ORPHAN = "orphan"
    CANCEL_WAITING = "cancel_waiting"


@dataclass(slots=True)
class Verdict:
    """The answer to a heartbeat."""

    alive: bool = False
    lost: list[Fence] = field(default_factory=list)
    cancel: list[Fence] = field(default_factory=list)
    orphans: list[Fence] = field(default_factory=list)
    cancel_waiting: bool = False
    """Whether a waiting task is to be cancelled at the provider."""


class Takeover(StrEnum):
    """The kind of a row in a take-over's answer; a row of the last names no task."""

    TAKEN = "taken"
    LOST = "lost"
    REFUSED = "refused"
    SUSPECT_WAITS = "suspect waits"


@dataclass(slots=True)
class TakenOver:
    """The tasks of dead workers that a take-over took or ended."""

    taken: list[Task] = field(default_factory=list)
    lost: list[Fence] = field(default_factory=list)
    """The fences of tasks that ended as WORKER_LOST."""
    suspect_waits: bool = False
    """Whether this worker must not claim until it is idle, because a suspect runs alone."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last heartbeat of another worker, from its row.

    `beat` is compared only with other values of the same worker. `age` and `lease` are in seconds;
    the age is measured by the database's clock.
    """

    worker_id: UUID
    beat: datetime
    age: float
    lease: float


class Leases:
    """A worker's own lease, and the tasks of dead workers."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def register(self, host: str, pid: int, version: str, *, renders: int) -> None:
        """Write the worker's row; it works on so many films with outputs at once.

        Raises BucketsNotSharedError where clips could not be signed.
        """
        images = self._caller.settings.storage_bucket_images
        videos = self._caller.settings.storage_bucket_videos
        rows = await self._caller.run("share_buckets", images_bucket=images, videos_bucket=videos)
        if not rows[0]["shared"]:
            msg = (
                f"the storage policy goes by other buckets than {images} and {videos}, and this "
                "role may not change that: run `vidgen-worker migrate` as the database's owner, "
                "with STORAGE_BUCKET_IMAGES and STORAGE_BUCKET_VIDEOS as here, or correct them"
            )
            raise BucketsNotSharedError(msg)
        settings = self._caller.settings
        await self._caller.run(
            "register_worker", worker_id=self._caller.worker_id, host=host, pid=pid,
            version=version, **self._caller.key.names(),
            # 0: never asked to become idle for a suspect.
            concurrency=settings.vidgen_concurrency if settings.runwayml_enabled else 0,
            lease=settings.vidgen_lease, renders=renders,
        )  # fmt: skip

    async def heartbeat(
        self, held: Sequence[Fence], running: int, *, sweep: bool, steady: bool
    ) -> Verdict:
        """Renew the lease once. After DatabaseUnavailableError the lease may be renewed or not."""
        rows = await self._caller.pulse.once(
            "heartbeat", worker_id=self._caller.worker_id, running=running, steady=steady,
            sweep=sweep, task_ids=[fence.task_id for fence in held],
            attempts=[fence.attempt for fence in held],
        )  # fmt: skip

        verdict = Verdict()
        for row in rows:
            match kind := Beat(row["kind"]):
                case Beat.ALIVE:
                    verdict.alive = True
                case Beat.LOST:
                    verdict.lost.append(self._fence(row["task_id"], row["attempt"]))
                case Beat.CANCEL:
                    verdict.cancel.append(self._fence(row["task_id"], row["attempt"]))
                case Beat.ORPHAN:
                    verdict.orphans.append(self._fence(row["task_id"], row["attempt"]))
                case Beat.CANCEL_WAITING:
                    verdict.cancel_waiting = True
                case _:
                    assert_never(kind)
        return verdict

    def _fence(self, task_id: UUID, attempt: int) -> Fence:
        """The fence of an attempt of this worker's."""
        return Fence(task_id, attempt, self._caller.worker_id)

    async def heartbeats(self) -> list[Heartbeat]:
        """The last heartbeat of every other worker."""
        rows = await self._caller.claims.once("heartbeats", worker_id=self._caller.worker_id)
        return [Heartbeat(row["id"], row["heartbeat_at"], row["age"], row["lease"]) for row in rows]

    async def take_over(
        self, slots: int, silent: Sequence[Heartbeat], *, idle: bool, steady: bool
    ) -> TakenOver:
        """Declare silent workers dead, and take their tasks."""
        rows = await self._caller.claims.once(
            "take_over", worker_id=self._caller.worker_id, slots=slots, idle=idle, steady=steady,
            silent_ids=[one.worker_id for one in silent], silent_beats=[one.beat for one in silent],
            max_crashes=self._caller.settings.vidgen_max_crashes, **self._caller.key.names(),
            scene_updates=self._caller.settings.vidgen_scene_updates,
            lost_message=FAULTS[FaultName.WORKER_LOST].message,
        )  # fmt: skip
        result = TakenOver()
        for row in rows:
            match kind := Takeover(row["kind"]):
                case Takeover.TAKEN:
                    result.taken.append(task_of(row))
                case Takeover.LOST:
                    result.lost.append(Fence(row["id"], row["attempt"], row["worker_id"]))
                case Takeover.REFUSED:
                    task, error = str(row["id"]), row["refused"]
                    emit(RowRefused(task=task, statement="take over", error=error))
                case Takeover.SUSPECT_WAITS:
                    result.suspect_waits = True
                case _:
                    assert_never(kind)
        return result

    async def hand_back(self, held: Sequence[Fence]) -> list[Fence]:
        """Give back these attempts, so that other workers resume them; return those given back.

        A row that a client has locked, or that refuses, is left to the take-over.
        """
        return self._given(await self._hand_back(held))

    async def hand_back_all(self, known: Sequence[Fence]) -> list[Fence]:
        """Give back all tasks of this worker; `known` attempts that were locked are tried twice.

        The last statement of an attempt that has just been cancelled may hold its row for a moment.
        A row that refused is not tried again: that would count as another refusal.
        """
        rows = await self._hand_back(None)
        met = {row["id"] for row in rows}
        missing = [fence for fence in known if fence.task_id not in met]
        if missing:
            await asyncio.sleep(A_MOMENT)
            rows = [*rows, *await self._hand_back(missing)]
        return self._given(rows)

    async def _hand_back(self, held: Sequence[Fence] | None) -> Sequence[Row]:
        return await self._caller.run(
            "hand_back", lock_patience=LOCK_PATIENCE, worker_id=self._caller.worker_id,
            task_ids=None if held is None else [fence.task_id for fence in held],
            attempts=None if held is None else [fence.attempt for fence in held],
        )  # fmt: skip

    def _given(self, rows: Sequence[Row]) -> list[Fence]:
        """The attempts that were given back; an event reports each row that refused."""
        for row in rows:
            if row["refused"]:
                emit(RowRefused(task=str(row["id"]), statement="hand back", error=row["refused"]))
        return [self._fence(row["id"], row["attempt"]) for row in rows if not row["refused"]]

    async def leave(self) -> None:
        """Delete the worker's row, or mark it so that its tasks are taken over at once."""
        await self._caller.run(
            "leave", lock_patience=LOCK_PATIENCE, worker_id=self._caller.worker_id
        )

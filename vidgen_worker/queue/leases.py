"""The leases of workers: registered, renewed, lost, taken over, given back.

A worker's row is its lease. Nothing here judges who is silent: that is the observer's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from vidgen_worker.database.pool import LOCK_PATIENCE
from vidgen_worker.domain.faults import FAULTS, FaultName
from vidgen_worker.domain.task import Fence, Task
from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.claims import task_of
from vidgen_worker.queue.errors import BucketsNotSharedError
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import RowRefused


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a heartbeat came back with."""

    alive: bool
    lost: list[tuple[UUID, int]]
    cancel: list[tuple[UUID, int]]
    orphans: list[tuple[UUID, int]]
    cancel_waiting: bool
    """Whether a waiting task is to be cancelled at the provider."""


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


class Leases:
    """A worker's own lease, and the tasks of the dead."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def register(self, host: str, pid: int, version: str) -> None:
        """Write the worker's row. Raises BucketsNotSharedError where clips could not be signed."""
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
            # 0: never asked to make room for a task that is to run alone.
            concurrency=settings.vidgen_concurrency if settings.runwayml_enabled else 0,
            lease=settings.vidgen_lease,
        )  # fmt: skip

    async def heartbeat(
        self, held: Sequence[Fence], running: int, *, sweep: bool, steady: bool
    ) -> Verdict:
        """Renew the lease once; raises DatabaseUnavailableError, which says nothing about it."""
        rows = await self._caller.pulse.once(
            "heartbeat", worker_id=self._caller.worker_id, running=running, steady=steady,
            sweep=sweep, task_ids=[fence.task_id for fence in held],
            attempts=[fence.attempt for fence in held],
        )  # fmt: skip

        def pick(kind: str) -> list[tuple[UUID, int]]:
            return [(row["id"], row["attempt"]) for row in rows if row["kind"] == kind]

        return Verdict(
            alive=bool(pick("alive")),
            lost=pick("lost"),
            cancel=pick("cancel"),
            orphans=pick("orphan"),
            cancel_waiting=bool(pick("cancel_waiting")),
        )

    async def heartbeats(self) -> list[Heartbeat]:
        """When every other worker was last heard of."""
        rows = await self._caller.claims.once("heartbeats", worker_id=self._caller.worker_id)
        return [Heartbeat(row["id"], row["heartbeat_at"], row["age"], row["lease"]) for row in rows]

    async def take_over(
        self, slots: int, silent: Sequence[Heartbeat], *, idle: bool, steady: bool
    ) -> tuple[list[tuple[Task, float]], list[tuple[Task, float]], bool]:
        """Declare the silent dead and take their tasks: (taken, ended as WORKER_LOST, make room).

        "Make room" asks this worker to claim nothing until it is idle: a task is to run alone.
        """
        rows = await self._caller.claims.once(
            "take_over", worker_id=self._caller.worker_id, slots=slots, idle=idle, steady=steady,
            silent_ids=[one.worker_id for one in silent], silent_beats=[one.beat for one in silent],
            max_crashes=self._caller.settings.vidgen_max_crashes, **self._caller.key.names(),
            scene_updates=self._caller.settings.vidgen_scene_updates,
            lost_message=FAULTS[FaultName.WORKER_LOST].message,
        )  # fmt: skip
        for row in rows:
            if row["kind"] == "refused":
                emit(RowRefused(task=str(row["id"]), statement="take over", error=row["refused"]))
        taken = [task_of(row) for row in rows if row["kind"] == "taken"]
        lost = [task_of(row) for row in rows if row["kind"] == "lost"]
        return taken, lost, any(row["kind"] == "room" for row in rows)

    async def hand_back(self, held: Sequence[tuple[UUID, int]] | None = None) -> list[UUID]:
        """Give back what this worker holds (all of it, or these attempts), for others to resume.

        What a client holds, or what refuses, is not among those returned: the lease has it.
        """
        rows = await self._caller.run(
            "hand_back", lock_patience=LOCK_PATIENCE, worker_id=self._caller.worker_id,
            task_ids=None if held is None else [task_id for task_id, _ in held],
            attempts=None if held is None else [attempt for _, attempt in held],
        )  # fmt: skip
        for row in rows:
            if row["refused"]:
                emit(RowRefused(task=str(row["id"]), statement="hand back", error=row["refused"]))
        return [row["id"] for row in rows if not row["refused"]]

    async def leave(self) -> None:
        """Delete the worker's row, or say in it that its tasks are to be taken over at once."""
        await self._caller.run(
            "leave", lock_patience=LOCK_PATIENCE, worker_id=self._caller.worker_id
        )

"""Claims: they take waiting tasks, and begin an attempt at each.

Nothing here runs an attempt or pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidgen_worker.database.pool import Row
from vidgen_worker.domain.task import Fence, StageName, Task
from vidgen_worker.queue.caller import Caller
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import RowRefused

LANE = 1
"""The lane of the two models in the settings."""
IMAGE, VIDEO = StageName("image"), StageName("video")
"""The stages of the two models: the claim reserves slots for them (see vidgen.stages)."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The tasks that a claim took, and whether rows are still waiting."""

    tasks: list[tuple[Task, float]]
    more: bool
    mail: bool
    """Whether the mailbox has rows, so that the next claim should send `line_up` first."""
    cleared: bool = False
    """Whether users without a due task left the line: the next claim may find others."""


def begun_of(rows: Sequence[Row]) -> list[Row]:
    """The rows of attempts that began; an event reports each row that refused."""
    for row in rows:
        if row["refused"]:
            emit(RowRefused(task=str(row["id"]), statement="claim", error=row["refused"]))
    # A claim that began no attempt returns one row without a task.
    return [row for row in rows if row["id"] and not row["refused"]]


def taken_of(rows: Sequence[Row]) -> list[tuple[Task, float]]:
    """The tasks whose attempts began, and for how many seconds each was due."""
    return [(task_of(row), max(float(row["waited"]), 0.0)) for row in begun_of(rows)]


class Claims:
    """The statements that take tasks."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def take(self, slots: int, *, idle: bool, line_up: bool = True) -> Claimed:
        """Take up to `slots` waiting tasks: tasks that have begun before, or else new ones.

        With `line_up`, the mailbox is emptied into the line first.
        """
        claimed, left = await self._begin(slots, idle=idle, resumed=False, line_up=line_up)
        if claimed.tasks:
            return claimed
        resumable = bool(left["resumable"])
        if resumable:
            rows = await self._caller.claims.once("resume", slots=slots, **self._asks(idle=idle))
            if rows:
                return Claimed(taken_of(rows), more=True, mail=claimed.mail)
            # The tasks were not for this worker, or another worker has just taken them.
            claimed, left = await self._begin(slots, idle=idle, resumed=True, line_up=False)
            if claimed.tasks:
                return claimed
        if not left["waiting"]:
            # Locked rows are skipped from now on: the next claim finds the rows behind them.
            return Claimed([], more=claimed.more or resumable, mail=claimed.mail)
        cleared = await self._caller.claims.once("clear_line", lane=LANE)
        return Claimed([], more=True, mail=claimed.mail, cleared=bool(cleared))

    async def _begin(
        self, slots: int, *, idle: bool, resumed: bool, line_up: bool
    ) -> tuple[Claimed, Row]:
        """Begin attempts at up to `slots` new tasks; return also what the claim left."""
        parameters = {
            **self._asks(idle=idle), "slots": slots, "resumed": resumed,
            "max_running_per_user": self._caller.settings.vidgen_max_running_per_user,
        }  # fmt: skip
        if line_up:
            rows = await self._caller.claims.pair("line_up", "claim", **parameters)
        else:
            rows = await self._caller.claims.once("claim", **parameters)
        left, taken = rows[0], taken_of(rows)
        # A row that refused is set aside now: the next claim finds other rows.
        refused = any(row["refused"] for row in rows)
        more = refused or bool(taken and left["more"])
        return Claimed(taken, more=more, mail=left["mail"]), left

    async def take_cancelled(self) -> list[Task]:
        """Take waiting tasks that are to be cancelled at the provider."""
        rows = await self._caller.claims.once(
            "claim_cancelled", worker_id=self._caller.worker_id, **self._caller.key.names()
        )
        return [task_of(row) for row in begun_of(rows)]

    def _asks(self, *, idle: bool) -> dict[str, Any]:
        """The parameters that name the worker and its models."""
        key = self._caller.key
        return {
            **key.names(), "worker_id": self._caller.worker_id, "idle": idle, "lane": LANE,
            "image_model": key.image_model, "image_stage": IMAGE,
            "video_model": key.video_model, "video_stage": VIDEO,
        }  # fmt: skip


def task_of(row: Row) -> Task:
    """A task whose attempt has begun; only rows of `resume` can say that it runs alone."""
    return Task(
        fence=Fence(row["id"], row["attempt"], row["worker_id"]),
        user_id=row["user_id"],
        scene_id=row["scene_id"],
        failures=row["failures"],
        max_failures=row["max_failures"],
        progress=row["progress"],
        created_at=row["created_at"],
        cancel_requested=row["cancel_requested"],
        alone=row.get("alone", False),
        film=row.get("film", False),
        renders=row.get("renders", False),
    )

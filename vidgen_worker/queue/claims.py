"""Claims: waiting tasks are taken, and an attempt at each begins.

Nothing here runs an attempt, and nothing is paid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidgen_worker.database.pool import Row
from vidgen_worker.domain.task import Fence, Task
from vidgen_worker.queue.caller import Caller
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import RowRefused

LANE = 1
"""The lane of the two models in the settings."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim took, and whether rows are still waiting."""

    tasks: list[tuple[Task, float]]
    more: bool
    cleared: bool = False
    """Whether users left the line who had nothing due any more: the next claim may find others."""


def begun_of(rows: Sequence[Row]) -> list[Row]:
    """The rows of attempts that began; says which tasks' rows refused."""
    for row in rows:
        if row["refused"]:
            emit(RowRefused(task=str(row["id"]), statement="claim", error=row["refused"]))
    return [row for row in rows if not row["refused"]]


def taken_of(rows: Sequence[Row]) -> list[tuple[Task, float]]:
    """The tasks that were begun, and for how many seconds each was due."""
    return [(task_of(row), max(float(row["waited"]), 0.0)) for row in begun_of(rows)]


class Claims:
    """What a worker takes up."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def take(self, slots: int, *, idle: bool) -> Claimed:
        """Take up to `slots` waiting tasks: those that can go on, or, without such, new ones."""
        claimed = await self._begin(slots, idle=idle, resumed=False)
        if claimed.tasks:
            return claimed
        found = await self._caller.claims.once(
            "still_waiting", worker_id=self._caller.worker_id, idle=idle, **self._models_claimed()
        )
        state = found[0]
        if state["resumable"]:
            rows = await self._caller.claims.once(
                "resume",
                worker_id=self._caller.worker_id,
                slots=slots,
                idle=idle,
                **self._models_claimed(),
            )
            if rows:
                return Claimed(taken_of(rows), more=True)
            # They were not for this worker, or another one has just taken them.
            claimed = await self._begin(slots, idle=idle, resumed=True)
            if claimed.tasks:
                return claimed
        if not state["waiting"]:
            # Locked rows are passed over from now on: the next claim finds those behind them.
            return Claimed([], more=claimed.more or bool(state["resumable"]))
        left = await self._caller.claims.once("clear_line", lane=LANE)
        return Claimed([], more=True, cleared=bool(left))

    async def _begin(self, slots: int, *, idle: bool, resumed: bool) -> Claimed:
        """Line up, then begin an attempt on up to `slots` new tasks."""
        rows = await self._caller.claims.pair(
            "line_up", "claim", worker_id=self._caller.worker_id, slots=slots, idle=idle,
            resumed=resumed, max_running_per_user=self._caller.settings.vidgen_max_running_per_user,
            **self._models_claimed(),
        )  # fmt: skip
        taken = taken_of(rows)
        # A row that refused is set aside now: the next claim finds others.
        more = any(row["more"] for row in rows) or len(taken) < len(rows)
        return Claimed(taken, more=more)

    async def take_cancelled(self) -> list[Task]:
        """Take waiting tasks that are to be cancelled at the provider."""
        rows = await self._caller.claims.once(
            "claim_cancelled", worker_id=self._caller.worker_id, **self._caller.key.names()
        )
        return [task_of(row) for row in begun_of(rows)]

    def _models_claimed(self) -> dict[str, Any]:
        return {
            **self._caller.key.names(),
            "image_model": self._caller.key.image_model,
            "video_model": self._caller.key.video_model,
            "lane": LANE,
        }


def task_of(row: Row) -> Task:
    """A task whose attempt has begun; only `resume` says that it runs alone."""
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
    )

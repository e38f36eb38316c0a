"""The end of an attempt: one write for its outcome; and tasks that were set aside.

The pipeline decides the outcome.
"""

import contextlib
from datetime import timedelta
from typing import assert_never
from uuid import UUID

from psycopg.types.json import Jsonb

from vidgen_worker.database.trouble import LockedError
from vidgen_worker.domain.faults import FAULTS, FaultName
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.task import Completed, Failed, Fence, Met, Requeued, SetAside, Status
from vidgen_worker.queue.caller import Caller, scene_said
from vidgen_worker.queue.checkpoints import good_for, seconds_of
from vidgen_worker.queue.verdicts import kept
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import OwedSceneRefused, RowRefused

LONGEST_DETAILS = 500
"""The largest number of characters of the details that are kept for the operator."""


class Conclusions:
    """The statements that end attempts."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def complete(self, fence: Fence, outcome: Completed) -> float:
        """Conclude as completed; returns the seconds since the first claim."""
        rows = await self._caller.fenced(
            "complete", fence, video_url=outcome.video_url, good_for=good_for(outcome),
            scene_updates=self._caller.settings.vidgen_scene_updates,
        )  # fmt: skip
        return seconds_of(fence, rows[0]["completed"])

    async def requeue(self, fence: Fence, outcome: Requeued, message: str) -> None:
        """Conclude this attempt: back to pending after the delay."""
        await self._caller.fenced(
            "requeue", fence, delay=outcome.delay, message=message, failures=int(outcome.failed),
            waiting=outcome.waiting, code=outcome.code,
            details=printable(outcome.details, LONGEST_DETAILS),
        )  # fmt: skip

    async def waited(self, task_id: UUID) -> timedelta:
        """How long the task has waited so far without any progress."""
        rows = await self._caller.run("waited", task_id=task_id)
        return timedelta(seconds=rows[0]["seconds"] if rows else 0)

    async def fail(self, fence: Fence, outcome: Failed, *, counted: bool) -> None:
        """Conclude as failed."""
        rows = await self._caller.fenced(
            "fail", fence, code=outcome.code, message=outcome.message[:2000],
            visible=Jsonb(dict(outcome.visible)), failures=int(counted),
            details=printable(outcome.details, LONGEST_DETAILS),
            scene_updates=self._caller.settings.vidgen_scene_updates,
        )  # fmt: skip
        scene_said(fence, rows[0])

    async def cancel(self, fence: Fence) -> None:
        """Conclude as cancelled."""
        rows = await self._caller.fenced(
            "cancel", fence, scene_updates=self._caller.settings.vidgen_scene_updates
        )
        scene_said(fence, rows[0])

    async def set_aside(self, fence: Fence, outcome: SetAside) -> tuple[int, timedelta, Status]:
        """Set a task aside whose row refuses: (tries, pause, the status that its row has now).

        Raises LeaseLostError.
        """
        rows = await self._caller.fenced(
            "set_aside", fence, statement=outcome.statement, error=outcome.error,
            verdict=kept(outcome.verdict), message=FAULTS[FaultName.ROW_REFUSED].message,
            scene_updates=self._caller.settings.vidgen_scene_updates,
            # The statement skips locked rows: a lock that it meets is on a whole table.
            lock_patience=None,
        )  # fmt: skip
        return int(rows[0]["tries"]), rows[0]["pause"], Status(rows[0]["became"])

    async def retry_refused(self) -> None:
        """Return tasks whose pause is over to the line; end those that refused too often."""
        rows = await self._caller.once(
            "retry_refused", message=FAULTS[FaultName.ROW_REFUSED].message,
            scene_updates=self._caller.settings.vidgen_scene_updates,
        )  # fmt: skip
        for row in rows:
            if row["became"] is None:
                continue  # another worker has taken it, or the next call does
            match met := Met(row["became"]):
                case Met.FAILED | Met.KEPT:
                    emit(RowRefused(
                        task=str(row["task_id"]), statement=row["statement"], error=row["error"],
                        tries=row["tries"], became=met,
                    ))  # fmt: skip
                case Met.PENDING | Met.PROCESSING | Met.COMPLETED | Met.CANCELLED:
                    pass  # the task goes on, or has ended otherwise
                case Met.LOCKED | Met.DELETED:
                    pass  # a later call takes it, or it is gone
                case _:
                    assert_never(met)

    async def write_owed_scenes(self) -> None:
        """Write to the scenes that another transaction had locked."""
        for row in await self._caller.once("owed_scenes"):
            with contextlib.suppress(LockedError):  # another worker does it now
                (made,) = await self._caller.once("write_owed_scene", scene_id=row["scene_id"])
                if made["refused"] is not None:
                    emit(OwedSceneRefused(scene=str(row["scene_id"]), error=made["refused"]))

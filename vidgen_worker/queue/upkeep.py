"""What keeps the tables small and the books right: sweeps, duties, audits, uploads, counts.

It never touches a task that somebody runs.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from vidgen_worker.database.pool import Row
from vidgen_worker.database.trouble import LockedError
from vidgen_worker.queue.caller import Caller


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers together: numbers named as their metrics, closed gates, slots.

    A closed gate is (scope, model, reason).
    Slots are of a limited model: (model, how many there are, how many are taken).
    """

    numbers: dict[str, float]
    closed: list[tuple[str, str, str]]
    slots: list[tuple[str, int, int]]


class Upkeep:
    """The janitor's statements."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def sweep(self) -> None:
        """Rows that are of no use any more: dead workers, users out of the line, lost slots."""
        patience = {"patience": self._caller.settings.slot_patience}
        for name, parameters in (
            ("sweep_workers", {}), ("sweep_gates", {}), ("sweep_turns", {}), ("sweep_passed", {}),
            ("sweep_limits", {}),
            ("free_slots", patience), ("give_up_submissions", patience),
        ):  # fmt: skip
            # A locked row is left to the next sweep; the other sweeps go on.
            with contextlib.suppress(LockedError):
                await self._caller.once(name, **parameters)

    async def fleet(self) -> Fleet:
        """What the metrics tell of all workers together."""
        row = (await self._caller.once("fleet"))[0]
        closed = [(g["scope"], g["model"], g["reason"]) for g in row.pop("gates")]
        slots = [(one["model"], int(one["slots"]), int(one["taken"])) for one in row.pop("slots")]
        return Fleet({name: float(value) for name, value in row.items()}, closed, slots)

    async def take_duty(self, duty: str, every: timedelta) -> bool:
        """Whether this worker is the one of the fleet to do this now."""
        return bool(await self._caller.once("take_duty", duty=duty, every=every))

    async def take_uploads(self, batch: int) -> list[Row]:
        """Objects to be removed: upload_id, bucket, path, first_time. Nobody else is given them."""
        return await self._caller.once("take_uploads", batch=batch)

    async def uploads_removed(self, upload_ids: Sequence[UUID]) -> None:
        """Say that they are gone from Storage."""
        await self._caller.once("uploads_removed", upload_ids=list(upload_ids))

    async def uploads_left(self) -> tuple[int, timedelta]:
        """Uploads that are neither charged nor removed after an hour, and the oldest one's age."""
        row = (await self._caller.once("uploads_left"))[0]
        return int(row["uploads"]), timedelta(seconds=row["oldest_seconds"])

    async def forget_tasks(
        self, after: datetime | None, batch: int
    ) -> tuple[int, datetime | None]:  # fmt: skip
        """Remove private rows of old tasks: (how many, where the next batch begins)."""
        (row,) = await self._caller.once(
            "forget_tasks", keep=self._caller.settings.vidgen_keep_private, after=after, batch=batch
        )
        return int(row["tasks"]), row["through"]

    async def forget_holds(self, batch: int) -> int:
        """Remove old closed holds; how many."""
        rows = await self._caller.once(
            "forget_holds", keep=self._caller.settings.vidgen_keep_private, batch=batch
        )
        return int(rows[0]["holds"])

    async def audit_entries(self, batch: int) -> int:
        """Add the next entries of the ledger to the totals; how many."""
        return int((await self._caller.once("audit_entries", batch=batch))[0]["entries"])

    async def audit_users(self, after: UUID | None, batch: int) -> tuple[int, UUID | None]:
        """Compare the next users: (how many don't agree, where the next part begins)."""
        (row,) = await self._caller.once("audit_users", after=after, batch=batch)
        return int(row["discrepancies"]), row["through"]

    async def note_audit(self, discrepancies: int) -> None:
        """Keep what the audit has found."""
        await self._caller.once("note_audit", discrepancies=discrepancies)

    async def read_audit(self) -> float:
        """How many balances disagreed with ledger or holds when the fleet last looked."""
        return float((await self._caller.once("read_audit"))[0]["discrepancies"])

"""The janitor's statements: sweeps, duties, audits, uploads and counts.

None of them changes a task that a worker runs.
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
    """Numbers of the whole fleet, named as their metrics, with its closed gates and slots.

    A closed gate is (scope, model, reason). Slots of a limited model are (model, number of slots,
    number taken).
    """

    numbers: dict[str, float]
    closed: list[tuple[str, str, str]]
    slots: list[tuple[str, int, int]]


class Upkeep:
    """The janitor's statements."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def sweep(self) -> None:
        """Remove rows of dead workers and of users without tasks, and free lost slots."""
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
        """Read the fleet's numbers for the metrics."""
        row = (await self._caller.once("fleet"))[0]
        closed = [(g["scope"], g["model"], g["reason"]) for g in row.pop("gates")]
        slots = [(one["model"], int(one["slots"]), int(one["taken"])) for one in row.pop("slots")]
        return Fleet({name: float(value) for name, value in row.items()}, closed, slots)

    async def take_duty(self, duty: str, every: timedelta) -> bool:
        """Take a duty for the whole fleet; False where another worker has it now."""
        return bool(await self._caller.once("take_duty", duty=duty, every=every))

    async def take_uploads(self, batch: int) -> list[Row]:
        """Take objects to remove: upload_id, bucket, path, first_time. Each goes to one worker."""
        return await self._caller.once("take_uploads", batch=batch)

    async def uploads_removed(self, upload_ids: Sequence[UUID]) -> None:
        """Record that these uploads are gone from Storage."""
        await self._caller.once("uploads_removed", upload_ids=list(upload_ids))

    async def uploads_left(self) -> tuple[int, timedelta]:
        """Uploads neither charged nor removed after an hour: (their number, the oldest age)."""
        row = (await self._caller.once("uploads_left"))[0]
        return int(row["uploads"]), timedelta(seconds=row["oldest_seconds"])

    async def forget_tasks(
        self, after: datetime | None, batch: int
    ) -> tuple[int, datetime | None]:  # fmt: skip
        """Remove private rows of old tasks: (number of tasks, start of the next batch)."""
        (row,) = await self._caller.once(
            "forget_tasks", keep=self._caller.settings.vidgen_keep_private, after=after, batch=batch
        )
        return int(row["tasks"]), row["through"]

    async def forget_holds(self, batch: int) -> int:
        """Remove old closed holds; return their number."""
        rows = await self._caller.once(
            "forget_holds", keep=self._caller.settings.vidgen_keep_private, batch=batch
        )
        return int(rows[0]["holds"])

    async def audit_entries(self, batch: int) -> int:
        """Add the next entries of the ledger to the totals; return their number."""
        return int((await self._caller.once("audit_entries", batch=batch))[0]["entries"])

    async def audit_users(self, after: UUID | None, batch: int) -> tuple[int, UUID | None]:
        """Compare the next users: (number of users who disagree, start of the next part)."""
        (row,) = await self._caller.once("audit_users", after=after, batch=batch)
        return int(row["discrepancies"]), row["through"]

    async def note_audit(self, discrepancies: int) -> None:
        """Store the result of the audit."""
        await self._caller.once("note_audit", discrepancies=discrepancies)

    async def read_audit(self) -> float:
        """The number of balances that disagreed with ledger or holds in the last audit."""
        return float((await self._caller.once("read_audit"))[0]["discrepancies"])

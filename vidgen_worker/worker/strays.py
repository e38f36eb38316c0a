"""Generations at the provider that no task follows: ended, booked, and what they cost read again.

A task that somebody runs is never touched.
"""

import asyncio
import contextlib

from vidgen_worker.database.pool import Row
from vidgen_worker.domain.faults import Fault
from vidgen_worker.domain.task import GenerationEnd
from vidgen_worker.pipeline.generating import end_at_provider, end_of, was_rejected
from vidgen_worker.queue.errors import NotOursError, RowRefusedError
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import GenerationLeftAlone, StrayGeneration
from vidgen_worker.worker.process import Process


class Strays:
    """The strays that one worker ends."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def end(self) -> None:
        """End the generations that nobody follows, book what they cost and so free their slots."""
        queue = self._process.life.queue
        for row in await queue.submissions.let_anyone_follow():
            emit(GenerationLeftAlone(
                task=str(row["task_id"]), generation=row["generation_id"],
                account=row["account"], key=row["key_fingerprint"],
            ))  # fmt: skip
        strays = await queue.submissions.strays()
        await asyncio.gather(*[self._end_unlocked(row) for row in strays])

    async def _end_unlocked(self, row: Row) -> None:
        """End one stray; where another transaction holds its row, the next run ends it."""
        with contextlib.suppress(RowRefusedError):
            await self._end_stray(row)

    async def _end_stray(self, row: Row) -> None:
        queue, provider = self._process.life.queue, self._process.provider
        task_id, generation_id = row["task_id"], row["generation_id"]
        try:
            if row["kept"]:
                # Its task goes on later and reads it then; here only the end is booked.
                generation = await provider.poll(generation_id)
                end, cost = end_of(generation), generation.cost
                if end is None:
                    return
                await queue.submissions.close_generation(
                    task_id, generation_id, end, cost, rejected=was_rejected(generation)
                )
            else:
                end, cost = await end_at_provider(provider, queue, task_id, generation_id)
        except NotOursError:
            return  # only another key can read it; the row stays for that key's workers
        except Fault as fault:
            if fault.rule.absent:
                if await queue.submissions.is_gone(task_id, generation_id):
                    await queue.submissions.close_generation(
                        task_id, generation_id, GenerationEnd.GONE, None
                    )
                return
            if row["age"] < self._process.settings.vidgen_stage_hard_deadline.total_seconds():
                return  # the provider can't be asked now; the row stays for a later run
            # It must have ended by now: its slot is freed, and its cost is read later.
            end, cost = GenerationEnd.GIVEN_UP, None
            await queue.submissions.close_generation(task_id, generation_id, end, cost)
        emit(StrayGeneration(task=str(task_id), generation=generation_id, state=end, cost=cost))

    async def read_costs_again(self) -> None:
        """Read costs again: refunds come minutes after a failure, and the later reading counts."""
        for row in await self._process.life.queue.submissions.costs_to_read_again():
            # The next run reads those whose row another transaction holds.
            with contextlib.suppress(RowRefusedError):
                await self._read_cost_again(row)

    async def _read_cost_again(self, row: Row) -> None:
        queue = self._process.life.queue
        task_id, generation_id = row["task_id"], row["generation_id"]
        try:
            if row["given_up"]:
                await end_at_provider(self._process.provider, queue, task_id, generation_id)
                return
            generation = await self._process.provider.poll(generation_id)
        except NotOursError:
            return  # only another key can read it
        except Fault as fault:
            if fault.rule.absent and await queue.submissions.is_gone(task_id, generation_id):
                await queue.submissions.close_generation(
                    task_id, generation_id, GenerationEnd.GONE, None
                )
            return  # else the provider can't be asked now; a later run reads it
        end = end_of(generation)  # None: it was booked as ended, and the provider goes on with it
        await queue.submissions.close_generation(
            task_id, generation_id, end, generation.cost,
            rejected=end is not None and was_rejected(generation),
        )  # fmt: skip

"""The periodic duties: probing closed gates, ending stray generations, removing stale rows.

Any worker may do any of it at any time: each piece is one fenced or locked statement. Each duty has
a loop of its own, so that one that fails, or takes long, keeps no other waiting; it is tried again
at its next turn. It never touches a task that somebody runs.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from vidgen_worker.admission.probing import account_problem
from vidgen_worker.database.pool import Row
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import IN_A_ROW, PROVIDER_STORM, ROW_REFUSED, Fault, First
from vidgen_worker.domain.keys import ALL_MODELS, Gate, Scope
from vidgen_worker.domain.task import GenerationEnd
from vidgen_worker.pipeline.generating import end_at_provider, end_of, was_rejected
from vidgen_worker.queue.errors import NotOursError, RowRefusedError
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    BooksDisagree,
    BucketNoted,
    GateOpened,
    GateProbed,
    GenerationLeftAlone,
    LimitRead,
    LimitsUnread,
    MachineUnproven,
    StorageUnproven,
    StrayGeneration,
    TasksForgotten,
    UploadsKept,
    UploadsLeft,
    UploadsRemoved,
)
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.proofs import Proofs

TryGate = Callable[[Gate, int], Awaitable[bool]]
"""Lets one task through a gate, which was probed so often; whether there was one."""

SWEEP_EVERY = timedelta(seconds=60)
STRAYS_EVERY = timedelta(seconds=15)
"""A stray keeps its slot until it has ended, and a small tier has only one."""
REFUSALS_POLLS = 5
"""The janitor looks at tasks that are set aside once in so many polls of the queue."""
COUNT_EVERY = timedelta(seconds=15)
PROVE_EVERY = timedelta(minutes=3)
"""Both may change at any time: a bucket's settings in the dashboard, a disk's free room."""
ROOM, MOST_ROOM = 2**20, 2**26
"""Free bytes that a small clip needs, and that are enough for most clips."""
LIMITS_AGAIN = timedelta(seconds=5)
"""After a reading that failed."""
LIMITS_EVERY = timedelta(minutes=1)
"""One worker of the fleet reads the account so often: an upgrade of the tier counts at once."""
AUDIT_EVERY = timedelta(minutes=10)
AUDIT_ENTRIES, AUDIT_USERS = 20_000, 10_000
"""In one statement: some tens of milliseconds."""
UPLOADS_EVERY = timedelta(seconds=15)
UPLOADS_BATCH = 500
FORGET_EVERY = timedelta(minutes=5)
FORGET_BATCH = 1000
"""Submissions or holds in one statement."""
MOST_BATCHES = 40
"""In one run: with a backlog, eleven million submissions a day."""
BETWEEN_BATCHES = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Duty:
    """One piece of the janitor's work.

    `do` returns the pause until its next turn where that differs from `every`.
    """

    name: str
    every: timedelta
    do: Callable[[], Awaitable[timedelta | None]]
    at_once: bool = True
    """Whether its first run comes at once, and not after a part of its pause, at random."""


class Janitor:
    """Sweeps on behalf of one worker."""

    def __init__(self, process: Process, proofs: Proofs, try_gate: TryGate) -> None:
        self._process = process
        self.proofs = proofs
        self._try_gate = try_gate
        self._closed = True
        self._look_at = 0.0
        """When it is looked up anew what is closed, by `boot_time`."""
        self._limits: dict[str, int | None] = {}
        self._room = ROOM
        """Bytes that must be free here: more after each time that it was too little."""
        self._noted: frozenset[str] = frozenset()

    def duties(self) -> tuple[Duty, ...]:
        """Everything that is done now and then, each with its own pace."""
        settings = self._process.settings
        pace = min(settings.vidgen_queue_poll, settings.vidgen_gate_probe)
        return (
            Duty("storage", PROVE_EVERY, self.prove_storage),
            Duty("machine", PROVE_EVERY, self.prove_machine),
            Duty("gates", pace, self.probe_closed),
            Duty("limits", LIMITS_EVERY, self.read_limits),
            Duty("rows", SWEEP_EVERY, self.sweep_rows, at_once=False),
            Duty(
                "refusals",
                settings.vidgen_queue_poll * REFUSALS_POLLS,
                self.retry_refused,
                at_once=False,
            ),
            Duty(
                "scenes",
                settings.vidgen_queue_poll * REFUSALS_POLLS,
                self.write_owed_scenes,
                at_once=False,
            ),
            Duty("strays", STRAYS_EVERY, self.end_strays, at_once=False),
            Duty("uploads", UPLOADS_EVERY, self.remove_uploads, at_once=False),
            Duty("costs", SWEEP_EVERY, self.read_costs_again, at_once=False),
            Duty("audit", AUDIT_EVERY, self.audit),
            Duty("forget", FORGET_EVERY, self.forget, at_once=False),
            *(
                (Duty("count", COUNT_EVERY, self.count),)
                if settings.vidgen_metrics_port is not None
                else ()
            ),
        )

    async def keep(self, duty: Duty) -> None:
        """Do one duty again and again, until the worker stops."""
        if not duty.at_once:
            await asyncio.sleep(duty.every.total_seconds() * random.random())  # noqa: S311
        while not self._process.stopping.is_set():
            pause = await duty.do() or duty.every
            await asyncio.sleep(pause.total_seconds() * random.uniform(0.9, 1.1))  # noqa: S311

    async def prove_storage(self) -> timedelta | None:
        """Look whether the file store can keep what is paid for; what it can't closes its gate."""
        try:
            await self._prove_storage()
        except Fault as fault:
            if not self.proofs.storage:
                emit(StorageUnproven(code=fault.code, details=fault.details))
            elif fault.rule.first is First.SEND_AGAIN:
                return None  # it may pass; uploads meet it too, and those are counted
            await self._close(Scope.STORAGE, fault)
        # Before the first proof the gate's probes may be minutes apart.
        return None if self.proofs.storage else self._process.settings.vidgen_gate_probe

    async def _prove_storage(self) -> None:
        noted = frozenset(str(misfit) for misfit in await self._process.storage.prove())
        for details in sorted(noted - self._noted):
            emit(BucketNoted(details=details))
        self._noted = noted
        if not self.proofs.storage:
            self.proofs.storage = True
            self._process.wakes.claim.set()

    async def prove_machine(self) -> timedelta | None:
        """Look whether this machine can keep, and look at, what is paid for."""
        try:
            await self._process.machine_works(self._room)
        except Fault as fault:
            if not self.proofs.machine:
                emit(MachineUnproven(code=fault.code, details=fault.details))
            await self._close(Scope.MACHINE, fault)
            return self._process.settings.vidgen_gate_probe
        self.proofs.machine = True
        self._process.wakes.claim.set()
        return None

    async def _close(self, scope: Scope, fault: Fault) -> None:
        gates = self._process.life.gates
        message = fault.rule.brake.message if fault.rule.brake else fault.message
        await gates.close(gates.of(scope, ALL_MODELS), fault.code, message, fault.details)

    async def probe_closed(self) -> None:
        """Probe where something is closed, which is looked up only when it may have changed."""
        process = self._process
        sweeping = boot_time() >= self._look_at
        if sweeping or process.wakes.gates or not process.listener.listening:
            process.wakes.gates = False
            self._look_at = boot_time() + SWEEP_EVERY.total_seconds()
            closed = await process.life.gates.read_closed()
            self._closed = bool(closed)
            machine = process.life.queue.key.scopes.gate(Scope.MACHINE, ALL_MODELS).scope
            self.proofs.machine_closed = any(gate["scope"] == machine for gate in closed)
        if self._closed:
            await self.probe()

    async def probe(self) -> None:
        """Probe one closed gate whose time has come; open it where the probe goes well."""
        process, gates = self._process, self._process.life.gates
        if not process.settings.runwayml_enabled:
            return  # a worker that claims nothing could not try the gate after a storm
        due = await gates.take_probe()
        if due is None:
            return
        gate = Gate(due["scope"], due["model"])
        problem = await self._problem(due["reason"], gate)
        if problem is None and due["reason"] == PROVIDER_STORM:
            # Reading the account shows little: the gate opens when a stage of a task is stored.
            tried = await self._try_gate(gate, due["probes"])
            problem = "one task tries it" if tried else "no task waits that could try it"
        elif problem is None and not self._is_machine(gate) and await gates.try_kept(gate):
            # It is free and shows more than a probe: the trouble was met with such an output.
            problem = "one output that is kept tries it"
        elif (
            problem is None
            and due["reason"] == ROW_REFUSED
            and await gates.is_troubled(gate, ROW_REFUSED)
            and await self._try_gate(gate, due["probes"])
        ):
            # A row takes changes again; whether a paid stage goes well is known when one is stored.
            problem = "one task tries it"
        if problem is None:
            seconds = await gates.open(gate)
            if seconds is not None:
                emit(GateOpened(
                    scope=gate.scope, model=gate.model, code=due["reason"],
                    closed_seconds=round(seconds, 1),
                ))  # fmt: skip
            if self._is_machine(gate):
                self.proofs.machine_closed = False
                self._room = min(self._room * 4, MOST_ROOM)
                process.wakes.claim.set()
        else:
            emit(GateProbed(
                scope=gate.scope, model=gate.model, code=due["reason"], details=problem
            ))  # fmt: skip

    async def read_limits(self) -> timedelta:
        """Read the provider's limits if it is this worker's turn; the pause until the next look.

        A model that the account doesn't name has no limit: the provider itself holds it back.
        """
        process = self._process
        models, others_unknown = await process.life.limits.ask(LIMITS_EVERY)
        said = process.life.limits.of_settings()
        for model in said.keys() & set(models):
            # At every run: that corrects a number of slots that is not the limit.
            await process.life.limits.set_limit(model, said[model])
        unset = [model for model in models if model not in said]
        if not unset:
            return LIMITS_AGAIN if others_unknown else LIMITS_EVERY
        try:
            account = await process.provider.account()
        except Fault as fault:
            emit(LimitsUnread(code=fault.code, details=fault.details))
            return LIMITS_AGAIN
        for model in unset:
            found = account.models.get(model)
            limit = None if found is None else found.max_concurrent
            await process.life.limits.set_limit(model, limit)
            if model not in self._limits or self._limits[model] != limit:
                self._limits[model] = limit
                emit(LimitRead(model=model, slots=limit))
        return LIMITS_EVERY

    async def count(self) -> None:
        """Read the fleet's numbers for /metrics."""
        fleet = await self._process.life.queue.upkeep.fleet()
        self._process.metrics.show(fleet.numbers, fleet.closed, fleet.slots)

    async def audit(self) -> None:
        """Compare the ledger with balances and holds, part by part; one worker for the fleet."""
        queue = self._process.life.queue
        if await queue.upkeep.take_duty("audit", AUDIT_EVERY * 0.9):
            entries = await queue.upkeep.audit_entries(AUDIT_ENTRIES)
            while entries == AUDIT_ENTRIES:
                await asyncio.sleep(BETWEEN_BATCHES.total_seconds())
                entries = await queue.upkeep.audit_entries(AUDIT_ENTRIES)
            found, after = await queue.upkeep.audit_users(None, AUDIT_USERS)
            while after is not None:
                await asyncio.sleep(BETWEEN_BATCHES.total_seconds())
                more, after = await queue.upkeep.audit_users(after, AUDIT_USERS)
                found += more
            await queue.upkeep.note_audit(found)
            if found:
                emit(BooksDisagree(users=found))
            uploads, oldest = await queue.upkeep.uploads_left()
            if uploads:
                emit(UploadsLeft(uploads=uploads, oldest_seconds=oldest.total_seconds()))
        self._process.metrics.audited(await queue.upkeep.read_audit())

    async def forget(self) -> None:
        """Remove private rows of tasks that ended long ago; one worker for the fleet."""
        queue = self._process.life.queue
        if not await queue.upkeep.take_duty("forget", FORGET_EVERY * 0.9):
            return
        tasks, holds, after = 0, 0, None
        for _ in range(MOST_BATCHES):
            some, after = await queue.upkeep.forget_tasks(after, FORGET_BATCH)
            gone = await queue.upkeep.forget_holds(FORGET_BATCH)
            tasks, holds = tasks + some, holds + gone
            if after is None and gone < FORGET_BATCH:
                break
            await asyncio.sleep(BETWEEN_BATCHES.total_seconds())
        if tasks or holds:
            emit(TasksForgotten(tasks=tasks, holds=holds))

    def _is_machine(self, gate: Gate) -> bool:
        return gate == self._process.life.queue.key.scopes.gate(Scope.MACHINE, ALL_MODELS)

    async def _problem(self, reason: str, gate: Gate) -> str | None:
        """Why the gate must stay closed; None when it may open."""
        of_storage = self._process.life.queue.key.scopes.gate(Scope.STORAGE, ALL_MODELS)
        try:
            if self._is_machine(gate):
                await self._process.machine_works(self._room)
                self.proofs.machine = True
                return None
            if gate == of_storage or reason.startswith("STORAGE"):
                await self._prove_storage()
                return None
        except Fault as fault:
            return fault.details
        if reason == ROW_REFUSED:
            return await self._rows_problem(gate)
        return await account_problem(self._process.provider, reason, gate.model)

    async def _rows_problem(self, gate: Gate) -> str | None:
        """Why rows may not take what is paid for; None where one of them does."""
        gates = self._process.life.gates
        if not await gates.is_troubled(gate, ROW_REFUSED):
            return None
        found = await gates.try_rows()
        if found["taken"]:
            return None
        if found["tried"]:
            return f"the rows of {found['tried']} waiting tasks refuse changes: {found['refused']}"
        # Tasks that are set aside try their rows again after each pause, and pay nothing.
        users = found["refusing"]
        return f"rows of {users} users refuse changes" if users >= IN_A_ROW else None

    async def sweep(self) -> None:
        """Everything that is swept, at once."""
        await self.sweep_rows()
        await self.retry_refused()
        await self.write_owed_scenes()
        await self.end_strays()
        await self.remove_uploads()
        await self.read_costs_again()

    async def sweep_rows(self) -> None:
        """Remove rows that are of no use any more."""
        await self._process.life.queue.upkeep.sweep()

    async def retry_refused(self) -> None:
        """Take up tasks that were set aside and whose pause is over."""
        await self._process.life.queue.conclusions.retry_refused()

    async def write_owed_scenes(self) -> None:
        """Write to the scenes that were locked when their tasks wrote them."""
        await self._process.life.queue.conclusions.write_owed_scenes()

    async def end_strays(self) -> None:
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
        """End one; where another transaction holds its row, the next run does."""
        with contextlib.suppress(RowRefusedError):
            await self._end_stray(row)

    async def _end_stray(self, row: Row) -> None:
        queue, provider = self._process.life.queue, self._process.provider
        task_id, generation_id = row["task_id"], row["generation_id"]
        try:
            if row["kept"]:
                # Its task goes on later, and reads it then; only its end is booked now.
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
            return  # another key can say; the row stays and is met by its workers
        except Fault as fault:
            if fault.rule.absent:
                if await queue.submissions.is_gone(task_id, generation_id):
                    await queue.submissions.close_generation(
                        task_id, generation_id, GenerationEnd.GONE, None
                    )
                return
            if row["age"] < self._process.settings.vidgen_stage_hard_deadline.total_seconds():
                return  # the provider can't be asked now; the row stays and is met again
            # It must have ended by now: its slot is freed, and its cost is read later.
            end, cost = GenerationEnd.GIVEN_UP, None
            await queue.submissions.close_generation(task_id, generation_id, end, cost)
        emit(StrayGeneration(task=str(task_id), generation=generation_id, state=end, cost=cost))

    async def remove_uploads(self) -> None:
        """Remove from Storage what was uploaded and will never be charged."""
        queue, removed = self._process.life.queue, 0
        for _ in range(MOST_BATCHES):
            rows = await queue.upkeep.take_uploads(UPLOADS_BATCH)
            for bucket in sorted({row["bucket"] for row in rows}):
                removed += await self._remove(bucket, [r for r in rows if r["bucket"] == bucket])
            if len(rows) < UPLOADS_BATCH:
                break
        if removed:
            emit(UploadsRemoved(uploads=removed))

    async def _remove(self, bucket: str, uploads: list[Row]) -> int:
        """Remove these uploads of one bucket; how many of them for the first time."""
        try:
            await self._process.storage.remove(bucket, [row["path"] for row in uploads])
        except Fault as fault:
            if not fault.rule.absent:  # with a bucket its files are gone
                emit(UploadsKept(
                    bucket=bucket, uploads=len(uploads), code=fault.code, details=fault.details
                ))  # fmt: skip
                return 0
        await self._process.life.queue.upkeep.uploads_removed([row["upload_id"] for row in uploads])
        return sum(row["first_time"] for row in uploads)

    async def read_costs_again(self) -> None:
        """Refunds come some minutes after a failure; what the provider tells then is the truth."""
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
            return  # another key can say
        except Fault as fault:
            if fault.rule.absent and await queue.submissions.is_gone(task_id, generation_id):
                await queue.submissions.close_generation(
                    task_id, generation_id, GenerationEnd.GONE, None
                )
            return  # else it can't be asked now, and is met again
        end = end_of(generation)  # None: it was booked as ended, and the provider goes on with it
        await queue.submissions.close_generation(
            task_id, generation_id, end, generation.cost,
            rejected=end is not None and was_rejected(generation),
        )  # fmt: skip

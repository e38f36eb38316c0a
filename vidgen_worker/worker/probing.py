"""The proofs before any payment, and the probes of closed gates.

The file store and this machine are proven again and again. A closed gate is probed by one worker
that it concerns, and opens where the probe goes well. Nothing here submits: the claim loop lets
a task through that tries a gate.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import assert_never

from vidgen_worker.admission.probing import account_problem
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import IN_A_ROW, ROW_REFUSED, Fault, First, Probe, probe_of
from vidgen_worker.domain.keys import ALL_MODELS, Gate, Scope
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    BucketNoted,
    GateProbed,
    MachineUnproven,
    StorageUnproven,
)
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.proofs import Proofs

TryGate = Callable[[Gate, int], Awaitable[bool]]
"""Lets one task through a gate that was probed this often; returns whether there was one."""

LOOK_EVERY = timedelta(seconds=60)
"""How often the closed gates are looked up while nothing says that they have changed."""
ROOM, MOST_ROOM = 2**20, 2**26
"""Free bytes that a small clip needs, and that are enough for most clips."""


class Probing:
    """The proofs and probes of one worker."""

    def __init__(self, process: Process, proofs: Proofs, try_gate: TryGate) -> None:
        self._process = process
        self.proofs = proofs
        self._try_gate = try_gate
        self._closed = True
        self._look_at = 0.0
        """When the closed gates are looked up again, by `boot_time`."""
        self._room = ROOM
        """Bytes that must be free here; they grow each time that they were too few."""
        self._noted: frozenset[str] = frozenset()

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
        """Probe closed gates, which are looked up only when they may have changed."""
        process = self._process
        sweeping = boot_time() >= self._look_at
        if sweeping or process.wakes.gates or not process.listener.listening:
            process.wakes.gates = False
            self._look_at = boot_time() + LOOK_EVERY.total_seconds()
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
        # Whatever closed this machine's gate, only the machine can show that it works again.
        is_machine = gate == process.life.queue.key.scopes.gate(Scope.MACHINE, ALL_MODELS)
        probe = Probe.MACHINE if is_machine else probe_of(due["reason"])
        problem = await self._problem(probe, gate)
        if problem is None:
            problem = await self._untried(probe, gate, due["probes"])
        if problem is not None:
            emit(GateProbed(
                scope=gate.scope, model=gate.model, code=due["reason"], details=problem
            ))  # fmt: skip
            return
        await gates.open(gate, due["reason"])
        if probe is Probe.MACHINE:
            self.proofs.machine_closed = False
            self._room = min(self._room * 4, MOST_ROOM)
            process.wakes.claim.set()

    async def _untried(self, probe: Probe, gate: Gate, probes: int) -> str | None:
        """The trial before the gate opens; None where it needs none."""
        gates = self._process.life.gates
        if probe is Probe.TASK:
            # Reading the account shows little: the gate opens when a stage of a task is stored.
            tried = await self._try_gate(gate, probes)
            return "one task tries it" if tried else "no task waits that could try it"
        if probe is not Probe.MACHINE and await gates.try_kept(gate):
            # It is free and shows more than a probe: such an output met the trouble.
            return "one output that is kept tries it"
        if (
            probe is Probe.ROWS
            and await gates.is_troubled(gate, ROW_REFUSED)
            and await self._try_gate(gate, probes)
        ):
            # A row takes changes again; only a stored stage shows that paid work goes well.
            return "one task tries it"
        return None

    async def _problem(self, probe: Probe, gate: Gate) -> str | None:
        """Why the gate must stay closed; None when it may open."""
        match probe:
            case Probe.MACHINE | Probe.STORAGE:
                return await self._unproven(probe)
            case Probe.ROWS:
                return await self._rows_problem(gate)
            case Probe.ACCOUNT | Probe.BALANCE | Probe.DAILY_LIMIT | Probe.TASK:
                return await account_problem(self._process.provider, probe, gate.model)
            case _:
                assert_never(probe)

    async def _unproven(self, probe: Probe) -> str | None:
        """Why outputs can't be kept; None where it is proven that they can."""
        try:
            if probe is Probe.MACHINE:
                await self._process.machine_works(self._room)
                self.proofs.machine = True
            else:
                await self._prove_storage()
        except Fault as fault:
            return fault.details
        return None

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

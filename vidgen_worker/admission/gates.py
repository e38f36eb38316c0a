"""Gates: closed, probed, tried by one task, opened.

The table of faults and `storms` decide which trouble closes a gate.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from vidgen_worker.database.pool import Row
from vidgen_worker.domain.keys import Gate, Scope
from vidgen_worker.domain.task import Task
from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.claims import LANE, taken_of
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import GateClosed, GateOpened


@dataclass(frozen=True, slots=True)
class Noted:
    """The numbers of tasks and users that have met a trouble in a row.

    `weighed` is the number of users, where all users for whom the model has never worked count as
    one; `braked` says that this user's own submissions pause from now on.
    """

    tasks: int
    users: int
    weighed: int
    braked: bool


class Gates:
    """The statements about gates, for one worker."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def of(self, scope: Scope, model: str) -> Gate:
        """The gate of this worker that a trouble of this scope closes."""
        return self._caller.key.scopes.gate(scope, model)

    async def is_troubled(self, gate: Gate, reason: str) -> bool:
        """Whether the trouble that closed a gate has occurred since the last stored stage."""
        rows = await self._caller.once(
            "is_troubled", provider=self._caller.key.provider, scope=gate.scope, reason=reason
        )
        return bool(rows[0]["troubled"])

    async def try_rows(self) -> Row:
        """Find out for free whether all rows refuse: `tried`, `taken`, `refused`, `refusing`.

        `tried` is the number of rows that were tried, `taken` the number that accepted everything,
        `refused` an error of one that did not, `refusing` the number of users with tasks set aside.
        """
        return (await self._caller.once("try_rows", worker_id=self._caller.worker_id))[0]

    async def close(
        self, gate: Gate, reason: str, message: str, details: str, *, probe: timedelta | None = None
    ) -> None:
        """Close a gate; an event reports it unless the gate was closed already.

        `probe` is the pause before the first probe.
        """
        rows = await self._caller.run(
            "close_gate", **self._gate(gate), reason=reason, message=message,
            details=details[:2000],
            probe=self._caller.settings.vidgen_gate_probe if probe is None else probe,
        )  # fmt: skip
        if rows:
            emit(GateClosed(scope=gate.scope, model=gate.model, code=reason, details=details))

    async def meet(self, task: Task, gate: Gate, model: str) -> tuple[bool, float]:
        """Record that a submission was refused with the fault of a gate.

        Returns whether its user had met the fault before, and the highest cost of a generation.
        """
        rows = await self._caller.run(
            "meet_gate", task_id=task.id, user_id=task.user_id,
            provider=self._caller.key.provider, scope=gate.scope, model=model,
        )  # fmt: skip
        return bool(rows[0]["again"]), float(rows[0]["price"])

    async def note_trouble(  # noqa: PLR0913, PLR0917 - one value of the row each
        self, task: Task, gate: Gate, part: str, reason: str, message: str, details: str, *,
        model: str, allowance: int | None,
    ) -> Noted:  # fmt: skip
        """Record a trouble; return how many tasks and users have met it in a row."""
        rows = await self._caller.run(
            "note_trouble", provider=self._caller.key.provider, scope=gate.scope, part=part,
            model=model, reason=reason, message=message, details=details[:2000], task_id=task.id,
            user_id=task.user_id, allowance=allowance,
            probe=self._caller.settings.vidgen_gate_probe,
        )  # fmt: skip
        return Noted(**rows[0])

    async def try_kept(self, gate: Gate) -> bool:
        """Let a kept output try whether a gate may open; False when there is none."""
        rows = await self._caller.once("try_kept", **self._caller.key.names(), scope=gate.scope)
        return bool(rows[0]["kept"])

    async def take_probe(self) -> Row | None:
        """Take the due probe of one closed gate: scope, model, reason, probes, seconds closed."""
        rows = await self._caller.once(
            "take_probe", **self._caller.key.names(), probe=self._caller.settings.vidgen_gate_probe
        )
        return rows[0] if rows else None

    async def claim_trial(self, gate: Gate, probes: int) -> list[tuple[Task, float]]:
        """Take the one task that tries a gate after a storm; none while another one does."""
        rows = await self._caller.once(
            "claim_trial", worker_id=self._caller.worker_id, **self._gate(gate), probes=probes,
            max_running_per_user=self._caller.settings.vidgen_max_running_per_user, lane=LANE,
        )  # fmt: skip
        return taken_of(rows)

    async def open(self, gate: Gate, reason: str) -> None:
        """Open a gate that closed for this reason; an event reports it unless it was open."""
        rows = await self._caller.run("open_gate", **self._gate(gate))
        if rows:
            emit(GateOpened(
                scope=gate.scope, model=gate.model, code=reason,
                closed_seconds=round(float(rows[0]["seconds"]), 1),
            ))  # fmt: skip

    async def stands_aside(self) -> bool:
        """Whether a gate stops this worker alone, while another worker of its account goes on."""
        rows = await self._caller.run("stands_aside", worker_id=self._caller.worker_id)
        return bool(rows[0]["aside"])

    async def read_closed(self) -> list[Row]:
        """The closed gates that concern this worker."""
        return await self._caller.once("read_gates", **self._caller.key.names())

    def _gate(self, gate: Gate) -> dict[str, Any]:
        return {"provider": self._caller.key.provider, "scope": gate.scope, "model": gate.model}

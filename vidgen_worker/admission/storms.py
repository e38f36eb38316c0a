"""Storms: a fault that several users meet in a row closes the gate of its scope.

The pipeline decides what follows for the task that met the fault.
"""

from datetime import timedelta

from vidgen_worker.admission.gates import Gates
from vidgen_worker.domain.faults import ALLOWANCE, IN_A_ROW, Fault
from vidgen_worker.domain.task import Task
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import UserBraked


async def watch(gates: Gates, task: Task, model: str, fault: Fault) -> None:
    """Record a fault that may occur again; close the gate when it has occurred too often."""
    brake = fault.rule.brake
    if brake is None:
        return
    gate = gates.of(brake.scope, model)
    noted = await gates.note_trouble(
        task, gate, brake.part, brake.reason, brake.message, f"{fault.name}: {fault.details}",
        model=model, allowance=None if brake.input_to_blame else ALLOWANCE,
    )  # fmt: skip
    if noted.braked:
        emit(UserBraked(
            fence=task.fence, user=str(task.user_id), code=brake.reason, details=fault.details,
        ))  # fmt: skip
    users = noted.weighed if brake.input_to_blame else noted.users
    if not brake.at_once and users < IN_A_ROW:
        return
    await gates.close(
        gate, brake.reason, brake.message,
        f"met by {users} user(s) in a row, the last time: {fault.name}: {fault.details}",
        # If inputs may be to blame, another user's task tries the gate at once.
        probe=timedelta() if brake.input_to_blame else None,
    )  # fmt: skip

"""The end of an attempt, written: one outcome, one fenced statement.

Which outcome it is, is decided in `attempt`; a row that refuses its end is met there too.
"""

from typing import assert_never

from vidgen_worker.admission import storms
from vidgen_worker.domain.faults import WHY_IT_WAITS, Fault, FaultName
from vidgen_worker.domain.task import (
    Abandoned,
    Cancelled,
    Completed,
    Failed,
    HandedBack,
    Outcome,
    Requeued,
    SetAside,
    WaitsForParts,
)
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.pipeline.stages import Stage
from vidgen_worker.queue.errors import CancelAskedError
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    FilmWaits,
    RowRefused,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskHandedBack,
    TaskRequeued,
)

NO_SLOT = "NO_SLOT"
"""What the log calls a task that waits for a place at the provider."""
USER_LIMIT = "USER_LIMIT"
"""What the log calls a task that waits because of its user's limits."""


async def conclude(tools: Tools, run: Run, outcome: Outcome) -> Outcome:
    """Write the outcome, fenced. Raises LeaseLostError when the task is somebody else's now."""
    queue, fence = tools.queue, run.task.fence
    match outcome:
        case Completed():
            await _complete(tools, run, outcome)
        case Requeued():
            await queue.conclusions.requeue(fence, outcome, _waiting_message(outcome))
            emit(TaskRequeued(
                fence=fence, code=outcome.code, details=outcome.details,
                delay_seconds=round(outcome.delay.total_seconds(), 1), counted=outcome.failed,
            ))  # fmt: skip
        case WaitsForParts():
            return await _wait_for_parts(tools, run, outcome)
        case Failed():
            await queue.conclusions.fail(fence, outcome, counted=True)
            emit(TaskFailed(
                fence=fence, code=outcome.code, message=outcome.message, details=outcome.details,
            ))  # fmt: skip
        case Cancelled():
            await queue.conclusions.cancel(fence)
            emit(TaskCancelled(fence=fence))
        case HandedBack():
            if await queue.leases.hand_back([fence]):
                emit(TaskHandedBack(fence=fence))
        case SetAside():
            tries, pause, became = await queue.conclusions.set_aside(fence, outcome)
            emit(RowRefused(
                task=str(fence.task_id), statement=outcome.statement, error=outcome.error,
                tries=tries, pause_seconds=round(pause.total_seconds(), 1), became=became,
            ))  # fmt: skip
            await _watch_refusal(tools, run, outcome, tries)
        case Abandoned():
            pass
        case _:
            assert_never(outcome)
    return outcome


async def _complete(tools: Tools, run: Run, outcome: Completed) -> None:
    seconds = outcome.seconds
    if seconds is None:
        seconds = await tools.queue.conclusions.complete(run.task.fence, outcome)
    emit(TaskCompleted(fence=run.task.fence, seconds=round(seconds, 3)))


async def _wait_for_parts(tools: Tools, run: Run, outcome: WaitsForParts) -> Outcome:
    """Put a film to wait, unless its owner has asked to cancel meanwhile."""
    fence, ready = run.task.fence, outcome.parts - outcome.unfinished
    try:
        await tools.queue.films.wait_for_parts(fence, f"Scenes ready: {ready} of {outcome.parts}")
    except CancelAskedError:
        return await conclude(tools, run, Cancelled())
    emit(FilmWaits(fence=fence, parts=outcome.parts, unfinished=outcome.unfinished))
    return outcome


def _waiting_message(outcome: Requeued) -> str:
    if outcome.code == NO_SLOT:
        return "Waiting for a place at the provider"
    if outcome.code == USER_LIMIT:
        return "Waiting: your submissions come with pauses for now"
    if outcome.failed:
        return "Waiting to try again"
    return WHY_IT_WAITS.get(outcome.code, "Waiting for the service to continue")


async def _watch_refusal(tools: Tools, run: Run, refusal: SetAside, tries: int) -> None:
    """Note a row that refuses what was paid for: it may be the first of all rows.

    Only the first try of a task counts: else a few rows that refuse for ever would close the gate
    for all users. A lock doesn't count: it passes, and the task's owner can hold it as he likes.
    """
    if tries == 1 and not refusal.locked and (run.submitted or run.generations):
        refused = Fault(FaultName.ROW_REFUSED, details=f"{refusal.statement}: {refusal.error}")
        await storms.watch(tools.gates, run.task, model_of(tools, run), refused)


def stage_of(tools: Tools, run: Run) -> Stage:
    """The stage that the attempt is at: the first that it has not done."""
    return next((stage for stage in tools.stages if stage.name not in run.done), tools.stages[-1])


def model_of(tools: Tools, run: Run) -> str:
    """The model of that stage."""
    return stage_of(tools, run).model(tools.settings)

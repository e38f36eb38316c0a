"""One attempt, from claim to conclude: one outcome, one write.

Walks the pipeline, lets the one table of faults decide what follows from trouble, and writes the
task's end or its return to the queue. It raises nothing but cancellation: a lost lease is an
outcome too, and then it writes nothing.
"""

import traceback
from datetime import timedelta
from typing import assert_never

from vidgen_worker.admission import storms
from vidgen_worker.admission.probing import account_problem
from vidgen_worker.database.trouble import DatabaseUnavailableError, StatementStuckError
from vidgen_worker.domain.durations import format_duration
from vidgen_worker.domain.faults import (
    Disposition,
    Fault,
    FaultName,
    Pause,
    Probe,
    backoff,
)
from vidgen_worker.domain.keys import Gate, Scope
from vidgen_worker.domain.task import (
    Abandoned,
    Cancelled,
    Failed,
    HandedBack,
    Outcome,
    Requeued,
    SetAside,
)
from vidgen_worker.films import walk as films
from vidgen_worker.films.studio import Studio
from vidgen_worker.pipeline.concluding import NO_SLOT, USER_LIMIT, conclude, model_of, stage_of
from vidgen_worker.pipeline.generating import failed
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.pipeline.walk import Pipeline, ProvenError
from vidgen_worker.queue.errors import (
    BrakedError,
    CancelAskedError,
    GateClosedError,
    LeaseLostError,
    LimitKind,
    NoSlotError,
    NotOursError,
    RowRefusedError,
    SubmissionCapError,
    UserLimitedError,
)
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    LeaseLost,
    UnexpectedError,
    UserLimited,
)

LONG_WAIT = timedelta(minutes=2)
CANCEL_SELDOM = timedelta(minutes=2)
"""The longest pause between two tries to cancel: its owner waits."""


async def attempt(tools: Tools, run: Run) -> Outcome:
    """Run one attempt to its end, and conclude it. Only asyncio.CancelledError comes out."""
    try:
        if run.task.renders:
            # Nothing of it is at the provider: it may be cut anywhere.
            outcome = await run.unless_cancelled(films.walk(studio_of(tools), run.task))
        elif run.task.film:
            outcome = await films.walk(studio_of(tools), run.task)
        else:
            outcome = await Pipeline(tools, run).walk()
    except Exception as error:  # noqa: BLE001 - every way that the walk can end is an outcome
        outcome = await decide(tools, run, error)
    run.concluding = True
    try:
        try:
            return await conclude(tools, run, outcome)
        except RowRefusedError as error:
            return await set_aside(
                tools, run, outcome, error.statement, error.error, locked=error.locked
            )
        except StatementStuckError as error:
            return await set_aside(tools, run, outcome, "conclude", str(error))
        except (LeaseLostError, DatabaseUnavailableError):
            raise
        except Exception as error:  # noqa: BLE001 - else the task is begun again at once, without end
            fault = _unexpected(run, error)
            return await set_aside(tools, run, outcome, "conclude", fault.details)
    except LeaseLostError:
        emit(LeaseLost(fence=run.task.fence))
        return Abandoned()


def studio_of(tools: Tools) -> Studio:
    """The tools of an attempt at a film."""
    return Studio(
        films=tools.queue.films, storage=tools.storage, scratch=tools.scratch,
        bucket=tools.settings.storage_bucket_videos, report=tools.report, fonts=tools.fonts,
    )  # fmt: skip


async def set_aside(  # noqa: PLR0913 - what the row keeps of it
    tools: Tools, run: Run, outcome: Outcome, statement: str, error: str, *, locked: bool = False
) -> Outcome:
    """The end can't be written: keep the verdict, so that no later attempt pays for it again."""
    verdict = outcome if isinstance(outcome, Failed | Cancelled) else None
    return await conclude(tools, run, SetAside(statement, error, verdict, locked))


async def decide(  # noqa: PLR0911 - a way that a walk ends each
    tools: Tools, run: Run, error: Exception
) -> Outcome:
    """Decide the outcome of a walk that an error ended."""
    match error:
        case LeaseLostError():
            emit(LeaseLost(fence=run.task.fence))
            return await follow(tools, run, Fault(FaultName.LEASE_LOST, details="no row was hit"))
        case CancelAskedError():
            # The owner asked while nothing of it ran at the provider.
            return await follow(tools, run, Fault(FaultName.CANCELLED, details="its owner asked"))
        case ProvenError() | NotOursError():
            # It goes back to pending at once: its deaths count no more, or only workers that may
            # follow its generation see it from now on.
            return HandedBack()
        case SubmissionCapError():
            details = f"{tools.settings.vidgen_max_submissions} submissions may have been paid"
            return failed(Fault(FaultName.SUBMISSION_UNKNOWN, details=details))
        case RowRefusedError():
            return SetAside(error.statement, error.error, locked=error.locked)
        case GateClosedError() | BrakedError() | NoSlotError():
            return await _not_now(tools, run, error)
        case UserLimitedError():
            return _user_limited(run, error)
        case Fault():
            fault = await blame(tools, run, error)
        case StatementStuckError():
            fault = Fault(FaultName.DATABASE_TRANSIENT, details=str(error))
            return await follow(tools, run, fault)
        case _:  # the table's last row: anything else
            fault = _unexpected(run, error)
    await _watch(tools, run, fault)
    return await follow(tools, run, fault)


async def _watch(tools: Tools, run: Run, fault: Fault) -> None:
    """Note a trouble of paid work; nothing of a film is paid at the provider."""
    if not run.task.film:
        await storms.watch(tools.gates, run.task, model_of(tools, run), fault)


def _unexpected(run: Run, error: Exception) -> Fault:
    details = f"{type(error).__name__}: {error}"
    emit(UnexpectedError(
        fence=run.task.fence, code="INTERNAL_ERROR", details=details,
        traceback="".join(traceback.format_exception(error)),
    ))  # fmt: skip
    return Fault(FaultName.INTERNAL_ERROR, details=details)


async def _not_now(
    tools: Tools, run: Run, error: GateClosedError | BrakedError | NoSlotError
) -> Requeued:
    """Wait, because nothing paid may begin: the claim takes the task up when something may."""
    poll = tools.settings.vidgen_queue_poll
    match error:
        case GateClosedError():
            # It closed while the task ran. No pause is needed: the claim waits for it to open.
            code, delay, details = str(error), timedelta(), "the gate is closed"
        case BrakedError():
            code, delay = error.reason, poll
            details = f"nothing has gone well since: {error.details}"
            await tools.gates.close(error.gate, error.reason, error.message, details)
        case NoSlotError():
            # It needs a pause only where the claim was wrong about the free slot, because the
            # frozen request names another model.
            delay = timedelta() if run.submitted else poll
            code, details = NO_SLOT, "no slot is free"
        case _:
            assert_never(error)
    return Requeued(delay, failed=False, code=code, details=details, waiting=False)


def _user_limited(run: Run, error: UserLimitedError) -> Outcome:
    """Decide the outcome of a user's limit: nothing was paid."""
    emit(UserLimited(
        fence=run.task.fence, user=str(run.task.user_id), kind=error.kind, details=error.details,
    ))  # fmt: skip
    match error.kind:
        case LimitKind.REJECTED:
            return failed(Fault(FaultName.CONTENT_REJECTED, details=error.details))
        case LimitKind.ENDED:
            return failed(Fault(FaultName.USER_LIMIT, details=error.details, message=error.message))
        case LimitKind.WAITS:
            return Requeued(
                error.delay, failed=False, code=USER_LIMIT, details=error.details, waiting=False
            )
        case _:
            assert_never(error.kind)


async def blame(tools: Tools, run: Run, fault: Fault) -> Fault:
    """Tell a refusal that concerns everybody from one that is about the input of a task.

    It is about the input where the same user meets it again and the account, which is read for
    free, shows no trouble.
    """
    if not fault.rule.one_input:
        return fault
    model = model_of(tools, run)
    again, price = await tools.gates.meet(run.task, _gate(tools, run, fault), model)
    probe = fault.rule.probe or Probe.ACCOUNT
    if not again or await account_problem(tools.provider, probe, model, price) is not None:
        return fault
    return Fault(FaultName.REQUEST_DENIED, details=f"{fault.name} again: {fault.details}")


async def follow(tools: Tools, run: Run, fault: Fault) -> Outcome:  # noqa: PLR0911 - a row each
    """Decide the outcome of a fault, by the disposition of its row in the table."""
    settings, task = tools.settings, run.task
    first, longest = settings.vidgen_retry_backoff, settings.vidgen_retry_backoff_max
    match fault.disposition:
        case Disposition.FAIL:
            return failed(fault)
        case Disposition.RETRY:
            if task.failures + 1 >= task.max_failures or await _cap_reached(tools, run, fault):
                return failed(fault)
            delay = backoff(first, task.failures, longest=longest)
            return Requeued(delay, failed=True, code=fault.code, details=fault.details)
        case Disposition.WAIT | Disposition.IN_PLACE:
            return await _wait(tools, run, fault)
        case Disposition.GATE:
            return await _close(tools, run, fault)
        case Disposition.CANCEL:
            return Cancelled()
        case Disposition.HAND_BACK:
            return HandedBack()
        case Disposition.ABANDON:
            return Abandoned()
        case Disposition.SET_ASIDE:
            return SetAside(fault.name, fault.details)
        case _:
            assert_never(fault.disposition)


async def _close(tools: Tools, run: Run, fault: Fault) -> Outcome:
    """Close the fault's gate; the task that met it just waits."""
    if run.task.film:
        return await _wait(tools, run, fault)  # what is paid goes on, or meets it itself
    gate = _gate(tools, run, fault)
    await tools.gates.close(gate, fault.code, fault.message, fault.details)
    # If the trouble is this worker's own, other workers may take the task up at once.
    aside = await tools.gates.stands_aside()
    return Requeued(
        timedelta() if aside else tools.settings.vidgen_gate_probe, failed=False, code=fault.code,
        details=fault.details, waiting=False,
    )  # fmt: skip


async def _wait(tools: Tools, run: Run, fault: Fault) -> Outcome:
    """Wait and come again, as long as the task has not waited for too long."""
    settings, task = tools.settings, run.task
    first, longest = settings.vidgen_retry_backoff, settings.vidgen_retry_backoff_max
    if await _cap_reached(tools, run, fault):
        return failed(fault)
    cancelling = run.cancel.is_set()
    waited = await tools.queue.conclusions.waited(task.id)
    if waited >= settings.vidgen_wait_deadline and not cancelling:
        return failed(_waited_out(fault, waited))
    start = max(first, LONG_WAIT) if fault.rule.pause is Pause.LONG else first
    longest = min(longest, CANCEL_SELDOM) if cancelling else longest
    delay = fault.retry_after or backoff(start, task.fence.attempt - 1, longest=longest)
    return Requeued(delay, failed=False, code=fault.code, details=fault.details, waiting=True)


def _waited_out(fault: Fault, waited: timedelta) -> Fault:
    """Say the end of a wait: the same fault, without the promise that it goes on by itself."""
    happened = fault.message.partition(". ")[0].rstrip(".")
    lasted = format_duration(timedelta(minutes=waited // timedelta(minutes=1)))
    return Fault(
        fault.name, details=f"waited for {lasted}: {fault.details}", field=fault.field,
        message=f"{happened}. That has lasted too long, so the task was ended. Retry it later.",
    )  # fmt: skip


async def _cap_reached(tools: Tools, run: Run, fault: Fault) -> bool:
    """Whether another try would need a submission that the cap forbids."""
    if not fault.rule.another_submission:
        return False
    paid = await tools.queue.submissions.paid(run.task.id, stage_of(tools, run).name)
    return paid >= tools.settings.vidgen_max_submissions


def _gate(tools: Tools, run: Run, fault: Fault) -> Gate:
    return tools.gates.of(fault.rule.gate or Scope.ACCOUNT, model_of(tools, run))

"""One attempt at one film: its parts are ordered, waited for, or looked at once they have ended.

Start, restart, drain and crash take the same path: load what is known, do what is missing. Nothing
here claims or writes the film's end.
"""

from vidgen_worker.domain.faults import FAULTS, Fault, FaultName
from vidgen_worker.domain.task import Cancelled, Completed, Outcome, Task, WaitsForParts
from vidgen_worker.films.batch import batch_of
from vidgen_worker.films.cut import OnFailure
from vidgen_worker.queue.films import BadPart, Films, LoadedFilm, Refused

_FAULTS = {
    FAULTS[name].code: name
    for name in (
        FaultName.CUT_INVALID, FaultName.PART_FAILED, FaultName.INSUFFICIENT_CREDITS,
        FaultName.PRICE_MISSING, FaultName.USER_LIMIT,
    )
}  # fmt: skip
"""What the codes of `vidgen.order_parts` are here."""


async def walk(films: Films, task: Task) -> Outcome:
    """Run the attempt to its Outcome.

    Raises Fault, CancelAskedError or LeaseLostError.
    """
    film = await films.load(task.fence)
    if film.verdict is not None:
        return film.verdict
    if film.cancel_requested:
        return Cancelled()
    on_failure = batch_of(film.cut).on_failure
    if not film.ordered:
        refused = await films.order(task.fence)
        if refused is not None:
            raise _fault(refused)
        film = await films.load(task.fence)
    if film.unfinished:
        return WaitsForParts(film.parts, film.unfinished)
    if film.bad is not None and (on_failure is OnFailure.FAIL or not film.completed):
        raise _part_failed(film, film.bad)
    return Completed(None, None)


def _fault(refused: Refused) -> Fault:
    return Fault(
        _FAULTS[refused.code], details=refused.message, message=refused.message,
        field=refused.field,
    )  # fmt: skip


def _part_failed(film: LoadedFilm, bad: BadPart) -> Fault:
    return Fault(
        FaultName.PART_FAILED, field=f"/parts/{bad.position - 1}",
        details=f"part {bad.position}, task {bad.task_id}: {bad.code}",
        message=f"Part {bad.position} of {film.parts} ended without a clip ({bad.code}). "
        "Retry the film: only what is missing is paid.",
    )  # fmt: skip

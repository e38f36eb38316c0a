"""One attempt at one film: its cut is checked, its parts ordered, waited for, and cut.

Start, restart, drain and crash take the same path: load what is known, do what is missing. Nothing
here claims or writes the film's end.
"""

from dataclasses import replace

from vidgen_worker.domain.faults import FAULTS, Fault, FaultName
from vidgen_worker.domain.task import Cancelled, Completed, Outcome, Task, WaitsForParts
from vidgen_worker.films.cut import Cut, CutError, OnFailure, Part
from vidgen_worker.films.refusals import cut_of, refusal
from vidgen_worker.films.studio import Studio
from vidgen_worker.queue.films import BadPart, LoadedFilm, Refused
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import FilmChecked, PartsOrdered

_FAULTS = {
    FAULTS[name].code: name
    for name in (
        FaultName.CUT_INVALID, FaultName.PART_FAILED, FaultName.INSUFFICIENT_CREDITS,
        FaultName.PRICE_MISSING, FaultName.USER_LIMIT,
    )
}  # fmt: skip
"""What the codes of `vidgen.order_parts` are here."""


async def walk(studio: Studio, task: Task) -> Outcome:
    """Run the attempt to its Outcome.

    Raises Fault, CancelAskedError, LeaseLostError or RowRefusedError.
    """
    films = studio.films
    film = await films.load(task.fence)
    if film.verdict is not None:
        return film.verdict
    if film.cancel_requested:
        return Cancelled()
    cut = cut_of(film.cut)
    if not film.ordered:
        await _check(studio, task, cut)
        refused = await films.order(task.fence)
        if refused is not None:
            raise _fault(refused)
        film = await films.load(task.fence)
        emit(PartsOrdered(fence=task.fence, parts=film.parts))
    if film.unfinished:
        return WaitsForParts(film.parts, film.unfinished)
    if film.bad is not None and (cut.on_failure is OnFailure.FAIL or not film.completed):
        raise _part_failed(film, film.bad)
    return await _cut(studio, task, film, cut)


async def _check(studio: Studio, task: Task, cut: Cut) -> None:
    """Refuse, before anything is held or paid, what can't be made. Raises Fault."""
    if not cut.outputs:
        return
    # Here, because they need the extra `films`, which a worker without renders may lack.
    from vidgen_worker.films.checking import check  # noqa: PLC0415

    lengths = await studio.films.lengths(task.fence)
    if not lengths:
        return  # a scenario without scenes, which the order refuses
    try:
        await check(studio, task.user_id, _with_its_parts(cut, len(lengths)), lengths)
    except CutError as error:
        raise refusal(error) from error
    emit(FilmChecked(fence=task.fence, assets=len(cut.assets), outputs=len(cut.outputs)))


async def _cut(studio: Studio, task: Task, film: LoadedFilm, cut: Cut) -> Completed:
    if not cut.outputs:
        return Completed(None, None)
    from vidgen_worker.films.cutting import Cutting  # noqa: PLC0415 - as above

    try:
        return await Cutting(studio, task, film, _with_its_parts(cut, film.parts)).cut()
    except CutError as error:
        raise refusal(error) from error


def _with_its_parts(cut: Cut, parts: int) -> Cut:
    """Return the cut of a scenario as one of so many parts, which is what it has become."""
    return cut if cut.parts else replace(cut, parts=(Part(),) * parts)


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

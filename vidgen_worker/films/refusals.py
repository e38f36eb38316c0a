"""From the JSON of a film's row to its cut, or to the fault that the film ends with.

It reads no database: whose a scene is, and which scenes a scenario has, is asked where the parts
are ordered (`vidgen.order_parts`).
"""

from collections.abc import Mapping
from typing import Any

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.films.cut import Cut, CutError
from vidgen_worker.films.reading import read

OF_A_BATCH = ("parts", "scenario", "outputs", "on_failure")
OF_ITS_PARTS = ("scene", "task")
"""The members of a cut without outputs, and those of its parts."""


def cut_of(value: Mapping[str, Any]) -> Cut:
    """Read a cut. Raises Fault `cut_invalid`, whose field is the JSON pointer of what is wrong."""
    try:
        cut = read(value)
        if not cut.outputs:
            _refuse_what_only_outputs_show(value)
    except CutError as error:
        raise refusal(error) from error
    return cut


def refusal(error: CutError) -> Fault:
    """Return the fault of a cut that can't be made."""
    said = f"{error.pointer or 'The cut'}: {error.wrong}"
    return Fault(
        FaultName.CUT_INVALID, details=said, field=error.pointer or None,
        message=f"{said}. {error.remedy}, and insert a new task.",
    )  # fmt: skip


def _refuse_what_only_outputs_show(value: Mapping[str, Any]) -> None:
    _refuse_others(value, "", OF_A_BATCH)
    for number, part in enumerate(value.get("parts", ())):
        _refuse_others(part, f"/parts/{number}", OF_ITS_PARTS)


def _refuse_others(value: Mapping[str, Any], at: str, members: tuple[str, ...]) -> None:
    for name in value:
        if name not in members:
            raise CutError(
                f"{at}/{name}", "a film without outputs shows none of it",
                f'Name outputs, as "outputs": ["web"], or leave {name} out',
            )  # fmt: skip

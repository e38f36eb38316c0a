"""The cut of a batch: a film without outputs, which is its parts and nothing more.

It reads no database: whose a scene is, and which scenes a scenario has, is asked where the parts
are ordered (`vidgen.order_parts`).
"""

from collections.abc import Mapping
from typing import Any

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.films.cut import Cut, CutError
from vidgen_worker.films.reading import read

MEMBERS = ("parts", "scenario", "on_failure")
MEMBERS_OF_A_PART = ("scene", "task")


def batch_of(value: Mapping[str, Any]) -> Cut:
    """Read the cut of a batch.

    Raises Fault `cut_invalid`, whose field is the JSON pointer (RFC 6901) of what is wrong.
    """
    try:
        cut = read(value)
        _refuse_rendering(value)
    except CutError as error:
        said = f"{error.pointer or 'The cut'}: {error.wrong}"
        raise Fault(
            FaultName.CUT_INVALID, details=said, field=error.pointer or None,
            message=f"{said}. {error.remedy}, and insert a new task.",
        ) from error  # fmt: skip
    return cut


def _refuse_rendering(value: Mapping[str, Any]) -> None:
    """Raise CutError for the first member that only a rendered film has."""
    _refuse_others(value, "", MEMBERS)
    for number, part in enumerate(value.get("parts", ())):
        _refuse_others(part, f"/parts/{number}", MEMBERS_OF_A_PART)


def _refuse_others(value: Mapping[str, Any], at: str, members: tuple[str, ...]) -> None:
    for name in value:
        if name not in members:
            raise CutError(
                f"{at}/{name}", "no worker of this version renders films", f"Leave {name} out"
            )

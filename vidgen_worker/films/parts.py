"""What a cut says of its parts: read strictly, before anything is ordered.

It reads no database: whose a scene is, and which scenes a scenario has, is asked where they are
ordered (`vidgen.order_parts`).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from vidgen_worker.domain.faults import Fault, FaultName

MOST_PARTS = 500
LONGEST_NAME = 100
"""Characters of a scenario's id, and of a member's name in a message."""
MEMBERS = ("parts", "scenario", "on_failure")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class OnFailure(StrEnum):
    """What becomes of a film when a part of it ends without a clip."""

    FAIL = "fail"
    SKIP = "skip"


def on_failure_of(cut: Mapping[str, Any]) -> OnFailure:
    """Check a cut as far as it names parts, and return what follows when one of them fails.

    Raises Fault `cut_invalid`, whose field is the JSON pointer (RFC 6901) of what is wrong.
    """
    for name in cut:
        if name not in MEMBERS:
            raise _wrong(f"/{_escaped(name)}", f"is none of {', '.join(MEMBERS)}")
    if ("parts" in cut) == ("scenario" in cut):
        raise _wrong("", "a cut has either parts or scenario")
    if "parts" in cut:
        _check_parts(cut["parts"])
    else:
        _check_scenario(cut["scenario"])
    said = cut.get("on_failure", OnFailure.FAIL)
    if said not in tuple(OnFailure):
        raise _wrong("/on_failure", f"is none of {', '.join(OnFailure)}")
    return OnFailure(said)


def _check_parts(parts: object) -> None:
    if not isinstance(parts, list):
        raise _wrong("/parts", "is no list")
    if not 1 <= len(parts) <= MOST_PARTS:
        raise _wrong("/parts", f"has {len(parts)} parts; a film has 1 to {MOST_PARTS}")
    for place, part in enumerate(parts):
        at = f"/parts/{place}"
        if not isinstance(part, Mapping) or len(part) != 1 or not part.keys() <= {"scene", "task"}:
            raise _wrong(at, 'is neither {"scene": id} nor {"task": id}')
        ((kind, value),) = part.items()
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            raise _wrong(f"{at}/{kind}", "is no UUID")


def _check_scenario(scenario: object) -> None:
    # An application's own table may have numbers for ids.
    if isinstance(scenario, bool) or not isinstance(scenario, str | int):
        raise _wrong("/scenario", "is no id")
    if not 1 <= len(str(scenario)) <= LONGEST_NAME:
        raise _wrong("/scenario", f"has not 1 to {LONGEST_NAME} characters")


def _escaped(name: str) -> str:
    return name[:LONGEST_NAME].replace("~", "~0").replace("/", "~1")


def _wrong(pointer: str, problem: str) -> Fault:
    said = f"{pointer}: {problem}" if pointer else problem
    return Fault(
        FaultName.CUT_INVALID, details=said, field=pointer or None,
        message=f"{said[:1].upper()}{said[1:]}. Insert a new task with a correct cut.",
    )  # fmt: skip

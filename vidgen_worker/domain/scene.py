"""The scene of a task, from its row: a value that should be text but is not counts as text.

It reads no database: the row comes from `vidgen.read_scene`.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.task import Scene

SCENE_BYTES_MAX = 40_000
"""The largest value of one column of a scene that is read, in bytes (`vidgen.read_scene`)."""


def scene_of(found: Mapping[str, Any]) -> Scene:
    """Return the scene that `vidgen.read_scene` found.

    Raises Fault `scene_invalid` that names a column which could not be read or is too large.
    """
    for field, problem in sorted(found.get("unreadable", {}).items()):
        raise _unreadable(field, problem)

    def text(name: str) -> str | None:
        value = found.get(name)
        return None if value is None else str(value)

    return Scene(
        id=UUID(str(found["id"])),
        image_prompt=text("image_prompt"),
        visual_prompt=text("visual_prompt"),
        product_reference_image_url=text("product_reference_image_url"),
        duration=found.get("duration"),
        resolution=text("resolution"),
    )


def _unreadable(field: str, problem: Mapping[str, Any]) -> Fault:
    if "bytes" in problem:
        most = problem.get("most", SCENE_BYTES_MAX)
        said = f"has {problem['bytes']} bytes; at most {most} are read. Shorten it"
        details = f"the column {field} has {problem['bytes']} bytes"
    else:
        said = "can't be read from the database. Correct it"
        details = f"reading the column {field} raised {problem.get('error')}"
    message = f"The field {field} {said}, then retry."
    return Fault(FaultName.SCENE_INVALID, field=field, message=message, details=details)

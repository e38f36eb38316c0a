"""A verdict as it is kept until the task's row takes it. It writes nothing."""

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from vidgen_worker.domain.faults import FAULTS, FaultName
from vidgen_worker.domain.task import Cancelled, Failed


def kept(verdict: Failed | Cancelled | None) -> Jsonb | None:
    """A verdict as it is kept until it can be written into the task's row."""
    match verdict:
        case Failed():
            return Jsonb({
                "code": verdict.code, "message": verdict.message, "details": verdict.details,
                "visible": dict(verdict.visible),
            })  # fmt: skip
        case Cancelled():
            return Jsonb({"code": FAULTS[FaultName.CANCELLED].code})
        case None:
            return None


def verdict_of(said: Mapping[str, Any]) -> Failed | Cancelled:
    """The verdict that was kept."""
    if said["code"] == FAULTS[FaultName.CANCELLED].code:
        return Cancelled()
    return Failed(said["code"], said["message"], said["details"], said["visible"])

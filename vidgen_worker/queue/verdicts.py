"""The stored form of a verdict, until the task's row accepts it. Nothing here writes."""

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from vidgen_worker.domain.faults import FAULTS, FaultName
from vidgen_worker.domain.task import Cancelled, Failed


def kept(verdict: Failed | Cancelled | None) -> Jsonb | None:
    """Return a verdict in the form in which it is stored."""
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
    """Return the verdict that was stored."""
    if said["code"] == FAULTS[FaultName.CANCELLED].code:
        return Cancelled()
    return Failed(said["code"], said["message"], said["details"], said["visible"])

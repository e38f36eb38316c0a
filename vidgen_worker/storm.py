"""Brakes: when a trouble stops being about single tasks, nothing more is paid for until it passes.

A fault that shows after money was spent is noted for all workers at once (`vidgen.troubles`), by
what it is about and by model. Three users in a row close the gate, from then on only so many
submissions more begin; one user, or two, brake themselves alone (`vidgen.user_troubles`), however
often they meet it. A stage that is stored forgets it. Where the input may be to blame, users for
whom the model never worked count as one. No I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from vidgen_worker.gates import Scope

IN_A_ROW = 3
"""So many users, without a stage that went well between them, close a gate."""
ALLOWANCE = 3
"""So many paid submissions may still begin then, where no input is to blame."""

PROVIDER_STORM = "PROVIDER_STORM"
ROW_REFUSED = "ROW_REFUSED"
PROVIDER_MESSAGE = "Video generation is paused: the provider is out of order."
STORAGE_MESSAGE = "Video generation is paused: the file store is out of order."
DATABASE_MESSAGE = "Video generation is paused: the application's database refuses its results."
MACHINE_MESSAGE = "Video generation is paused: a machine of the service is out of order."


class Part(StrEnum):
    """What part of the work a trouble is about: each counts by itself."""

    SUBMIT = "submit"
    GENERATION = "generation"
    OUTPUT = "output"
    STORAGE = "storage"
    MACHINE = "machine"
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Brake:
    """What one row of the fault table does when it comes again and again.

    `input_to_blame`: a prompt or picture may cause it, so new users count as one. `at_once`: the
    first one is enough, because the fault itself says that it is everybody's.
    """

    scope: Scope
    part: Part
    reason: str
    message: str
    input_to_blame: bool = False
    at_once: bool = False


_SUBMIT = Brake(Scope.MODEL, Part.SUBMIT, PROVIDER_STORM, PROVIDER_MESSAGE)
_GENERATION = Brake(Scope.MODEL, Part.GENERATION, PROVIDER_STORM, PROVIDER_MESSAGE)
_BY_INPUT = Brake(
    Scope.MODEL, Part.GENERATION, PROVIDER_STORM, PROVIDER_MESSAGE, input_to_blame=True
)

BRAKES: Mapping[str, Brake] = MappingProxyType(
    {
        "request_denied": Brake(
            Scope.MODEL, Part.SUBMIT, PROVIDER_STORM, PROVIDER_MESSAGE, input_to_blame=True
        ),
        "provider_unreachable": _SUBMIT,
        "submission_unknown": _SUBMIT,
        "generation_unavailable": _GENERATION,
        "generation_gone": _BY_INPUT,
        "generation_failed": _BY_INPUT,
        "generation_overdue": _BY_INPUT,
        "frame_refused": _BY_INPUT,
        "output_undecodable": _BY_INPUT,
        "output_broken": _BY_INPUT,
        "output_too_large": _BY_INPUT,
        "output_unavailable": Brake(
            Scope.MODEL, Part.OUTPUT, "OUTPUT_UNAVAILABLE", PROVIDER_MESSAGE
        ),
        "storage_unavailable": Brake(
            Scope.STORAGE, Part.STORAGE, "STORAGE_UNAVAILABLE", STORAGE_MESSAGE
        ),
        "upload_refused": Brake(Scope.STORAGE, Part.STORAGE, "STORAGE_REFUSED", STORAGE_MESSAGE),
        "storage_refused": Brake(
            Scope.STORAGE, Part.STORAGE, "STORAGE_REFUSED", STORAGE_MESSAGE, input_to_blame=True
        ),
        "scratch_unavailable": Brake(
            Scope.MACHINE, Part.MACHINE, "SCRATCH_UNAVAILABLE", MACHINE_MESSAGE, at_once=True
        ),
        "row_refused": Brake(
            Scope.ACCOUNT, Part.DATABASE, ROW_REFUSED, DATABASE_MESSAGE, input_to_blame=True
        ),
        "internal_error": Brake(Scope.MACHINE, Part.MACHINE, "INTERNAL_ERROR", MACHINE_MESSAGE),
    }
)
"""By row of the fault table. Every other row costs nothing, closes a gate by itself, or is a
verdict about one input (`NEVER`): a test knows them all."""

NEVER: Mapping[str, str] = MappingProxyType(
    {
        "scene_not_found": "about the scene; nothing is paid",
        "scene_invalid": "about the scene; nothing is paid",
        "resolution_unsupported": "about the scene; nothing is paid",
        "insufficient_credits": "about the user; nothing is paid",
        "price_missing": "nothing is paid; the stages that are paid have their price in the hold",
        "request_refused": "about the input; nothing is paid",
        "user_limit": "about the user; nothing is paid",
        "provider_unfunded": "closes its gate",
        "provider_denied": "closes its gate",
        "provider_quota": "closes its gate",
        "provider_busy": "nothing is paid",
        "poll_failed": "says nothing about the generation, which is followed on",
        "poll_denied": "says nothing about the generation, which is followed on",
        "content_rejected": "a verdict about the input",
        "asset_invalid": "a verdict about the input",
        "bucket_missing": "put right in place",
        "storage_denied": "closes its gate",
        "storage_misconfigured": "closes its gate",
        "database_transient": "nothing is paid without the database",
        "lease_lost": "another worker goes on",
        "cancelled": "its owner asked",
        "draining": "another worker goes on",
        "worker_lost": "counted by deaths",
    }
)
"""Why these rows have no brake."""

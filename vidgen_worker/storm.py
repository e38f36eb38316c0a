"""Storms: when failures stop being about single tasks, nothing more is paid for until it passes.

Each worker remembers the last results of each model, and of the file store, in memory. Half of
them bad is a storm: the caller closes the gate for everybody, with the reason found here. What a
single task deserves is decided by the table of faults, and this never changes it. No I/O.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from uuid import UUID

from vidgen_worker.gates import ALL_MODELS, Scope
from vidgen_worker.lease import boot_time

WINDOW = 20
"""How many results count: one round of a worker's default 20 tasks."""
THRESHOLD = WINDOW // 2
"""So many bad ones are a storm. Where one in ten fails by chance, ten of twenty do so seven times
in a million; and until it closes, a dead provider has cost a worker at most ten generations beyond
those that were in flight."""
PER_USER = THRESHOLD // 2
"""Failed generations of one user count at most so often: odd prompts of one user close nothing."""
MEMORY = timedelta(minutes=10)
"""A result is forgotten after this: ten failures in a day are no storm."""

PROVIDER_STORM = "PROVIDER_STORM"
STORAGE_STORM = "STORAGE_UNAVAILABLE"


class Part(StrEnum):
    """What a result is about: each part has a window of its own, because one passes alone."""

    SUBMIT = "submit"
    GENERATION = "generation"
    STORAGE = "storage"


PART_OF_FAULT: Mapping[str, Part] = MappingProxyType(
    {
        "provider_unreachable": Part.SUBMIT,
        "submission_unknown": Part.SUBMIT,
        "generation_gone": Part.GENERATION,
        "generation_failed": Part.GENERATION,
        "generation_overdue": Part.GENERATION,
        "output_undecodable": Part.GENERATION,
        "output_broken": Part.GENERATION,
        "storage_unavailable": Part.STORAGE,
    }
)
"""The faults that may make a storm; every other row of the table says enough by itself."""


@dataclass(frozen=True, slots=True)
class Storm:
    """A gate to close: `message` is for the users, `details` for the log."""

    scope: Scope
    model: str
    reason: str
    message: str
    details: str


@dataclass(frozen=True, slots=True)
class _Result:
    at: float
    user: UUID | None
    fault: str | None


class StormWatch:
    """One worker's memory of what went well and what did not."""

    def __init__(self, clock: Callable[[], float] = boot_time) -> None:
        self._clock = clock
        self._windows: dict[tuple[Part, str], deque[_Result]] = {}

    def passed(self, part: Part, model: str) -> None:
        """Note that a part of the work went well."""
        self._window(part, model).append(_Result(self._clock(), None, None))

    def failed(self, fault: str, model: str, user: UUID) -> Storm | None:
        """Note a fault; return the gate to close when it makes a storm. Then it counts anew."""
        part = PART_OF_FAULT.get(fault)
        if part is None:
            return None
        window = self._window(part, model)
        window.append(_Result(self._clock(), user, fault))
        bad = [r for r in window if r.fault and r.at > self._clock() - MEMORY.total_seconds()]
        if _weight(part, bad) < THRESHOLD:
            return None
        kinds = Counter(result.fault for result in bad)
        details = f"{len(bad)} of the last {len(window)} results: " + ", ".join(
            f"{count} {name}" for name, count in kinds.most_common()
        )
        window.clear()
        return _storm(part, model, details)

    def _window(self, part: Part, model: str) -> deque[_Result]:
        key = (part, ALL_MODELS if part is Part.STORAGE else model)
        return self._windows.setdefault(key, deque(maxlen=WINDOW))


def _weight(part: Part, bad: list[_Result]) -> int:
    if part is not Part.GENERATION:
        return len(bad)
    return sum(min(count, PER_USER) for count in Counter(result.user for result in bad).values())


def _storm(part: Part, model: str, details: str) -> Storm:
    if part is Part.STORAGE:
        message = "Video generation is paused: the file store is out of order."
        return Storm(Scope.STORAGE, ALL_MODELS, STORAGE_STORM, message, details)
    message = "Video generation is paused: the provider is out of order."
    return Storm(Scope.MODEL, model, PROVIDER_STORM, message, details)

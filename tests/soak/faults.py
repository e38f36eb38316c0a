"""What goes wrong in the soak: every prompt word of Runway's double, every trouble of Storage's.

A provider fault is written into the prompt of one task; a storage fault hits whichever request
comes by. Each names the error codes that a task may end with because of it: a task that ends with
another one is a violation.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vidgen_worker.domain.task import StageName
from vidgen_worker.sandbox.runway.double import RunwayDouble
from vidgen_worker.sandbox.runway.words import spoken_in
from vidgen_worker.sandbox.supabase.storage import Kind, StorageDouble, StorageFault

IMAGE, VIDEO = StageName("image"), StageName("video")
AFTER_THE_TIMEOUT = "6s"
"""Longer than the soak's VIDGEN_SUBMIT_TIMEOUT."""


@dataclass(frozen=True, slots=True)
class ProviderFault:
    """Words in a prompt; the first of `stages` is where its first task speaks them."""

    words: str
    stages: tuple[StageName, ...] = (IMAGE, VIDEO)
    ends: frozenset[str] = frozenset()


def _may(
    *words: str, ends: str = "", stages: tuple[StageName, ...] = (IMAGE, VIDEO)
) -> list[ProviderFault]:
    return [ProviderFault(each, stages, frozenset(ends.split())) for each in words]


PROVIDER_FAULTS: tuple[ProviderFault, ...] = (
    *_may("fail SAFETY.INPUT.TEXT", ends="CONTENT_REJECTED"),
    *_may("fail ASSET.INVALID", ends="ASSET_INVALID"),
    *_may(
        "fail INTERNAL.BAD_OUTPUT.CODE01 x1", "fail x1", "fail INTERNAL cost 5 x1", "garbage",
        "garbage same", ends="GENERATION_FAILED",
    ),
    *_may("stall x1", ends="GENERATION_OVERDUE"),
    *_may("fail THIRD_PARTY.UNAVAILABLE x1", "fail INPUT_PREPROCESSING.INTERNAL x1",
          ends="PROVIDER_BUSY"),
    *_may("cancelled", "gone", ends="GENERATION_GONE"),
    *_may("400 promptText", ends="INVALID_REQUEST"),
    *_may("400 promptImage x2", stages=(VIDEO,), ends="GENERATION_FAILED"),
    # Trouble with the time it takes, with what is told, and with the output's form.
    *_may("throttle 1s", "slow 2s", "no-cost", "wrong-type", "wrong-size", "late 1s",
          "poll-500 x2", "poll-html", "weird-status", "expire-urls", "truncate-download",
          "zero-bytes", "page-download", "odd-encoding"),
    *_may("wrong-duration", stages=(VIDEO,)),
    # Refused: the gate closes, or the task waits.
    *_may("no-credits", "payment", "denied", "forbidden", "daily-limit", "busy"),
    # Perhaps accepted.
    *_may("500-before-accept", "drop-before-accept", "drop-after-accept",
          f"hang-after-accept {AFTER_THE_TIMEOUT}", "500-after-accept", "503-after-accept",
          "504-after-accept", "html-200", "empty-200", "broken-json-200", "bad-id-200"),
)  # fmt: skip

ANYBODYS_ENDS = frozenset({"SUBMISSION_UNKNOWN", "WORKER_LOST", "STORAGE_REFUSED"})
"""Ends that need no word: kills between a POST and its answer, kills in a row, a refused upload."""


@dataclass(frozen=True, slots=True)
class StorageTrouble:
    """A fault of Storage, and the kinds of request that it may hit."""

    name: str
    fault: StorageFault
    kinds: tuple[Kind, ...] = ("upload", "sign", "bucket")


STORAGE_TROUBLES: tuple[StorageTrouble, ...] = (
    *(StorageTrouble(str(status), StorageFault(status=status))
      for status in (403, 429, 500, 502, 503, 504, 544)),
    *(StorageTrouble(str(status), StorageFault(status=status), ("upload",))
      for status in (404, 413, 415)),
    StorageTrouble("hang", StorageFault(hang=3.0)),
    StorageTrouble("drop before", StorageFault(drop="before")),
    StorageTrouble("drop during", StorageFault(drop="during"), ("upload",)),
    StorageTrouble("drop after", StorageFault(drop="after")),
)  # fmt: skip


class TroubledStorage(StorageDouble):
    """Storage's double, of whose requests a share fails; the kind that fired least comes next."""

    def __init__(self, folder: Path, admin_url: str, share: float, seed: int) -> None:
        super().__init__(folder, admin_url)
        self.fired: Counter[str] = Counter()
        self._share = share
        self._random = random.Random(f"storage {seed}")

    def _next_fault(self, kind: Kind) -> StorageFault | None:
        fitting = [trouble for trouble in STORAGE_TROUBLES if kind in trouble.kinds]
        if not fitting or self._random.random() >= self._share:
            return super()._next_fault(kind)
        chosen = min(fitting, key=lambda one: (self.fired[one.name], self._random.random()))
        self.fired[chosen.name] += 1
        return replace(chosen.fault)


def fired_words(double: RunwayDouble) -> Counter[str]:
    """How often each provider fault has fired, by its words."""
    fired: Counter[str] = Counter()
    for (_, prompt, name), times in double._script._fired.items():
        for spoken in _spoken(prompt):
            if spoken.partition(" ")[0] == name:
                fired[spoken] += times
    return fired


def _spoken(prompt: str) -> Iterator[str]:
    if spoken_in(prompt):
        yield prompt.partition("[[")[2].partition("]]")[0]

"""Faults and what follows from them: one table, used by the code, the README and the tests.

Adapters turn every foreign exception into a `Fault` that names a row of `FAULTS`; the pipeline
acts on the row's disposition. Nothing here does I/O, and nothing else decides what follows.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from vidgen_worker.foreign_text import printable
from vidgen_worker.gates import Scope


class Disposition(StrEnum):
    """What follows from a fault."""

    IN_PLACE = "in place"
    WAIT = "WAIT"
    RETRY = "RETRY"
    FAIL = "FAIL"
    GATE = "GATE"
    ABANDON = "ABANDON"
    HAND_BACK = "HAND_BACK"
    CANCEL = "CANCEL"
    SET_ASIDE = "SET_ASIDE"


class Hold(StrEnum):
    """What becomes of the user's hold."""

    NONE = "none"
    KEPT = "kept"
    RELEASE = "release"
    NOT_OURS = "–"  # noqa: RUF001 - the dash of the table


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One row of the table.

    `code` is what the row of the task says when the task ends by it (None: the task can't end by
    this fault alone). `message` is our sentence for the user: it never holds provider text.
    `gate` says for whom the gate closes, where the disposition is GATE. `one_input`: the input of
    one task may bring it about as well.
    """

    name: str
    where: str
    signal: str
    code: str | None
    disposition: Disposition
    hold: Hold
    message: str
    follows: str = ""
    gate: Scope | None = None
    one_input: bool = False


_IN, _WAIT, _RETRY, _FAIL, _GATE = (
    Disposition.IN_PLACE,
    Disposition.WAIT,
    Disposition.RETRY,
    Disposition.FAIL,
    Disposition.GATE,
)

_RULES = (
    FaultRule(
        "scene_not_found", "scene", "absent, or owned by another user",
        "SCENE_NOT_FOUND", _FAIL, Hold.NONE,
        "The scene of this task does not exist, or is not yours. "
        "Create the scene first, then insert a new task with its id.",
    ),
    FaultRule(
        "scene_invalid", "scene", "bad prompt, duration, reference URL",
        "INVALID_REQUEST", _FAIL, Hold.NONE,
        "The scene can't be generated as it is. Correct the field that is named, then retry.",
        "names the field",
    ),
    FaultRule(
        "resolution_unsupported", "scene", "unknown resolution",
        "RESOLUTION_UNSUPPORTED", _FAIL, Hold.NONE,
        "The scenario's resolution is not supported. Choose one of the listed ones, then retry.",
    ),
    FaultRule(
        "insufficient_credits", "credits", "balance less holds under the price",
        "INSUFFICIENT_CREDITS", _FAIL, Hold.NONE,
        "There are not enough credits for this video. Add credits, then retry.",
        "provider never called",
    ),
    FaultRule(
        "price_missing", "credits", "no price for an action",
        "PRICE_MISSING", _FAIL, Hold.NONE,
        "This video has no price yet, so it can't be charged. "
        "The operator sets it in credit_prices, then retry.",
        "provider never called",
    ),
    FaultRule(
        "request_refused", "submit", "400 with issues, 405, 413",
        "INVALID_REQUEST", _FAIL, Hold.RELEASE,
        "The provider refuses this request. Change the scene's prompt or picture, then retry.",
    ),
    FaultRule(
        "frame_refused", "submit", "400 naming promptImage, for the frame we made",
        None, _RETRY, Hold.KEPT,
        "The provider could not read the still that the video starts from. Retry later.",
        "fresh output URL, then the storage URL, then RETRY",
    ),
    FaultRule(
        "provider_unfunded", "submit", '400 "not enough credits", 402',
        "PROVIDER_UNFUNDED", _GATE, Hold.KEPT,
        "Video generation is paused: the service's account at the provider needs a top-up.",
        gate=Scope.ACCOUNT, one_input=True,
    ),
    FaultRule(
        "provider_denied", "submit", "401, 403",
        "PROVIDER_DENIED", _GATE, Hold.KEPT,
        "Video generation is paused: the provider refuses the service's key.",
        "loud",
        gate=Scope.KEY, one_input=True,
    ),
    FaultRule(
        "request_denied", "submit",
        "401, 402, 403 again within a day for the same user, while key and account are in order",
        "REQUEST_DENIED", _RETRY, Hold.KEPT,
        "The provider refuses this request. Change the scene's prompt or picture, then retry.",
        "closes no gate for others",
    ),
    FaultRule(
        "provider_quota", "submit", "429 daily limit (by text)",
        "PROVIDER_QUOTA", _GATE, Hold.KEPT,
        "Video generation is paused: the provider's daily limit is reached.",
        gate=Scope.MODEL,
    ),
    FaultRule(
        "provider_busy", "submit", "429 else",
        "PROVIDER_BUSY", _WAIT, Hold.KEPT,
        "The provider is busy. The task goes on by itself.",
    ),
    FaultRule(
        "provider_unreachable", "submit", "never sent (connect error, pool time-out)",
        "PROVIDER_UNREACHABLE", _WAIT, Hold.KEPT,
        "The provider can't be reached. The task goes on by itself.",
        "in place ×3, then WAIT; a storm closes the gate",  # noqa: RUF001 - as in the table
    ),
    FaultRule(
        "submission_unknown", "submit",
        "may have been accepted: read time-out, dropped connection, 408, 409, 5xx, "
        "200 without a usable id",
        "SUBMISSION_UNKNOWN", _RETRY, Hold.KEPT,
        "The provider did not say whether it accepted the request. "
        "It was stopped here rather than paid for again.",
        "while this stage's possibly paid submissions are below VIDGEN_MAX_SUBMISSIONS, "
        "else FAIL and release; always counted and logged",
    ),
    FaultRule(
        "poll_failed", "poll", "5xx, time-out, broken body",
        "PROVIDER_UNREACHABLE", _IN, Hold.KEPT,
        "The provider could not be asked how the generation goes.",
        "says nothing about the generation: slower, until the stage's hard deadline",
    ),
    FaultRule(
        "poll_denied", "poll", "401, 403",
        "PROVIDER_DENIED", _IN, Hold.KEPT,
        "The provider refuses the service's key.",
        "loud; the generation is kept and polled slower",
    ),
    FaultRule(
        "generation_gone", "poll", "404, CANCELLED not by us",
        "GENERATION_GONE", _RETRY, Hold.KEPT,
        "The generation disappeared at the provider. Retry to start a new one.",
        "new submit within the cap",
    ),
    FaultRule(
        "content_rejected", "failure code", "SAFETY.*, INPUT_PREPROCESSING.SAFETY.*",
        "CONTENT_REJECTED", _FAIL, Hold.RELEASE,
        "The provider's content rules reject this scene. "
        "Change its prompt or its picture; the same input is never sent again.",
        "never resubmitted: it costs money and endangers the account",
    ),
    FaultRule(
        "user_limit", "submit",
        "a limit of the user: too much lost within a day, too many rejections in a row",
        "USER_LIMIT", _FAIL, Hold.RELEASE,
        "A limit of yours is reached, so nothing was paid for this task. Retry it later.",
        "provider never called; says which limit, what was used and when it opens",
    ),
    FaultRule(
        "asset_invalid", "failure code", "ASSET.INVALID, THIRD_PARTY.INPUT_VALIDATION",
        "ASSET_INVALID", _FAIL, Hold.RELEASE,
        "The scene's picture can't be used by the provider. Use another one, then retry.",
    ),
    FaultRule(
        "generation_failed", "failure code",
        "INTERNAL.BAD_OUTPUT.*, INTERNAL, absent, unknown",
        "GENERATION_FAILED", _RETRY, Hold.KEPT,
        "The provider could not make this video. Retry later, or change the prompt.",
    ),
    FaultRule(
        "generation_unavailable", "failure code",
        "THIRD_PARTY.UNAVAILABLE, INPUT_PREPROCESSING.INTERNAL",
        "PROVIDER_BUSY", _WAIT, Hold.KEPT,
        "The provider is busy. The task goes on by itself.",
        "long",
    ),
    FaultRule(
        "generation_overdue", "stage", "deadline passed",
        "GENERATION_OVERDUE", _RETRY, Hold.KEPT,
        "The provider did not finish in time. Retry to start a new generation.",
        "keep polling slowly up to a hard deadline, then cancel it (or give it up) and RETRY",
    ),
    FaultRule(
        "output_unavailable", "output", "403, 404, expired, truncated, a page instead of the file",
        "OUTPUT_UNAVAILABLE", _IN, Hold.KEPT,
        "The finished output could not be fetched yet. The task goes on by itself.",
        "GET the generation again for a fresh URL, then WAIT",
    ),
    FaultRule(
        "output_undecodable", "output", "bytes that don't decode, and differ on a second GET",
        "GENERATION_FAILED", _RETRY, Hold.KEPT,
        "The provider delivered a broken file. Retry to make a new one.",
        "a rate of them closes the gate",
    ),
    FaultRule(
        "output_broken", "output", "bytes that don't decode, the same on a second GET",
        "GENERATION_FAILED", _FAIL, Hold.RELEASE,
        "The provider delivered a broken file. Retry to make a new one.",
        "another GET can't help, and another generation is not paid by itself",
    ),
    FaultRule(
        "output_too_large", "output", "more bytes than the limit",
        "OUTPUT_TOO_LARGE", _FAIL, Hold.RELEASE,
        "The provider's output is larger than this service stores.",
    ),
    FaultRule(
        "scratch_unavailable", "scratch",
        "the worker's own disk, memory or open files: full, gone, read-only, over a quota",
        "SCRATCH_UNAVAILABLE", _WAIT, Hold.KEPT,
        "The service has no room for the file just now. The video is kept, the task goes on by "
        "itself.",
        "the folder is named and made again; the generation is kept; this machine claims nothing "
        "until it has room again",
    ),
    FaultRule(
        "storage_unavailable", "storage", "5xx, 544, 429, time-out, transport",
        "STORAGE_UNAVAILABLE", _WAIT, Hold.KEPT,
        "The file store can't be reached. The video is kept, the task goes on by itself.",
        "in place first; the generation is kept",
    ),
    FaultRule(
        "bucket_missing", "storage", "bucket missing",
        "STORAGE_UNAVAILABLE", _IN, Hold.KEPT,
        "The bucket is missing. It is created and the upload repeated.",
        "create it, again",
    ),
    FaultRule(
        "storage_denied", "storage", "401, 403 (a rotated key, say)",
        "STORAGE_DENIED", _GATE, Hold.KEPT,
        "Video generation is paused: the file store refuses the service's key.",
        "the generation is kept; a long storage outage also stops new submits",
        gate=Scope.STORAGE,
    ),
    FaultRule(
        "storage_misconfigured", "storage",
        "a bucket's size limit, media types or visibility don't fit",
        "STORAGE_MISCONFIGURED", _GATE, Hold.KEPT,
        "Video generation is paused: the file store is not set up for it.",
        "the generation is kept; loud, names bucket, setting and remedy", gate=Scope.STORAGE,
    ),
    FaultRule(
        "upload_refused", "storage", "400, 413, 415 of a bucket whose settings fit the file",
        "STORAGE_REFUSED", _WAIT, Hold.KEPT,
        "The file store does not take the video now. It is kept, the task goes on by itself.",
        "the generation is kept; three in a row close the gate",
    ),
    FaultRule(
        "storage_refused", "storage", "the file is larger than its bucket or the project takes",
        "STORAGE_REFUSED", _FAIL, Hold.RELEASE,
        "The file store refuses this file. The operator checks the bucket's size and type limits.",
        "loud",
    ),
    FaultRule(
        "database_transient", "Postgres", "transient (connection, restart, deadlock, time-out)",
        "DATABASE_UNAVAILABLE", _IN, Hold.KEPT,
        "The database can't be reached.",
        "backoff until a fenced write or a heartbeat says lost; past the lease it starts nothing "
        "paid but keeps what it has",
    ),
    FaultRule(
        "lease_lost", "Postgres", "fenced write hit no row",
        None, Disposition.ABANDON, Hold.NOT_OURS,
        "Another worker has taken this task over.",
    ),
    FaultRule(
        "row_refused", "Postgres",
        "the task's row refuses a change: an application's trigger, check, key or policy",
        "ROW_REFUSED", Disposition.SET_ASIDE, Hold.KEPT,
        "The application's database refuses to change this task. "
        "The operator finds its reason with `vidgen-worker tasks show`; then retry.",
        "a pause that grows, nothing paid meanwhile; FAIL after max_refusals (vidgen.settings)",
    ),
    FaultRule(
        "cancelled", "user", "cancel asked",
        "CANCELLED", Disposition.CANCEL, Hold.RELEASE,
        "Cancelled.",
        "cancel the generation if it still runs (read it first), close its checkpoint",
    ),
    FaultRule(
        "draining", "process", "SIGTERM",
        None, Disposition.HAND_BACK, Hold.KEPT,
        "The worker stops; another one resumes at the checkpoint.",
    ),
    FaultRule(
        "worker_lost", "worker", "died three times under this task",
        "WORKER_LOST", _FAIL, Hold.RELEASE,
        "The worker died several times while it ran this task. Retry, or tell the operator.",
        "inside the claim",
    ),
    FaultRule(
        "internal_error", "anything else", "an exception nobody expected",
        "INTERNAL_ERROR", _RETRY, Hold.KEPT,
        "Something went wrong on our side. The operator finds the details in the log.",
        "full traceback in the log",
    ),
)  # fmt: skip

FAULTS: Mapping[str, FaultRule] = MappingProxyType({rule.name: rule for rule in _RULES})
"""The table of the README, by name."""


class Fault(Exception):  # noqa: N818 - "fault" is the word of the vocabulary
    """A classified error.

    `message` is for the user (the rule's own sentence unless given), `details` for the operator.
    `field` names the input at fault, `retry_after` is what the other side asked us to wait, and
    `generation_cost` is the provider's cost in its credits where it is known.
    """

    def __init__(  # noqa: PLR0913 - one value each, all by keyword
        self,
        name: str,
        *,
        details: str,
        message: str | None = None,
        field: str | None = None,
        retry_after: timedelta | None = None,
        generation_cost: float | None = None,
    ) -> None:
        self.rule = FAULTS[name]
        self.details = printable(details)
        self.message = printable(message or self.rule.message)
        self.field = printable(field) if field else None
        self.retry_after = retry_after
        self.generation_cost = generation_cost
        super().__init__(f"{name}: {self.details}")

    @property
    def name(self) -> str:
        """The row of the table."""
        return self.rule.name

    @property
    def code(self) -> str:
        """What `error_code` says if the task ends by this fault."""
        return self.rule.code or "GENERATION_FAILED"

    @property
    def disposition(self) -> Disposition:
        """What follows."""
        return self.rule.disposition

    def visible(self) -> dict[str, Any]:
        """What of the fault may be seen by the task's owner."""
        return {"field": self.field} if self.field else {}


def failure_fault(failure_code: str | None, details: str, cost: float | None) -> Fault:
    """Classify the failure code of a generation that ended FAILED.

    The codes are an open set matched by prefix, and may be absent
    (https://docs.dev.runwayml.com/errors/task-failures/).
    """
    code = (failure_code or "").upper()
    if code.startswith(("SAFETY", "INPUT_PREPROCESSING.SAFETY")):
        name = "content_rejected"
    elif code.startswith(("ASSET.INVALID", "THIRD_PARTY.INPUT_VALIDATION")):
        name = "asset_invalid"
    elif code.startswith(("THIRD_PARTY.UNAVAILABLE", "INPUT_PREPROCESSING.INTERNAL")):
        name = "generation_unavailable"
    else:
        name = "generation_failed"
    return Fault(name, details=f"{failure_code or 'no failure code'}: {details}",
                 generation_cost=cost)  # fmt: skip


def backoff(first: timedelta, count: int, *, longest: timedelta) -> timedelta:
    """The pause before try `count` + 1: doubling from `first`, plus up to 50 % jitter."""
    seconds = min(first.total_seconds() * 2 ** min(max(count, 0), 30), longest.total_seconds())
    return timedelta(seconds=seconds * random.uniform(1.0, 1.5))  # noqa: S311 - jitter

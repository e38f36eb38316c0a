"""Faults and their dispositions: one table, used by the code, the README and the tests.

Adapters turn every foreign exception into a `Fault` that names a row of `FAULTS`; the pipeline
acts on the row's disposition. Nothing here does I/O, and nothing else decides what follows.
"""

# Up to 700 lines: the table of faults is most of the file.

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.keys import Scope


class Disposition(StrEnum):
    """The action that follows a fault."""

    IN_PLACE = "in place"
    WAIT = "WAIT"
    RETRY = "RETRY"
    FAIL = "FAIL"
    GATE = "GATE"
    ABANDON = "ABANDON"
    HAND_BACK = "HAND_BACK"
    CANCEL = "CANCEL"
    SET_ASIDE = "SET_ASIDE"


class FaultName(StrEnum):
    """The rows of the table."""

    SCENE_NOT_FOUND = "scene_not_found"
    SCENE_INVALID = "scene_invalid"
    RESOLUTION_UNSUPPORTED = "resolution_unsupported"
    CUT_INVALID = "cut_invalid"
    PART_FAILED = "part_failed"
    PART_UNUSABLE = "part_unusable"
    RENDER_FAILED = "render_failed"
    INSUFFICIENT_CREDITS = "insufficient_credits"
    PRICE_MISSING = "price_missing"
    REQUEST_REFUSED = "request_refused"
    FRAME_REFUSED = "frame_refused"
    PROVIDER_UNFUNDED = "provider_unfunded"
    PROVIDER_DENIED = "provider_denied"
    REQUEST_DENIED = "request_denied"
    PROVIDER_QUOTA = "provider_quota"
    PROVIDER_BUSY = "provider_busy"
    PROVIDER_UNREACHABLE = "provider_unreachable"
    SUBMISSION_UNKNOWN = "submission_unknown"
    POLL_FAILED = "poll_failed"
    POLL_DENIED = "poll_denied"
    GENERATION_GONE = "generation_gone"
    CONTENT_REJECTED = "content_rejected"
    USER_LIMIT = "user_limit"
    ASSET_INVALID = "asset_invalid"
    GENERATION_FAILED = "generation_failed"
    GENERATION_UNAVAILABLE = "generation_unavailable"
    GENERATION_OVERDUE = "generation_overdue"
    OUTPUT_UNAVAILABLE = "output_unavailable"
    OUTPUT_UNDECODABLE = "output_undecodable"
    OUTPUT_BROKEN = "output_broken"
    OUTPUT_TOO_LARGE = "output_too_large"
    SCRATCH_UNAVAILABLE = "scratch_unavailable"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    BUCKET_MISSING = "bucket_missing"
    STORAGE_DENIED = "storage_denied"
    STORAGE_MISCONFIGURED = "storage_misconfigured"
    UPLOAD_REFUSED = "upload_refused"
    STORAGE_REFUSED = "storage_refused"
    DATABASE_TRANSIENT = "database_transient"
    LEASE_LOST = "lease_lost"
    ROW_REFUSED = "row_refused"
    CANCELLED = "cancelled"
    DRAINING = "draining"
    WORKER_LOST = "worker_lost"
    INTERNAL_ERROR = "internal_error"


class Hold(StrEnum):
    """The effect of a fault on the user's hold."""

    NONE = "none"
    KEPT = "kept"
    RELEASE = "release"
    NOT_OURS = "–"  # noqa: RUF001 - the dash of the table


class First(StrEnum):
    """The action that is tried before the disposition follows."""

    SEND_AGAIN = "the same call again, a few times: the fault may pass within seconds"
    NEXT_ADDRESS = "the same request with another address of the still"
    POLL_AGAIN = "the next poll, later"
    ASK_FOR_THE_KEY = "another question, whether the key itself is refused"
    FETCH_AGAIN = "a fresh address of the output"
    COMPARE = "a second fetch, whose bytes are compared with the first"
    CREATE_BUCKET = "create the bucket, then the same call again"
    LOOK_AT_BUCKET = "the bucket's settings: they may be at fault, not the file"


class Pause(StrEnum):
    """How long a task waits for a service to recover."""

    USUAL = "usual"
    LONG = "long"


class Part(StrEnum):
    """The part of the work that a trouble is about: troubles are counted for each part alone."""

    SUBMIT = "submit"
    GENERATION = "generation"
    OUTPUT = "output"
    STORAGE = "storage"
    MACHINE = "machine"
    DATABASE = "database"


class Probe(StrEnum):
    """The free check that must pass before a gate that a fault closed may open."""

    ACCOUNT = "whether the provider tells of the account"
    BALANCE = "whether the account has credits for a generation"
    DAILY_LIMIT = "whether the account may generate more today"
    STORAGE = "whether the file store can keep an output"
    MACHINE = "whether this machine can keep and look at an output"
    ROWS = "whether the rows of waiting tasks take a change"
    TASK = "the account; then one task is let through, because the account shows little"


@dataclass(frozen=True, slots=True)
class Brake:
    """The brake on new submissions when a fault that costs money occurs again and again.

    The trouble is recorded for all workers (`vidgen.troubles`), by part and model. When `IN_A_ROW`
    users in a row have met it, the gate of this scope closes, and at most `ALLOWANCE` further
    submissions begin; `probe` opens the gate. One or two users brake only their own submissions
    (`vidgen.user_troubles`). A stored stage deletes the record.
    `input_to_blame`: a prompt or picture may be the cause, so all users for whom the model has
    never worked count as one. `at_once`: one occurrence closes the gate, because the fault always
    concerns everybody.
    """

    scope: Scope
    part: Part
    reason: str
    message: str
    probe: Probe
    input_to_blame: bool = False
    at_once: bool = False


IN_A_ROW = 3
"""The number of users in a row who must meet a trouble before its gate closes."""
ALLOWANCE = 3
"""The number of paid submissions that may still begin after that, where no input is to blame."""

PROVIDER_STORM = "PROVIDER_STORM"
ROW_REFUSED = "ROW_REFUSED"
PROVIDER_MESSAGE = "Video generation is paused: the provider is out of order."
STORAGE_MESSAGE = "Video generation is paused: the file store is out of order."
DATABASE_MESSAGE = "Video generation is paused: the application's database refuses its results."
MACHINE_MESSAGE = "Video generation is paused: a machine of the service is out of order."

_SUBMITTING = Brake(Scope.MODEL, Part.SUBMIT, PROVIDER_STORM, PROVIDER_MESSAGE, Probe.TASK)
_GENERATING = Brake(Scope.MODEL, Part.GENERATION, PROVIDER_STORM, PROVIDER_MESSAGE, Probe.TASK)
_BY_INPUT = Brake(
    Scope.MODEL, Part.GENERATION, PROVIDER_STORM, PROVIDER_MESSAGE, Probe.TASK, input_to_blame=True
)


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One row of the table.

    `code` is the task's `error_code` when the task ends by this fault (None: a task can't end by
    this fault alone). `message` is our sentence for the user: it never holds provider text.
    `gate` is the scope of the gate that closes, where the disposition is GATE, and `probe` opens
    that gate. `first` is tried before the disposition follows. `another_submission` says that the
    task needs another submission to go on, which the cap may forbid. `maybe_paid`: the provider may
    have accepted the request without our knowledge. `rejected`: content rules reject the input,
    which is remembered. `absent`: the requested object does not exist. `one_input`: the input of
    one task may cause the fault as well. Either `brake` is set, or `unbraked` gives the reason why
    the fault needs none.
    """

    name: FaultName
    where: str
    signal: str
    code: str | None
    disposition: Disposition
    hold: Hold
    message: str
    follows: str = ""
    gate: Scope | None = None
    probe: Probe | None = None
    first: First | None = None
    pause: Pause = Pause.USUAL
    another_submission: bool = False
    maybe_paid: bool = False
    rejected: bool = False
    absent: bool = False
    one_input: bool = False
    brake: Brake | None = None
    unbraked: str = ""


_IN, _WAIT, _RETRY, _FAIL, _GATE = (
    Disposition.IN_PLACE,
    Disposition.WAIT,
    Disposition.RETRY,
    Disposition.FAIL,
    Disposition.GATE,
)

_RULES = (
    FaultRule(
        FaultName.SCENE_NOT_FOUND, "scene", "absent, or owned by another user",
        "SCENE_NOT_FOUND", _FAIL, Hold.RELEASE,
        "The scene of this video was deleted, or is not yours. Order a video of another scene.",
        unbraked="about the scene; nothing is paid",
    ),
    FaultRule(
        FaultName.SCENE_INVALID, "scene", "bad prompt, duration, reference URL",
        "INVALID_REQUEST", _FAIL, Hold.RELEASE,
        "The scene can't be generated as it is. Correct the field that is named, then retry.",
        "names the field",
        unbraked="about the scene; nothing is paid",
    ),
    FaultRule(
        FaultName.RESOLUTION_UNSUPPORTED, "scene", "unknown resolution",
        "RESOLUTION_UNSUPPORTED", _FAIL, Hold.RELEASE,
        "The scenario's resolution is not supported. Choose one of the listed ones, then retry.",
        unbraked="about the scene; nothing is paid",
    ),
    FaultRule(
        FaultName.CUT_INVALID, "film", "a cut of another shape, a part that is absent or not yours",
        "INVALID_REQUEST", _FAIL, Hold.NONE,
        "The film can't be made from this cut. Insert a new task with a correct one.",
        "points at the part; nothing is ordered",
        unbraked="about the cut; nothing is paid",
    ),
    FaultRule(
        FaultName.PART_FAILED, "film", "a part ended without a clip",
        "PART_FAILED", _FAIL, Hold.NONE,
        "A part of the film failed. Retry the film: only what is missing is paid.",
        "names position and code; the other parts are kept",
        unbraked="the part's own fault has braked",
    ),
    FaultRule(
        FaultName.PART_UNUSABLE, "film", "a part's clip is gone, was changed, or can't be decoded",
        "PART_UNUSABLE", _FAIL, Hold.RELEASE,
        "The clip of a part can't be used. Order its scene again, then a new film.",
        "points at the part; nothing of it is paid again",
        unbraked="about one stored clip; films close no gate",
    ),
    FaultRule(
        FaultName.RENDER_FAILED, "film",
        "two processes died over the same output, or it can't be made as asked",
        "RENDER_FAILED", _FAIL, Hold.RELEASE,
        "An output of the film could not be made. Leave it out, and insert a new task.",
        "names the output; only its process dies, never a worker",
        unbraked="about one cut; films close no gate",
    ),
    FaultRule(
        FaultName.INSUFFICIENT_CREDITS, "credits", "balance less holds under the price",
        "INSUFFICIENT_CREDITS", _FAIL, Hold.NONE,
        "There are not enough credits for this video. Add credits, then retry.",
        "provider never called",
        unbraked="about the user; nothing is paid",
    ),
    FaultRule(
        FaultName.PRICE_MISSING, "credits", "no price for an action",
        "PRICE_MISSING", _FAIL, Hold.NONE,
        "This video has no price yet, so it can't be charged. "
        "The operator sets it in credit_prices, then retry.",
        "provider never called",
        unbraked="nothing is paid; the stages that are paid have their price in the hold",
    ),
    FaultRule(
        FaultName.REQUEST_REFUSED, "submit", "400 with issues, 405, 413",
        "INVALID_REQUEST", _FAIL, Hold.RELEASE,
        "The provider refuses this request. Change the scene's prompt or picture, then retry.",
        unbraked="about the input; nothing is paid",
    ),
    FaultRule(
        FaultName.FRAME_REFUSED, "submit", "400 naming promptImage, for the frame we made",
        None, _RETRY, Hold.KEPT,
        "The provider could not read the still that the video starts from. Retry later.",
        "fresh output URL, then the storage URL, then RETRY",
        first=First.NEXT_ADDRESS,
        brake=_BY_INPUT,
    ),
    FaultRule(
        FaultName.PROVIDER_UNFUNDED, "submit", '400 "not enough credits", 402',
        "PROVIDER_UNFUNDED", _GATE, Hold.KEPT,
        "Video generation is paused: the service's account at the provider needs a top-up.",
        gate=Scope.ACCOUNT,
        probe=Probe.BALANCE,
        one_input=True,
        unbraked="closes its gate",
    ),
    FaultRule(
        FaultName.PROVIDER_DENIED, "submit", "401, 403",
        "PROVIDER_DENIED", _GATE, Hold.KEPT,
        "Video generation is paused: the provider refuses the service's key.",
        "loud",
        gate=Scope.KEY,
        probe=Probe.ACCOUNT,
        one_input=True,
        unbraked="closes its gate",
    ),
    FaultRule(
        FaultName.REQUEST_DENIED, "submit",
        "401, 402, 403 again within a day for the same user, while key and account are in order",
        "REQUEST_DENIED", _RETRY, Hold.KEPT,
        "The provider refuses this request. Change the scene's prompt or picture, then retry.",
        "closes no gate for others",
        brake=Brake(
            Scope.MODEL, Part.SUBMIT, PROVIDER_STORM, PROVIDER_MESSAGE, Probe.TASK,
            input_to_blame=True,
        ),
    ),
    FaultRule(
        FaultName.PROVIDER_QUOTA, "submit", "429 daily limit (by text)",
        "PROVIDER_QUOTA", _GATE, Hold.KEPT,
        "Video generation is paused: the provider's daily limit is reached.",
        gate=Scope.MODEL,
        probe=Probe.DAILY_LIMIT,
        unbraked="closes its gate",
    ),
    FaultRule(
        FaultName.PROVIDER_BUSY, "submit", "429 else",
        "PROVIDER_BUSY", _WAIT, Hold.KEPT,
        "The provider is busy. The task goes on by itself.",
        unbraked="nothing is paid",
    ),
    FaultRule(
        FaultName.PROVIDER_UNREACHABLE, "submit", "never sent (connect error, pool time-out)",
        "PROVIDER_UNREACHABLE", _WAIT, Hold.KEPT,
        "The provider can't be reached. The task goes on by itself.",
        "in place ×3, then WAIT; a storm closes the gate",  # noqa: RUF001 - as in the table
        first=First.SEND_AGAIN,
        brake=_SUBMITTING,
    ),
    FaultRule(
        FaultName.SUBMISSION_UNKNOWN, "submit",
        "may have been accepted: read time-out, dropped connection, 408, 409, 5xx, "
        "200 without a usable id",
        "SUBMISSION_UNKNOWN", _RETRY, Hold.KEPT,
        "The provider did not say whether it accepted the request. "
        "It was stopped here rather than paid for again.",
        "while this stage's possibly paid submissions are below VIDGEN_MAX_SUBMISSIONS, "
        "else FAIL and release; always counted and logged",
        another_submission=True,
        maybe_paid=True,
        brake=_SUBMITTING,
    ),
    FaultRule(
        FaultName.POLL_FAILED, "poll", "5xx, time-out, broken body",
        "PROVIDER_UNREACHABLE", _IN, Hold.KEPT,
        "The provider could not be asked how the generation goes.",
        "says nothing about the generation: slower, until the stage's hard deadline",
        first=First.POLL_AGAIN,
        unbraked="says nothing about the generation, which is followed on",
    ),
    FaultRule(
        FaultName.POLL_DENIED, "poll", "401, 403",
        "PROVIDER_DENIED", _IN, Hold.KEPT,
        "The provider refuses the service's key.",
        "loud; the generation is kept and polled slower",
        first=First.ASK_FOR_THE_KEY,
        unbraked="says nothing about the generation, which is followed on",
    ),
    FaultRule(
        FaultName.GENERATION_GONE, "poll", "404, CANCELLED not by us",
        "GENERATION_GONE", _RETRY, Hold.KEPT,
        "The generation disappeared at the provider. Retry to start a new one.",
        "new submission within the cap",
        another_submission=True,
        absent=True,
        brake=_BY_INPUT,
    ),
    FaultRule(
        FaultName.CONTENT_REJECTED, "failure code", "SAFETY.*, INPUT_PREPROCESSING.SAFETY.*",
        "CONTENT_REJECTED", _FAIL, Hold.RELEASE,
        "The provider's content rules reject this scene. "
        "Change its prompt or its picture; the same input is never sent again.",
        "never resubmitted: it costs money and endangers the account",
        rejected=True,
        unbraked="a verdict about the input",
    ),
    FaultRule(
        FaultName.USER_LIMIT, "submit",
        "a limit of the user: too much lost within a day, too many rejections in a row",
        "USER_LIMIT", _FAIL, Hold.RELEASE,
        "A limit of yours is reached, so nothing was paid for this task. Retry it later.",
        "provider never called; says which limit, what was used and when it opens",
        unbraked="about the user; nothing is paid",
    ),
    FaultRule(
        FaultName.ASSET_INVALID, "failure code", "ASSET.INVALID, THIRD_PARTY.INPUT_VALIDATION",
        "ASSET_INVALID", _FAIL, Hold.RELEASE,
        "The scene's picture can't be used by the provider. Use another one, then retry.",
        unbraked="a verdict about the input",
    ),
    FaultRule(
        FaultName.GENERATION_FAILED, "failure code",
        "INTERNAL.BAD_OUTPUT.*, INTERNAL, absent, unknown",
        "GENERATION_FAILED", _RETRY, Hold.KEPT,
        "The provider could not make this video. Retry later, or change the prompt.",
        another_submission=True,
        brake=_BY_INPUT,
    ),
    FaultRule(
        FaultName.GENERATION_UNAVAILABLE, "failure code",
        "THIRD_PARTY.UNAVAILABLE, INPUT_PREPROCESSING.INTERNAL",
        "PROVIDER_BUSY", _WAIT, Hold.KEPT,
        "The provider is busy. The task goes on by itself.",
        "long",
        another_submission=True,
        pause=Pause.LONG,
        brake=_GENERATING,
    ),
    FaultRule(
        FaultName.GENERATION_OVERDUE, "stage", "deadline passed",
        "GENERATION_OVERDUE", _RETRY, Hold.KEPT,
        "The provider did not finish in time. Retry to start a new generation.",
        "keep polling slowly up to a hard deadline, then cancel it (or give it up) and RETRY",
        another_submission=True,
        brake=_BY_INPUT,
    ),
    FaultRule(
        FaultName.OUTPUT_UNAVAILABLE, "output",
        "403, 404, expired, truncated, a page instead of the file",
        "OUTPUT_UNAVAILABLE", _IN, Hold.KEPT,
        "The finished output could not be fetched yet. The task goes on by itself.",
        "GET the generation again for a fresh URL, then WAIT",
        first=First.FETCH_AGAIN,
        brake=Brake(
            Scope.MODEL, Part.OUTPUT, "OUTPUT_UNAVAILABLE", PROVIDER_MESSAGE, Probe.ACCOUNT
        ),
    ),
    FaultRule(
        FaultName.OUTPUT_UNDECODABLE, "output",
        "bytes that don't decode, and differ on a second GET",
        "GENERATION_FAILED", _RETRY, Hold.KEPT,
        "The provider delivered a broken file. Retry to make a new one.",
        "a rate of them closes the gate",
        another_submission=True,
        first=First.COMPARE,
        brake=_BY_INPUT,
    ),
    FaultRule(
        FaultName.OUTPUT_BROKEN, "output", "bytes that don't decode, the same on a second GET",
        "GENERATION_FAILED", _FAIL, Hold.RELEASE,
        "The provider delivered a broken file. Retry to make a new one.",
        "another GET can't help, and another generation is not paid by itself",
        brake=_BY_INPUT,
    ),
    FaultRule(
        FaultName.OUTPUT_TOO_LARGE, "output", "more bytes than the limit",
        "OUTPUT_TOO_LARGE", _FAIL, Hold.RELEASE,
        "The provider's output is larger than this service stores.",
        brake=_BY_INPUT,
    ),
    FaultRule(
        FaultName.SCRATCH_UNAVAILABLE, "scratch",
        "the worker's own disk, memory or open files: full, gone, read-only, over a quota",
        "SCRATCH_UNAVAILABLE", _WAIT, Hold.KEPT,
        "The service has no room for the file just now. The video is kept, the task goes on by "
        "itself.",
        "the folder is named and made again; the generation is kept; this machine claims nothing "
        "until it has room again",
        brake=Brake(
            Scope.MACHINE, Part.MACHINE, "SCRATCH_UNAVAILABLE", MACHINE_MESSAGE, Probe.MACHINE,
            at_once=True,
        ),
    ),
    FaultRule(
        FaultName.STORAGE_UNAVAILABLE, "storage", "5xx, 544, 429, time-out, transport",
        "STORAGE_UNAVAILABLE", _WAIT, Hold.KEPT,
        "The file store can't be reached. The video is kept, the task goes on by itself.",
        "in place first; the generation is kept",
        first=First.SEND_AGAIN,
        brake=Brake(
            Scope.STORAGE, Part.STORAGE, "STORAGE_UNAVAILABLE", STORAGE_MESSAGE, Probe.STORAGE
        ),
    ),
    FaultRule(
        FaultName.BUCKET_MISSING, "storage", "bucket missing",
        "STORAGE_UNAVAILABLE", _IN, Hold.KEPT,
        "The bucket is missing. It is created and the upload repeated.",
        "create it, again",
        absent=True,
        first=First.CREATE_BUCKET,
        unbraked="corrected in place",
    ),
    FaultRule(
        FaultName.STORAGE_DENIED, "storage", "401, 403 (a rotated key, say)",
        "STORAGE_DENIED", _GATE, Hold.KEPT,
        "Video generation is paused: the file store refuses the service's key.",
        "the generation is kept; a long storage outage also stops new paid submissions",
        gate=Scope.STORAGE,
        probe=Probe.STORAGE,
        unbraked="closes its gate",
    ),
    FaultRule(
        FaultName.STORAGE_MISCONFIGURED, "storage",
        "a bucket's size limit, media types or visibility don't fit",
        "STORAGE_MISCONFIGURED", _GATE, Hold.KEPT,
        "Video generation is paused: the file store is not set up for it.",
        "the generation is kept; loud, names bucket, setting and remedy",
        gate=Scope.STORAGE,
        probe=Probe.STORAGE,
        unbraked="closes its gate",
    ),
    FaultRule(
        FaultName.UPLOAD_REFUSED, "storage",
        "400, 413, 415 of a bucket whose settings fit the file",
        "STORAGE_REFUSED", _WAIT, Hold.KEPT,
        "The file store does not take the video now. It is kept, the task goes on by itself.",
        "the generation is kept; three in a row close the gate",
        brake=Brake(Scope.STORAGE, Part.STORAGE, "STORAGE_REFUSED", STORAGE_MESSAGE, Probe.STORAGE),
    ),
    FaultRule(
        FaultName.STORAGE_REFUSED, "storage",
        "the file is larger than its bucket or the project takes",
        "STORAGE_REFUSED", _FAIL, Hold.RELEASE,
        "The file store refuses this file. The operator checks the bucket's size and type limits.",
        "loud",
        first=First.LOOK_AT_BUCKET,
        brake=Brake(
            Scope.STORAGE, Part.STORAGE, "STORAGE_REFUSED", STORAGE_MESSAGE, Probe.STORAGE,
            input_to_blame=True,
        ),
    ),
    FaultRule(
        FaultName.DATABASE_TRANSIENT, "Postgres",
        "transient (connection, restart, deadlock, time-out)",
        "DATABASE_UNAVAILABLE", _IN, Hold.KEPT,
        "The database can't be reached.",
        "backoff until a fenced write or a heartbeat says lost; past the lease it starts nothing "
        "paid but keeps what it has",
        unbraked="nothing is paid without the database",
    ),
    FaultRule(
        FaultName.LEASE_LOST, "Postgres", "fenced write hit no row",
        None, Disposition.ABANDON, Hold.NOT_OURS,
        "Another worker has taken this task over.",
        unbraked="another worker goes on",
    ),
    FaultRule(
        FaultName.ROW_REFUSED, "Postgres",
        "the task's row refuses a change: an application's trigger, check, key or policy",
        "ROW_REFUSED", Disposition.SET_ASIDE, Hold.KEPT,
        "The application's database refuses to change this task. "
        "The operator finds its reason with `vidgen-worker tasks show`; then retry.",
        "a pause that grows, nothing paid meanwhile; FAIL after max_refusals (vidgen.settings)",
        brake=Brake(
            Scope.ACCOUNT, Part.DATABASE, ROW_REFUSED, DATABASE_MESSAGE, Probe.ROWS,
            input_to_blame=True,
        ),
    ),
    FaultRule(
        FaultName.CANCELLED, "user", "cancel asked",
        "CANCELLED", Disposition.CANCEL, Hold.RELEASE,
        "Cancelled.",
        "cancel the generation if it still runs (read it first), close its checkpoint",
        unbraked="its owner asked",
    ),
    FaultRule(
        FaultName.DRAINING, "process", "SIGTERM",
        None, Disposition.HAND_BACK, Hold.KEPT,
        "The worker stops; another one resumes at the checkpoint.",
        unbraked="another worker goes on",
    ),
    FaultRule(
        FaultName.WORKER_LOST, "worker", "died three times under this task",
        "WORKER_LOST", _FAIL, Hold.RELEASE,
        "The worker died several times while it ran this task. Retry, or tell the operator.",
        "inside the claim",
        unbraked="counted by deaths",
    ),
    FaultRule(
        FaultName.INTERNAL_ERROR, "anything else", "an exception nobody expected",
        "INTERNAL_ERROR", _RETRY, Hold.KEPT,
        "Something went wrong on our side. The operator finds the details in the log.",
        "full traceback in the log",
        brake=Brake(Scope.MACHINE, Part.MACHINE, "INTERNAL_ERROR", MACHINE_MESSAGE, Probe.MACHINE),
    ),
)  # fmt: skip

FAULTS: Mapping[FaultName, FaultRule] = MappingProxyType({rule.name: rule for rule in _RULES})
"""The table of the README, by name."""

_PROBES: Mapping[str, Probe] = MappingProxyType(
    {rule.code: rule.probe for rule in _RULES if rule.code is not None and rule.probe is not None}
    | {rule.brake.reason: rule.brake.probe for rule in _RULES if rule.brake is not None}
)

WHY_IT_WAITS: Mapping[str, str] = MappingProxyType({
    rule.code: rule.message
    for rule in _RULES
    if rule.code and rule.disposition in (Disposition.WAIT, Disposition.GATE)
})  # fmt: skip
"""The `message` of a waiting row, by its code: a sentence that says that the task goes on."""


def probe_of(reason: str) -> Probe:
    """The probe of a gate with this reason, from the row of the fault that closed it."""
    return _PROBES.get(reason, Probe.ACCOUNT)


class Fault(Exception):  # noqa: N818 - "fault" is the word of the vocabulary
    """A classified error.

    `message` is for the user (the rule's own sentence unless given), `details` for the operator.
    `field` names the input at fault, `retry_after` is the pause that the other side asked for, and
    `generation_cost` is the provider's cost in its credits where it is known.
    """

    def __init__(  # noqa: PLR0913 - one value each, all by keyword
        self,
        name: FaultName,
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
    def name(self) -> FaultName:
        """The row of the table."""
        return self.rule.name

    @property
    def code(self) -> str:
        """The task's `error_code` if the task ends by this fault."""
        return self.rule.code or "GENERATION_FAILED"

    @property
    def disposition(self) -> Disposition:
        """The action that follows."""
        return self.rule.disposition

    def visible(self) -> dict[str, Any]:
        """The part of the fault that the task's owner may see."""
        return {"field": self.field} if self.field else {}


USERS_OWN = frozenset({
    "SCENE_NOT_FOUND", "INVALID_REQUEST", "RESOLUTION_UNSUPPORTED", "INSUFFICIENT_CREDITS",
    "CONTENT_REJECTED", "USER_LIMIT", "ASSET_INVALID", "PART_FAILED",
    "PART_UNUSABLE",
})  # fmt: skip
"""Codes that say nothing about the service: the user's order can't be fulfilled."""


def failure_fault(failure_code: str | None, details: str, cost: float | None) -> Fault:
    """Classify the failure code of a generation that ended FAILED.

    Codes are matched by prefix, because their set is open; a code may be absent
    (https://docs.dev.runwayml.com/errors/task-failures/).
    """
    code = (failure_code or "").upper()
    if code.startswith(("SAFETY", "INPUT_PREPROCESSING.SAFETY")):
        name = FaultName.CONTENT_REJECTED
    elif code.startswith(("ASSET.INVALID", "THIRD_PARTY.INPUT_VALIDATION")):
        name = FaultName.ASSET_INVALID
    elif code.startswith(("THIRD_PARTY.UNAVAILABLE", "INPUT_PREPROCESSING.INTERNAL")):
        name = FaultName.GENERATION_UNAVAILABLE
    else:
        name = FaultName.GENERATION_FAILED
    return Fault(name, details=f"{failure_code or 'no failure code'}: {details}",
                 generation_cost=cost)  # fmt: skip


def backoff(first: timedelta, count: int, *, longest: timedelta) -> timedelta:
    """The pause before try `count` + 1: doubling from `first`, plus up to 50 % jitter."""
    seconds = min(first.total_seconds() * 2 ** min(max(count, 0), 30), longest.total_seconds())
    return timedelta(seconds=seconds * random.uniform(1.0, 1.5))  # noqa: S311 - jitter

"""The catalogue of events: each kind of happening has one class.

`bus` defines an event, and delivers it to log, metrics and tests. This module has no behaviour.
"""

# Up to 780 lines: the catalogue of events, one class each.

import logging
from dataclasses import dataclass
from uuid import UUID

from vidgen_worker.telemetry.bus import Event, StageEvent, TaskEvent

# The process.


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """The worker has its row and sends heartbeats."""

    sentence = "Worker started"
    worker: UUID
    concurrency: int
    renders: int
    enabled: bool
    listening: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimsDisabled(Event):
    """RUNWAYML_ENABLED=false."""

    sentence = "RUNWAYML_ENABLED is false: no task is claimed, rows stay pending"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDraining(Event):
    """The worker stops claiming, and hands its tasks back."""

    sentence = "Worker draining"
    worker: UUID
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(Event):
    """The last line of a process."""

    sentence = "Worker stopped"
    worker: UUID
    handed_back: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDeclaredDead(Event):
    """Another worker declared this one dead: it drops its tasks and starts over."""

    sentence = "This worker was declared dead; it starts over under a new id"
    level = logging.ERROR
    worker: UUID
    dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphansHandedBack(Event):
    """This worker handed back rows that named it although it does not run them."""

    sentence = "Tasks without a runner handed back"
    level = logging.WARNING
    tasks: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRefused(Event):
    """A task's row refused a change: the task is set aside, and all others go on."""

    sentence = (
        "A task is set aside: its row refuses a change (a trigger, check, key, policy, lock?)"
    )
    level = logging.ERROR
    task: str
    statement: str
    error: str
    tries: int | None = None
    pause_seconds: float | None = None
    became: str | None = None
    """The status that the row has now; `kept` is one that refuses even its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseTrouble(Event):
    """A statement met a transient error."""

    sentence = "Database trouble; trying again"
    level = logging.WARNING
    query: str
    error: str
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAway(Event):
    """The database, or the connection to it, is away: reported once, until it is back."""

    sentence = "The database is away; running tasks go on, and no paid submission begins"
    level = logging.ERROR
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseBack(Event):
    """The database answers again."""

    sentence = "The database is back"
    level = logging.WARNING
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsServed(Event):
    """The loopback port of metrics and health answers."""

    sentence = "Metrics and health on the loopback port"
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaWallsLacking(Event):
    """This machine's kernel can't isolate the process that decodes outputs completely."""

    sentence = "Outputs are decoded behind fewer walls than this program can raise"
    level = logging.WARNING
    lacking: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUnproven(Event):
    """The file store has not proven yet that it can keep outputs."""

    sentence = "Supabase Storage can't keep paid outputs; no task is claimed until it can"
    level = logging.ERROR
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineUnproven(Event):
    """This machine can't keep or decode outputs."""

    sentence = "This machine can't keep paid outputs; it claims no task until it can"
    level = logging.ERROR
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketNoted(Event):
    """A bucket's setting is narrower than ours, but does not stop the worker."""

    sentence = "A bucket takes less than the settings allow: larger outputs can't be stored"
    level = logging.WARNING
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRead(Event):
    """The number of generations of a model that may be in flight; None means no limit."""

    sentence = "The provider's limit for this model was read"
    model: str
    slots: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsUnread(Event):
    """The provider's account could not be read; the known limits still hold."""

    sentence = "The provider's limits could not be read; the ones known so far still hold"
    level = logging.WARNING
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksForgotten(Event):
    """Private rows of tasks that ended long ago were removed; tasks and ledger stay."""

    sentence = "Private rows of old tasks removed"
    tasks: int
    holds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BooksDisagree(Event):
    """Balances that don't agree with the ledger or the open holds."""

    sentence = "Balances disagree with the ledger or the holds: see `credits audit`"
    level = logging.ERROR
    users: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopFailed(Event):
    """A loop of the worker met an unexpected exception, and goes on."""

    sentence = "A loop of the worker failed and goes on"
    level = logging.ERROR
    loop: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenChanged(Event):
    """LISTEN works, or does not work: then the queue is polled."""

    sentence = "LISTEN"
    listening: bool
    why: str

    def text(self) -> str:
        """Say which of the two."""
        if self.listening:
            return "LISTEN works"
        return (
            "LISTEN does not work: the queue is polled. For instant starts take the direct URL or "
            "the session pooler's (port 5432)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GateClosed(Event):
    """A gate closed: no paid submission of this model begins in this scope."""

    sentence = "Gate closed: no paid submission begins until a probe goes well"
    level = logging.ERROR
    scope: str
    model: str
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOpened(Event):
    """A gate opened: a probe went well, or an operator opened it."""

    sentence = "Gate opened"
    scope: str
    model: str
    code: str
    closed_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateProbed(Event):
    """A probe of a gate did not go well."""

    sentence = "Gate probed: still closed"
    level = logging.WARNING
    scope: str
    model: str
    code: str
    details: str


# A task, from claim to conclude.


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted(TaskEvent):
    """An attempt begins."""

    sentence = "Video generation started"
    user: UUID
    waited_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolutionMapped(TaskEvent):
    """The scenario's resolution was mapped to ratios."""

    sentence = "Resolution mapped"
    level = logging.DEBUG
    resolution: str
    video_ratio: str
    image_ratio: str
    fallback: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResumed(StageEvent):
    """An attempt resumes at a checkpoint."""

    sentence = "Video generation resumed at its checkpoint"
    state: str
    generation: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionBegun(StageEvent):
    """The submission row is written; the paid POST follows."""

    sentence = "Submitting"
    level = logging.DEBUG
    submission: UUID
    model: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionAnswered(StageEvent):
    """The provider accepted."""

    sentence = "Submitted"
    told_elsewhere = frozenset({"submission", "stage", "estimated_cost"})
    submission: UUID
    generation: UUID
    estimated_cost: float | None

    def text(self) -> str:
        """Say of which stage."""
        return f"Submitted {self.stage}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRecorded(StageEvent):
    """The provider's answer is stored in PostgreSQL."""

    sentence = "Submission recorded"
    level = logging.DEBUG
    submission: UUID
    generation: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerUnrecorded(StageEvent):
    """PostgreSQL did not store the answer to a paid POST: it is kept in memory and in the log."""

    sentence = (
        "The database does not take this generation's id; it is kept and written when it can be"
    )
    level = logging.ERROR
    submission: UUID
    generation: UUID
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionUnknown(StageEvent):
    """A submission may have been accepted, and paid."""

    sentence = "The provider did not say whether it accepted; counted as possibly paid"
    level = logging.WARNING
    submission: UUID
    fingerprint: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LateAnswer(StageEvent):
    """A late answer: its generation is ended at the provider."""

    sentence = "A late answer was recorded; its generation is ended"
    level = logging.WARNING
    submission: UUID
    generation: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed(StageEvent):
    """The provider reports progress, 0 to 100 within the stage."""

    sentence = "Video generation progress"
    level = logging.DEBUG
    generation: UUID
    stage_progress: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PollFailed(StageEvent):
    """A poll failed, which says nothing about the generation."""

    sentence = "Reading the generation failed; trying again"
    level = logging.WARNING
    generation: UUID
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelGivenUp(StageEvent):
    """The provider was unreachable for too long: the task ends, its generation may run on."""

    sentence = "The generation can't be cancelled for now; the task ends, and the janitor goes on"
    level = logging.WARNING
    generation: UUID
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOverdue(StageEvent):
    """The stage's deadline has passed; polling continues, slower."""

    sentence = "The generation is overdue; it is polled slowly"
    level = logging.WARNING
    generation: UUID
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationNotOurs(StageEvent):
    """Only another account or key knows the generation: the task is handed back."""

    sentence = "The generation is another account's; its own workers follow it"
    generation: UUID | None
    account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEnded(StageEvent):
    """A generation ended."""

    sentence = "Generation ended"
    model: str
    generation: UUID
    state: str
    cost: float | None
    seconds: float
    repeated: bool | None = None
    """Whether the end was reported before: the output expired, or a successor reads it."""

    def importance(self) -> int:
        """A success is logged at debug level: the line about its output reports it."""
        return logging.DEBUG if self.state == "succeeded" else logging.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationLeftRunning(StageEvent):
    """PostgreSQL was away until the drain's end: a successor resumes when the lease ends."""

    sentence = "Postgres is away: this worker leaves without handing its generation back"
    level = logging.ERROR
    generation: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConformed(StageEvent):
    """The output differed from the order, and was conformed to it."""

    sentence = "Output conformed"
    generation: UUID
    was: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFetched(StageEvent):
    """The output was downloaded and decodes."""

    sentence = "Output fetched"
    level = logging.DEBUG
    generation: UUID
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadBegun(StageEvent):
    """An upload's place is recorded, so that an output without a charge is removed there."""

    sentence = "Upload begun"
    level = logging.DEBUG
    generation: UUID
    bucket: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputUploaded(StageEvent):
    """The output is in Supabase Storage."""

    sentence = "Stored in Supabase"
    told_elsewhere = frozenset({"stage", "bucket", "path", "size", "seconds"})
    """The fields that are left out: the checkpoint has them."""
    generation: UUID
    bucket: str
    path: str
    size: int
    seconds: float

    def text(self) -> str:
        """The sentence, one for each stage, that operators search for."""
        return f"Stored {self.stage} in Supabase"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDone(StageEvent):
    """Checkpoint, charge and row are written."""

    sentence = "Stage done"
    level = logging.DEBUG
    charged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCompleted(TaskEvent):
    """The task is completed: the user has the clip."""

    sentence = "Video generation completed"
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequeued(TaskEvent):
    """The task returned to the queue: another attempt follows later."""

    sentence = "Video generation requeued"
    level = logging.WARNING
    code: str
    details: str
    delay_seconds: float
    counted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLimited(TaskEvent):
    """A limit of the task's user prevented a submission: nothing was paid."""

    sentence = "A user's limit prevents a submission"
    level = logging.WARNING
    user: str
    kind: str
    """`rejected` and `ended` end the task, `waits` puts it back."""
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserBraked(TaskEvent):
    """One user met the same trouble several times: only that user's submissions pause."""

    sentence = "A user's submissions pause: the same trouble in a row"
    level = logging.WARNING
    user: str
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed(TaskEvent):
    """The task has failed."""

    sentence = "Video generation failed"
    level = logging.ERROR
    code: str
    message: str
    details: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnexpectedError(TaskEvent):
    """An exception nobody expected, with its traceback."""

    sentence = "Video generation met an unexpected error"
    level = logging.ERROR
    code: str
    details: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCancelled(TaskEvent):
    """Its owner asked."""

    sentence = "Video generation cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmChecked(TaskEvent):
    """A film's cut can be made, as far as that can be known before its clips exist."""

    sentence = "A film's cut was checked"
    level = logging.DEBUG
    assets: int
    outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsOrdered(TaskEvent):
    """All parts of a film are ordered, and their credits held."""

    sentence = "A film's parts were ordered"
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RenditionStored(TaskEvent):
    """An output of a film is in Supabase Storage, recorded and charged."""

    sentence = "Stored an output of a film in Supabase"
    name: str
    path: str
    size: int
    render_seconds: float
    """From the begin of its making to the end of its upload."""
    charged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmWaits(TaskEvent):
    """A film's parts are ordered; its attempt ends until they have ended."""

    sentence = "A film waits for its parts"
    parts: int
    unfinished: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmWoken(Event):
    """The last part that a film waited for has ended."""

    sentence = "A film is due: all its parts have ended"
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskHandedBack(TaskEvent):
    """A task was handed back: another worker resumes it."""

    sentence = "Video generation handed back"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(TaskEvent):
    """Another worker writes about this task now."""

    sentence = "Lease lost: this worker writes no more about the task"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneWriteRefused(TaskEvent):
    """The application's table refused our write, or was locked; the paid task goes on."""

    sentence = "video_scenes refused the update; the task goes on"
    level = logging.WARNING
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedSceneRefused(Event):
    """A scene refused a write that was made later, because the scene had been locked."""

    sentence = "video_scenes refused a write that was owed; it is dropped"
    level = logging.WARNING
    scene: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayGeneration(Event):
    """A stray was ended at the provider, and its cost booked."""

    sentence = "A generation that no task follows was ended"
    level = logging.WARNING
    task: str
    generation: UUID
    state: str
    cost: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationLeftAlone(Event):
    """No permitted worker has been alive for long: any worker may follow the generation now."""

    sentence = "No worker has this generation's account or key any more; any worker may follow it"
    level = logging.WARNING
    task: str
    generation: UUID | None
    account: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsRemoved(Event):
    """Files of attempts that ended before their charge were removed from Storage."""

    sentence = "Files without a charge were removed from Storage"
    uploads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsKept(Event):
    """Storage did not remove files: they can't be read, and the removal is tried again."""

    sentence = "Storage does not remove files without a charge; the removal is tried again"
    level = logging.WARNING
    bucket: str
    uploads: int
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsLeft(Event):
    """The audit found files that should have been removed long ago."""

    sentence = "Files without a charge are still in Storage after an hour"
    level = logging.ERROR
    uploads: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySent(Event):
    """A webhook has taken an event, of the type `kind`, so many seconds after it was due."""

    sentence = "A webhook was told"
    level = logging.DEBUG
    webhook: str
    delivery: UUID
    kind: str
    status: int
    tries: int
    waited_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFailed(Event):
    """A webhook has not taken an event. `follows`: again, gave up, disabled."""

    sentence = "A webhook did not take an event"
    level = logging.WARNING
    webhook: str
    delivery: UUID
    kind: str
    error: str
    tries: int
    follows: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDisabled(Event):
    """A webhook gets no more events until somebody tests it."""

    sentence = "A webhook is disabled: it is told nothing until a test succeeds"
    level = logging.ERROR
    webhook: str
    error: str


def catalogue() -> list[type[Event]]:
    """Every kind of event, leaves only: kill points and metrics are generated from it."""
    leaves: list[type[Event]] = []
    pending: list[type[Event]] = [Event]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "sentence" in kind.__dict__:
            leaves.append(kind)
    return sorted(leaves, key=lambda kind: kind.__name__)

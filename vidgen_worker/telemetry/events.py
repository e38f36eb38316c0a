"""What happens is said once, here, as an event: the catalogue of all kinds.

`bus` says what an event is, and brings it to log, metrics and tests. Nothing here does anything.
"""

# Up to 700 lines: the catalogue of events, one class each.

import logging
from dataclasses import dataclass
from uuid import UUID

from vidgen_worker.telemetry.bus import Event, StageEvent, TaskEvent

# The process.


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """The worker has a row and beats."""

    sentence = "Worker started"
    worker: UUID
    concurrency: int
    enabled: bool
    listening: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimsDisabled(Event):
    """RUNWAYML_ENABLED=false."""

    sentence = "RUNWAYML_ENABLED is false: nothing is claimed, rows stay pending"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDraining(Event):
    """No more claims; what runs is handed back."""

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
    """Another worker took this one for dead: it drops everything and starts over."""

    sentence = "This worker was declared dead; it starts over under a new id"
    level = logging.ERROR
    worker: UUID
    dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphansHandedBack(Event):
    """Rows that named this worker although it does not run them."""

    sentence = "Tasks without a runner handed back"
    level = logging.WARNING
    tasks: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRefused(Event):
    """A task's row refused a change: it is set aside, and everything else goes on."""

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
    """A statement failed in a way that may pass."""

    sentence = "Database trouble; trying again"
    level = logging.WARNING
    query: str
    error: str
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAway(Event):
    """The database, or the way to it, is gone: said once, until it is back."""

    sentence = "The database is away; what runs goes on, and nothing paid begins"
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
    """The loopback port answers."""

    sentence = "Metrics and health on the loopback port"
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaWallsLacking(Event):
    """This machine's kernel can't keep the process that decodes outputs to itself as it should."""

    sentence = "Outputs are decoded behind fewer walls than this program can raise"
    level = logging.WARNING
    lacking: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUnproven(Event):
    """The file store has not proven yet that it can keep what is paid for."""

    sentence = "Supabase Storage can't keep what is paid for; nothing is claimed until it can"
    level = logging.ERROR
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineUnproven(Event):
    """This machine can't keep, or look at, what is paid for."""

    sentence = "This machine can't keep what is paid for; it claims nothing until it can"
    level = logging.ERROR
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketNoted(Event):
    """A setting of a bucket that may be lived with."""

    sentence = "A bucket takes less than the settings allow: what is larger can't be stored"
    level = logging.WARNING
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRead(Event):
    """How many generations of a model may be in flight over the fleet; None is any number."""

    sentence = "The provider's limit for this model was read"
    model: str
    slots: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsUnread(Event):
    """The provider's account could not be read; what was known of its limits still holds."""

    sentence = "The provider's limits could not be read; the ones known so far still hold"
    level = logging.WARNING
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksForgotten(Event):
    """The private rows of tasks that ended long ago are gone; tasks and ledger stay."""

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
    """A loop of the worker met an exception nobody expected; it goes on."""

    sentence = "A loop of the worker failed and goes on"
    level = logging.ERROR
    loop: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenChanged(Event):
    """LISTEN works, or does not: then the queue is polled."""

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
    """Nothing paid of this model starts in this scope."""

    sentence = "Gate closed: nothing paid starts until a probe goes well"
    level = logging.ERROR
    scope: str
    model: str
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOpened(Event):
    """A probe went well, or an operator opened it."""

    sentence = "Gate opened"
    scope: str
    model: str
    code: str
    closed_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateProbed(Event):
    """A probe did not go well."""

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
    """What the scenario asked for, and what it maps to."""

    sentence = "Resolution mapped"
    level = logging.DEBUG
    resolution: str
    video_ratio: str
    image_ratio: str
    fallback: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResumed(StageEvent):
    """An attempt goes on at a checkpoint."""

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
    """The answer is safe in Postgres."""

    sentence = "Submission recorded"
    level = logging.DEBUG
    submission: UUID
    generation: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerUnrecorded(StageEvent):
    """Postgres does not take the answer to a paid POST: it is kept in memory, and said here."""

    sentence = (
        "The database does not take this generation's id; it is kept and written when it can be"
    )
    level = logging.ERROR
    submission: UUID
    generation: UUID
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionUnknown(StageEvent):
    """It may have been accepted, and paid."""

    sentence = "The provider did not say whether it accepted; counted as possibly paid"
    level = logging.WARNING
    submission: UUID
    fingerprint: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LateAnswer(StageEvent):
    """An answer that nobody follows any more: its generation is ended at the provider."""

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
    """Reading a generation failed: it says nothing about the generation."""

    sentence = "Reading the generation failed; trying again"
    level = logging.WARNING
    generation: UUID
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelGivenUp(StageEvent):
    """The provider could not be asked for long: the task ends, its generation may live on."""

    sentence = "The generation can't be cancelled for now; the task ends, and the janitor goes on"
    level = logging.WARNING
    generation: UUID
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOverdue(StageEvent):
    """The stage's deadline has passed; polling goes on, slower."""

    sentence = "The generation is overdue; it is polled slowly"
    level = logging.WARNING
    generation: UUID
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationNotOurs(StageEvent):
    """It is known to another account, or only to the key that made it: handed back for those."""

    sentence = "The generation is another account's; its own workers follow it"
    generation: UUID | None
    account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEnded(StageEvent):
    """The provider finished, one way or the other."""

    sentence = "Generation ended"
    model: str
    generation: UUID
    state: str
    cost: float | None
    seconds: float
    repeated: bool | None = None
    """True where its end was said before: its output is gone by now, or a successor reads it."""

    def importance(self) -> int:
        """What went well is told by the line about its output."""
        return logging.DEBUG if self.state == "succeeded" else logging.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationLeftRunning(StageEvent):
    """Postgres was away until the drain's end: the lease runs out, and a successor resumes."""

    sentence = "Postgres is away: this worker leaves without handing its generation back"
    level = logging.ERROR
    generation: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConformed(StageEvent):
    """The output was not quite what was asked for, and was brought to it."""

    sentence = "Output conformed"
    generation: UUID
    was: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFetched(StageEvent):
    """The output is here and decodes."""

    sentence = "Output fetched"
    level = logging.DEBUG
    generation: UUID
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadBegun(StageEvent):
    """Its place in Storage is recorded: what is not charged after all is removed there."""

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
    """All of it is in its checkpoint."""
    generation: UUID
    bucket: str
    path: str
    size: int
    seconds: float

    def text(self) -> str:
        """The two sentences that operators search for."""
        return f"Stored {self.stage} in Supabase"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDone(StageEvent):
    """Checkpoint, charge and row are written."""

    sentence = "Stage done"
    level = logging.DEBUG
    charged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCompleted(TaskEvent):
    """The clip is the user's."""

    sentence = "Video generation completed"
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequeued(TaskEvent):
    """Not now."""

    sentence = "Video generation requeued"
    level = logging.WARNING
    code: str
    details: str
    delay_seconds: float
    counted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLimited(TaskEvent):
    """A limit of its user kept a submission back: nothing was paid."""

    sentence = "A user's limit keeps a submission back"
    level = logging.WARNING
    user: str
    kind: str
    """`rejected` and `ended` end the task, `waits` puts it back."""
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserBraked(TaskEvent):
    """The same trouble in a row of one user: he alone is braked."""

    sentence = "A user's submissions pause: the same trouble in a row"
    level = logging.WARNING
    user: str
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed(TaskEvent):
    """It ends here."""

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
    """This worker stops; another one resumes."""

    sentence = "Video generation handed back"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(TaskEvent):
    """Another worker writes about this task now."""

    sentence = "Lease lost: this worker falls silent about the task"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneWriteRefused(TaskEvent):
    """The application's own table refused our write, or was locked; the paid task goes on."""

    sentence = "video_scenes refused the update; the task goes on"
    level = logging.WARNING
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedSceneRefused(Event):
    """A scene was locked when a task wrote it, and refused the write when that was made later."""

    sentence = "video_scenes refused a write that was owed; it is dropped"
    level = logging.WARNING
    scene: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayGeneration(Event):
    """A generation that no task follows: ended at the provider, its cost booked."""

    sentence = "A generation that no task follows was ended"
    level = logging.WARNING
    task: str
    generation: UUID
    state: str
    cost: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationLeftAlone(Event):
    """No worker that may follow it has been heard of for long; a 404 is its end from now on."""

    sentence = "Nobody with a generation's account or key works here any more; anyone asks for it"
    level = logging.WARNING
    task: str
    generation: UUID | None
    account: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsRemoved(Event):
    """Files of attempts that ended before they were charged are gone from Storage."""

    sentence = "Files that nobody has paid for were removed from Storage"
    uploads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsKept(Event):
    """Storage did not remove them: they are unreadable, and are tried again in some minutes."""

    sentence = "Storage does not remove files that nobody has paid for; they are tried again"
    level = logging.WARNING
    bucket: str
    uploads: int
    code: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsLeft(Event):
    """The audit has found files that should have been removed long ago."""

    sentence = "Files that nobody has paid for are still in Storage after an hour"
    level = logging.ERROR
    uploads: int
    oldest_seconds: float


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

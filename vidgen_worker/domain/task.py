"""The nouns: what a task, a checkpoint, an artifact and an outcome are.

Values only: frozen dataclasses and enums. Nothing here does input or output, reads a clock or
knows of a database or a provider. The words are the vocabulary of the README, one per thing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NewType
from uuid import UUID


class Status(StrEnum):
    """The five words of `video_generation_tasks.status`."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether a task that says this has ended."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


StageName = NewType("StageName", str)
"""A stage's name; `pipeline.stages.PIPELINE` lists them in their order."""


class CheckpointState(StrEnum):
    """How far a stage has come: each word is written after what it names is safe in Postgres."""

    SUBMITTING = "submitting"
    GENERATING = "generating"
    STORING = "storing"
    DONE = "done"


class Answer(StrEnum):
    """The provider's answer to a paid POST."""

    GENERATION = "generation"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class GenerationEnd(StrEnum):
    """How a generation ended, as its submission's `ended_state` has it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    GONE = "gone"
    """The provider no longer knows the generation."""
    UNDECODABLE = "undecodable"
    """The generation succeeded, but its output can't be decoded."""
    GIVEN_UP = "given up"
    """The provider did not answer for too long, or did not end it."""


class Fate(StrEnum):
    """The fate of a generation whose id has just been recorded."""

    FOLLOWED = "followed"
    KEPT = "kept"
    """For a later attempt: this one has lost the task."""
    SUPERSEDED = "superseded"
    """Another generation is followed: this one is to be ended at the provider."""


class Met(StrEnum):
    """The state of a task that was set aside, when its pause is over."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    """Its row refused too often, but accepted the task's end."""
    CANCELLED = "cancelled"
    KEPT = "kept"
    """Its row refused too often, and refuses the task's end as well."""
    LOCKED = "locked"
    """Another transaction holds its row."""
    DELETED = "deleted"


class Funding(StrEnum):
    """The answer to a hold of the user's credits for a task."""

    HELD = "held"
    REFUSED = "refused"
    PRICE_MISSING = "price_missing"


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write to one task: every statement about it carries all three values.

    The attempt alone is no fence: a hand-back or a cancel does not change the number.
    """

    task_id: UUID
    attempt: int
    worker_id: UUID


@dataclass(frozen=True, slots=True)
class Task:
    """A claimed row of `public.video_generation_tasks`, as the claim returned it."""

    fence: Fence
    user_id: UUID
    scene_id: UUID | None
    failures: int
    max_failures: int
    progress: float
    created_at: datetime
    cancel_requested: bool = False
    alone: bool = False
    film: bool = False
    renders: bool = False
    """A film with outputs: its attempts take a render place."""

    @property
    def id(self) -> UUID:
        """The task's id."""
        return self.fence.task_id


@dataclass(frozen=True, slots=True)
class Scene:
    """A task's scene, as the application's `video_scenes` and `video_scenarios` describe it.

    `resolution` is None when the scenario is missing or names none. `duration` is in seconds.
    """

    id: UUID
    image_prompt: str | None
    visual_prompt: str | None
    product_reference_image_url: str | None
    duration: int | None
    resolution: str | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored output. `size` is in bytes, `sha256` is the hex digest of those bytes."""

    bucket: str
    path: str
    media_type: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far one stage of one task has come, as Postgres holds it.

    `request` is frozen when the stage first goes to `submitting`; `generation_id` is set from
    `generating` on, `artifact` when the stage is `done`. `sent_at` and `now` are the database's
    clock, so that their difference needs no agreement between machines. `account` is the label of
    the one that paid, `followed_here` whether this worker may follow the generation.
    `submission_id` is None, and `account` empty, where the output was made here.
    """

    stage: StageName
    state: CheckpointState
    request: Mapping[str, Any]
    submission_id: UUID | None
    sent_at: datetime
    answer: Answer | None
    generation_id: UUID | None
    generation_started_at: datetime | None
    artifact: Artifact | None
    now: datetime
    account: str
    followed_here: bool


@dataclass(frozen=True, slots=True)
class Completed:
    """The clip is stored: `video_url` is signed and works until `good_until`, in `boot_time`.

    The machine's calendar is not used: times of the row come from the database. `seconds` is the
    time since the first claim, where the last stage has written the end of the task. A film's clip
    is its first output with pictures that move; without one both are None.
    """

    video_url: str | None
    good_until: float | None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Requeued:
    """The task returns to `pending` after `delay`. `failed` says whether it costs one failure.

    `waiting` is True where the task waits for a service to answer, which is limited in time; False
    where it waits for its turn or for an operator, which is not limited; None where neither is so.
    """

    delay: timedelta
    failed: bool
    code: str
    details: str
    waiting: bool | None = None


@dataclass(frozen=True, slots=True)
class WaitsForParts:
    """A film's parts are ordered, and so many have not ended: back to `pending` until then."""

    parts: int
    unfinished: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The task has failed: `message` is for the user, `details` for the operator's log."""

    code: str
    message: str
    details: str
    visible: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The task's owner cancelled it, and none of its generations runs any more."""


@dataclass(frozen=True, slots=True)
class HandedBack:
    """This worker stops; another one resumes at the checkpoint. No budget is charged."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """The task's row refused a change: the task is left alone until a pause is over.

    `statement` names the statement that was refused, `error` is the database's answer. `verdict` is
    the end that the task should get: it is written later, so that nothing is paid again; None means
    that the task goes on. `locked` says that another transaction held the row, which passes.
    """

    statement: str
    error: str
    verdict: "Failed | Cancelled | None" = None
    locked: bool = False


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The lease is lost: another worker writes about this task now, and this one writes nothing."""


Outcome = (
    Completed | Requeued | WaitsForParts | Failed | Cancelled | HandedBack | SetAside | Abandoned
)

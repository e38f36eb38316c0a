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
"""A stage's name; which there are, and in which order, says `pipeline.stages.PIPELINE`."""


class CheckpointState(StrEnum):
    """How far a stage has come: each word is written after what it names is safe in Postgres."""

    SUBMITTING = "submitting"
    GENERATING = "generating"
    STORING = "storing"
    DONE = "done"


class Answer(StrEnum):
    """What the provider said to a paid POST."""

    GENERATION = "generation"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class GenerationEnd(StrEnum):
    """How a generation ended, as its submission's `ended_state` has it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    GONE = "gone"
    """The provider knows it no more."""
    UNDECODABLE = "undecodable"
    """It succeeded, and its output is of no use."""
    GIVEN_UP = "given up"
    """The provider could not be asked for too long, or would not end it."""


class Fate(StrEnum):
    """What becomes of a generation whose id has just been recorded."""

    FOLLOWED = "followed"
    KEPT = "kept"
    """For a later attempt: this one has lost the task."""
    SUPERSEDED = "superseded"
    """Another generation is followed: this one is to be ended at the provider."""


class Met(StrEnum):
    """What a task was found to be when the pause after its row's refusal was over."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    """Its row has refused too often, and took its end."""
    CANCELLED = "cancelled"
    KEPT = "kept"
    """Its row has refused too often, and refuses even its end."""
    LOCKED = "locked"
    """Another transaction holds its row."""
    DELETED = "deleted"


class Funding(StrEnum):
    """Whether the user's credits for a task could be held."""

    HELD = "held"
    REFUSED = "refused"
    PRICE_MISSING = "price_missing"


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write to one task: every statement about it carries all three values.

    Attempt alone is no fence: after a hand-back or a cancel the number is still the same.
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

    @property
    def id(self) -> UUID:
        """The task's id."""
        return self.fence.task_id


@dataclass(frozen=True, slots=True)
class Scene:
    """What the application's `video_scenes` and `video_scenarios` say about a task's scene.

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
    """The clip is stored: `video_url` is signed and works until then, by `boot_time`.

    Not by a machine's calendar: the row's time is the database's. None: a film without a clip of
    its own.
    """

    video_url: str | None
    good_until: float | None


@dataclass(frozen=True, slots=True)
class Requeued:
    """Not now: back to `pending` after `delay`. `failed` says whether it costs one failure.

    `waiting`: for somebody to answer, which is counted (True); for its turn or for an operator,
    which is not (False); None for neither.
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
    """The task ends here: `message` is for the user, `details` for the operator's log."""

    code: str
    message: str
    details: str
    visible: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The user asked, and nothing of it runs at the provider any more."""


@dataclass(frozen=True, slots=True)
class HandedBack:
    """This worker stops; another one resumes at the checkpoint. It costs no budget."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """The task's row refused a change: nothing is done to it until a pause is over.

    `statement` is what was to be written, `error` what the database said. `verdict` is the end that
    the task was to have, so that it is written later and nothing is paid again; None: it goes on.
    `locked`: another transaction held the row, which passes.
    """

    statement: str
    error: str
    verdict: "Failed | Cancelled | None" = None
    locked: bool = False


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The lease is lost: somebody else writes about this task now, we fall silent."""


Outcome = (
    Completed | Requeued | WaitsForParts | Failed | Cancelled | HandedBack | SetAside | Abandoned
)

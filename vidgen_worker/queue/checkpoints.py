"""The statements of an attempt under way: its start, its uploads, stages and progress.

Paid requests are written in `submissions`, the task's end in `conclusions`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg

from vidgen_worker.database.pool import Row, Rows
from vidgen_worker.database.trouble import (
    DatabaseUnavailableError,
    LockedError,
    StatementStuckError,
    one_line,
)
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.task import (
    Answer,
    Artifact,
    Cancelled,
    Checkpoint,
    CheckpointState,
    Completed,
    Failed,
    Fence,
    Funding,
    StageName,
)
from vidgen_worker.queue.caller import Caller, scene_said
from vidgen_worker.queue.errors import RowRefusedError
from vidgen_worker.queue.verdicts import verdict_of
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import DatabaseTrouble, RowRefused


@dataclass(frozen=True, slots=True)
class Step:
    """A milestone that the task's row shows. `progress` is 0 to 100."""

    progress: float
    current_step: str
    message: str


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an output in Storage. It is recorded before the upload begins."""

    id: UUID
    bucket: str
    path: str


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the task's row that the end of a stage sets."""

    image_path: str | None = None
    image_url: str | None = None
    video_path: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The data that an attempt starts from. `scene` is None when absent or another user's.

    `funding` is None where no credits were asked for: its end is known, or its cancel was asked.
    """

    cancel_requested: bool
    cancel_age: timedelta
    """How long ago its owner asked to cancel."""
    scene: Mapping[str, Any] | None
    inputs: str
    checkpoints: Mapping[StageName, Checkpoint]
    closed: frozenset[StageName]
    """Stages whose checkpoint is `submitting` although its submission has ended."""
    verdict: Failed | Cancelled | None
    """The end that an earlier attempt decided and could not write."""
    funding: Funding | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of the statement that ends a stage.

    `charged` is the number of credits charged now, `inputs` the digest of the scene as it is.
    `seconds` is the time since the first claim, where the task is completed by it.
    """

    charged: int
    inputs: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """Progress of one task, to be written with that of others in one statement.

    `seconds_left` is the time until the task's expected end, None where that is unknown; a new
    value of it alone causes no write.
    """

    fence: Fence
    progress: float
    stage_progress: float | None
    message: str
    seconds_left: float | None = field(default=None, compare=False)


class Checkpoints:
    """The reads and writes of one attempt between its claim and its end."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def load(self, fence: Fence) -> Loaded:
        """Read scene and checkpoints. Raises LeaseLostError."""
        return _loaded(await self._caller.fenced("load_task", fence, **self._caller.key.names()))

    async def start(self, fence: Fence) -> Loaded:
        """Read as `load` does, and hold credits for the stages that are not stored yet."""
        rows = await self._caller.fenced(
            "start_task", fence, credits=self._caller.settings.credits,
            scene_updates=self._caller.settings.vidgen_scene_updates, **self._caller.key.names(),
        )  # fmt: skip
        scene_said(fence, rows[0])
        return _loaded(rows)

    async def finish_stage(  # noqa: PLR0913, PLR0917 - one value of the row each
        self, fence: Fence, stage: StageName, model: str, artifact: Artifact, upload_id: UUID,
        columns: Columns, step: Step, completed: Completed | None = None,
    ) -> Finished:  # fmt: skip
        """Write checkpoint `done`, the charge and the task's row, and its end where it `completed`.

        If the row refuses the end, the stage is written without it, and `seconds` is None.
        Raises LeaseLostError.
        """
        finish = functools.partial(
            self._caller.fenced, "finish_stage", fence, stage=stage,
            credits=self._caller.settings.credits,
            provider=self._caller.key.provider, scopes=self._caller.key.scopes.all(), model=model,
            scene_updates=self._caller.settings.vidgen_scene_updates, upload_id=upload_id,
            bucket=artifact.bucket, path=artifact.path, media_type=artifact.media_type,
            size=artifact.size, sha256=artifact.sha256, image_path=columns.image_path,
            image_url=columns.image_url, video_path=columns.video_path, **shown(step),
        )  # fmt: skip
        try:
            rows = await finish(paid=completed is None, **signed(completed))
        except (RowRefusedError, StatementStuckError):
            if completed is None:
                raise
            rows = await finish(paid=True, **signed(None))
        scene_said(fence, rows[0])
        seconds = seconds_of(fence, rows[0]["completed"]) if rows[0]["completed"] else None
        if rows[0]["troubled"]:
            await self._relieve(model)
        return Finished(int(rows[0]["charged"]), rows[0]["inputs"] or "", seconds)

    async def _relieve(self, model: str) -> None:
        """End what went wrong with this model in a row: a stage went well.

        The stage is stored and charged, and the task may have ended with it: what fails here must
        not change what is told of it, or keep its slot. The next stage that goes well comes again.
        """
        try:
            await self._caller.once(
                "relieve", provider=self._caller.key.provider,
                scopes=self._caller.key.scopes.all(), model=model,
            )  # fmt: skip
        except LockedError:
            pass  # another stage does it now
        except (DatabaseUnavailableError, psycopg.Error) as error:
            emit(DatabaseTrouble(query="relieve", error=one_line(error), tries=1))

    async def report(self, reports: Sequence[Reported]) -> list[UUID]:
        """Write the progress of many tasks in one statement; tasks with a lost fence are skipped.

        Returns the tasks whose rows refuse it: the rows are then written one by one.
        """
        try:
            await self._report(reports)
        except (psycopg.Error, LockedError) as error:
            if len(reports) == 1:
                refused = RowRefusedError("report", error)
                task_id = reports[0].fence.task_id
                emit(RowRefused(task=str(task_id), statement="report", error=refused.error))
                return [task_id]
        else:
            return []
        return [task_id for one in reports for task_id in await self.report([one])]

    async def _report(self, reports: Sequence[Reported]) -> None:
        await self._caller.once(
            "report", worker_id=self._caller.worker_id,
            task_ids=[r.fence.task_id for r in reports],
            attempts=[r.fence.attempt for r in reports],
            progress=[r.progress for r in reports],
            stage_progress=[r.stage_progress for r in reports],
            messages=[r.message for r in reports],
            seconds_left=[r.seconds_left for r in reports],
        )  # fmt: skip


def _loaded(rows: Rows) -> Loaded:
    funding = rows[0].get("funding")
    return Loaded(
        cancel_requested=rows[0]["cancel_requested"],
        cancel_age=timedelta(seconds=rows[0]["cancel_age"] or 0),
        scene=rows[0]["scene"],
        inputs=rows[0]["inputs"] or "",
        checkpoints={StageName(r["stage"]): _checkpoint(r) for r in rows if r["stage"]},
        closed=frozenset(
            StageName(r["stage"])
            for r in rows
            if r["state"] == CheckpointState.SUBMITTING
            and (r["ended_at"] is not None or r["answer"] in (Answer.REFUSED, Answer.UNKNOWN))
        ),
        verdict=next((verdict_of(r["verdict"]) for r in rows if r["verdict"]), None),
        funding=Funding(funding) if funding else None,
    )


def signed(completed: Completed | None) -> dict[str, Any]:
    """The address that a completed task shows, and for how long it is good."""
    if completed is None:
        return {"signed_url": None, "good_for": None}
    return {"signed_url": completed.video_url, "good_for": good_for(completed)}


def good_for(completed: Completed) -> Callable[[], timedelta | None]:
    """How long the address still works when it is asked; None: there is none.

    Each try of a statement asks again: a try after an outage must not promise the time before it.
    """

    def left() -> timedelta | None:
        if completed.good_until is None:
            return None
        return timedelta(seconds=completed.good_until - boot_time())

    return left


def seconds_of(fence: Fence, completed: Row) -> float:
    """Seconds since the first claim of a task that is completed; says what its scene refused."""
    scene_said(fence, completed)
    return float(completed["seconds"])


def shown(step: Step) -> dict[str, Any]:
    """What the task's row shows of a step."""
    return {
        "progress": step.progress,
        "current_step": step.current_step,
        "message": step.message,
    }


def _checkpoint(row: Row) -> Checkpoint:
    return Checkpoint(
        stage=StageName(row["stage"]),
        state=CheckpointState(row["state"]),
        request=row["request"],
        submission_id=row["submission_id"],
        sent_at=row["sent_at"],
        answer=Answer(row["answer"]) if row["answer"] else None,
        generation_id=row["generation_id"],
        generation_started_at=row["generation_started_at"],
        artifact=Artifact(row["bucket"], row["path"], row["media_type"], row["size"], row["sha256"])
        if row["path"]
        else None,
        now=row["now"],
        account=row["account"] or "",
        followed_here=row["followed_here"],
    )

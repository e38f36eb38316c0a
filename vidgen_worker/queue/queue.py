"""The queue's verbs, one named query each: claim, heartbeat, checkpoint, report, conclude.

Typed and thin: what a row means is decided here once, what follows from it elsewhere. Every write
about a task carries its fence; a write that hits no row raises `LeaseLostError`, and the caller
falls silent about that task.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

from vidgen_worker.config import Settings
from vidgen_worker.database.pool import LOCK_PATIENCE, Databases, Row, Rows
from vidgen_worker.database.trouble import LockedError
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import FAULTS, FaultName
from vidgen_worker.domain.keys import ALL_MODELS, Gate, Key
from vidgen_worker.domain.resolution import Resolution
from vidgen_worker.domain.task import (
    Answer,
    Artifact,
    Cancelled,
    Checkpoint,
    CheckpointState,
    Completed,
    Failed,
    Fate,
    Fence,
    Funding,
    Requeued,
    SetAside,
    StageName,
    Task,
)
from vidgen_worker.providers.protocol import Accepted, Request
from vidgen_worker.queue.errors import (
    BrakedError,
    BucketsNotSharedError,
    CancelAskedError,
    GateClosedError,
    LeaseLostError,
    LimitKind,
    NoSlotError,
    RowRefusedError,
    SubmissionCapError,
    UserLimitedError,
)
from vidgen_worker.queue.leases import Heartbeat
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import OwedSceneRefused, RowRefused, SceneWriteRefused

LANE = 1
"""The lane of the two models in the settings."""
ABSENCE = timedelta(hours=1)
"""Anyone may follow a generation when no worker that may has been heard of for so long."""


@dataclass(frozen=True, slots=True)
class Step:
    """A milestone: what the row shows. `progress` is 0 to 100."""

    progress: float
    current_step: str
    message: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim took, and whether rows are still waiting."""

    tasks: list[tuple[Task, float]]
    more: bool
    cleared: bool = False
    """Whether users left the line who had nothing due any more: the next claim may find others."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a heartbeat came back with."""

    alive: bool
    lost: list[tuple[UUID, int]]
    cancel: list[tuple[UUID, int]]
    orphans: list[tuple[UUID, int]]
    cancel_waiting: bool
    """Whether a waiting task is to be cancelled at the provider."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an attempt starts from. `scene` is None when absent or somebody else's."""

    cancel_requested: bool
    cancel_age: timedelta
    """How long ago its owner asked to cancel."""
    scene: Mapping[str, Any] | None
    inputs: str
    checkpoints: Mapping[StageName, Checkpoint]
    closed: frozenset[StageName]
    """Stages whose checkpoint is `submitting` although its submission has ended."""
    verdict: Failed | Cancelled | None
    """How the task is to end, where that was found out before and could not be written."""


@dataclass(frozen=True, slots=True)
class Noted:
    """How many tasks and users have met a trouble in a row.

    `weighed` counts all users together as one for whom the model never worked, while it has for
    others; `braked` says that this user's own submissions pause from now on.
    """

    tasks: int
    users: int
    weighed: int
    braked: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """What the end of a stage came back with.

    `charged` are the credits charged just now, `inputs` the digest of the scene as it is.
    """

    charged: int
    inputs: str


@dataclass(frozen=True, slots=True)
class Reported:
    """Progress of one task, to be written with others in one statement."""

    fence: Fence
    progress: float
    stage_progress: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers together: numbers named as their metrics, closed gates, slots.

    A closed gate is (scope, model, reason).
    Slots are of a limited model: (model, how many there are, how many are taken).
    """

    numbers: dict[str, float]
    closed: list[tuple[str, str, str]]
    slots: list[tuple[str, int, int]]


class Queue:
    """One worker's view of the queue. `worker_id` is new for every life of a worker."""

    def __init__(
        self, databases: Databases, settings: Settings, key: Key, give_up: Callable[[], bool]
    ) -> None:
        self.db = databases.work
        self._claims = databases.claims
        self._pulse = databases.pulse
        self.settings = settings
        self.key = key
        self.worker_id = uuid4()
        self._give_up = give_up

    # The worker.

    async def register(self, host: str, pid: int, version: str) -> None:
        """Write the worker's row. Raises BucketsNotSharedError where clips could not be signed."""
        images = self.settings.storage_bucket_images
        videos = self.settings.storage_bucket_videos
        rows = await self.db.run(
            "share_buckets", self._give_up, images_bucket=images, videos_bucket=videos
        )
        if not rows[0]["shared"]:
            msg = (
                f"the storage policy goes by other buckets than {images} and {videos}, and this "
                "role may not change that: run `vidgen-worker migrate` as the database's owner, "
                "with STORAGE_BUCKET_IMAGES and STORAGE_BUCKET_VIDEOS as here, or correct them"
            )
            raise BucketsNotSharedError(msg)
        await self.db.run(
            "register_worker", self._give_up, worker_id=self.worker_id, host=host, pid=pid,
            version=version, **self.key.names(),
            # 0: never asked to make room for a task that is to run alone.
            concurrency=self.settings.vidgen_concurrency if self.settings.runwayml_enabled else 0,
            lease=self.settings.vidgen_lease,
        )  # fmt: skip
        await self.db.run("expect_limit", self._give_up, **self._models())
        for model, limit in self.limits_set().items():
            await self.db.run("set_limit", self._give_up, **self._limit(model, limit))

    async def heartbeat(
        self, held: Sequence[Fence], running: int, *, sweep: bool, steady: bool
    ) -> Verdict:
        """Renew the lease once; raises DatabaseUnavailableError, which says nothing about it."""
        rows = await self._pulse.once(
            "heartbeat", worker_id=self.worker_id, running=running, steady=steady, sweep=sweep,
            task_ids=[fence.task_id for fence in held], attempts=[fence.attempt for fence in held],
        )  # fmt: skip

        def pick(kind: str) -> list[tuple[UUID, int]]:
            return [(row["id"], row["attempt"]) for row in rows if row["kind"] == kind]

        return Verdict(
            alive=bool(pick("alive")),
            lost=pick("lost"),
            cancel=pick("cancel"),
            orphans=pick("orphan"),
            cancel_waiting=bool(pick("cancel_waiting")),
        )

    async def line_up(self) -> None:
        """Merge new and newly due rows into the line of turns."""
        await self._claims.once("line_up")

    async def claim(self, slots: int, *, idle: bool) -> Claimed:
        """Take up to `slots` waiting tasks: those that can go on, or, without such, new ones."""
        claimed = await self._begin(slots, idle=idle, resumed=False)
        if claimed.tasks:
            return claimed
        found = await self._claims.once(
            "still_waiting", worker_id=self.worker_id, idle=idle, **self._models_claimed()
        )
        state = found[0]
        if state["resumable"]:
            rows = await self._claims.once(
                "resume", worker_id=self.worker_id, slots=slots, idle=idle, **self._models_claimed()
            )
            if rows:
                return Claimed(self._taken(rows), more=True)
            # They were not for this worker, or another one has just taken them.
            claimed = await self._begin(slots, idle=idle, resumed=True)
            if claimed.tasks:
                return claimed
        if not state["waiting"]:
            # What was locked is passed over from now on: the next claim finds what is behind it.
            return Claimed([], more=claimed.more or bool(state["resumable"]))
        left = await self._claims.once("clear_line", lane=LANE)
        return Claimed([], more=True, cleared=bool(left))

    async def _begin(self, slots: int, *, idle: bool, resumed: bool) -> Claimed:
        """Line up, then begin an attempt on up to `slots` new tasks."""
        rows = await self._claims.pair(
            "line_up", "claim", worker_id=self.worker_id, slots=slots, idle=idle, resumed=resumed,
            max_running_per_user=self.settings.vidgen_max_running_per_user,
            **self._models_claimed(),
        )  # fmt: skip
        taken = self._taken(rows)
        # A row that refused is set aside now: the next claim finds others.
        more = any(row["more"] for row in rows) or len(taken) < len(rows)
        return Claimed(taken, more=more)

    def _taken(self, rows: Sequence[Row]) -> list[tuple[Task, float]]:
        """The tasks that were begun; says which rows refused."""
        for row in rows:
            if row["refused"]:
                emit(RowRefused(task=str(row["id"]), statement="claim", error=row["refused"]))
        return [_task(row) for row in rows if not row["refused"]]

    async def claim_cancelled(self) -> list[tuple[Task, float]]:
        """Take waiting tasks that are to be cancelled at the provider."""
        rows = await self._claims.once(
            "claim_cancelled", worker_id=self.worker_id, **self.key.names()
        )
        return self._taken(rows)

    async def heartbeats(self) -> list[Heartbeat]:
        """When every other worker was last heard of."""
        rows = await self._claims.once("heartbeats", worker_id=self.worker_id)
        return [Heartbeat(row["id"], row["heartbeat_at"], row["age"], row["lease"]) for row in rows]

    async def take_over(
        self, slots: int, silent: Sequence[Heartbeat], *, idle: bool, steady: bool
    ) -> tuple[list[tuple[Task, float]], list[tuple[Task, float]], bool]:
        """Declare the silent dead and take their tasks: (taken, ended as WORKER_LOST, make room).

        "Make room" asks this worker to claim nothing until it is idle: a task is to run alone.
        """
        rows = await self._claims.once(
            "take_over", worker_id=self.worker_id, slots=slots, idle=idle, steady=steady,
            silent_ids=[one.worker_id for one in silent], silent_beats=[one.beat for one in silent],
            max_crashes=self.settings.vidgen_max_crashes, **self.key.names(),
            scene_updates=self.settings.vidgen_scene_updates,
            lost_message=FAULTS[FaultName.WORKER_LOST].message,
        )  # fmt: skip
        for row in rows:
            if row["kind"] == "refused":
                emit(RowRefused(task=str(row["id"]), statement="take over", error=row["refused"]))
        taken = [_task(row) for row in rows if row["kind"] == "taken"]
        lost = [_task(row) for row in rows if row["kind"] == "lost"]
        return taken, lost, any(row["kind"] == "room" for row in rows)

    async def hand_back(self, held: Sequence[tuple[UUID, int]] | None = None) -> list[UUID]:
        """Give back what this worker holds (all of it, or these attempts), for others to resume.

        What a client holds, or what refuses, is not among those returned: the lease has it.
        """
        rows = await self.db.run(
            "hand_back", self._give_up, lock_patience=LOCK_PATIENCE, worker_id=self.worker_id,
            task_ids=None if held is None else [task_id for task_id, _ in held],
            attempts=None if held is None else [attempt for _, attempt in held],
        )  # fmt: skip
        for row in rows:
            if row["refused"]:
                emit(RowRefused(task=str(row["id"]), statement="hand back", error=row["refused"]))
        return [row["id"] for row in rows if not row["refused"]]

    async def leave(self) -> None:
        """Delete the worker's row, or say in it that its tasks are to be taken over at once."""
        await self.db.run(
            "leave", self._give_up, lock_patience=LOCK_PATIENCE, worker_id=self.worker_id
        )

    # One attempt.

    async def load(self, fence: Fence) -> Loaded:
        """Read scene and checkpoints. Raises LeaseLostError."""
        rows = await self._fenced("load_task", fence, **self.key.names())
        checkpoints = {StageName(r["stage"]): _checkpoint(r) for r in rows if r["stage"]}
        return Loaded(
            cancel_requested=rows[0]["cancel_requested"],
            cancel_age=timedelta(seconds=rows[0]["cancel_age"] or 0),
            scene=rows[0]["scene"],
            inputs=rows[0]["inputs"] or "",
            checkpoints=checkpoints,
            closed=frozenset(
                StageName(r["stage"])
                for r in rows
                if r["state"] == CheckpointState.SUBMITTING
                and (r["ended_at"] is not None or r["answer"] in (Answer.REFUSED, Answer.UNKNOWN))
            ),
            verdict=next((_verdict(r["verdict"]) for r in rows if r["verdict"]), None),
        )

    async def start(
        self, fence: Fence, resolution: Resolution | None,
        due: frozenset[StageName],
    ) -> Funding:  # fmt: skip
        """Hold credits for the stages `due`."""
        rows = await self._fenced(
            "start_task", fence, resolution=resolution.resolution if resolution else None,
            video_ratio=resolution.video_ratio if resolution else None,
            image_ratio=resolution.image_ratio if resolution else None,
            image_due=StageName.IMAGE in due, video_due=StageName.VIDEO in due,
            credits=self.settings.credits,
            scene_updates=self.settings.vidgen_scene_updates,
        )  # fmt: skip
        self._scene(fence, rows[0])
        return Funding(rows[0]["verdict"])

    async def begin_submission(  # noqa: PLR0913, PLR0917 - one value of the row each
        self, fence: Fence, request: Request, frozen: Mapping[str, Any], inputs: str, step: Step,
        submission_id: UUID,
    ) -> float:  # fmt: skip
        """Record what is about to be paid for; returns when at the earliest, by `boot_time`.

        Raises SubmissionCapError, CancelAskedError, GateClosedError, BrakedError, UserLimitedError,
        NoSlotError or LeaseLostError; nothing is written then.
        """
        rows = await self._fenced(
            "begin_submission", fence, paid=True, stage=request.stage, submission_id=submission_id,
            **self.key.names(), model=request.model,
            fingerprint=request.fingerprint(), digest=request.digest(), inputs=inputs,
            request=Jsonb(dict(frozen)), probe=self.settings.vidgen_gate_probe,
            max_submissions=self.settings.vidgen_max_submissions, **_shown(step),
        )  # fmt: skip
        if rows[0]["cancel"]:
            raise CancelAskedError
        if rows[0]["submissions"] >= self.settings.vidgen_max_submissions:
            raise SubmissionCapError
        if rows[0]["gate"]:
            raise GateClosedError(rows[0]["gate"])
        if rows[0]["braked"]:
            raise _braked(rows[0]["braked"])
        if rows[0]["limited"]:
            raise _limited(rows[0]["limited"])
        if rows[0]["refused"]:
            raise NoSlotError
        return rows.sent

    async def answer(  # noqa: PLR0913, PLR0917 - one value of the row each
        self, fence: Fence, stage: StageName, submission_id: UUID, answer: Answer,
        accepted: Accepted | None, details: str,
    ) -> tuple[bool, Fate]:  # fmt: skip
        """Record the provider's answer, fence or not: (still ours, fate of the generation).

        Raises RowRefusedError when it is recorded, and the task's row is locked by somebody else: a
        later attempt follows it.
        """
        values: dict[str, Any] = {
            **_fence(fence), "stage": stage, "submission_id": submission_id, "answer": answer,
            "generation_id": accepted.generation_id if accepted else None,
            "estimated_cost": accepted.estimated_cost if accepted else None,
            "details": details[:2000], "scopes": self.key.scopes.all(),
        }  # fmt: skip
        send = functools.partial(
            self.db.run, "answer_submission", self._give_up, paid=True, **values
        )
        try:
            rows = await send(follow=True, lock_patience=timedelta())
        except LockedError:
            # The fact at once, and however long that takes; the row is worth a moment.
            await send(follow=False)
            try:
                rows = await send(follow=True, lock_patience=LOCK_PATIENCE)
            except LockedError as error:
                raise RowRefusedError("answer_submission", error) from error
        return bool(rows[0]["mine"]), Fate(rows[0]["fate"])

    async def paid_submissions(self, task_id: UUID, stage: StageName) -> int:
        """How many submissions of this stage may have been paid for nothing."""
        rows = await self.db.run("paid_submissions", self._give_up, task_id=task_id, stage=stage)
        return int(rows[0]["submissions"])

    async def read_submission(self, submission_id: UUID) -> Row | None:
        """Read answer, generation id, late, sent_at and the database's now of a submission."""
        rows = await self.db.run("read_submission", self._give_up, submission_id=submission_id)
        return rows[0] if rows else None

    async def end_generation(  # noqa: PLR0913, PLR0917 - one value of the row each
        self, fence: Fence, stage: StageName, generation_id: UUID, ended_state: str,
        cost: float | None, step: Step, verdict: Failed | None = None, *, rejected: bool = False,
    ) -> None:  # fmt: skip
        """Book a generation's end, and how the task must end because of it, if it must.

        Raises LeaseLostError, or RowRefusedError where the task's row is locked, after the facts
        are written.
        """
        values: dict[str, Any] = {
            "stage": stage, "generation_id": generation_id, "ended_state": ended_state,
            "cost": cost, "verdict": _said(verdict), "rejected": rejected, **_shown(step),
        }  # fmt: skip
        try:
            await self._fenced("end_generation", fence, show=True, **values)
        except RowRefusedError as error:
            # What the row would show is worth less than the facts; the row is met again soon.
            if error.locked:
                await self.close_generation(
                    fence.task_id, generation_id, ended_state, cost, rejected=rejected
                )
                raise
            await self._fenced("end_generation", fence, paid=True, show=False, **values)

    async def is_gone(self, task_id: UUID, generation_id: UUID) -> bool:
        """Whether a 404 under this worker's key is the end of a generation.

        If not, from now on only workers with the key that made it follow it. Raises RowRefusedError
        where its row is locked.
        """
        try:
            rows = await self.db.run(
                "is_gone", self._give_up, lock_patience=LOCK_PATIENCE, task_id=task_id,
                generation_id=generation_id, **self.key.names(),
            )  # fmt: skip
        except LockedError as error:
            raise RowRefusedError("is_gone", error) from error
        return bool(rows[0]["gone"])

    async def close_generation(
        self, task_id: UUID, generation_id: UUID, ended_state: str, cost: float | None, *,
        rejected: bool = False,
    ) -> None:  # fmt: skip
        """Book the end of a generation that nobody follows; `rejected`: by content rules.

        Raises RowRefusedError where its row is locked: it is read, and booked, again later.
        """
        try:
            await self.db.run(
                "close_generation", self._give_up, paid=True, lock_patience=LOCK_PATIENCE,
                task_id=task_id, generation_id=generation_id, ended_state=ended_state, cost=cost,
                rejected=rejected,
            )  # fmt: skip
        except LockedError as error:
            raise RowRefusedError("close_generation", error) from error

    async def begin_upload(
        self, fence: Fence, stage: StageName, upload_id: UUID, artifact: Artifact
    ) -> float:
        """Record where an output is about to be put; returns when at the earliest, by `boot_time`.

        Raises CancelAskedError (nothing is written then) or LeaseLostError.
        """
        rows = await self._fenced(
            "begin_upload", fence, paid=True, stage=stage, upload_id=upload_id,
            bucket=artifact.bucket, path=artifact.path,
        )  # fmt: skip
        if rows[0]["cancel"]:
            raise CancelAskedError
        return rows.sent

    async def finish_stage(  # noqa: PLR0913, PLR0917 - one value of the row each
        self, fence: Fence, stage: StageName, model: str, artifact: Artifact, upload_id: UUID,
        image_url: str | None, step: Step,
    ) -> Finished:  # fmt: skip
        """Checkpoint `done`, charge, settle and show. Raises LeaseLostError."""
        rows = await self._fenced(
            "finish_stage", fence, paid=True, stage=stage, credits=self.settings.credits,
            provider=self.key.provider, scopes=self.key.scopes.all(), model=model,
            scene_updates=self.settings.vidgen_scene_updates, upload_id=upload_id,
            bucket=artifact.bucket, path=artifact.path, media_type=artifact.media_type,
            size=artifact.size, sha256=artifact.sha256, image_url=image_url,
            image_path=artifact.path if stage is StageName.IMAGE else None,
            video_path=artifact.path if stage is StageName.VIDEO else None, **_shown(step),
        )  # fmt: skip
        self._scene(fence, rows[0])
        if rows[0]["troubled"]:
            with contextlib.suppress(LockedError):  # the next stage that goes well does it
                await self.db.run(
                    "relieve", self._give_up, lock_patience=LOCK_PATIENCE,
                    provider=self.key.provider, scopes=self.key.scopes.all(), model=model,
                )  # fmt: skip
        return Finished(int(rows[0]["charged"]), rows[0]["inputs"] or "")

    async def report(self, reports: Sequence[Reported]) -> list[UUID]:
        """Write progress of many tasks in one statement; a lost fence is simply left out.

        Returns the tasks whose rows refuse it: then each is written on its own.
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
        await self.db.once(
            "report", worker_id=self.worker_id,
            task_ids=[r.fence.task_id for r in reports],
            attempts=[r.fence.attempt for r in reports],
            progress=[r.progress for r in reports],
            stage_progress=[r.stage_progress for r in reports],
            messages=[r.message for r in reports],
        )  # fmt: skip

    async def complete(self, fence: Fence, outcome: Completed) -> float:
        """Conclude as completed; returns the seconds since the first claim."""
        rows = await self._fenced(
            "complete", fence, video_url=outcome.video_url,
            good_for=timedelta(seconds=outcome.good_until - boot_time()),
            scene_updates=self.settings.vidgen_scene_updates,
        )  # fmt: skip
        self._scene(fence, rows[0])
        return float(rows[0]["seconds"])

    async def requeue(self, fence: Fence, outcome: Requeued, message: str) -> None:
        """Conclude this attempt: back to pending after the delay."""
        await self._fenced(
            "requeue", fence, delay=outcome.delay, message=message, failures=int(outcome.failed),
            waiting=outcome.waiting,
        )  # fmt: skip

    async def waited(self, task_id: UUID) -> timedelta:
        """How long the task has only waited by now, without getting any further."""
        rows = await self.db.run("waited", self._give_up, task_id=task_id)
        return timedelta(seconds=rows[0]["seconds"] if rows else 0)

    async def fail(self, fence: Fence, outcome: Failed, *, counted: bool) -> None:
        """Conclude as failed."""
        rows = await self._fenced(
            "fail", fence, code=outcome.code, message=outcome.message[:2000],
            visible=Jsonb(dict(outcome.visible)), failures=int(counted),
            scene_updates=self.settings.vidgen_scene_updates,
        )  # fmt: skip
        self._scene(fence, rows[0])

    async def cancel(self, fence: Fence) -> None:
        """Conclude as cancelled."""
        rows = await self._fenced("cancel", fence, scene_updates=self.settings.vidgen_scene_updates)
        self._scene(fence, rows[0])

    async def set_aside(self, fence: Fence, outcome: SetAside) -> tuple[int, timedelta, str]:
        """Leave a task alone whose row refuses: (tries, pause, the status that its row has now).

        Raises LeaseLostError.
        """
        rows = await self._fenced(
            "set_aside", fence, statement=outcome.statement, error=outcome.error,
            verdict=_said(outcome.verdict), message=FAULTS[FaultName.ROW_REFUSED].message,
            scene_updates=self.settings.vidgen_scene_updates,
            # It skips what is locked: what it meets all the same is a lock on everything.
            lock_patience=None,
        )  # fmt: skip
        return int(rows[0]["tries"]), rows[0]["pause"], str(rows[0]["became"])

    async def retry_refused(self) -> None:
        """Put tasks back into the line whose pause is over; end those that refused too often."""
        rows = await self.db.once(
            "retry_refused", message=FAULTS[FaultName.ROW_REFUSED].message,
            scene_updates=self.settings.vidgen_scene_updates,
        )  # fmt: skip
        for row in rows:
            if row["became"] in ("failed", "kept"):
                emit(RowRefused(
                    task=str(row["task_id"]), statement=row["statement"], error=row["error"],
                    tries=row["tries"], became=row["became"],
                ))  # fmt: skip

    async def write_owed_scenes(self) -> None:
        """Make the writes to scenes that another transaction's lock has kept from being made."""
        for row in await self.db.once("owed_scenes"):
            with contextlib.suppress(LockedError):  # another worker is at it
                (made,) = await self.db.once("write_owed_scene", scene_id=row["scene_id"])
                if made["became"] not in ("written", "gone", "locked"):
                    emit(OwedSceneRefused(scene=str(row["scene_id"]), error=made["became"]))

    async def is_troubled(self, gate: Gate, reason: str) -> bool:
        """Whether what closed a gate has shown, without a stage that went well since."""
        rows = await self.db.once(
            "is_troubled", provider=self.key.provider, scope=gate.scope, reason=reason
        )
        return bool(rows[0]["troubled"])

    async def try_rows(self) -> Row:
        """Find out for free whether all rows refuse: `tried`, `taken`, `refused`, `refusing`.

        Rows of waiting tasks that were tried, and how many took everything; what one refused; and
        of how many users tasks are set aside.
        """
        return (await self.db.once("try_rows", worker_id=self.worker_id))[0]

    # Gates.

    async def close_gate(
        self, gate: Gate, reason: str, message: str, details: str, *, probe: timedelta | None = None
    ) -> bool:
        """Close a gate; False when it was closed already. `probe` is the pause before the first."""
        rows = await self.db.run(
            "close_gate", self._give_up, **self._gate(gate), reason=reason, message=message,
            details=details[:2000],
            probe=self.settings.vidgen_gate_probe if probe is None else probe,
        )  # fmt: skip
        return bool(rows)

    async def meet_gate(self, task: Task, gate: Gate, model: str) -> tuple[bool, float]:
        """Note that a submission was refused for what a gate is about.

        Returns whether its user had met it before it was sent, and what a generation costs at most.
        """
        rows = await self.db.run(
            "meet_gate", self._give_up, task_id=task.id, user_id=task.user_id,
            provider=self.key.provider, scope=gate.scope, model=model,
        )  # fmt: skip
        return bool(rows[0]["again"]), float(rows[0]["price"])

    async def note_trouble(  # noqa: PLR0913, PLR0917 - one value of the row each
        self, task: Task, gate: Gate, part: str, reason: str, message: str, details: str, *,
        model: str, allowance: int | None,
    ) -> Noted:  # fmt: skip
        """Note a trouble, and how many have met it in a row."""
        rows = await self.db.run(
            "note_trouble", self._give_up, provider=self.key.provider, scope=gate.scope, part=part,
            model=model, reason=reason, message=message, details=details[:2000], task_id=task.id,
            user_id=task.user_id, allowance=allowance, probe=self.settings.vidgen_gate_probe,
        )  # fmt: skip
        return Noted(**rows[0])

    async def try_kept(self, gate: Gate) -> bool:
        """Let an output that is kept behind a gate try it; False when there is none."""
        rows = await self.db.once("try_kept", provider=self.key.provider, scope=gate.scope)
        return bool(rows[0]["kept"])

    async def take_probe(self) -> Row | None:
        """Take the due probe of one closed gate: scope, model, reason, probes, seconds closed."""
        rows = await self.db.once(
            "take_probe", **self.key.names(), probe=self.settings.vidgen_gate_probe
        )
        return rows[0] if rows else None

    async def claim_trial(self, gate: Gate, probes: int) -> list[tuple[Task, float]]:
        """Take the one task that tries a gate after a storm; none while another one does."""
        rows = await self.db.once(
            "claim_trial", worker_id=self.worker_id, **self._gate(gate), probes=probes,
            max_running_per_user=self.settings.vidgen_max_running_per_user, lane=LANE,
        )  # fmt: skip
        return self._taken(rows)

    async def open_gate(self, gate: Gate) -> float | None:
        """Open a gate; the seconds that it was closed, None when it was open."""
        rows = await self.db.run("open_gate", self._give_up, **self._gate(gate))
        return float(rows[0]["seconds"]) if rows else None

    async def stands_aside(self) -> bool:
        """Whether this worker is behind a gate of its own while another one works on."""
        rows = await self.db.run("stands_aside", self._give_up, worker_id=self.worker_id)
        return bool(rows[0]["aside"])

    async def read_gates(self) -> list[Row]:
        """What is closed for this worker."""
        return await self.db.once("read_gates", **self.key.names())

    def _gate(self, gate: Gate) -> dict[str, Any]:
        return {"provider": self.key.provider, "scope": gate.scope, "model": gate.model}

    # Admission.

    async def ask_limits(self, every: timedelta) -> tuple[list[str], bool]:
        """Models whose limits this worker is the one to read now; no other worker is told so.

        Then whether there are others that nobody knows yet.
        """
        rows = await self.db.once("ask_limits", every=every, **self.key.names())
        return [row["model"] for row in rows if row["mine"]], any(not row["mine"] for row in rows)

    async def set_limit(self, model: str, max_generations: int | None) -> None:
        """Say how many generations of a model may be in flight; None is any number."""
        await self.db.once("set_limit", **self._limit(model, max_generations))

    def limits_set(self) -> dict[str, int]:
        """The limits that a setting says, by model: these are not read from the provider."""
        said = {
            self.key.image_model: self.settings.vidgen_image_slots,
            self.key.video_model: self.settings.vidgen_video_slots,
        }
        return {model: limit for model, limit in said.items() if limit is not None}

    def _limit(self, model: str, max_generations: int | None) -> dict[str, Any]:
        return {
            **self.key.names(),
            "model": model,
            "max_generations": max_generations,
        }

    def _models_claimed(self) -> dict[str, Any]:
        return {
            **self.key.names(),
            "image_model": self.key.image_model,
            "video_model": self.key.video_model,
            "lane": LANE,
        }

    def _models(self) -> dict[str, Any]:
        return {
            **self.key.names(),
            "models": [self.key.image_model, self.key.video_model],
        }

    # The sweep.

    async def sweep(self) -> None:
        """Rows that are of no use any more: dead workers, users out of the line, lost slots."""
        patience = {"patience": self.settings.slot_patience}
        for name, parameters in (
            ("sweep_workers", {}), ("sweep_gates", {}), ("sweep_turns", {}), ("sweep_passed", {}),
            ("sweep_limits", {}),
            ("free_slots", patience), ("give_up_submissions", patience),
        ):  # fmt: skip
            # What is locked now is swept the next time, and keeps no other from being swept.
            with contextlib.suppress(LockedError):
                await self.db.once(name, **parameters)

    async def fleet(self) -> Fleet:
        """What the metrics tell of all workers together."""
        row = (await self.db.once("fleet"))[0]
        closed = [(g["scope"], g["model"], g["reason"]) for g in row.pop("gates")]
        slots = [(one["model"], int(one["slots"]), int(one["taken"])) for one in row.pop("slots")]
        return Fleet({name: float(value) for name, value in row.items()}, closed, slots)

    async def take_duty(self, duty: str, every: timedelta) -> bool:
        """Whether this worker is the one of the fleet to do this now."""
        return bool(await self.db.once("take_duty", duty=duty, every=every))

    async def take_uploads(self, batch: int) -> list[Row]:
        """Objects to be removed: upload_id, bucket, path, first_time. Nobody else is given them."""
        return await self.db.once("take_uploads", batch=batch)

    async def uploads_removed(self, upload_ids: Sequence[UUID]) -> None:
        """Say that they are gone from Storage."""
        await self.db.once("uploads_removed", upload_ids=list(upload_ids))

    async def uploads_left(self) -> tuple[int, timedelta]:
        """Uploads that are neither charged nor removed after an hour, and the oldest one's age."""
        row = (await self.db.once("uploads_left"))[0]
        return int(row["uploads"]), timedelta(seconds=row["oldest_seconds"])

    async def forget_tasks(
        self, after: datetime | None, batch: int
    ) -> tuple[int, datetime | None]:  # fmt: skip
        """Remove private rows of old tasks: (how many, where the next batch begins)."""
        (row,) = await self.db.once(
            "forget_tasks", keep=self.settings.vidgen_keep_private, after=after, batch=batch
        )
        return int(row["tasks"]), row["through"]

    async def forget_holds(self, batch: int) -> int:
        """Remove old closed holds; how many."""
        rows = await self.db.once(
            "forget_holds", keep=self.settings.vidgen_keep_private, batch=batch
        )
        return int(rows[0]["holds"])

    async def audit_entries(self, batch: int) -> int:
        """Add the next entries of the ledger to the totals; how many."""
        return int((await self.db.once("audit_entries", batch=batch))[0]["entries"])

    async def audit_users(self, after: UUID | None, batch: int) -> tuple[int, UUID | None]:
        """Compare the next users: (how many don't agree, where the next part begins)."""
        (row,) = await self.db.once("audit_users", after=after, batch=batch)
        return int(row["discrepancies"]), row["through"]

    async def note_audit(self, discrepancies: int) -> None:
        """Keep what the audit has found."""
        await self.db.once("note_audit", discrepancies=discrepancies)

    async def read_audit(self) -> float:
        """How many balances disagreed with ledger or holds when the fleet last looked."""
        return float((await self.db.once("read_audit"))[0]["discrepancies"])

    async def costs_to_read_again(self) -> list[Row]:
        """Generations that ended without an output some minutes ago: task_id, generation_id."""
        return await self.db.once("costs_to_read_again", **self.key.names())

    async def strays(self) -> list[Row]:
        """Generations that nobody follows: id, task_id, generation_id, kept, age in seconds.

        `kept`: its task waits, so it is only read.
        """
        return await self.db.once("stray_submissions", **self.key.names())

    async def let_anyone_follow(self) -> list[Row]:
        """Let anyone follow what accounts and keys without a worker have left; return it."""
        return await self.db.once("let_anyone_follow", absence=ABSENCE)

    async def _fenced(
        self, name: str, fence: Fence, *, paid: bool = False,
        lock_patience: timedelta | None = LOCK_PATIENCE, **parameters: object,
    ) -> Rows:  # fmt: skip
        try:
            rows = await self.db.run(
                name, self._give_up, paid=paid, lock_patience=lock_patience, **_fence(fence),
                **parameters,
            )  # fmt: skip
        except (psycopg.Error, LockedError) as error:
            raise RowRefusedError(name, error) from error
        if not rows:
            raise LeaseLostError(str(fence.task_id))
        return rows

    def _scene(self, fence: Fence, row: Row) -> None:
        if row.get("scene_refused"):
            emit(SceneWriteRefused(fence=fence, error=str(row["scene_refused"])))


def _braked(row: Row) -> BrakedError:
    # What the gate is of, is in its row: one of a model closes for that model only.
    model = row["model"] if row["part"] in ("submit", "generation", "output") else ALL_MODELS
    gate = Gate(row["scope"], model)
    return BrakedError(gate, row["reason"], row["message"], row["details"])


def _limited(said: Mapping[str, Any]) -> UserLimitedError:
    delay = timedelta(seconds=max(float(said.get("seconds") or 0), 0))
    message = str(said.get("message") or "")
    kind = LimitKind(said["kind"])
    return UserLimitedError(kind, message, str(said.get("details") or message), delay)


def _fence(fence: Fence) -> dict[str, Any]:
    return {"task_id": fence.task_id, "attempt": fence.attempt, "worker_id": fence.worker_id}


def _said(verdict: Failed | Cancelled | None) -> Jsonb | None:
    """A verdict as it is kept until it can be written into the task's row."""
    match verdict:
        case Failed():
            return Jsonb({
                "code": verdict.code, "message": verdict.message, "details": verdict.details,
                "visible": dict(verdict.visible),
            })  # fmt: skip
        case Cancelled():
            return Jsonb({"code": FAULTS[FaultName.CANCELLED].code})
        case None:
            return None


def _verdict(said: Mapping[str, Any]) -> Failed | Cancelled:
    if said["code"] == FAULTS[FaultName.CANCELLED].code:
        return Cancelled()
    return Failed(said["code"], said["message"], said["details"], said["visible"])


def _shown(step: Step) -> dict[str, Any]:
    return {
        "progress": step.progress,
        "current_step": step.current_step,
        "message": step.message,
    }


def _task(row: Row) -> tuple[Task, float]:
    task = Task(
        fence=Fence(row["id"], row["attempt"], row["worker_id"]),
        user_id=row["user_id"],
        scene_id=row["scene_id"],
        failures=row["failures"],
        max_failures=row["max_failures"],
        progress=row["progress"],
        created_at=row["created_at"],
        cancel_requested=row["cancel_requested"],
        alone=row["alone"],
    )
    return task, max(float(row["waited"]), 0.0)


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
        account=row["account"],
        followed_here=row["followed_here"],
    )

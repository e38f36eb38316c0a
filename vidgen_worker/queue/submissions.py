"""Paid POSTs and their generations: a row before and after each, whoever holds the task.

Nothing here calls the provider.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from vidgen_worker.database.pool import LOCK_PATIENCE, Row
from vidgen_worker.database.trouble import LockedError
from vidgen_worker.domain.keys import ALL_MODELS, Gate
from vidgen_worker.domain.polling import Ended
from vidgen_worker.domain.resolution import Resolution
from vidgen_worker.domain.task import Answer, Failed, Fate, Fence, GenerationEnd, StageName
from vidgen_worker.providers.protocol import Accepted, Request
from vidgen_worker.queue.caller import Caller, fenced_by
from vidgen_worker.queue.checkpoints import Place, Step, shown
from vidgen_worker.queue.errors import (
    BrakedError,
    CancelAskedError,
    GateClosedError,
    LimitKind,
    NoSlotError,
    RowRefusedError,
    SubmissionCapError,
    UserLimitedError,
)
from vidgen_worker.queue.verdicts import kept

ABSENCE = timedelta(hours=1)
"""After this time without a heartbeat of a permitted worker, any worker may follow a generation."""


@dataclass(frozen=True, slots=True)
class Post:
    """A paid request that is about to be sent.

    `made_from` names the stage whose stored output is the request's source, `frozen` is the order
    as the checkpoint keeps it, `inputs` the digest of the scene that it was made from.
    `seconds_left` is the time until the task's expected end, None where that is unknown.
    """

    id: UUID
    stage: StageName
    made_from: StageName | None
    request: Request
    frozen: Mapping[str, Any]
    inputs: str
    step: Step
    seconds_left: float | None = None
    resolution: Resolution | None = None
    """What was looked up for the task's row; None: its row shows that already."""


@dataclass(frozen=True, slots=True)
class Took:
    """The end of a generation, and the clip's length in seconds; 0 for a still."""

    seconds: int
    ended: Ended


class Submissions:
    """The statements about submissions, their answers and their ends."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def begin(self, fence: Fence, post: Post) -> float:
        """Record a request before it is paid; return the time of sending, in `boot_time`.

        Raises SubmissionCapError, CancelAskedError, GateClosedError, BrakedError, UserLimitedError,
        NoSlotError or LeaseLostError; nothing is written then.
        """
        rows = await self._caller.fenced(
            "begin_submission", fence, paid=True, stage=post.stage, submission_id=post.id,
            **self._caller.key.names(), model=post.request.model, made_from=post.made_from,
            fingerprint=post.request.fingerprint(), digest=post.request.digest(),
            inputs=post.inputs, request=Jsonb(dict(post.frozen)),
            probe=self._caller.settings.vidgen_gate_probe,
            max_submissions=self._caller.settings.vidgen_max_submissions,
            seconds_left=post.seconds_left, **shown(post.step), **_looked_up(post.resolution),
        )  # fmt: skip
        if rows[0]["cancel"]:
            raise CancelAskedError
        if rows[0]["submissions"] >= self._caller.settings.vidgen_max_submissions:
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
        """Record the provider's answer, also after a lost lease: (still ours, generation's fate).

        Raises RowRefusedError when the answer is recorded and another transaction holds the task's
        row: then a later attempt follows the generation.
        """
        values: dict[str, Any] = {
            **fenced_by(fence), "stage": stage, "submission_id": submission_id, "answer": answer,
            "generation_id": accepted.generation_id if accepted else None,
            "estimated_cost": accepted.estimated_cost if accepted else None,
            "details": details[:2000], "scopes": self._caller.key.scopes.all(),
        }  # fmt: skip
        send = functools.partial(self._caller.run, "answer_submission", paid=True, **values)
        try:
            rows = await send(follow=True, lock_patience=timedelta())
        except LockedError:
            # The answer is written however long that takes; the task's row gets only a moment.
            await send(follow=False)
            try:
                rows = await send(follow=True, lock_patience=LOCK_PATIENCE)
            except LockedError as error:
                raise RowRefusedError("answer_submission", error) from error
        return bool(rows[0]["mine"]), Fate(rows[0]["fate"])

    async def paid(self, task_id: UUID, stage: StageName) -> int:
        """The number of submissions of this stage that may have been paid in vain."""
        rows = await self._caller.run("paid_submissions", task_id=task_id, stage=stage)
        return int(rows[0]["submissions"])

    async def read(self, submission_id: UUID) -> Row | None:
        """Read answer, generation id, late, sent_at and the database's now of a submission."""
        rows = await self._caller.run("read_submission", submission_id=submission_id)
        return rows[0] if rows else None

    async def end_generation(  # noqa: PLR0913, PLR0917 - one value of the row each
        self, fence: Fence, stage: StageName, generation_id: UUID, end: GenerationEnd,
        cost: float | None, step: Step, verdict: Failed | None = None, *, rejected: bool = False,
        took: Took | None = None, place: Place | None = None,
    ) -> float:  # fmt: skip
        """Book a generation's end, and how the task must end because of it, if it must.

        What it `took` is learnt by the whole fleet. The `place` where its output is about to be put
        is recorded with it; returns when that was sent, by `boot_time`.
        Raises, after the facts are written, LeaseLostError, RowRefusedError where the task's row is
        locked, or CancelAskedError where there is a place: it is not recorded then.
        """
        values: dict[str, Any] = {
            "stage": stage, "generation_id": generation_id, "ended_state": end,
            "cost": cost, "verdict": kept(verdict), "rejected": rejected, **shown(step),
            "clip_seconds": took.seconds if took else 0,
            "ended_after": took.ended.after if took else None,
            "ended_by": took.ended.by if took else None,
        }  # fmt: skip
        recorded: dict[str, Any] = {
            "upload_id": place and place.id, "bucket": place and place.bucket,
            "path": place and place.path,
        }  # fmt: skip
        try:
            rows = await self._caller.fenced(
                "end_generation", fence, show=True, **values, **recorded
            )
        except RowRefusedError as error:
            # The end is booked; the row shows it after the next attempt.
            if error.locked:
                await self.close_generation(
                    fence.task_id, generation_id, end, cost, rejected=rejected
                )
                raise
            rows = await self._caller.fenced(
                "end_generation", fence, paid=True, show=False, **values,
                **dict.fromkeys(recorded),
            )  # fmt: skip
            if place is not None:
                rows = await self._caller.fenced(
                    "begin_upload", fence, paid=True, stage=stage, **recorded
                )
        if place is not None and rows[0]["cancel"]:
            raise CancelAskedError
        return rows.sent

    async def is_gone(self, task_id: UUID, generation_id: UUID) -> bool:
        """Whether a 404 under this worker's key is the end of a generation.

        If not, only workers with the key that made it follow it from now on. Raises RowRefusedError
        where its row is locked.
        """
        try:
            rows = await self._caller.run(
                "is_gone", lock_patience=LOCK_PATIENCE, task_id=task_id,
                generation_id=generation_id, **self._caller.key.names(),
            )  # fmt: skip
        except LockedError as error:
            raise RowRefusedError("is_gone", error) from error
        return bool(rows[0]["gone"])

    async def close_generation(
        self, task_id: UUID, generation_id: UUID, end: GenerationEnd | None, cost: float | None, *,
        rejected: bool = False,
    ) -> None:  # fmt: skip
        """Book the end of a stray; `rejected` says that content rules rejected it.

        Without an `end` only the cost is booked, because the end was booked before. Raises
        RowRefusedError where its row is locked: the janitor reads and books it again later.
        """
        try:
            await self._caller.run(
                "close_generation", paid=True, lock_patience=LOCK_PATIENCE,
                task_id=task_id, generation_id=generation_id, ended_state=end, cost=cost,
                rejected=rejected,
            )  # fmt: skip
        except LockedError as error:
            raise RowRefusedError("close_generation", error) from error

    async def costs_to_read_again(self) -> list[Row]:
        """Generations that ended without an output some minutes ago: task_id, generation_id."""
        return await self._caller.once("costs_to_read_again", **self._caller.key.names())

    async def strays(self) -> list[Row]:
        """Strays: id, task_id, generation_id, kept, age in seconds.

        `kept` says that the task waits, so that its generation is read but not ended.
        """
        return await self._caller.once("stray_submissions", **self._caller.key.names())

    async def let_anyone_follow(self) -> list[Row]:
        """Release generations of accounts and keys without a worker to all workers; return them."""
        return await self._caller.once("let_anyone_follow", absence=ABSENCE)


def _looked_up(found: Resolution | None) -> dict[str, Any]:
    return {
        "resolution": found.resolution if found else None,
        "video_ratio": found.video_ratio if found else None,
        "image_ratio": found.image_ratio if found else None,
    }


def _braked(row: Row) -> BrakedError:
    # These parts of the work are about one model; the others are about all of them.
    model = row["model"] if row["part"] in ("submit", "generation", "output") else ALL_MODELS
    gate = Gate(row["scope"], model)
    return BrakedError(gate, row["reason"], row["message"], row["details"])


def _limited(said: Mapping[str, Any]) -> UserLimitedError:
    delay = timedelta(seconds=max(float(said.get("seconds") or 0), 0))
    message = str(said.get("message") or "")
    kind = LimitKind(said["kind"])
    return UserLimitedError(kind, message, str(said.get("details") or message), delay)

"""While a checkpoint says `submitting`: pays for a generation, once.

The POST is recorded before and after it is sent; what another worker has sent is waited for. A
submission is never repeated blindly, and no generation is followed here.
"""

import asyncio
import traceback
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

from vidgen_worker.database.trouble import DatabaseUnavailableError, one_line
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import Fault, FaultName, First
from vidgen_worker.domain.task import Answer, Artifact, Fate, StageName
from vidgen_worker.pipeline import forecast
from vidgen_worker.pipeline.generating import end_at_provider
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.pipeline.stages import Order, Stage
from vidgen_worker.providers.protocol import Accepted, Request
from vidgen_worker.queue.checkpoints import Loaded
from vidgen_worker.queue.errors import CancelAskedError, LeaseLostError, RowRefusedError
from vidgen_worker.queue.submissions import Post
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    AnswerUnrecorded,
    LateAnswer,
    PollFailed,
    SubmissionAnswered,
    SubmissionBegun,
    SubmissionRecorded,
    SubmissionUnknown,
    UnexpectedError,
)

SIGNED_FOR = timedelta(hours=1)
"""How long the address of a source works: the provider fetches it at once."""
ANSWER_POLL = timedelta(seconds=1)
RECORD_AGAIN, RECORD_SELDOM = 1.0, 60.0
"""Seconds until an answer that the database did not take is written again: at first, at last."""


class Submitting:
    """One stage of one attempt, until the generation to follow is known."""

    def __init__(self, tools: Tools, run: Run, stage: Stage, order: Order) -> None:
        self._tools = tools
        self._settings = tools.settings
        self._queue = tools.queue
        self._provider = tools.provider
        self._run = run
        self._fence = run.task.fence
        self._stage = stage
        self._order = order
        self._unrecorded = asyncio.Event()
        """The provider has answered, and the database does not take the answer for now."""
        self._cancelled = False
        """Its owner cancelled before the answer came: this attempt does not follow it."""

    async def late_answer(self, submission_id: UUID) -> UUID | None:
        """Wait for the answer to another worker's POST, until it can't come any more.

        Returns the generation to attach to; None when the submission counts as unknown now.
        """
        patience = self._settings.submission_patience
        began = boot_time()
        while True:
            row = await self._queue.submissions.read(submission_id)
            if row is None or row["answer"] in (Answer.REFUSED, Answer.UNKNOWN) or row["late"]:
                return None
            if row["answer"] == Answer.GENERATION:
                accepted = Accepted(row["generation_id"], None)
                mine, _ = await self._queue.submissions.answer(
                    self._fence, self._stage.name, submission_id, Answer.GENERATION, accepted, ""
                )
                if not mine:
                    raise LeaseLostError(str(self._fence.task_id))
                return accepted.generation_id
            # By the database's clock, and never longer by ours: the database's may step back.
            waited = timedelta(seconds=boot_time() - began)
            remaining = min(row["sent_at"] - row["now"], -waited) + patience
            if remaining > timedelta(0):
                await self._run.pause(min(remaining, ANSWER_POLL))
                continue
            # Then read once more. An answer that was recorded just before is attached to. A later
            # one is late: whoever records it ends its generation.
            details = f"no answer was recorded within {patience.total_seconds():g} s"
            await self._queue.submissions.answer(
                self._fence, self._stage.name, submission_id, Answer.UNKNOWN, None, details
            )
            self._say_unknown(submission_id, self._order.request, details)

    async def submit(self, loaded: Loaded, artifacts: Mapping[StageName, Artifact]) -> UUID:
        """Pay for a generation: recorded before and after, never sent twice blindly."""
        refused: Fault | None = None
        for request in await self._requests(loaded, artifacts):
            await self._tools.license()
            if self._run.cancel.is_set():
                raise CancelAskedError
            # A task of its own: whatever ends this attempt (drain, lost lease, cancel) must not cut
            # the POST, and its answer is recorded however late it comes. The record before it
            # belongs to it: one that no POST follows would be waited for, and then counted as paid.
            posting = asyncio.create_task(self._post(request, loaded.inputs))
            self._run.posting = posting
            try:
                generation_id = await self._answer(posting)
            except Fault as fault:
                if fault.rule.first is not First.NEXT_ADDRESS:
                    raise
                refused = fault
            else:
                self._run.submitted.add(self._stage.name)
                return generation_id
        raise refused or Fault(FaultName.FRAME_REFUSED, details="its source has no address")

    async def _requests(
        self, loaded: Loaded, artifacts: Mapping[StageName, Artifact]
    ) -> list[Request]:
        """The request, once for each address of what it is made from."""
        request, source = self._order.request, self._stage.made_from
        if source is None:
            return [request]
        urls = await self._addresses(source, loaded, artifacts[source.name])
        return [replace(request, source=url) for url in urls]

    async def _addresses(self, source: Stage, loaded: Loaded, artifact: Artifact) -> list[str]:
        """The addresses of the source for the provider: its own output, then our copy."""
        storage, checkpoint = self._tools.storage, loaded.checkpoints.get(source.name)
        generation_id = self._run.generations.get(source.name) or (
            checkpoint.generation_id if checkpoint else None
        )
        urls = list(self._run.outputs.get(source.name, ())[:1])
        if generation_id is not None and not urls:
            try:
                generation = await self._provider.poll(generation_id)
                urls = list(generation.outputs[:1])
            except Fault as fault:
                # The stored copy serves as well: an output that is gone there costs nothing.
                emit(PollFailed(
                    fence=self._fence, stage=source.name, generation=generation_id,
                    details=fault.details,
                ))  # fmt: skip
        if source.public:
            return [*urls, storage.public_url(artifact.bucket, artifact.path)]
        return [*urls, await storage.sign(artifact.bucket, artifact.path, SIGNED_FOR)]

    async def _answer(self, posting: "asyncio.Task[UUID]") -> UUID:
        """Wait for the generation of a POST in flight, unless its owner cancels."""
        asked = asyncio.create_task(self._run.cancel.wait())
        stuck = asyncio.create_task(self._unrecorded.wait())
        try:
            await asyncio.wait({posting, asked, stuck}, return_when=asyncio.FIRST_COMPLETED)
            if posting.done():
                return posting.result()
            if stuck.done():
                # The worker keeps the answer; a later attempt attaches to it.
                details = "the provider's answer can't be recorded for now"
                raise Fault(FaultName.INTERNAL_ERROR, details=details)
            # Nobody follows the generation of that answer: whoever records it ends it.
            self._cancelled = True
            raise CancelAskedError
        finally:
            asked.cancel()
            stuck.cancel()
            if posting.done():
                self._run.posting = None

    async def _post(self, request: Request, inputs: str) -> UUID:
        """The paid POST, with a record before it and a record of any answer."""
        stage, submission_id = self._stage, uuid4()
        frozen = Order(request, self._order.ratio, self._order.seconds).frozen()
        made_from = stage.made_from.name if stage.made_from else None
        post = Post(
            submission_id, stage.name, made_from, request, frozen, inputs, stage.generating,
            forecast.seconds_left(self._tools, self._run, stage, (), 0.0), self._run.resolution,
        )  # fmt: skip
        sent = await self._queue.submissions.begin(self._fence, post)
        emit(SubmissionBegun(
            fence=self._fence, stage=stage.name, submission=submission_id, model=request.model,
            fingerprint=request.fingerprint(),
        ))  # fmt: skip
        try:
            self._raise_if_stale(sent)
            accepted = await self._provider.submit(request)
        except Fault as fault:
            await self._record_refusal(submission_id, request, fault)
            raise
        except asyncio.CancelledError:
            self._say_unknown(submission_id, request, "cut off before the answer: the worker ends")
            raise
        except Exception as error:
            emit(UnexpectedError(
                fence=self._fence, code="SUBMISSION_UNKNOWN", details=one_line(error),
                traceback=traceback.format_exc(),
            ))  # fmt: skip
            unknown = Fault(FaultName.SUBMISSION_UNKNOWN, details=one_line(error))
            await self._record_refusal(submission_id, request, unknown)
            raise unknown from error
        return await self._accept(submission_id, accepted)

    async def _record_refusal(self, submission_id: UUID, request: Request, fault: Fault) -> None:
        """Record that no generation began, or that nobody knows. Raises LeaseLostError."""
        if fault.rule.maybe_paid:
            self._say_unknown(submission_id, request, fault.details)
        answer = Answer.UNKNOWN if fault.rule.maybe_paid else Answer.REFUSED
        mine, _ = await self._queue.submissions.answer(
            self._fence, self._stage.name, submission_id, answer, None, fault.details
        )
        if not mine:
            raise LeaseLostError(str(self._fence.task_id)) from fault

    async def _accept(self, submission_id: UUID, accepted: Accepted) -> UUID:
        """Record the generation that was paid for. Raises LeaseLostError if nobody follows it."""
        stage = self._stage
        emit(SubmissionAnswered(
            fence=self._fence, stage=stage.name, submission=submission_id,
            generation=accepted.generation_id, estimated_cost=accepted.estimated_cost,
        ))  # fmt: skip
        # Known from here on, recorded or not: a drain without Postgres says it in the log.
        self._run.generations[stage.name] = accepted.generation_id
        try:
            mine, fate = await self._record(submission_id, accepted)
        except RowRefusedError:
            await self._end_cancelled(submission_id, accepted.generation_id)
            raise
        emit(SubmissionRecorded(
            fence=self._fence, stage=stage.name, submission=submission_id,
            generation=accepted.generation_id,
        ))  # fmt: skip
        if fate is Fate.SUPERSEDED:
            await self._end_late(submission_id, accepted.generation_id)
        else:
            await self._end_cancelled(submission_id, accepted.generation_id)
        if not mine or fate is not Fate.FOLLOWED:
            raise LeaseLostError(str(self._fence.task_id))
        return accepted.generation_id

    async def _record(self, submission_id: UUID, accepted: Accepted) -> tuple[bool, Fate]:
        """Write the answer, however often it takes: nothing else knows this generation's id.

        It ends with the process at the latest, which leaves the id in the log. Raises
        RowRefusedError when it is recorded and the task's row is locked.
        """
        pause = RECORD_AGAIN
        while True:
            try:
                return await self._queue.submissions.answer(
                    self._fence, self._stage.name, submission_id, Answer.GENERATION, accepted, ""
                )
            except asyncio.CancelledError:
                self._say_unrecorded(submission_id, accepted, "the worker ends")
                raise
            except RowRefusedError:
                raise  # it is recorded; the task's row is locked
            except DatabaseUnavailableError as error:
                # Only at the end of a drain.
                self._say_unrecorded(submission_id, accepted, str(error))
                raise
            except Exception as error:  # noqa: BLE001 - no error may drop an id
                self._say_unrecorded(submission_id, accepted, one_line(error))
            self._unrecorded.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RECORD_SELDOM)

    def _say_unrecorded(self, submission_id: UUID, accepted: Accepted, error: str) -> None:
        emit(AnswerUnrecorded(
            fence=self._fence, stage=self._stage.name, submission=submission_id,
            generation=accepted.generation_id, error=error,
        ))  # fmt: skip

    def _say_unknown(self, submission_id: UUID, request: Request, details: str) -> None:
        emit(SubmissionUnknown(
            fence=self._fence, stage=self._stage.name, submission=submission_id,
            fingerprint=request.fingerprint(), details=details,
        ))  # fmt: skip

    def _raise_if_stale(self, sent: float) -> None:
        """Raise Fault where a process was frozen after the record: it must not POST any more.

        Its successor waits for the answer as long as a POST that began at once may take, and has
        paid anew by now.
        """
        late = boot_time() - sent
        margin = self._settings.submission_patience - self._settings.vidgen_submit_timeout
        if late > margin.total_seconds():
            details = f"not sent: this process stood still for {late:.1f} s before the POST"
            raise Fault(FaultName.PROVIDER_UNREACHABLE, details=details)

    async def _end_cancelled(self, submission_id: UUID, generation_id: UUID) -> None:
        """End what a cancel could not: the task was read for it before this record."""
        if not self._cancelled:
            return
        await self._run.cancel_read.wait()
        if generation_id not in self._run.cancelling:
            await self._end_late(submission_id, generation_id)

    async def _end_late(self, submission_id: UUID, generation_id: UUID) -> None:
        emit(LateAnswer(
            fence=self._fence, stage=self._stage.name, submission=submission_id,
            generation=generation_id,
        ))  # fmt: skip
        try:
            await end_at_provider(self._provider, self._queue, self._fence.task_id, generation_id)
        except Exception as error:  # noqa: BLE001 - it is recorded as late
            # The janitor ends what nobody follows as soon as it can.
            emit(PollFailed(
                fence=self._fence, stage=self._stage.name, generation=generation_id,
                details=error.details if isinstance(error, Fault) else one_line(error),
            ))  # fmt: skip

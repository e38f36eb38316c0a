"""While a checkpoint says `generating`: follows a generation until it has ended.

However it ends (by itself, overdue, cancelled, gone, given up, of no use), its end is booked here
with its cost. No end depends on the provider: a generation that can't be read is given up. A
stage that is `storing` already is polled here once, for fresh URLs. Nothing here pays
for anything, or looks at an output.
"""

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never
from uuid import UUID, uuid4

from vidgen_worker.domain.faults import Disposition, Fault, FaultName, First, failure_fault
from vidgen_worker.domain.keys import Scope
from vidgen_worker.domain.task import Checkpoint, CheckpointState, Failed, GenerationEnd
from vidgen_worker.pipeline.forecast import Sight
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.pipeline.stages import Order, Stage
from vidgen_worker.providers.protocol import Generation, GenerationState, Provider
from vidgen_worker.queue.checkpoints import Place, Reported
from vidgen_worker.queue.errors import NotOursError
from vidgen_worker.queue.queue import Queue
from vidgen_worker.queue.submissions import Took
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    GenerationEnded,
    GenerationNotOurs,
    GenerationOverdue,
    PollFailed,
    Progressed,
)

SLOWEST_POLL = timedelta(minutes=1)
LONGEST_POLL = timedelta(minutes=2)
"""One poll with its tries: beyond this the poll loop is stuck."""
LONGEST_RETRY_AFTER = timedelta(minutes=5)
"""A Retry-After beyond this is not waited for: the generation may have ended long before."""
LAST_READS = 5
"""Failed reads in a row before the hard deadline counts, and before a finished generation waits on
without a slot: one bad answer must not discard a generation that has ended meanwhile."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The place of an output, and when it was recorded, by `boot_time`."""

    place: Place
    recorded: float


class Generating:
    """One generation of one attempt."""

    def __init__(
        self, tools: Tools, run: Run, stage: Stage, order: Order, generation_id: UUID
    ) -> None:
        self._tools = tools
        self._queue = tools.queue
        self._gates = tools.gates
        self._provider = tools.provider
        self._run = run
        self._fence = run.task.fence
        self._stage = stage
        self._model = order.request.model
        self._id = generation_id
        self._sight = Sight(tools, run, stage)
        self._polled_at = float("-inf")
        self._booked = False
        """Its end is booked: a later reading of it is not a second end."""

    async def follow(self, checkpoint: Checkpoint | None) -> tuple[Generation, Upload]:
        """Poll until the generation has ended; returns it only if it succeeded.

        Its output's place is recorded then. Raises CancelAskedError where its owner has asked.
        """
        settings = self._tools.settings
        deadline = settings.vidgen_stage_deadline.total_seconds()
        hard_deadline = settings.vidgen_stage_hard_deadline.total_seconds()
        began, trouble, overdue = time.monotonic(), 0, False
        if checkpoint and checkpoint.generation_id == self._id:
            # Only of the generation that is followed: one before it may be hours old.
            began -= _age(checkpoint)
            self._booked = checkpoint.state is CheckpointState.STORING
        # Also of a generation that is resumed: when it was polled last, nobody knows.
        await self._pause(self._sight.next_poll(time.monotonic() - began))
        while True:
            seconds = time.monotonic() - began
            try:
                generation = await self._poll()
                trouble = 0
                asked = timedelta()
            except Fault as fault:
                await self._go_on(fault, None, seconds)
                trouble += 1
                if self._booked and trouble >= LAST_READS:
                    # It succeeded before: only its output can't be had for now.
                    raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=fault.details) from fault
                asked = min(fault.retry_after or timedelta(), LONGEST_RETRY_AFTER)
                generation = Generation(self._id, GenerationState.UNKNOWN)
            end = end_of(generation)
            if end is not None:
                ended_by = _fault_of(generation)
                took = self._sight.took(seconds) if ended_by is None else None
                if ended_by is not None:
                    await self.end(end, generation.cost, seconds, ended_by)
                    raise ended_by
                place = self._place()
                recorded = await self.end(end, generation.cost, seconds, took=took, place=place)
                return generation, Upload(place, recorded)
            self._sight.note(generation, seconds)
            self._show(generation, seconds)
            looked = not trouble or trouble >= LAST_READS
            if seconds > hard_deadline and looked and not self._booked:
                # After a successful read, or after enough failed ones.
                await self._give_up(seconds)
            if seconds > deadline and not overdue:
                overdue = True
                emit(GenerationOverdue(
                    fence=self._fence, stage=self._stage.name, generation=self._id, seconds=seconds,
                ))  # fmt: skip
            slower = 2 ** min(trouble, 4) * (5 if overdue else 1)
            pause = self._sight.next_poll(time.monotonic() - began) * slower
            pause = min(pause, max(SLOWEST_POLL.total_seconds(), self._sight.pace.longest))
            await self._pause(max(pause, asked.total_seconds()))

    async def read_again(self, generation: Generation) -> Generation:
        """Read a finished generation for fresh URLs; trouble leaves the ones we have."""
        await self._pause(max(self._polled_at + self._sight.pace.least - time.monotonic(), 0))
        try:
            return await self._poll()
        except Fault as fault:
            await self._go_on(fault, generation.cost, 0)
            return generation

    async def cancel(self, checkpoint: Checkpoint) -> None:
        """End it at the provider, where it still runs."""
        end, cost = await end_at_provider(
            self._provider, self._queue, self._fence.task_id, self._id
        )
        if end is GenerationEnd.SUCCEEDED:
            # Paid and finished: its output is kept for a retry.
            await self.end(end, cost, _age(checkpoint))
        else:
            self._say_ended(end, cost, _age(checkpoint))

    async def end(  # noqa: PLR0913 - what is booked of an end
        self, end: GenerationEnd, cost: float | None, seconds: float, fault: Fault | None = None, *,
        took: Took | None = None, place: Place | None = None,
    ) -> float:  # fmt: skip
        """Book its end, and the task's where `fault` is that; see `Submissions.end_generation`."""
        self._say_ended(end, cost, seconds)
        fatal = fault is not None and fault.disposition is Disposition.FAIL
        recorded = await self._queue.submissions.end_generation(
            self._fence, self._stage.name, self._id, end, cost, self._stage.storing,
            failed(fault) if fault is not None and fatal else None,
            rejected=fault is not None and fault.rule.rejected, took=took, place=place,
        )  # fmt: skip
        if took is not None:
            self._queue.times.add(self._model, took.seconds, took.ended)
        return recorded

    def _place(self) -> Place:
        """Where its output is to be put: a place of its own for each upload."""
        upload_id, stage = uuid4(), self._stage
        return Place(
            upload_id, stage.bucket(self._tools.settings),
            stage.path(self._run.task.user_id, upload_id),
        )  # fmt: skip

    def _say_ended(self, end: GenerationEnd, cost: float | None, seconds: float) -> None:
        emit(GenerationEnded(
            fence=self._fence, stage=self._stage.name, model=self._model, generation=self._id,
            state=end, cost=cost, seconds=round(seconds, 3), repeated=self._booked or None,
        ))  # fmt: skip
        self._booked = True

    async def _poll(self) -> Generation:
        """Poll, and let the watchdog notice a poll that hangs. Raises Fault."""
        turn = ("poll", self._id)
        self._tools.turns.turned(turn, LONGEST_POLL)
        self._polled_at = time.monotonic()
        try:
            return await self._provider.poll(self._id)
        finally:
            self._tools.turns.rests(turn)

    async def _go_on(self, fault: Fault, cost: float | None, seconds: float) -> None:
        """Say that a poll failed; raises its Fault where another one would not help.

        Raises NotOursError where only another key can tell what has become of it.
        """
        if fault.disposition is not Disposition.IN_PLACE:
            if not await self._queue.submissions.is_gone(self._fence.task_id, self._id):
                emit(GenerationNotOurs(
                    fence=self._fence, stage=self._stage.name, generation=self._id,
                    account=self._queue.key.scopes.account,
                ))  # fmt: skip
                raise NotOursError(str(self._id)) from fault
            await self.end(GenerationEnd.GONE, cost, seconds)
            raise fault
        emit(PollFailed(
            fence=self._fence, stage=self._stage.name, generation=self._id, details=fault.details,
        ))  # fmt: skip
        if fault.rule.first is First.ASK_FOR_THE_KEY:
            await self._leave_to_another_key()

    async def _leave_to_another_key(self) -> None:
        """Close the gate of a key that the provider refuses, whatever it is asked.

        Raises NotOursError where another worker goes on: it may have a good one.
        """
        try:
            await self._provider.account()
        except Fault as fault:
            if fault.rule.first is not First.ASK_FOR_THE_KEY:
                return
            denied = Fault(FaultName.PROVIDER_DENIED, details=fault.details)
        else:
            return
        gate = self._gates.of(Scope.KEY, self._model)
        await self._gates.close(gate, denied.code, denied.message, denied.details)
        if await self._gates.stands_aside():
            raise NotOursError(str(self._id)) from denied

    async def _give_up(self, seconds: float) -> None:
        """The hard deadline has passed: end it at the provider and let the stage begin anew."""
        end, details = GenerationEnd.CANCELLED, f"{self._id} after {seconds:.0f} s"
        try:
            await self._provider.cancel(self._id)
        except Fault as fault:
            # Nobody can say what becomes of it: booked with its estimate, its cost read later.
            end = GenerationEnd.GIVEN_UP
            details = f"{details}, and it can't be cancelled: {fault.details}"
        await self.end(end, None, seconds)
        raise Fault(FaultName.GENERATION_OVERDUE, details=details)

    def _show(self, generation: Generation, seconds: float) -> None:
        """Progress to the row, throttled: from this step's milestone towards the next one."""
        within = min(max(generation.progress or 0.0, 0.0), 1.0)
        low, high = self._stage.generating.progress, self._stage.storing.progress
        if generation.state is GenerationState.RUNNING:
            emit(Progressed(
                fence=self._fence, stage=self._stage.name, generation=self._id,
                stage_progress=round(within * 100, 1),
            ))  # fmt: skip
        self._tools.report(Reported(
            self._fence, low + (high - low) * within, within * 100,
            _MESSAGES.get(generation.state, self._stage.generating.message),
            self._sight.seconds_left(seconds),
        ))  # fmt: skip

    async def _pause(self, seconds: float) -> None:
        await self._run.pause(timedelta(seconds=seconds))


_MESSAGES = {
    GenerationState.THROTTLED: "Waiting for a place at the provider",
    GenerationState.PENDING: "Waiting for the provider to start",
}


def _fault_of(generation: Generation) -> Fault | None:
    """The fault of a generation that ended without an output; None where it has one."""
    match generation.state:
        case GenerationState.SUCCEEDED:
            return None
        case GenerationState.CANCELLED:
            return Fault(
                FaultName.GENERATION_GONE, details=f"{generation.id} was cancelled, not by us"
            )
        case _:
            return failure_fault(generation.failure_code, generation.failure or "", generation.cost)


def end_of(generation: Generation) -> GenerationEnd | None:
    """How a generation ended; None while it may go on."""
    match generation.state:
        case GenerationState.SUCCEEDED:
            return GenerationEnd.SUCCEEDED
        case GenerationState.FAILED:
            return GenerationEnd.FAILED
        case GenerationState.CANCELLED:
            return GenerationEnd.CANCELLED
        case (
            GenerationState.THROTTLED
            | GenerationState.PENDING
            | GenerationState.RUNNING
            | GenerationState.UNKNOWN
        ):
            return None
        case _:
            assert_never(generation.state)


def was_rejected(generation: Generation) -> bool:
    """Whether content rules ended it."""
    fault = _fault_of(generation)
    return fault is not None and fault.rule.rejected


def failed(fault: Fault) -> Failed:
    """The end of a task by a fault."""
    return Failed(fault.code, fault.message, fault.details, fault.visible())


def _age(checkpoint: Checkpoint) -> float:
    """Seconds since its generation was accepted."""
    since = checkpoint.generation_started_at or checkpoint.now
    return (checkpoint.now - since).total_seconds()


async def end_at_provider(
    provider: Provider, queue: Queue, task_id: UUID, generation_id: UUID
) -> tuple[GenerationEnd, float | None]:
    """Read a generation, cancel it if it still runs, and book its end: (end, cost).

    Read first: on a finished generation the same verb destroys its output, and after a cancel the
    cost may not be readable any more. Raises Fault when the provider can't be asked, NotOursError
    where only another key can tell.
    """
    try:
        generation = await provider.poll(generation_id)
    except Fault as fault:
        if not fault.rule.absent:
            raise
        if not await queue.submissions.is_gone(task_id, generation_id):
            raise NotOursError(str(generation_id)) from fault
        await queue.submissions.close_generation(task_id, generation_id, GenerationEnd.GONE, None)
        return GenerationEnd.GONE, None
    end, cost = end_of(generation), generation.cost
    rejected = end is not None and was_rejected(generation)
    if end is None:
        await provider.cancel(generation_id)
        end = GenerationEnd.CANCELLED
        try:
            cost = (await provider.poll(generation_id)).cost
        except Fault:
            # 404 after a cancel is the documented answer: then the estimate is all there is.
            cost = None
    # A cancel does not hide a rejection.
    await queue.submissions.close_generation(task_id, generation_id, end, cost, rejected=rejected)
    return end, cost

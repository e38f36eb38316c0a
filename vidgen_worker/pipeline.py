"""One attempt at one task: walks the stages from their checkpoints to an Outcome.

Start, restart, drain and crash take the same path: load what is known, do what is missing. Every
await may be the last one, so each paid or slow step ends in a checkpoint before the next begins.
Nothing here claims, renews a lease or writes the task's end: that is the worker's.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

from vidgen_worker.config import Settings
from vidgen_worker.errors import Disposition, Fault, failure_fault
from vidgen_worker.events import (
    GateOpened,
    GenerationEnded,
    GenerationOverdue,
    LateAnswer,
    OutputConformed,
    OutputFetched,
    OutputUploaded,
    PollFailed,
    Progressed,
    ResolutionMapped,
    StageDone,
    StageResumed,
    SubmissionAnswered,
    SubmissionBegun,
    SubmissionRecorded,
    SubmissionUnknown,
    emit,
)
from vidgen_worker.lease import boot_time
from vidgen_worker.media import Media
from vidgen_worker.notify import Turns
from vidgen_worker.providers import Accepted, Generation, GenerationState, Provider, Request
from vidgen_worker.providers.runway_inputs import with_frame
from vidgen_worker.queue import (
    CancelAskedError,
    LeaseLostError,
    Loaded,
    Queue,
    Reported,
    SubmissionCapError,
    scene_of,
)
from vidgen_worker.resolution import Resolution, UnsupportedResolutionError, look_up
from vidgen_worker.scratch import Scratch
from vidgen_worker.stages import IMAGE, PIPELINE, Order, Stage, check_scene
from vidgen_worker.storage import Storage
from vidgen_worker.storm import PROVIDER_STORM, Part, StormWatch
from vidgen_worker.task import (
    Answer,
    Artifact,
    Cancelled,
    Checkpoint,
    CheckpointState,
    Completed,
    Fence,
    Outcome,
    StageName,
    Task,
)

SIGNED_FOR = timedelta(hours=1)
SLOWEST_POLL = timedelta(minutes=1)
LONGEST_POLL = timedelta(minutes=2)
"""One poll with its tries: beyond this the poll loop is stuck."""
FETCH_TRIES = 3
ANSWER_POLL = timedelta(seconds=1)

T = TypeVar("T")


class ProvenError(Exception):
    """A task that ran alone has reached its next checkpoint: no need to be alone any more."""


@dataclass(slots=True)
class Run:
    """The mutable side of one attempt, shared with the worker that holds the lease."""

    task: Task
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    trial: str | None = None
    """The model whose gate this task was let through, to try whether a storm has passed."""
    posting: "asyncio.Task[UUID] | None" = None
    """The paid POST in flight with its records: never cut, not even by a drain."""
    submitted: set[StageName] = field(default_factory=set)
    """Stages whose generation this attempt itself has submitted."""
    generations: dict[StageName, UUID] = field(default_factory=dict)
    done: set[StageName] = field(default_factory=set)
    outputs: dict[StageName, tuple[str, ...]] = field(default_factory=dict)
    """Output URLs as this attempt read them: minutes old, where they are good for a day."""
    concluding: bool = False
    """The end is being written: a verdict "lost" of a heartbeat may already be our own doing."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What an attempt works with. `license` returns once something paid may be started."""

    settings: Settings
    queue: Queue
    provider: Provider
    storage: Storage
    media: Media
    storm: StormWatch
    license: Callable[[], Awaitable[None]]
    report: Callable[[Reported], None]
    turns: Turns
    scratch: Scratch


class Pipeline:
    """Walks one task. Make one per attempt."""

    def __init__(self, tools: Tools, run: Run) -> None:
        self._tools = tools
        self._settings = tools.settings
        self._queue = tools.queue
        self._provider = tools.provider
        self._run = run
        self._task = run.task
        self._fence: Fence = run.task.fence
        self._models: dict[StageName, str] = {}
        self._booked: set[UUID] = set()
        """Generations whose end is written down: what is said of them again is no second end."""

    async def walk(self) -> Outcome:
        """Run the attempt to its Outcome.

        Raises Fault, LeaseLostError, SubmissionCapError, GateClosedError or NoSlotError.
        """
        loaded = await self._queue.load(self._fence)
        if loaded.cancel_requested or self._run.cancel.is_set():
            return await self._cancel(loaded)
        try:
            orders = await self._prepare(loaded)
            frame = ""
            for stage in PIPELINE:
                artifact = await self._stage(stage, loaded, orders[stage.name], frame)
                self._run.done.add(stage.name)
                if stage is IMAGE:
                    frame = self._tools.storage.public_url(artifact.bucket, artifact.path)
            expires_at = datetime.now(UTC) + SIGNED_FOR
            url = await self._tools.storage.sign(artifact.bucket, artifact.path, SIGNED_FOR)
        except CancelAskedError:
            return await self._cancel(await self._queue.load(self._fence))
        return Completed(url, expires_at)

    # What to ask for.

    async def _prepare(self, loaded: Loaded) -> dict[StageName, Order]:
        """Look everything up, check it, and hold the credits, before anything is paid.

        A stage that has begun keeps its frozen request; the others read the scene afresh.
        """
        orders = {
            name: Order.thawed(name, checkpoint.request)
            for name, checkpoint in loaded.checkpoints.items()
        }
        fresh = tuple(stage for stage in PIPELINE if stage.name not in orders)
        resolution: Resolution | None = None
        if fresh:
            if loaded.scene is None:
                raise Fault("scene_not_found", details=f"scene {self._task.scene_id}")
            scene = scene_of(loaded.scene)
            try:
                resolution = look_up(scene.resolution)
            except UnsupportedResolutionError as error:
                raise Fault(
                    "resolution_unsupported", details=str(error), field="resolution",
                    message=f"The scenario's {error}, then retry.",
                ) from error  # fmt: skip
            emit(ResolutionMapped(
                fence=self._fence, resolution=resolution.resolution,
                video_ratio=resolution.video_ratio, image_ratio=resolution.image_ratio,
                fallback=resolution.fallback,
            ))  # fmt: skip
            check_scene(fresh, scene, resolution, self._settings)
            for stage in fresh:
                orders[stage.name] = stage.order(scene, resolution, self._settings, _NO_FRAME)
        due = frozenset(
            stage.name for stage in PIPELINE if not _is_done(loaded.checkpoints.get(stage.name))
        )
        verdict = await self._queue.start(self._fence, resolution, due)
        if verdict == "refused":
            raise Fault("insufficient_credits", details=f"user {self._task.user_id}")
        if verdict == "price_missing":
            raise Fault("price_missing", details="credit_prices lacks an action")
        return orders

    # One stage.

    async def _stage(self, stage: Stage, loaded: Loaded, order: Order, frame: str) -> Artifact:
        """Do what is missing of one stage."""
        checkpoint = loaded.checkpoints.get(stage.name)
        if checkpoint and checkpoint.artifact and checkpoint.state is CheckpointState.DONE:
            return checkpoint.artifact
        self._models[stage.name] = order.request.model
        generation_id, waited = None, 0.0
        if checkpoint:
            emit(StageResumed(
                fence=self._fence, stage=stage.name, state=checkpoint.state,
                generation=checkpoint.generation_id,
            ))  # fmt: skip
            generation_id = checkpoint.generation_id
            if generation_id is not None and checkpoint.state is CheckpointState.STORING:
                self._booked.add(generation_id)
            if generation_id is not None and checkpoint.generation_started_at:
                # Only of the generation that is followed: one before it may be hours old.
                waited = (checkpoint.now - checkpoint.generation_started_at).total_seconds()
            if generation_id is None and stage.name not in loaded.closed:
                generation_id = await self._late_answer(stage, checkpoint)
        resumed = generation_id is not None
        if generation_id is None:
            generation_id = await self._submit(stage, order, loaded, frame)
            self._raise_if_proven()
        self._run.generations[stage.name] = generation_id
        generation = await self._follow(stage, generation_id, waited, resumed=resumed)
        return await self._store(stage, order, generation)

    async def _late_answer(self, stage: Stage, checkpoint: Checkpoint) -> UUID | None:
        """Wait for the answer to another worker's POST, until it can't come any more.

        Returns the generation to attach to; None when the submission counts as unknown now.
        """
        patience = self._settings.submission_patience
        while True:
            row = await self._queue.read_submission(checkpoint.submission_id)
            if row is None or row["answer"] in ("refused", "unknown") or row["late"]:
                return None
            if row["answer"] == "generation":
                accepted = Accepted(row["generation_id"], None)
                mine, _ = await self._queue.answer(
                    self._fence, stage.name, checkpoint.submission_id, Answer.GENERATION,
                    accepted, "",
                )  # fmt: skip
                if not mine:
                    raise LeaseLostError(str(self._task.id))
                return accepted.generation_id
            remaining = row["sent_at"] + patience - row["now"]
            if remaining <= timedelta(0):
                await self._count_as_unknown(stage, checkpoint, patience)
                # Read once more: an answer that was recorded just before is attached to, and one
                # that comes from now on finds itself counted, and is ended by whoever records it.
                continue
            await self._pause(min(remaining, ANSWER_POLL))

    async def _count_as_unknown(
        self, stage: Stage, checkpoint: Checkpoint, patience: timedelta
    ) -> None:
        details = f"no answer was recorded within {patience.total_seconds():g} s"
        await self._queue.answer(
            self._fence, stage.name, checkpoint.submission_id, Answer.UNKNOWN, None, details
        )
        order = Order.thawed(stage.name, checkpoint.request)
        emit(SubmissionUnknown(
            fence=self._fence, stage=stage.name, submission=checkpoint.submission_id,
            fingerprint=order.request.fingerprint(), details=details,
        ))  # fmt: skip

    async def _submit(self, stage: Stage, order: Order, loaded: Loaded, frame: str) -> UUID:
        """Pay for a generation: recorded before and after, never sent twice blindly."""
        if stage is IMAGE:
            return await self._submit_once(stage, order, order.request, loaded.inputs)
        # The first frame: the image generation's own output, fetched fresh; then our public copy.
        refused: Fault | None = None
        for url in await self._frames(loaded, frame):
            try:
                return await self._submit_once(
                    stage, order, with_frame(order.request, url), loaded.inputs
                )
            except Fault as fault:
                if fault.name != "frame_refused":
                    raise
                refused = fault
        raise refused or Fault("frame_refused", details="there is no still to start from")

    async def _frames(self, loaded: Loaded, stored: str) -> list[str]:
        """Where the provider may fetch the still, best first."""
        image = self._run.generations.get(StageName.IMAGE)
        checkpoint = loaded.checkpoints.get(StageName.IMAGE)
        generation_id = image or (checkpoint.generation_id if checkpoint else None)
        urls = list(self._run.outputs.get(StageName.IMAGE, ())[:1])
        if generation_id is not None and not urls:
            try:
                generation = await self._provider.poll(generation_id)
                urls = list(generation.outputs[:1])
            except Fault as fault:
                # The stored copy serves as well: a still that is gone there costs nothing.
                emit(PollFailed(
                    fence=self._fence, stage=StageName.IMAGE, generation=generation_id,
                    details=fault.details,
                ))  # fmt: skip
        return [*urls, stored]

    async def _submit_once(self, stage: Stage, order: Order, request: Request, inputs: str) -> UUID:
        await self._tools.license()
        self._raise_if_cancelled()
        frozen = Order(request, order.ratio, order.seconds).frozen()
        # A task of its own: whatever ends this attempt (drain, lost lease, cancel) must not cut
        # the POST, and its answer is recorded however late it comes. The record before it belongs
        # to it: one that no POST follows would be waited for, and then counted as paid.
        posting = asyncio.create_task(self._post(stage, request, frozen, inputs))
        self._run.posting = posting
        asked = asyncio.create_task(self._run.cancel.wait())
        try:
            await asyncio.wait({posting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not posting.done():
                # The answer will find nobody who follows it, and its generation is ended then.
                raise CancelAskedError
            generation_id = posting.result()
        finally:
            asked.cancel()
            if posting.done():
                self._run.posting = None
        self._run.submitted.add(stage.name)
        return generation_id

    async def _post(
        self, stage: Stage, request: Request, frozen: Mapping[str, Any], inputs: str
    ) -> UUID:
        """The paid POST, with the record before it and of whatever was answered."""
        submission_id = uuid4()
        sent = await self._queue.begin_submission(
            self._fence, request, frozen, inputs, stage.generating, submission_id
        )
        emit(SubmissionBegun(
            fence=self._fence, stage=stage.name, submission=submission_id, model=request.model,
            fingerprint=request.fingerprint(),
        ))  # fmt: skip
        try:
            self._raise_if_stale(sent)
            accepted = await self._provider.submit(request)
        except Fault as fault:
            unknown = fault.name == "submission_unknown"
            if unknown:
                emit(SubmissionUnknown(
                    fence=self._fence, stage=stage.name, submission=submission_id,
                    fingerprint=request.fingerprint(), details=fault.details,
                ))  # fmt: skip
            answer = Answer.UNKNOWN if unknown else Answer.REFUSED
            mine, _ = await self._queue.answer(
                self._fence, stage.name, submission_id, answer, None, fault.details
            )
            if not mine:
                raise LeaseLostError(str(self._task.id)) from fault
            raise
        self._tools.storm.passed(Part.SUBMIT, request.model)
        emit(SubmissionAnswered(
            fence=self._fence, stage=stage.name, submission=submission_id,
            generation=accepted.generation_id, estimated_cost=accepted.estimated_cost,
        ))  # fmt: skip
        # Known from here on, recorded or not: a drain without Postgres says it in the log.
        self._run.generations[stage.name] = accepted.generation_id
        mine, fate = await self._queue.answer(
            self._fence, stage.name, submission_id, Answer.GENERATION, accepted, ""
        )
        emit(SubmissionRecorded(
            fence=self._fence, stage=stage.name, submission=submission_id,
            generation=accepted.generation_id,
        ))  # fmt: skip
        if fate == "superseded":
            emit(LateAnswer(
                fence=self._fence, stage=stage.name, submission=submission_id,
                generation=accepted.generation_id,
            ))  # fmt: skip
            await self._end_late(stage, accepted.generation_id)
        if not mine or fate != "followed":
            raise LeaseLostError(str(self._task.id))
        return accepted.generation_id

    def _raise_if_stale(self, sent: float) -> None:
        """Raise Fault where a process was frozen after the record: it must not POST any more.

        Its successor waits for the answer as long as a POST that began at once may take, and has
        paid anew by now.
        """
        late = boot_time() - sent
        margin = self._settings.submission_patience - self._settings.vidgen_submit_timeout
        if late > margin.total_seconds():
            details = f"not sent: this process stood still for {late:.1f} s before the POST"
            raise Fault("provider_unreachable", details=details)

    async def _end_late(self, stage: Stage, generation_id: UUID) -> None:
        try:
            await end_at_provider(self._provider, self._queue, self._task.id, generation_id)
        except Fault as fault:
            # The janitor ends what nobody follows as soon as the provider can be asked.
            emit(PollFailed(
                fence=self._fence, stage=stage.name, generation=generation_id,
                details=fault.details,
            ))  # fmt: skip

    # Following a generation.

    async def _follow(
        self, stage: Stage, generation_id: UUID, waited: float, *, resumed: bool
    ) -> Generation:
        """Poll until the generation has ended; returns it only if it succeeded."""
        settings = self._settings
        interval = settings.vidgen_poll_interval.total_seconds()
        deadline = settings.vidgen_stage_deadline.total_seconds()
        hard_deadline = settings.vidgen_stage_hard_deadline.total_seconds()
        began, trouble, overdue = time.monotonic() - waited, 0, False
        if not resumed:
            await self._pause(timedelta(seconds=interval * random.uniform(1.0, 1.25)))  # noqa: S311
        while True:
            seconds = time.monotonic() - began
            try:
                generation = await self._poll(generation_id)
                trouble = 0
            except Fault as fault:
                if fault.disposition is not Disposition.IN_PLACE:
                    await self._end(stage, generation_id, "gone", None, seconds)
                    raise
                trouble += 1
                emit(PollFailed(
                    fence=self._fence, stage=stage.name, generation=generation_id,
                    details=fault.details,
                ))  # fmt: skip
                generation = Generation(generation_id, GenerationState.UNKNOWN)
            if generation.state.terminal:
                await self._end(
                    stage, generation_id, generation.state.value, generation.cost, seconds
                )
                succeeded = self._succeeded(generation)
                self._raise_if_proven()
                return succeeded
            self._show(stage, generation)
            if seconds > hard_deadline and not trouble:
                # Only after a look: what has finished meanwhile would be destroyed.
                await self._give_up(stage, generation_id, seconds)
            if seconds > deadline and not overdue:
                overdue = True
                emit(GenerationOverdue(
                    fence=self._fence, stage=stage.name, generation=generation_id, seconds=seconds,
                ))  # fmt: skip
            slower = 2 ** min(trouble, 4) * (5 if overdue else 1)
            pause = min(interval * slower, max(SLOWEST_POLL.total_seconds(), interval))
            await self._pause(timedelta(seconds=pause * random.uniform(1.0, 1.25)))  # noqa: S311

    async def _poll(self, generation_id: UUID) -> Generation:
        """Poll under the eyes of the watchdog. Raises Fault."""
        turn = ("poll", generation_id)
        self._tools.turns.turned(turn, LONGEST_POLL)
        try:
            return await self._provider.poll(generation_id)
        finally:
            self._tools.turns.rests(turn)

    def _succeeded(self, generation: Generation) -> Generation:
        match generation.state:
            case GenerationState.SUCCEEDED:
                return generation
            case GenerationState.CANCELLED:
                raise Fault("generation_gone", details=f"{generation.id} was cancelled, not by us")
            case _:
                raise failure_fault(
                    generation.failure_code, generation.failure or "", generation.cost
                )

    async def _end(
        self, stage: Stage, generation_id: UUID, state: str, cost: float | None, seconds: float
    ) -> None:
        self._say_ended(stage.name, generation_id, state, cost, seconds)
        await self._queue.end_generation(
            self._fence, stage.name, generation_id, state, cost, stage.storing
        )

    def _say_ended(
        self, stage: StageName, generation_id: UUID, state: str, cost: float | None, seconds: float
    ) -> None:
        emit(GenerationEnded(
            fence=self._fence, stage=stage, model=self._models[stage], generation=generation_id,
            state=state, cost=cost, seconds=round(seconds, 3),
            repeated=generation_id in self._booked or None,
        ))  # fmt: skip
        self._booked.add(generation_id)

    async def _give_up(self, stage: Stage, generation_id: UUID, seconds: float) -> None:
        """The hard deadline has passed: end it at the provider and let the stage begin anew."""
        await self._provider.cancel(generation_id)
        await self._end(stage, generation_id, "cancelled", None, seconds)
        raise Fault("generation_overdue", details=f"{generation_id} after {seconds:.0f} s")

    def _show(self, stage: Stage, generation: Generation) -> None:
        """Progress to the row, throttled: from this step's milestone towards the next one."""
        within = min(max(generation.progress or 0.0, 0.0), 1.0)
        low, high = stage.generating.progress, stage.storing.progress
        if generation.state is GenerationState.RUNNING:
            emit(Progressed(
                fence=self._fence, stage=stage.name, generation=generation.id,
                stage_progress=round(within * 100, 1),
            ))  # fmt: skip
        self._tools.report(Reported(
            self._fence, low + (high - low) * within, within * 100,
            _MESSAGES.get(generation.state, stage.generating.message),
        ))  # fmt: skip

    # Storing an output.

    async def _store(self, stage: Stage, order: Order, generation: Generation) -> Artifact:
        """Fetch, look at, upload; then checkpoint, charge and row in one statement."""
        async with self._tools.scratch.file() as target:
            file, size, sha256 = await self._unless_cancelled(
                self._fetch(stage, order, generation, target)
            )
            await self._went_well(stage, order)
            artifact = Artifact(
                stage.bucket(self._settings), stage.path(self._task.user_id, generation.id),
                stage.media_type, size, sha256,
            )  # fmt: skip
            began = time.monotonic()
            await self._unless_cancelled(
                self._tools.storage.put(artifact.bucket, artifact.path, file, stage.media_type)
            )
            self._tools.storm.passed(Part.STORAGE, order.request.model)
            emit(OutputUploaded(
                fence=self._fence, stage=stage.name, generation=generation.id,
                bucket=artifact.bucket, path=artifact.path, size=size,
                seconds=round(time.monotonic() - began, 3),
            ))  # fmt: skip
        url = None
        if stage is IMAGE:
            url = self._tools.storage.public_url(artifact.bucket, artifact.path)
        charged = await self._queue.finish_stage(
            self._fence, stage.name, artifact, url, stage.stored
        )
        emit(StageDone(fence=self._fence, stage=stage.name, charged=charged))
        return artifact

    async def _went_well(self, stage: Stage, order: Order) -> None:
        """The provider has delivered: no storm any more, where this task was let through to try."""
        model = order.request.model
        self._tools.storm.passed(Part.GENERATION, model)
        if self._run.trial != model or stage.name not in self._run.submitted:
            return
        self._run.trial = None
        seconds = await self._queue.open_gate(model)
        if seconds is not None:
            emit(GateOpened(model=model, code=PROVIDER_STORM, closed_seconds=round(seconds, 1)))

    async def _fetch(
        self, stage: Stage, order: Order, generation: Generation, target: Path
    ) -> tuple[Path, int, str]:
        """Download until the bytes are there and decode. A fresh URL costs a GET, never money."""
        broken: set[str] = set()
        tries = 0
        while True:
            tries += 1
            sha256 = ""
            try:
                if not generation.outputs:
                    raise Fault("output_unavailable", details=f"{generation.id} names no output")  # noqa: TRY301
                downloaded = await self._tools.media.download(
                    generation.outputs[0], target, stage.max_bytes(self._settings)
                )
                sha256 = downloaded.sha256
                found = await self._look(stage, order, generation, target)
            except Fault as fault:
                if fault.name == "output_undecodable":
                    if sha256 in broken:
                        await self._end(stage, generation.id, "undecodable", generation.cost, 0)
                        raise Fault("output_broken", details=fault.details) from fault
                    broken.add(sha256)
                elif fault.name != "output_unavailable":
                    raise
                if tries >= FETCH_TRIES:
                    if fault.name == "output_undecodable":
                        await self._end(stage, generation.id, "undecodable", generation.cost, 0)
                    raise
                await self._pause(timedelta(seconds=min(0.25 * 2**tries, 4)))
            else:
                self._run.outputs[stage.name] = generation.outputs
                emit(OutputFetched(
                    fence=self._fence, stage=stage.name, generation=generation.id, size=found[1],
                ))  # fmt: skip
                return found
            generation = await self._read_again(stage, generation)

    async def _read_again(self, stage: Stage, generation: Generation) -> Generation:
        """Read a finished generation for fresh URLs; trouble leaves the ones we have."""
        try:
            return await self._provider.poll(generation.id)
        except Fault as fault:
            if fault.disposition is not Disposition.IN_PLACE:
                await self._end(stage, generation.id, "gone", generation.cost, 0)
                raise
            emit(PollFailed(
                fence=self._fence, stage=stage.name, generation=generation.id,
                details=fault.details,
            ))  # fmt: skip
            return generation

    async def _look(
        self, stage: Stage, order: Order, generation: Generation, file: Path
    ) -> tuple[Path, int, str]:
        """Decode the output, in a process of its own, and bring it to what was asked for."""
        if stage is IMAGE:
            picture = await self._tools.media.check_image(file, order.ratio)
            was = f"{picture.format} {picture.width}:{picture.height}"
            changed, kept = picture.conformed, (picture.file, picture.size, picture.sha256)
        else:
            clip = await self._tools.media.check_video(file, order.ratio, order.seconds)
            was = f"{clip.codec} {clip.width}:{clip.height} {clip.seconds:.2f} s"
            changed = clip.conformed or not clip.right_duration
            kept = (clip.file, clip.size, clip.sha256)
        if changed:
            now = f"{order.ratio} {order.seconds} s" if stage is not IMAGE else order.ratio
            emit(OutputConformed(
                fence=self._fence, stage=stage.name, generation=generation.id, was=was, now=now,
            ))  # fmt: skip
        return kept

    # Cancelling.

    async def _cancel(self, loaded: Loaded) -> Outcome:
        """End what still runs at the provider; what is stored and settled stays."""
        for checkpoint in loaded.checkpoints.values():
            generation_id = checkpoint.generation_id
            if checkpoint.state is not CheckpointState.GENERATING or generation_id is None:
                continue
            state, cost = await end_at_provider(
                self._provider, self._queue, self._task.id, generation_id
            )
            request = Order.thawed(checkpoint.stage, checkpoint.request).request
            self._models[checkpoint.stage] = request.model
            since = checkpoint.generation_started_at or checkpoint.now
            seconds = (checkpoint.now - since).total_seconds()
            if state == "succeeded":
                # Paid and finished: its output is kept for a retry.
                stage = next(stage for stage in PIPELINE if stage.name is checkpoint.stage)
                await self._end(stage, generation_id, state, cost, seconds)
            else:
                self._say_ended(checkpoint.stage, generation_id, state, cost, seconds)
        return Cancelled()

    def _raise_if_proven(self) -> None:
        """End the trial of a task that ran alone: it has come further than where workers died."""
        if self._task.alone:
            raise ProvenError

    def _raise_if_cancelled(self) -> None:
        if self._run.cancel.is_set():
            raise CancelAskedError

    async def _unless_cancelled(self, work: Awaitable[T]) -> T:
        """Do this, but stop it when the owner asks to cancel. Raises CancelAskedError."""
        working = asyncio.ensure_future(work)
        asked = asyncio.create_task(self._run.cancel.wait())
        try:
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
        finally:
            asked.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        raise CancelAskedError

    async def _pause(self, pause: timedelta) -> None:
        """Sleep, but wake when the owner asks to cancel. Raises CancelAskedError."""
        try:
            async with asyncio.timeout(pause.total_seconds()):
                await self._run.cancel.wait()
        except TimeoutError:
            return
        raise CancelAskedError


_NO_FRAME = "https://frame.invalid/still.png"
"""Stands in for the first frame until there is one; never sent."""

_MESSAGES = {
    GenerationState.THROTTLED: "Waiting for a place at the provider",
    GenerationState.PENDING: "Waiting for the provider to start",
}


def _is_done(checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and checkpoint.state is CheckpointState.DONE


async def end_at_provider(
    provider: Provider, queue: Queue, task_id: UUID, generation_id: UUID
) -> tuple[str, float | None]:
    """Read a generation, cancel it if it still runs, and book its end: (state, cost).

    Read first: on a finished generation the same verb destroys its output, and after a cancel the
    cost may not be readable any more. Raises Fault when the provider can't be asked.
    """
    try:
        generation = await provider.poll(generation_id)
    except Fault as fault:
        if fault.name != "generation_gone":
            raise
        await queue.close_generation(task_id, generation_id, "gone", None)
        return "gone", None
    state, cost = generation.state.value, generation.cost
    if not generation.state.terminal:
        await provider.cancel(generation_id)
        state = "cancelled"
        try:
            cost = (await provider.poll(generation_id)).cost
        except Fault:
            # 404 after a cancel is the documented answer: then the estimate is all there is.
            cost = None
    await queue.close_generation(task_id, generation_id, state, cost)
    return state, cost


__all__ = ["Pipeline", "Run", "SubmissionCapError", "Tools", "end_at_provider"]

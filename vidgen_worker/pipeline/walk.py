"""One attempt at one task: walks the stages from their checkpoints to an Outcome.

Start, restart, drain and crash take the same path: load what is known, do what is missing. Every
await may be the last one, so each paid or slow step ends in a checkpoint before the next begins;
each state of a checkpoint has a module of its own, with its name. Nothing here claims, renews a
lease or writes the task's end: the worker does.
"""

from collections.abc import Mapping
from uuid import UUID

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.resolution import Resolution, UnsupportedResolutionError, look_up
from vidgen_worker.domain.scene import scene_of
from vidgen_worker.domain.task import (
    Artifact,
    Cancelled,
    Checkpoint,
    CheckpointState,
    Completed,
    Funding,
    Outcome,
    StageName,
)
from vidgen_worker.pipeline.generating import Generating
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.pipeline.stages import Order, Stage
from vidgen_worker.pipeline.storing import Storing
from vidgen_worker.pipeline.submitting import Submitting
from vidgen_worker.queue.checkpoints import Loaded
from vidgen_worker.queue.errors import CancelAskedError, NotOursError
from vidgen_worker.storage.signing import completed
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    CancelGivenUp,
    GenerationNotOurs,
    ResolutionMapped,
    StageResumed,
)


class ProvenError(Exception):
    """A task that ran alone has come further than where workers died: its trial is over."""


class Pipeline:
    """Walks one task. Make one per attempt."""

    def __init__(self, tools: Tools, run: Run) -> None:
        self._tools = tools
        self._settings = tools.settings
        self._queue = tools.queue
        self._storage = tools.storage
        self._stages = tools.stages
        self._run = run
        self._task = run.task
        self._fence = run.task.fence

    async def walk(self) -> Outcome:
        """Run the attempt to its Outcome.

        Raises Fault, LeaseLostError, SubmissionCapError, GateClosedError, NoSlotError or
        NotOursError.
        """
        loaded = await self._queue.checkpoints.start(self._fence)
        if loaded.verdict is not None:
            # An earlier attempt reached it and could not write it: nothing is paid for again.
            return loaded.verdict
        self._raise_if_elsewhere(loaded)
        if loaded.cancel_requested or self._run.cancel.is_set():
            return await self._cancel(loaded)
        try:
            orders = self._prepare(loaded)
            artifacts: dict[StageName, Artifact] = {}
            for stage in self._stages:
                if stage.name not in loaded.checkpoints and self._scene_changed(loaded):
                    loaded = await self._queue.checkpoints.start(self._fence)
                    if loaded.cancel_requested:
                        return await self._cancel(loaded)
                    orders = self._prepare(loaded)
                checkpoint, order = loaded.checkpoints.get(stage.name), orders[stage.name]
                artifact = checkpoint.artifact if checkpoint else None
                if artifact is None:
                    await self._queue.times.read()
                    submitting = Submitting(self._tools, self._run, stage, order)
                    generation_id = await self._begun(submitting, stage, loaded)
                    if generation_id is None:
                        generation_id = await submitting.submit(loaded, artifacts)
                        self._raise_if_proven()
                    artifact = await self._finish(stage, order, checkpoint, generation_id)
                artifacts[stage.name] = artifact
                self._run.done.add(stage.name)
            return self._run.completed or await self._complete(artifacts)
        except CancelAskedError:
            try:
                loaded = await self._queue.checkpoints.load(self._fence)
                self._run.cancelling.update(
                    checkpoint.generation_id
                    for checkpoint in loaded.checkpoints.values()
                    if checkpoint.generation_id is not None
                )
            finally:
                self._run.cancel_read.set()
            return await self._cancel(loaded)

    def _scene_changed(self, loaded: Loaded) -> bool:
        """Whether the scene has changed since it was read."""
        return self._run.inputs is not None and self._run.inputs != loaded.inputs

    def _raise_if_elsewhere(self, loaded: Loaded) -> None:
        """Raise NotOursError where something lives that only another account's workers can see."""
        for name, checkpoint in loaded.checkpoints.items():
            lives = checkpoint.state is not CheckpointState.DONE and name not in loaded.closed
            if lives and not checkpoint.followed_here:
                emit(GenerationNotOurs(
                    fence=self._fence, stage=name, generation=checkpoint.generation_id,
                    account=checkpoint.account,
                ))  # fmt: skip
                raise NotOursError(str(self._fence.task_id))

    def _prepare(self, loaded: Loaded) -> dict[StageName, Order]:
        """Look everything up, and check it and that the credits are held, before anything is paid.

        A stage that has begun keeps its frozen request; the others read the scene afresh.
        """
        orders = {
            name: Order.thawed(checkpoint.request)
            for name, checkpoint in loaded.checkpoints.items()
        }
        fresh = tuple(stage for stage in self._stages if stage.name not in orders)
        resolution: Resolution | None = None
        if fresh:
            if loaded.scene is None:
                raise Fault(FaultName.SCENE_NOT_FOUND, details=f"scene {self._task.scene_id}")
            scene = scene_of(loaded.scene)
            try:
                resolution = look_up(scene.resolution)
            except UnsupportedResolutionError as error:
                raise Fault(
                    FaultName.RESOLUTION_UNSUPPORTED, details=str(error), field="resolution",
                    message=f"The scenario's {error}, then retry.",
                ) from error  # fmt: skip
            emit(ResolutionMapped(
                fence=self._fence, resolution=resolution.resolution,
                video_ratio=resolution.video_ratio, image_ratio=resolution.image_ratio,
                fallback=resolution.fallback,
            ))  # fmt: skip
            for stage in fresh:
                orders[stage.name] = stage.order(
                    scene, resolution, self._settings, self._tools.provider
                )
        self._run.orders = orders
        self._run.resolution = resolution
        if loaded.funding is Funding.REFUSED:
            raise Fault(FaultName.INSUFFICIENT_CREDITS, details=f"user {self._task.user_id}")
        if loaded.funding is Funding.PRICE_MISSING:
            raise Fault(FaultName.PRICE_MISSING, details="credit_prices lacks an action")
        return orders

    async def _begun(self, submitting: Submitting, stage: Stage, loaded: Loaded) -> UUID | None:
        """The generation that an earlier attempt has paid for; None: there is none to follow."""
        checkpoint = loaded.checkpoints.get(stage.name)
        if checkpoint is None:
            return None
        emit(StageResumed(
            fence=self._fence, stage=stage.name, state=checkpoint.state,
            generation=checkpoint.generation_id,
        ))  # fmt: skip
        submission_id = checkpoint.submission_id
        if checkpoint.generation_id is None and submission_id and stage.name not in loaded.closed:
            return await submitting.late_answer(submission_id)
        return checkpoint.generation_id

    async def _finish(
        self, stage: Stage, order: Order, checkpoint: Checkpoint | None, generation_id: UUID
    ) -> Artifact:
        """Follow a generation to its end, and store its output."""
        tools, run = self._tools, self._run
        run.generations[stage.name] = generation_id
        generating = Generating(tools, run, stage, order, generation_id)
        storing = checkpoint is not None and checkpoint.state is CheckpointState.STORING
        # A poll can't kill the worker: others may run beside it until its output is decoded.
        run.alone = self._task.alone and storing
        run.polling = not storing
        generation, upload = await generating.follow(checkpoint)
        run.polling = False
        if not storing:
            self._raise_if_proven()
        return await Storing(tools, run, stage, order, generating).store(generation, upload)

    def _raise_if_proven(self) -> None:
        """Raise ProvenError where a task that runs alone has come further than before."""
        if self._task.alone:
            raise ProvenError

    async def _complete(self, artifacts: Mapping[StageName, Artifact]) -> Completed:
        """Sign the address of what the task was ordered for."""
        result = next(artifacts[stage.name] for stage in self._stages if stage.is_result)
        return await completed(self._storage, result.bucket, result.path)

    async def _cancel(self, loaded: Loaded) -> Outcome:
        """End what still runs at the provider; what is stored and settled stays."""
        for stage in self._stages:
            checkpoint = loaded.checkpoints.get(stage.name)
            if not checkpoint or checkpoint.state is not CheckpointState.GENERATING:
                continue
            generation_id = checkpoint.generation_id
            if generation_id is not None:
                order = Order.thawed(checkpoint.request)
                generating = Generating(self._tools, self._run, stage, order, generation_id)
                try:
                    await generating.cancel(checkpoint)
                except Fault as fault:
                    if loaded.cancel_age < self._settings.vidgen_cancel_deadline:
                        raise
                    # Without its checkpoint the generation is a stray, which the janitor ends.
                    emit(CancelGivenUp(
                        fence=self._fence, stage=stage.name, generation=generation_id,
                        details=fault.details,
                    ))  # fmt: skip
        return Cancelled()

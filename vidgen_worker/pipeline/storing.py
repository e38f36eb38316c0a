"""While a checkpoint says `storing`: brings a generation's output into our bucket.

Fetched and looked at before it counts, then uploaded to a place of its own, then charged with the
checkpoint `done` in one statement, which shows the place to the owner. The janitor removes an
upload that is not charged after all. What is missing here costs a GET, never another generation.
"""

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from vidgen_worker.domain.faults import PROVIDER_STORM, Fault, FaultName, First
from vidgen_worker.domain.task import Artifact, Completed, GenerationEnd
from vidgen_worker.pipeline.generating import Generating, Upload
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.pipeline.stages import Order, Stage
from vidgen_worker.providers.protocol import Generation
from vidgen_worker.storage.signing import completed
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    OutputConformed,
    OutputFetched,
    OutputUploaded,
    StageDone,
    UploadBegun,
)

FETCH_TRIES = 3
UPLOAD_BEGINS_WITHIN = timedelta(hours=1)
"""After the record of an upload no try of it begins later than this: the janitor looks for what has
arrived for a day, and a worker that was frozen for longer must not upload any more."""


class Storing:
    """The output of one generation."""

    def __init__(
        self, tools: Tools, run: Run, stage: Stage, order: Order, generating: Generating
    ) -> None:
        self._tools = tools
        self._settings = tools.settings
        self._queue = tools.queue
        self._gates = tools.gates
        self._run = run
        self._fence = run.task.fence
        self._stage = stage
        self._order = order
        self._generating = generating

    async def store(self, generation: Generation, upload: Upload) -> Artifact:
        """Fetch and look at the output, then keep it."""
        async with self._tools.scratch.file() as target:
            file, size, sha256 = await self._run.unless_cancelled(self._fetch(generation, target))
            await self._went_well()
            place = upload.place
            artifact = Artifact(place.bucket, place.path, self._stage.media_type, size, sha256)
            await self.keep(generation.id, file, artifact, upload)
            return artifact

    async def keep(
        self, generation_id: UUID, file: Path, artifact: Artifact, upload: Upload
    ) -> None:
        """Upload it; then checkpoint, charge and row in one statement."""
        stage, storage = self._stage, self._tools.storage
        emit(UploadBegun(
            fence=self._fence, stage=stage.name, generation=generation_id,
            bucket=artifact.bucket, path=artifact.path,
        ))  # fmt: skip
        began = time.monotonic()
        until = upload.recorded + UPLOAD_BEGINS_WITHIN.total_seconds()
        await self._run.unless_cancelled(
            storage.put(artifact.bucket, artifact.path, file, stage.media_type, until=until)
        )
        emit(OutputUploaded(
            fence=self._fence, stage=stage.name, generation=generation_id,
            bucket=artifact.bucket, path=artifact.path, size=artifact.size,
            seconds=round(time.monotonic() - began, 3),
        ))  # fmt: skip
        url = storage.public_url(artifact.bucket, artifact.path) if stage.public else None
        end = await self._end(artifact)
        # From here on the verdict "lost" of a heartbeat may come from our own write.
        self._run.concluding = end is not None
        finished = await self._queue.checkpoints.finish_stage(
            self._fence, stage.name, self._order.request.model, artifact, upload.place.id,
            stage.shown(artifact, url), stage.stored, end,
        )  # fmt: skip
        emit(StageDone(fence=self._fence, stage=stage.name, charged=finished.charged))
        self._run.inputs = finished.inputs
        self._run.concluding = finished.seconds is not None
        if end is not None and finished.seconds is not None:
            self._run.completed = replace(end, seconds=finished.seconds)

    async def _end(self, artifact: Artifact) -> Completed | None:
        """The end of the task, where its result is stored last; None: it is written by itself."""
        if not self._stage.is_result or self._stage is not self._tools.stages[-1]:
            return None
        try:
            return await completed(self._tools.storage, artifact.bucket, artifact.path)
        except Fault:
            return None  # the walk signs it again once it is charged, and says what is wrong

    async def _went_well(self) -> None:
        """The provider has delivered: the storm is over that this task was let through to try."""
        model = self._order.request.model
        gate = self._run.trial
        if gate is None or gate.model != model or self._stage.name not in self._run.submitted:
            return
        self._run.trial = None
        await self._gates.open(gate, PROVIDER_STORM)

    async def _fetch(self, generation: Generation, target: Path) -> tuple[Path, int, str]:
        """Download until the bytes are there and decode. A fresh URL costs a GET, never money."""
        broken: set[str] = set()
        tries = 0
        while True:
            tries += 1
            sha256 = ""
            try:
                if not generation.outputs:
                    details = f"{generation.id} names no output"
                    raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details)  # noqa: TRY301
                downloaded = await self._tools.media.download(
                    generation.outputs[0], target, self._stage.max_bytes(self._settings)
                )
                sha256 = downloaded.sha256
                found = await self._judge(generation, target, downloaded.doubt)
            except Fault as fault:
                if fault.rule.first is First.COMPARE:
                    if sha256 in broken:
                        broken_twice = Fault(FaultName.OUTPUT_BROKEN, details=fault.details)
                        await self._generating.end(
                            GenerationEnd.UNDECODABLE, generation.cost, 0, broken_twice
                        )
                        raise broken_twice from fault
                    broken.add(sha256)
                elif fault.rule.first is not First.FETCH_AGAIN:
                    raise
                if tries >= FETCH_TRIES:
                    if fault.rule.first is First.COMPARE:
                        await self._generating.end(GenerationEnd.UNDECODABLE, generation.cost, 0)
                    raise
                await self._run.pause(timedelta(seconds=min(0.25 * 2**tries, 4)))
            else:
                self._run.outputs[self._stage.name] = generation.outputs
                emit(OutputFetched(
                    fence=self._fence, stage=self._stage.name, generation=generation.id,
                    size=found[1],
                ))  # fmt: skip
                return found
            generation = await self._generating.read_again(generation)

    async def _judge(
        self, generation: Generation, file: Path, doubt: str | None
    ) -> tuple[Path, int, str]:
        """Look at an output; one that broke off on its way says nothing about the generation."""
        try:
            kept, whole = await self._look(generation, file)
        except Fault as fault:
            if doubt is None or fault.rule.first is not First.COMPARE:
                raise
            details = f"{doubt}; {fault.details}"
            raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details) from fault
        if doubt is not None and not whole:
            details = f"{doubt}; what arrived decodes, but it may lack its end"
            raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details)
        return kept

    async def _look(self, generation: Generation, file: Path) -> tuple[tuple[Path, int, str], bool]:
        """Decode the output, in a process of its own, and bring it to what was asked for.

        Returns what is to be stored, and whether the delivered file is known to be whole.
        """
        looked = await self._stage.look(self._tools.media, file, self._order)
        if looked.conformed:
            was, now = looked.conformed
            emit(OutputConformed(
                fence=self._fence, stage=self._stage.name, generation=generation.id, was=was,
                now=now,
            ))  # fmt: skip
        return (looked.file, looked.size, looked.sha256), looked.whole

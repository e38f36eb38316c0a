"""The cut of a film whose parts have ended: output after output is made, stored, recorded, charged.

The record of an output is its checkpoint: an attempt that follows a crash skips what is stored
with the same key, so that at most one output is made again. Nothing here ends the film.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.task import Artifact, Completed, Task
from vidgen_worker.films.bringing import Brought, bring_assets, bring_clips
from vidgen_worker.films.cut import Cut, Output
from vidgen_worker.films.job import Job
from vidgen_worker.films.plan import Film, key, plan
from vidgen_worker.films.presets import FORMATS, Kind, files_of
from vidgen_worker.films.rendering import Failed, Made, Trouble, render
from vidgen_worker.films.studio import Studio, machine_fault
from vidgen_worker.media.scratch import discard
from vidgen_worker.queue.checkpoints import Reported, Step
from vidgen_worker.queue.films import LoadedFilm, Rendition
from vidgen_worker.storage.signing import completed
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import RenditionStored

BEGIN, END = 75.0, 95.0
"""Percent of a film's progress when its parts have ended, and when its outputs are stored."""
BEGUN = Step(BEGIN, "Cutting the film", "Bringing the scenes together")
UPLOAD_BEGINS_WITHIN = 3600.0
"""Seconds after the record of an upload in which a try of it may begin (see pipeline.storing)."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file that is to be made: its job, its output and that one's place, and its path."""

    job: Job
    output: Output
    number: int
    path: str


class Cutting:
    """The outputs of one film. Make one per attempt."""

    def __init__(self, studio: Studio, task: Task, film: LoadedFilm, cut: Cut) -> None:
        self._studio = studio
        self._task = task
        self._film = film
        self._cut = cut

    async def cut(self) -> Completed:
        """Make and store every output that is not stored yet.

        Raises CutError, Fault, LeaseLostError or RowRefusedError.
        """
        await self._studio.films.begin_rendering(self._task.fence, BEGUN)
        async with self._studio.folder() as folder:
            brought = await bring_assets(self._studio, folder, self._task.user_id, self._cut)
            clips = await bring_clips(self._studio, folder, self._film.clips, brought)
            film = Film(self._cut, clips, brought.assets)
            fonts = self._studio.fonts
            assert fonts is not None  # noqa: S101 - films are claimed where they are cut only
            jobs = await asyncio.to_thread(plan, film, fonts)
            wanted = self._wanted(jobs, brought)
            weights = [_weight(one.job) for one in wanted]
            for position, one in enumerate(wanted):
                if self._film.stored.get(one.job.name) != one.path:
                    progress = _Progress(self._studio, self._task, wanted, weights, position)
                    await self._store(one, position, folder, progress)
        return await self._completed(wanted)

    def _wanted(self, jobs: Sequence[Job], brought: Brought) -> list[_Wanted]:
        outputs = {
            name: (number, output)
            for number, output in enumerate(self._cut.outputs)
            for name in files_of(output)
        }
        return [
            _Wanted(job, outputs[job.name][1], outputs[job.name][0],
                    self._path(job, brought.digests))
            for job in jobs
        ]  # fmt: skip

    def _path(self, job: Job, digests: Mapping[str, str]) -> str:
        """Return the place of an output: in its owner's folder, by what its content depends on."""
        name = f"{job.name}-{key(job, digests)[:16]}.{FORMATS[job.format].extension}"
        return f"video-files/{self._task.user_id}/{self._task.id}/{name}"

    async def _store(
        self, wanted: _Wanted, position: int, folder: Path, progress: "_Progress"
    ) -> None:
        """Make one output; bring it to Storage; record and charge it in one statement."""
        began = time.monotonic()
        progress(0.0)
        made = await render(wanted.job, folder, progress)
        if isinstance(made, Failed):
            raise _fault(made, wanted)
        studio, fence = self._studio, self._task.fence
        try:
            await studio.films.begin_rendition(fence, studio.bucket, wanted.path)
            await studio.storage.put(
                studio.bucket, wanted.path, made.file, made.media_type,
                until=boot_time() + UPLOAD_BEGINS_WITHIN,
            )  # fmt: skip
        finally:
            discard(made.file)
        artifact = Artifact(studio.bucket, wanted.path, made.media_type, made.size, made.sha256)
        charged = await studio.films.finish_rendition(
            fence, _rendition(wanted, artifact, made, position), progress.after, progress.message
        )
        emit(RenditionStored(
            fence=fence, name=wanted.job.name, path=wanted.path, size=made.size,
            render_seconds=round(time.monotonic() - began, 3), charged=charged,
        ))  # fmt: skip

    async def _completed(self, wanted: Sequence[_Wanted]) -> Completed:
        """Sign the address of the first output with pictures that move."""
        for one in wanted:
            if FORMATS[one.job.format].media_type.startswith("video/"):
                return await completed(self._studio.storage, self._studio.bucket, one.path)
        return Completed(None, None)


def _weight(job: Job) -> int:
    """Return how long an output takes, in frames of a film: the others take next to nothing."""
    return job.frames if FORMATS[job.format].kind is Kind.FILM else 1


class _Progress:
    """How far the film has come, told while one of its outputs is made."""

    def __init__(
        self, studio: Studio, task: Task, wanted: Sequence[_Wanted], weights: Sequence[int],
        position: int,
    ) -> None:  # fmt: skip
        self._report = studio.report
        self._task = task
        self._done, self._own, self._all = sum(weights[:position]), weights[position], sum(weights)
        name = wanted[position].job.name
        self.message = f"Making {name} ({position + 1} of {len(wanted)})"

    def __call__(self, share: float) -> None:
        """Note the share of the output that is made, from 0 to 1."""
        self._report(Reported(
            self._task.fence, self._percent(share), round(100 * share, 1), self.message
        ))  # fmt: skip

    @property
    def after(self) -> float:
        """The film's progress once the output is stored."""
        return self._percent(1.0)

    def _percent(self, share: float) -> float:
        done = (self._done + share * self._own) / self._all
        return round(BEGIN + (END - BEGIN) * done, 1)


def _rendition(wanted: _Wanted, artifact: Artifact, made: Made, position: int) -> Rendition:
    job = wanted.job
    kind = FORMATS[job.format].kind
    seen, lasts = kind in (Kind.FILM, Kind.STILL), kind in (Kind.FILM, Kind.SOUND)
    return Rendition(
        name=job.name, position=position, preset=wanted.output.preset, artifact=artifact,
        width=job.width if seen else None, height=job.height if seen else None,
        seconds=float(job.frames / job.fps) if lasts else None, quality=made.quality,
    )  # fmt: skip


def _fault(failed: Failed, wanted: _Wanted) -> Fault:
    """Return the fault of an output that was not made."""
    details = f"{wanted.job.name}: {failed.details}"
    match failed.trouble:
        case Trouble.MACHINE:
            return machine_fault(failed)
        case Trouble.PART_UNUSABLE:
            return Fault(FaultName.PART_UNUSABLE, details=details)
        case Trouble.RENDER_FAILED:
            return Fault(
                FaultName.RENDER_FAILED, details=details, field=f"/outputs/{wanted.number}",
                message=f"The output {wanted.job.name} could not be made. Leave it out, or choose "
                "another preset, and insert a new task.",
            )  # fmt: skip

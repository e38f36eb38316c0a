"""Makes the file of one output, by the way that its format, its target and its clips ask for."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from av.video.frame import VideoFrame

from vidgen_worker.films.job import Job
from vidgen_worker.films.presets import FORMATS, Kind
from vidgen_worker.films.render.files import Encoding, Tell, Writer, webvtt, write_gif
from vidgen_worker.films.render.joining import join, joinable
from vidgen_worker.films.render.likeness import SMALLEST
from vidgen_worker.films.render.look import check
from vidgen_worker.films.render.overlays import overlaid
from vidgen_worker.films.render.quality import (
    CORRECTIONS,
    NEAR,
    SHORTEST,
    TARGETS,
    Guess,
    Quality,
    Scale,
    bounded,
    guess,
    measured,
    samples,
    scale_of,
    slope_of,
    steps,
)  # fmt: skip
from vidgen_worker.films.render.scenes import film
from vidgen_worker.films.render.sound import sound
from vidgen_worker.films.render.stills import write_still
from vidgen_worker.media.formats import TooLargeError
from vidgen_worker.media.libav import opened, video_stream

USUAL = "best"
"""The quality of an output without a target."""
WON = 0.95
"""Encoding anew has to save at least the rest of the source's bytes."""
MOST_BITS = 0.4
"""Bits for each pixel of a film with a target: grain would take any number."""
FILLED = 0.92
"""How much of an output's largest size is aimed at."""


def make(job: Job, folder: Path, file: Path, tell: Tell) -> dict[str, Any]:
    """Make an output, and judge it; return what is known of it.

    Raises TooLargeError where it can't be as small as it has to be.
    """
    quality: dict[str, float] | None = None
    form = FORMATS[job.format]
    if form.kind is Kind.TEXT:
        file.write_text(webvtt(job), encoding="utf-8")
    elif form.kind is Kind.STILL:
        write_still(job, folder, file, tell)
    elif form.kind is Kind.SOUND:
        with Writer(job, file) as writer:
            writer.write(None, sound(job, folder), tell)
    elif job.format == "gif":
        write_gif(job, file, pictures(job, folder), tell)
    else:
        quality = _film(job, folder, file, tell)
    check(job, file)
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest, "quality": quality}


def pictures(job: Job, folder: Path) -> Iterator[VideoFrame]:
    """Yield the frames of a film as they are shown."""
    return overlaid(film(job, folder), job, folder)


def _film(job: Job, folder: Path, file: Path, tell: Tell) -> dict[str, float] | None:
    may_join = job.same and joinable(job, folder)
    if may_join and job.target is None:
        join(job, folder, file)
        tell(job.frames)
        return None
    quality = _Encoder(job, folder, file, tell).encode()
    brought = sum((folder / scene.file).stat().st_size for scene in job.scenes)
    if may_join and file.stat().st_size >= WON * brought:
        join(job, folder, file)
        return None
    if job.most_bytes is not None and file.stat().st_size > job.most_bytes:
        raise TooLargeError(f"{job.name}: it can't be made smaller than {job.most_bytes} bytes")
    return quality


class _Encoder:
    """Encodes a film until it is as good and as small as it has to be: four times at the most."""

    def __init__(self, job: Job, folder: Path, file: Path, tell: Tell) -> None:
        self.job, self.folder, self.file, self.tell = job, folder, file, tell
        self.bits = self._most_bits()

    def encode(self) -> dict[str, float] | None:
        """Write the file; return what is known of its quality."""
        scale = scale_of(self.job)
        if scale is None:
            self._write(None)
            return None
        target = self.job.target
        if target is None or self._is_too_little():
            crf = scale.usual[target or USUAL]
            self._write(crf)
            self._shrink(crf)
            return {"crf": crf}
        found = guess(samples(self._pictures(), self.job), self.job, scale, TARGETS[target])
        return self._corrected(scale, found, TARGETS[target])

    def _corrected(self, scale: Scale, found: Guess, target: float) -> dict[str, float]:
        """Encode with a rate factor; with other ones as long as the result is off."""
        crf, slope = found.crf, found.slope
        self._write(crf)
        made = self._measured()
        for _ in range(CORRECTIONS):
            off = made.estimate.vmaf - target
            better = bounded(scale, crf + steps(made.estimate, target, slope))
            # Where the bits were too few, a lower rate factor changes nothing.
            if abs(off) <= NEAR or better == crf or (off < 0 and self._is_full()):
                break
            before = made
            self._write(better)
            made = self._measured()
            slope = slope_of(before.estimate, made.estimate, better - crf)
            crf = better
        if self._shrink(crf):
            made = self._measured()
        vmaf, xpsnr = round(made.estimate.vmaf, 1), round(made.xpsnr, 2)
        return {"vmaf": vmaf, "xpsnr": xpsnr, "crf": crf}

    def _write(self, crf: int | None) -> None:
        job = self.job
        heard = sound(job, self.folder) if job.mix and FORMATS[job.format].sound else None
        with Writer(job, self.file, how=Encoding(crf, self.bits)) as writer:
            writer.write(self._pictures(), heard, self.tell)

    def _shrink(self, crf: int) -> bool:
        """Encode again with fewer bits a second if the file is larger than it may be."""
        size, most = self.file.stat().st_size, self.job.most_bytes
        if most is None or size <= most or self.bits is None:
            return False
        self.bits = int(self.bits * FILLED * most / size)
        self._write(crf)
        return True

    def _pictures(self) -> Iterator[VideoFrame]:
        return pictures(self.job, self.folder)

    def _measured(self) -> Quality:
        with opened("mov", self.file) as container:
            stream = video_stream(container, 2)
            return measured(self._pictures(), container.decode(stream), self.job)

    def _is_too_little(self) -> bool:
        """Whether it is an image that moves, or too short or small to be worth a try."""
        job = self.job
        return (
            FORMATS[job.format].media_type.startswith("image/")
            or job.frames / job.fps < SHORTEST
            or min(job.width, job.height) < SMALLEST
        )

    def _is_full(self) -> bool:
        seconds = float(self.job.frames / self.job.fps)
        return self.bits is not None and self.file.stat().st_size * 8 > 0.8 * self.bits * seconds

    def _most_bits(self) -> int | None:
        job = self.job
        if job.target is None and job.most_bytes is None:
            return None
        most = MOST_BITS * float(job.width * job.height * job.fps)
        if job.most_bytes is not None:
            heard = 128_000 if job.mix else 0
            seconds = float(job.frames / job.fps)
            most = min(most, max(50_000.0, job.most_bytes * 8 * FILLED / seconds - heard))
        return int(most)

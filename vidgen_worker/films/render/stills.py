"""Stills of a film: the frame that was asked for, or its most typical one, as JPEG or AVIF."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from av.video.frame import VideoFrame

from vidgen_worker.films.job import Job
from vidgen_worker.films.render.files import Tell
from vidgen_worker.films.render.planes import planes_of, rgb_of
from vidgen_worker.films.render.scenes import film

LOOKS_A_SECOND = 4
SMALL = (48, 48)
JPEG = {"format": "JPEG", "quality": 88, "optimize": True, "progressive": True}
AVIF = {"format": "AVIF", "quality": 70, "speed": 6, "max_threads": 1, "subsampling": "4:2:0"}


def write_still(job: Job, folder: Path, file: Path, tell: Tell) -> None:
    """Write one frame of the film."""
    number = typical(film(job, folder), job, tell) if job.at is None else job.at
    frame = next(islice(film(job, folder), number, None))
    options: dict[str, Any] = JPEG if job.format == "jpeg" else AVIF
    rgb_of(frame).save(file, **options)
    tell(job.frames)


def typical(frames: Iterator[VideoFrame], job: Job, tell: Tell) -> int:
    """Return the frame whose brightness is spread most like the whole film's.

    Frames in which two scenes dissolve are not asked.
    """
    step = max(1, round(job.fps / LOOKS_A_SECOND))
    fading = {n for scene in job.scenes for n in range(scene.start, scene.start + scene.fade)}
    last = job.scenes[-1].end
    spreads: dict[int, list[int]] = {}
    for number, frame in enumerate(frames):
        if number % step == 0 and number < last and (number not in fading or not spreads):
            spreads[number] = planes_of(frame)[0].resize(SMALL).histogram()
        tell(number // 2)
    mean = [Fraction(sum(column), len(spreads)) for column in zip(*spreads.values(), strict=True)]
    return min(
        spreads,
        key=lambda n: (sum(abs(a - b) for a, b in zip(spreads[n], mean, strict=True)), n),
    )

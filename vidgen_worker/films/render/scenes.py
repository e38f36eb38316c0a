"""The pictures of a film, one frame after the other, without captions: the clips as they are cut.

Scene by scene: at most two clips are open at a time, so memory does not grow with their number.
"""

import gc
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from PIL import Image, ImageFilter

from vidgen_worker.films.job import Job, Scene
from vidgen_worker.films.render.pictures import picture
from vidgen_worker.films.render.planes import (
    BLACK,
    PIXELS,
    Planes,
    blended,
    frame_from_rgb,
    frame_of,
    plain,
    planes_of,
)  # fmt: skip
from vidgen_worker.media.clip import shown_of
from vidgen_worker.media.filters import Shown, fitting
from vidgen_worker.media.formats import UndecodableError, form, head_of, mp4_end
from vidgen_worker.media.libav import THREADS, opened, video_stream

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.stream import VideoStream

SEEK_FROM = 2
"""Seconds into a clip from which it is worth looking for a key frame."""
BLUR_SHARE, BLUR_RADIUS, BLUR_LIGHT = 8, 3, 0.65
"""A blurred background is drawn at an eighth of the size, and darker than the picture."""


def film(job: Job, folder: Path) -> Iterator[VideoFrame]:
    """Yield the frames of a film, `job.frames` of them; one may be yielded again."""
    return islice(_endless(job, folder), job.frames)


def _endless(job: Job, folder: Path) -> Iterator[VideoFrame]:
    before: Iterator[VideoFrame] | None = None
    for number, scene in enumerate(job.scenes):
        shots = _shots(job, scene, folder)
        for step in range(scene.fade):
            one = planes_of(next(before)) if before else plain((job.width, job.height))
            share = (step + 1) / (scene.fade + 1)
            yield frame_of(blended(one, planes_of(next(shots)), share))
        following = job.scenes[number + 1].fade if number + 1 < len(job.scenes) else 0
        yield from islice(shots, scene.frames - scene.fade - following)
        before = shots
    if job.end_card:
        yield from _card(job, folder)


def _card(job: Job, folder: Path) -> Iterator[VideoFrame]:
    card = picture(folder / str(job.end_card))
    flat = Image.new("RGBA", card.size, (0, 0, 0, 255))
    flat.alpha_composite(card)
    frame = frame_from_rgb(flat.convert("RGB"))
    # An end card is shown whole, whatever its shape.
    fit = "contain" if job.fit == "contain" else "blur"
    made = _Fitted(job.width, job.height, fit).draw(frame, Shown())
    while True:
        yield made


def _shots(job: Job, scene: Scene, folder: Path) -> Iterator[VideoFrame]:
    """Yield exactly the frames of one scene; the last one again where its clip ends early."""
    fitted = _Fitted(job.width, job.height, job.fit)
    found: VideoFrame | None = None
    clip = _Clip(folder / scene.file, scene.first / job.fps)
    try:
        for number in range(scene.frames):
            time = (scene.first + number) / job.fps
            if (frame := clip.at(time, 1 / job.fps / 4)) is not None:
                found = fitted.draw(frame, clip.shown(frame))
            if found is None:
                raise UndecodableError(f"{scene.file}: there is no picture at {float(time):.2f} s")
            yield found
    finally:
        clip.close()
        # Filter graphs and their filters know each other: only a collection frees their frames.
        del fitted, found
        gc.collect()


class _Clip:
    """A clip that is read forward only. Raises UndecodableError for a file that is no film."""

    def __init__(self, file: Path, start: Fraction) -> None:
        self.file = file
        name = form(head_of(file))
        self.container = opened(name, file, mp4_end(file) if name == "mov" else None)
        self.stream: VideoStream = video_stream(self.container, THREADS)
        self.unit = self.stream.time_base or Fraction(1, 1000)
        self.origin = self.stream.start_time or 0
        if start > SEEK_FROM:
            self.container.seek(self.origin + int(start / self.unit), stream=self.stream)
        self.frames = self.container.decode(self.stream)
        self.waiting: VideoFrame | None = None
        self.known: dict[tuple[int, int, str], Shown] = {}
        self.ended = False

    def at(self, time: Fraction, slack: Fraction) -> VideoFrame | None:
        """Return the frame that is shown at a time; None: the one before it still is."""
        shown = None
        while not self.ended:
            if self.waiting is None:
                self.waiting = next(self.frames, None)
                self.ended = self.waiting is None
                continue
            if self._time(self.waiting) > time + slack:
                # A film may begin with a frame that comes a little late: it is shown until then.
                break
            shown, self.waiting = self.waiting, None
        return shown

    def shown(self, frame: VideoFrame) -> Shown:
        """Return how a frame is to be shown: like the first one of its size and format.

        Whoever looks at a frame's side data keeps the frame: PyAV's two hold each other.
        """
        like = (frame.width, frame.height, frame.format.name)
        if like not in self.known:
            self.known[like] = shown_of(self.stream, frame)
        return self.known[like]

    def _time(self, frame: VideoFrame) -> Fraction:
        return ((frame.pts or 0) - self.origin) * self.unit

    def close(self) -> None:
        """Let go of the file."""
        self.container.close()


class _Fitted:
    """Brings frames to the output's size: cropped, between bars, or before a blurred picture."""

    def __init__(self, width: int, height: int, fit: str) -> None:
        self.size = (width, height)
        self.fit = fit
        self.graphs: dict[tuple[int, int], Graph] = {}
        self.like: tuple[object, ...] = ()

    def draw(self, frame: VideoFrame, shown: Shown) -> VideoFrame:
        """Return a frame of the size."""
        like = (frame.width, frame.height, frame.format.name, shown)
        if like != self.like:
            self.graphs.clear()  # frames may change in the middle of a film
            self.like = like
        inner = self._inner(shown.size(frame.width, frame.height))
        if self.fit == "cover" or inner == self.size:
            return self._fitted(frame, shown, self.size)
        front = planes_of(self._fitted(frame, shown, inner))
        if self.fit == "blur":
            small = tuple(max(2, side // BLUR_SHARE // 2 * 2) for side in self.size)
            back = _blurred(planes_of(self._fitted(frame, shown, (small[0], small[1]))), self.size)
        else:
            back = plain(self.size)
        x, y = ((all_ - side) // 4 * 2 for all_, side in zip(self.size, inner, strict=True))
        made = [plane.copy() for plane in back]
        for number, (plane, whole) in enumerate(zip(front, made, strict=True)):
            whole.paste(plane, (x, y) if number == 0 else (x // 2, y // 2))
        return frame_of((made[0], made[1], made[2]))

    def _inner(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of a whole picture within the output."""
        share = min(Fraction(self.size[0], size[0]), Fraction(self.size[1], size[1]))
        wide, high = (max(2, round(side * share / 2) * 2) for side in size)
        return min(wide, self.size[0]), min(high, self.size[1])

    def _fitted(self, frame: VideoFrame, shown: Shown, size: tuple[int, int]) -> VideoFrame:
        if size not in self.graphs:
            self.graphs[size] = fitting(frame, shown, *size, pixels=PIXELS, keep_alpha=False)
        graph = self.graphs[size]
        graph.vpush(frame)
        return graph.vpull()


def _blurred(small: Planes, size: tuple[int, int]) -> Planes:
    dark = [round(BLACK[0] + max(0, light - BLACK[0]) * BLUR_LIGHT) for light in range(256)]
    y, u, v = (plane.filter(ImageFilter.GaussianBlur(BLUR_RADIUS)) for plane in small)
    # libav enlarges in a fraction of Pillow's time, and what is blurred shows no difference.
    large = frame_of((y.point(dark), u, v)).reformat(
        *size, PIXELS, interpolation=Interpolation.BILINEAR
    )
    return planes_of(large)

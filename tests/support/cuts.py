"""Clips, sounds and pictures to make films of: small, drawn and heard by formula."""

import array
import asyncio
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import av
from PIL import Image

from vidgen_worker.films.cut import Cut
from vidgen_worker.films.fonts import Fonts
from vidgen_worker.films.job import Job
from vidgen_worker.films.plan import Film, plan
from vidgen_worker.films.presets import FORMATS
from vidgen_worker.films.reading import read
from vidgen_worker.films.render.outputs import make
from vidgen_worker.films.rendering import Failed, Made, look, render
from vidgen_worker.films.source import Source

RATE = 48_000
Picture = Callable[[int], Image.Image]


def clip(  # noqa: PLR0913 - what a clip can be
    file: Path,
    picture: Picture,
    *,
    frames: int = 24,
    fps: int = 24,
    tone: float | None = None,
    loud: float = 0.2,
) -> Path:
    """Write an H.264 MP4 of pictures, with a tone in Hz."""
    first = picture(0)
    with av.open(str(file), "w", options={"movflags": "+faststart"}) as output:
        stream = output.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *first.size, "yuv420p"
        sound = output.add_stream("aac", rate=RATE, layout="stereo") if tone else None
        for number in range(frames):
            frame = av.VideoFrame.from_image(picture(number))  # type: ignore[no-untyped-call]
            output.mux(stream.encode(frame.reformat(format="yuv420p")))
        output.mux(stream.encode(None))
        if sound is not None and tone is not None:
            assert isinstance(sound, av.AudioStream)
            for heard in tones(tone, frames * RATE // fps, loud, step=1024):
                output.mux(sound.encode(heard))
            output.mux(sound.encode(None))
    return file


def wav(file: Path, tone: float, seconds: float, loud: float = 0.2) -> Path:
    """Write a WAV of one tone."""
    with av.open(str(file), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        resampler = av.AudioResampler(format="s16", layout="stereo", rate=RATE)
        for heard in tones(tone, round(seconds * RATE), loud, step=4800):
            for frame in resampler.resample(heard):
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file


def tones(tone: float, samples: int, loud: float, *, step: int) -> list[av.AudioFrame]:
    """Return a sine as frames."""
    frames = []
    for start in range(0, samples, step):
        count = min(step, samples - start)
        frame = av.AudioFrame(format="fltp", layout="stereo", samples=count)
        wave = array.array(
            "f", (loud * math.sin(math.tau * tone * n / RATE) for n in range(start, start + count))
        )
        for plane in frame.planes:
            memoryview(plane)[: 4 * count] = wave.tobytes()
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        frames.append(frame)
    return frames


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (320, 180)) -> Picture:
    """A picture of one colour."""
    return lambda _: Image.new("RGB", size, colour)


def cut(parts: int, **rest: object) -> Cut:
    """A cut of so many scenes; `parts_` says more of each."""
    more = rest.pop("parts_", [{}] * parts)
    assert isinstance(more, Sequence)
    said = [{"scene": str(uuid4())} | dict(one) for one in more]
    return read({"parts": said, "outputs": ["web"], **rest})


class Studio:
    """A folder of files that films are made of, and a loop to make them on."""

    def __init__(self, folder: Path, fonts: Fonts | None = None) -> None:
        self.folder = folder
        self.fonts = fonts or Fonts()
        self.runner = asyncio.Runner()
        self.sources: dict[str, Source] = {}

    def source(self, name: str) -> Source:
        """Look at a file, once."""
        if name not in self.sources:
            found = self.runner.run(look(self.folder, name))
            assert isinstance(found, Source), found
            self.sources[name] = found
        return self.sources[name]

    def plan(self, cut: Cut, clips: Sequence[str]) -> tuple[Job, ...]:
        """Plan a film of some clips; its assets are files of the same names."""
        assets = {name: self.source(name) for name in cut.assets}
        return plan(Film(cut, tuple(map(self.source, clips)), assets), self.fonts)

    def here(self, job: Job) -> Path:
        """Make one output in this process: starting one is most of a small render."""
        file = self.folder / f"{job.name}.{FORMATS[job.format].extension}"
        make(job, self.folder, file, lambda _: None)
        return file

    def render(self, job: Job) -> Made | Failed:
        """Make one output."""
        return self.runner.run(render(job, self.folder, lambda _: None))

    def made(self, job: Job) -> Made:
        """Make one output that can be made."""
        made = self.render(job)
        assert isinstance(made, Made), made
        return made


def heard(file: Path) -> list[float]:
    """Return the left samples of a file's sound, at `RATE`."""
    samples = array.array("f")
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
    with av.open(str(file)) as container:
        for frame in [*container.decode(audio=0), None]:
            for made in resampler.resample(frame):
                samples.frombytes(bytes(made.planes[0])[: 4 * made.samples])
    return samples.tolist()


def strength(samples: Sequence[float], tone: float) -> float:
    """Return how loud a tone is within samples (Goertzel's algorithm)."""
    turn = 2 * math.cos(math.tau * tone / RATE)
    one = two = 0.0
    for sample in samples:
        one, two = sample + turn * one - two, one
    return math.sqrt(max(0.0, one * one + two * two - turn * one * two)) * 2 / len(samples)


def pictures(file: Path) -> list[Image.Image]:
    """Return all frames of a film as RGB pictures."""
    with av.open(str(file)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]  # type: ignore[no-untyped-call]

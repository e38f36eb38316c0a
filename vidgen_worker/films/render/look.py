"""Looks: what a clip or an asset is before a film is made of it, and whether an output is right.

An output is judged by the look that judges the provider's files: read to its end, its key frames
decoded, before it counts.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from vidgen_worker.films.job import Job
from vidgen_worker.films.presets import FORMATS, Format, Kind
from vidgen_worker.films.render.pictures import picture
from vidgen_worker.media.clip import first_sound, plays_everywhere, walk
from vidgen_worker.media.formats import UndecodableError, form, head_of, mp4_end
from vidgen_worker.media.libav import opened, video_stream

SOUNDS = ((b"fLaC", "flac"), (b"ID3", "mp3"), (b"\xff\xfb", "mp3"), (b"\xff\xf3", "mp3"),
          (b"\xff\xf2", "mp3"))  # fmt: skip
PICTURES = frozenset({"png", "jpeg", "webp"})


class WrongOutputError(Exception):
    """A file that was made is not what was asked for: a defect of ours."""


def sound_form(head: bytes) -> str:
    """Name the format of a file that sound is read from. Raises as `form` does."""
    for magic, name in SOUNDS:
        if head.startswith(magic):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        return "wav"
    return form(head)


def look(file: Path) -> dict[str, Any]:
    """Read a clip, a sound or a picture to its end. Raises UndecodableError, NoOutputError."""
    name = sound_form(head_of(file))
    found: dict[str, Any] = {
        "width": 0, "height": 0, "seconds": 0.0, "fps": (0, 1), "sound": False, "codec": name,
        "plain": False, "size": file.stat().st_size,
    }  # fmt: skip
    if name in PICTURES:
        return found | dict(zip(("width", "height"), picture(file).size, strict=True))
    with opened(name, file, mp4_end(file) if name == "mov" else None) as container:
        sound = first_sound(container)
        found["sound"] = sound is not None
        if not container.streams.video or _is_cover(container.streams.video[0]):
            return found | {"seconds": _heard(container, sound)}
        return found | _watched(container, video_stream(container))


def _is_cover(stream: VideoStream) -> bool:
    """Whether it is the picture of a piece of music."""
    return bool(int(stream.disposition) & ATTACHED)


ATTACHED = 1024


def _heard(container: InputContainer, sound: AudioStream | None) -> float:
    """Decode a sound to its end; return its seconds."""
    if sound is None:
        raise UndecodableError("there is neither picture nor sound in it that can be decoded")
    samples, rate = 0, sound.codec_context.sample_rate
    for frame in container.decode(sound):
        samples += frame.samples
    if not samples or not rate:
        raise UndecodableError("there is no sound in it")
    return samples / rate


def _watched(container: InputContainer, stream: VideoStream) -> dict[str, Any]:
    plays = plays_everywhere(container, stream)
    rate = stream.average_rate or stream.guessed_rate or Fraction(24)
    read = walk(container, stream)
    if read.shown is None:
        raise UndecodableError("no picture of it can be decoded")
    width, height = read.shown
    return {
        "width": width, "height": height, "seconds": read.seconds, "codec": read.codec,
        "fps": (rate.numerator, rate.denominator), "plain": plays and read.plain,
        "frames": read.frames, "pixels": stream.codec_context.pix_fmt,
    }  # fmt: skip


# Outputs


def check(job: Job, file: Path) -> None:
    """Look at an output. Raises WrongOutputError for one that is not what the job says."""
    form_ = FORMATS[job.format]
    if form_.kind is Kind.TEXT:
        return
    if form_.media_type.startswith("image/"):
        _check_picture(job, form_, file)
        return
    found = look(file)
    wanted: dict[str, object] = {}
    if form_.kind is Kind.FILM:
        wanted |= {"width": job.width, "height": job.height}
        wanted |= {"frames": job.frames, "pixels": form_.pixels}
        slack = 1 / job.fps
        if abs(found["seconds"] - job.frames / job.fps) > slack:
            wanted["seconds"] = float(job.frames / job.fps)
    if form_.kind is Kind.SOUND or (form_.sound and job.mix):
        wanted["sound"] = True
    wrong = {name: found.get(name) for name, value in wanted.items() if found.get(name) != value}
    if wrong:
        raise WrongOutputError(f"{job.name}: {wrong} in place of {wanted}")
    if form_.container in ("mp4", "mov", "ipod") and not _starts_fast(file):
        raise WrongOutputError(f"{job.name}: its index is behind its pictures")


def _check_picture(job: Job, form_: Format, file: Path) -> None:
    """Decode all of a still or of a moving picture."""
    with Image.open(file, formats=(form_.container.upper(),)) as found:
        frames = getattr(found, "n_frames", 1)
        for number in range(frames):
            found.seek(number)
            found.load()
        size = found.size
    # A GIF leaves out frames in which nothing moves.
    enough = 1 <= frames <= job.frames if form_.container == "gif" else frames == job.frames
    if size != (job.width, job.height) or not (form_.kind is Kind.STILL or enough):
        raise WrongOutputError(f"{job.name}: {frames} pictures of {size}")


def _starts_fast(file: Path) -> bool:
    """Whether a player that has the first bytes knows where everything is."""
    place, size = 0, file.stat().st_size
    with file.open("rb") as content:
        while place + 8 <= size:
            content.seek(place)
            header = content.read(8)
            if header[4:] in (b"moov", b"mdat"):
                return header[4:] == b"moov"
            place += max(8, int.from_bytes(header[:4], "big"))
    return False

"""Joins clips without encoding them: their packets, one clip after the other.

Only for clips of one encoder with the same settings, of which nothing changes. It never decodes.
"""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av.container import InputContainer

from vidgen_worker.films.job import Job
from vidgen_worker.films.render.files import FAST, Writer
from vidgen_worker.films.render.sound import sound
from vidgen_worker.media.formats import form, head_of, mp4_end
from vidgen_worker.media.libav import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.video.stream import VideoStream


def joinable(job: Job, folder: Path) -> bool:
    """Whether the clips' packets fit into one stream, and are as many as the film's frames."""
    likes, packets = set(), 0
    for scene in job.scenes:
        with _opened(folder / scene.file) as clip:
            stream = clip.streams.video[0]
            context = stream.codec_context
            size = (context.width, context.height)
            likes.add((context.extradata, size, stream.time_base, stream.average_rate))
            packets += stream.frames
            if stream.average_rate != job.fps:
                return False
    return len(likes) == 1 and packets == job.frames


def join(job: Job, folder: Path, file: Path) -> None:
    """Write the film from the clips' own packets, and from one clip's own sound.

    Sound of several clips is encoded anew: its packets are not as long as the pictures.
    """
    if len(job.scenes) == 1:
        _copy(folder / job.scenes[0].file, file)
        return
    with _opened(folder / job.scenes[0].file) as first:
        writer = Writer(job, file, template=first.streams.video[0])
    with writer:
        heard = writer.heard(sound(job, folder)) if job.mix else None
        for scene in job.scenes:
            for packet in _packets(folder / scene.file, scene.start / job.fps):
                writer.copy(packet)
            if heard is not None:
                writer.follow(heard, job.sample(scene.end))
        if heard is not None:
            writer.end_sound(heard)


def _packets(file: Path, start: Fraction) -> "Iterator[av.Packet[VideoStream]]":
    """Yield the packets of a clip's pictures, later by `start` seconds."""
    with _opened(file) as clip:
        stream = clip.streams.video[0]
        unit = stream.time_base or Fraction(1, 1000)
        shift = round(start / unit) - (stream.start_time or 0)
        for packet in clip.demux(stream):
            if packet.size and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                yield packet


def _copy(source: Path, file: Path) -> None:
    """Copy pictures and the first sound of one clip, its index to the front."""
    with _opened(source) as clip, av.open(str(file), "w", format="mp4", options=FAST) as output:
        kept = [clip.streams.video[0], *clip.streams.audio[:1]]
        made = {stream.index: output.add_stream_from_template(stream) for stream in kept}
        for packet in clip.demux(*kept):
            if packet.size:
                packet.stream = made[packet.stream.index]
                output.mux(packet)


def _opened(file: Path) -> InputContainer:
    name = form(head_of(file))
    return opened(name, file, mp4_end(file) if name == "mov" else None)

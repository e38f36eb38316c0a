"""What is drawn over a film's pictures: the caption of the moment and the logo."""

from collections.abc import Iterator
from pathlib import Path

from av.video.frame import VideoFrame
from PIL import Image

from vidgen_worker.films.job import Job, Mark
from vidgen_worker.films.render.captions import drawn
from vidgen_worker.films.render.pictures import picture
from vidgen_worker.films.render.planes import Overlay, frame_of, overlay_of, pasted, planes_of

LOGO_MARGIN = 0.05
"""Of the shorter side."""


def overlaid(frames: Iterator[VideoFrame], job: Job, folder: Path) -> Iterator[VideoFrame]:
    """Yield the frames of a film with its captions, and its logo over all parts."""
    logo = _logo(job, job.logo, folder) if job.logo else None
    parts_end = job.scenes[-1].end
    cues = iter(job.cues)
    cue = next(cues, None)
    caption: Overlay | None = None
    for number, frame in enumerate(frames):
        while cue is not None and number >= cue.end:
            cue, caption = next(cues, None), None
        over = [logo] if logo and number < parts_end else []
        if cue is not None and number >= cue.start:
            caption = caption or overlay_of(*drawn(cue, job))
            over.append(caption)
        yield frame_of(pasted(planes_of(frame), over)) if over else frame


def _logo(job: Job, mark: Mark, folder: Path) -> Overlay:
    """Scale a logo down to its share of the width; it is never enlarged."""
    found = picture(folder / mark.file)
    box = found.getchannel("A").getbbox()
    found = found.crop(box) if box else found
    margin = round(min(job.width, job.height) * LOGO_MARGIN)
    share = min(1.0, job.width * mark.width / found.width, (job.height - 2 * margin) / found.height)
    size = (max(1, round(found.width * share)), max(1, round(found.height * share)))
    scaled = found.resize(size, Image.Resampling.LANCZOS)
    even = Image.new("RGBA", (size[0] + size[0] % 2, size[1] + size[1] % 2))
    even.paste(scaled)
    right, bottom = job.width - even.width - margin, job.height - even.height - margin
    x = right if mark.corner.endswith("right") else margin
    y = bottom if mark.corner.startswith("bottom") else margin
    return overlay_of(even, x // 2 * 2, y // 2 * 2)

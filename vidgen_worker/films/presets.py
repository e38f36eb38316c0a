"""The output presets: what each place that plays a film wants of a file. One table.

The database's `video_presets` shows them to clients; what is made follows from this table alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from vidgen_worker.films.cut import Fit, Output, Target


class Kind(StrEnum):
    """What sort of file an output is."""

    FILM = "film"
    STILL = "still"
    SOUND = "sound"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file. `encoder` and `sound` are libav's names; None: it has no such stream."""

    kind: Kind
    container: str
    extension: str
    media_type: str
    encoder: str | None = None
    sound: str | None = None
    pixels: str = "yuv420p"


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "mp4": Format(Kind.FILM, "mp4", "mp4", "video/mp4", "libx264", "aac"),
        "av1": Format(Kind.FILM, "mp4", "mp4", "video/mp4", "libsvtav1", "libopus"),
        "mov": Format(
            Kind.FILM, "mov", "mov", "video/quicktime", "prores", "pcm_s16le", "yuv422p10le"
        ),
        "gif": Format(Kind.FILM, "gif", "gif", "image/gif", "gif", None, "pal8"),
        "avif": Format(Kind.FILM, "avif", "avif", "image/avif", "libsvtav1"),
        "jpeg": Format(Kind.STILL, "jpeg", "jpg", "image/jpeg"),
        "avif_still": Format(Kind.STILL, "avif", "avif", "image/avif"),
        "m4a": Format(Kind.SOUND, "ipod", "m4a", "audio/mp4", None, "aac"),
        "vtt": Format(Kind.TEXT, "webvtt", "vtt", "text/vtt"),
    }
)


@dataclass(frozen=True, slots=True)
class Preset:
    """A named specification of an output.

    `formats` are what it is made as, by the name that a cut may ask for; the first `usual` of
    them are made where it asks for none. `box` is the largest size in pixels, None: as filmed;
    `shape` says whether the picture gets the shape of the box or only fits into it.
    """

    title: str
    formats: Mapping[str, str]
    usual: int = 1
    box: tuple[int, int] | None = None
    shape: bool = False
    fit: Fit = Fit.COVER
    most_fps: int | None = None
    seconds: float | None = None
    """Only the beginning of the film is shown."""
    silent: bool = False
    overlays: bool = True
    """Captions and logo are drawn on it."""
    target: Target | None = None
    """None: the encoder's usual quality, and packets are copied where nothing changes."""
    most_bytes: int | None = None


LARGEST_SIDE = 1920
"""Pixels: no output is wider or higher."""
MP4: Mapping[str, str] = MappingProxyType({"mp4": "mp4"})
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "web": Preset("MP4 for every player, as filmed", MP4),
        "av1": Preset("AV1 for a second <source>", {"mp4": "av1"}, target=Target.GOOD),
        "vertical": Preset(
            "9:16, cropped", MP4, box=(1080, 1920), shape=True, target=Target.GOOD
        ),
        "square": Preset("1:1, cropped", MP4, box=(1080, 1080), shape=True, target=Target.GOOD),
        "story": Preset(
            "9:16, whole, before a blurred picture of itself",
            MP4, box=(1080, 1920), shape=True, fit=Fit.BLUR, target=Target.GOOD,
        ),
        "small": Preset(
            "MP4 of 2 MB at most, for chat and mail",
            MP4, box=(854, 854), target=Target.SMALL, most_bytes=2_000_000,
        ),
        "poster": Preset(
            "Still for the <video> tag",
            {"jpeg": "jpeg", "avif": "avif_still"}, usual=2, overlays=False,
        ),
        "preview": Preset(
            "Three silent seconds",
            {"mp4": "mp4", "avif": "avif", "gif": "gif"}, usual=2, box=(480, 480), most_fps=12,
            seconds=3, silent=True, target=Target.GOOD,
        ),
        "captions": Preset("WebVTT", {"vtt": "vtt"}),
        "audio": Preset("The sound alone, as AAC", {"m4a": "m4a"}),
        "prores": Preset("ProRes 422 for editors", {"mov": "mov"}),
    }
)  # fmt: skip


def files_of(output: Output) -> dict[str, str]:
    """Return the files that an output is made as: the name of each, and its key in `FORMATS`.

    The first of a preset's formats has the output's own name, another one says what it is.
    """
    preset = PRESETS[output.preset]
    names = [output.format] if output.format else list(preset.formats)[: preset.usual]
    return {
        output.name if number == 0 else f"{output.name}-{name}": preset.formats[name]
        for number, name in enumerate(names)
    }

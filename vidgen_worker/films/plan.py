"""From a cut, its clips and its assets to jobs for the render child: one for each file.

It chooses sizes, frame rates and fonts by the preset, and says what each file's content depends
on. Everything that can be refused is refused here, before anything is paid. It does no I/O but
reading fonts.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vidgen_worker.films.cut import LARGEST_ASSET, LARGEST_SUM, Cut, CutError, Output
from vidgen_worker.films.fonts import Fonts, MissingGlyphError
from vidgen_worker.films.job import SAMPLE_RATE, Cue, Job, Mark, Mix, to_json
from vidgen_worker.films.presets import FORMATS, LARGEST_SIDE, PRESETS, Kind, Preset, files_of
from vidgen_worker.films.source import Source
from vidgen_worker.films.timeline import Timeline, timeline

RENDERER = 1
"""Goes up whenever the same job makes other bytes: it is part of each object's key."""
MOST_FPS, USUAL_FPS = 60, 24
STAND_IN = (1280, 720)
"""Width and height of a clip that is not there yet: no refusal depends on them."""
SHORTEST_MUSIC = 1
"""Seconds. It is opened anew each time that it begins again: a click would be so all the time."""
Runs = tuple[tuple[str, str], ...]
"""A text in pieces, each with the file of its font."""


@dataclass(frozen=True, slots=True)
class Film:
    """A cut, a clip for each of its parts (None: left out), and its assets by their paths."""

    cut: Cut
    clips: tuple[Source | None, ...]
    assets: Mapping[str, Source]


def plan(film: Film, fonts: Fonts) -> tuple[Job, ...]:
    """Return a job for each file of each output, in the cut's order. Raises CutError."""
    _check_assets(film)
    rate = frame_rate(film)
    laid = timeline(film.cut, film.clips, rate)
    _check_times(film.cut, laid)
    runs = {text.pointer: _runs(text.text, text.pointer, fonts) for text in laid.texts}
    return tuple(
        _job(film, output, file, rate, runs)
        for output in film.cut.outputs
        for file in files_of(output).items()
    )


def check(
    cut: Cut, lengths: Sequence[float | None], assets: Mapping[str, Source], fonts: Fonts
) -> None:
    """Refuse what is known to be wrong before the clips exist. Raises CutError.

    `lengths` are the seconds that the parts' clips are ordered with; None: that is not known, so
    that the times of the cut are looked at once the clips are there.
    """
    clips = tuple(
        Source(f"clip-{number}.mp4", *STAND_IN, length or 0.0, Fraction(USUAL_FPS))
        for number, length in enumerate(lengths)
    )
    if None not in lengths:
        plan(Film(cut, clips, assets), fonts)
        return
    _check_assets(Film(cut, clips, assets))
    texts = [(caption.text, f"/captions/{n}/text") for n, caption in enumerate(cut.captions)]
    texts += [(part.caption or "", f"/parts/{n}/caption") for n, part in enumerate(cut.parts)]
    for text, pointer in texts:
        if text:
            _runs(text, pointer, fonts)


def key(job: Job, digests: Mapping[str, str]) -> str:
    """Return what a job's file depends on, as a hex sha256; `digests`: the sha256 of its files."""
    said = {"renderer": RENDERER, "job": to_json(job), "files": {f: digests[f] for f in job.files}}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def frame_rate(film: Film) -> Fraction:
    """Frames a second of the film: its first clip's, as long as players keep up with it."""
    first = next(clip for clip in film.clips if clip is not None) if any(film.clips) else None
    if first is None or not first.fps:
        return Fraction(USUAL_FPS)
    return min(first.fps.limit_denominator(1001), Fraction(MOST_FPS))


def _check_assets(film: Film) -> None:
    for path, pointer in film.cut.uses:
        asset = film.assets.get(path)
        if asset is None:
            raise CutError(pointer, f"there is no {path!r} in your folder of the bucket",
                           "Upload it first")  # fmt: skip
        if asset.size > LARGEST_ASSET:
            raise CutError(pointer, f"{asset.size} bytes are more than {LARGEST_ASSET}",
                           "Upload a smaller file")  # fmt: skip
        heard = pointer.startswith("/sound")
        if heard and not asset.sound:
            raise CutError(pointer, "there is no sound in it", "Name a sound file")
        if pointer == "/sound/music/asset" and (asset.seconds or 0) < SHORTEST_MUSIC:
            raise CutError(pointer, f"it is shorter than {SHORTEST_MUSIC} s, and begins again at "
                           "its end", "Name a longer one")  # fmt: skip
        if not heard and (not asset.width or asset.seconds):
            raise CutError(pointer, "it is no picture", "Name a PNG, JPEG or WebP")
    size = sum(source.size for source in (*film.clips, *film.assets.values()) if source)
    if size > LARGEST_SUM:
        raise CutError("/parts", f"clips and assets have {size} bytes, more than {LARGEST_SUM}",
                       "Make several films of it")  # fmt: skip


def _check_times(cut: Cut, laid: Timeline) -> None:
    voices = enumerate(cut.sound.voice if cut.sound else ())
    times = [(f"/sound/voice/{number}/at", voice.at) for number, voice in voices]
    times += [(f"/outputs/{n}/at", output.at or 0.0) for n, output in enumerate(cut.outputs)]
    for pointer, time in times:
        if time >= laid.seconds:
            raise CutError(pointer, f"the film is {float(laid.seconds):.2f} s long",
                           "Name a time within it")  # fmt: skip


def _runs(text: str, pointer: str, fonts: Fonts) -> Runs:
    try:
        return fonts.runs(text)
    except MissingGlyphError as error:
        raise CutError(pointer, f"no font for U+{ord(error.letter):04X}",
                       "Write it in other characters, or ask the operator for a font "
                       "(VIDGEN_FONTS)") from error  # fmt: skip


def _job(
    film: Film, output: Output, file: tuple[str, str], rate: Fraction, runs: Mapping[str, Runs]
) -> Job:
    preset, form = PRESETS[output.preset], FORMATS[file[1]]
    fps = min(rate, Fraction(preset.most_fps)) if preset.most_fps else rate
    laid = timeline(film.cut, film.clips, fps)
    frames = min(laid.frames, round(preset.seconds * fps)) if preset.seconds else laid.frames
    width, height = size_of(preset, film)
    drawn = preset.overlays or form.kind is Kind.TEXT
    cues = tuple(
        Cue(text.start, min(text.end, frames), runs[text.pointer])
        for text in laid.texts
        if drawn and text.start < frames
    )
    style = film.cut.style
    target = output.target or preset.target
    return Job(
        name=file[0], format=file[1], width=width, height=height,
        fit=output.fit or preset.fit, rate=(fps.numerator, fps.denominator), frames=frames,
        scenes=tuple(scene for scene in laid.scenes if scene.start < frames),
        end_card=film.assets[film.cut.end.asset].file if film.cut.end else None,
        cues=cues, look=style.look, place=style.place, letters=style.size,
        logo=_logo(film) if preset.overlays else None,
        mix=_mix(film) if form.sound and not preset.silent else None,
        target=target, most_bytes=preset.most_bytes,
        same=_is_same(film, form.encoder, (width, height)) and not preset.seconds,
        at=None if output.at is None else min(round(output.at * fps), frames - 1),
    )  # fmt: skip


def _logo(film: Film) -> Mark | None:
    logo = film.cut.logo
    return Mark(film.assets[logo.asset].file, logo.corner, logo.width) if logo else None


def _mix(film: Film) -> Mix | None:
    """Return what is heard; None where nothing could be."""
    sound = film.cut.sound
    if sound is None:
        return Mix() if any(clip and clip.sound for clip in film.clips) else None
    if not sound.music and not sound.voice and not sound.keep_clips:
        return None
    return Mix(
        clips=sound.keep_clips,
        music=film.assets[sound.music.asset].file if sound.music else None,
        gain=sound.music.gain if sound.music else 0.0,
        voices=tuple(
            (film.assets[voice.asset].file, round(voice.at * SAMPLE_RATE)) for voice in sound.voice
        ),
        loudness=sound.loudness,
    )


def _is_same(film: Film, encoder: str | None, size: tuple[int, int]) -> bool:
    """Whether the clips, one after the other and as they are, make this output."""
    cut = film.cut
    changed = cut.captions or cut.sound or cut.logo or cut.end
    return encoder == "libx264" and not changed and all(
        clip is None
        or (clip.plain and (clip.width, clip.height) == size
            and (part.start, part.end, part.fade, part.caption) == (0.0, None, 0.0, None))
        for part, clip in zip(cut.parts, film.clips, strict=True)
    )  # fmt: skip


def size_of(preset: Preset, film: Film) -> tuple[int, int]:
    """Return an output's size: even numbers, and no side longer than the film's own one.

    A film lying and the same film upright count as one size: 1280x720 becomes 720x1280.
    """
    first = next(clip for clip in film.clips if clip is not None)
    long, short = max(first.width, first.height), min(first.width, first.height)
    if preset.box is None or not preset.shape:
        most = min(LARGEST_SIDE, preset.box[0] if preset.box else LARGEST_SIDE)
        share = min(Fraction(1), Fraction(most, long))
        return _even(first.width * share), _even(first.height * share)
    wide, high = preset.box
    share = min(Fraction(1), Fraction(long, max(wide, high)), Fraction(short, min(wide, high)))
    return _even(wide * share), _even(high * share)


def _even(length: Fraction | int) -> int:
    return max(2, int(length) // 2 * 2)

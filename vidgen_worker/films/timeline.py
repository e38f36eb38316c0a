"""From a cut and its clips to frames: what is shown when, at one frame rate.

Times are rounded here, once; everything after it counts frames, so that pictures and sound can't
drift apart. It refuses what only the clips' lengths tell, with the pointer of the offender. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from vidgen_worker.films.cut import LONGEST_FILM, Cut, CutError
from vidgen_worker.films.job import Scene
from vidgen_worker.films.source import Source

TOLERANCE = 0.05
"""Seconds that a time may lie behind the end of its clip or film: clips end between two frames."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A text and the frames that show it, from `start` to before `end`."""

    start: int
    end: int
    text: str
    pointer: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """A film in frames: its scenes in order, then the end card up to frame `frames`."""

    fps: Fraction
    frames: int
    scenes: tuple[Scene, ...]
    texts: tuple[Shown, ...]

    @property
    def seconds(self) -> Fraction:
        """Its length."""
        return self.frames / self.fps


def timeline(cut: Cut, clips: Sequence[Source | None], fps: Fraction) -> Timeline:
    """Lay out a cut whose parts have these clips; None: the part is left out. Raises CutError."""
    shown = [n for n, clip in enumerate(clips) if clip is not None]
    if len(clips) != len(cut.parts) or not shown:
        raise CutError("/parts", f"{len(shown)} of {len(cut.parts)} parts have a clip",
                       "A film with outputs needs one")  # fmt: skip
    lengths = _lengths(cut, clips)
    _check_fades(cut, shown, lengths)
    scenes: list[Scene] = []
    for number in shown:
        scenes.append(_scene(cut, clips, number, fps, scenes))
        if len(scenes) > 1:
            scenes[-2:] = _settled(scenes[-2], scenes[-1])
    frames = scenes[-1].end + (max(1, round(cut.end.seconds * fps)) if cut.end else 0)
    if frames / fps > LONGEST_FILM:
        raise CutError("/parts", f"the film would be {float(frames / fps):.1f} s long",
                       f"Make it {LONGEST_FILM} s at most")  # fmt: skip
    made = Timeline(fps, frames, tuple(scenes), ())
    return Timeline(fps, frames, made.scenes, _texts(cut, made, shown))


def _lengths(cut: Cut, clips: Sequence[Source | None]) -> list[float]:
    """Return how many seconds of each clip are shown."""
    lengths = []
    for number, (part, clip) in enumerate(zip(cut.parts, clips, strict=True)):
        if clip is None:
            lengths.append(0.0)
            continue
        here = f"/parts/{number}"
        for key, time in (("from", part.start), ("to", part.end or 0.0)):
            if time > clip.seconds + TOLERANCE:
                raise CutError(f"{here}/{key}", f"the clip is {clip.seconds:.2f} s long",
                               "Name a time within it")  # fmt: skip
        end = clip.seconds if part.end is None else min(part.end, clip.seconds)
        if end - part.start < 1 / max(clip.fps, Fraction(1)) / 2:
            raise CutError(here, "not one frame of its clip is shown", "Let it begin earlier")
        lengths.append(end - part.start)
    return lengths


def _check_fades(cut: Cut, shown: Sequence[int], lengths: Sequence[float]) -> None:
    """Refuse a fade that its neighbours have no room for, and two that would meet in one part."""
    for place, number in enumerate(shown):
        fade = cut.parts[number].fade
        pointer = f"/parts/{number}/transition/seconds"
        before = lengths[shown[place - 1]] if place else fade
        for length, which in ((before, "the part before"), (lengths[number], "its part")):
            if fade > length:
                raise CutError(pointer, f"{fade:g} s are longer than {which}, {length:.2f} s",
                               "Shorten the fade")  # fmt: skip
        after = cut.parts[shown[place + 1]].fade if place + 1 < len(shown) else 0.0
        if place and fade + after > lengths[number] + 1e-9:
            raise CutError(
                pointer,
                f"it and the next fade have no room in its part, {lengths[number]:.2f} s",
                "Shorten one of them",
            )


def _scene(
    cut: Cut, clips: Sequence[Source | None], number: int, fps: Fraction, before: list[Scene]
) -> Scene:
    part, clip = cut.parts[number], clips[number]
    assert clip is not None  # noqa: S101 - only those that are shown
    first = round(part.start * fps)
    end = clip.seconds if part.end is None else min(part.end, clip.seconds)
    frames = max(1, round(end * fps) - first)
    fade = min(round(part.fade * fps), frames)
    # The first part comes from black: no other picture is shared.
    start = before[-1].end if before else 0
    return Scene(clip.file, start, first, frames, fade, clip.sound)


def _settled(before: Scene, scene: Scene) -> tuple[Scene, Scene]:
    """Let a scene begin within the one before, where both have frames left for its fade."""
    room = before.frames - (before.fade if before.start else 0)
    fade = min(scene.fade, room)
    return before, Scene(
        scene.file, before.end - fade, scene.first, scene.frames, fade, scene.sound
    )


def _texts(cut: Cut, made: Timeline, shown: Sequence[int]) -> tuple[Shown, ...]:
    """Return the captions of film and parts in the order of time; refuse two at once."""
    texts = []
    for number, caption in enumerate(cut.captions):
        here = f"/captions/{number}"
        for key, time in (("from", caption.start), ("to", caption.end)):
            if time > made.seconds + TOLERANCE or (key == "from" and time >= made.seconds):
                raise CutError(f"{here}/{key}", f"the film is {float(made.seconds):.2f} s long",
                               "Name a time within it")  # fmt: skip
        start = min(round(caption.start * made.fps), made.frames - 1)
        end = min(max(round(caption.end * made.fps), start + 1), made.frames)
        texts.append(Shown(start, end, caption.text, f"{here}/text"))
    texts += _texts_of_parts(cut, made, shown)
    texts.sort(key=lambda text: text.start)
    for one, other in pairwise(texts):
        if other.start < one.end:
            late, early = sorted((one.pointer, other.pointer), reverse=True)
            raise CutError(late, f"it is shown at the same time as {early}",
                           "Let one of them end before the other begins")  # fmt: skip
    return tuple(texts)


def _texts_of_parts(cut: Cut, made: Timeline, shown: Sequence[int]) -> list[Shown]:
    """A part's caption changes in the middle of a fade."""
    texts = []
    for place, number in enumerate(shown):
        text = cut.parts[number].caption
        scene = made.scenes[place]
        following = made.scenes[place + 1] if place + 1 < len(shown) else None
        start = scene.start + (scene.fade // 2 if place else 0)
        end = following.start + following.fade // 2 if following else scene.end
        if text is not None:
            texts.append(Shown(start, max(end, start + 1), text, f"/parts/{number}/caption"))
    return texts

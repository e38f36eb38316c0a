"""What the render child is asked: one output, as plain values that travel as JSON.

All times are whole frames of the output, or samples at `SAMPLE_RATE`; all files are names in one
folder. Both sides of the pipe read this module; it decides nothing and does no I/O.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

SAMPLE_RATE = 48_000
"""Samples a second of all sound that is mixed."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A stretch of one clip: `frames` from its frame `first` on, shown from frame `start`.

    Its first `fade` frames dissolve from the scene before, whose last ones they share.
    """

    file: str
    start: int
    first: int
    frames: int
    fade: int = 0
    sound: bool = False

    @property
    def end(self) -> int:
        """The frame after its last one."""
        return self.start + self.frames


@dataclass(frozen=True, slots=True)
class Cue:
    """A caption from frame `start` to before `end`: its text in runs, each with a font's file."""

    start: int
    end: int
    runs: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(text for text, _ in self.runs)


@dataclass(frozen=True, slots=True)
class Mark:
    """A logo: its file, its corner, and its width as a share of the output's."""

    file: str
    corner: str
    width: float


@dataclass(frozen=True, slots=True)
class Mix:
    """What is heard besides or in place of the clips' sound. `gain` in dB, `loudness` in LUFS.

    Each of `voices` is a file and the sample that it begins at.
    """

    clips: bool = True
    music: str | None = None
    gain: float = 0.0
    voices: tuple[tuple[str, int], ...] = ()
    loudness: float | None = None

    @property
    def files(self) -> list[str]:
        """The sound files that it needs."""
        return [*([self.music] if self.music else []), *(file for file, _ in self.voices)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One output: what is shown and heard when, and how it is written."""

    name: str
    format: str
    """A key of `presets.FORMATS`."""
    width: int
    height: int
    fit: str
    rate: tuple[int, int]
    """Frames a second, as a fraction."""
    frames: int
    scenes: tuple[Scene, ...]
    end_card: str | None = None
    """Shown from the last scene's end to the film's."""
    cues: tuple[Cue, ...] = ()
    look: str = "outline"
    place: str = "bottom"
    letters: str = "m"
    logo: Mark | None = None
    mix: Mix | None = None
    """None: the output is silent."""
    target: str | None = None
    most_bytes: int | None = None
    same: bool = False
    """Nothing changes in the pictures or the sound: the clips' packets may be copied."""
    at: int | None = None
    """The frame that a still shows; None: the most typical one."""

    @property
    def fps(self) -> Fraction:
        """Frames a second."""
        return Fraction(*self.rate)

    @property
    def samples(self) -> int:
        """Samples of its sound, which is exactly as long as its pictures."""
        return round(self.frames / self.fps * SAMPLE_RATE)

    def sample(self, frame: int) -> int:
        """Return the sample at which a frame begins to be shown."""
        return round(frame / self.fps * SAMPLE_RATE)

    @property
    def files(self) -> list[str]:
        """The files that it needs in its folder, each once."""
        files = [scene.file for scene in self.scenes]
        files += [self.end_card] if self.end_card else []
        files += [self.logo.file] if self.logo else []
        files += self.mix.files if self.mix else []
        return list(dict.fromkeys(files))

    @property
    def fonts(self) -> list[str]:
        """The font files that its captions need, each once."""
        return list(dict.fromkeys(font for cue in self.cues for _, font in cue.runs))


def to_json(job: Job) -> dict[str, Any]:
    """Return a job as JSON has it."""
    return asdict(job)


def from_json(said: Mapping[str, Any]) -> Job:
    """Make a job again of what `to_json` said."""
    mix = said["mix"]
    voices = tuple((file, at) for file, at in mix["voices"]) if mix else ()
    cues = tuple(
        Cue(cue["start"], cue["end"], tuple((text, font) for text, font in cue["runs"]))
        for cue in said["cues"]
    )
    return Job(
        **dict(said)
        | {
            "rate": tuple(said["rate"]),
            "scenes": tuple(Scene(**scene) for scene in said["scenes"]),
            "cues": cues,
            "logo": Mark(**said["logo"]) if said["logo"] else None,
            "mix": Mix(**mix | {"voices": voices}) if mix else None,
        }
    )

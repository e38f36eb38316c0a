"""The cut: what a film is made of, in the application's words, as values.

`reading.py` makes it from JSON and back. Times are in seconds, as written; `timeline.py` rounds
them once, to frames. Nothing here does I/O.
"""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

MOST_BYTES = 32 * 1024
"""Bytes of a cut, as PostgreSQL writes the jsonb out."""
MOST_PARTS, MOST_PARTS_OF_A_BATCH = 50, 500
"""Parts of a film with outputs, and of one without."""
MOST_OUTPUTS = 8
MOST_CAPTIONS = 60
"""Captions of the film and of its parts together."""
MOST_VOICES = 10
LONGEST_TEXT = 200
"""Characters of a caption."""
LONGEST_FILM = 180
"""Seconds."""
LARGEST_ASSET, LARGEST_SUM = 50 * 2**20, 2**30
"""Bytes of an asset, and of all that a film is made from."""
LOUDNESS = -14.0
"""LUFS: what the places that play films bring all sound to."""


class CutError(Exception):
    """A cut that can't be made: where, what is wrong there, and what to do.

    `pointer` is a JSON pointer (RFC 6901) into the cut; the empty one is the cut itself.
    """

    def __init__(self, pointer: str, wrong: str, remedy: str) -> None:
        super().__init__(f"{pointer or 'the cut'}: {wrong}. {remedy}.")
        self.pointer = pointer
        self.wrong = wrong
        self.remedy = remedy


class OnFailure(StrEnum):
    """What becomes of a film when one of its parts fails."""

    FAIL = "fail"
    SKIP = "skip"


class Look(StrEnum):
    """How the letters of a caption stand out from the picture."""

    OUTLINE = "outline"
    BOX = "box"
    PLAIN = "plain"


class Place(StrEnum):
    """Where captions stand."""

    TOP = "top"
    MIDDLE = "middle"
    BOTTOM = "bottom"


class LetterSize(StrEnum):
    """How large letters are, by the shorter side of the picture."""

    SMALL = "s"
    MEDIUM = "m"
    LARGE = "l"


class Corner(StrEnum):
    """Where the logo is."""

    TOP_LEFT = "top-left"
    TOP_RIGHT = "top-right"
    BOTTOM_LEFT = "bottom-left"
    BOTTOM_RIGHT = "bottom-right"


class Fit(StrEnum):
    """How a picture of another shape fills an output."""

    COVER = "cover"
    """It is cropped at its centre."""
    CONTAIN = "contain"
    """It is shown whole, between black bars."""
    BLUR = "blur"
    """It is shown whole, before a blurred picture of itself."""


class Target(StrEnum):
    """The quality that compression aims at."""

    SMALL = "small"
    GOOD = "good"
    BEST = "best"


@dataclass(frozen=True, slots=True)
class Part:
    """A reference to a scene, or to a task; what of its clip is shown, and how it begins.

    `fade` is how long the part before dissolves into this one; the first part's comes from black.
    """

    scene: UUID | None = None
    task: UUID | None = None
    start: float = 0.0
    end: float | None = None
    """None: to the end of the clip."""
    fade: float = 0.0
    caption: str | None = None
    """Shown as long as the part is."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A text over the picture from `start` to `end`, in the film's time."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class CaptionStyle:
    """How all captions of a film look."""

    look: Look = Look.OUTLINE
    place: Place = Place.BOTTOM
    size: LetterSize = LetterSize.MEDIUM


@dataclass(frozen=True, slots=True)
class Music:
    """Music below everything else, again from its beginning where it is shorter; `gain` in dB."""

    asset: str
    gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice that begins `at` this second of the film; music gives way to it."""

    asset: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Sound:
    """What is heard. Without it in a cut, the clips' own sound stays as it is."""

    music: Music | None = None
    voice: tuple[Voice, ...] = ()
    keep_clips: bool = True
    loudness: float | None = LOUDNESS
    """LUFS of the whole film; None leaves it as it comes."""


@dataclass(frozen=True, slots=True)
class Logo:
    """A picture in a corner over all parts; `width` is a share of the output's."""

    asset: str
    corner: Corner = Corner.TOP_RIGHT
    width: float = 0.12


@dataclass(frozen=True, slots=True)
class EndCard:
    """A picture at the end, shown whole, for so many seconds."""

    asset: str
    seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Output:
    """An output that is wanted: a preset's name, a name of its own, and what differs from it."""

    preset: str
    name: str
    fit: Fit | None = None
    target: Target | None = None
    format: str | None = None
    """One of the preset's formats; None: its usual ones."""
    at: float | None = None
    """Second of the film that a still shows; None: its most typical picture."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A film. `scenario` stands for all scenes of a scenario, in place of parts."""

    parts: tuple[Part, ...] = ()
    scenario: str | None = None
    captions: tuple[Caption, ...] = ()
    style: CaptionStyle = CaptionStyle()
    sound: Sound | None = None
    logo: Logo | None = None
    end: EndCard | None = None
    outputs: tuple[Output, ...] = ()
    on_failure: OnFailure = OnFailure.FAIL

    @property
    def assets(self) -> dict[str, str]:
        """Each asset's path in the owner's folder, and a place in the cut that names it."""
        return dict(reversed(self.uses))

    @property
    def has_texts(self) -> bool:
        """Whether captions are drawn."""
        return bool(self.captions) or any(part.caption for part in self.parts)

    @property
    def uses(self) -> list[tuple[str, str]]:
        """Each use of an asset: its path in the owner's folder, and its place in the cut."""
        named: list[tuple[str, str]] = []
        if self.sound is not None:
            voices = [(v.asset, f"/sound/voice/{n}/asset") for n, v in enumerate(self.sound.voice)]
            named += voices
            if self.sound.music is not None:
                named.append((self.sound.music.asset, "/sound/music/asset"))
        if self.logo is not None:
            named.append((self.logo.asset, "/logo/asset"))
        if self.end is not None:
            named.append((self.end.asset, "/end/asset"))
        return named

"""Which font of this machine draws a text: no caption may show a box in place of a letter.

It reads each font's own table of characters, once: the first search may take seconds, so call it
in a thread. It draws nothing.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from fontTools.ttLib import TTFont, TTLibError
from fontTools.ttLib.tables.O_S_2f_2 import intersectUnicodeRanges

SYSTEM = ("/usr/share/fonts", "/usr/local/share/fonts")
"""Where a Linux machine keeps its fonts."""
ENDINGS = frozenset({".ttf", ".otf", ".ttc", ".otc"})
# Letters over a moving picture are read best bold, upright and without serifs.
_UNFIT = re.compile(
    r"italic|oblique|condensed|narrow|serif|mono|display|slab|rashi|unjoined", re.IGNORECASE
)
_BOLD = re.compile(r"(?<!semi)(?<!extra)(?<!demi)bold", re.IGNORECASE)
_PREFERRED = ("notosans-", "notosans", "dejavusans", "")


SCRIPTS: Mapping[str, str] = MappingProxyType(
    {
        "Latin": "Aß€", "Cyrillic": "Жя", "Greek": "Ωλ", "Arabic": "عربي", "Hebrew": "עברי",
        "Hindi": "हिन्दी", "Bengali": "বাংলা", "Tamil": "தமிழ்", "Thai": "ไทย",
        "Japanese": "かなカナ日本", "Chinese": "简体字們", "Korean": "한국어",
    }
)  # fmt: skip
"""Scripts that captions are written in, each with letters that a font for it has."""


def shapes_letters() -> bool:
    """Whether this machine has what shapes letters and orders them: no caption is drawn without."""
    from PIL import features  # noqa: PLC0415 - 20 MB that films without captions do without

    return bool(features.check("raqm") and features.check("fribidi"))


class MissingGlyphError(Exception):
    """No font has a character."""

    def __init__(self, letter: str) -> None:
        super().__init__(f"no font for U+{ord(letter):04X}")
        self.letter = letter


class Fonts:
    """The fonts in some files and folders, searched in their order; None: the system's folders.

    A place that does not exist holds none: the settings refuse it.
    """

    def __init__(self, places: Sequence[Path] | None = None) -> None:
        self._places = tuple(places) if places is not None else tuple(map(Path, SYSTEM))
        self._covers: dict[Path, frozenset[int]] = {}
        self._scripts: dict[Path, frozenset[int]] = {}

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All font files, the best ones for captions first in each place."""
        return tuple(file for place in self._places for file in _files(place))

    def scripts(self) -> dict[str, bool]:
        """Return for each of `SCRIPTS` whether captions can be written in it."""
        return {name: self._draws(sample) for name, sample in SCRIPTS.items()}

    def _draws(self, text: str) -> bool:
        try:
            self.runs(text)
        except MissingGlyphError:
            return False
        return True

    def runs(self, text: str) -> tuple[tuple[str, str], ...]:
        """Split a text into runs, each with the font file that draws it, in reading order.

        One font for all of it where one of those needed can. Raises MissingGlyphError.
        """
        text = unicodedata.normalize("NFC", text)
        first = {letter: self._first(letter) for letter in dict.fromkeys(filter(_is_drawn, text))}
        needed = tuple(dict.fromkeys(first.values())) or self.files[:1]
        if not needed:
            raise MissingGlyphError(text[0])
        for file in needed:
            if all(self._has(file, letter) for letter in first):
                return ((text, str(file)),)
        return tuple(self._split(text, first))

    def _split(self, text: str, first: dict[str, Path]) -> Iterator[tuple[str, str]]:
        run, font = "", next(iter(first.values()))
        for letter in text:
            if letter in first and not self._has(font, letter):
                if run:
                    yield run, str(font)
                run, font = "", first[letter]
            run += letter
        yield run, str(font)

    def _first(self, letter: str) -> Path:
        """Find the best font for a character: among those first that say they are for its script.

        That is one small table of a font; what characters it has is a large one.
        """
        script = intersectUnicodeRanges([ord(letter)])
        for claims in (True, False):
            for file in self.files:
                if claims == bool(script & self._scripts_of(file)) and self._has(file, letter):
                    return file
        raise MissingGlyphError(letter)

    def _scripts_of(self, file: Path) -> frozenset[int]:
        if file not in self._scripts:
            self._scripts[file] = _read(file, lambda font: font["OS/2"].getUnicodeRanges())
        return self._scripts[file]

    def _has(self, file: Path, letter: str) -> bool:
        if file not in self._covers:
            self._covers[file] = _read(file, _characters)
        return ord(letter) in self._covers[file]


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    found = [file for file in place.rglob("*") if file.suffix.lower() in ENDINGS]
    return sorted(found, key=_rank)


def _rank(file: Path) -> tuple[bool, int, bool, str]:
    name = file.stem.lower()
    family = next(n for n, prefix in enumerate(_PREFERRED) if name.startswith(prefix))
    return bool(_UNFIT.search(name)), family, not _BOLD.search(name), str(file)


def _is_drawn(letter: str) -> bool:
    """Whether a character needs a glyph: joiners, marks of direction and line ends do not."""
    return unicodedata.category(letter) not in ("Cf", "Cc") and not 0xFE00 <= ord(letter) <= 0xFE0F  # noqa: PLR2004 - variation selectors


def _characters(font: TTFont) -> Iterable[int]:
    """Return what a font draws; nothing for one of coloured bitmaps, which have one size only."""
    return (font.getBestCmap() or ()) if {"glyf", "CFF ", "CFF2"} & set(font.keys()) else ()


def _read(file: Path, ask: Callable[[TTFont], Iterable[int]]) -> frozenset[int]:
    """Ask a font something; a damaged one has nothing to say."""
    try:
        # Opened here, because fontTools leaves the file of a damaged font open.
        with file.open("rb") as content, TTFont(content, fontNumber=0, lazy=True) as font:
            return frozenset(ask(font))
    except (TTLibError, OSError, ValueError, KeyError, AssertionError):
        return frozenset()

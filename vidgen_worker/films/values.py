"""One value of a cut's JSON and its place: checked where it is read, refused by its pointer.

It knows types and bounds only, never what a film is.
"""

import math
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, Self, TypeVar
from uuid import UUID

from vidgen_worker.films.cut import LONGEST_FILM, CutError

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
LONGEST_ID = 100
"""Characters of an id, and of a key in a pointer."""
_SHOWN = 60
_MISSING = object()
Choice = TypeVar("Choice", bound=StrEnum)


class At:
    """A value and the JSON pointer to it. Every method raises CutError for what it is not."""

    def __init__(self, pointer: str, value: object) -> None:
        self.pointer = pointer
        self.value: Any = value

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def __getitem__(self, key: str) -> "At":
        escaped = key[:LONGEST_ID].replace("~", "~0").replace("/", "~1")
        return At(f"{self.pointer}/{escaped}", self.value.get(key, _MISSING))

    @property
    def missing(self) -> bool:
        """Whether the key is not there."""
        return self.value is _MISSING

    def wrong(self, what: str, remedy: str) -> CutError:
        """Say what is wrong here."""
        return CutError(self.pointer, what, remedy)

    def object(self, *keys: str) -> Self:
        """Check that it is an object with no other keys than these."""
        self._check(dict, "an object")
        for key in self.value:
            if key not in keys:
                shown = key[:_SHOWN]
                raise self[key].wrong(f"there is no key {shown!r} here",
                                      f"The keys are {', '.join(keys)}")  # fmt: skip
        return self

    def list(self, most: int) -> Iterator["At"]:
        """Yield what a list holds; nothing where there is none."""
        if self.missing:
            return
        self._check(list, "a list")
        if len(self.value) > most:
            raise self.wrong(f"{len(self.value)} are more than {most}", f"Keep {most} at most")
        for number, one in enumerate(self.value):
            yield At(f"{self.pointer}/{number}", one)

    def text(self) -> str:
        """Return a text."""
        self._check(str, "a text")
        return str(self.value)

    def flag(self, *, usual: bool) -> bool:
        """Return true or false."""
        if self.missing:
            return usual
        self._check(bool, "true or false")
        return bool(self.value)

    def number(self, least: float, most: float, usual: float | None = None) -> float:
        """Return a number within bounds."""
        if self.missing and usual is not None:
            return usual
        self._check((int, float), "a number")
        # Compared before it becomes a float: an integer may be too large for one.
        if isinstance(self.value, bool) or not least <= self.value <= most:
            raise self.wrong(f"{self._shown()} is no number from {least:g} to {most:g}",
                             "Write one")  # fmt: skip
        number = float(self.value)
        if math.isnan(number):
            raise self.wrong("it is no number", "Write one")
        return number

    def seconds(self, usual: float | None = None) -> float:
        """Return a time of a film or a clip."""
        return self.number(0, LONGEST_FILM, usual)

    def uuid(self) -> UUID:
        """Return an id."""
        text = self.text()
        if not _UUID.fullmatch(text):
            raise self.wrong(f"{self._shown()} is no id", "Write the row's id, a UUID")
        return UUID(text)

    def row_id(self) -> str:
        """Return the id of a row of the application's, which may be a number."""
        text = str(self.value) if isinstance(self.value, int) else self.text()
        if isinstance(self.value, bool) or not 1 <= len(text) <= LONGEST_ID:
            raise self.wrong(f"{self._shown()} is no id", "Write the row's id")
        return text

    def choice(self, names: Iterable[str]) -> str:
        """Return one of some names."""
        names = tuple(names)
        text = self.text()
        if text not in names:
            raise self.wrong(f"there is no {self._shown()} here", f"Take {', '.join(names)}")
        return text

    def one_of(self, kind: type[Choice], usual: Choice | None = None) -> Choice:
        """Return a member of a closed set."""
        if self.missing and usual is not None:
            return usual
        return kind(self.choice(member.value for member in kind))

    def _check(self, kind: type | tuple[type, ...], wanted: str) -> None:
        if self.missing:
            raise self.wrong("it is missing", f"Write {wanted}")
        if not isinstance(self.value, kind):
            raise self.wrong(f"{self._shown()} is not {wanted}", f"Write {wanted}")

    def _shown(self) -> str:
        try:
            shown = repr(self.value)
        except ValueError:  # an integer of more digits than Python writes
            return "it"
        return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"

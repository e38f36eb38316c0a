"""Text from outside, made safe for PostgreSQL, a terminal and the log.

Providers, file stores, scenes, settings and exceptions may contain anything: half a character, NUL,
escape sequences, marks that reverse the direction of writing, megabytes, our own keys. `storable`
changes only what PostgreSQL refuses; `printable` returns one line without escape sequences and
without this process's secrets. Nothing here does I/O.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from vidgen_worker.domain.masking import masked

LONGEST = 4000
"""The largest number of characters of one text, unless the caller gives another."""

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_LINE_END = re.compile("[ \t]*[\n\r\t\v\f\x85\u2028\u2029]+[ \t\n\r]*")
# These characters are invisible although their category says "mark", "letter" or "symbol".
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\U000e0100-\U000e01ef]"
)
_SPACES = "Zs"
_HARMLESS = re.compile(r"[\w .,:;+-]{1,30}")
_KEYS = ("sb_", "sbp_", "key_", "eyJ")


def _spelled(code: int) -> str:
    if code < 0x100:  # noqa: PLR2004 - the widths of Python's own escapes
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004


def _json_spelled(code: int) -> str:
    if code < 0x10000:  # noqa: PLR2004 - beyond it JSON writes two halves
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def _shown_as_is(character: str) -> bool:
    """Whether a character is visible and has no effect on a terminal."""
    if _INVISIBLE.match(character):
        return False
    return character.isprintable() or unicodedata.category(character) == _SPACES


class _Table(dict[int, str]):
    """A table for `str.translate` that is filled as characters turn up."""

    def __init__(self, spell: Callable[[int], str], kept: str = "") -> None:
        self._spell = spell
        super().__init__({ord(character): character for character in kept})

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = spelled = character if _shown_as_is(character) else self._spell(code)
        return spelled


_ONE_LINE = _Table(_spelled)
_LINES = _Table(_spelled, kept="\n\t")
_JSON = _Table(_json_spelled, kept="\n")


def printable(text: str, longest: int = LONGEST, *, lines: bool = False) -> str:
    """Return the text so that it can be shown anywhere: on one line, unless `lines` is true.

    A line end becomes a space; invisible and control characters are spelled out.
    """
    size = len(text)
    if size > longest:
        # Text far beyond the cut is not read; a secret across the cut is hidden as a whole.
        text = text[: longest + LONGEST]
    text = masked(text)
    if not (text.isascii() and text.isprintable()):
        if not lines:
            text = _LINE_END.sub(" ", text).strip()
        text = text.translate(_LINES if lines else _ONE_LINE)
    if size > longest or len(text) > longest:
        said = f"… ({size} characters)"
        text = text[: max(longest - len(said), 0)] + said
    return text


def spelled(text: str) -> str:
    """Return the text with invisible and control characters spelled out; line ends are kept."""
    return text if text.isascii() and text.isprintable() else text.translate(_LINES)


def storable(text: str) -> str:
    """Return the text as PostgreSQL takes it: NUL and lone halves of characters spelled out."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def storable_value(value: object) -> object:
    """Return a value for JSON in which every text is storable, keys included."""
    match value:
        case str():
            return storable(value)
        case Mapping():
            return {
                storable(key) if isinstance(key, str) else key: storable_value(item)
                for key, item in value.items()
            }
        case list() | tuple():
            return [storable_value(item) for item in value]
        case _:
            return value


def json_text(value: object, *, ascii_only: bool = False, **options: Any) -> str:  # noqa: ANN401 - json's own
    """Write JSON that is safe on a terminal and reads back as the same value."""
    text = json.dumps(value, ensure_ascii=ascii_only, **options)
    return masked(text).translate(_JSON)


def quoted(value: str) -> str:
    """Return a value in quotes for a message, or a neutral phrase where it may be a secret."""
    harmless = _HARMLESS.fullmatch(value) and not value.startswith(_KEYS)
    return f"'{value}'" if harmless else "what is written there"

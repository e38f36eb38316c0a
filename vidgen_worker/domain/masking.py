"""Hides this process's secrets in text, in every spelling.

Code that reads a secret registers it with `learn`; code that writes text out calls `masked`. A
secret is found in quotes, escaped, percent-encoded, in Base64 or hex, across line ends, and in
part: twelve letters and digits of it in a row are enough. The module keeps no text, and never shows
a secret.
"""

import base64
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

MASK = "****"
SHORTEST = 6
"""The least length of a secret that is hidden: a shorter one would match in every text."""
RUN = 12
"""The number of letters and digits in a row by which a part of a long secret is found."""
WINDOW = 6
"""A run of `RUN` holds at least one whole window that starts at a multiple of this."""

_ESCAPES = (
    r"%(?:25)*(?P<percent>[0-9A-Fa-f]{2})"
    r"|\\+x(?P<x>[0-9A-Fa-f]{2})|\\+u(?P<u>[0-9A-Fa-f]{4})|\\+U(?P<wide>[0-9A-Fa-f]{8})"
    r"|&#[xX](?P<hex>[0-9A-Fa-f]{1,6});|&#(?P<dec>[0-9]{1,7});|&[a-z]{2,6};|\\+[abfnrtv]"
)
_ESCAPE = re.compile(_ESCAPES)
_TOKEN = re.compile(_ESCAPES + "|.", re.DOTALL)
_TOKEN_OF_SOMEBODY = re.compile(r"eyJ[\w-]+\.eyJ[\w-]+\.(?P<signature>[\w-]{20,})", re.ASCII)
_OTHER = bytes(code for code in range(128) if not chr(code).isalnum())


def _decoded(found: re.Match[str]) -> str:
    """One token as a character; empty where it is no letter or digit."""
    groups = found.groupdict()
    if groups["dec"]:
        code = int(groups["dec"])
    elif digits := next((text for text in groups.values() if text), None):
        code = int(digits, 16)
    else:
        return found[0] if len(found[0]) == 1 else ""
    return chr(code) if code < 128 else ""  # noqa: PLR2004 - ASCII: no other letter counts


def _bones(text: str) -> str:
    """The ASCII letters and digits of a text without its escapes: equal for every spelling."""
    if "%" in text or "\\" in text or "&" in text:
        text = _ESCAPE.sub(_decoded, text)
    # Bytes are faster, and each value of each line of the log comes here.
    return text.encode("ascii", "ignore").translate(None, _OTHER).decode("ascii")


class Secrets:
    """The secrets to hide. Threads may share it: its sets are replaced, never changed."""

    def __init__(self) -> None:
        self._plain: tuple[str, ...] = ()
        self._short: frozenset[str] = frozenset()
        self._windows: frozenset[str] = frozenset()

    def learn(self, secrets: Iterable[str]) -> None:
        """Hide these from now on."""
        plain, short, windows = set(self._plain), set(self._short), set(self._windows)
        for secret in secrets:
            if len(secret) < SHORTEST or secret in plain:
                continue
            plain |= {secret, quote(secret, safe=""), repr(secret)[1:-1]}
            for spelling in _spellings(secret):
                bones = _bones(spelling)
                if len(bones) >= RUN:
                    windows |= {bones[i : i + WINDOW] for i in range(len(bones) - WINDOW + 1)}
                elif len(bones) >= SHORTEST:
                    short.add(bones)
        self._plain = tuple(sorted(plain, key=len, reverse=True))
        self._short, self._windows = frozenset(short), frozenset(windows)

    def masked(self, text: str) -> str:
        """Return the text without them.

        A whole token with another signature than ours stays as it is, although all tokens of a
        project share their header: it is the address of a user's clip, which people copy.
        """
        if "eyJ" not in text:
            return self._masked(text)
        parts, end = [], 0
        for found in _TOKEN_OF_SOMEBODY.finditer(text):
            if self._masked(found["signature"]) == found["signature"]:
                parts += [self._masked(text[end : found.start()]), found[0]]
                end = found.end()
        return "".join([*parts, self._masked(text[end:])])

    def _masked(self, text: str) -> str:
        if len(text) < SHORTEST:
            return text
        for secret in self._plain:
            if secret in text:
                text = text.replace(secret, MASK)
        bones = _bones(text)
        pieces = [bones[at : at + WINDOW] for at in range(0, len(bones), WINDOW)]
        if not self._windows.isdisjoint(pieces) or any(short in bones for short in self._short):
            text = self._blotted(text)
        return text

    def _blotted(self, text: str) -> str:
        """Find the places of the letters that reveal a secret, and overwrite them."""
        letters = [
            (letter, found.start(), found.end())
            for found in _TOKEN.finditer(text)
            if (letter := _decoded(found)).isascii() and letter.isalnum()
        ]
        bones = "".join(letter for letter, _, _ in letters)
        parts, end = [], 0
        for first, last in self._runs(bones):
            start = letters[first][1]
            if start < end:
                continue
            parts += [text[end:start], MASK]
            end = letters[last][2]
        return "".join([*parts, text[end:]])

    def _runs(self, bones: str) -> Iterator[tuple[int, int]]:
        """The first and last place of each part to hide, in order."""
        hidden = bytearray(len(bones))
        for short in self._short:
            at = bones.find(short)
            while at >= 0:
                hidden[at : at + len(short)] = b"\x01" * len(short)
                at = bones.find(short, at + 1)
        first = None
        for at in range(len(bones) - WINDOW + 2):
            if bones[at : at + WINDOW] in self._windows:
                first = at if first is None else first
            elif first is not None:
                length = at - 1 + WINDOW - first
                if length >= RUN:
                    hidden[first : first + length] = b"\x01" * length
                first = None
        for found in re.finditer(rb"\x01+", hidden):
            yield found.start(), found.end() - 1


def _spellings(secret: str) -> Iterator[str]:
    yield secret
    raw = secret.encode("utf-8", "surrogateescape")
    yield raw.hex()
    for before in range(3):
        # The letters that depend on what stands before and behind are left out.
        coded = base64.b64encode(b"\0" * before + raw).decode()
        whole = len(raw) + before
        yield coded[(0, 2, 3)[before] : whole * 8 // 6]


_process = Secrets()


def learn(secrets: Iterable[str]) -> None:
    """Hide these in all that this process lets out from now on."""
    _process.learn(secrets)


def masked(text: str) -> str:
    """Return the text without the secrets that this process knows."""
    return _process.masked(text)

"""Prompt words: `[[word arguments xN]]` anywhere in a prompt chooses how the double behaves.

One table, which the command line and the README print. `xN` says how often a word fires for the
same prompt at the same endpoint; without it a transient word fires once and a lasting one always.
It never decides what a word does: `double.py` does.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from vidgen_worker.sandbox.runway.contract import Kind

WORD = re.compile(r"\[\[\s*(?P<name>[a-z0-9-]+)(?P<rest>[^\[\]]*)\]\]")
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


class Moment(Enum):
    """When a word fires: what one firing uses up."""

    REFUSAL = "a POST is refused: nothing is created, nothing is charged"
    ANSWER = "a POST is accepted and charged, but its answer goes wrong"
    GENERATION = "a generation, from its start to its end"
    POLL = "one GET of a generation"
    DOWNLOAD = "one download of an output"


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the table. `times` is how often it fires when the prompt does not say."""

    name: str
    arguments: str
    moment: Moment
    times: Literal["once", "always"]
    help: str

    @property
    def usage(self) -> str:
        """The word as one writes it."""
        return f"[[{' '.join(filter(None, (self.name, self.arguments)))}]]"


_TABLE = (
    Word("fail", "CODE [cost N]", Moment.GENERATION, "always",
         "ends FAILED with this failure code (none for no code); SAFETY codes cost the full price, "
         "others nothing, unless a cost is given"),
    Word("throttle", "20s", Moment.GENERATION, "always", "stays THROTTLED this much longer"),
    Word("slow", "20s", Moment.GENERATION, "always", "takes this long instead"),
    Word("stall", "", Moment.GENERATION, "always", "stays RUNNING for ever"),
    Word("cancelled", "", Moment.GENERATION, "once", "ends CANCELLED though nobody asked"),
    Word("gone", "", Moment.GENERATION, "once", "answers 404 as soon as it has started"),
    Word("no-cost", "", Moment.GENERATION, "always", "answers without cost or estimatedCost"),
    Word("garbage", "[same]", Moment.GENERATION, "once",
         "its output is noise that no decoder takes, other noise every time unless 'same'"),
    Word("wrong-type", "", Moment.GENERATION, "always",
         "its output is a JPEG where a PNG was asked, a WebM where an MP4 was"),
    Word("wrong-size", "", Moment.GENERATION, "always", "its output has half the size asked"),
    Word("wrong-duration", "", Moment.GENERATION, "always", "its clip is a second too long"),
    Word("no-credits", "", Moment.REFUSAL, "once", "400, not enough credits"),
    Word("payment", "", Moment.REFUSAL, "once", "402"),
    Word("denied", "", Moment.REFUSAL, "once", "401, as for a bad key"),
    Word("forbidden", "", Moment.REFUSAL, "once", "403"),
    Word("daily-limit", "", Moment.REFUSAL, "once", "429, the model's daily limit is reached"),
    Word("busy", "", Moment.REFUSAL, "once", "429, too many requests"),
    Word("400", "FIELD", Moment.REFUSAL, "always", "400 with an issue that names this field"),
    Word("500-before-accept", "", Moment.REFUSAL, "once", "500, and nothing was created"),
    Word("drop-before-accept", "", Moment.REFUSAL, "once",
         "the connection is cut without an answer, and nothing was created"),
    Word("drop-after-accept", "", Moment.ANSWER, "once",
         "the connection is cut without an answer, though the generation runs"),
    Word("hang-after-accept", "90s", Moment.ANSWER, "once",
         "no answer for this long, then the connection is cut; the generation runs"),
    Word("late", "5s", Moment.ANSWER, "once", "a good answer, this much later"),
    Word("500-after-accept", "", Moment.ANSWER, "once", "500, though the generation runs"),
    Word("503-after-accept", "", Moment.ANSWER, "once", "503, though the generation runs"),
    Word("504-after-accept", "", Moment.ANSWER, "once", "504, though the generation runs"),
    Word("html-200", "", Moment.ANSWER, "once", "200 with a page of HTML"),
    Word("empty-200", "", Moment.ANSWER, "once", "200 with {}"),
    Word("broken-json-200", "", Moment.ANSWER, "once", "200 with JSON that ends too early"),
    Word("bad-id-200", "", Moment.ANSWER, "once", "200 with an id that is no UUID"),
    Word("poll-500", "", Moment.POLL, "once", "500"),
    Word("poll-html", "", Moment.POLL, "once", "200 with a page of HTML"),
    Word("weird-status", "", Moment.POLL, "once", "a status that nobody knows"),
    Word("expire-urls", "", Moment.POLL, "once",
         "the output URLs of this answer have expired already; the next one's are good"),
    Word("truncate-download", "", Moment.DOWNLOAD, "once", "the connection is cut half-way"),
    Word("zero-bytes", "", Moment.DOWNLOAD, "once", "200 with an empty body"),
    Word("page-download", "", Moment.DOWNLOAD, "once",
         "200 with a page of HTML, under the media type of the file"),
    Word("odd-encoding", "", Moment.DOWNLOAD, "once",
         "the whole file, with a Content-Encoding that is not its own"),
)  # fmt: skip

WORDS: Mapping[str, Word] = {word.name: word for word in _TABLE}


@dataclass(frozen=True, slots=True)
class Spoken:
    """A word as it stands in a prompt. `times` None means always."""

    word: Word
    arguments: tuple[str, ...] = ()
    times: int | None = None

    def seconds(self, default: float = 20.0) -> float:
        """Return its first argument as a duration."""
        found = DURATION.fullmatch(self.arguments[0]) if self.arguments else None
        if found is None:
            return default
        return float(found[1]) * SECONDS_PER_UNIT[found[2]]

    def argument(self, default: str) -> str:
        """Return its first argument."""
        return self.arguments[0] if self.arguments else default

    def number_after(self, name: str) -> int | None:
        """Return the number that follows the argument `name`."""
        if name not in self.arguments[:-1]:
            return None
        return int(self.arguments[self.arguments.index(name) + 1])


class UnknownWordError(ValueError):
    """A prompt has a word in brackets that is not in the table."""


def spoken_in(prompt: str) -> tuple[Spoken, ...]:
    """Return the words of a prompt, in order. Raises `UnknownWordError`."""
    return tuple(_spoken(found["name"], found["rest"].split()) for found in WORD.finditer(prompt))


def without_words(prompt: str) -> str:
    """Return the prompt as a person would read it."""
    return " ".join(WORD.sub(" ", prompt).split())


def _spoken(name: str, arguments: list[str]) -> Spoken:
    word = WORDS.get(name)
    if word is None:
        known = ", ".join(WORDS)
        message = f"The sandbox does not know the prompt word [[{name}]]. It knows: {known}."
        raise UnknownWordError(message)
    times = 1 if word.times == "once" else None
    if arguments and re.fullmatch(r"x\d+", arguments[-1]):
        times = int(arguments.pop()[1:])
    return Spoken(word, tuple(arguments), times)


@dataclass(slots=True)
class Script:
    """Counts how often each word of each prompt has fired."""

    _fired: Counter[tuple[Kind, str, str]] = field(default_factory=Counter)

    def firing(self, kind: Kind, prompt: str, moment: Moment, *among: str) -> dict[str, Spoken]:
        """Return the words (`among` some, if given) that fire now, and count them as fired."""
        firing: dict[str, Spoken] = {}
        if "[[" not in prompt:
            return firing
        for spoken in spoken_in(prompt):
            key = (kind, prompt, spoken.word.name)
            name = spoken.word.name
            if among and name not in among:
                continue
            if spoken.word.moment is moment and not self._is_used_up(spoken, key):
                self._fired[key] += 1
                firing[spoken.word.name] = spoken
        return firing

    def _is_used_up(self, spoken: Spoken, key: tuple[Kind, str, str]) -> bool:
        return spoken.times is not None and self._fired[key] >= spoken.times

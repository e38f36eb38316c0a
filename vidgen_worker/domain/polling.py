"""The time of the next poll of a generation, and an estimate of the generation's end.

Three things are known about a generation: how long it has run, the two polls between which each of
the last generations of its kind ended (`Ended`), and its progress as the provider reports it.
`Pace` has the rules. All times are in seconds, either since the provider accepted the generation or
from now on. The functions are pure: they read no clock, and the caller draws the random `lot`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LEAST = 5.0
"""Runway gives no newer answer within 5 s of a poll (its OpenAPI document, GET /v1/tasks/{id})."""
BLIND = 5.5
"""The pause where nothing is known: the mean wait is half of it."""
PATIENCE = 5.9
"""The longest time between an end and its poll, where the end was not earlier than expected."""
JITTER = 0.3
"""Seconds by which pauses differ, so that many generations are not polled in one instant."""
STEP = 0.25
"""Seconds between two pauses that are compared."""
POLL_PRICE = 1.5
"""The seconds of waiting that one poll less is worth."""
KEPT = 24
"""The number of ends that are remembered for each kind, as in `vidgen.generation_times`."""
FADING = 0.85
"""The weight of an end relative to the next one: five new ends outweigh all older ones."""
UNLIKELY = 0.03
"""The share of the known ends, the fastest, that are outliers."""
MARGIN = 0.07
"""An end may come earlier than all others by this part of its time,"""
MARGIN_OF_FEW = 0.35
"""and by this part divided by their number, where few are known."""
WEIGHT_OF_PROGRESS = 0.1
"""The weight of the provider's progress relative to all known ends."""
MARGIN_OF_PROGRESS = 0.1
"""The error of an end that progress predicts, as a part of the time left."""
LATE = 0.7
"""`left` is enough for this share of the known ends."""
LONGEST_LEFT = 86_400.0
"""The longest estimate in seconds; a longer one is not reported."""
_PARTS = (1 / 6, 1 / 2, 5 / 6)
"""The parts of the time between two polls at which an end is assumed, each equally likely."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One generation that ended after `after` seconds, and at the latest after `by` seconds."""

    after: float
    by: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The progress, 0 to 1, that one poll read `at` seconds after acceptance."""

    at: float
    progress: float


@dataclass(frozen=True, slots=True)
class _Likely:
    """An end between `first` and `last` seconds from now."""

    weight: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Pace:
    """The rules for the pauses between the polls of one generation.

    - No pause is below `least` or above `longest` (VIDGEN_POLL_INTERVAL), its jitter included.
    - Before the earliest likely end, polls are spread evenly.
    - After it, a pause is chosen in which no likely end waits longer than `PATIENCE`: the one
      after which the known ends would have waited least.
    - A generation of an unknown kind, or one that runs longer than all known ones, is polled every
      `BLIND` seconds.
    - Progress may be wrong: it can shorten a pause, but never lengthen one.
    """

    least: float
    longest: float

    @classmethod
    def of(cls, interval: float) -> "Pace":
        """The pace for VIDGEN_POLL_INTERVAL; an interval below `LEAST` replaces `LEAST`."""
        return cls(LEAST if interval >= LEAST else 0.95 * interval, interval)

    def pause(
        self, history: Sequence[Ended], seen: Sequence[Seen], elapsed: float, lot: float
    ) -> float:
        """Seconds from now until the next poll; `history` is newest first, `lot` from 0 to 1."""
        room = min(JITTER, self.longest - self.least)
        likely = _likely(history, elapsed)
        if likely:
            pause = self._towards(_with_progress(likely, seen, elapsed), elapsed, room)
        elif not history and elapsed < self.least:
            # At the first poll: no kind of generation ends at once.
            pause = self.longest - room
        else:
            pause = BLIND - room / 2
        return max(self.least, min(pause, self.longest - room)) + room * lot

    def _towards(self, likely: list[_Likely], elapsed: float, room: float) -> float:
        earliest = _earliest(likely, elapsed)
        if earliest > self.longest:
            return earliest / math.ceil(earliest / (self.longest - room))
        top = min(self.longest, max(earliest, 0.0) + PATIENCE) - room
        if top < self.least + STEP:
            return self.least
        steps = range(int((top - self.least) / STEP) + 1)
        between = self.least + room / 2
        ends = [
            (one.weight, one.first + (one.last - one.first) * part)
            for one in likely
            for part in _PARTS
        ]
        return min(
            (self.least + STEP * step for step in steps),
            key=lambda pause: _waiting(ends, pause, between),
        )


def left(history: Sequence[Ended], seen: Sequence[Seen], elapsed: float) -> float | None:
    """Seconds from now until the end has probably been polled; None where nothing is known."""
    likely = _likely(history, elapsed)
    told = _told(seen, elapsed)
    if told is not None:
        # Progress weighs as much as the whole history.
        weight = sum(one.weight for one in likely) or 1.0
        likely = [*likely, _Likely(weight, told.first, told.last)]
    rest = _at(LATE, [(one.last, one.weight) for one in likely]) if likely else LONGEST_LEFT
    return rest if rest < LONGEST_LEFT else None


def _likely(history: Sequence[Ended], elapsed: float) -> list[_Likely]:
    """The known ends that are still to come, as seconds from now."""
    found = []
    for age, one in enumerate(history):
        if one.by > elapsed:
            since = max(one.after, elapsed)
            share = (one.by - since) / (one.by - one.after) if one.by > one.after else 1.0
            found.append(_Likely(FADING**age * share, since - elapsed, one.by - elapsed))
    return found


def _with_progress(likely: list[_Likely], seen: Sequence[Seen], elapsed: float) -> list[_Likely]:
    """Add the end that progress predicts, where it is earlier than all others."""
    told = _told(seen, elapsed)
    if told is None or told.first >= min(one.first for one in likely):
        return likely
    weight = WEIGHT_OF_PROGRESS * sum(one.weight for one in likely)
    return [*likely, _Likely(weight, told.first, told.last)]


def _told(seen: Sequence[Seen], elapsed: float) -> _Likely | None:
    """The end that progress predicts: its last two steps must agree.

    A generation that stalls, jumps or has made almost no progress predicts nothing.
    """
    ends = [
        after.at
        + (1 - after.progress) * (after.at - before.at) / (after.progress - before.progress)
        if after.progress > before.progress
        else math.inf
        for before, after in pairwise(seen[-3:])
    ]
    if len(ends) < 2 or math.inf in ends:  # noqa: PLR2004 - the last step and the one before
        return None
    rest = max(ends[-1] - elapsed, 0.0)
    margin = MARGIN_OF_PROGRESS * max(rest, LEAST)
    if abs(ends[-1] - ends[-2]) > 2 * margin:
        return None
    return _Likely(1.0, max(rest - margin, 0.0), rest + margin)


def _earliest(likely: Sequence[_Likely], elapsed: float) -> float:
    """The earliest likely end, as seconds from now."""
    first = _at(UNLIKELY, [(one.first, one.weight) for one in likely])
    return first - (elapsed + first) * max(MARGIN, MARGIN_OF_FEW / len(likely))


def _waiting(ends: Sequence[tuple[float, float]], pause: float, between: float) -> float:
    """The total waiting of weighted ends, with a poll after `pause` and then one each `between`.

    Each further poll counts as some waiting, so that the longer of two equal pauses is taken.
    """
    total = 0.0
    for weight, end in ends:
        more = math.ceil((end - pause) / between) if end > pause else 0
        total += weight * (pause + more * between - end + POLL_PRICE * more)
    return total


def _at(share: float, weighed: list[tuple[float, float]]) -> float:
    """The weighted quantile: the smallest value that covers this share of the weights."""
    weighed.sort()
    least, total = share * sum(weight for _, weight in weighed), 0.0
    for value, weight in weighed:
        total += weight
        if total >= least:
            return value
    return weighed[-1][0]

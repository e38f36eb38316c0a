"""When to ask next whether a generation has ended, and when that is likely.

Three things are known of a generation: for how long it has run, between which two polls each of the
last ones of its kind ended (`Ended`), and what the provider says of its progress. `Pace` has the
rules. All times are in seconds, since the provider accepted the generation or from now on.
Pure: no clock, no chance (`lot` is drawn by the caller), nothing read or written.
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
"""What an end waits at the most that did not come before the earliest likely one."""
JITTER = 0.3
"""Seconds by which pauses differ, so that many generations are not polled in one instant."""
STEP = 0.25
"""Seconds between two pauses that are compared."""
POLL_PRICE = 1.5
"""One poll less is worth so many seconds of waiting."""
KEPT = 24
"""Ends remembered of a kind; `vidgen.generation_times` keeps as many."""
FADING = 0.85
"""What an end counts of the one after it: five new ones outweigh all before them."""
UNLIKELY = 0.03
"""The share of the known ends, the fastest, that are outliers."""
MARGIN = 0.07
"""An end may come earlier than all others by this part of its time,"""
MARGIN_OF_FEW = 0.35
"""and by this part divided by their number, where few are known."""
WEIGHT_OF_PROGRESS = 0.1
"""What a provider's progress counts of all that is known: enough to be likely, and no more."""
MARGIN_OF_PROGRESS = 0.1
"""The part of the time left by which an end that progress points to may be wrong."""
LATE = 0.7
"""`left` is enough for this share of the known ends."""
LONGEST_LEFT = 86_400.0
"""An estimate beyond a day is none."""
_PARTS = (1 / 6, 1 / 2, 5 / 6)
"""An end between two polls is taken to be at these parts of that time, at each as likely."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One generation that ended: it still ran `after` so many seconds, and had ended `by` these."""

    after: float
    by: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What one poll saw: the provider's progress, 0 to 1, so many seconds after acceptance."""

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
    """When one generation is polled.

    - No pause is below `least` or above `longest` (VIDGEN_POLL_INTERVAL), its jitter included.
    - While no end is likely, polls are spread evenly up to the earliest likely end.
    - Then, of all pauses in which no likely end waits for longer than `PATIENCE`, the one after
      which the ends known so far would have waited least.
    - Where nothing is known, or it runs for longer than all before, every `BLIND` seconds.
    - Progress may be wrong: it shortens a pause, and never makes one longer.
    """

    least: float
    longest: float

    @classmethod
    def of(cls, interval: float) -> "Pace":
        """The pace of VIDGEN_POLL_INTERVAL; where that is below `LEAST`, it alone counts."""
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
            # Its first poll: whatever it is, it does not end at once.
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
    """Seconds from now until its end is likely to have been seen; None where nothing is known."""
    likely = _likely(history, elapsed)
    told = _told(seen, elapsed)
    if told is not None:
        # With the history, half of all that is known.
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
    """Add the end that progress points to where it is earlier than all others."""
    told = _told(seen, elapsed)
    if told is None or told.first >= min(one.first for one in likely):
        return likely
    weight = WEIGHT_OF_PROGRESS * sum(one.weight for one in likely)
    return [*likely, _Likely(weight, told.first, told.last)]


def _told(seen: Sequence[Seen], elapsed: float) -> _Likely | None:
    """The end that progress points to: by its last step, where the step before says the same.

    A generation that stalls, jumps or has nearly no progress points to nothing.
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
    """What weighed ends wait in all, with a poll after `pause` and others each `between`.

    A poll more counts as some waiting: of pauses that are as good, the longer one.
    """
    total = 0.0
    for weight, end in ends:
        more = math.ceil((end - pause) / between) if end > pause else 0
        total += weight * (pause + more * between - end + POLL_PRICE * more)
    return total


def _at(share: float, weighed: list[tuple[float, float]]) -> float:
    """The value that this share of the weights does not go beyond."""
    weighed.sort()
    least, total = share * sum(weight for _, weight in weighed), 0.0
    for value, weight in weighed:
        total += weight
        if total >= least:
            return value
    return weighed[-1][0]

"""Runway's side of a generation: queueing, states, credits, limits, all computed from the clock.

Nothing runs in the background: whoever looks at a generation learns where it is by now. Generations
beyond the concurrency wait in order as THROTTLED. It never speaks HTTP and never renders anything.
"""

import heapq
import math
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from vidgen_worker.sandbox.runway.contract import Kind, cost, models
from vidgen_worker.sandbox.runway.words import Spoken

DAY_SECONDS = 86_400.0
PENDING_SHARE = 0.15
STALLED_PROGRESS = 0.42

# Documentation, "Tiers": concurrency of (image, video) models, generations a day, credits a month.
TIERS: Mapping[int, tuple[Mapping[Kind, int], Mapping[Kind, int], int]] = {
    1: ({"image": 2, "video": 1}, {"image": 200, "video": 50}, 10_000),
    2: ({"image": 3, "video": 3}, {"image": 1_000, "video": 500}, 50_000),
    3: ({"image": 5, "video": 5}, {"image": 2_000, "video": 1_000}, 200_000),
    4: ({"image": 10, "video": 10}, {"image": 10_000, "video": 5_000}, 2_000_000),
    5: ({"image": 20, "video": 20}, {"image": 30_000, "video": 25_000}, 10_000_000),
}

FAILURES = {
    "SAFETY": "The request was flagged by content moderation.",
    "ASSET": "An asset that was provided is not usable.",
}


class State(StrEnum):
    """The state of a generation. GET answers 404 for the last two."""

    THROTTLED = "THROTTLED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    DELETED = "DELETED"
    GONE = "GONE"

    @property
    def is_unfinished(self) -> bool:
        """Whether the provider still works on it, or will."""
        return self in {State.THROTTLED, State.PENDING, State.RUNNING}


@dataclass(frozen=True, slots=True)
class RunwaySettings:
    """How the double behaves. `PATCH /sandbox/settings` takes the same names."""

    tier: int = 4
    concurrency: int | None = None
    """Generations at once per model; None: what the tier allows."""
    daily_limit: int | None = None
    """Generations per model in 24 hours; None: what the tier allows."""
    unlimited: bool = False
    """Neither of the two; the organization then shows null."""
    image_seconds: float = 3.0
    video_seconds: float = 6.0
    """How long a generation takes; 0: it has ended at the first look."""
    render: Literal["real", "cached"] = "real"
    """Pictures worth looking at, or one plain file per size, for loads of thousands."""
    url_seconds: float = DAY_SECONDS
    """How long an output URL is good for."""
    key_disabled: bool = False
    outage: bool = False
    """503 to everything."""

    def concurrency_of(self, kind: Kind) -> float:
        """Return how many generations of a model may run at once."""
        if self.unlimited:
            return math.inf
        return TIERS[self.tier][0][kind] if self.concurrency is None else self.concurrency

    def daily_limit_of(self, kind: Kind) -> float:
        """Return how many generations of a model a day may see."""
        if self.unlimited:
            return math.inf
        return TIERS[self.tier][1][kind] if self.daily_limit is None else self.daily_limit

    def seconds_of(self, kind: Kind) -> float:
        """Return how long a generation takes."""
        return self.image_seconds if kind == "image" else self.video_seconds


@dataclass(slots=True, eq=False)
class Generation:
    """One accepted POST. Times are readings of the clock that `Generations` was given."""

    id: str
    kind: Kind
    model: str
    body: Mapping[str, Any]
    price: int
    created: float
    created_at: datetime
    not_before: float
    seconds: float
    words: Mapping[str, Spoken]
    inputs: tuple[bytes | str, ...] = ()
    """The pictures it was given: bytes, or the id of the generation that they are the output of."""
    started: float | None = None
    cancelled: float | None = None
    deleted: bool = False
    delivered: bool = False
    """Whether the answer to the POST was sent in full."""

    @property
    def prompt(self) -> str:
        """Its prompt, empty where it has none."""
        return str(self.body.get("promptText", ""))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height asked for; 1280 by 720 for models that take no size in pixels."""
        width, _, height = str(self.body.get("ratio", "")).partition(":")
        if width.isdigit() and height.isdigit() and int(width) >= 64:  # noqa: PLR2004 - no "16:9"
            return int(width), int(height)
        return 1280, 720

    @property
    def ends(self) -> float:
        """When it leaves its slot: infinity while it has not started."""
        if self.cancelled is not None:
            return self.cancelled
        return math.inf if self.started is None else self.started + self.seconds

    def state(self, now: float) -> State:
        """Return where it is."""
        if self.deleted:
            return State.CANCELLED if self.cancelled is not None else State.DELETED
        if self.started is None or now < self.started:
            return State.THROTTLED
        if "gone" in self.words:
            return State.GONE
        if now >= self.ends:
            return self._end
        return State.PENDING if now < self.started + self._pending else State.RUNNING

    def progress(self, now: float) -> float:
        """Return 0 to 1 for a running generation."""
        if self.started is None or math.isinf(self.seconds):
            return STALLED_PROGRESS
        share = (now - self.started - self._pending) / (self.seconds - self._pending)
        return round(min(0.99, max(0.0, share)), 4)

    @property
    def failure(self) -> tuple[str | None, int]:
        """The failure code asked for, if any, and what the failure costs."""
        spoken = self.words["fail"]
        has_code = bool(spoken.arguments) and spoken.arguments[0] != "cost"
        code = spoken.arguments[0] if has_code else None
        stated = spoken.number_after("cost")
        if stated is not None:
            return code, stated
        return code, self.price if "SAFETY" in (code or "") else 0

    @property
    def final_cost(self) -> int:
        """The charge when it has ended by itself."""
        match self._end:
            case State.FAILED:
                return self.failure[1]
            case State.CANCELLED:
                return 0
            case _:
                return self.price

    @property
    def _pending(self) -> float:
        """How long it is PENDING after it got its slot."""
        return 0.0 if math.isinf(self.seconds) else self.seconds * PENDING_SHARE

    @property
    def _end(self) -> State:
        if "fail" in self.words:
            return State.FAILED
        return State.CANCELLED if "cancelled" in self.words else State.SUCCEEDED


@dataclass(slots=True)
class _Lane:
    """The queue of one model."""

    running: list[Generation] = field(default_factory=list)
    waiting: list[tuple[float, int, Generation]] = field(default_factory=list)
    today: deque[float] = field(default_factory=deque)


class Generations:
    """All generations of one account, its credits, and its models' queues."""

    def __init__(self, clock: Callable[[], float], credits_left: int) -> None:
        self.clock = clock
        self.all: dict[str, Generation] = {}
        self.settings = RunwaySettings()
        self._balance = credits_left
        self._lanes: defaultdict[str, _Lane] = defaultdict(_Lane)
        self._to_settle: list[Generation] = []

    @property
    def credits_left(self) -> int:
        """The credits left: a POST takes some, and a generation that ends for less returns some."""
        now = self.clock()
        for generation in list(self._to_settle):
            self._advance(generation.model, generation.kind, now)
            if generation.cancelled is None and now >= generation.ends:
                self._balance += generation.price - generation.final_cost
                self._to_settle.remove(generation)
        return self._balance

    @credits_left.setter
    def credits_left(self, value: int) -> None:
        _ = self.credits_left
        self._balance = value

    def daily_generations(self, model: str) -> int:
        """Return how many generations of a model the last 24 hours saw."""
        today = self._lanes[model].today
        while today and today[0] <= self.clock() - DAY_SECONDS:
            today.popleft()
        return len(today)

    def create(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        words: Mapping[str, Spoken],
        inputs: tuple[bytes | str, ...],
    ) -> Generation:
        """Accept a generation and take its price."""
        now = self.clock()
        seconds = self.settings.seconds_of(kind)
        if "slow" in words:
            seconds = words["slow"].seconds()
        if "stall" in words:
            seconds = math.inf
        generation = Generation(
            id=str(uuid.uuid4()),
            kind=kind,
            model=str(body["model"]),
            body=body,
            price=cost(kind, body),
            created=now,
            created_at=datetime.now(UTC),
            not_before=now + (words["throttle"].seconds() if "throttle" in words else 0),
            seconds=seconds,
            words=words,
            inputs=inputs,
        )
        self._balance -= generation.price
        if generation.final_cost != generation.price:
            self._to_settle.append(generation)
        lane = self._lanes[generation.model]
        lane.today.append(now)
        heapq.heappush(lane.waiting, (generation.not_before, len(self.all), generation))
        self.all[generation.id] = generation
        self._advance(generation.model, kind, now)
        return generation

    def state(self, generation: Generation) -> State:
        """Return where a generation is by now."""
        now = self.clock()
        self._advance(generation.model, generation.kind, now)
        return generation.state(now)

    def throttled_seconds(self, generation: Generation) -> float:
        """Return how long it has waited because others filled the model's concurrency."""
        now = self.clock()
        self._advance(generation.model, generation.kind, now)
        started = now if generation.started is None else generation.started
        return max(started - generation.not_before, 0.0)

    def delete(self, generation: Generation) -> None:
        """Cancel an unfinished generation; destroy a finished one and its output."""
        now = self.clock()
        match self.state(generation):
            case State.THROTTLED | State.PENDING:
                self._balance += generation.price
                generation.cancelled = now
            case State.RUNNING:
                generation.cancelled = now
            case _:
                pass
        if generation.cancelled is not None and generation in self._to_settle:
            self._to_settle.remove(generation)
        generation.deleted = True

    def organization(self) -> dict[str, Any]:
        """Return the account as `GET /v1/organization` shows it."""
        tier: dict[str, Any] = {}
        usage: dict[str, Any] = {}
        kinds: tuple[Kind, ...] = ("image", "video")
        for kind in kinds:
            limits = {
                "maxConcurrentGenerations": _or_null(self.settings.concurrency_of(kind)),
                "maxDailyGenerations": _or_null(self.settings.daily_limit_of(kind)),
            }
            for model in models(kind):
                tier[model] = limits
                usage[model] = {"dailyGenerations": self.daily_generations(model)}
        return {
            "creditBalance": max(0, self.credits_left),
            "tier": {"maxMonthlyCreditSpend": TIERS[self.settings.tier][2], "models": tier},
            "usage": {"models": usage},
        }

    def _advance(self, model: str, kind: Kind, now: float) -> None:
        """Give free slots to waiting generations, as of the moments when they became free."""
        lane = self._lanes[model]
        slots = self.settings.concurrency_of(kind)
        while lane.waiting and lane.waiting[0][0] <= now:
            generation = lane.waiting[0][2]
            if generation.cancelled is not None or math.isinf(slots):
                heapq.heappop(lane.waiting)
                generation.started = generation.not_before
                continue
            free_since = -math.inf
            if len(lane.running) >= slots:
                first = min(lane.running, key=lambda one: one.ends, default=None)
                if first is None or first.ends > now:
                    return
                lane.running.remove(first)
                free_since = first.ends
                if len(lane.running) >= slots:  # the limit was lowered meanwhile
                    continue
            heapq.heappop(lane.waiting)
            generation.started = max(generation.not_before, free_since)
            lane.running.append(generation)


def _or_null(limit: float) -> int | None:
    return None if math.isinf(limit) else int(limit)

"""The page of numbers: what was made, what failed, how long it took, what it cost and earned.

What is over is read once and kept for an hour; only the hour that runs is read again. It counts
what ended, was submitted and was charged in a stretch of time, and nothing before it.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from markupsafe import Markup

from vidgen_worker.dashboard import charts
from vidgen_worker.dashboard.charts import Series
from vidgen_worker.dashboard.pages import Asked, Page, not_found
from vidgen_worker.dashboard.reads import Reads, Row

COUNTS = ("completed", "failed", "cancelled", "submissions", "provider_cost", "credits_charged")
MOST_TIMED = 2_000
"""Percentiles are taken of this many that came last: enough for two digits."""
READ_DAY = timedelta(days=1)
"""One statement reads this much: it has two seconds."""
HOUR = timedelta(hours=1)
COUNTED = ("ended_by_step", "submitted_by_step", "charged_by_step")


@dataclass(frozen=True, slots=True)
class Span:
    """The period of the page: this many hours or days, including the present one."""

    name: str
    step: str
    length: timedelta
    steps: int
    label: str


SPANS = {
    "24h": Span("the last 24 hours", "hour", timedelta(hours=1), 24, "%H:%M"),
    "7d": Span("the last 7 days", "day", timedelta(days=1), 7, "%d %b"),
}


def numbers(reads: Reads, asked: Asked) -> Page:
    """Return the page of a span."""
    name = asked.get("span", "24h")
    if name not in SPANS:
        raise not_found(f"There is no span {name[:40]!r}. Choose one of the page.")
    span = SPANS[name]
    since = span.length * span.steps
    hour = _hour(reads)
    starts = _starts(span, hour)
    ended, submitted, charged = (_read(reads, one, span, hour) for one in COUNTED)
    steps = _steps(starts, ended, submitted, charged)
    total = {count: sum(row[count] for row in steps) for count in COUNTS}
    decided = total["completed"] + total["failed"]
    labels = tuple(start.strftime(span.label) for start in starts)
    values = {
        "span": name,
        "step": span.step,
        "named": span.name,
        "spans": list(SPANS),
        "steps": list(reversed(steps)),
        "total": total,
        "success": 100 * total["completed"] / decided if decided else None,
        "took": _pair(reads.rows("time_to_end", since=since, most=MOST_TIMED)[0]["seconds"]),
        "codes": _codes(ended),
        "models": _models(reads, submitted, since),
        "made": _made(labels, steps),
        "money": _money(labels, steps),
    }
    return Page("numbers.html", values)


def read_ahead(reads: Reads) -> Iterator[None]:
    """Read what is over of every span, and yield after each statement. Raises ClientError."""
    for span in SPANS.values():
        hour = _hour(reads)
        for name in COUNTED:
            for since, until in _over(span, hour):
                reads.ahead(name, length=span.length, since=since, until=until)
                yield


def _hour(reads: Reads) -> datetime:
    """When the running hour began, by UTC."""
    return reads.clock().astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _starts(span: Span, hour: datetime) -> list[datetime]:
    """When each hour or day began, by UTC."""
    last = hour.replace(hour=0) if span.step == "day" else hour
    return [last - span.length * back for back in reversed(range(span.steps))]


def _over(span: Span, hour: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The stretches of a span, a day at the most, that are over."""
    since = _starts(span, hour)[0]
    while since < hour:
        until = min(since + READ_DAY, hour)
        yield since, until
        since = until


def _read(reads: Reads, name: str, span: Span, hour: datetime) -> list[Row]:
    """Read a span: what is over, kept for an hour; the running hour by itself."""
    found: list[Row] = []
    for since, until in _over(span, hour):
        found += reads.of_the_past(name, length=span.length, since=since, until=until)
    return found + reads.rows(name, length=span.length, since=hour, until=hour + HOUR)


def _steps(
    starts: list[datetime], ended: list[Row], submitted: list[Row], charged: list[Row]
) -> list[Row]:
    """One row for each hour or day, also where nothing happened."""
    steps: dict[datetime, Row] = {
        start: {"began_at": start, **dict.fromkeys(COUNTS, 0)} for start in starts
    }

    def step_of(row: Row) -> Row:
        """The running hour is read by itself, also where it is a part of a day."""
        return steps[starts[bisect_right(starts, row["began_at"]) - 1]]

    for row in ended:
        step_of(row)[row["status"]] += row["tasks"]
    for row in submitted:
        for count in ("submissions", "provider_cost"):
            step_of(row)[count] += row[count]
    for row in charged:
        step_of(row)["credits_charged"] += row["credits_charged"]
    return list(steps.values())


def _codes(ended: list[Row]) -> list[Row]:
    """Why tasks failed, the most frequent first."""
    tasks: Counter[str] = Counter()
    last: dict[str, datetime] = {}
    for row in ended:
        if row["status"] == "failed":
            tasks[row["code"]] += row["tasks"]
            last[row["code"]] = max(row["last"], last.get(row["code"], row["last"]))
    return [
        {"code": code, "tasks": count, "last": last[code]} for code, count in tasks.most_common(50)
    ]


def _models(reads: Reads, submitted: list[Row], since: timedelta) -> list[Row]:
    """The submissions of each stage's models, with their ends, durations and costs."""
    took = {
        (row["stage"], row["model"]): row["seconds"]
        for row in reads.rows("time_of_generations", since=since, most=MOST_TIMED)
    }
    counts = ("submissions", "failed", "unknown", "provider_cost")
    models: dict[tuple[str, str], Row] = {}
    for row in submitted:
        key = (row["stage"], row["model"])
        model = models.setdefault(
            key, {"stage": key[0], "model": key[1], **dict.fromkeys(counts, 0)}
        )
        for count in counts:
            model[count] += row[count]
    return [{**models[key], **_pair(took.get(key))} for key in sorted(models)]


def _pair(seconds: list[float] | None) -> Mapping[str, float | None]:
    median, p95 = seconds or (None, None)
    return {"median": median, "p95": p95}


def _made(labels: tuple[str, ...], steps: list[Row]) -> Markup:
    kinds = (("completed", "good"), ("failed", "bad"), ("cancelled", "quiet"))
    series = tuple(Series(name, tone, tuple(_values(steps, name))) for name, tone in kinds)
    return charts.bars("Tasks that ended, by how", labels, series)


def _money(labels: tuple[str, ...], steps: list[Row]) -> Mapping[str, Markup]:
    def one(title: str, name: str, tone: str) -> Markup:
        series = Series(title, tone, tuple(_values(steps, name)))
        return charts.bars(title.capitalize(), labels, (series,), half=True)

    return {
        "cost": one("provider credits spent", "provider_cost", "waits"),
        "credits": one("credits charged", "credits_charged", "runs"),
    }


def _values(steps: list[Row], name: str) -> Iterator[float]:
    for row in steps:
        yield float(row[name])

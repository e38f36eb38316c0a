"""How values look on a page: times, lengths, numbers, text from elsewhere. Templates, all escaped.

Whatever a template prints is escaped, and text from elsewhere goes through `printable` first, so
that marks which turn the direction of writing are seen and do nothing. It asks for nothing.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context

from vidgen_worker.domain.foreign_text import json_text, printable

NONE = "–"  # noqa: RUF001 - the dash of an empty cell
LONGEST = 2000
MINUTE = 60
_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
TONES: Mapping[str, str] = MappingProxyType(
    {
        "pending": "waits", "processing": "runs", "completed": "good", "failed": "bad",
        "cancelled": "quiet", "steady": "good", "settling": "runs", "silent": "waits",
        "dead": "bad",
    }
)  # fmt: skip
"""The colour of a status: a class of the style sheet. The word stands beside it, always."""


def length(seconds: float | timedelta | None) -> str:
    """Write how long something took or waits: its two largest units."""
    if seconds is None:
        return NONE
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if 0 < abs(seconds) < 10 and seconds != int(seconds):  # noqa: PLR2004 - then a tenth matters
        return f"{seconds:.1f} s"
    rest, parts = abs(round(seconds)), []
    for unit, size in _UNITS:
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


@pass_context
def ago(context: Context, moment: datetime | None) -> str:
    """Write how long ago something was, or in how long it will be, at the page's `now`."""
    if moment is None:
        return NONE
    past = round((context["now"] - moment).total_seconds())
    if past == 0:
        return "now"
    # Seconds only while they matter: a number that changes all the time draws attention.
    near = abs(past)
    said = length(near if near < MINUTE else near - near % MINUTE)
    return f"{said} ago" if past > 0 else f"in {said}"


def at(moment: datetime | None) -> str:
    """Write a time by UTC."""
    return NONE if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(moment: datetime) -> str:
    """Write the time of day by UTC."""
    return moment.astimezone(UTC).strftime("%H:%M:%S")


def iso(moment: datetime) -> str:
    """Write a time for machines."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def number(value: float | Decimal | None) -> str:
    """Write a count or a sum of money: whole numbers as such, others with two places."""
    if value is None:
        return NONE
    whole = value == int(value)
    return f"{int(value):,}" if whole else f"{value:,.2f}"


def text(value: object, longest: int = LONGEST) -> str:
    """Write text from elsewhere, on one line; nothing in it acts."""
    return NONE if value is None or value == "" else printable(str(value), longest)


def prose(value: object) -> str:
    """Write text from elsewhere with its lines."""
    return NONE if value is None or value == "" else printable(str(value), LONGEST, lines=True)


def data(value: object) -> str:
    """Write a value from elsewhere as JSON."""
    return printable(json_text(value, default=str, indent=1), LONGEST, lines=True)


def short(value: object) -> str:
    """Write the beginning of an id: enough to tell the rows of a page apart."""
    return str(value)[:8]


def query(**values: object) -> str:
    """Write the query of a link, without what is not set."""
    return urlencode({name: value for name, value in values.items() if value not in (None, "")})


def environment() -> Environment:
    """Return the templates."""
    made = Environment(
        loader=PackageLoader("vidgen_worker.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        length=length, ago=ago, at=at, clock=clock, iso=iso, number=number, text=text, prose=prose,
        data=data, short=short,
    )  # fmt: skip
    made.globals.update(tones=TONES, query=query)
    return made

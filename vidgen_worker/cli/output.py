"""Printing for all verbs: tables, JSON for machines, the last message.

Results go to stdout, everything else to stderr. Text from elsewhere is never read as markup.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vidgen_worker.cli.exit_codes import ExitCode, ReaderLeftError
from vidgen_worker.domain.foreign_text import LONGEST, json_text, printable, spelled

WIDTH_OF_A_PIPE = 200
BETWEEN = 2
"""Columns between two columns of a table."""
SHORT_ID = 8
LONGEST_ID = 36
"""Of what is longer, no word fits beside a name anyway."""
_UNITS = (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))

STATUS_STYLES: Mapping[str, str] = {
    "pending": "yellow",
    "processing": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
}


class _Console(Console):
    """Prints no control characters but rich's own, even where a caller forgot to check."""

    def on_broken_pipe(self) -> None:
        """Let the process end as it does after any other print that nobody reads."""
        raise ReaderLeftError

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Render, and spell out every other control character."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=spelled(segment.text))


def console(*, stderr: bool = False) -> Console:
    """Return a console; a pipe gets long lines rather than wrapped ones."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_OF_A_PIPE
    return _Console(file=stream, highlight=False, markup=False, width=width)


def fail(code: ExitCode, *lines: str) -> NoReturn:
    """Print the lines on stderr and end the process."""
    out = console(stderr=True)
    for number, line in enumerate(lines):
        text = printable(line, 4 * LONGEST, lines=True)
        out.print(Text(text, style="bold red" if number == 0 else ""), soft_wrap=True)
    sys.exit(code)


def need_yes(plan: str, *, yes: bool) -> None:
    """Say what is about to happen; go on with `--yes`, or where a person at a terminal agrees."""
    console(stderr=True).print(printable(plan), soft_wrap=True)
    if yes:
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        print("Do it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        fail(ExitCode.USAGE, "Nothing was done.")
    fail(ExitCode.USAGE, "Nothing was done. Add --yes to do it.")


def print_json(value: object) -> None:
    """Print a value for machines: times in ISO 8601, ids as text."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    print(json_text(value, ascii_only=encoding != "utf8", default=_plain, indent=2))


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case _:
            return str(value)


class Rows:
    """A table in which text stays text and no word is broken.

    Where the words don't fit side by side, each row is a block of names and values.
    """

    def __init__(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = ""
    ) -> None:
        lines = [list(row) for row in rows]
        timed = [
            any(isinstance(line[number], datetime) for line in lines)
            for number in range(len(columns))
        ]
        # The zone once, in the head, instead of in every line.
        self._columns = [
            Text(name.replace("_", " ") + (" (UTC)" if zone else ""))
            for name, zone in zip(columns, timed, strict=True)
        ]
        self._lines = [[_in_table(value) for value in line] for line in lines]
        # A time is one word, and so is a number with its unit.
        self._whole = [
            zone or all(isinstance(line[number], int | float | None) for line in lines)
            for number, zone in enumerate(timed)
        ]
        self.title = title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render for the width that there is."""
        if self.title:
            yield ""
            yield Text(self.title, style="bold")
        widths = self._widths(options.max_width)
        if widths is None:
            yield from self._blocks()
            return
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
        for name, width in zip(self._columns, widths, strict=True):
            made.add_column(name, overflow="fold", width=width)
        for line in self._lines:
            made.add_row(*line)
        yield made

    def _widths(self, available: int) -> list[int] | None:
        """Widths with which no word is broken; None where there are none."""
        cells = [
            [name, *column] for name, column in zip(self._columns, self._by_column(), strict=True)
        ]
        widths = [max(cell.cell_len for cell in column) for column in cells]
        least = [
            max(
                _longest_word(cell) if not whole or cell is column[0] else cell.cell_len
                for cell in column
            )
            for column, whole in zip(cells, self._whole, strict=True)
        ]
        room = available - BETWEEN * (len(widths) - 1)
        if sum(least) > room:
            return None
        while sum(widths) > room:
            widest = max(
                (number for number, width in enumerate(widths) if width > least[number]),
                key=widths.__getitem__,
            )
            widths[widest] = max(least[widest], widths[widest] - (sum(widths) - room))
        return widths

    def _by_column(self) -> list[list[Text]]:
        return [[line[number] for line in self._lines] for number in range(len(self._columns))]

    def _blocks(self) -> Iterator[RenderableType]:
        for number, line in enumerate(self._lines):
            if number:
                yield ""
            yield facts(zip([name.plain for name in self._columns], line, strict=True))


def _longest_word(text: Text) -> int:
    return max((cell_len(word) for word in text.plain.split()), default=0)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Rows:
    """Return a table in which text stays text, and words, ids and times stay in one piece."""
    return Rows(columns, rows, title)


def _in_table(value: object) -> Text:
    match value:
        case datetime():
            return Text(value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"))
        case UUID():
            return Text(short(value))
        case _:
            return cell(value)


def short(value: object) -> str:
    """Return the beginning of an id: enough to tell two apart, and what the verbs take."""
    return str(value)[:SHORT_ID]


def lasting(seconds: float) -> str:
    """Write how long something lasts or is ago, in its largest two units at the most."""
    whole = max(round(seconds), 0)
    for unit, length, smaller, part in _UNITS:
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{whole}s"


class Facts:
    """Names and values, side by side; one below the other where a word would be broken."""

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        self._pairs = [(name, cell(value)) for name, value in pairs]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render for the width that there is."""
        if not self._pairs:
            return
        names = max(cell_len(name) for name, _ in self._pairs)
        words = max(_longest_word(value) for _, value in self._pairs)
        if names + 1 + min(words, LONGEST_ID) > options.max_width:
            for name, value in self._pairs:
                yield Text(name, style="dim", overflow="fold")
                yield Padding(value, (0, 0, 0, min(2, options.max_width - 1)))
            return
        made = Table(box=None, show_header=False, pad_edge=False)
        made.add_column(style="dim", no_wrap=True)
        made.add_column(overflow="fold")
        for name, value in self._pairs:
            made.add_row(name, value)
        yield made


def facts(pairs: Iterable[tuple[str, object]]) -> Facts:
    """Return names and values that are shown beside each other."""
    return Facts(pairs)


def cell(value: object) -> Text:
    """Return one value as people read it."""
    match value:
        case Text():
            return value
        case None:
            return Text("–", style="dim")  # noqa: RUF001 - the dash of the tables
        case datetime():
            return Text(value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
        case dict() | list():
            return Text(printable(json_text(value, default=_plain)))
        case _:
            return Text(printable(str(value)))


def status_text(row: Mapping[str, Any]) -> Text:
    """Return a task's status in its colour."""
    status = str(row["status"])
    return Text(status, style=STATUS_STYLES.get(status, ""))

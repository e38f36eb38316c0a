"""What the verbs share in printing: tables, JSON for machines, the last word.

Results go to stdout, everything else to stderr. Text from elsewhere is never read as markup.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.domain.foreign_text import LONGEST, json_text, printable, spelled

WIDTH_OF_A_PIPE = 200

STATUS_STYLES: Mapping[str, str] = {
    "pending": "yellow",
    "processing": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
}


class _Console(Console):
    """Prints nothing that acts on a terminal but what rich makes itself, whoever forgot to look."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Render, and spell out what came through."""
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
    """Say what is about to happen; go on only with `--yes`."""
    console(stderr=True).print(printable(plan), soft_wrap=True)
    if not yes:
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
        case _:
            return str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """Return a table in which text stays text, and ids and times stay in one piece."""
    made = Table(
        box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold",
        pad_edge=False, show_edge=False, collapse_padding=True,
    )  # fmt: skip
    lines = [list(row) for row in rows]
    for number, name in enumerate(columns):
        values = [line[number] for line in lines]
        timed = any(isinstance(value, datetime) for value in values)
        made.add_column(
            # The zone once, in the head, instead of in every line.
            Text(name.replace("_", " ") + (" (UTC)" if timed else "")),
            overflow="fold",
            no_wrap=timed or any(isinstance(value, UUID) for value in values),
        )
    for line in lines:
        made.add_row(*[_in_table(value) for value in line])
    return made


def _in_table(value: object) -> Text:
    if isinstance(value, datetime):
        return Text(value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"))
    return cell(value)


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return a two-column table of names and values."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, cell(value))
    return made


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

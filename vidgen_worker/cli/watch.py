"""A task's row, live: a bar on a terminal, a line per change elsewhere.

It reads the row the way a client does and shows nothing that a client can't see.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from vidgen_worker.cli.time_left import TimeLeft
from vidgen_worker.client.database import ClientError, Database
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.task import Status

LOOK_SECONDS = 0.2
TELL_EVERY_PERCENT = 10
WORDS_WIDTH = 74
"""Columns of the line beside its bar."""
WIDE = 115
"""Columns of a terminal from which on the line also says how long it has taken."""

Row = dict[str, Any]


def watch(
    database: Database,
    task_id: str,
    console: Console,
    *,
    each_look: Callable[[], None] = lambda: None,
) -> Row:
    """Show the task until it has ended and return its last row.

    `each_look` is called between two looks and may raise to stop. Raises ClientError.
    """
    show = _Bar(console) if console.is_terminal else _Lines(console)
    pause = threading.Event()
    with show:
        while True:
            row = database.row("task_and_clock", {"task_id": task_id})
            if row is None:
                message = f"Task {task_id} is gone: somebody deleted it."
                raise ClientError(message)
            show.update(row, row.pop("database_now"))
            if Status(row["status"]).terminal:
                return row
            each_look()
            pause.wait(LOOK_SECONDS)


class _Bar:
    """One line that stays where it is."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[status]:<10}", markup=False),
            BarColumn(bar_width=max(8, min(32, console.width - WORDS_WIDTH))),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            *([TimeElapsedColumn()] if console.width >= WIDE else []),
            console=console,
        )
        self._line = self._progress.add_task("", total=100, status="", left="")
        self._left = TimeLeft()

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, row: Row, now: datetime) -> None:
        """Move the bar."""
        self._progress.update(
            self._line,
            completed=row["progress"],
            description=printable(row["current_step"]),
            status=row["status"],
            left=self._left.words(row, now),
        )


class _Lines:
    """A line whenever status or step changed, or the bar moved visibly."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._seen: tuple[object, ...] = ()
        self._left = TimeLeft()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, row: Row, now: datetime) -> None:
        """Print a line if there is something to tell."""
        left = self._left.words(row, now)
        seen = (row["status"], row["current_step"], row["progress"] // TELL_EVERY_PERCENT)
        if seen == self._seen:
            return
        self._seen = seen
        elapsed = time.monotonic() - self._began
        head = f"{elapsed:6.1f} s  {row['progress']:3.0f} %  {row['status']:<10}"
        step = ", ".join(filter(None, (printable(row["current_step"]), left)))
        self._console.print(f"{head}  {step}", soft_wrap=True)

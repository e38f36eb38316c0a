"""A task's row, live: a bar on a terminal, a line per change elsewhere.

It reads the row the way a client does and shows nothing that a client can't see.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from vidgen_worker.client.database import Database
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.task import Status

LOOK_SECONDS = 0.2
TELL_EVERY_PERCENT = 10

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
            row = database.row("task", {"task_id": task_id})
            if row is None:
                message = f"Task {task_id} is gone: somebody deleted it."
                raise LookupError(message)
            show.update(row)
            if Status(row["status"]).terminal:
                return row
            each_look()
            pause.wait(LOOK_SECONDS)


class _Bar:
    """One line that stays where it is."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[status]:<10}", markup=False),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._line = self._progress.add_task("", total=100, status="")

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, row: Row) -> None:
        """Move the bar."""
        self._progress.update(
            self._line,
            completed=row["progress"],
            description=printable(row["current_step"]),
            status=row["status"],
        )


class _Lines:
    """A line whenever status or step changed, or the bar moved visibly."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._seen: tuple[object, ...] = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, row: Row) -> None:
        """Print a line if there is something to tell."""
        seen = (row["status"], row["current_step"], row["progress"] // TELL_EVERY_PERCENT)
        if seen == self._seen:
            return
        self._seen = seen
        elapsed = time.monotonic() - self._began
        head = f"{elapsed:6.1f} s  {row['progress']:3.0f} %  {row['status']:<10}"
        self._console.print(f"{head}  {printable(row['current_step'])}", soft_wrap=True)

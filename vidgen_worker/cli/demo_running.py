"""What both demos stand on: the running stack, a task that is followed to its end, files saved.

It orders nothing itself.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rich.console import Console

from vidgen_worker.cli.output import facts, status_text
from vidgen_worker.cli.stack import Seed, WorkerProcess
from vidgen_worker.cli.watch import watch
from vidgen_worker.client.database import Database
from vidgen_worker.domain.task import Status

if TYPE_CHECKING:
    from vidgen_worker.sandbox.stack import Sandbox

DOWNLOAD_SECONDS = 30.0

Row = dict[str, Any]


class DemoError(Exception):
    """The demo did not get what it ordered."""


@dataclass(frozen=True, slots=True)
class Running:
    """A running sandbox with a worker, a user who may order, and the folder for what is made."""

    out: Console
    output: Path
    sandbox: "Sandbox"
    database: Database
    seeded: Seed
    worker: WorkerProcess
    began: float
    """When the demo began, by the monotonic clock."""

    def follow(self, task_id: UUID, longest: float) -> Row:
        """Show a task until it is completed, for so many seconds at most. Raises DemoError."""

        def each_look() -> None:
            if self.worker.exit_status is not None:
                message = f"the worker ended with status {self.worker.exit_status}."
                raise DemoError(message)
            if time.monotonic() - self.began > longest:
                message = f"the task had not ended after {longest:.0f} s."
                raise DemoError(message)

        row = watch(self.database, str(task_id), self.out, each_look=each_look)
        if row["status"] != Status.COMPLETED:
            message = f"the task ended {row['status']}: {row['error_code']}, {row['error_message']}"
            raise DemoError(message)
        return row

    def balance(self) -> int:
        """The user's credits."""
        row = self.database.rows("user_credits", {"user_id": self.seeded.user_id})[0]
        return int(row["balance"])

    def save(self, url: str, name: str) -> Path:
        """Fetch a file, as a client would, and write it whole or not at all."""
        import httpx  # noqa: PLC0415 - a tenth of a second that the other verbs need not wait for

        answer = httpx.get(url, timeout=DOWNLOAD_SECONDS).raise_for_status()
        path = self.output / name
        partial = path.with_suffix(".part")
        partial.write_bytes(answer.content)
        partial.replace(path)
        return path.absolute()

    def report(self, row: Row, before: int, shown: Sequence[tuple[str, object]]) -> None:
        """Print how it went; `shown` is what is particular to what was made."""
        took = row["completed_at"] - row["created_at"]
        self.out.print()
        self.out.print(
            facts([
                ("task", row["id"]), ("status", status_text(row)), ("message", row["message"]),
                ("progress", f"{row['progress']:.0f} %"), ("attempts", row["attempt"]),
                ("took", f"{took.total_seconds():.1f} s"), ("credits before", before),
                ("credits after", self.balance()), *shown,
            ]),
            soft_wrap=True,
        )  # fmt: skip
        self.out.print()

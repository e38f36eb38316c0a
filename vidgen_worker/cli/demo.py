"""`demo`: one command, no account, no Docker, and half a minute later a video.

The stack is the sandbox; migrations, worker, row and credits are the real ones. What it leaves is
`./demo-output/` with the still, the clip and the worker's log. Ctrl-C at any moment leaves no
process behind.
"""

import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.text import Text

from vidgen_worker.cli.dashboard import INSTALL, dashboard_beside
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.interrupts import Interrupts
from vidgen_worker.cli.output import console, facts, fail, status_text
from vidgen_worker.cli.stack import (
    RESOLUTION,
    Seed,
    WorkerProcess,
    running_sandbox,
    running_worker,
    seed,
)
from vidgen_worker.cli.watch import watch
from vidgen_worker.client.database import Database, open_database, user_claims
from vidgen_worker.domain.task import Status

LONGEST_SECONDS = 60.0
DOWNLOAD_SECONDS = 30.0

Row = dict[str, Any]


class DemoError(Exception):
    """The demo did not get its video."""


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep it running, to be seen in a browser.")
    ] = False,
) -> None:
    """Show all of it at work: an embedded stack, a row, a real worker, a video. No account."""
    out = console()
    output = Path("demo-output")
    with Interrupts() as interrupts:
        try:
            _play(out, output, interrupts, keep=keep)
        except KeyboardInterrupt:
            console(stderr=True).print("Interrupted: everything is stopped.")
            sys.exit(ExitCode.INTERRUPTED)


def _play(out: Console, output: Path, interrupts: Interrupts, *, keep: bool) -> None:
    import httpx  # noqa: PLC0415 - a tenth of a second that the other verbs need not wait for

    began = time.monotonic()
    try:
        output.mkdir(exist_ok=True)
    except OSError as error:
        fail(
            ExitCode.FAILED,
            f"The folder {output} can't be made here: {error.strerror}.",
            "Run it in a folder that you may write to.",
        )
    out.print("Starting PostgreSQL and the doubles of Supabase and Runway …")
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(running_sandbox(interrupts))
        environment = sandbox.environment()
        database = stack.enter_context(open_database(environment["DATABASE_URL"]))
        seeded = seed(database, sandbox.product_image_url)
        folder = sandbox.folder / "worker"
        folder.mkdir()
        worker = stack.enter_context(
            running_worker(interrupts, environment, folder, (output / "worker.log").absolute())
        )
        before = _balance(database, seeded)
        out.print(
            f"Inserting a task as its user (scene {seeded.scene_id}, {RESOLUTION}); "
            f"worker {worker.pid} takes it.",
            soft_wrap=True,
        )
        try:
            row = _follow(out, database, seeded, worker, began)
            files = _download(row, output)
        except (DemoError, httpx.HTTPError) as error:
            # Printed while the log is still there to be read, ended after the stack is stopped.
            fail(
                ExitCode.FAILED,
                f"The demo failed: {error}",
                f"The end of the worker's log ({worker.log}):",
                worker.log_tail(),
            )
        _report(out, row, before, _balance(database, seeded), files)
        out.print(f"From nothing to a video: {time.monotonic() - began:.1f} s", style="green")
        if keep:
            link = stack.enter_context(dashboard_beside(environment))
            out.print(f"See it: {link or INSTALL}", soft_wrap=True)
            out.print("Ctrl-C stops everything.")
            while True:
                signal.pause()


def _follow(
    out: Console, database: Database, seeded: Seed, worker: WorkerProcess, began: float
) -> Row:
    """Insert the row as PostgREST would for the user, and show it until it has ended."""
    task = {
        "id": uuid4(),
        "scene_id": seeded.scene_id,
        "user_id": seeded.user_id,
        "priority": 0,
        "run_after": None,
        "delay": None,
    }
    inserted = database.rows("insert_task", task, user_claims(seeded.user_id))[0]

    def each_look() -> None:
        if worker.exit_status is not None:
            message = f"the worker ended with status {worker.exit_status}."
            raise DemoError(message)
        if time.monotonic() - began > LONGEST_SECONDS:
            message = f"the task had not ended after {LONGEST_SECONDS:.0f} s."
            raise DemoError(message)

    row = watch(database, inserted["id"], out, each_look=each_look)
    if row["status"] != Status.COMPLETED:
        message = f"the task ended {row['status']}: {row['error_code']}, {row['error_message']}"
        raise DemoError(message)
    return row


def _download(row: Row, output: Path) -> dict[str, Path]:
    """Fetch still and clip as a client would: the public URL, and the signed one."""
    import httpx  # noqa: PLC0415 - as above

    files = {"image_url": output / "still.png", "video_url": output / "video.mp4"}
    for column, path in files.items():
        answer = httpx.get(row[column], timeout=DOWNLOAD_SECONDS).raise_for_status()
        partial = path.with_suffix(".part")
        partial.write_bytes(answer.content)
        partial.replace(path)
    return {column: path.absolute() for column, path in files.items()}


def _balance(database: Database, seeded: Seed) -> int:
    row = database.rows("user_credits", {"user_id": seeded.user_id})[0]
    return int(row["balance"])


def _report(out: Console, row: Row, before: int, after: int, files: dict[str, Path]) -> None:
    took = row["completed_at"] - row["created_at"]
    shown: list[tuple[str, object]] = [
        ("task", row["id"]),
        ("status", status_text(row)),
        ("message", row["message"]),
        ("progress", f"{row['progress']:.0f} %"),
        (
            "resolution",
            f"{row['resolution']} (image {row['image_ratio']}, video {row['video_ratio']})",
        ),
        ("attempts", row["attempt"]),
        ("took", f"{took.total_seconds():.1f} s"),
        ("credits before", before),
        ("credits after", after),
        ("PNG", Text(str(files["image_url"]), style="bold")),
        ("MP4", Text(str(files["video_url"]), style="bold")),
    ]
    out.print()
    out.print(facts(shown), soft_wrap=True)
    out.print()

"""`demo`: one command, no account, no Docker, and half a minute later a video.

The stack is the sandbox; migrations, worker, row and credits are the real ones. What it leaves is
`./demo-output/` with what was made and the worker's log. Ctrl-C at any moment leaves no process
behind.
"""

import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.console import Console
from rich.text import Text

from vidgen_worker.cli import demo_film
from vidgen_worker.cli.dashboard import INSTALL, dashboard_beside
from vidgen_worker.cli.demo_running import DemoError, Running
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.interrupts import Interrupts
from vidgen_worker.cli.output import console, fail
from vidgen_worker.cli.stack import RESOLUTION, running_sandbox, running_worker, seed
from vidgen_worker.client.database import open_database, user_claims

LONGEST_SECONDS = 60.0


def demo(
    film: Annotated[
        bool, typer.Option("--film", help="Make a film of three scenes, in four formats.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep it running, to be seen in a browser.")
    ] = False,
) -> None:
    """Show all of it at work: an embedded stack, a row, a real worker, a video. No account."""
    out = console()
    output = Path("demo-output")
    if film:
        demo_film.need_films()
    with Interrupts() as interrupts:
        try:
            _play(out, output, interrupts, film=film, keep=keep)
        except KeyboardInterrupt:
            console(stderr=True).print("Interrupted: everything is stopped.")
            sys.exit(ExitCode.INTERRUPTED)


def _play(out: Console, output: Path, interrupts: Interrupts, *, film: bool, keep: bool) -> None:
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
        running = Running(out, output, sandbox, database, seeded, worker, began)
        try:
            (demo_film.play if film else _play_scene)(running)
        except (DemoError, httpx.HTTPError) as error:
            # Printed while the log is still there to be read, ended after the stack is stopped.
            fail(
                ExitCode.FAILED,
                f"The demo failed: {error}",
                f"The end of the worker's log ({worker.log}):",
                worker.log_tail(),
            )
        what = "film" if film else "video"
        out.print(f"From nothing to a {what}: {time.monotonic() - began:.1f} s", style="green")
        if keep:
            link = stack.enter_context(dashboard_beside(environment))
            out.print(f"See it: {link or INSTALL}", soft_wrap=True)
            out.print("Ctrl-C stops everything.")
            while True:
                signal.pause()


def _play_scene(running: Running) -> None:
    """Order the video of one scene as its user, and save still and clip as a client would."""
    seeded, before = running.seeded, running.balance()
    running.out.print(
        f"Inserting a task as its user (scene {seeded.scene_id}, {RESOLUTION}); "
        f"worker {running.worker.pid} takes it.",
        soft_wrap=True,
    )
    task = {
        "id": uuid4(),
        "scene_id": seeded.scene_id,
        "user_id": seeded.user_id,
        "priority": 0,
        "run_after": None,
        "delay": None,
    }
    inserted = running.database.rows("insert_task", task, user_claims(seeded.user_id))[0]
    row = running.follow(inserted["id"], LONGEST_SECONDS)
    # The public URL of the still, and the signed one of the clip.
    still, clip = (
        running.save(row["image_url"], "still.png"),
        running.save(row["video_url"], "video.mp4"),
    )
    ratios = f"{row['resolution']} (image {row['image_ratio']}, video {row['video_ratio']})"
    running.report(
        row, before,
        [
            ("resolution", ratios), ("PNG", Text(str(still), style="bold")),
            ("MP4", Text(str(clip), style="bold")),
        ],
    )  # fmt: skip

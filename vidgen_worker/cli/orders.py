"""`enqueue`: order a video, and watch it."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.options import Json
from vidgen_worker.cli.output import console, fail, print_json
from vidgen_worker.cli.tasks import print_task
from vidgen_worker.cli.watch import watch
from vidgen_worker.client.database import load_client_settings, open_database
from vidgen_worker.client.service import VideoGenerationService
from vidgen_worker.domain.durations import parse_duration
from vidgen_worker.domain.task import Status


def enqueue(
    scene: Annotated[UUID, typer.Option(help="The scene to make a video of.")],
    user: Annotated[UUID, typer.Option(help="The scene's owner, who pays.")],
    watch_it: Annotated[bool, typer.Option("--watch", help="Show it until it has ended.")] = False,
    priority: Annotated[
        int, typer.Option(min=-10, max=10, help="Higher first, among this user's own tasks.")
    ] = 0,
    run_after: Annotated[
        str | None, typer.Option(help="Not before: a time (ISO 8601) or a duration (15m).")
    ] = None,
    json: Json = False,
) -> None:
    """Order the video of a scene, as its owner would: same policies, same limits."""
    settings = load_client_settings()
    service = VideoGenerationService(settings)
    try:
        task = service.start_video_generation_task(
            scene, user, task_id=uuid4(), priority=priority, run_after=_moment(run_after)
        )
    finally:
        service.close()
    task_id = task["task_id"]
    if not json:
        console().print(f"Task {task_id} is {task['status']}.", soft_wrap=True)
    if not watch_it:
        if json:
            print_json(task)
        return
    try:
        with open_database(settings.database_url.get_secret_value()) as database:
            ended = watch(database, task_id, console(stderr=json))
    except KeyboardInterrupt:
        fail(
            ExitCode.INTERRUPTED,
            f"Stopped watching. The task goes on: vidgen-worker tasks show {task_id}",
        )
    if json:
        print_json(ended)
    else:
        print_task(ended)
    if ended["status"] != Status.COMPLETED:
        raise typer.Exit(ExitCode.FAILED)


def _moment(text: str | None) -> datetime | timedelta | None:
    """Read a time, or a duration: from now on, by the database's clock."""
    if text is None:
        return None
    try:
        length = parse_duration(text)
    except ValueError:
        length = None
    if isinstance(length, timedelta):
        return length
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"{text!r} is neither a time (2026-12-24T18:00:00+00:00) nor a duration (15m)."
        raise typer.BadParameter(message, param_hint="--run-after") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""`enqueue`: order a video, and watch it."""

from typing import Annotated
from uuid import UUID, uuid4

import typer

from vidgen_worker.cli.options import Json, moment
from vidgen_worker.cli.output import console, print_json
from vidgen_worker.cli.tasks import follow
from vidgen_worker.client.database import load_client_settings, open_database
from vidgen_worker.client.service import VideoGenerationService


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
            scene,
            user,
            task_id=uuid4(),
            priority=priority,
            run_after=moment(run_after, "--run-after"),
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
    with open_database(settings.database_url.get_secret_value()) as database:
        follow(database, task_id, json=json)

"""`enqueue`: order a video, and watch it."""

from json import JSONDecodeError, loads
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import typer

from vidgen_worker.cli.options import Json, moment
from vidgen_worker.cli.output import console, print_json
from vidgen_worker.cli.tasks import follow
from vidgen_worker.client.database import load_client_settings, open_database
from vidgen_worker.client.service import VideoGenerationService


def enqueue(
    user: Annotated[UUID, typer.Option(help="The scene's owner, who pays.")],
    scene: Annotated[UUID | None, typer.Option(help="The scene to make a video of.")] = None,
    cut: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A film of several scenes instead: the JSON that names them.",
        ),
    ] = None,
    watch_it: Annotated[bool, typer.Option("--watch", help="Show it until it has ended.")] = False,
    priority: Annotated[
        int, typer.Option(min=-10, max=10, help="Higher first, among this user's own tasks.")
    ] = 0,
    run_after: Annotated[
        str | None, typer.Option(help="Not before: a time (ISO 8601) or a duration (15m).")
    ] = None,
    json: Json = False,
) -> None:
    """Order the video of a scene, or a film, as its owner would: same policies, same limits."""
    if (scene is None) == (cut is None):
        raise typer.BadParameter("Give either --scene or --cut.")
    settings = load_client_settings()
    service = VideoGenerationService(settings)
    try:
        begin = moment(run_after, "--run-after")
        if scene is not None:
            task = service.start_video_generation_task(
                scene, user, task_id=uuid4(), priority=priority, run_after=begin
            )
        elif cut is not None:
            task = service.start_film(
                _read(cut), user, task_id=uuid4(), priority=priority, run_after=begin
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


def _read(cut: Path) -> dict[str, Any]:
    """The cut in a file."""
    try:
        found = loads(cut.read_text(encoding="utf-8"))
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{cut} is no JSON: {error}. Correct it.") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f'{cut} holds no JSON object. Begin it with {{"parts": [...]}}.')
    return found

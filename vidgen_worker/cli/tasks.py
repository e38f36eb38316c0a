"""`enqueue` and `tasks`: order a video, look at tasks, cancel and retry them."""

from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import typer

from vidgen_worker.cli.output import (
    ExitCode,
    cell,
    console,
    facts,
    fail,
    need_yes,
    print_json,
    status_text,
    table,
)
from vidgen_worker.cli.watch import watch
from vidgen_worker.client.database import Database, load_client_settings, open_database
from vidgen_worker.client.service import VideoGenerationService
from vidgen_worker.config import parse_duration
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.task import Status

tasks_app = typer.Typer(help="Look at tasks, cancel them, try them again.", no_args_is_help=True)

Row = dict[str, Any]

WIDE = 150
"""Columns of a terminal from which on a list has room for two ids a line."""
URLS = ("image_url", "video_url")
IN_THE_STORY = {"Stages": {"path"}, "Paid submissions": {"generation_id", "account", "key"}}
"""Long columns that the story tells anyway, at the moment when they came."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this it only says what.")]
TaskId = Annotated[UUID, typer.Argument(help="The task's id.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(enqueue)
    app.add_typer(tasks_app, name="tasks")


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
        _print_task(ended)
    if ended["status"] != Status.COMPLETED:
        raise typer.Exit(ExitCode.FAILED)


@tasks_app.command("list")
def list_tasks(
    user: Annotated[UUID | None, typer.Option(help="Only of this user.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only with this status.")] = None,
    code: Annotated[str | None, typer.Option(help="Only with this error code.")] = None,
    scene: Annotated[UUID | None, typer.Option(help="Only of this scene.")] = None,
    worker: Annotated[UUID | None, typer.Option(help="Only what this worker runs.")] = None,
    since: Annotated[str | None, typer.Option(help="Only those ordered since: 1h, 7d.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    json: Json = False,
) -> None:
    """List the newest tasks."""
    with _database() as database:
        values = {
            "user_id": user, "status": status, "code": code, "scene_id": scene,
            "worker_id": worker, "since": _length(since, "--since"), "limit": limit,
        }  # fmt: skip
        rows = database.rows("find_tasks", values)
        gates = database.rows("gates")
    if json:
        print_json(rows)
        return
    for gate in gates:
        until = f", probed at {cell(gate['until'])}" if gate["until"] else ""
        console(stderr=True).print(
            f"Gate closed: {gate['model']}, {gate['reason']}, scope {gate['scope']}{until} "
            f"({gate['message']})",
            soft_wrap=True,
        )
    if not rows:
        console().print("No tasks.")
        return
    out = console()
    wide = out.width >= WIDE
    columns = ("task", *(["user"] if wide else []), "status", "%", "step or code", "created")
    lines = [
        (
            row["id"],
            *([row["user_id"]] if wide else []),
            status_text(row),
            f"{row['progress']:.0f}",
            row["error_code"] or row["current_step"],
            row["created_at"],
        )
        for row in rows
    ]
    out.print(table(columns, lines))


@tasks_app.command()
def show(task_id: TaskId, json: Json = False) -> None:
    """Show one task's whole story: attempts, submissions, generations, files, money."""
    with _database() as database:
        row = _row(database, task_id)
        row_of = {"task_id": task_id}
        submissions = database.rows("submissions_of_task", row_of)
        checkpoints = database.rows("checkpoints_of_task", row_of)
        money = database.row("money_of_task", row_of) or {}
        story = database.rows("story_of_task", row_of)
        refusal = database.row("refusal_of_task", row_of)
        limits = database.rows("limits_of_user", {"user_id": row["user_id"]})[0]
    if json:
        print_json({
            **row, "submissions": submissions, "checkpoints": checkpoints, "money": money,
            "story": story, "set_aside": refusal, "user_limits": limits,
        })  # fmt: skip
        return
    _print_task({**row, **money})
    if refusal and refusal["until"]:
        console().print(
            f"Set aside until {cell(refusal['until'])}: its row refuses a change "
            f"({refusal['statement']}, {refusal['tries']} time(s)). {printable(refusal['error'])}",
            soft_wrap=True, style="yellow", markup=False,
        )  # fmt: skip
    if not Status(row["status"]).terminal and (limits["stopped_until"] or limits["paused_until"]):
        until = limits["stopped_until"] or limits["paused_until"]
        reason = limits["reason"] or f"{limits['rejections']} rejections in a row"
        console().print(
            f"Its user's submissions are kept back until {cell(until)}: {printable(reason)}. "
            f"See: vidgen-worker limits show {row['user_id']}",
            soft_wrap=True, style="yellow", markup=False,
        )  # fmt: skip
    for title, rows in (("Stages", checkpoints), ("Paid submissions", submissions)):
        if rows:
            names = [name for name in rows[0] if name not in IN_THE_STORY[title]]
            lines = [[row[name] for name in names] for row in rows]
            console().print("", table(names, lines, title))
    steps = [(s["at"], s["what"], s["stage"], s["attempt"], s["details"]) for s in story]
    console().print("", table(("when", "what", "stage", "attempt", "details"), steps, "Story"))


@tasks_app.command()
def cancel(task_id: TaskId, yes: Yes = False, json: Json = False) -> None:
    """Cancel a task: what is held for it is released, what runs at the provider is ended."""
    with _database() as database:
        row = _row(database, task_id)
        if Status(row["status"]).terminal:
            fail(ExitCode.FAILED, f"Task {task_id} has ended already: {row['status']}.")
        need_yes(
            f"Cancel task {task_id} ({row['status']}, {row['progress']:.0f} %). The user's hold is "
            "released; a finished stage stays paid.",
            yes=yes,
        )
        row = database.rows("cancel_task", {"task_id": task_id})[0]
    if json:
        print_json(row)
    elif row["status"] == Status.CANCELLED:
        console().print(f"Task {task_id} is cancelled.")
    else:
        console().print(f"Task {task_id}: its worker was asked to cancel it.")


@tasks_app.command()
def retry(task_id: TaskId, yes: Yes = False, json: Json = False) -> None:
    """Put a failed or cancelled task back into the queue; finished stages are not paid again."""
    with _database() as database:
        row = _row(database, task_id)
        need_yes(
            f"Retry task {task_id} ({row['status']}, {row['error_code'] or 'no error'}). Stages "
            "that are not finished are submitted to the provider again, which costs money.",
            yes=yes,
        )
        row = database.rows("retry_task", {"task_id": task_id})[0]
    if json:
        print_json(row)
    else:
        console().print(f"Task {task_id} is {row['status']}.")


def _database() -> AbstractContextManager[Database]:
    return open_database(load_client_settings().database_url.get_secret_value())


def _row(database: Database, task_id: UUID) -> Row:
    row = database.row("task", {"task_id": task_id})
    if row is None:
        fail(ExitCode.FAILED, f"There is no task {task_id}. Look: vidgen-worker tasks list")
    return row


def _print_task(row: Row) -> None:
    """Everything that is set; URLs last and in one piece, to be copied."""
    out = console()
    apart = {"error", "message"} if row.get("error_message") else set()
    shown = {k: v for k, v in row.items() if v is not None and k not in apart}
    urls = {name: shown.pop(name) for name in URLS if name in shown}
    out.print(facts([*{**shown, "status": status_text(row)}.items()]))
    for name, url in urls.items():
        out.print(f"{name}: {printable(str(url))}", soft_wrap=True)


def _length(text: str | None, option: str) -> timedelta | None:
    """Read a duration."""
    if text is None:
        return None
    try:
        length = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    return length if isinstance(length, timedelta) else None


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

"""`tasks list` and `tasks show`: what was ordered, and each task's whole story."""

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.options import Json, TaskId
from vidgen_worker.cli.output import (
    cell,
    console,
    facts,
    fail,
    print_json,
    status_text,
    table,
)
from vidgen_worker.cli.time_left import TimeLeft
from vidgen_worker.client.database import Database, load_client_settings, open_database
from vidgen_worker.domain.durations import parse_duration
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.task import Status

Row = dict[str, Any]

WIDE = 150
"""Columns of a terminal from which on a list has room for two ids a line."""
URLS = ("image_url", "video_url")
IN_THE_STORY = {"Stages": {"path"}, "Paid submissions": {"generation_id", "account", "key"}}
"""Long columns that the story tells anyway, at the moment when they came."""


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
    with open_tasks() as database:
        values = {
            "user_id": user, "status": status, "code": code, "scene_id": scene,
            "worker_id": worker, "since": length(since, "--since"), "limit": limit,
        }  # fmt: skip
        rows = database.rows("find_tasks", values)
        gates = database.rows("gates")
    now = [row.pop("database_now") for row in rows]
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
    columns = (
        "task",
        *(["user"] if wide else []),
        "status",
        "%",
        "step or code",
        *(["expected"] if wide else []),
        "created",
    )
    lines = [
        (
            row["id"],
            *([row["user_id"]] if wide else []),
            status_text(row),
            f"{row['progress']:.0f}",
            row["error_code"] or row["current_step"],
            *([TimeLeft().words(row, clock)] if wide else []),
            row["created_at"],
        )
        for row, clock in zip(rows, now, strict=True)
    ]
    out.print(table(columns, lines))


def show(task_id: TaskId, json: Json = False) -> None:
    """Show one task's whole story: attempts, submissions, generations, files, money."""
    with open_tasks() as database:
        row = find(database, task_id)
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
    print_task({**row, **money})
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


def open_tasks() -> AbstractContextManager[Database]:
    """Provide the database of the settings."""
    return open_database(load_client_settings().database_url.get_secret_value())


def find(database: Database, task_id: UUID) -> Row:
    """Return a task's row, or end with a sentence."""
    row = database.row("task", {"task_id": task_id})
    if row is None:
        fail(ExitCode.FAILED, f"There is no task {task_id}. Look: vidgen-worker tasks list")
    return row


def print_task(row: Row) -> None:
    """Everything that is set; URLs last and in one piece, to be copied."""
    out = console()
    apart = {"error", "message"} if row.get("error_message") else set()
    shown = {k: v for k, v in row.items() if v is not None and k not in apart}
    urls = {name: shown.pop(name) for name in URLS if name in shown}
    out.print(facts([*{**shown, "status": status_text(row)}.items()]))
    for name, url in urls.items():
        out.print(f"{name}: {printable(str(url))}", soft_wrap=True)


def length(text: str | None, option: str) -> timedelta | None:
    """Read a duration."""
    if text is None:
        return None
    try:
        length = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    return length if isinstance(length, timedelta) else None

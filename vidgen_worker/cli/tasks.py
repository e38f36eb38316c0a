"""`tasks list`, `tasks show` and `tasks watch`: what was ordered, and each task's whole story."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.text import Text

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.films import (
    FOR_EVER,
    is_film,
    parts_of,
    print_parts,
    print_renditions,
    renditions_of,
    waits_of_film,
)
from vidgen_worker.cli.gate import name_of
from vidgen_worker.cli.ids import check_name, find_id
from vidgen_worker.cli.options import Json, TaskId, duration
from vidgen_worker.cli.output import (
    cell,
    console,
    facts,
    fail,
    lasting,
    print_json,
    status_text,
    table,
)
from vidgen_worker.cli.time_left import TimeLeft
from vidgen_worker.client.database import Database, load_client_settings, open_database
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.task import Status

Row = dict[str, Any]

WIDE = 100
"""Columns of a terminal from which on a list says whose a task is, and when it was ordered."""
URLS = ("image_url", "video_url")
LONG = 50
"""Letters of one word from which on it has a line of its own, to be copied."""


def list_tasks(
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only with this status.")] = None,
    code: Annotated[str | None, typer.Option(help="Only with this error code.")] = None,
    scene: Annotated[UUID | None, typer.Option(help="Only of this scene.")] = None,
    worker: Annotated[str | None, typer.Option(help="Only what this worker runs.")] = None,
    since: Annotated[str | None, typer.Option(help="Only those ordered since: 1h, 7d.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    json: Json = False,
) -> None:
    """List the newest tasks."""
    with open_tasks() as database:
        check_code(database, code)
        values = {
            "user_id": find_id(database, "user", user) if user is not None else None,
            "status": status, "code": code, "scene_id": scene,
            "worker_id": find_id(database, "worker", worker) if worker is not None else None,
            "since": duration(since, "--since"), "limit": limit,
        }  # fmt: skip
        rows = database.rows("find_tasks", values)
        gates = database.rows("gates")
    now = [row.pop("database_now") for row in rows]
    if json:
        print_json(rows)
        return
    for gate in gates:
        console(stderr=True).print(_closed(gate), soft_wrap=True)
    if not rows:
        console().print("No tasks.")
        return
    out = console()
    wide = out.width >= WIDE
    # Where every task is of a scene, a column that says so would take the steps' room.
    films = any(map(is_film, rows))
    columns = ("task", *(("kind",) if films else ()), "status", "%", "age", "took", "step or code",
               *(("user", "ordered") if wide else ()))  # fmt: skip
    lines = [
        (
            row["id"], *(["film" if is_film(row) else "scene"] if films else []), status_text(row),
            f"{row['progress']:.0f}",
            lasting(row["age"].total_seconds()),
            lasting(row["took"].total_seconds()) if row["took"] is not None else None,
            _step(row, clock), *([row["user_id"], row["created_at"]] if wide else []),
        )
        for row, clock in zip(rows, now, strict=True)
    ]  # fmt: skip
    out.print(table(columns, lines))


def _step(row: Row, now: datetime) -> str:
    """What a task does, and for how long still; what it waits for; or why it has failed."""
    if row["error_code"]:
        return str(row["error_code"])
    for_later = row["run_after"] > now and row["run_after"].year < FOR_EVER
    if row["status"] == Status.PENDING and for_later:
        return f"For later, in {lasting((row['run_after'] - now).total_seconds())}"
    left = "" if Status(row["status"]).terminal else TimeLeft().short(row, now)
    return ", ".join(filter(None, (row["current_step"], left)))


def show(task_id: TaskId, json: Json = False) -> None:
    """Show one task's whole story: attempts, submissions, generations, files, money.

    Of a task that waits it says why, and until when.
    """
    with open_tasks() as database:
        row = find(database, task_id)
        row_of = {"task_id": row["id"]}
        submissions = database.rows("submissions_of_task", row_of)
        checkpoints = database.rows("checkpoints_of_task", row_of)
        money = database.row("money_of_task", row_of) or {}
        story = database.rows("story_of_task", row_of)
        refusal = database.row("refusal_of_task", row_of)
        limits = database.rows("limits_of_user", {"user_id": row["user_id"]})[0]
        parts, renditions = parts_of(database, row), renditions_of(database, row)
        waits = list(_waits(database, row, refusal, limits))
    if json:
        print_json({
            **row, "submissions": submissions, "checkpoints": checkpoints, "money": money,
            "story": story, "set_aside": refusal, "user_limits": limits, "waits": waits,
            "parts": parts, "renditions": renditions,
        })  # fmt: skip
        return
    print_task({**row, **money})
    for reason in waits:
        console().print(f"Waits: {printable(reason)}", soft_wrap=True, style="yellow", markup=False)
    out = console()
    print_parts(out, parts)
    print_renditions(out, renditions)
    stages = [
        (c["stage"], c["state"], c["generation_id"], c["size"], c["updated_at"])
        for c in checkpoints
    ]
    if stages:
        out.print(table(("stage", "state", "generation", "bytes", "since"), stages, "Stages"))
    paid = [
        (
            s["stage"],
            s["attempt"],
            s["model"],
            s["sent_at"],
            s["answer"],
            s["ended_state"],
            _cost(s),
        )
        for s in submissions
    ]
    if paid:
        columns = ("stage", "try", "model", "sent", "answer", "ended", "cost")
        out.print(table(columns, paid, "Paid submissions"))
    steps = [
        (s["at"], s["what"], " ".join(str(s[k]) for k in ("stage", "attempt") if s[k] is not None),
         s["details"])
        for s in story
    ]  # fmt: skip
    out.print(table(("when", "what", "try", "details"), steps, "Story"))


def _cost(submission: Row) -> str | None:
    """The cost of a submission, or the provider's estimate of it."""
    if submission["cost"] is not None:
        return f"{submission['cost']:g}"
    estimated = submission["estimated_cost"]
    return None if estimated is None else f"~{estimated:g}"


def watch(task_id: TaskId, json: Json = False) -> None:
    """Show a task until it has ended; exit code 1 where it does not end well."""
    with open_tasks() as database:
        follow(database, str(find(database, task_id)["id"]), json=json)


def follow(database: Database, task_id: str, *, json: bool) -> None:
    """Show a task until it has ended, and end with what that means."""
    from vidgen_worker.cli.watch import watch as look  # noqa: PLC0415 - only it needs a bar

    try:
        ended = look(database, task_id, console(stderr=json))
    except KeyboardInterrupt:
        fail(
            ExitCode.INTERRUPTED,
            f"Stopped watching. The task goes on: vidgen-worker tasks watch {task_id}",
        )
    renditions = renditions_of(database, ended)
    if json:
        print_json({**ended, "renditions": renditions} if is_film(ended) else ended)
    else:
        print_task(ended)
        print_renditions(console(), renditions)
    if ended["status"] != Status.COMPLETED:
        raise typer.Exit(ExitCode.FAILED)


def _waits(database: Database, row: Row, refusal: Row | None, limits: Row) -> Iterator[str]:
    """Say why a pending task doesn't run, and until when."""
    if refusal and refusal["until"]:
        yield (
            f"set aside until {cell(refusal['until'])}: its row refuses a change "
            f"({refusal['statement']}, {refusal['tries']} time(s)). {refusal['error']}"
        )
    if Status(row["status"]).terminal:
        return
    if until := limits["stopped_until"] or limits["paused_until"]:
        reason = limits["reason"] or f"{limits['rejections']} rejections in a row"
        yield (
            f"its user's submissions are kept back until {cell(until)}: {reason}. "
            f"See: vidgen-worker limits show {row['user_id']}"
        )
    if row["status"] != Status.PENDING:
        return
    yield from waits_of_film(database, row)
    if row["run_after"] > row["database_now"] and row["run_after"].year < FOR_EVER:
        why = row["message"] if row["attempt"] else "it was ordered for later"
        yield f"until {cell(row['run_after'])}: {why}"
    budget = database.row("budget_of_task", {"task_id": row["id"]})
    if budget and budget["suspect"]:
        yield (
            f"for an idle worker, on which it runs alone: {budget['crashes']} worker(s) died under "
            "it, and one more ends it"
        )
    for gate in database.rows("gates_of_task", {"task_id": row["id"]}):
        yield f"{_closed(gate)}; no new paid submission of that model begins"
    if not any(one["state"] in ("steady", "settling") for one in database.rows("workers")):
        yield "no worker is running. Start one: vidgen-worker run"


def _closed(gate: Row) -> str:
    until = f", looked at again at {cell(gate['until'])}" if gate["until"] else ""
    return (
        f"Gate closed: {name_of(gate['model'])}, {gate['reason']}, scope {gate['scope']}{until} "
        f"({gate['message']})"
    )


def check_code(database: Database, code: str | None) -> None:
    """End the process where no task can have ended with this code."""
    if code is not None:
        from vidgen_worker.domain.faults import FAULTS  # noqa: PLC0415 - no other verb of these

        known = {rule.code for rule in FAULTS.values() if rule.code}
        check_name(code, known | {row["code"] for row in database.rows("codes")}, "error code")


def open_tasks() -> AbstractContextManager[Database]:
    """Provide the database of the settings."""
    return open_database(load_client_settings().database_url.get_secret_value())


def find(database: Database, text: str) -> Row:
    """Return the row of the task that a text is the id of, or begins; else end with a sentence."""
    task_id = find_id(database, "task", text)
    row = database.row("task_and_clock", {"task_id": task_id})
    if row is None:
        fail(ExitCode.FAILED, f"There is no task {task_id}. Look: vidgen-worker tasks list")
    return row


def print_task(row: Row) -> None:
    """Everything that is set; URLs last and in one piece, to be copied."""
    out = console()
    apart = {"database_now", "cut", *(("error", "message") if row.get("error_message") else ())}
    shown = {k: v for k, v in row.items() if v is not None and k not in apart}
    urls = {
        name: shown.pop(name)
        for name, value in list(shown.items())
        if name in URLS or max(map(len, str(value).split()), default=0) > LONG
    }
    out.print(facts([*{**shown, "status": status_text(row)}.items()]))
    for name, url in urls.items():
        out.print(Text.assemble((f"{name}: ", "dim"), cell(url)), soft_wrap=True)

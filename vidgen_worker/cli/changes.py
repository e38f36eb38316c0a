"""`tasks cancel` and `tasks retry`, of one task or of all that fit.

What is to happen, to how many, and what it costs is said first.
"""

from collections import Counter
from typing import Annotated, Any

import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.ids import find_id
from vidgen_worker.cli.options import Json, Yes, duration
from vidgen_worker.cli.output import console, fail, need_yes, print_json, short
from vidgen_worker.cli.tasks import check_code, find, open_tasks
from vidgen_worker.client.database import Database, RefusedError
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.task import Status

Row = dict[str, Any]

ENDED_BADLY = (Status.FAILED, Status.CANCELLED)
UNFINISHED = (Status.PENDING, Status.PROCESSING)

OneTask = Annotated[
    str | None, typer.Argument(help="The task's id, or its beginning; without it, all that fit.")
]
OfStatus = Annotated[Status | None, typer.Option("--status", help="Only with this status.")]
OfCode = Annotated[str | None, typer.Option("--code", help="Only with this error code.")]
OfUser = Annotated[str | None, typer.Option("--user", help="Only of this user.")]
Since = Annotated[str | None, typer.Option("--since", help="Only those ordered since: 1h, 7d.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")]


def cancel(
    task_id: OneTask = None,
    status: OfStatus = None,
    code: OfCode = None,
    user: OfUser = None,
    since: Since = None,
    limit: Limit = 1000,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Cancel a task, or all that fit: what is held for it is released, what runs is ended."""
    with open_tasks() as database:
        if task_id is None:
            chosen = _chosen(database, UNFINISHED, status, code, user, since, limit)
            plan = f"Cancel {len(chosen)} task(s) ({_counted(chosen)}). Their users' holds are "
            need_yes(plan + "released; finished stages stay paid.", yes=yes)
            _change_all(database, "cancel_task", chosen, "Cancelled", json=json)
            return
        row = _one(database, task_id, status, code, user, since)
        if Status(row["status"]).terminal:
            fail(ExitCode.FAILED, f"Task {row['id']} has ended already: {row['status']}.")
        need_yes(
            f"Cancel task {row['id']} ({row['status']}, {row['progress']:.0f} %). The user's hold "
            "is released; a finished stage stays paid.",
            yes=yes,
        )
        row = database.rows("cancel_task", {"task_id": row["id"]})[0]
    if json:
        print_json(row)
    elif row["status"] == Status.CANCELLED:
        console().print(f"Task {row['id']} is cancelled.")
    else:
        console().print(f"Task {row['id']}: its worker was asked to cancel it.")


def retry(
    task_id: OneTask = None,
    status: OfStatus = None,
    code: OfCode = None,
    user: OfUser = None,
    since: Since = None,
    limit: Limit = 1000,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Put a failed or cancelled task back into the queue, or all that fit.

    Finished stages are not paid again.
    """
    with open_tasks() as database:
        if task_id is None:
            chosen = _chosen(database, ENDED_BADLY, status, code, user, since, limit)
            credits_ = sum(row["credits"] for row in chosen)
            plan = f"Retry {len(chosen)} task(s) ({_counted(chosen)}). Stages that are not finished"
            plan += f" are paid at the provider again; the users pay up to {credits_} credits."
            need_yes(plan, yes=yes)
            _change_all(database, "retry_task", chosen, "Retried", json=json)
            return
        row = _one(database, task_id, status, code, user, since)
        if row["status"] not in ENDED_BADLY:
            fail(
                ExitCode.FAILED,
                f"Task {row['id']} is {row['status']}: only a failed or cancelled task can be "
                "retried. To make another video, order it: vidgen-worker enqueue",
            )
        need_yes(
            f"Retry task {row['id']} ({row['status']}, {row['error_code'] or 'no error'}). Stages "
            "that are not finished are submitted to the provider again, which costs money.",
            yes=yes,
        )
        row = database.rows("retry_task", {"task_id": row["id"]})[0]
    if json:
        print_json(row)
    else:
        console().print(f"Task {row['id']} is {row['status']}.")


def _one(database: Database, task_id: str, *filters: object) -> Row:
    """Return the one task; end with a sentence where all that fit were asked for as well."""
    if any(one is not None for one in filters):
        fail(
            ExitCode.USAGE,
            "Which tasks? Write an id, or --status, --code, --user or --since: not both.",
        )
    return find(database, task_id)


def _chosen(
    database: Database,
    allowed: tuple[Status, ...],
    status: Status | None,
    code: str | None,
    user: str | None,
    since: str | None,
    limit: int,
) -> list[Row]:
    """Return the tasks that fit; end with a sentence where no filter is given, or none fits."""
    if all(one is None for one in (status, code, user, since)):
        fail(
            ExitCode.USAGE,
            "Which tasks? Write an id, or --status, --code, --user or --since for all that fit.",
        )
    if status is not None and status not in allowed:
        fail(
            ExitCode.USAGE,
            f"A {status} task can't be taken: only {' and '.join(allowed)} ones can.",
        )
    check_code(database, code)
    rows = database.rows(
        "tasks_to_change",
        {
            "statuses": [status] if status else list(allowed), "code": code,
            "user_id": find_id(database, "user", user) if user is not None else None,
            "since": duration(since, "--since"), "limit": limit,
        },
    )  # fmt: skip
    if not rows:
        fail(ExitCode.FAILED, "No task fits. Look: vidgen-worker tasks list")
    return rows


def _counted(rows: list[Row]) -> str:
    kinds = Counter(row["error_code"] or row["status"] for row in rows)
    users = len({row["user_id"] for row in rows})
    parts = [f"{number} {kind}" for kind, number in kinds.most_common()]
    return f"{', '.join(parts)}; of {users} user(s)"


def _change_all(
    database: Database, statement: str, rows: list[Row], done: str, *, json: bool
) -> None:
    """Change the tasks one after the other: a refused one does not stop the others."""
    changed: list[Row] = []
    refused: list[tuple[Row, str]] = []
    for row in rows:
        try:
            after = database.rows(statement, {"task_id": row["id"]})[0]
        except RefusedError as error:
            refused.append((row, printable(str(error), 200)))
        except BaseException:  # the connection broke, or Ctrl-C
            so_far = f"{done} before this: {len(changed)} of {len(rows)} task(s)."
            console(stderr=True).print(so_far)
            raise
        else:
            if after["status"] in (Status.COMPLETED, Status.FAILED):
                refused.append((row, f"it had ended already: {after['status']}."))
            else:
                changed.append(after)
    if json:
        print_json({
            "changed": [row["id"] for row in changed],
            "refused": [{"id": row["id"], "reason": reason} for row, reason in refused],
        })  # fmt: skip
    else:
        asked = sum(
            row["cancel_requested_at"] is not None and row["status"] != Status.CANCELLED
            for row in changed
        )
        workers = f" Their workers were asked to end {asked} of them." if asked else ""
        console().print(f"{done}: {len(changed)} of {len(rows)} task(s).{workers}")
        for row, reason in refused:
            console(stderr=True).print(f"{short(row['id'])}: {reason}", soft_wrap=True)
    if refused:
        raise typer.Exit(ExitCode.FAILED)

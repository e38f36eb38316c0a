"""`tasks cancel` and `tasks retry`: what is to happen is said first, and done with `--yes`."""

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.options import Json, TaskId, Yes
from vidgen_worker.cli.output import console, fail, need_yes, print_json
from vidgen_worker.cli.tasks import find, open_tasks
from vidgen_worker.domain.task import Status


def cancel(task_id: TaskId, yes: Yes = False, json: Json = False) -> None:
    """Cancel a task: what is held for it is released, what runs at the provider is ended."""
    with open_tasks() as database:
        row = find(database, task_id)
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


def retry(task_id: TaskId, yes: Yes = False, json: Json = False) -> None:
    """Put a failed or cancelled task back into the queue; finished stages are not paid again."""
    with open_tasks() as database:
        row = find(database, task_id)
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

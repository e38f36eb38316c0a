"""The changes that a person may make: cancel and retry tasks, close and open gates, with a preview.

Each change is the client's own statement, as the command line sends it: the database decides what
is allowed. Nothing here is offered where the dashboard was started to read only.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from uuid import UUID

from vidgen_worker.client.database import ClientError, DatabaseUnreachableError
from vidgen_worker.dashboard.access import RefusedRequestError
from vidgen_worker.dashboard.pages import Page, gate_models
from vidgen_worker.dashboard.reads import Reads, Row
from vidgen_worker.domain.task import Status

Form = Mapping[str, Sequence[str]]

CLOSED_BY_HAND = "Video generation is paused by the operator."
MOST_TASKS = 200
"""The most tasks at once: each is a transaction of its own, and the page waits for all."""


def preview_tasks(reads: Reads, form: Form) -> Page:
    """Say what a cancel or a retry of these tasks would mean and cost. Nothing is changed."""
    action, task_ids = _asked(form)
    rows = reads.fresh("consequences", task_ids=task_ids)
    able: list[Row] = []
    unable: list[Row] = []
    for row in rows:
        reason = _unable(action, row)
        (unable if reason else able).append({**row, "reason": reason})
    costs = [row["estimated_cost"] for row in able]
    values = {
        "action": action,
        "able": able,
        "unable": unable,
        "missing": len(task_ids) - len(rows),
        "held": sum(row["held"] for row in able),
        "generations": sum(row["generations"] for row in able),
        "running_cost": sum(row["running_cost"] for row in able),
        "price": sum(row["price"] for row in able),
        "cost": sum(cost for cost in costs if cost is not None),
        "unpriced": sum(cost is None for cost in costs),
    }
    return Page("preview.html", values)


def change_tasks(reads: Reads, form: Form) -> Page:
    """Cancel or retry them, one after the other; report the result of each."""
    action, task_ids = _asked(form)
    done: list[dict[str, Any]] = []
    for task_id in task_ids:
        try:
            row = reads.act(f"{action}_task", task_id=task_id)[0]
        except DatabaseUnreachableError as error:
            # The others would only wait as long for the same error.
            done.append({"id": task_id, "status": None, "said": str(error)})
            break
        except ClientError as error:
            done.append({"id": task_id, "status": None, "said": str(error)})
        else:
            done.append({"id": task_id, "status": row["status"], "said": _said(action, row)})
    left = len(task_ids) - len(done)
    return Page("done.html", {"action": action, "done": done, "left": left})


def preview_gate(reads: Reads, form: Form) -> Page:
    """Say what closing or opening a gate would mean. Nothing is changed."""
    action, model, scope = _gate(reads, form)
    return Page("gate.html", {"action": action, "model": model, "scope": scope})


def change_gate(reads: Reads, form: Form) -> None:
    """Close or open it. Raises ClientError, and RefusedRequestError where it is open already."""
    action, model, scope = _gate(reads, form)
    if action == "close":
        details = "closed in the dashboard"
        reads.act("close_gate", model=model, message=CLOSED_BY_HAND, details=details, until=None)
    elif not reads.act("open_gate", model=model, scope=scope):
        raise RefusedRequestError(
            HTTPStatus.CONFLICT, "That gate is open already: a person or a probe has opened it."
        )


def _asked(form: Form) -> tuple[str, list[UUID]]:
    """The action and its tasks, each once, in their order."""
    action = _one(form, "action")
    if action not in ("cancel", "retry"):
        raise _bad("A task is cancelled or retried, nothing else. Choose one of the two buttons.")
    try:
        task_ids = list(dict.fromkeys(UUID(given) for given in form.get("task", [])))
    except ValueError:
        raise _bad("A task's id is invalid. Load the list again and choose there.") from None
    if not task_ids:
        raise _bad("No task is chosen. Tick the tasks in the list first.")
    if len(task_ids) > MOST_TASKS:
        raise _bad(f"At most {MOST_TASKS} tasks at once. Choose fewer.")
    return action, task_ids


def _gate(reads: Reads, form: Form) -> tuple[str, str, str | None]:
    action, model = _one(form, "action"), _one(form, "model")
    if action not in ("close", "open"):
        raise _bad("A gate is closed or opened, nothing else. Choose a button of the first page.")
    if action == "close" and model not in gate_models(reads):
        raise _bad("No worker makes anything with that model. Choose one of the first page.")
    if not model:
        raise _bad("No model is chosen. Choose a gate of the first page.")
    return action, model, _one(form, "scope") or None


def _unable(action: str, row: Row) -> str:
    """Why it would have no effect; empty: it would. The database has the last decision."""
    status = Status(row["status"])
    if action == "cancel":
        return f"it has ended already ({status})" if status.terminal else ""
    if status not in (Status.FAILED, Status.CANCELLED):
        return f"it is {status}: only a failed or cancelled task can be retried"
    if row["retries"] >= row["max_retries"]:
        return f"it was retried {row['retries']} times already, which is the limit"
    if row["rejected"]:
        return "content rules rejected its scene, which is unchanged since"
    if row["forgotten"]:
        return "it ended too long ago: what it was made from is pruned"
    return ""


def _said(action: str, row: Row) -> str:
    if action == "retry":
        return "It waits in the line again."
    if row["status"] == Status.CANCELLED:
        return "It is cancelled."
    if Status(row["status"]).terminal:
        return f"It had ended already: {row['status']}."
    return "Its worker was asked to end it."


def _one(form: Form, name: str) -> str:
    return next(iter(form.get(name, [])), "")


def _bad(sentence: str) -> RefusedRequestError:
    return RefusedRequestError(HTTPStatus.BAD_REQUEST, sentence)

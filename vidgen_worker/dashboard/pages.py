"""The content of each page, read and sorted; the templates lay it out.

A page is a template and its values. Nothing here changes anything, and nothing knows HTTP: what a
page was asked for comes as a mapping of texts, of which every one is looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from vidgen_worker.dashboard.access import RefusedRequestError
from vidgen_worker.dashboard.films import film_of, place_of_file
from vidgen_worker.dashboard.reads import (
    LAST_PAGE,
    MOST_ENDED,
    MOST_OF_USER,
    Reads,
    tasks,
)
from vidgen_worker.domain.keys import ALL_MODELS
from vidgen_worker.domain.task import Status

Asked = Mapping[str, str]

LAST_FAILURES = 8
FOR_EVER = 9999
"""The year until which a film waits whose parts have not ended."""
MOST_CODES = 5_000
"""The codes that the filter offers are those of this many tasks that ended last."""
USERS = 100
ALIVE = ("steady", "settling")
ENTRIES = 50
TASKS_OF_A_USER = 20
SINCE: Mapping[str, timedelta] = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}


@dataclass(frozen=True, slots=True)
class Page:
    """A template, the values that it shows, and the status of the answer."""

    template: str
    values: Mapping[str, Any]
    status: HTTPStatus = HTTPStatus.OK


def now(reads: Reads, _: Asked) -> Page:
    """The waiting and running tasks and the closed gates at this moment."""
    lanes = reads.rows("waiting_by_lane")
    running = reads.rows("in_flight_by_stage")
    oldest = [lane["oldest"] for lane in lanes if lane["oldest"]]
    workers = reads.rows("workers")
    values = {
        "lanes": lanes,
        "due": sum(lane["due"] for lane in lanes),
        "later": sum(lane["later"] for lane in lanes),
        "oldest": min(oldest, default=None),
        "in_flight": running,
        "running": sum(row["tasks"] for row in running),
        "waits": reads.rows("what_waits"),
        "places": reads.rows("provider_slots"),
        "gates": reads.rows("gates"),
        "workers": workers,
        "models": gate_models(reads),
        "room": sum(row["concurrency"] for row in workers if row["state"] in ALIVE),
        "failures": reads.rows(
            "ended_tasks", status="failed", code=None, since=SINCE["7d"], limit=LAST_FAILURES,
            most=MOST_ENDED,
        )[:LAST_FAILURES],
    }  # fmt: skip
    return Page("now.html", values)


def task_list(reads: Reads, asked: Asked) -> Page:
    """Tasks, newest first, by status, user, code and time."""
    status = asked.get("status", "")
    if status and status not in set(Status):
        raise not_found(f"There is no status {status[:40]!r}. Choose one from the list.")
    since = asked.get("since", "")
    if since and since not in SINCE:
        raise not_found(f"{since[:40]!r} is not one of the listed times. Choose one of them.")
    user = asked.get("user", "").strip()
    page = _page_number(asked.get("page", "1"))
    chosen = {
        "user_id": _id(user, "user") if user else None,
        "status": status or None,
        "code": asked.get("code", "").strip() or None,
        "since": SINCE[since] if since else None,
    }
    rows, more = tasks(reads, chosen, page)
    values = {
        "rows": rows,
        "page": page,
        "more": more and page < LAST_PAGE,
        "filters": {"status": status, "user": user, "code": chosen["code"] or "", "since": since},
        "filtered": any(chosen.values()),
        "statuses": list(Status),
        "sinces": list(SINCE),
        "codes": [
            row["code"] for row in reads.rows("codes_since", since=SINCE["7d"], most=MOST_CODES)
        ],
        "bound": MOST_OF_USER if user else MOST_ENDED,
    }
    return Page("tasks.html", values)


def task(reads: Reads, asked: Asked) -> Page:
    """One task's whole story."""
    task_id = _id(asked["id"], "task")
    row = reads.row("task", task_id=task_id)
    if row is None:
        raise not_found(f"There is no task {task_id}. It may be pruned, or the id may be a user's.")
    values = {
        "row": row,
        "film": film_of(reads, row, asked),
        "waits_for_parts": row["run_after"].year == FOR_EVER,
        "story": reads.rows("story_of_task", task_id=task_id),
        "submissions": reads.rows("submissions_of_task", task_id=task_id),
        "checkpoints": reads.rows("checkpoints_of_task", task_id=task_id),
        "money": reads.row("money_of_task", task_id=task_id) or {},
        "set_aside": reads.row("refusal_of_task", task_id=task_id),
        "order": reads.row("order_of_task", task_id=task_id) or {"request": {}, "scene": None},
        "ended": Status(row["status"]).terminal,
        "may_retry": row["status"] in (Status.FAILED, Status.CANCELLED),
    }
    return Page("task.html", values)


def picture(reads: Reads, asked: Asked) -> str | None:
    """Return the path of a task's still or clip in its bucket; None: it has none."""
    row = reads.row("task", task_id=_id(asked["id"], "task")) or {}
    column = {"still": "image_path", "clip": "video_path"}.get(asked["kind"], "")
    return row.get(column)


def file(reads: Reads, asked: Asked) -> tuple[str, str] | None:
    """Return bucket and path of one of a film's files; None: it has none of this name."""
    return place_of_file(reads, _id(asked["id"], "task"), asked["name"])


def user_list(reads: Reads, _: Asked) -> Page:
    """Users who have something waiting or running, or had lately."""
    users = reads.rows("users_now", limit=USERS + 1)
    limited = reads.rows("limited_users", limit=USERS + 1)
    values = {
        "users": users[:USERS],
        "limited": limited[:USERS],
        "more_users": len(users) > USERS,
        "more_limited": len(limited) > USERS,
        "most": USERS,
    }
    return Page("users.html", values)


def user(reads: Reads, asked: Asked) -> Page:
    """One user: balance, ledger, limits, usage, tasks."""
    user_id = _id(asked["id"], "user")
    chosen = {"user_id": user_id, "status": None, "code": None, "since": None}
    rows, more = tasks(reads, chosen, 1)
    values = {
        "user_id": user_id,
        "credits": reads.row("user_credits", user_id=user_id),
        "entries": reads.rows("credit_entries_of_user", user_id=user_id, limit=ENTRIES),
        "limits": reads.rows("limits_of_user", user_id=user_id)[0],
        "usage": reads.rows("usage_of_user", user_id=user_id),
        "rows": rows[:TASKS_OF_A_USER],
        "more": more or len(rows) > TASKS_OF_A_USER,
    }
    return Page("user.html", values)


def find(reads: Reads, asked: Asked) -> str:
    """Return the page of an id, whatever it is the id of."""
    found = _id(asked.get("id", "").strip(), "task or user")
    if reads.row("task", task_id=found) is not None:
        return f"/tasks/{found}"
    return f"/users/{found}"


def gate_models(reads: Reads) -> list[str]:
    """The models whose gate may be closed: those with places at the provider, and all of them."""
    return [ALL_MODELS, *sorted({row["model"] for row in reads.rows("provider_slots")})]


def _id(given: str, what: str) -> UUID:
    try:
        return UUID(given)
    except ValueError:
        raise not_found(
            f"{given[:80]!r} is no id of a {what}: it should look like "
            "123e4567-e89b-12d3-a456-426614174000. Check it and try again."
        ) from None


def _page_number(given: str) -> int:
    number = int(given) if given.isdecimal() and given.isascii() and len(given) < 4 else 0  # noqa: PLR2004
    if not 1 <= number <= LAST_PAGE:
        raise not_found(f"There are the pages 1 to {LAST_PAGE}. Narrow the filters to see others.")
    return number


def not_found(sentence: str) -> RefusedRequestError:
    """Return the error of something that is not there."""
    return RefusedRequestError(HTTPStatus.NOT_FOUND, sentence)

"""The reads of the pages: named statements with a short time-out, cached for ten seconds.

However many browsers look, a statement runs once at a time and at most every ten seconds; what an
action has changed is read again at once. Only `act` changes anything.
"""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from vidgen_worker.client.database import Database
from vidgen_worker.database.statements import load_queries

QUERIES = load_queries("client", "dashboard")
STATEMENT_TIMEOUT = timedelta(seconds=2)
KEPT_SECONDS = 10.0
PAST_KEPT_SECONDS = 3600.0
"""For a day that is over: only a cost that is told late, or a pruned task, changes it."""
AHEAD_KEPT_SECONDS = PAST_KEPT_SECONDS - 900.0
MOST_KEPT = 500
"""The most answers that are kept; a page has some ten of them."""

MOST_ENDED = 20_000
"""A page of tasks is chosen from this many that ended last: it bounds the cost of the page."""
MOST_OF_USER = 5_000
PAGE = 50
LAST_PAGE = 20

Row = dict[str, Any]
Parameters = Mapping[str, object]


class _Entry:
    """One answer: read by one thread, waited for by the others."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: list[Row] | None = None
        self.read_at = 0.0


class Reads:
    """The statements of one dashboard. `now` is a clock in seconds that never goes back."""

    def __init__(self, url: str, now: Callable[[], float] = time.monotonic) -> None:
        self._database = Database(url, QUERIES, STATEMENT_TIMEOUT)
        self._now = now
        self._lock = threading.Lock()
        self._entries: dict[tuple[object, ...], _Entry] = {}

    def rows(self, name: str, **parameters: object) -> list[Row]:
        """Return what a statement answers, or answered within ten seconds. Raises ClientError."""
        return self._read(name, parameters, KEPT_SECONDS)[0]

    def row(self, name: str, **parameters: object) -> Row | None:
        """Return the only row, or None."""
        found = self.rows(name, **parameters)
        return found[0] if found else None

    def of_the_past(self, name: str, **parameters: object) -> list[Row]:
        """Return what a statement answers, or answered within the hour."""
        return self._read(name, parameters, PAST_KEPT_SECONDS)[0]

    def ahead(self, name: str, **parameters: object) -> None:
        """Read for `of_the_past` what is not there, or soon too old."""
        self._read(name, parameters, AHEAD_KEPT_SECONDS)

    def clock(self) -> datetime:
        """Return the time by the database's clock, as all times of its rows are."""
        rows, read_at = self._read("clock", {}, KEPT_SECONDS)
        now: datetime = rows[0]["now"]
        return now + timedelta(seconds=self._now() - read_at)

    def _read(self, name: str, parameters: Parameters, kept: float) -> tuple[list[Row], float]:
        """Return the rows, and when they were read."""
        key = (name, *sorted(parameters.items()))
        with self._lock:
            if key not in self._entries and len(self._entries) >= MOST_KEPT:
                self._entries.clear()
            entry = self._entries.setdefault(key, _Entry())
        with entry.lock:
            if entry.rows is None or self._now() - entry.read_at >= kept:
                entry.rows = None
                entry.rows = self._database.rows(name, parameters)
                entry.read_at = self._now()
            return entry.rows, entry.read_at

    def fresh(self, name: str, **parameters: object) -> list[Row]:
        """Return what a statement answers now."""
        return self._database.rows(name, parameters)

    def act(self, name: str, **parameters: object) -> list[Row]:
        """Change something; every page is read again. Raises ClientError."""
        try:
            return self._database.rows(name, parameters)
        finally:
            with self._lock:
                self._entries.clear()

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


def tasks(reads: Reads, chosen: Mapping[str, Any], page: int) -> tuple[list[Row], bool]:
    """Return one page of tasks, newest first, and whether there is another.

    `chosen` has `user_id`, `status`, `code` and `since` (a timedelta); each may be None. A task's
    place is when it ended, else when it was ordered. Raises ClientError.
    """
    limit = page * PAGE + 1
    since, status, code = chosen["since"], chosen["status"], chosen["code"]
    if chosen["user_id"]:
        found = reads.rows(
            "tasks_of_user", user_id=chosen["user_id"], status=status, code=code, since=since,
            limit=limit, most=MOST_OF_USER,
        )  # fmt: skip
    else:
        found = []
        if status in (None, "pending") and not code:
            found += reads.rows("waiting_tasks", since=since, limit=limit)
        if status in (None, "processing") and not code:
            found += reads.rows("running_tasks", since=since, limit=limit)
        if status not in ("pending", "processing"):
            found += reads.rows(
                "ended_tasks", status=status, code=code, since=since, limit=limit, most=MOST_ENDED
            )
        # Three statements, three moments: a task that ended in between is in two of them.
        by_age = sorted(found, key=lambda row: row["updated_at"])
        found = list({row["id"]: row for row in by_age}.values())
        found.sort(key=lambda row: row["id"])
        found.sort(key=lambda row: row["completed_at"] or row["created_at"], reverse=True)
    return found[limit - 1 - PAGE : limit - 1], len(found) >= limit

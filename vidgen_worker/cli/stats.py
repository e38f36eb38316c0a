"""`stats` and `workers`: what waits, what runs, what it yields and costs, and who does it.

It reads the database only, through the same views that an operator can select from in SQL.
"""

import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vidgen_worker.cli.options import Json
from vidgen_worker.cli.output import console, facts, print_json, table
from vidgen_worker.client.database import Database, load_client_settings, open_database
from vidgen_worker.domain.durations import format_duration

Row = dict[str, Any]

STATE_STYLES: Mapping[str, str] = {
    "steady": "green",
    "settling": "cyan",
    "silent": "yellow",
    "dead": "red",
}
WORKER_COLUMNS = ("worker", "host", "pid", "version", "state", "running", "of", "silent", "up")


def stats(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    json: Json = False,
) -> None:
    """Show the queue, what is in flight, throughput, failures, cost, gates and workers."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        if json:
            print_json(read(database))
            return
        out = console()
        if not watch:
            out.print(shown(read(database)))
            return
        pause = threading.Event()
        with Live(shown(read(database)), console=out, auto_refresh=False) as live:
            while not pause.wait(every):
                live.update(shown(read(database)), refresh=True)


def workers(json: Json = False) -> None:
    """List every worker: what it runs, and when it was last heard of."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        rows = database.rows("workers")
    if json:
        print_json(rows)
    elif not rows:
        console().print("No worker is running. Start one: vidgen-worker run")
    else:
        console().print(workers_table(rows))


def read(database: Database) -> dict[str, Any]:
    """Everything that `stats` shows, as plain values."""
    return {
        "queue": database.rows("queue_health")[0],
        "in_flight": database.rows("in_flight_by_stage"),
        "throughput": database.rows("throughput"),
        "failures": database.rows("failures_by_code"),
        "set_aside": database.rows("tasks_set_aside")[0]["tasks"],
        "limited_users": database.rows("users_limited")[0],
        "slots": database.rows("provider_slots"),
        "gates": database.rows("gates"),
        "workers": database.rows("workers"),
    }


def shown(found: Mapping[str, Any]) -> Group:
    """Return the tables of one look."""
    queue: Row = found["queue"]
    oldest = format_duration(timedelta(seconds=round(queue["oldest_seconds"])))
    waiting = f"{queue['pending']}, the oldest for {oldest}" if queue["pending"] else "none"
    parts: list[Any] = [
        facts([
            ("waiting", waiting),
            ("for later", queue["scheduled"]),
            ("running", f"{queue['processing']} in {queue['slots']} slots"),
            *([("set aside", f"{found['set_aside']}: their rows refuse a change")]
              if found["set_aside"] else []),
            *_limited(found["limited_users"]),
        ]),
        _gates(found["gates"]),
    ]  # fmt: skip
    if found["slots"]:
        several = len({row["account"] for row in found["slots"]}) > 1
        lines = [
            (*([row["account"]] if several else []), row["model"], row["taken"],
             "no limit" if row["slots"] is None else row["slots"])
            for row in found["slots"]
        ]  # fmt: skip
        columns = (*(["account"] if several else []), "model", "in flight", "of")
        parts.append(table(columns, lines, "At the provider"))
    if found["in_flight"]:
        lines = [
            (row["stage"] or "–", row["state"], row["tasks"], row["expected_at"])  # noqa: RUF001
            for row in found["in_flight"]
        ]
        columns = ("stage", "state", "tasks", "all expected by")
        parts.append(table(columns, lines, "In flight"))
    columns = (
        "", "completed", "failed", "cancelled", "success", "submitted", "possibly paid",
        "provider cost", "charged",
    )  # fmt: skip
    parts.append(table(columns, [_throughput(row) for row in found["throughput"]], "Throughput"))
    if found["failures"]:
        lines = [(row["code"], row["tasks"], row["last"]) for row in found["failures"]]
        parts.append(table(("code", "tasks", "last"), lines, "Failures of the last 24 hours"))
    if found["workers"]:
        parts.append(workers_table(found["workers"], "Workers"))
    else:
        parts.append(Text("No worker is running. Start one: vidgen-worker run", style="yellow"))
    # A blank line above each table that has a title.
    spaced: list[Any] = []
    for part in parts:
        titled = isinstance(part, Table) and part.title
        spaced += ["", part] if titled else [part]
    return Group(*spaced)


def _limited(users: Row) -> list[tuple[str, object]]:
    """Return the line about users whom their own limits keep back, where there are any."""
    if not users["stopped"] and not users["paused"]:
        return []
    text = f"{users['stopped']} stopped, {users['paused']} paused; see: vidgen-worker limits list"
    return [("limited users", text)]


def workers_table(rows: list[Row], title: str = "") -> object:
    """Return the table of workers."""
    lines = [
        (
            row["id"], row["host"], row["pid"], row["version"],
            Text(row["state"], style=STATE_STYLES[row["state"]]),
            row["running"], row["concurrency"], f"{row['silence'].total_seconds():.0f} s",
            format_duration(timedelta(seconds=round(_life(row).total_seconds()))),
        )
        for row in rows
    ]  # fmt: skip
    return table(WORKER_COLUMNS, lines, title)


def _life(row: Row) -> timedelta:
    """How long a worker has been heard of."""
    life: timedelta = row["heartbeat_at"] - row["started_at"]
    return life


def _throughput(row: Row) -> tuple[object, ...]:
    ended = row["completed"] + row["failed"]
    success = f"{100 * row['completed'] / ended:.1f} %" if ended else None
    return (
        row["label"], row["completed"], row["failed"], row["cancelled"], success,
        row["submissions"], row["unknown_submissions"], row["provider_cost"],
        row["credits_charged"],
    )  # fmt: skip


def _gates(gates: list[Row]) -> object:
    if not gates:
        return facts([("gates", "all open")])
    lines = [
        (g["scope"], g["model"], g["reason"], g["details"], g["closed_at"], g["until"])
        for g in gates
    ]
    columns = ("scope", "model", "reason", "details", "closed", "probed next")
    return table(columns, lines, "Closed gates")

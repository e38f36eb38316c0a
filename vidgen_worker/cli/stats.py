"""`stats` and `workers`: what waits, what runs, what it yields and costs, and which workers run it.

It reads the database only, through the same views that an operator can select from in SQL.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from vidgen_worker.cli.gate import gates_table
from vidgen_worker.cli.options import Json
from vidgen_worker.cli.output import console, facts, lasting, print_json, table
from vidgen_worker.client.database import Database, load_client_settings, open_database
from vidgen_worker.domain.faults import USERS_OWN

Row = dict[str, Any]

STATE_STYLES: Mapping[str, str] = {
    "steady": "green",
    "settling": "cyan",
    "silent": "yellow",
    "dead": "red",
}
FEW = 4
"""Rows of failures and workers on a terminal of 24 lines."""
EXPLAINED = (
    "by users: what they asked for can't be made; not counted in success. sent: paid POSTs, "
    "(n?) of them without an answer, which may exist. cost: the provider's credits."
)
WORKER_COLUMNS = ("worker", "host", "state", "running", "of", "silent", "up")
WIDE = 100
"""Columns of a terminal from which on a worker's process and version are shown."""


def stats(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    json: Json = False,
) -> None:
    """Show the queue, what is in flight, throughput, failures, cost, gates and workers."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        if json:
            print_json(read(database))
        elif watch:
            _watch(database, every)
        else:
            console().print(shown(read(database)))


def _watch(database: Database, every: float) -> None:
    """Look again and again: in one place on a terminal, a block after the other elsewhere."""
    out, pause = console(), threading.Event()
    if not out.is_terminal:
        while True:
            found = read(database)
            out.print(f"{found['at']:%Y-%m-%d %H:%M:%S} UTC", shown(found), "", sep="\n")
            sys.stdout.flush()
            pause.wait(every)
    with Live(shown(read(database), short=True), console=out, auto_refresh=False) as live:
        while not pause.wait(every):
            live.update(shown(read(database), short=True), refresh=True)


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
        "at": database.rows("clock")[0]["now"],
        "queue": database.rows("queue_health")[0],
        "suspects": database.rows("suspects")[0]["tasks"],
        "in_flight": database.rows("in_flight_by_stage"),
        "throughput": database.rows("throughput", {"users_own": sorted(USERS_OWN)}),
        "failures": database.rows("failures_by_code"),
        "set_aside": database.rows("tasks_set_aside")[0]["tasks"],
        "films_to_cut": database.rows("films_to_cut")[0],
        "limited_users": database.rows("users_limited")[0],
        "slots": database.rows("provider_slots"),
        "gates": database.rows("gates"),
        "workers": database.rows("workers"),
    }


def shown(found: Mapping[str, Any], *, short: bool = False) -> Group:
    """Return the tables of one look; `short`: so much of them as 24 lines hold."""
    most = FEW if short else None
    parts: list[Any] = [facts(_summary(found)), _gates(found["gates"])]
    columns = ("", "done", "failed", "by users", "cancelled", "success", "sent", "cost", "charged")
    parts += ["", table(columns, [_throughput(row) for row in found["throughput"]])]
    if found["failures"]:
        lines = [(row["code"], row["tasks"], row["last"]) for row in found["failures"]]
        parts += _some(("code", "tasks", "last"), lines, "Failures of the last 24 hours", most)
    if found["workers"]:
        parts.append(workers_table(found["workers"][:most], "Workers"))
        parts += _more(found["workers"], most)
    else:
        parts.append(Text("No worker is running. Start one: vidgen-worker run", style="yellow"))
    if not short:
        parts += ["", Text(EXPLAINED, style="dim")]
    return Group(*parts)


def _summary(found: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return what waits and what runs, a line each."""
    queue: Row = found["queue"]
    waiting = "none"
    if queue["pending"]:
        waiting = f"{queue['pending']}, the oldest for {lasting(queue['oldest_seconds'])}"
        if found["gates"]:
            waiting += "; some behind a closed gate"
    pairs: list[tuple[str, object]] = [
        ("waiting", waiting),
        ("for later", queue["scheduled"]),
        ("running", f"{queue['processing']} in {queue['slots']} slots"),
    ]
    if found["in_flight"]:
        kinds = [
            f"{row['tasks']} {' '.join(filter(None, (row['stage'], row['state'])))}"
            for row in found["in_flight"]
        ]
        ends = [row["expected_at"] for row in found["in_flight"] if row["expected_at"]]
        by = f"; all expected by {max(ends):%H:%M:%S} UTC" if ends else ""
        pairs.append(("of them", ", ".join(kinds) + by))
    if found["slots"]:
        several = len({row["account"] for row in found["slots"]}) > 1
        places = [
            f"{row['account'] + ' ' if several else ''}{row['model']} {row['taken']} of "
            f"{'any number' if row['slots'] is None else row['slots']}"
            for row in found["slots"]
        ]
        pairs.append(("at the provider", f"{', '.join(places)}; what may exist is counted"))
    if found["set_aside"]:
        pairs.append(("set aside", f"{found['set_aside']}: their rows refuse a change"))
    if found["suspects"]:
        pairs.append(("suspect", f"{found['suspects']}: each waits for an idle worker"))
    if found["films_to_cut"]["waiting"] and not found["films_to_cut"]["cut"]:
        pairs.append(("films", "wait, and no worker cuts any: see VIDGEN_RENDERS"))
    return [*pairs, *_limited(found["limited_users"])]


def _some(
    columns: tuple[str, ...], lines: list[tuple[Any, ...]], title: str, most: int | None
) -> list[Any]:
    return [table(columns, lines[:most], title), *_more(lines, most)]


def _more(rows: Sequence[object], most: int | None) -> list[Any]:
    """Say how many rows are left out."""
    left = len(rows) - (most or len(rows))
    return [Text(f"… and {left} more", style="dim")] if left > 0 else []


def _limited(users: Row) -> list[tuple[str, object]]:
    """Return the line about users whom their own limits keep back, where there are any."""
    if not users["stopped"] and not users["paused"]:
        return []
    text = f"{users['stopped']} stopped, {users['paused']} paused; see: vidgen-worker limits list"
    return [("limited users", text)]


def workers_table(rows: list[Row], title: str = "") -> object:
    """Return the table of workers."""
    wide = console().width >= WIDE
    lines = [
        (
            row["id"], row["host"], Text(row["state"], style=STATE_STYLES[row["state"]]),
            row["running"], row["concurrency"], lasting(row["silence"].total_seconds()),
            lasting(_life(row).total_seconds()), *((row["pid"], row["version"]) if wide else ()),
        )
        for row in rows
    ]  # fmt: skip
    return table((*WORKER_COLUMNS, *(("pid", "version") if wide else ())), lines, title)


def _life(row: Row) -> timedelta:
    """How long a worker has been heard of."""
    life: timedelta = row["heartbeat_at"] - row["started_at"]
    return life


def _throughput(row: Row) -> tuple[object, ...]:
    ended = row["completed"] + row["failed"] - row["failed_by_users"]
    success = f"{100 * row['completed'] / ended:.1f} %" if ended > 0 else None
    maybe = f" ({row['unknown_submissions']}?)" if row["unknown_submissions"] else ""
    return (
        row["label"], row["completed"], row["failed"], row["failed_by_users"], row["cancelled"],
        success, f"{row['submissions']}{maybe}", f"{row['provider_cost']:g}",
        row["credits_charged"],
    )  # fmt: skip


def _gates(gates: list[Row]) -> object:
    if not gates:
        return facts([("gates", "all open")])
    return gates_table(gates, "Closed gates")

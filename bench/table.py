"""The table of `make bench`, made from its JSON and from nothing else.

`python -m bench.table [--write] [FILE]` prints it; with --write it replaces what stands in
docs/benchmark.md between the two `bench` markers, and in README.md the few rows that users feel.
Where another library is better the row says so.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.cells import TIMES, Cells, Row
from bench.film_table import FILM_ROWS

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
HEAD = (
    "| what | goal | vidgen-worker | the others | ratio to the best | reached |\n"
    "|---|---|---|---|---|---|\n"
)


PICK_UP_GOAL, PIPELINES_GOAL, STATEMENTS_GOAL = 0.9, 1.5, 15.0
HELD_STATEMENTS_GOAL, HELD_KB_GOAL, HELD_CPU_GOAL = 0.5, 60.0, 3.0
FLAT_GOAL, STREAM_MB_GOAL = 1.1, 150.0
LEVEL_GOAL, INSERT_GOAL, KILL_GOAL, SIGTERM_GOAL = 1.2, 3.0, 17.0, 1.0
WAIT_P50_GOAL, WAIT_P95_GOAL = 3.0, 6.0
TOLD_P50_GOAL, TOLD_P99_GOAL = 100, 1000
HEAD_SECONDS_GOAL, READ_SECONDS_GOAL = 0.15, 0.4
NONE = "–"  # noqa: RUF001 - typography
APART_KILL = "22 s (PgQueuer), 112 s (Chancy), never (Procrastinate), measured apart"
APART_LIMIT = "4 (PgQueuer), 11 to 35 (pg-boss)"
APART_OUTAGE = "50 once (Chancy), 50 twice (PgQueuer), 50 stuck (Procrastinate), measured apart"


def table(found: Row) -> str:
    """The whole of it, as Markdown."""
    lines = [HEAD]
    for name, cells_of in ROWS.items():
        row = found["rows"].get(name)
        if row is None:
            continue
        if isinstance(row, dict) and "broken" in row:
            lines.append(f"| {name} | | did not finish: see the JSON | | | no |\n")
            continue
        for *cells, reached in cells_of(row):
            verdict = NONE if reached is None else ("yes" if reached else "**no**")
            lines.append(f"| {' | '.join([*cells, verdict])} |\n")
    lines.append(
        "| zombie's late write | bounces, always | `tests/worker/test_zombies.py` | overwrites"
        f" (Procrastinate, PgQueuer), dropped (Chancy): measured apart | | {NONE} |\n"
    )
    return "".join(lines) + "\n" + _colophon(found)


def _colophon(found: Row) -> str:
    machine, settings = found["machine"], found["machine"]["settings"]
    who = "; ".join(
        f"{name} ({', '.join(one['requirements']) or 'this checkout'}: {one['settings']})"
        for name, one in found["contenders"].items()
    )
    rows = ", ".join(found.get("again", ()))
    again = f" Only {rows} then; the other rows are from the run before." if rows else ""
    return (
        f"Run {found['at']} at {found['revision']}, form `{found['form']}`,"
        f" on {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB,"
        f" load {machine['load_before']:.1f} before and {machine.get('load_after', 0.0):.1f} after;"
        f" Python {machine['python']}, PostgreSQL {machine['postgres']} (fsync {settings['fsync']},"
        f" synchronous_commit {settings['synchronous_commit']}). {who}."
        f" Medians of interleaved rounds.{again}\n"
    )


def _others(row: Row, show: Callable[[Row], str]) -> str:
    peers = [name for name in row if name != "vidgen-worker"]
    return ", ".join(f"{name} {show(row[name])}" for name in peers) or NONE


def _versus(row: Row, key: str, best: Callable[[list[float]], float]) -> float:
    peers = [one[key] for name, one in row.items() if name != "vidgen-worker"]
    return float(row["vidgen-worker"][key] / best(peers)) if peers else float("nan")


def _said(ratio: float, *, faster: bool) -> str:
    return f"{ratio:.2f}" + ("" if faster else " (another one is better)")


def _pick_up(row: Row) -> list[Cells]:
    ratio = _versus(row, "p50_call", min)
    return [(
        "pick-up p50: enqueue call → work begins, idle worker", f"≤ {PICK_UP_GOAL}{TIMES} the best",
        f"{row['vidgen-worker']['p50_call']} ms",
        _others(row, lambda one: f"{one['p50_call']} ms"),
        _said(ratio, faster=ratio < 1), ratio <= PICK_UP_GOAL,
    )]  # fmt: skip


def _pipelines(row: Row) -> list[Cells]:
    ratio = _versus(row, "per_second", max)
    cpu = _versus(row, "cpu_ms", min)
    ours = row["vidgen-worker"]
    return [
        (
            "pipelines of doubles a second, one process", f"≥ {PIPELINES_GOAL}{TIMES} the best",
            f"{ours['per_second']}", _others(row, lambda one: f"{one['per_second']}"),
            _said(ratio, faster=ratio > 1), ratio >= PIPELINES_GOAL,
        ),
        (
            "… CPU of the worker per pipeline", "", f"{ours['cpu_ms']} ms",
            _others(row, lambda one: f"{one['cpu_ms']} ms"), _said(cpu, faster=cpu < 1), None,
        ),
        (
            "… CPU of PostgreSQL per pipeline", "", f"{ours['postgres_cpu_ms']} ms",
            _others(row, lambda one: f"{one['postgres_cpu_ms']} ms"), "", None,
        ),
        (
            "… CPU of the doubles per pipeline", "", f"{ours['doubles_cpu_ms']} ms",
            _others(row, lambda one: f"{one['doubles_cpu_ms']} ms"), "", None,
        ),
        (
            "statements per task, claim to completed", f"≤ {STATEMENTS_GOAL:g}",
            f"{ours['statements']}", _others(row, lambda one: f"{one['statements']}"), "",
            ours["statements"] <= STATEMENTS_GOAL,
        ),
    ]  # fmt: skip


def _in_flight(row: Row) -> list[Cells]:
    tasks = f"{row['tasks']:,} in flight, polled every {row['poll']}"
    return [
        (
            f"{tasks}: statements a second beyond progress", f"≤ {HELD_STATEMENTS_GOAL}",
            f"{row['statements_per_second']}", "0.3 to 0.9 at 500, measured apart", "",
            row["statements_per_second"] <= HELD_STATEMENTS_GOAL,
        ),
        (
            f"{tasks}: memory per task", f"≤ {HELD_KB_GOAL:g} KB",
            f"{row['kb_per_task']} KB ({row['idle_mb']} → {row['held_mb']} MB)", "", "",
            row["kb_per_task"] <= HELD_KB_GOAL,
        ),
    ]  # fmt: skip


def _in_flight_cpu(row: Row) -> list[Cells]:
    return [(
        f"{row['tasks']:,} in flight: CPU beyond polling the provider", f"≤ {HELD_CPU_GOAL:g} %",
        f"{row['cpu_percent']} %", "", "", row["cpu_percent"] <= HELD_CPU_GOAL,
    )]  # fmt: skip


def _level(row: Row) -> list[Cells]:
    full = (
        f"claim with {row['finished']:,} finished, {row['backlog']:,} of one user,"
        f" {row['later']:,} for later"
    )
    return [
        (
            full, f"≤ {LEVEL_GOAL}{TIMES} of an empty table",
            f"{row['full_ratio']}{TIMES} ({row['small_ms']} → {row['full_ms']} ms)",
            f"0.9 to 1.3{TIMES}", "", row["full_ratio"] <= LEVEL_GOAL,
        ),
        (
            "… with stale statistics", f"≤ {LEVEL_GOAL}{TIMES}",
            f"{row['stale_ratio']}{TIMES} ({row['stale_small_ms']} → {row['stale_ms']} ms)",
            "not measured", "", row["stale_ratio"] <= LEVEL_GOAL,
        ),
    ]  # fmt: skip


def _held_snapshot(row: Row) -> list[Cells]:
    return [(
        f"… after {row['tasks']:,} tasks in {row['seconds']:g} s under another's snapshot",
        f"≤ {LEVEL_GOAL}{TIMES}",
        f"{row['ratio']}{TIMES} ({row['before_ms']} → {row['after_ms']} ms)",
        "not measured", "", row["ratio"] <= LEVEL_GOAL,
    )]  # fmt: skip


def _speeds(row: Row) -> str:
    return ", ".join(f"{run['per_second']:g} ({count})" for count, run in row["runs"].items())


def _scaled(row: Row) -> str:
    """The most over what one process does."""
    one, *_ = row["runs"].values()
    best = max(run["per_second"] for run in row["runs"].values())
    return f"{best / one['per_second']:.1f}{TIMES} one process, {row['cores']} cores"


def _queue(row: Row) -> list[Cells]:
    twice = sum(run["claimed_twice"] for run in row["runs"].values())
    left = sum(run["not_completed"] for run in row["runs"].values())
    return [(
        f"{row['tasks']:,} tasks claimed and completed a second (by so many processes), no HTTP",
        "none twice, none left", f"{_speeds(row)}; {twice} twice, {left} left", "", _scaled(row),
        twice == 0 and left == 0,
    )]  # fmt: skip


def _database(row: Row) -> list[Cells]:
    runs = row["runs"].values()
    wal = statistics.median(run["wal_bytes"] for run in runs) / 1000
    cpu = statistics.median(run["postgres_cpu_ms"] for run in runs)
    return [
        (
            "all statements of a task, tasks a second (by so many processes), no HTTP", "",
            _speeds(row), "", _scaled(row), None,
        ),
        (
            "… WAL and CPU of PostgreSQL per task", "", f"{wal:.1f} KB, {cpu:.1f} ms", "", "", None,
        ),
    ]  # fmt: skip


def _disk(row: Row) -> list[Cells]:
    tasks = row["bytes"]["public.video_generation_tasks"] / 1000
    return [(
        f"disk of a finished task, at {row['tasks']:,}", "",
        f"{row['bytes_per_task'] / 1000:.1f} KB, of which its row {tasks:.1f}", "", "", None,
    )]  # fmt: skip


def _fleet(row: Row) -> list[Cells]:
    again = sum(run["attempts_beyond_one"] for run in row["runs"].values())
    return [(
        "pipelines of doubles a second (by so many processes), doubles on the same cores",
        "none twice", f"{_speeds(row)}; {again} twice", "", _scaled(row), again == 0,
    )]  # fmt: skip


def _flat(row: Row) -> list[Cells]:
    (early, late), files, connections = row["mb"], row["files"], row["connections"]
    said = (
        f"{early} → {late} MB, {files[0]:g} → {files[1]:g} files,"
        f" {connections[0]:g} → {connections[1]:g} connections"
    )
    return [(
        f"one process over {row['tasks']:,} tasks: first quarter → last quarter",
        f"memory ≤ {FLAT_GOAL}{TIMES}, connections the same",
        said, "", "",
        late <= early * FLAT_GOAL and connections[0] == connections[1],
    )]  # fmt: skip


def _streams(row: Row) -> list[Cells]:
    children = " and ".join(f"{peak:g}" for peak in row["media_mb"])
    return [(
        f"{row['videos']} clips of {row['clip_mb']:g} MB at once: peak of the process's memory",
        f"≤ {STREAM_MB_GOAL:g} MB",
        f"{row['worker_mb']} MB (idle {row['idle_mb']}; media children {children})", "", "",
        row["worker_mb"] <= STREAM_MB_GOAL,
    )]  # fmt: skip


def _clip_memory(row: Row) -> list[Cells]:
    looks = row["as_it_is"], row["conformed"]
    memory = " and ".join(f"{look['mb']:g} MB" for look in looks)
    cpu = " and ".join(f"{look['cpu_seconds']:g} s" for look in looks)
    return [(
        f"memory of a {row['height']}p clip of {row['seconds']} s: looked at, and conformed", "",
        f"{memory} (CPU {cpu})", "", "", None,
    )]  # fmt: skip


def _turns(row: Row) -> list[Cells]:
    return [(
        f"second user's first task behind {row['backlog']:,} of the first's", "next turn",
        f"after {row['place']} of the first's", "caps only, none fair", "", row["place"] <= 1,
    )]  # fmt: skip


def _limit(row: Row) -> list[Cells]:
    exact = row["waited"] == 0 and row["most_at_once"] <= row["slots"]
    return [(
        f"provider limit of {row['slots']} over {row['workers']} racing workers, one killed",
        f"never above {row['slots']}",
        f"at most {row['most_at_once']}; {row['waited']} of {row['generations']} queued there",
        f"{APART_LIMIT}, measured apart", "", exact and row["most_at_once"] == row["slots"],
    )]  # fmt: skip


def _bulk_insert(row: Row) -> list[Cells]:
    return [(
        f"one INSERT of {row['rows']:,} rows, with our triggers",
        f"≤ {INSERT_GOAL:g}{TIMES} without",
        f"{row['ratio']}{TIMES} ({row['without_seconds']} → {row['with_seconds']} s)", "", "",
        row["ratio"] <= INSERT_GOAL,
    )]  # fmt: skip


def _deaths(runs: list[Row]) -> list[Cells]:
    kill = statistics.median(run["kill_seconds"] for run in runs)
    term = statistics.median(run["sigterm_seconds"] for run in runs)
    paid = max(run["generations_per_stage_begun"] for run in runs)
    return [
        (
            f"kill -9 → all {runs[0]['tasks']} running elsewhere, lease 15 s",
            f"≤ {KILL_GOAL:g} s", f"{kill:.1f} s", APART_KILL, "", kill <= KILL_GOAL,
        ),
        (
            "SIGTERM → all running elsewhere", f"≤ {SIGTERM_GOAL:g} s", f"{term:.2f} s",
            "they wait for the jobs", "", term <= SIGTERM_GOAL,
        ),
        (
            "generations paid per task over both deaths", "1", f"{paid:g}", "", "", paid == 1,
        ),
    ]  # fmt: skip


def _outage(row: Row) -> list[Cells]:
    said = (
        f"{row['completed']} once, {row['paid_again']} twice, {row['stuck']} stuck"
        f" ({row['all_written_seconds_after']} s after)"
    )
    return [(
        f"database away {row['away_seconds']:g} s while {row['tasks']} tasks end",
        "all once, 0 twice, 0 stuck", said,
        APART_OUTAGE, "",
        row["completed"] == row["tasks"] and row["paid_again"] == 0 and row["stuck"] == 0,
    )]  # fmt: skip


def _command_line(row: Row) -> list[Cells]:
    heads = {name: row[name] for name in ("--version", "--help")}
    reads = {name: row[name] for name in row if name not in (*heads, "nothing")}
    nothing = f"`python -c pass` {row['nothing']:.2f} s"
    return [
        (f"the command line: {what}", f"≤ {goal:g} s",
         ", ".join(f"{name} {value:.2f} s" for name, value in found.items()), nothing, "",
         max(found.values()) <= goal)
        for what, found, goal in (
            ("what it is", heads, HEAD_SECONDS_GOAL), ("verbs that read", reads, READ_SECONDS_GOAL),
        )
    ]  # fmt: skip


def _webhooks(row: Row) -> list[Cells]:
    alone, beside = row["alone"], row["beside_a_dead_one"]
    return [
        ("a webhook: commit → request, p50 and p99", f"≤ {TOLD_P50_GOAL} ms and {TOLD_P99_GOAL} ms",
         f"{alone['p50']} and {alone['p99']} ms", "", "",
         alone["p50"] <= TOLD_P50_GOAL and alone["p99"] <= TOLD_P99_GOAL),
        (f"… beside a dead one with {row['waiting']:,} deliveries", "p99 ± 20 %",
         f"{beside['p50']} and {beside['p99']} ms", "", f"{beside['p99'] / alone['p99']:.2f}",
         beside["p99"] <= 1.2 * alone["p99"]),
    ]  # fmt: skip


def _waits(row: Row) -> list[Cells]:
    cells = []
    for name, what in (("image", "a still"), ("video", "a clip"), ("task", "a task of both")):
        ours, sdk = row["simulated"]["ours"][name], row["simulated"]["sdk"][name]
        goals = (2 if name == "task" else 1) * WAIT_P50_GOAL, WAIT_P95_GOAL
        by_stage = name != "task"
        cells.append((
            f"seconds beyond the provider's own time, simulated: {what}, p50 and p95",
            f"≤ {goals[0]:g} s" + (f" and {goals[1]:g} s" if by_stage else ""),
            f"{ours['p50']} and {ours['p95']} s, {ours['polls']} polls",
            f"`wait_for_task_output` {sdk['p50']} and {sdk['p95']} s, {sdk['polls']} polls",
            _said(ours["p50"] / sdk["p50"], faster=ours["p50"] < sdk["p50"]),
            ours["p50"] <= goals[0] and (not by_stage or ours["p95"] <= goals[1]),
        ))  # fmt: skip
    if row["real"]:
        shown = [
            f"{row['real'][who]['image']['p50']} and {row['real'][who]['image']['p95']} s, "
            f"{row['real'][who]['video']['p50']} and {row['real'][who]['video']['p95']} s"
            for who in ("ours", "sdk")
        ]
        cells.append((
            f"… real, {row['real']['tasks']} tasks: a still, a clip", "", shown[0],
            f"`wait_for_task_output` {shown[1]}", "", None,
        ))  # fmt: skip
    return cells


ROWS: Mapping[str, Callable[[Any], list[Cells]]] = {
    "waits": _waits,
    "pick_up": _pick_up,
    "pipelines": _pipelines,
    "in_flight": _in_flight,
    "in_flight_unpolled": _in_flight_cpu,
    "level": _level,
    "held_snapshot": _held_snapshot,
    "turns": _turns,
    "bulk_insert": _bulk_insert,
    "limit": _limit,
    "queue": _queue,
    "database": _database,
    "disk": _disk,
    "fleet": _fleet,
    "flat": _flat,
    "streams": _streams,
    "clip_memory": _clip_memory,
    "deaths": _deaths,
    "outage": _outage,
    **FILM_ROWS,
    "webhooks": _webhooks,
    "command_line": _command_line,
}

FELT = (
    "seconds beyond the provider's own time, simulated: a task of both", "second user's first task",
    "kill -9", "generations paid per task", "database away",
)  # fmt: skip
"""How the rows begin that users feel: those of the README."""
_BEGINS = tuple(f"| {begin}" for begin in FELT)


def felt(text: str) -> str:
    """The rows of a table that users feel, under its head."""
    rows = [line for line in text.splitlines(keepends=True) if line.startswith(_BEGINS)]
    return "".join([HEAD, *rows])


def between_markers(document: str, text: str) -> str:
    """A document with the text between its markers. Raises ValueError where they are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"The document lacks the lines {BEGIN} and {END}: add them where the table belongs"
        )
    return f"{before}{BEGIN}\n{text}{END}{after}"


def main() -> int:
    """Print the table, or put it into the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into the documents")
    default = ROOT / "bench" / "results" / "full.json"
    parser.add_argument("file", nargs="?", type=Path, default=default)
    given = parser.parse_args()
    text = table(json.loads(given.file.read_text()))
    if given.write:
        for name, part in (("docs/benchmark.md", text), ("README.md", felt(text))):
            document = ROOT / name
            document.write_text(between_markers(document.read_text(), part))
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

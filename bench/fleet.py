"""Rows of many processes over one database: how far they scale, what a task costs, what stays flat.

Where the machine has fewer cores than there are processes, its cores are the limit and not the
database: the table prints how many cores there were and what PostgreSQL itself used.
"""

import os
import statistics
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from bench.contenders import OURS
from bench.ground import ROOT, Ground, Site
from bench.lines import Process, cpu_seconds, family

Result = dict[str, Any]

TABLES = {
    "public.video_generation_tasks": ("id",),
    "vidgen.submissions": ("id", "task_id", "generation_id"),
    "vidgen.checkpoints": ("task_id", "submission_id", "generation_id"),
    "vidgen.holds": ("task_id",),
    "vidgen.charges": ("task_id",),
    "public.credit_entries": ("task_id",),
}
"""What a finished task leaves behind, and by which columns one of them differs from the next."""
NUMBERED = ("vidgen.holds", "public.credit_entries")


# Many processes.


def queue(ground: Ground, tasks: int, processes: list[int]) -> Result:
    """Claim and complete all tasks with so many processes; no HTTP, no stages."""
    return _scaling(ground, tasks, processes, "queue")


def database(ground: Ground, tasks: int, processes: list[int]) -> Result:
    """Everything that tasks cost the database, with so many processes; no HTTP."""
    return _scaling(ground, tasks, processes, "whole")


def _scaling(ground: Ground, tasks: int, processes: list[int], mode: str) -> Result:
    runs = {}
    for count in processes:
        with ground.site() as site:
            runs[str(count)] = _drained(site, tasks, count, mode)
    return {"tasks": tasks, "cores": os.cpu_count(), "runs": runs}


def _drained(site: Site, tasks: int, count: int, mode: str) -> Result:
    users = site.users(20)
    scenes = site.scenes(tasks, users)
    site.sql(
        "insert into public.video_generation_tasks (id, scene_id, user_id)"
        " select s.id, s.id, s.user_id from public.video_scenes as s"
    )
    site.sql("vacuum analyze")
    site.forget_statements()
    server = site.ground.postgres.pid
    with ExitStack() as stack:
        hands = [
            stack.enter_context(Process(
                [sys.executable, "-m", "bench.drain", mode],
                {**os.environ, "DATABASE_URL": site.url},
                site.folder / f"drain-{number}.log", ROOT,
            ))
            for number in range(count)
        ]  # fmt: skip
        for hand in hands:
            hand.until("ready")
        wal, cpu = _wal(site), _cpu(server)
        began = time.monotonic()
        for hand in hands:
            hand.ask({})
        ends = [hand.until("drained")[0] for hand in hands]
        seconds = max(end["at"] for end in ends) - began
        cpu = _cpu(server) - cpu
        claimed = Counter(
            task
            for hand in hands
            for line in hand.heard
            if line["what"] == "claimed"
            for task in line["ids"]
        )
    completed = site.sql(
        "select count(*) as n from public.video_generation_tasks where status = 'completed'"
    )[0]["n"]
    statements = site.statements()
    return {
        "per_second": round(tasks / seconds, 1),
        "claimed_twice": sum(times > 1 for times in claimed.values()),
        "not_completed": len(scenes) - completed,
        "statements": round(sum(row["calls"] for row in statements) / tasks, 2),
        "wal_bytes": round((_wal(site) - wal) / tasks),
        "postgres_cpu_ms": round(cpu / tasks * 1000, 2),
    }  # fmt: skip


def _cpu(pid: int) -> float:
    """CPU time of a server and its children; counted again where one of them ended meanwhile."""
    while True:
        try:
            return sum(map(cpu_seconds, family(pid)))
        except (FileNotFoundError, ProcessLookupError):
            os.kill(pid, 0)  # it is still there itself


def _wal(site: Site) -> int:
    return int(site.sql("select pg_current_wal_lsn() - '0/0' as bytes")[0]["bytes"])


def _copies(table: str, ids: tuple[str, ...]) -> sql.Composed:
    """The statement that copies every row of a table so many times, each under ids of its own."""
    others = sql.SQL(", ").join(
        sql.SQL("{}, gen_random_uuid()").format(sql.Literal(column)) for column in ids
    )
    # That it depends on `n`, which is no column, has it called for every copy.
    numbered = table in NUMBERED
    number = sql.SQL(", 'id', 1000000 + n * 1000 + t.id") if numbered else sql.SQL("")
    return sql.SQL(
        "insert into {table} {system} select made.*"
        "  from {table} as t, generate_series(1, %s) as n,"
        "       lateral jsonb_populate_record("
        "         t, jsonb_build_object('n', n, {others}{number})"
        "       ) as made"
        " where {wanted}"
    ).format(
        table=sql.Identifier(*table.split(".")),
        system=sql.SQL("overriding system value" if numbered else ""),
        others=others, number=number,
        wanted=sql.SQL("t.kind = 'charge'" if table == "public.credit_entries" else "true"),
    )  # fmt: skip


def disk(ground: Ground, tasks: int) -> Result:
    """Bytes on disk that a finished task leaves, by table: rows, indexes, TOAST.

    A hundred tasks are made by their statements, and copied under other ids until there are enough.
    """
    made = 100
    with ground.site() as site:
        _drained(site, made, 1, "whole")
        with psycopg.connect(site.admin_url, autocommit=True) as conn:
            conn.execute("set session_replication_role = replica")
            for table, ids in TABLES.items():
                conn.execute(_copies(table, ids), (tasks // made - 1,))
            conn.execute("vacuum analyze")
            rows = conn.execute(
                "select t, pg_total_relation_size(t::regclass), pg_relation_size(t::regclass)"
                "  from unnest(%s::text[]) as t",
                (list(TABLES),),
            ).fetchall()
    return {
        "tasks": tasks,
        "bytes": {name: round(total / tasks) for name, total, _ in rows},
        "of_rows": {name: round(heap / tasks) for name, _, heap in rows},
        "bytes_per_task": round(sum(total for _, total, _ in rows) / tasks),
    }


def pipelines(ground: Ground, tasks: int, processes: list[int]) -> Result:
    """Whole pipelines over HTTP, drained by so many workers of ours."""
    runs = {}
    for count in processes:
        with ground.site() as site, ExitStack() as stack:
            site.scenes(tasks * count, site.users(10))
            workers = [stack.enter_context(_named(site, number)) for number in range(count)]
            for worker in workers:
                worker.until("ready")
            began = time.monotonic()
            site.sql(
                "insert into public.video_generation_tasks (id, scene_id, user_id)"
                " select s.id, s.id, s.user_id from public.video_scenes as s"
            )
            ended = _all_ended(site, tasks * count)
            runs[str(count)] = {
                "per_second": round(tasks * count / (ended - began), 2),
                "attempts_beyond_one": site.sql(
                    "select count(*) as n from public.video_generation_tasks where attempt > 1"
                )[0]["n"],
            }
    return {"tasks_per_process": tasks, "cores": os.cpu_count(), "runs": runs}


def _named(site: Site, number: int, **more: str) -> Process:
    """One worker of several: each has a log of its own."""
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
    }
    return Process(
        [OURS.python, "-m", OURS.module, "work"], environment | site.environment(**more),
        site.folder / f"worker-{number}.log", ROOT,
    )  # fmt: skip


def _all_ended(site: Site, tasks: int, patience: float = 240.0) -> float:
    """When all tasks had ended, to a tenth of a second."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        left = site.sql(
            "select count(*) as n from public.video_generation_tasks where status <> 'completed'"
        )[0]["n"]
        if left == 0:
            return time.monotonic()
        time.sleep(0.1)
    raise TimeoutError(f"{left} of {tasks} tasks have not ended in {patience} s")


# Level over a long life.


def flat(ground: Ground, tasks: int, every: int) -> Result:
    """One worker does so many quick tasks: memory, files and connections, early and late."""
    samples: list[dict[str, float]] = []
    with ground.site() as site:
        scenes = [str(scene) for scene in site.scenes(tasks, site.users(10))]
        with _named(site, 0) as worker, OURS.start("enqueue", site, os.environ) as producer:
            worker.until("ready")
            producer.until("ready")
            for start in range(0, tasks, every):
                wave = scenes[start : start + every]
                producer.ask({"ids": wave})
                worker.until("ended", len(wave))
                worker.heard.clear()
                samples.append({
                    "tasks": start + len(wave),
                    "mb": round(worker.resident_bytes() / 1e6, 1),
                    "files": len(list(Path(f"/proc/{worker.pid}/fd").iterdir())),
                    "connections": _connections(site),
                    "processes": len(family(worker.pid)),
                })  # fmt: skip
    quarter = max(len(samples) // 4, 1)
    return {
        "tasks": tasks, "samples": samples,
        **{
            name: [
                round(statistics.median(sample[name] for sample in part), 1)
                for part in (samples[:quarter], samples[-quarter:])
            ]
            for name in ("mb", "files", "connections", "processes")
        },
    }  # fmt: skip


def _connections(site: Site) -> int:
    return int(site.sql(
        "select count(*) as n from pg_stat_activity"
        " where datname = current_database() and application_name = 'vidgen-worker'"
    )[0]["n"])  # fmt: skip


def streams(ground: Ground, videos: int, clip_bytes: int) -> Result:
    """So many large clips at once, from download to upload: the process's peak of memory."""
    with ground.site(clip_bytes=clip_bytes) as site:
        site.scenes(videos, site.users(2))
        with _named(site, 0, VIDGEN_CONCURRENCY=str(videos)) as worker:
            worker.until("ready")
            idle = _peak_mb(worker.pid)
            began = time.monotonic()
            site.sql(
                "insert into public.video_generation_tasks (id, scene_id, user_id)"
                " select s.id, s.id, s.user_id from public.video_scenes as s"
            )
            worker.until("ended", videos)
            seconds = time.monotonic() - began
            peaks = {pid: _peak_mb(pid) for pid in family(worker.pid)}
        stored = [one for one in site.storage.objects() if one["media_type"] == "video/mp4"]
    return {
        "videos": videos, "clip_mb": round(clip_bytes / 1e6, 1), "idle_mb": idle,
        "worker_mb": peaks.pop(worker.pid), "media_mb": sorted(peaks.values()),
        "stored_mb": round(sum(one["bytes"] for one in stored) / 1e6, 1),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def _peak_mb(pid: int) -> float:
    """The most that a process has had in memory so far, without its children."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(kilobytes.split()[1]) * 1024 / 1e6, 1)
